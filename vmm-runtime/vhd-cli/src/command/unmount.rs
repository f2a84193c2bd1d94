//! `vhd unmount`

use std::path::{Path, PathBuf};

use clap::Args;
use paddock_vhd::discard_undo;
use serde::Serialize;

use crate::command::undo;
use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupt;
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
    // What is half done has to come to an end, whatever signal comes.
    let interrupt = Interrupt::listen()?;
    let all = state::all()?;
    let chosen = match &arguments.which {
        None => all,
        Some(which) => vec![chosen(all, which)?],
    };
    // Before the first is touched.
    for (_, mounted) in &chosen {
        changes(arguments, mounted)?;
    }
    let mut done = Vec::new();
    let mut failed = None;
    for (folder, mut mounted) in chosen {
        if interrupt.came() {
            failed = Some(Failure::new(
                Exit::Cancelled,
                "cancelled; the other disks are still mounted",
            ));
            break;
        }
        match unmount(arguments, &folder, &mut mounted, &interrupt, out) {
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

/// The one that the user means. Its changes are at stake: nothing is guessed.
fn chosen(
    mut all: Vec<(StateFolder, Mounted)>,
    which: &Path,
) -> Result<(StateFolder, Mounted), Failure> {
    all.retain(|(_, mounted)| is_meant(mounted, which));
    if let Some(at) = all.iter().position(|(_, one)| Path::new(&one.id) == which) {
        return Ok(all.swap_remove(at));
    }
    let ids: Vec<_> = all.iter().map(|(_, mounted)| mounted.id.clone()).collect();
    match (all.pop(), ids.len()) {
        (Some(one), 1) => Ok(one),
        (None, _) => Err(Failure::wrong_use(format!(
            "{}: no such disk is mounted; `vhd mounts` lists those that are",
            which.display()
        ))),
        (Some(_), count) => Err(Failure::wrong_use(format!(
            "{}: it is mounted {count} times; name one of them: {}",
            which.display(),
            ids.join(", ")
        ))),
    }
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
    interrupt: &Interrupt,
    out: &Output,
) -> Result<Unmounted, Failure> {
    let changes = changes(arguments, mounted)?;
    let _claim = folder.claim()?;
    // As it is now that nobody else changes it.
    *mounted = folder.load()?;
    teardown::take_down(folder, mounted, Some(interrupt))?;
    let undo = mounted.undo.as_deref();
    if let Err(failure) = teardown::how_it_ended(folder)
        && changes != Changes::Discarded
    {
        return Err(ended_badly(folder, undo, changes, failure));
    }
    // The record goes last: whatever ends this, it can be asked for again.
    let unmounted = Unmounted {
        file: mounted.file.clone(),
        changes,
        undo: undo
            .filter(|_| changes == Changes::Kept)
            .map(Path::to_owned),
    };
    if let Some(path) = undo {
        settle(arguments, path, changes, out).map_err(|failure| match path.exists() {
            true => failure.noting(&format!("the changes are in {}", path.display())),
            false => failure,
        })?;
    }
    folder.remove()?;
    Ok(unmounted)
}

/// What is told when the server did not close the disk. Told once: changes
/// that are to be committed all the same are, when asked for again.
fn ended_badly(
    folder: &StateFolder,
    undo: Option<&Path>,
    changes: Changes,
    failure: Failure,
) -> Failure {
    let kept = if changes == Changes::Committed {
        folder.forget_end()
    } else {
        folder.remove()
    };
    let failure = match undo {
        None => failure,
        Some(undo) => failure.noting(&format!("the changes are in {}", undo.display())),
    };
    match (changes, kept) {
        (_, Err(error)) => failure.noting(error.message()),
        (Changes::Committed, Ok(())) => failure.noting(
            "they may not be complete and were not committed: ask again with --commit, --discard or --keep",
        ),
        (_, Ok(())) => failure,
    }
}

/// Does with the undo disk what was asked for.
fn settle(
    arguments: &Arguments,
    path: &Path,
    changes: Changes,
    out: &Output,
) -> Result<(), Failure> {
    match changes {
        Changes::Committed => {
            // It may be gone already: the end of a commit that was cut off.
            let undo = DiskPath::any(path)?;
            let mut record = path.as_os_str().to_owned();
            record.push(".merge");
            if !path.exists() && !Path::new(&record).exists() {
                return Err(Failure::wrong_use(format!(
                    "{}: the undo disk is gone, so there is nothing to commit; `vhd unmount --discard` forgets it",
                    path.display()
                )));
            }
            undo::commit(&undo, &arguments.search, out)?;
        }
        // Gone already: the end of an unmount, or of a mount, that was.
        Changes::Discarded if !path.exists() => {}
        Changes::Discarded => {
            let undo = DiskPath::existing(path)?;
            discard_undo(&undo.pool, &undo.name)?;
        }
        Changes::Kept | Changes::Direct => {}
    }
    Ok(())
}
