//! The children of a disk, as far as they are known: whoever writes to the disk
//! makes them useless.

use std::path::{Path, PathBuf};

use paddock_vhd::{Children, MergeOptions, Pool, children_in, inspect, look_for_children};
use uuid::Uuid;

use crate::disk_path::{DiskPath, Search};
use crate::failure::Failure;
use crate::output::Output;

/// The most children that a message names.
const MOST_NAMED: usize = 8;

/// The children of a disk in its folder, in the folders below that, and in
/// those that the user names.
pub(crate) fn known(disk: &DiskPath, search: &Search) -> Result<Children, Failure> {
    let mut children = look_for_children(&disk.pool, &disk.name)?;
    in_full(&mut children, &disk.pool);
    let unique_id = inspect(&disk.pool, &disk.name)?.unique_id;
    for folder in search.absolute() {
        let pool = Pool::open(&folder)?;
        let mut others = children_in(&pool, unique_id)?;
        in_full(&mut others, &pool);
        children.found.extend(others.found);
        children.skipped.extend(others.skipped);
    }
    for list in [&mut children.found, &mut children.skipped] {
        list.sort();
        list.dedup();
    }
    Ok(children)
}

/// The paths without symbolic links.
fn in_full(children: &mut Children, pool: &Pool) {
    for path in children.found.iter_mut().chain(&mut children.skipped) {
        *path = pool.path().join(&*path);
        *path = path.canonicalize().unwrap_or_else(|_| path.clone());
    }
}

/// Says what could not be looked at.
pub(crate) fn note_skipped(children: &Children, out: &Output) {
    if !children.skipped.is_empty() {
        out.note(&format!(
            "{} could not be looked at: there may be children of the disk",
            names(&children.skipped)
        ));
    }
}

/// Paths, for a message.
pub(crate) fn names(paths: &[PathBuf]) -> String {
    let mut text: Vec<_> = paths
        .iter()
        .take(MOST_NAMED)
        .map(|path| path.display().to_string())
        .collect();
    if let Some(more) = paths.len().checked_sub(MOST_NAMED + 1) {
        text.push(format!("{} more", more + 1));
    }
    text.join(", ")
}

/// Refuses to write to a disk that has children, unless they are abandoned.
pub(crate) fn refuse_writes(
    disk: &DiskPath,
    search: &Search,
    abandon: bool,
    out: &Output,
) -> Result<(), Failure> {
    if abandon {
        return Ok(());
    }
    let children = match known(disk, search) {
        Ok(children) => children,
        // What is wrong with the disk is told when it is opened.
        Err(failure) => {
            out.note(failure.message());
            return Ok(());
        }
    };
    note_skipped(&children, out);
    if children.found.is_empty() {
        return Ok(());
    }
    Err(Failure::wrong_use(format!(
        "{}: it is the parent of {}; to write to it would make those useless",
        disk.path().display(),
        names(&children.found)
    ))
    .hinting(
        "write to a child instead, or merge or remove them first; `--abandon-children` does it all the same",
    ))
}

/// How a disk is merged into its parent, which lies at `parent` if it was
/// found. `force`: whatever that makes useless.
pub(crate) fn merge_options(
    disk: &DiskPath,
    parent: Option<&Path>,
    search: &Search,
    force: bool,
) -> Result<MergeOptions, Failure> {
    let dependents = match parent.filter(|_| !force) {
        Some(parent) => dependents(disk, &DiskPath::existing(parent)?, search)?,
        None => Vec::new(),
    };
    Ok(MergeOptions {
        dependents,
        search: search.resolve_beside(parent)?,
        force,
        ..MergeOptions::default()
    })
}

/// Which disks a merge makes useless, in the folders that the user names.
/// Those beside the two are found without that.
fn dependents(
    disk: &DiskPath,
    parent: &DiskPath,
    search: &Search,
) -> Result<Vec<PathBuf>, Failure> {
    let beside: Vec<&Path> = [disk.path(), parent.path()]
        .into_iter()
        .filter_map(Path::parent)
        .collect();
    let mut found = Vec::new();
    for one in [disk, parent] {
        let unique_id = inspect(&one.pool, &one.name)?.unique_id;
        found.extend(elsewhere(search, unique_id, &beside)?);
    }
    found.retain(|path| path != disk.path());
    Ok(found)
}

/// The children of the disk of an identity in the folders that the user
/// names, but not those that lie in the folders `beside`: those are known.
pub(crate) fn elsewhere(
    search: &Search,
    unique_id: Uuid,
    beside: &[&Path],
) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for folder in search.absolute() {
        let pool = Pool::open(&folder)?;
        let mut others = children_in(&pool, unique_id)?;
        in_full(&mut others, &pool);
        found.extend(others.found);
    }
    found.retain(|path| path.parent().is_none_or(|folder| !beside.contains(&folder)));
    found.sort();
    found.dedup();
    Ok(found)
}
