//! A disk that has its file: what is done to it while no machine uses it, one thing at a time.
//!
//! First what an undo disk waits for, then the tasks that users have made, oldest first, then what the disk's spec asks
//! for: its type, its size, its compaction.

use super::{
    Action, Draft,
    admission::{Refused, may_be_asked},
    family::bound_file,
    is_over, is_unassigned,
};
use crate::{
    conditions::Answer,
    identity::{ObjectKey, deleting, has_finalizer, name},
};
use paddock_crds::{
    ByteQuantity, VirtualHardDiskTask, VirtualHardDiskTaskSpec,
    names::{
        TASK_FINALIZER,
        condition::{PROGRESSING, READY},
    },
    reference::condition,
    virtual_hard_disk::{
        CompactionPolicy, Defragment, DiskState, DiskType, OwnerKind, Precompact, UndoState,
    },
    virtual_hard_disk_task::{TaskAction, TaskResult, TaskState},
};

/// The most files that a disk leaves to be removed; while there are more, nothing new is made for it.
pub(super) const MOST_OBSOLETE: usize = 8;

impl Draft<'_> {
    /// What the status says of a disk that has its file.
    pub(super) fn made(&mut self) {
        let holder = self.plan.status.attachment.as_ref().map(|a| a.owner.kind);
        self.plan.status.state = match holder {
            Some(OwnerKind::VirtualMachine) => DiskState::Attached,
            Some(OwnerKind::VirtualHardDiskTask) => DiskState::Working,
            None => DiskState::Ready,
        };
        let Some(file) = self.plan.status.file.clone() else {
            return;
        };
        if holder.is_none() && self.unfinished() == Some(TaskAction::Merge) {
            let message = self.merge_interrupted();
            self.say(DiskState::Failed, "MergeInterrupted", message);
            return;
        }
        let message = format!("its file is \"{}\" in pool \"{}\"", file.path, file.pool);
        self.conditions().set(READY, Answer::True, "Ready", message);
    }

    pub(super) fn work(&mut self, own: &[&VirtualHardDiskTask], asked: &[&VirtualHardDiskTask]) {
        if self.plan.status.state != DiskState::Merged {
            self.made();
        }
        if let Some(bytes) = self.s.measured {
            let told = TaskResult {
                allocated_bytes: Some(bytes),
                ..TaskResult::default()
            };
            self.measured(None, &told);
        }
        let wish = self.wish();
        let holder = own.iter().chain(asked).find(|t| self.holds(t)).copied();
        let attachment = self.plan.status.attachment.clone();
        match (attachment, holder) {
            (_, Some(task)) => {
                self.follow_work(task);
                for other in asked.iter().filter(|t| !std::ptr::eq(**t, task)) {
                    self.tell_waiting(
                        other,
                        "DiskInUse",
                        format!("task \"{}\" is at work on the disk", name(&task.metadata)),
                    );
                }
                for other in own.iter().filter(|t| !std::ptr::eq(**t, task)) {
                    if is_over(other) || is_unassigned(other) || self.lost(other) {
                        self.discard(other);
                    }
                }
            }
            (Some(a), None) if a.owner.kind == OwnerKind::VirtualMachine => {
                let message = format!(
                    "the disk is attached to VirtualMachine \"{}\" on host {}",
                    a.owner.name, a.host
                );
                self.give_up_own(own);
                for task in asked {
                    match self.refusal_of(task) {
                        Some(refused) if !refused.waits => self.refuse_task(task, refused),
                        _ => self.tell_waiting(task, "DiskInUse", message.clone()),
                    }
                }
                self.progress(wish.as_ref(), "DiskInUse", message);
            }
            (Some(a), None) => {
                self.plan.pending = true;
                self.say(
                    DiskState::Working,
                    "WaitingForTask",
                    format!(
                        "task \"{}\" is gone and still holds it: its host {} has to be declared off by spec.outOfService.token",
                        a.owner.name, a.host
                    ),
                );
            }
            (None, None) if self.taken_back => {}
            (None, None) => self.next(wish, own, asked),
        }
    }

    /// Lets the operator's tasks go that did not begin before somebody took the disk.
    fn give_up_own(&mut self, own: &[&VirtualHardDiskTask]) {
        for task in own {
            if is_over(task) || is_unassigned(task) || self.lost(task) {
                if self.lost(task) && !is_over(task) {
                    self.abandon_target(task);
                }
                self.discard(task);
            }
        }
    }

    /// What the disk's spec and its undo disk ask for.
    fn wish(&self) -> Option<VirtualHardDiskTaskSpec> {
        let (spec, status) = (&self.s.disk.spec, &self.plan.status);
        if status.undo.is_some() && self.unfinished() == Some(TaskAction::CommitUndo) {
            return Some(self.task_spec(TaskAction::CommitUndo));
        }
        match status.undo.as_ref().map(|u| u.state) {
            Some(UndoState::Committing) => return Some(self.task_spec(TaskAction::CommitUndo)),
            Some(UndoState::Discarding) => return Some(self.task_spec(TaskAction::DiscardUndo)),
            _ => {}
        }
        let actual = status.disk_type;
        let wanted = spec.wanted_type();
        let wanted = wanted.filter(|wanted| *wanted != DiskType::Differencing);
        if wanted.is_some() && actual.is_some() && actual != wanted {
            return Some(self.task_spec(TaskAction::Convert));
        }
        let wanted = spec.size.as_ref().map(ByteQuantity::bytes);
        let has = status.size_bytes.and_then(|size| u64::try_from(size).ok());
        if let (Some(wanted), Some(has)) = (wanted, has)
            && wanted > has
            && actual != Some(DiskType::Differencing)
        {
            return Some(VirtualHardDiskTaskSpec {
                size: Some(ByteQuantity::from_bytes(wanted)),
                ..self.task_spec(TaskAction::Resize)
            });
        }
        let compacts = spec.compaction.policy == CompactionPolicy::WhenStopped
            && status.used_epoch.is_some()
            && actual == Some(DiskType::Dynamic)
            && self.s.family.children.is_empty()
            && !self.s.wanted;
        compacts.then(|| VirtualHardDiskTaskSpec {
            precompact: Some(spec.compaction.precompact).filter(|p| *p == Precompact::Enabled),
            defragment: Some(spec.compaction.defragment).filter(|d| *d == Defragment::Disabled),
            ..self.task_spec(TaskAction::Compact)
        })
    }

    /// Says what a wish waits for; nothing without one.
    fn progress(
        &mut self,
        wish: Option<&VirtualHardDiskTaskSpec>,
        reason: &str,
        message: impl Into<String>,
    ) {
        match wish {
            Some(wish) => {
                let message = format!("{:?}: {}", wish.action, message.into());
                self.conditions()
                    .set(PROGRESSING, Answer::False, reason, message);
            }
            None => self.conditions().remove(PROGRESSING),
        }
    }

    /// Whether the spec has changed since it was last said what the disk's wish waits for: what failed may succeed now.
    fn spec_has_changed(&self) -> bool {
        let said = condition(&self.plan.status.conditions, PROGRESSING);
        said.is_some_and(|c| c.observed_generation != self.s.disk.metadata.generation)
    }

    fn tell_waiting(&mut self, task: &VirtualHardDiskTask, reason: &str, message: String) {
        if is_unassigned(task) && !is_over(task) {
            self.tell(task, TaskState::Pending, reason, message);
        }
    }

    fn refuse_task(&mut self, task: &VirtualHardDiskTask, refused: Refused) {
        self.tell(task, TaskState::Failed, refused.reason, refused.message);
        self.release(task);
    }

    fn refusal_of(&self, task: &VirtualHardDiskTask) -> Option<Refused> {
        if !may_be_asked(task.spec.action) {
            return Some(Refused {
                reason: "NotForUsers",
                message: format!(
                    "{:?} is done by the operator alone, as the disk's spec asks for it",
                    task.spec.action
                ),
                waits: false,
            });
        }
        self.refuse(&task.spec)
    }

    /// Nobody holds the disk: begins what comes next.
    fn next(
        &mut self,
        wish: Option<VirtualHardDiskTaskSpec>,
        own: &[&VirtualHardDiskTask],
        asked: &[&VirtualHardDiskTask],
    ) {
        let mut prepared = None;
        let mut failed = None;
        for task in own {
            if self.lost(task) && !is_over(task) {
                self.abandon_target(task);
                self.discard(task);
            } else if wish.as_ref() != Some(&task.spec) || deleting(&task.metadata) {
                if is_over(task) || is_unassigned(task) {
                    self.discard(task);
                }
            } else if is_unassigned(task) {
                prepared = Some(*task);
            } else if is_over(task)
                && (self.s.retry_due || succeeded(task) || self.spec_has_changed())
            {
                self.discard(task);
            } else if is_over(task) {
                failed = Some(*task);
            }
        }
        if self.s.family.taken.contains(name(&self.s.disk.metadata)) {
            // A machine's plan is just taking it.
            self.plan.pending = true;
            return;
        }
        let mut begun = false;
        for task in asked {
            if !is_unassigned(task) || is_over(task) {
                continue;
            }
            let refused = self.refusal_of(task);
            match refused {
                Some(refused) if !refused.waits => self.refuse_task(task, refused),
                Some(refused) => {
                    self.plan.pending = true;
                    self.tell_waiting(task, refused.reason, refused.message);
                }
                None if begun => self.tell_waiting(
                    task,
                    "DiskInUse",
                    "another task on the disk comes first".to_owned(),
                ),
                None => match self.assign_work(task, &task.spec) {
                    Ok(()) => begun = true,
                    Err((reason, message)) => {
                        self.plan.pending = true;
                        self.tell_waiting(task, reason, message);
                    }
                },
            }
        }
        let Some(wish) = wish else {
            self.conditions().remove(PROGRESSING);
            return;
        };
        if begun {
            self.progress(
                Some(&wish),
                "DiskInUse",
                "a task that was asked for comes first",
            );
            return;
        }
        if let Some(task) = failed {
            let status = task.status.clone().unwrap_or_default();
            let reason = status.reason.unwrap_or_else(|| "Failed".to_owned());
            self.progress(Some(&wish), &reason, status.message.unwrap_or_default());
            self.plan.retry = true;
            self.plan.seldom = is_seldom(wish.action);
            return;
        }
        if let Some(refused) = self.refuse(&wish) {
            self.plan.pending = true;
            self.progress(Some(&wish), refused.reason, refused.message);
            return;
        }
        match prepared {
            Some(task) => {
                if let Err((reason, message)) = self.assign_work(task, &wish) {
                    self.plan.pending = true;
                    self.progress(Some(&wish), reason, message);
                }
            }
            None if self.s.creation_refused => {
                let message = "its namespace is being deleted: nothing new is made";
                self.progress(Some(&wish), "NamespaceTerminating", message);
            }
            None => match self.choose(&self.reach()) {
                Ok(_) => self.create_task(wish),
                Err((reason, message)) => {
                    self.plan.pending = true;
                    self.progress(Some(&wish), reason, message);
                }
            },
        }
    }

    /// Gives the disk's attachment to a task, and the task to a host.
    fn assign_work(
        &mut self,
        task: &VirtualHardDiskTask,
        spec: &VirtualHardDiskTaskSpec,
    ) -> Result<(), (&'static str, String)> {
        let given = self.given(task);
        let next = self.plan.status.disk_epoch + 1;
        let disk_epoch = given.as_ref().map_or(next, |g| g.2);
        let Some(file) = self.plan.status.file.clone() else {
            return Err(("VirtualHardDiskNotReady", "it has no file".to_owned()));
        };
        let full = self.plan.status.obsolete_files.len() >= MOST_OBSOLETE;
        if full && matches!(spec.action, TaskAction::Convert | TaskAction::Compact) {
            return Err((
                "ObsoleteFiles",
                "files that it had before have to be removed first".to_owned(),
            ));
        }
        let (order, reach) = self.work_order(spec, &file, disk_epoch);
        let (host, epoch) = match given {
            Some((host, epoch, _)) => (host, epoch),
            None => {
                let (host, epoch) = self.choose(&reach)?;
                (host.name().to_owned(), epoch)
            }
        };
        if !has_finalizer(&task.metadata, TASK_FINALIZER) {
            self.plan.before.push(Action::HoldTask {
                task: ObjectKey::of(&task.metadata),
            });
        }
        self.give(task, &host, epoch, disk_epoch);
        self.may_begin(spec.action);
        self.say_working(task, &host);
        self.plan.after.push(Action::AssignTask {
            task: ObjectKey::of(&task.metadata),
            host,
            host_epoch: epoch,
            order: Box::new(order),
        });
        Ok(())
    }

    fn say_working(&mut self, task: &VirtualHardDiskTask, host: &str) {
        let message = format!(
            "host {host} is at work on it: {:?}, task \"{}\"",
            task.spec.action,
            name(&task.metadata)
        );
        let mut c = self.conditions();
        c.set(PROGRESSING, Answer::True, "Working", message.clone());
        self.say(DiskState::Working, "Working", message);
    }

    /// A task holds the disk.
    fn follow_work(&mut self, task: &VirtualHardDiskTask) {
        if is_unassigned(task) && !is_over(task) {
            if deleting(&task.metadata) {
                self.never_began(task);
                self.made();
                self.let_go(task);
            } else if let Err((reason, message)) = self.assign_work(task, &task.spec) {
                self.say(DiskState::Working, reason, message);
            }
            return;
        }
        let status = task.status.clone().unwrap_or_default();
        match status.state {
            TaskState::Pending | TaskState::Running => {
                self.plan.pending = true;
                let host = status.host.clone().unwrap_or_default();
                if self.is_called_off(task) {
                    self.plan.after.push(Action::DeleteTask {
                        task: ObjectKey::of(&task.metadata),
                    });
                }
                if self.stamp(task).is_some() {
                    self.say_working(task, &host);
                } else {
                    self.say(
                        DiskState::Working,
                        "HostNotReady",
                        format!(
                            "host {host} is at work on it, but is not ready; if it is off for good, set spec.outOfService.token on it"
                        ),
                    );
                }
            }
            TaskState::Succeeded | TaskState::Failed => self.end_work(task),
        }
    }

    /// Whether the operator's own task is at work on what is not wished for any more, such as a compaction of a disk
    /// whose machine is to start, and leaves the disk as it was when it leaves off.
    fn is_called_off(&self, task: &VirtualHardDiskTask) -> bool {
        self.is_own(task)
            && !deleting(&task.metadata)
            && matches!(task.spec.action, TaskAction::Convert | TaskAction::Compact)
            && self.wish().as_ref() != Some(&task.spec)
    }

    /// The task that holds the disk is over.
    pub(super) fn end_work(&mut self, task: &VirtualHardDiskTask) {
        let status = task.status.clone().unwrap_or_default();
        self.detach_task(task);
        self.settle_unfinished(task);
        if status.state == TaskState::Succeeded {
            self.conditions().remove(PROGRESSING);
            self.take_result(task);
            self.let_go(task);
            return;
        }
        self.made();
        if self.had_no_undo(task) {
            self.plan.status.undo = None;
            self.conditions().remove(PROGRESSING);
            self.let_go(task);
            return;
        }
        let reason = status.reason.unwrap_or_else(|| "Failed".to_owned());
        let message = status.message.unwrap_or_default();
        let is_own = self.is_own(task);
        if is_own && deleting(&task.metadata) && reason == "Cancelled" {
            self.conditions().remove(PROGRESSING);
            self.discard(task);
            return;
        }
        if is_own {
            self.progress(Some(&task.spec), &reason, message.clone());
            self.plan.retry = true;
            self.plan.seldom = is_seldom(task.spec.action);
        } else {
            self.conditions().remove(PROGRESSING);
            self.release(task);
        }
        self.plan.note = Some((
            "TaskFailed",
            format!("{:?}: {reason}: {message}", task.spec.action),
        ));
    }

    /// Takes over what a task has made or found.
    fn take_result(&mut self, task: &VirtualHardDiskTask) {
        let status = task.status.clone().unwrap_or_default();
        let (Some(order), result) = (status.order, status.result.unwrap_or_default()) else {
            self.made();
            return;
        };
        let done = match task.spec.action {
            TaskAction::Convert | TaskAction::Compact => {
                if let Some(target) = &order.target {
                    let old = self.plan.status.file.replace(bound_file(target));
                    if let Some(old) = old {
                        self.make_obsolete(old);
                    }
                }
                let to = &mut self.plan.status;
                to.disk_type = result.disk_type.or(order.disk_type);
                to.used_epoch = None;
                if to.disk_type != Some(DiskType::Differencing) {
                    to.lineage = Vec::new();
                    to.parent_files = Vec::new();
                }
                to.uuid = result.uuid.clone().or(to.uuid.take());
                self.measured(result.size_bytes, &result);
                self.forget_health();
                "its content is in a new file now"
            }
            TaskAction::Resize => {
                self.measured(result.size_bytes.or(order.size_bytes), &result);
                "it has its new size"
            }
            TaskAction::Merge => {
                let to = &mut self.plan.status;
                let into = to.lineage.first().cloned().unwrap_or_default();
                to.merged_into = Some(into.clone());
                to.file = None;
                to.lineage = Vec::new();
                to.parent_files = Vec::new();
                to.allocated = None;
                // What its machines have written is the parent's now.
                self.plan.before.push(Action::TellParent {
                    parent: into.clone(),
                    allocated_bytes: result.allocated_bytes,
                });
                self.forget_health();
                self.say(
                    DiskState::Merged,
                    "Merged",
                    format!("its content was merged into VirtualHardDisk \"{into}\": delete it"),
                );
                self.plan.done = Some(("Merged", format!("merged into \"{into}\"")));
                return;
            }
            TaskAction::Check => {
                self.measured(result.size_bytes, &result);
                let findings = result.findings.unwrap_or_default();
                self.say_healthy(&order.file, &findings);
                "its file was checked"
            }
            TaskAction::CommitUndo => {
                self.plan.status.undo = None;
                self.measured(None, &result);
                "what its undo disk held is in the disk now"
            }
            TaskAction::DiscardUndo => {
                self.plan.status.undo = None;
                "its undo disk was discarded"
            }
            _ => "it is done",
        };
        self.made();
        self.plan.done = Some(("TaskSucceeded", format!("{:?}: {done}", task.spec.action)));
    }
}

/// Whether the disk is as usable while that fails: a machine waits for the end of its undo disks.
fn is_seldom(action: TaskAction) -> bool {
    !matches!(action, TaskAction::CommitUndo | TaskAction::DiscardUndo)
}

fn succeeded(task: &VirtualHardDiskTask) -> bool {
    task.status
        .as_ref()
        .is_some_and(|s| s.state == TaskState::Succeeded)
}
