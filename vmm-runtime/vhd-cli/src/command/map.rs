//! `vhd map`

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use paddock_vhd::{Access, BlockDevice, Extent, ExtentKind};
use serde::Serialize;

use crate::disk_path::Search;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::source::{Format, Source};

/// List what is stored where on a disk
///
/// `data` may be anything, `zero` is zeros that have a place in the file,
/// `hole` is zeros that have none. Parents count as well.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd map disk.vhd
  vhd --json map disk.vhd | jq '[.[] | select(.data) | .length] | add'")]
pub(crate) struct Arguments {
    /// The disk
    file: PathBuf,
    /// What it is; never guessed
    #[arg(long, value_name = "FORMAT", default_value = "vhd")]
    from: Format,
    #[command(flatten)]
    search: Search,
}

/// A run, as `qemu-img map --output=json` has it, too.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Run {
    start: u64,
    length: u64,
    present: bool,
    zero: bool,
    data: bool,
}

impl Run {
    fn new(start: u64, length: u64, kind: ExtentKind) -> Run {
        Run {
            start,
            length,
            present: kind != ExtentKind::Hole,
            zero: kind != ExtentKind::Data,
            data: kind == ExtentKind::Data,
        }
    }

    fn kind(&self) -> &'static str {
        match (self.data, self.present) {
            (true, _) => "data",
            (false, true) => "zero",
            (false, false) => "hole",
        }
    }
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let source = Source::open(
        &arguments.file,
        arguments.from,
        Access::ReadOnly,
        &arguments.search,
    )?;
    let runs = runs(source.device()).map_err(|error| Failure::disk(&arguments.file, &error))?;
    out.answer(&runs, |runs| {
        let mut text = format!("{:>16} {:>16} kind\n", "start", "length");
        for run in runs {
            let _ = writeln!(text, "{:>16} {:>16} {}", run.start, run.length, run.kind());
        }
        text
    });
    Ok(Exit::Good)
}

/// All runs of a disk; neighbours of the same kind are one.
fn runs(disk: &dyn BlockDevice) -> Result<Vec<Run>, paddock_vhd::IoError> {
    let mut runs: Vec<(u64, u64, ExtentKind)> = Vec::new();
    let mut at = 0;
    while at < disk.size() {
        for Extent { offset, len, kind } in disk.block_status(at, disk.size() - at)? {
            at = offset + len;
            match runs.last_mut() {
                Some((_, length, last)) if *last == kind => *length += len,
                _ => runs.push((offset, len, kind)),
            }
        }
    }
    Ok(runs
        .into_iter()
        .map(|(start, length, kind)| Run::new(start, length, kind))
        .collect())
}
