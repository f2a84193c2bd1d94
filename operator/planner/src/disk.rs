//! The core of VirtualHardDisks: where the file lies, the tasks that work on it, and who holds it.
//!
//! A task is created without a host; then the disk's attachment is given to it by compare-and-swap; only then is it
//! assigned to a host with all that is resolved for it, and that host's agent may open the file from there on. A task's
//! attachment ends when its agent has reported it as done or failed, or by a person's word that the host is off.
//!
//! What a task has made is taken over in the very write that ends its attachment. A file that the disk had before is
//! removed after that, by a task that needs no attachment: no other disk and no later file has its name.
//!
//! A namespace that is being deleted takes no new objects: the task that removes a file is then made in the
//! operator's own namespace, with annotations in place of the reference to its owner.

mod admission;
mod belonging;
mod choose;
mod family;
mod health;
mod making;
mod order;
mod removal;
mod unfinished;
mod work;

use belonging::is_own;
pub use belonging::{disk_of, made_for, may_be_for};
pub use family::{Family, is_merging, parent_name, source_name};
pub(crate) use family::{is_linked, listed};
pub(crate) use order::next_path;

use crate::{
    conditions::{Answer, Writer},
    identity::{ObjectKey, deleting, disk_path, has_finalizer, name, task_name, uid},
    placement::HostView,
};
use paddock_crds::{
    VirtualHardDisk, VirtualHardDiskStatus, VirtualHardDiskTask, VirtualHardDiskTaskSpec,
    host::PoolScope,
    names::{DISK_FINALIZER, TASK_FINALIZER, condition::READY},
    quantity::format_bytes,
    reference::Time,
    virtual_hard_disk::{Attachment, AttachmentOwner, BoundFile, DiskState, OwnerKind},
    virtual_hard_disk_task::{TaskAction, TaskOrder, TaskState},
};
use std::{collections::BTreeMap, sync::Arc};

/// On a task in the operator's namespace: namespace and name of the disk, as `namespace/name`.
pub const DISK_ANNOTATION: &str = "paddock.dev/virtual-hard-disk";
/// On a task in the operator's namespace: UID of the disk.
pub const DISK_UID_ANNOTATION: &str = "paddock.dev/virtual-hard-disk-uid";

/// All that one disk's decision depends on.
#[derive(Debug)]
pub struct Snapshot<'a> {
    /// The disk.
    pub disk: &'a VirtualHardDisk,
    /// Namespace of the operator.
    pub system_namespace: &'a str,
    /// Its tasks: by controller reference, by annotation, or by name.
    pub tasks: &'a [Arc<VirtualHardDiskTask>],
    /// The disks that it has to do with.
    pub family: &'a Family,
    /// Whether a machine that names it is to run.
    pub wanted: bool,
    /// Bytes that its file takes, as the host of the machine that runs on it has told.
    pub measured: Option<i64>,
    /// The hosts.
    pub hosts: &'a [HostView],
    /// How many tasks each host works on.
    pub busy: &'a BTreeMap<String, usize>,
    /// An earlier disk with the same file, if there is one.
    pub same_file: Option<&'a ObjectKey>,
    /// Whether a failed task may be tried again now.
    pub retry_due: bool,
    /// The API refuses new objects in the disk's namespace, since that is being deleted.
    pub creation_refused: bool,
    /// The time of a condition's transition.
    pub now: &'a Time,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Put the finalizer on the disk.
    AddFinalizer,
    /// Create a task, not yet assigned: as a child of the disk, or by annotations where it is in another namespace.
    CreateTask {
        /// The task.
        task: ObjectKey,
        /// Its spec.
        spec: Box<VirtualHardDiskTaskSpec>,
    },
    /// Put the finalizer on a task that a user has made.
    HoldTask {
        /// The task.
        task: ObjectKey,
    },
    /// Assign a task, or stamp it with its host's new epoch.
    AssignTask {
        /// The task.
        task: ObjectKey,
        /// The host.
        host: String,
        /// The host's epoch.
        host_epoch: i64,
        /// What is to be done.
        order: Box<TaskOrder>,
    },
    /// Say of a task that no host works on why it waits, or that it cannot be done.
    TellTask {
        /// The task.
        task: ObjectKey,
        /// Pending or Failed.
        state: TaskState,
        /// Why, in a word.
        reason: String,
        /// Why, for people.
        message: String,
    },
    /// Take the finalizer off a user's task that is over.
    ReleaseTask {
        /// The task.
        task: ObjectKey,
    },
    /// Delete a task that its host may still be at work on: the order to leave off.
    DeleteTask {
        /// The task.
        task: ObjectKey,
    },
    /// Delete a task that is over, finalizer and all.
    DiscardTask {
        /// The task.
        task: ObjectKey,
    },
    /// Note on the disk that this one was merged into, which nobody holds, what its file takes, and that it has content
    /// that it was not compacted after.
    TellParent {
        /// Name of the parent.
        parent: String,
        /// Bytes that its file takes, if they were told.
        allocated_bytes: Option<i64>,
    },
    /// Take the finalizer off the disk.
    RemoveFinalizer,
}

/// What to do for one disk, and what to say of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Steps before the status is written.
    pub before: Vec<Action>,
    /// The status.
    pub status: VirtualHardDiskStatus,
    /// Steps after it.
    pub after: Vec<Action>,
    /// A task failed: try again after the disk's backoff.
    pub retry: bool,
    /// That backoff may grow long: the disk is usable as it is, and a change of its spec is tried at once.
    pub seldom: bool,
    /// It waits for a host: ask again when one changes.
    pub pending: bool,
    /// A warning to record: reason and message.
    pub note: Option<(&'static str, String)>,
    /// An event to record of what was done: reason and message.
    pub done: Option<(&'static str, String)>,
}

/// The status of a disk with an attachment given.
#[must_use]
pub fn attached(status: &VirtualHardDiskStatus, attachment: Attachment) -> VirtualHardDiskStatus {
    let mut status = status.clone();
    status.disk_epoch = status.disk_epoch.max(attachment.disk_epoch);
    if attachment.owner.kind == OwnerKind::VirtualMachine {
        status.used_epoch = Some(attachment.disk_epoch);
        if status.state != DiskState::Terminating {
            status.state = DiskState::Attached;
        }
    }
    status.attachment = Some(attachment);
    status
}

/// The status of a disk that another was merged into.
#[must_use]
pub fn grown_by_merge(
    status: &VirtualHardDiskStatus,
    allocated_bytes: Option<i64>,
) -> VirtualHardDiskStatus {
    VirtualHardDiskStatus {
        used_epoch: Some(status.disk_epoch),
        ..measured(status, allocated_bytes)
    }
}

/// The status of a disk whose file takes so many bytes, if they were told.
#[must_use]
pub fn measured(
    status: &VirtualHardDiskStatus,
    allocated_bytes: Option<i64>,
) -> VirtualHardDiskStatus {
    let allocated = allocated_bytes.and_then(|bytes| u64::try_from(bytes).ok());
    VirtualHardDiskStatus {
        allocated: allocated
            .map(format_bytes)
            .or_else(|| status.allocated.clone()),
        ..status.clone()
    }
}

/// The status of a disk with its attachment taken away.
#[must_use]
pub fn detached(status: &VirtualHardDiskStatus) -> VirtualHardDiskStatus {
    let mut status = status.clone();
    status.attachment = None;
    if status.state == DiskState::Attached {
        status.state = DiskState::Ready;
    }
    status
}

/// The file of a disk, made or to be made.
#[must_use]
pub fn file(disk: &VirtualHardDisk) -> BoundFile {
    if let Some(file) = disk.status.as_ref().and_then(|s| s.file.clone()) {
        return file;
    }
    let path = disk
        .spec
        .file
        .path
        .clone()
        .unwrap_or_else(|| disk_path(&ObjectKey::of(&disk.metadata), uid(&disk.metadata)));
    BoundFile {
        pool: disk.spec.file.pool.clone(),
        path,
    }
}

/// Pools that any host calls shared.
#[must_use]
pub fn is_shared(hosts: &[HostView], pool: &str) -> bool {
    hosts
        .iter()
        .any(|h| h.pool_scope(pool) == Some(PoolScope::Shared))
}

struct Draft<'a> {
    s: &'a Snapshot<'a>,
    plan: Plan,
    /// The attachment was just taken back by a person's word: it is written before it is given again.
    taken_back: bool,
}

/// Decides for one disk.
#[must_use]
pub fn decide(s: &Snapshot<'_>) -> Plan {
    let mut draft = Draft {
        s,
        taken_back: false,
        plan: Plan {
            status: s.disk.status.clone().unwrap_or_default(),
            ..Plan::default()
        },
    };
    draft.plan.status.observed_generation = s.disk.metadata.generation;
    draft.decide();
    draft.plan
}

impl Draft<'_> {
    fn conditions(&mut self) -> Writer<'_> {
        Writer {
            conditions: &mut self.plan.status.conditions,
            generation: self.s.disk.metadata.generation,
            now: self.s.now,
        }
    }

    fn decide(&mut self) {
        let s = self.s;
        self.take_back_by_word();
        self.plan.status.children = s.family.children_told();
        let tasks = s.tasks.iter().map(AsRef::as_ref);
        let (mut own, mut asked): (Vec<&VirtualHardDiskTask>, Vec<_>) =
            tasks.partition(|t| is_own(t, s.disk, s.system_namespace));
        // What is not assigned yet is the newest.
        own.sort_by_key(|t| (order_epoch(t).unwrap_or(i64::MAX), name(&t.metadata)));
        asked.sort_by_key(|t| {
            let made = t.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (made, name(&t.metadata))
        });
        asked.retain(|task| self.concerns(task));
        if deleting(&s.disk.metadata) {
            self.delete(&own, &asked);
            return;
        }
        if !has_finalizer(&s.disk.metadata, DISK_FINALIZER) {
            self.plan.before.push(Action::AddFinalizer);
        }
        if self.plan.status.file.is_some() {
            self.clean_up(&mut own);
            self.work(&own, &asked);
            return;
        }
        if let Some(into) = self.plan.status.merged_into.clone() {
            for task in own {
                self.discard(task);
            }
            let message =
                format!("its content was merged into VirtualHardDisk \"{into}\": delete it");
            self.refuse_all(&asked, "Merged", &message);
            self.say(DiskState::Merged, "Merged", message);
            return;
        }
        for task in &asked {
            self.tell(
                task,
                TaskState::Pending,
                "VirtualHardDiskNotReady",
                "the disk's file is not made yet",
            );
        }
        let current = own.pop();
        for old in own {
            if is_over(old) || is_unassigned(old) || self.lost(old) {
                self.discard(old);
            }
        }
        if let Some(other) = s.same_file {
            self.say(
                DiskState::Failed,
                "FileInUse",
                format!(
                    "file \"{}\" in pool \"{}\" belongs to VirtualHardDisk \"{other}\"; name another file or delete one of the two",
                    file(s.disk).path,
                    s.disk.spec.file.pool
                ),
            );
            self.plan.pending = true;
            return;
        }
        match current {
            None => self.begin(),
            Some(task) => self.follow(task),
        }
    }

    /// Settles what a user's task needs no disk for. Returns whether there is more to do for it.
    fn concerns(&mut self, task: &VirtualHardDiskTask) -> bool {
        if self.holds(task) {
            return true;
        }
        let over = is_over(task);
        if !over && self.lost(task) {
            self.abandon_target(task);
            self.tell(
                task,
                TaskState::Failed,
                "HostOutOfService",
                "its host was declared off while it was at work",
            );
        }
        if over || is_unassigned(task) && deleting(&task.metadata) || self.lost(task) {
            self.release(task);
            return false;
        }
        true
    }

    /// Whether the disk is attached to a task.
    fn holds(&self, task: &VirtualHardDiskTask) -> bool {
        let attachment = self.plan.status.attachment.as_ref();
        attachment.is_some_and(|a| a.owner.uid == uid(&task.metadata))
    }

    fn host(&self, name: &str) -> Option<&HostView> {
        self.s.hosts.iter().find(|h| h.name() == name)
    }

    fn namespace(&self) -> &str {
        self.s
            .disk
            .metadata
            .namespace
            .as_deref()
            .unwrap_or_default()
    }

    fn ended_by_word(&self, host: &str, epoch: i64) -> bool {
        self.host(host)
            .and_then(|h| h.ended_below)
            .is_some_and(|below| epoch < below)
    }

    fn lost(&self, task: &VirtualHardDiskTask) -> bool {
        task.status.as_ref().is_some_and(|status| {
            status
                .host
                .as_deref()
                .is_some_and(|host| self.ended_by_word(host, status.host_epoch.unwrap_or(0)))
        })
    }

    fn take_back_by_word(&mut self) {
        if let Some(a) = &self.plan.status.attachment
            && self.ended_by_word(&a.host, a.host_epoch)
        {
            let owner = a.owner.uid.clone();
            self.plan.status = detached(&self.plan.status);
            self.taken_back = true;
            self.leave_unproved(&owner);
        }
    }

    fn detach_task(&mut self, task: &VirtualHardDiskTask) {
        if self.holds(task) {
            self.plan.status = detached(&self.plan.status);
        }
    }

    fn discard(&mut self, task: &VirtualHardDiskTask) {
        self.abandon_untaken(task);
        self.plan.after.push(Action::DiscardTask {
            task: ObjectKey::of(&task.metadata),
        });
    }

    fn release(&mut self, task: &VirtualHardDiskTask) {
        if has_finalizer(&task.metadata, TASK_FINALIZER) {
            self.abandon_untaken(task);
            self.plan.after.push(Action::ReleaseTask {
                task: ObjectKey::of(&task.metadata),
            });
        }
    }

    /// Whether the operator made a task for the disk.
    fn is_own(&self, task: &VirtualHardDiskTask) -> bool {
        is_own(task, self.s.disk, self.s.system_namespace)
    }

    /// Ends what the operator keeps of a task that is over: its own is deleted, a user's stays.
    fn let_go(&mut self, task: &VirtualHardDiskTask) {
        if self.is_own(task) {
            self.discard(task);
        } else {
            self.release(task);
        }
    }

    fn say(&mut self, state: DiskState, reason: &str, message: impl Into<String>) {
        self.plan.status.state = state;
        self.conditions().set(READY, Answer::False, reason, message);
    }

    /// Says of a user's task why it waits or why it cannot be done.
    fn tell(
        &mut self,
        task: &VirtualHardDiskTask,
        state: TaskState,
        reason: &str,
        message: impl Into<String>,
    ) {
        let message: String = message.into().chars().take(1_000).collect();
        let said = task.status.as_ref().is_some_and(|s| {
            s.state == state
                && s.reason.as_deref() == Some(reason)
                && s.message.as_deref() == Some(&*message)
        });
        if !said {
            self.plan.after.push(Action::TellTask {
                task: ObjectKey::of(&task.metadata),
                state,
                reason: reason.to_owned(),
                message,
            });
        }
    }

    fn refuse_all(&mut self, asked: &[&VirtualHardDiskTask], reason: &str, message: &str) {
        for task in asked {
            if is_unassigned(task) && !is_over(task) {
                self.tell(task, TaskState::Failed, reason, message);
            }
        }
    }

    fn say_waiting(&mut self, reason: &str, message: String) {
        self.plan.pending = true;
        // While it is tried again, the last failure stays in sight.
        if self.plan.status.state != DiskState::Failed {
            self.say(DiskState::Pending, reason, message);
        }
    }

    fn task_spec(&self, action: TaskAction) -> VirtualHardDiskTaskSpec {
        VirtualHardDiskTaskSpec::new(action, name(&self.s.disk.metadata))
    }

    fn create_task(&mut self, spec: VirtualHardDiskTaskSpec) {
        let action = format!("{:?}", spec.action).to_ascii_lowercase();
        let disk = ObjectKey::of(&self.s.disk.metadata);
        let epoch = self.plan.status.disk_epoch + 1;
        let task = if self.s.creation_refused {
            // A namespace's name has no dot, so that no two disks meet here.
            let both = format!("{}.{}", disk.namespace, disk.name);
            let name = task_name(&both, &action, epoch);
            ObjectKey::new(self.s.system_namespace, &name)
        } else {
            let name = task_name(&disk.name, &action, epoch);
            ObjectKey::new(&disk.namespace, &name)
        };
        self.plan.after.push(Action::CreateTask {
            task,
            spec: Box::new(spec),
        });
    }

    /// Gives the disk's attachment to a task on a host.
    fn give(&mut self, task: &VirtualHardDiskTask, host: &str, epoch: i64, disk_epoch: i64) {
        let attachment = Attachment {
            owner: AttachmentOwner {
                kind: OwnerKind::VirtualHardDiskTask,
                name: name(&task.metadata).to_owned(),
                uid: uid(&task.metadata).to_owned(),
            },
            host: host.to_owned(),
            host_epoch: epoch,
            disk_epoch,
        };
        self.plan.status = attached(&self.plan.status, attachment);
    }

    /// The host, its epoch and the disk epoch under which a task holds the attachment already.
    fn given(&self, task: &VirtualHardDiskTask) -> Option<(String, i64, i64)> {
        let a = self.plan.status.attachment.as_ref()?;
        if a.owner.uid != uid(&task.metadata) {
            return None;
        }
        let epoch = self.host(&a.host).and_then(HostView::epoch);
        let epoch = epoch.unwrap_or(a.host_epoch).max(a.host_epoch);
        Some((a.host.clone(), epoch, a.disk_epoch))
    }

    /// Stamps a task whose host rejoined: it is that host's own again under the new epoch. Returns the host's epoch.
    fn stamp(&mut self, task: &VirtualHardDiskTask) -> Option<i64> {
        let status = task.status.as_ref()?;
        let host = status.host.clone()?;
        let epoch = self.host(&host).and_then(HostView::epoch)?;
        if epoch > status.host_epoch.unwrap_or(0)
            && let Some(order) = status.order.clone()
        {
            if let Some(a) = &mut self.plan.status.attachment
                && a.owner.uid == uid(&task.metadata)
            {
                a.host_epoch = epoch;
            }
            self.plan.after.push(Action::AssignTask {
                task: ObjectKey::of(&task.metadata),
                host,
                host_epoch: epoch,
                order: Box::new(order),
            });
        }
        Some(epoch)
    }
}

/// The disk epoch in a task's order.
fn order_epoch(task: &VirtualHardDiskTask) -> Option<i64> {
    Some(task.status.as_ref()?.order.as_ref()?.disk_epoch)
}

/// Whether a task has no host yet: nobody may have begun it.
#[must_use]
pub fn is_unassigned(task: &VirtualHardDiskTask) -> bool {
    task.status.as_ref().is_none_or(|s| s.host.is_none())
}

/// Whether a task's end was reported, or it was refused.
#[must_use]
pub fn is_over(task: &VirtualHardDiskTask) -> bool {
    task.status
        .as_ref()
        .is_some_and(|s| matches!(s.state, TaskState::Succeeded | TaskState::Failed))
}
