//! `vhd reparent`

use std::path::PathBuf;

use clap::Args;
use paddock_vhd::{Gate, reparent};

use crate::command::info::Description;
use crate::disk_path::{DiskPath, Pair, Search};
use crate::failure::{Exit, Failure};
use crate::output::Output;

/// Reconnect a differencing disk to its parent
///
/// For a parent that was moved, or whose time of modification is not what the
/// disk knows. The parent must have the identity that the disk knows; whether
/// its content is right is yours to know.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd reparent child.vhd /srv/bases/base.vhd")]
pub(crate) struct Arguments {
    /// The differencing disk
    file: PathBuf,
    /// Its parent, where it is now
    parent: PathBuf,
    #[command(flatten)]
    search: Search,
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let disk = DiskPath::existing(&arguments.file)?;
    let parent = DiskPath::existing(&arguments.parent)?;
    let search = arguments.search.resolve()?;
    let pair = Pair::new(&disk, &parent)?;
    let (pool, rel) = &pair.child;
    let (parent_pool, parent_rel) = &pair.parent;
    reparent(pool, rel, parent_pool, parent_rel, Gate::open(), &search)?;
    out.done(&Description::of(&disk)?, Description::human);
    Ok(Exit::Good)
}
