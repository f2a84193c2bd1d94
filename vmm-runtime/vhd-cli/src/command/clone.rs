//! `vhd clone`

use std::path::PathBuf;

use clap::Args;
use paddock_vhd::{CloneOptions, Gate, clone_disk};
use serde::Serialize;

use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Meter;
use crate::size::human;
use crate::target::{Force, Target};

/// Make the same disk again, with an identity of its own
///
/// Where the file system can share space between files, that takes neither
/// time nor room. A clone of a differencing disk has the same parent.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd clone disk.vhd another.vhd")]
pub(crate) struct Arguments {
    /// The disk
    source: PathBuf,
    /// The new disk
    target: PathBuf,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    search: Search,
}

#[derive(Serialize)]
struct Answer {
    source: PathBuf,
    target: PathBuf,
    reflinked: bool,
    bytes: u64,
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let disk = DiskPath::existing(&arguments.source)?;
    let search = arguments.search.resolve()?;
    let chain = super::chain_paths(&disk, &search)?;
    let target = Target::new(&arguments.target, arguments.force, &chain)?;
    let meter = Meter::start("clone", out)?;
    let options = CloneOptions {
        search,
        ..CloneOptions::new()
    };
    let report = clone_disk(
        &disk.pool,
        &disk.name,
        target.pool(),
        target.name(),
        Gate::open(),
        &options,
        &mut |step| meter.step(step),
    )?;
    drop(meter);
    let answer = Answer {
        source: disk.path().to_owned(),
        target: target.finish()?.path().to_owned(),
        reflinked: report.reflinked,
        bytes: report.bytes,
    };
    out.done(&answer, |answer| {
        let how = if answer.reflinked {
            "space shared".to_owned()
        } else {
            format!("{} copied", human(answer.bytes))
        };
        format!(
            "{}: a clone of {}, {how}",
            answer.target.display(),
            answer.source.display()
        )
    });
    Ok(Exit::Good)
}
