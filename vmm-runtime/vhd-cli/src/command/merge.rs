//! `vhd merge`

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use paddock_vhd::{DiskType, Gate, MergeReport, merge};
use serde::Serialize;

use crate::children::merge_options;
use crate::command::convert::{Copied, copy_disk};
use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Meter;
use crate::size::human;
use crate::target::Force;

/// Merge a differencing disk into its parent, or its chain into a new disk
///
/// Merged into its parent, the disk itself is gone afterwards. All other
/// children of the parent are useless then: there must be none in the folders
/// of the two disks and those within them, unless they are abandoned. A merge
/// that was cut off, by Ctrl-C too, is brought to its end by asking for it again.
///
/// With --into, everything that the disk shows goes to a new disk, and the
/// disk and its parents stay as they are.
#[derive(Debug, Args)]
#[command(mut_arg("force", |force| force.requires("into")), after_help = "Examples:
  vhd merge child.vhd
  vhd merge child.vhd --into all.vhd
  vhd merge child.vhd --into all.vhd --type fixed")]
pub(crate) struct Arguments {
    /// The differencing disk
    file: PathBuf,
    /// Merge into this new disk
    #[arg(long, value_name = "NEW")]
    into: Option<PathBuf>,
    /// The type of the new disk
    #[arg(
        long = "type",
        value_name = "TYPE",
        requires = "into",
        default_value = "dynamic"
    )]
    kind: Kind,
    /// Merge into the parent even if that makes other disks useless, or if it was modified since this one was made
    #[arg(long, conflicts_with = "into")]
    abandon_others: bool,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    search: Search,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Dynamic,
    Fixed,
}

/// A merge, as it is told in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Merged {
    file: PathBuf,
    parent: Option<PathBuf>,
    merged_bytes: u64,
    resumed: bool,
}

impl Merged {
    /// `parent`: where it is, as far as that was known before.
    pub(crate) fn new(disk: &DiskPath, parent: Option<PathBuf>, report: MergeReport) -> Merged {
        Merged {
            file: disk.path().to_owned(),
            parent: report.parent.map(|rel| parent.unwrap_or(rel)),
            merged_bytes: report.merged_bytes,
            resumed: report.resumed,
        }
    }

    pub(crate) fn human(&self) -> String {
        let into = match &self.parent {
            Some(parent) => format!(" into {}", parent.display()),
            None => String::new(),
        };
        let resumed = if self.resumed {
            ", an earlier merge brought to its end"
        } else {
            ""
        };
        format!(
            "{}: {} merged{into}{resumed}; the disk itself is gone",
            self.file.display(),
            human(self.merged_bytes)
        )
    }
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    if let Some(into) = &arguments.into {
        let disk_type = match arguments.kind {
            Kind::Dynamic => DiskType::Dynamic,
            Kind::Fixed => DiskType::Fixed,
        };
        let copied = copy_disk(
            &arguments.file,
            into,
            Some(disk_type),
            arguments.force,
            &arguments.search,
            "merge",
            out,
        )?;
        out.done(&copied, Copied::human);
        return Ok(Exit::Good);
    }
    // It may be gone already: the end of a merge that was cut off.
    let disk = DiskPath::any(&arguments.file)?;
    let parent = super::parent_path(&disk, &arguments.search.resolve()?);
    let (search, force) = (&arguments.search, arguments.abandon_others);
    let options = merge_options(&disk, parent.as_deref(), search, force)?;
    let meter = Meter::start("merge", out)?;
    let report = merge(
        &disk.pool,
        &disk.name,
        Gate::open(),
        &options,
        &mut |step| meter.step(step),
    );
    drop(meter);
    let merged = Merged::new(&disk, parent, report.map_err(cut_off)?);
    out.done(&merged, Merged::human);
    Ok(Exit::Good)
}

/// A merge that is cancelled has changed the parent.
pub(crate) fn cut_off(error: paddock_vhd::OperationError) -> Failure {
    match error {
        paddock_vhd::OperationError::Cancelled => Failure::new(
            Exit::Cancelled,
            "cancelled; the parent has a part of it: do the same again to bring it to its end",
        ),
        error => error.into(),
    }
}
