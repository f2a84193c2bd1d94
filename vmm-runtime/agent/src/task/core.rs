//! May this task be worked on?
//!
//! ```text
//!   Pending ──held epoch = task's──► (quorum read) ──► work ──► Succeeded | Failed
//!      │  deleting                                       │ deleting: cancelled, then
//!      └────────────────► Failed, Cancelled ◄────────────┘ Failed, Cancelled
//! ```

use paddock_crds::{VirtualHardDiskTask, virtual_hard_disk_task::TaskState};

/// `status.reason` of a task that was deleted before it was done.
pub const CANCELLED: &str = "Cancelled";

/// What to do with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, ever: it has its result, or is another host's.
    Done,
    /// Nothing yet: this host does not hold the epoch that the task was assigned under, or there is no order yet.
    Wait,
    /// Say that nobody works on it: it is being deleted.
    Cancel,
    /// Work on it.
    Work,
}

/// What to do with `task` on `host`, which holds `epoch`.
#[must_use]
pub fn next(task: &VirtualHardDiskTask, host: &str, epoch: Option<i64>) -> Next {
    let Some(status) = &task.status else {
        return Next::Done;
    };
    if status.host.as_deref() != Some(host) {
        return Next::Done;
    }
    if matches!(status.state, TaskState::Succeeded | TaskState::Failed) {
        return Next::Done;
    }
    if task.metadata.deletion_timestamp.is_some() {
        return Next::Cancel;
    }
    match (status.host_epoch, epoch) {
        (Some(assigned), Some(held)) if assigned == held && status.order.is_some() => Next::Work,
        _ => Next::Wait,
    }
}

/// An order on `file`, for tests.
#[cfg(test)]
pub(super) fn test_order(
    file: paddock_crds::reference::PoolFile,
) -> paddock_crds::virtual_hard_disk_task::TaskOrder {
    use paddock_crds::virtual_hard_disk_task::{ExportFormat, Shrink, TaskOrder};
    TaskOrder {
        disk_uid: "disk".into(),
        disk_epoch: 1,
        file,
        parents: vec![],
        target: None,
        disk_type: None,
        size_bytes: None,
        source: None,
        download: None,
        linked: None,
        device: None,
        clone: vec![],
        undo: None,
        shrink: Shrink::default(),
        precompact: paddock_crds::virtual_hard_disk::Precompact::default(),
        defragment: paddock_crds::virtual_hard_disk::Defragment::default(),
        format: ExportFormat::default(),
    }
}

/// A task without a status, for tests.
#[cfg(test)]
pub(super) fn test_task(
    action: paddock_crds::virtual_hard_disk_task::TaskAction,
) -> VirtualHardDiskTask {
    VirtualHardDiskTask::new("t", paddock_crds::VirtualHardDiskTaskSpec::new(action, "d"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use paddock_crds::{
        VirtualHardDiskTaskStatus,
        reference::{PoolFile, Time},
        virtual_hard_disk_task::TaskAction,
    };

    fn task(host: Option<&str>, epoch: Option<i64>, state: TaskState) -> VirtualHardDiskTask {
        let mut task = test_task(TaskAction::Create);
        let file = PoolFile {
            pool: "default".into(),
            path: "d.vhd".into(),
        };
        task.status = Some(VirtualHardDiskTaskStatus {
            host: host.map(Into::into),
            host_epoch: epoch,
            state,
            order: Some(test_order(file)),
            ..VirtualHardDiskTaskStatus::default()
        });
        task
    }

    #[test]
    fn works_only_under_the_epoch_of_the_assignment() {
        use Next::{Done, Wait, Work};
        for (host, assigned, state, held, expected) in [
            (Some("me"), Some(3), TaskState::Pending, Some(3), Work),
            (Some("me"), Some(3), TaskState::Running, Some(3), Work),
            (Some("me"), Some(3), TaskState::Pending, Some(2), Wait),
            (Some("me"), Some(3), TaskState::Pending, Some(4), Wait),
            (Some("me"), Some(3), TaskState::Pending, None, Wait),
            (Some("me"), None, TaskState::Pending, Some(3), Wait),
            (Some("you"), Some(3), TaskState::Pending, Some(3), Done),
            (None, None, TaskState::Pending, Some(3), Done),
            (Some("me"), Some(3), TaskState::Succeeded, Some(3), Done),
            (Some("me"), Some(3), TaskState::Failed, Some(3), Done),
        ] {
            let task = task(host, assigned, state);
            assert_eq!(next(&task, "me", held), expected, "{:?}", task.status);
        }
    }

    #[test]
    fn without_an_order_nothing_is_done() {
        let mut task = task(Some("me"), Some(3), TaskState::Pending);
        assert_eq!(next(&task, "me", Some(3)), Next::Work);
        if let Some(status) = &mut task.status {
            status.order = None;
        }
        assert_eq!(next(&task, "me", Some(3)), Next::Wait);
    }

    #[test]
    fn a_deleted_task_is_cancelled_unless_it_is_done() {
        let mut pending = task(Some("me"), Some(3), TaskState::Pending);
        pending.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(next(&pending, "me", Some(3)), Next::Cancel);
        assert_eq!(next(&pending, "me", None), Next::Cancel);
        let mut done = task(Some("me"), Some(3), TaskState::Succeeded);
        done.metadata.deletion_timestamp = pending.metadata.deletion_timestamp.clone();
        assert_eq!(next(&done, "me", Some(3)), Next::Done);
    }
}
