//! A change of what lies below a disk: a merge into its parent, or the commit of its undo disk.
//!
//! It is noted in the write that gives the attachment to its task, before an agent may begin it, and struck out again
//! once it is done or an agent has looked and found no record of it. Only one of which neither is known bars the disk:
//! then the same again brings it to its end, and a check brings the proof.

use super::{Draft, is_unassigned};
use crate::identity::uid;
use paddock_crds::{
    VirtualHardDiskTask,
    virtual_hard_disk::{UndoState, Unfinished},
    virtual_hard_disk_task::{TaskAction, TaskResult, TaskState},
};

/// Whether an action changes what lies below.
fn changes_below(action: TaskAction) -> bool {
    matches!(action, TaskAction::Merge | TaskAction::CommitUndo)
}

impl Draft<'_> {
    /// The action that was interrupted, or is under way.
    pub(super) fn unfinished(&self) -> Option<TaskAction> {
        self.plan.status.unfinished.as_ref().map(|u| u.action)
    }

    /// A task is given the disk: from its assignment on it may begin.
    pub(super) fn may_begin(&mut self, action: TaskAction) {
        if changes_below(action) && self.unfinished() != Some(action) {
            self.plan.status.unfinished = Some(Unfinished {
                action,
                interrupted: false,
            });
        }
    }

    /// The task that held the disk was never assigned: what it was to begin, it has not.
    pub(super) fn never_began(&mut self, task: &VirtualHardDiskTask) {
        self.detach_task(task);
        let unfinished = &mut self.plan.status.unfinished;
        unfinished.take_if(|u| !u.interrupted && u.action == task.spec.action);
    }

    /// A task is over that held the disk: takes over whether it has begun, or a check's word for that.
    pub(super) fn settle_unfinished(&mut self, task: &VirtualHardDiskTask) {
        let status = task.status.as_ref();
        let done = status.is_some_and(|s| s.state == TaskState::Succeeded);
        let told = status.and_then(|s| s.result.as_ref()?.begun);
        let to = &mut self.plan.status;
        match task.spec.action {
            action if changes_below(action) && done => to.unfinished = None,
            action if changes_below(action) => match told {
                Some(false) => to.unfinished = None,
                Some(true) | None => {
                    to.unfinished = Some(Unfinished {
                        action,
                        interrupted: true,
                    });
                }
            },
            TaskAction::Check if told == Some(false) => to.unfinished = None,
            _ => {}
        }
    }

    /// A host was declared off: nobody will tell how far the task with this UID has come.
    pub(super) fn leave_unproved(&mut self, task_uid: &str) {
        let mut tasks = self.s.tasks.iter();
        let task = tasks.find(|t| uid(&t.metadata) == task_uid);
        if task.is_some_and(|t| is_unassigned(t)) {
            let unfinished = &mut self.plan.status.unfinished;
            unfinished.take_if(|u| !u.interrupted);
            return;
        }
        if let Some(unfinished) = &mut self.plan.status.unfinished {
            unfinished.interrupted = true;
        }
        // Its file may be gone: then nothing but discarding it again ends in a known state.
        if task.is_some_and(|t| t.spec.action == TaskAction::DiscardUndo)
            && let Some(undo) = &mut self.plan.status.undo
        {
            undo.state = UndoState::Discarding;
        }
    }

    /// Whether a commit found no undo disk, and none was to be expected: no guest has run with it.
    pub(super) fn had_no_undo(&self, task: &VirtualHardDiskTask) -> bool {
        let missing = task
            .status
            .as_ref()
            .is_some_and(|s| s.reason.as_deref() == Some("FileNotFound") && never(&s.result));
        let undo = self.plan.status.undo.as_ref();
        missing && task.spec.action == TaskAction::CommitUndo && undo.is_some_and(|undo| !undo.ran)
    }
}

/// Whether a failed task never began.
fn never(result: &Option<TaskResult>) -> bool {
    result.as_ref().and_then(|r| r.begun) == Some(false)
}
