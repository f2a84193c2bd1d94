//! What is left of a task that failed or was cancelled.

use super::{Job, failure::io_error, target};
use crate::{instance::core::Failure, task::runner::Control};
use paddock_crds::{
    HostSpec, VirtualHardDiskTask,
    virtual_hard_disk_task::{TaskAction, TaskResult},
};
use paddock_vhd::{is_merge_begun as has_record, remove};
use tracing::warn;

/// Whether there is anything to be cleared away or told of such a task.
pub(super) fn is_told(action: TaskAction) -> bool {
    matches!(
        action,
        TaskAction::Convert | TaskAction::Compact | TaskAction::Merge | TaskAction::CommitUndo
    )
}

/// Clears away what it has made, or looks whether its merge has begun. Blocks.
pub(super) fn leave_off(
    task: &VirtualHardDiskTask,
    host: &HostSpec,
    begun: bool,
) -> Option<TaskResult> {
    let control = Control::default();
    let order = task.status.as_ref()?.order.as_ref()?;
    let job = Job::new(order, host, &control, begun);
    let action = task.spec.action;
    match action {
        TaskAction::Merge | TaskAction::CommitUndo => Some(TaskResult {
            begun: is_merge_begun(&job).ok(),
            ..TaskResult::default()
        }),
        _ => {
            if let Err(failure) = remove_target(&job, action) {
                warn!(task = ?task.metadata.name, message = %failure.message, "what the task has made was not removed");
            }
            None
        }
    }
}

/// Whether a merge of the disk into its parent, or a commit of its undo disk, has begun and not ended.
pub(super) fn is_merge_begun(job: &Job<'_>) -> Result<bool, Failure> {
    let upper = job
        .pools
        .at(job.order.undo.as_ref().unwrap_or(&job.order.file))?;
    has_record(&upper.pool, upper.path).map_err(|error| io_error(error.to_string()))
}

/// Removes the new file, if it is there and the task's own: nobody took it over.
fn remove_target(job: &Job<'_>, action: TaskAction) -> Result<(), Failure> {
    let to = target::target(job)?;
    let is_mine = match action {
        TaskAction::Convert => target::is_converted(job, &to),
        _ => target::is_compacted(job, &to)?,
    };
    if is_mine {
        remove(&to.pool, to.path).map_err(|error| to.named(io_error(error.to_string())))?;
    }
    Ok(())
}
