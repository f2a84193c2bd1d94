//! A disk whose file is still to be made.

use super::{
    Action, Draft, admission::PATH_NOT_ALLOWED, family::bound_file, file, is_shared, is_unassigned,
};
use crate::identity::{ObjectKey, deleting};
use paddock_crds::{
    VirtualHardDiskTask,
    names::condition::READY,
    quantity::format_bytes,
    reference::{condition, is_in_folder_of, outside_folder},
    virtual_hard_disk::{DiskState, DiskType, FileMode},
    virtual_hard_disk_task::{TaskAction, TaskOrder, TaskResult, TaskState},
};

impl Draft<'_> {
    fn making(&self) -> TaskAction {
        let spec = &self.s.disk.spec;
        // A file at the path that only this disk's identity gives was made by a task whose report was lost.
        let own_leftover = spec.file.path.is_none()
            && condition(&self.plan.status.conditions, READY)
                .is_some_and(|c| c.reason == "FileExists");
        match (&spec.source, spec.file.mode) {
            (_, FileMode::Adopt) => TaskAction::Adopt,
            _ if own_leftover && spec.parent_ref.is_none() && spec.linked.is_none() => {
                TaskAction::Adopt
            }
            (Some(source), FileMode::Create) if source.clone_ref.is_some() => TaskAction::Clone,
            (Some(_), FileMode::Create) => TaskAction::Import,
            (None, FileMode::Create) => TaskAction::Create,
        }
    }

    /// What is said of a path that is not in the folder of the disk's namespace.
    fn foreign_path(&self) -> Option<String> {
        let namespace = self.namespace();
        let file = file(self.s.disk);
        (!is_in_folder_of(namespace, &file.path))
            .then(|| outside_folder(namespace, &file.pool, &file.path))
    }

    /// A differencing disk goes where its parent is, wherever its machine was to have it.
    fn follow_parent(&mut self) {
        if self.plan.status.attachment.is_none()
            && let Ok(Some(parent)) = self.parent()
            && parent.host.is_some()
        {
            self.plan.status.host = parent.host;
        }
    }

    /// No task yet.
    pub(super) fn begin(&mut self) {
        self.follow_parent();
        if self.plan.status.attachment.is_some() {
            self.say_waiting(
                "WaitingForTask",
                "a task that is gone still holds it: its host has to be declared off by spec.outOfService.token"
                    .to_owned(),
            );
            return;
        }
        if let Some(message) = self.foreign_path() {
            self.say(DiskState::Failed, PATH_NOT_ALLOWED, message);
            return;
        }
        let action = self.making();
        let possible = self
            .making_order(action, 1)
            .and_then(|(_, reach)| self.choose(&reach).map(|_| ()));
        match possible {
            Err((reason, message)) => self.say_waiting(reason, message),
            Ok(()) if self.s.creation_refused => self.say_waiting(
                "NamespaceTerminating",
                "its namespace is being deleted: nothing new is made".to_owned(),
            ),
            Ok(()) => {
                self.create_task(self.task_spec(action));
                if self.plan.status.state != DiskState::Failed {
                    self.say(DiskState::Pending, "Creating", "its file is to be made");
                }
            }
        }
    }

    /// A task to make the file is there.
    pub(super) fn follow(&mut self, task: &VirtualHardDiskTask) {
        if self.lost(task) {
            self.detach_task(task);
            self.discard(task);
            return;
        }
        if is_unassigned(task) {
            if deleting(&task.metadata) {
                self.detach_task(task);
                self.discard(task);
            } else {
                self.assign_making(task);
            }
            return;
        }
        let status = task.status.clone().unwrap_or_default();
        match status.state {
            TaskState::Pending | TaskState::Running => self.wait_for(task),
            TaskState::Succeeded => {
                self.detach_task(task);
                self.take_over(status.order, status.result);
                self.discard(task);
            }
            TaskState::Failed => {
                self.detach_task(task);
                let reason = status.reason.unwrap_or_else(|| "Failed".to_owned());
                let again = reason == "FileExists"
                    && self.s.disk.spec.file.path.is_none()
                    && task.spec.action != TaskAction::Adopt;
                self.say(
                    DiskState::Failed,
                    &reason,
                    status
                        .message
                        .unwrap_or_else(|| "its file could not be made".to_owned()),
                );
                if again || self.s.retry_due {
                    self.discard(task);
                } else {
                    self.plan.retry = true;
                }
            }
        }
    }

    /// The file is made.
    fn take_over(&mut self, order: Option<TaskOrder>, result: Option<TaskResult>) {
        let Some(order) = order else {
            return;
        };
        let result = result.unwrap_or_default();
        let found = result.disk_type.or(order.disk_type);
        if found == Some(DiskType::Differencing) && order.parents.is_empty() {
            self.plan.retry = true;
            self.say(
                DiskState::Failed,
                "UnsupportedFormat",
                "the file is a differencing disk: only one that is made with parentRef can be used",
            );
            return;
        }
        if found == Some(DiskType::Linked) && order.device.is_none() {
            self.plan.retry = true;
            self.say(
                DiskState::Failed,
                "UnsupportedFormat",
                "the file is a linked disk: only one that is made with type Linked can be used",
            );
            return;
        }
        let to = &mut self.plan.status;
        to.serial.clone_from(&result.serial);
        to.file = Some(bound_file(&order.file));
        // An adopted file may have been another disk's: its hosts refuse lower epochs.
        to.disk_epoch = to.disk_epoch.max(result.disk_epoch.unwrap_or(0));
        to.disk_type = found;
        to.parent_files = order.parents.iter().map(bound_file).collect();
        to.lineage = Vec::new();
        if !order.parents.is_empty() {
            let wanted = self.s.disk.spec.parent_ref.iter().map(|r| r.name.clone());
            let above = self.s.family.parent.iter();
            let above = above.flat_map(|p| p.status.iter().flat_map(|s| s.lineage.clone()));
            to.lineage = wanted.chain(above).take(order.parents.len()).collect();
        }
        self.measured(result.size_bytes.or(order.size_bytes), &result);
        self.plan.status.uuid = result.uuid;
        self.made();
    }

    /// What a task says of the file.
    pub(super) fn measured(&mut self, size: Option<i64>, result: &TaskResult) {
        let bytes = |n: i64| u64::try_from(n).ok().map(format_bytes);
        let to = &mut self.plan.status;
        if size.is_some() {
            to.size_bytes = size;
            to.size = size.and_then(bytes);
        }
        if result.allocated_bytes.is_some() {
            to.allocated = result.allocated_bytes.and_then(bytes);
        }
    }

    pub(super) fn wait_for(&mut self, task: &VirtualHardDiskTask) {
        let host = task.status.as_ref().and_then(|s| s.host.clone());
        let host = host.unwrap_or_default();
        let epoch = self.stamp(task);
        self.plan.pending = true;
        if self.plan.status.state != DiskState::Failed {
            let message = match epoch {
                None => format!("host {host} is to make it, but is not ready"),
                Some(_) => self.makes(task.spec.action, &host),
            };
            self.say(DiskState::Creating, "Creating", message);
        }
    }

    /// Gives the disk's attachment to a task that makes the file, and the task to a host.
    fn assign_making(&mut self, task: &VirtualHardDiskTask) {
        let given = self.given(task);
        if self.plan.status.attachment.is_some() && given.is_none() {
            self.say_waiting("DiskInUse", "another task still holds it".to_owned());
            return;
        }
        if given.is_none() && task.spec.action != self.making() {
            // The disk's state has changed since it was made: another is made.
            self.discard(task);
            return;
        }
        self.follow_parent();
        let next = self.plan.status.disk_epoch + 1;
        let disk_epoch = given.as_ref().map_or(next, |g| g.2);
        let resolved =
            self.making_order(task.spec.action, disk_epoch)
                .and_then(|(order, reach)| {
                    // A differencing disk stays where its parent is, a linked one where the physical disk is.
                    let stays = reach.near.is_some()
                        && (!order.parents.is_empty() || order.device.is_some());
                    let (host, epoch) = match &given {
                        Some((host, epoch, _)) => (host.clone(), *epoch),
                        None => self
                            .choose(&reach)
                            .map(|(host, epoch)| (host.name().to_owned(), epoch))?,
                    };
                    Ok((order, stays, host, epoch))
                });
        let (order, stays, host, epoch) = match resolved {
            Ok(resolved) => resolved,
            Err((reason, message)) => {
                self.say_waiting(reason, message);
                return;
            }
        };
        if stays || !is_shared(self.s.hosts, &self.s.disk.spec.file.pool) {
            self.plan.status.host = Some(host.clone());
        }
        self.give(task, &host, epoch, disk_epoch);
        if self.plan.status.state != DiskState::Failed {
            let message = self.makes(task.spec.action, &host);
            self.say(DiskState::Creating, "Creating", message);
        }
        self.plan.after.push(Action::AssignTask {
            task: ObjectKey::of(&task.metadata),
            host,
            host_epoch: epoch,
            order: Box::new(order),
        });
    }

    fn makes(&self, action: TaskAction, host: &str) -> String {
        let source = self.s.disk.spec.source.as_ref();
        match action {
            TaskAction::Import if source.is_some_and(|s| s.http.is_some()) => {
                format!("host {host} downloads its image")
            }
            TaskAction::Import if source.is_some_and(|s| s.linked_ref.is_some()) => {
                format!("host {host} copies a physical disk")
            }
            TaskAction::Import => format!("host {host} imports its image"),
            TaskAction::Clone => format!("host {host} copies its source"),
            TaskAction::Adopt => format!("host {host} looks at its file"),
            _ => format!("host {host} makes its file"),
        }
    }
}
