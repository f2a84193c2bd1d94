//! `vhd resize`

use std::path::PathBuf;

use clap::Args;
use paddock_vhd::{Gate, ResizeOptions, inspect, resize};
use serde::Serialize;

use crate::children::{elsewhere, names};
use crate::command::create::disk_size;
use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Meter;
use crate::size::{Size, exact};

/// Give a disk another size
///
/// What is added reads as zeros. The partitions and file systems on the disk
/// are the guest's to adapt: before a disk is made smaller, after it is made
/// larger.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd resize --size 20GiB disk.vhd
  vhd resize --size 5GiB --cut-off disk.vhd")]
pub(crate) struct Arguments {
    /// The new size: 20GiB, 512M
    #[arg(long)]
    size: Size,
    /// Cut data off behind the new end, and make children useless that have
    /// the old size
    #[arg(long)]
    cut_off: bool,
    /// The disk
    file: PathBuf,
    #[command(flatten)]
    search: Search,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    file: PathBuf,
    old_size: u64,
    new_size: u64,
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let disk = DiskPath::existing(&arguments.file)?;
    let options = ResizeOptions {
        size: disk_size(arguments.size)?,
        force: arguments.cut_off,
        search: arguments.search.resolve()?,
    };
    let found = inspect(&disk.pool, &disk.name)?;
    if !arguments.cut_off && found.virtual_size != options.size.bytes() {
        let beside = disk.path().parent();
        let others = elsewhere(&arguments.search, found.unique_id, beside.as_slice())?;
        if !others.is_empty() {
            return Err(Failure::wrong_use(format!(
                "{}: it has children, which would not fit it any more: {}; merge or remove those first",
                disk.path().display(),
                names(&others)
            )));
        }
    }
    let meter = Meter::start("resize", out)?;
    let gate = Gate::open();
    let report = resize(&disk.pool, &disk.name, gate, &options, &mut |step| {
        meter.step(step)
    })?;
    drop(meter);
    let answer = Answer {
        file: disk.path().to_owned(),
        old_size: report.old_size,
        new_size: report.new_size,
    };
    out.done(&answer, |answer| {
        format!(
            "{}: {}, was {}",
            answer.file.display(),
            exact(answer.new_size),
            exact(answer.old_size)
        )
    });
    Ok(Exit::Good)
}
