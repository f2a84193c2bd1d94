//! Undo disks: differencing disks with the ending `.vud` that take all changes
//! of a disk, to be kept, committed or discarded.

use std::ops::ControlFlow;
use std::path::Path;

use crate::child::ChildOptions;
use crate::error::OpenError;
use crate::format::DiskType;
use crate::gate::Gate;
use crate::import::Progress;
use crate::inspect::inspect;
use crate::merge::{MergeOptions, MergeReport, Record, merge};
use crate::operation::OperationError;
use crate::pool::{Pool, PoolError};
use crate::remove::remove;
use crate::vhd::Vhd;

/// Makes the undo disk `undo` (a name that ends with `.vud`) over the disk
/// `rel` of `pool`, and opens it for writing. Whoever keeps the changes for
/// another time closes it, and opens it again later.
pub fn start_undo(
    undo_pool: &Pool,
    undo: impl AsRef<Path>,
    pool: &Pool,
    rel: impl AsRef<Path>,
    options: &ChildOptions,
) -> Result<Vhd, OperationError> {
    let undo = undo.as_ref();
    check_name(undo)?;
    Ok(Vhd::create_child(undo_pool, undo, pool, rel, options)?)
}

/// Makes the changes in the undo disk `undo` changes of the disk below it,
/// and removes the undo disk. As [`merge`], and taken up again like it.
pub fn commit_undo(
    pool: &Pool,
    undo: impl AsRef<Path>,
    gate: Gate,
    options: &MergeOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<MergeReport, OperationError> {
    let undo = undo.as_ref();
    check_name(undo)?;
    merge(pool, undo, gate, options, progress)
}

/// Whether a merge of the disk `rel` into its parent, or a commit of the undo
/// disk `rel`, has begun and not come to its end: the parent may have a part
/// of it. A disk that is not there has none, unless it went in that merge.
pub fn is_merge_begun(pool: &Pool, rel: impl AsRef<Path>) -> Result<bool, PoolError> {
    let rel = rel.as_ref();
    let Some(record) = Record::read(&pool.place(rel)?)? else {
        return Ok(false);
    };
    // Or is it of another disk that had this name?
    let id = inspect(pool, rel).ok().map(|info| info.unique_id);
    Ok(id.is_none_or(|id| id == record.child))
}

/// Removes the undo disk `undo` and all changes in it. Refused once a commit
/// of it has begun: the disk below has a part of the changes.
pub fn discard_undo(pool: &Pool, undo: impl AsRef<Path>) -> Result<(), OperationError> {
    let undo = undo.as_ref();
    check_name(undo)?;
    let refused = |reason: &str| OperationError::Refused {
        path: undo.to_owned(),
        reason: reason.to_owned(),
    };
    match inspect(pool, undo) {
        Ok(info) if info.disk_type != DiskType::Differencing => {
            return Err(refused(
                "it is not a differencing disk, so it is no undo disk",
            ));
        }
        // What is damaged can be discarded all the same.
        Ok(_) | Err(OpenError::Corrupt { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    if is_merge_begun(pool, undo)? {
        return Err(refused(
            "a commit of it has begun: commit it again to end that",
        ));
    }
    Ok(remove(pool, undo)?)
}

fn check_name(undo: &Path) -> Result<(), OperationError> {
    if undo.extension().is_some_and(|ending| ending == "vud") {
        return Ok(());
    }
    Err(OperationError::Refused {
        path: undo.to_owned(),
        reason: "the name of an undo disk ends with .vud".to_owned(),
    })
}
