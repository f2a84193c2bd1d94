//! `vhd unmount`

use std::path::{Path, PathBuf};

use clap::Args;
use paddock_vhd::discard_undo;
use serde::Serialize;

use crate::command::undo;
use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::mounting::state::{self, Mounted, StateFolder};
use crate::mounting::teardown;
use crate::output::Output;

/// Unmount a disk and unplug it
///
/// Changes in its undo disk are committed to the disk, discarded, or kept:
/// then the undo disk stays, to be mounted itself or committed later.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd unmount --commit disk.vhd
  vhd unmount --discard /mnt
  vhd unmount --keep /dev/loop0
  vhd unmount --all --discard")]
pub(crate) struct Arguments {
    /// The disk, a folder or a device of it, or its name among the mounts
    #[arg(required_unless_present = "all")]
    which: Option<PathBuf>,
    /// All disks that are mounted
    #[arg(long, conflicts_with = "which")]
    all: bool,
    /// Make the changes changes of the disk
    #[arg(long, conflicts_with_all = ["discard", "keep"])]
    commit: bool,
    /// Throw the changes away
    #[arg(long, conflicts_with = "keep")]
    discard: bool,
    /// Keep the undo disk
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    search: Search,
}

/// What becomes of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Changes {
    Committed,
    Discarded,
    Kept,
    /// There is no undo disk.
    Direct,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Unmounted {
    file: PathBuf,
    changes: Changes,
    /// The undo disk that was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    undo: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let all = state::all()?;
    let chosen: Vec<_> = match &arguments.which {
        None => all,
        Some(which) => {
            let mut chosen = all;
            chosen.retain(|(_, mounted)| is_meant(mounted, which));
            if chosen.is_empty() {
                return Err(Failure::wrong_use(format!(
                    "{}: no such disk is mounted; `vhd mounts` lists those that are",
                    which.display()
                )));
            }
            chosen
        }
    };
    // Before the first is touched.
    for (_, mounted) in &chosen {
        changes(arguments, mounted)?;
    }
    let mut done = Vec::new();
    let mut failed = None;
    for (folder, mut mounted) in chosen {
        match unmount(arguments, &folder, &mut mounted, out) {
            Ok(unmounted) => done.push(unmounted),
            Err(failure) => {
                // The others are unmounted all the same.
                if let Some(earlier) = failed.replace(failure) {
                    out.failure(&earlier);
                }
            }
        }
    }
    if failed.is_none() || !done.is_empty() {
        out.done(&done, |done| {
            let lines: Vec<_> = done.iter().map(human_text).collect();
            lines.join("\n")
        });
    }
    match failed {
        Some(failure) => Err(failure),
        None => Ok(Exit::Good),
    }
}

fn human_text(unmounted: &Unmounted) -> String {
    let changes = match (unmounted.changes, &unmounted.undo) {
        (Changes::Committed, _) => "changes committed".to_owned(),
        (Changes::Discarded, _) => "changes discarded".to_owned(),
        (_, Some(undo)) => format!(
            "changes kept in {0}: `vhd undo commit {0}` or `vhd mount --direct {0}`",
            undo.display()
        ),
        (_, None) => "closed".to_owned(),
    };
    format!("{}: unmounted, {changes}", unmounted.file.display())
}

/// Whether the user means this one.
fn is_meant(mounted: &Mounted, which: &Path) -> bool {
    if Path::new(&mounted.id) == which {
        return true;
    }
    let real = which.canonicalize().unwrap_or_else(|_| which.to_owned());
    mounted.file == real
        || mounted.undo.as_ref() == Some(&real)
        || mounted.device == real
        || mounted
            .volumes
            .iter()
            .any(|volume| volume.device == real || volume.folder.as_ref() == Some(&real))
}

fn changes(arguments: &Arguments, mounted: &Mounted) -> Result<Changes, Failure> {
    match (&mounted.undo, arguments) {
        (None, _) => Ok(Changes::Direct),
        (_, Arguments { commit: true, .. }) => Ok(Changes::Committed),
        (_, Arguments { discard: true, .. }) => Ok(Changes::Discarded),
        (_, Arguments { keep: true, .. }) => Ok(Changes::Kept),
        _ => Err(Failure::wrong_use(format!(
            "{}: what is to become of the changes? Say so with --commit, --discard or --keep",
            mounted.file.display()
        ))),
    }
}

fn unmount(
    arguments: &Arguments,
    folder: &StateFolder,
    mounted: &mut Mounted,
    out: &Output,
) -> Result<Unmounted, Failure> {
    let changes = changes(arguments, mounted)?;
    let down = teardown::take_down(folder, mounted);
    if let Err(failure) = down {
        // Ended badly, but ended: there is nothing left to be unmounted. The
        // undo disk stays.
        if !folder.is_served() && folder.remove().is_ok() {
            return Err(match &mounted.undo {
                Some(undo) => failure.noting(&format!("the changes are in {}", undo.display())),
                None => failure,
            });
        }
        return Err(failure);
    }
    folder.remove()?;
    let mut unmounted = Unmounted {
        file: mounted.file.clone(),
        changes,
        undo: None,
    };
    if let Some(path) = &mounted.undo {
        let undo = DiskPath::existing(path)?;
        let kept =
            |failure: Failure| failure.noting(&format!("the changes are in {}", path.display()));
        match changes {
            Changes::Committed => {
                undo::commit(&undo, &arguments.search, out).map_err(kept)?;
            }
            Changes::Discarded => {
                discard_undo(&undo.pool, &undo.name).map_err(|error| kept(error.into()))?;
            }
            Changes::Kept | Changes::Direct => unmounted.undo = Some(path.clone()),
        }
    }
    Ok(unmounted)
}
