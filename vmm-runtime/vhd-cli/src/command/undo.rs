//! `vhd undo`

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use paddock_vhd::{ChildOptions, commit_undo, discard_undo, start_undo};
use serde::Serialize;

use crate::children::merge_options;
use crate::command::info::Description;
use crate::command::merge::{Merged, cut_off};
use crate::disk_path::{DiskPath, Pair, Search};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Meter;

/// Start, commit or discard changes that go to an undo disk
///
/// An undo disk is a differencing disk with the ending `.vud`. Use it in the
/// place of the disk: all changes go to it, until they are committed to the
/// disk or discarded. Whoever writes to the disk itself meanwhile makes the
/// undo disk useless.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd undo start disk.vhd
  vhd serve --socket /run/disk.sock disk.vud
  vhd undo commit disk.vhd
  vhd undo discard disk.vhd")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make an undo disk
    Start(Which),
    /// Make the changes in the undo disk changes of the disk below it, and
    /// remove the undo disk
    Commit(Which),
    /// Remove the undo disk and all changes in it
    Discard(Which),
}

#[derive(Debug, Args)]
struct Which {
    /// The disk; or, to commit or discard, the undo disk itself
    file: PathBuf,
    /// The undo disk, if it is not beside the disk with its name and the
    /// ending `.vud`
    #[arg(long, value_name = "UNDO")]
    undo: Option<PathBuf>,
    #[command(flatten)]
    search: Search,
}

impl Which {
    fn undo(&self) -> PathBuf {
        match &self.undo {
            Some(undo) => undo.clone(),
            None if is_undo(&self.file) => self.file.clone(),
            None => self.file.with_extension("vud"),
        }
    }
}

fn is_undo(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "vud")
}

#[derive(Serialize)]
struct Discarded {
    file: PathBuf,
    discarded: bool,
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    match &arguments.action {
        Action::Start(which) => start(which, out),
        Action::Commit(which) => {
            // It may be gone already: the end of a commit that was cut off.
            let undo = DiskPath::any(&which.undo())?;
            let merged = commit(&undo, &which.search, out)?;
            out.done(&merged, Merged::human);
            Ok(Exit::Good)
        }
        Action::Discard(which) => {
            let undo = DiskPath::existing(&which.undo())?;
            discard_undo(&undo.pool, &undo.name)?;
            let discarded = Discarded {
                file: undo.path().to_owned(),
                discarded: true,
            };
            out.done(&discarded, |discarded| {
                format!("{}: discarded", discarded.file.display())
            });
            Ok(Exit::Good)
        }
    }
}

fn start(which: &Which, out: &Output) -> Result<Exit, Failure> {
    let undo = which.undo();
    if is_undo(&which.file) && which.undo.is_none() {
        return Err(Failure::wrong_use(format!(
            "{}: that is an undo disk; name the disk that it is for",
            which.file.display()
        )));
    }
    let disk = DiskPath::existing(&which.file)?;
    let undo = DiskPath::any(&undo)?;
    let options = ChildOptions {
        search: which.search.resolve()?,
        ..ChildOptions::new()
    };
    make(&undo, &disk, &options)?;
    out.done(&Description::of(&undo)?, Description::human);
    Ok(Exit::Good)
}

/// Makes an undo disk.
pub(crate) fn make(
    undo: &DiskPath,
    disk: &DiskPath,
    options: &ChildOptions,
) -> Result<(), Failure> {
    let pair = Pair::new(undo, disk)?;
    let (undo_pool, undo_rel) = &pair.child;
    let (pool, rel) = &pair.parent;
    start_undo(undo_pool, undo_rel, pool, rel, options)?
        .close()
        .map_err(|error| Failure::disk(undo.path(), &error))
}

/// Commits an undo disk.
pub(crate) fn commit(undo: &DiskPath, search: &Search, out: &Output) -> Result<Merged, Failure> {
    let parent = super::parent_path(undo, &search.resolve()?);
    let options = merge_options(undo, parent.as_deref(), search, false)?;
    let meter = Meter::start("commit", out)?;
    let gate = paddock_vhd::Gate::open();
    let report = commit_undo(&undo.pool, &undo.name, gate, &options, &mut |step| {
        meter.step(step)
    });
    drop(meter);
    Ok(Merged::new(undo, parent, report.map_err(cut_off)?))
}
