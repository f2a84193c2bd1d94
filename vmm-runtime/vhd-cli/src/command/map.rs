//! `vhd map`

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use paddock_vhd::{Access, BlockDevice, Extent, ExtentKind, IoError};
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
    fn new(Extent { offset, len, kind }: Extent) -> Run {
        Run {
            start: offset,
            length: len,
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
    let failed = |error| Failure::disk(&arguments.file, &error);
    let mut list = out.list(&format!("{:>16} {:>16} kind", "start", "length"));
    each_run(source.device(), |run| {
        list.item(&run, |run| {
            format!("{:>16} {:>16} {}", run.start, run.length, run.kind())
        })
    })
    .map_err(failed)?;
    list.end();
    Ok(Exit::Good)
}

/// Calls `each` for all runs of a disk, of which there may be many, until it
/// has enough; neighbours of the same kind are one.
fn each_run(
    disk: &dyn BlockDevice,
    mut each: impl FnMut(Run) -> ControlFlow<()>,
) -> Result<(), IoError> {
    let mut last: Option<Extent> = None;
    let mut at = 0;
    while at < disk.size() {
        for extent in disk.block_status(at, disk.size() - at)? {
            at = extent.offset + extent.len;
            match &mut last {
                Some(last) if last.kind == extent.kind => last.len += extent.len,
                last => {
                    if let Some(run) = last.replace(extent)
                        && each(Run::new(run)).is_break()
                    {
                        return Ok(());
                    }
                }
            }
        }
    }
    if let Some(run) = last {
        // It is the last one anyway.
        let _ = each(Run::new(run));
    }
    Ok(())
}
