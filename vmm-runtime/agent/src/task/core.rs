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
    /// Nothing yet: this host does not hold the epoch that the task was assigned under.
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
        (Some(assigned), Some(held)) if assigned == held => Next::Work,
        _ => Next::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paddock_crds::{
        VirtualHardDiskTaskSpec, VirtualHardDiskTaskStatus,
        reference::{LocalReference, PoolFile, Time},
        virtual_hard_disk_task::TaskAction,
    };

    fn task(host: Option<&str>, epoch: Option<i64>, state: TaskState) -> VirtualHardDiskTask {
        let mut task = VirtualHardDiskTask::new(
            "t",
            VirtualHardDiskTaskSpec {
                action: TaskAction::Create,
                virtual_hard_disk_ref: LocalReference { name: "d".into() },
                file: PoolFile {
                    pool: "default".into(),
                    path: "d.vhd".into(),
                },
                disk_type: None,
                size_bytes: None,
                source: None,
                disk_epoch: 1,
            },
        );
        task.status = Some(VirtualHardDiskTaskStatus {
            host: host.map(Into::into),
            host_epoch: epoch,
            state,
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
