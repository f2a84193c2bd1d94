//! Files that are removed: those that a disk had before, and with a disk that is being deleted its own.
//!
//! A task that removes a file needs no attachment. The file is either one that nothing names any more, or that of a
//! disk that is being deleted and that nobody holds, and nobody is given such a disk.

use super::{Action, Draft, family::bound_file, is_over, is_unassigned};
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

/// What is to be said of a task that removes a file.
enum Removal {
    /// Nothing: it is over.
    Over,
    /// It goes on.
    GoesOn,
    /// It did not work.
    Failed(String, String),
}

impl Draft<'_> {
    fn say_deleting(&mut self, reason: &str, message: impl Into<String>) {
        self.plan.status.state = DiskState::Terminating;
        self.plan.pending = true;
        self.conditions()
            .set(DELETING, Answer::True, reason, message);
    }

    /// The files that are to be removed now, in this order.
    fn removals(&self) -> Vec<BoundFile> {
        let status = &self.plan.status;
        let disk = self.s.disk;
        let all = deleting(&disk.metadata) && disk.spec.reclaim_policy == ReclaimPolicy::Delete;
        let undo = status.undo.iter().map(|u| &u.file).filter(|_| all);
        let file = status.file.iter().filter(|_| all);
        undo.chain(&status.obsolete_files)
            .chain(file)
            .cloned()
            .collect()
    }

    /// A file is gone, or left.
    fn strike(&mut self, file: &BoundFile) {
        let status = &mut self.plan.status;
        status.obsolete_files.retain(|f| f != file);
        if status.file.as_ref() == Some(file) {
            status.file = None;
        }
        if status.undo.as_ref().is_some_and(|u| u.file == *file) {
            status.undo = None;
        }
    }

    /// Removes files that the disk had before, one at a time; takes the tasks for that out of `own`.
    pub(super) fn clean_up(&mut self, own: &mut Vec<&VirtualHardDiskTask>) {
        let mut goes_on = false;
        own.retain(|task| {
            let removes = task.spec.action == TaskAction::Delete;
            if removes {
                goes_on |= !matches!(self.follow_removal(task), Removal::Over);
            }
            !removes
        });
        if goes_on || self.removals().is_empty() || self.s.creation_refused {
            return;
        }
        match self.choose(&self.reach()) {
            Ok(_) => self.create_task(self.task_spec(TaskAction::Delete)),
            Err(_) => self.plan.pending = true,
        }
    }

    fn follow_removal(&mut self, task: &VirtualHardDiskTask) -> Removal {
        let status = task.status.clone().unwrap_or_default();
        if self.holds(task) {
            self.detach_task(task);
        }
        if is_over(task) {
            let gone = status.state == TaskState::Succeeded
                || status.reason.as_deref() == Some("FileNotFound");
            // Somebody may have deleted the order, not the wish.
            let again = deleting(&task.metadata) && status.reason.as_deref() == Some("Cancelled");
            match status.order {
                Some(order) if gone => self.strike(&bound_file(&order.file)),
                _ if again || self.s.retry_due => {}
                _ => {
                    self.plan.retry = true;
                    let reason = status.reason.unwrap_or_else(|| "Failed".to_owned());
                    return Removal::Failed(reason, status.message.unwrap_or_default());
                }
            }
            self.discard(task);
            return Removal::Over;
        }
        if self.lost(task) || is_unassigned(task) && deleting(&task.metadata) {
            self.discard(task);
            return Removal::Over;
        }
        if !is_unassigned(task) {
            self.stamp(task);
            self.plan.pending = true;
            return Removal::GoesOn;
        }
        let Some(file) = self.removals().into_iter().next() else {
            self.discard(task);
            return Removal::Over;
        };
        let order = self.removal_order(&file, self.plan.status.disk_epoch.max(1));
        match self.choose(&self.reach()) {
            Ok((host, epoch)) => {
                let host = host.name().to_owned();
                self.plan.after.push(Action::AssignTask {
                    task: ObjectKey::of(&task.metadata),
                    host,
                    host_epoch: epoch,
                    order: Box::new(order),
                });
            }
            Err(_) => self.plan.pending = true,
        }
        Removal::GoesOn
    }

    /// The disk is being deleted.
    pub(super) fn delete(&mut self, own: &[&VirtualHardDiskTask], asked: &[&VirtualHardDiskTask]) {
        self.plan.status.state = DiskState::Terminating;
        self.refuse_all(asked, "Deleting", "the disk is being deleted");
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
        let holder = own.iter().chain(asked).find(|t| self.holds(t)).copied();
        if let Some(task) = holder
            && !self.leave_off(task)
        {
            return;
        }
        if self.plan.status.attachment.is_some() {
            self.say_deleting(
                "WaitingForTask",
                "a task that is gone still holds it: its host has to be declared off by spec.outOfService.token",
            );
            return;
        }
        if let Some((reason, message)) = self.readers() {
            self.say_deleting(reason, message);
            return;
        }
        let mut goes_on = false;
        for task in own {
            if holder.is_some_and(|h| std::ptr::eq(h, *task)) {
                continue;
            }
            if task.spec.action != TaskAction::Delete {
                if self.lost(task) && !is_over(task) {
                    self.abandon_target(task);
                }
                if is_over(task) || is_unassigned(task) || self.lost(task) {
                    self.discard(task);
                }
                continue;
            }
            match self.follow_removal(task) {
                Removal::Over => {}
                Removal::GoesOn => {
                    goes_on = true;
                    self.say_removing(task);
                }
                Removal::Failed(reason, message) => {
                    if self.s.disk.spec.reclaim_policy == ReclaimPolicy::Retain {
                        self.plan.retry = false;
                        self.leave_all("it could not be removed");
                        self.discard(task);
                        continue;
                    }
                    goes_on = true;
                    self.say_deleting(
                        &reason,
                        format!(
                            "its file could not be removed: {message}; set reclaimPolicy to Retain to leave the file"
                        ),
                    );
                }
            }
        }
        if goes_on {
            return;
        }
        if self.is_out_of_service() {
            self.leave_all("its host is out of service");
        }
        if self.removals().is_empty() {
            if has_finalizer(&self.s.disk.metadata, DISK_FINALIZER) {
                self.plan.after.push(Action::RemoveFinalizer);
            }
            return;
        }
        match self.choose(&self.reach()) {
            Ok(_) => {
                self.say_deleting("RemovingFile", "its file is to be removed");
                self.create_task(self.task_spec(TaskAction::Delete));
            }
            Err((reason, message)) => self.say_deleting(
                reason,
                format!(
                    "its file is to be removed, but {message}; set reclaimPolicy to Retain to leave the file"
                ),
            ),
        }
    }

    fn say_removing(&mut self, task: &VirtualHardDiskTask) {
        let host = task.status.as_ref().and_then(|s| s.host.clone());
        match host.filter(|host| self.host(host).and_then(HostView::epoch).is_none()) {
            Some(host) => self.say_deleting(
                "WaitingForTask",
                format!(
                    "waits for host {host} to end task \"{}\"; if the host is off for good, set spec.outOfService.token on it",
                    name(&task.metadata)
                ),
            ),
            None => self.say_deleting("RemovingFile", "its file is to be removed"),
        }
    }

    /// A task holds the disk. Returns whether it is over.
    fn leave_off(&mut self, task: &VirtualHardDiskTask) -> bool {
        if is_over(task) {
            let status = task.status.clone().unwrap_or_default();
            if self.plan.status.file.is_some() {
                self.end_work(task);
            } else {
                self.detach_task(task);
                if let Some(order) = status
                    .order
                    .filter(|_| status.state == TaskState::Succeeded)
                {
                    self.plan.status.file = Some(bound_file(&order.file));
                }
                self.discard(task);
            }
            self.plan.status.state = DiskState::Terminating;
            return true;
        }
        if is_unassigned(task) {
            self.never_began(task);
            self.let_go(task);
            return true;
        }
        if self.is_own(task) && !deleting(&task.metadata) {
            self.plan.after.push(Action::DeleteTask {
                task: ObjectKey::of(&task.metadata),
            });
        }
        self.stamp(task);
        let host = task.status.as_ref().and_then(|s| s.host.clone());
        self.say_deleting(
            "WaitingForTask",
            format!(
                "waits for host {} to end task \"{}\"; if the host is off for good, set spec.outOfService.token on it",
                host.unwrap_or_default(),
                name(&task.metadata)
            ),
        );
        false
    }

    /// Leaves every file that was to be removed, and says so.
    fn leave_all(&mut self, why: &str) {
        for file in self.removals() {
            self.plan.note = Some((
                "FileRetained",
                format!(
                    "file \"{}\" in pool \"{}\" is left: {why}",
                    file.path, file.pool
                ),
            ));
            self.strike(&file);
        }
    }

    fn is_out_of_service(&self) -> bool {
        let off = self.plan.status.host.as_deref().and_then(|h| self.host(h));
        off.is_some_and(|h| {
            h.epoch().is_none()
                && h.host.spec.out_of_service.is_some()
                && h.host
                    .status
                    .as_ref()
                    .and_then(|s| s.out_of_service_token.as_ref())
                    == h.host.spec.out_of_service.as_ref().map(|o| &o.token)
        })
    }
}
