//! Tasks that change or remove the file of a VirtualHardDisk.

use super::{
    Job,
    failure::{from_open, from_operation, io_error, refused},
    look::look,
    make::size,
};
use crate::instance::core::Failure;
use paddock_crds::{
    reference::PoolFile,
    virtual_hard_disk_task::{Shrink, TaskResult},
};
use paddock_vhd::{
    MergeOptions, OpenErrorKind, OperationError, ResizeOptions, commit_undo as commit,
    discard_undo as discard, merge as merge_disk, remove, resize as resize_disk,
};

pub(super) fn delete(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    match remove(&at.pool, at.path) {
        Ok(()) => Ok(TaskResult::default()),
        // Removed before a crash, or by somebody else: what was wanted.
        Err(error) if error.kind() == OpenErrorKind::NotFound => Ok(TaskResult::default()),
        Err(error) => Err(at.named(from_open(&error))),
    }
}

pub(super) fn resize(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let size = size(job)?
        .ok_or_else(|| io_error("the order names no size: expected sizeBytes".to_owned()))?;
    let found = look(&at)?;
    let now = found
        .size_bytes
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or_default();
    if size.bytes() < now && job.order.shrink == Shrink::Refuse {
        return Err(at.named(refused(format!(
            "{}: it has {now} bytes and would become smaller: shrink is Refuse; ask for IfEmpty, or Force what lies behind the new end to be lost",
            at.path.display()
        ))));
    }
    let options = ResizeOptions {
        size,
        force: job.order.shrink == Shrink::Force,
        search: job.pools.search(&job.order.parents)?,
    };
    let progress = &mut job.progress();
    resize_disk(&at.pool, at.path, job.control.gate(), &options, progress)
        .map_err(|error| at.named(from_operation(&error)))?;
    look(&at)
}

/// Once begun it goes on to its end: half a merge would leave a disk that is only read.
pub(super) fn merge(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let parent = job
        .order
        .parents
        .first()
        .ok_or_else(|| refused(format!("{}: it has no parent", job.order.file.path)))?;
    let parent = job.pools.at(parent)?;
    let options = MergeOptions {
        search: job.pools.search(&job.order.parents)?,
        ..MergeOptions::default()
    };
    let progress = &mut job.steady_progress();
    match merge_disk(&at.pool, at.path, job.control.gate(), &options, progress) {
        Ok(_) => look(&parent),
        // An agent that was at work on it has removed it, and did not come to tell.
        Err(error) if job.begun && is_missing(&error) => look(&parent),
        Err(error) => Err(at.named(from_merge(&error))),
    }
}

/// A refused merge, with what a person can do: the operator has seen to the disks that have an object.
fn from_merge(error: &OperationError) -> Failure {
    let failure = from_operation(error);
    match error {
        OperationError::Refused { .. } => Failure {
            message: format!(
                "{}. If it names a file that no VirtualHardDisk has, a deleted one has left that: remove it from the pool \
                 once nobody needs it",
                failure.message
            ),
            ..failure
        },
        _ => failure,
    }
}

pub(super) fn commit_undo(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let file = job.pools.at(&job.order.file)?;
    let undo = job.pools.at(undo(job)?)?;
    // The disk itself is the nearest parent.
    let mut parents = vec![job.order.file.clone()];
    parents.extend(job.order.parents.iter().cloned());
    let options = MergeOptions {
        search: job.pools.search(&parents)?,
        ..MergeOptions::default()
    };
    let progress = &mut job.steady_progress();
    match commit(
        &undo.pool,
        undo.path,
        job.control.gate(),
        &options,
        progress,
    ) {
        Ok(_) => look(&file),
        // As with a merge; and what is missing without anybody's doing was not committed.
        Err(error) if job.begun && is_missing(&error) => look(&file),
        Err(error) => Err(undo.named(from_merge(&error))),
    }
}

pub(super) fn discard_undo(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let file = job.pools.at(&job.order.file)?;
    let undo = job.pools.at(undo(job)?)?;
    match discard(&undo.pool, undo.path) {
        Ok(()) => look(&file),
        Err(error) if is_missing(&error) => look(&file),
        Err(error) => Err(undo.named(from_operation(&error))),
    }
}

fn undo<'a>(job: &Job<'a>) -> Result<&'a PoolFile, Failure> {
    job.order
        .undo
        .as_ref()
        .ok_or_else(|| io_error("the order names no undo disk".to_owned()))
}

fn is_missing(error: &OperationError) -> bool {
    matches!(error, OperationError::Open(error) if error.kind() == OpenErrorKind::NotFound)
}
