//! A disk that is being deleted: who still holds it, and what becomes of its file.

use super::{Action, Draft, is_over, is_unassigned};
use crate::{
    conditions::Answer,
    identity::{ObjectKey, deleting, has_finalizer, name},
    placement::HostView,
};
use paddock_crds::{
    VirtualHardDiskTask,
    names::{DISK_FINALIZER, condition::DELETING},
    virtual_hard_disk::{BoundFile, DiskState, OwnerKind, ReclaimPolicy},
    virtual_hard_disk_task::{TaskAction, TaskState},
};

impl Draft<'_> {
    fn say_deleting(&mut self, reason: &str, message: impl Into<String>) {
        self.plan.status.state = DiskState::Terminating;
        self.plan.pending = true;
        self.conditions()
            .set(DELETING, Answer::True, reason, message);
    }

    pub(super) fn delete(&mut self, current: Option<&VirtualHardDiskTask>) {
        self.plan.status.state = DiskState::Terminating;
        if let Some(a) = self.plan.status.attachment.clone()
            && a.owner.kind == OwnerKind::VirtualMachine
        {
            let ready = self.host(&a.host).and_then(HostView::epoch).is_some();
            let force = if ready {
                String::new()
            } else {
                format!(
                    ". Host {} is not ready: if it is off for good, set spec.outOfService.token on it",
                    a.host
                )
            };
            self.say_deleting(
                "Attached",
                format!(
                    "it is attached to VirtualMachine \"{}\" on host {}: stop or delete that machine first{force}",
                    a.owner.name, a.host
                ),
            );
            return;
        }
        if let Some(task) = current {
            if self.lost(task) || is_unassigned(task) && task.spec.action != TaskAction::Delete {
                self.detach_task(task);
                self.discard(task);
            } else if is_over(task) {
                if !self.finish(task) {
                    return;
                }
            } else if is_unassigned(task) {
                self.say_deleting("RemovingFile", "its file is to be removed");
                self.assign(task, true);
                return;
            } else {
                if task.spec.action != TaskAction::Delete && !deleting(&task.metadata) {
                    self.plan.after.push(Action::DeleteTask {
                        task: ObjectKey::of(&task.metadata),
                    });
                }
                self.wait_for(task);
                let host = task.status.as_ref().and_then(|s| s.host.clone());
                self.say_deleting(
                    "WaitingForTask",
                    format!(
                        "waits for host {} to end task \"{}\"; if the host is off for good, set spec.outOfService.token on it",
                        host.unwrap_or_default(),
                        name(&task.metadata)
                    ),
                );
                return;
            }
        }
        if self.plan.status.attachment.is_some() {
            self.say_deleting(
                "WaitingForTask",
                "a task that is gone still holds it: its host has to be declared off by spec.outOfService.token",
            );
            return;
        }
        let removes = self.s.disk.spec.reclaim_policy == ReclaimPolicy::Delete;
        if self.plan.status.file.is_none() || !self.wants_removal(removes) {
            if has_finalizer(&self.s.disk.metadata, DISK_FINALIZER) {
                self.plan.after.push(Action::RemoveFinalizer);
            }
            return;
        }
        match self.choose(true) {
            Ok(_) => {
                self.say_deleting("RemovingFile", "its file is to be removed");
                self.create_task(true);
            }
            Err((reason, message)) => self.say_deleting(
                reason,
                format!(
                    "its file is to be removed, but {message}; set reclaimPolicy to Retain to leave the file"
                ),
            ),
        }
    }

    /// Whether the file is still to be removed; if it is left where it could not be, says so.
    fn wants_removal(&mut self, removes: bool) -> bool {
        let Some(BoundFile { pool, path }) = self.plan.status.file.clone() else {
            return false;
        };
        let left = |why: &str| {
            Some((
                "FileRetained",
                format!("file \"{path}\" in pool \"{pool}\" is left: {why}"),
            ))
        };
        if !removes {
            return false;
        }
        let off = self.plan.status.host.as_deref().and_then(|h| self.host(h));
        if off.is_some_and(|h| {
            h.epoch().is_none()
                && h.host.spec.out_of_service.is_some()
                && h.host
                    .status
                    .as_ref()
                    .and_then(|s| s.out_of_service_token.as_ref())
                    == h.host.spec.out_of_service.as_ref().map(|o| &o.token)
        }) {
            self.plan.note = left("its host is out of service");
            return false;
        }
        true
    }

    /// A task is over while the disk is deleted. Returns whether to go on.
    fn finish(&mut self, task: &VirtualHardDiskTask) -> bool {
        self.detach_task(task);
        let status = task.status.clone().unwrap_or_default();
        if task.spec.action != TaskAction::Delete {
            if status.state == TaskState::Succeeded {
                self.plan.status.file = Some(BoundFile {
                    pool: task.spec.file.pool.clone(),
                    path: task.spec.file.path.clone(),
                });
            }
            self.discard(task);
            return true;
        }
        let gone = status.state == TaskState::Succeeded
            || status.reason.as_deref() == Some("FileNotFound");
        if gone {
            self.plan.status.file = None;
            self.discard(task);
            return true;
        }
        if deleting(&task.metadata) && status.reason.as_deref() == Some("Cancelled") {
            // Somebody deleted the order, not the wish.
            self.discard(task);
            return true;
        }
        self.say_deleting(
            status.reason.as_deref().unwrap_or("Failed"),
            format!(
                "its file could not be removed: {}; set reclaimPolicy to Retain to leave the file",
                status.message.unwrap_or_default()
            ),
        );
        let keep = self.s.disk.spec.reclaim_policy == ReclaimPolicy::Retain;
        if keep || self.s.retry_due {
            self.discard(task);
            return keep;
        }
        self.plan.retry = true;
        false
    }
}
