//! The core of VirtualHardDisks: where the file lies, the tasks that make and remove it, and who holds it.
//!
//! A task is created without a host; then the disk's attachment is given to it by compare-and-swap; only then is it
//! assigned to a host, whose agent may open the file from there on. A task's attachment ends when its agent has
//! reported it as done or failed, or by a person's word that the host is off.
//!
//! A namespace that is being deleted takes no new objects: the task that removes a file is then made in the
//! operator's own namespace, with annotations in place of the reference to its owner.

mod removal;

use crate::{
    conditions::{Answer, Writer},
    identity::{ObjectKey, deleting, disk_path, has_finalizer, name, task_name, uid},
    placement::{Availability, HostView},
    resolve::image_pool,
};
use paddock_crds::{
    VirtualHardDisk, VirtualHardDiskStatus, VirtualHardDiskTask, VirtualHardDiskTaskSpec,
    host::{PoolKind, PoolScope},
    names::{DISK_FINALIZER, condition::READY},
    quantity::format_bytes,
    reference::{LocalReference, PoolFile, Time, condition},
    virtual_hard_disk::{Attachment, AttachmentOwner, BoundFile, DiskState, FileMode, OwnerKind},
    virtual_hard_disk_task::{SourceFile, TaskAction, TaskSource, TaskState},
};
use std::{collections::BTreeMap, sync::Arc};

/// On a task outside its disk's namespace: namespace and name of the disk, as `namespace/name`.
pub const DISK_ANNOTATION: &str = "paddock.dev/virtual-hard-disk";
/// On a task outside its disk's namespace: UID of the disk.
pub const DISK_UID_ANNOTATION: &str = "paddock.dev/virtual-hard-disk-uid";

/// All that one disk's decision depends on.
#[derive(Debug)]
pub struct Snapshot<'a> {
    /// The disk.
    pub disk: &'a VirtualHardDisk,
    /// Namespace of the operator.
    pub system_namespace: &'a str,
    /// Its tasks: by controller reference, or by annotation.
    pub tasks: &'a [Arc<VirtualHardDiskTask>],
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
    /// Assign a task, or stamp it with its host's new epoch.
    AssignTask {
        /// The task.
        task: ObjectKey,
        /// The host.
        host: String,
        /// The host's epoch.
        host_epoch: i64,
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
    /// It waits for a host: ask again when one changes.
    pub pending: bool,
    /// An event to record: reason and message.
    pub note: Option<(&'static str, String)>,
}

/// The status of a disk with an attachment given.
#[must_use]
pub fn attached(status: &VirtualHardDiskStatus, attachment: Attachment) -> VirtualHardDiskStatus {
    let mut status = status.clone();
    status.disk_epoch = status.disk_epoch.max(attachment.disk_epoch);
    if attachment.owner.kind == OwnerKind::VirtualMachine && status.state != DiskState::Terminating
    {
        status.state = DiskState::Attached;
    }
    status.attachment = Some(attachment);
    status
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
}

/// Decides for one disk.
#[must_use]
pub fn decide(s: &Snapshot<'_>) -> Plan {
    let mut draft = Draft {
        s,
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
        let mut tasks: Vec<&VirtualHardDiskTask> = s.tasks.iter().map(AsRef::as_ref).collect();
        tasks.sort_by_key(|t| t.spec.disk_epoch);
        let current = tasks.pop();
        for old in tasks {
            if is_over(old) || is_unassigned(old) || self.lost(old) {
                self.discard(old);
            }
        }
        if deleting(&s.disk.metadata) {
            self.delete(current);
            return;
        }
        if !has_finalizer(&s.disk.metadata, DISK_FINALIZER) {
            self.plan.before.push(Action::AddFinalizer);
        }
        if self.plan.status.file.is_some() {
            if let Some(task) = current
                && (is_over(task) || is_unassigned(task) || self.lost(task))
            {
                self.detach_task(task);
                self.discard(task);
            }
            self.made();
            return;
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

    fn host(&self, name: &str) -> Option<&HostView> {
        self.s.hosts.iter().find(|h| h.name() == name)
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
            self.plan.status = detached(&self.plan.status);
        }
    }

    fn detach_task(&mut self, task: &VirtualHardDiskTask) {
        if self
            .plan
            .status
            .attachment
            .as_ref()
            .is_some_and(|a| a.owner.uid == uid(&task.metadata))
        {
            self.plan.status = detached(&self.plan.status);
        }
    }

    fn discard(&mut self, task: &VirtualHardDiskTask) {
        self.plan.after.push(Action::DiscardTask {
            task: ObjectKey::of(&task.metadata),
        });
    }

    fn say(&mut self, state: DiskState, reason: &str, message: impl Into<String>) {
        self.plan.status.state = state;
        self.conditions().set(READY, Answer::False, reason, message);
    }

    /// The file is there.
    fn made(&mut self) {
        let holder = self.plan.status.attachment.as_ref().map(|a| a.owner.kind);
        self.plan.status.state = match holder {
            Some(OwnerKind::VirtualMachine) => DiskState::Attached,
            _ => DiskState::Ready,
        };
        let BoundFile { pool, path } = file(self.s.disk);
        let (pool, path) = self
            .plan
            .status
            .file
            .as_ref()
            .map_or((pool, path), |f| (f.pool.clone(), f.path.clone()));
        self.conditions().set(
            READY,
            Answer::True,
            "Ready",
            format!("its file is \"{path}\" in pool \"{pool}\""),
        );
    }

    fn say_waiting(&mut self, reason: &str, message: String) {
        self.plan.pending = true;
        // While it is tried again, the last failure stays in sight.
        if self.plan.status.state != DiskState::Failed {
            self.say(DiskState::Pending, reason, message);
        }
    }

    /// The host to do a task on, or why there is none yet.
    fn choose(&self, removes: bool) -> Result<(&HostView, i64), (&'static str, String)> {
        let s = self.s;
        let pool = s.disk.spec.file.pool.as_str();
        let image_pool = image_pool(s.disk).filter(|_| !removes);
        let candidates: Vec<&HostView> = match &self.plan.status.host {
            Some(bound) => match self.host(bound) {
                Some(host) => vec![host],
                None => {
                    return Err((
                        "HostNotFound",
                        format!("it is bound to host {bound}, but there is no such Host"),
                    ));
                }
            },
            None => {
                let shared = is_shared(s.hosts, pool);
                let with_pool: Vec<&HostView> = s
                    .hosts
                    .iter()
                    .filter(|h| match h.pool_scope(pool) {
                        Some(PoolScope::Shared) => true,
                        Some(PoolScope::Local) => !shared,
                        None => false,
                    })
                    .collect();
                if !shared && with_pool.len() > 1 {
                    return Err((
                        "WaitingForFirstConsumer",
                        format!(
                            "pool \"{pool}\" is Local to each of {} hosts: the disk is made on the host of the first machine that names it",
                            with_pool.len()
                        ),
                    ));
                }
                if with_pool.is_empty() {
                    return Err((
                        "PoolNotFound",
                        format!("no Host has a pool \"{pool}\" in its spec.pools"),
                    ));
                }
                with_pool
            }
        };
        let mut refusals = Vec::new();
        let mut best = None;
        for host in candidates {
            let why = match &host.availability {
                Availability::NotReady { message, .. } => Some(format!("not ready: {message}")),
                Availability::Ready { .. } => {
                    host.pool_refusal(pool, PoolKind::Disks).or_else(|| {
                        image_pool
                            .as_deref()
                            .and_then(|p| host.pool_refusal(p, PoolKind::Images))
                    })
                }
            };
            match (why, host.epoch()) {
                (None, Some(epoch)) => {
                    let rank = (s.busy.get(host.name()).copied().unwrap_or(0), host.name());
                    if best.as_ref().is_none_or(|(found, _, _)| rank < *found) {
                        best = Some((rank, host, epoch));
                    }
                }
                (why, _) => refusals.push(format!("{}: {}", host.name(), why.unwrap_or_default())),
            }
        }
        best.map(|(_, host, epoch)| (host, epoch)).ok_or_else(|| {
            (
                "NoHostAvailable",
                format!("no host can work on it: {}", refusals.join("; ")),
            )
        })
    }

    fn next_spec(&self, removes: bool) -> VirtualHardDiskTaskSpec {
        let disk = self.s.disk;
        let spec = &disk.spec;
        let BoundFile { pool, path } = file(disk);
        // A file at the path that only this disk's identity gives was made by a task whose report was lost.
        let own_leftover = spec.file.path.is_none()
            && condition(&self.plan.status.conditions, READY)
                .is_some_and(|c| c.reason == "FileExists");
        let action = match (&spec.source, spec.file.mode) {
            _ if removes => TaskAction::Delete,
            (_, FileMode::Adopt) => TaskAction::Adopt,
            _ if own_leftover => TaskAction::Adopt,
            (Some(_), FileMode::Create) => TaskAction::Import,
            (None, FileMode::Create) => TaskAction::Create,
        };
        let makes = matches!(action, TaskAction::Create | TaskAction::Import);
        VirtualHardDiskTaskSpec {
            action,
            virtual_hard_disk_ref: LocalReference {
                name: name(&disk.metadata).to_owned(),
            },
            file: PoolFile { pool, path },
            disk_type: makes.then_some(spec.disk_type),
            size_bytes: spec
                .size
                .as_ref()
                .filter(|_| makes)
                .and_then(|size| i64::try_from(size.bytes()).ok()),
            source: spec
                .source
                .as_ref()
                .filter(|_| action == TaskAction::Import)
                .map(|source| TaskSource {
                    file: SourceFile {
                        pool: source.image.pool.clone(),
                        path: source.image.path.clone(),
                    },
                    format: source.image.format,
                    sha256: source.image.sha256.as_ref().map(|s| s.to_ascii_lowercase()),
                }),
            disk_epoch: self.plan.status.disk_epoch + 1,
        }
    }

    fn create_task(&mut self, removes: bool) {
        let spec = self.next_spec(removes);
        let action = format!("{:?}", spec.action).to_ascii_lowercase();
        let disk = ObjectKey::of(&self.s.disk.metadata);
        let task = if self.s.creation_refused {
            // A namespace's name has no dot, so that no two disks meet here.
            let both = format!("{}.{}", disk.namespace, disk.name);
            let name = task_name(&both, &action, spec.disk_epoch);
            ObjectKey::new(self.s.system_namespace, &name)
        } else {
            let name = task_name(&disk.name, &action, spec.disk_epoch);
            ObjectKey::new(&disk.namespace, &name)
        };
        self.plan.after.push(Action::CreateTask {
            task,
            spec: Box::new(spec),
        });
    }

    /// No task yet.
    fn begin(&mut self) {
        if self.plan.status.attachment.is_some() {
            self.say_waiting(
                "WaitingForTask",
                "a task that is gone still holds it: its host has to be declared off by spec.outOfService.token"
                    .to_owned(),
            );
            return;
        }
        match self.choose(false) {
            Err((reason, message)) => self.say_waiting(reason, message),
            Ok(_) if self.s.creation_refused => self.say_waiting(
                "NamespaceTerminating",
                "its namespace is being deleted: nothing new is made".to_owned(),
            ),
            Ok(_) => {
                self.create_task(false);
                if self.plan.status.state != DiskState::Failed {
                    self.say(DiskState::Pending, "Creating", "its file is to be made");
                }
            }
        }
    }

    /// A task to make the file is there.
    fn follow(&mut self, task: &VirtualHardDiskTask) {
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
                self.assign(task, false);
            }
            return;
        }
        let status = task.status.clone().unwrap_or_default();
        match status.state {
            TaskState::Pending | TaskState::Running => self.wait_for(task),
            TaskState::Succeeded => {
                self.detach_task(task);
                let result =
                    status
                        .result
                        .unwrap_or(paddock_crds::virtual_hard_disk_task::TaskResult {
                            uuid: None,
                            size_bytes: task.spec.size_bytes,
                            allocated_bytes: None,
                        });
                let bytes = |n: i64| u64::try_from(n).ok().map(format_bytes);
                let to = &mut self.plan.status;
                to.file = Some(BoundFile {
                    pool: task.spec.file.pool.clone(),
                    path: task.spec.file.path.clone(),
                });
                to.uuid = result.uuid;
                to.size_bytes = result.size_bytes;
                to.size = result.size_bytes.and_then(bytes);
                to.allocated = result.allocated_bytes.and_then(bytes);
                self.made();
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

    fn wait_for(&mut self, task: &VirtualHardDiskTask) {
        let status = task.status.clone().unwrap_or_default();
        let host = status.host.unwrap_or_default();
        let epoch = self.host(&host).and_then(HostView::epoch);
        if let Some(epoch) = epoch.filter(|e| *e > status.host_epoch.unwrap_or(0)) {
            // The host rejoined: the task is its own again under the new epoch.
            if let Some(a) = &mut self.plan.status.attachment
                && a.owner.uid == uid(&task.metadata)
            {
                a.host_epoch = epoch;
            }
            self.plan.after.push(Action::AssignTask {
                task: ObjectKey::of(&task.metadata),
                host: host.clone(),
                host_epoch: epoch,
            });
        }
        self.plan.pending = true;
        if self.plan.status.state != DiskState::Failed {
            let message = match (&task.spec.action, epoch) {
                (_, None) => format!("host {host} is to make it, but is not ready"),
                (TaskAction::Import, _) => format!("host {host} imports its image"),
                (TaskAction::Adopt, _) => format!("host {host} looks at its file"),
                _ => format!("host {host} makes its file"),
            };
            self.say(DiskState::Creating, "Creating", message);
        }
    }

    /// Gives the disk's attachment to a task, and the task to a host.
    fn assign(&mut self, task: &VirtualHardDiskTask, removes: bool) {
        let given = self.plan.status.attachment.clone();
        let mine = given
            .as_ref()
            .filter(|a| a.owner.uid == uid(&task.metadata));
        if given.is_some() && mine.is_none() {
            self.say_waiting("DiskInUse", "another task still holds it".to_owned());
            return;
        }
        // An epoch that was given out since makes the task worthless: another is made.
        if mine.is_none() && task.spec.disk_epoch <= self.plan.status.disk_epoch {
            self.discard(task);
            return;
        }
        let (host, epoch) = match mine {
            Some(a) => {
                let epoch = self.host(&a.host).and_then(HostView::epoch);
                (
                    a.host.clone(),
                    epoch.unwrap_or(a.host_epoch).max(a.host_epoch),
                )
            }
            None => match self.choose(removes) {
                Ok((host, epoch)) => (host.name().to_owned(), epoch),
                Err((reason, message)) => {
                    self.say_waiting(reason, message);
                    return;
                }
            },
        };
        let pool = self.s.disk.spec.file.pool.clone();
        if !is_shared(self.s.hosts, &pool) && self.plan.status.file.is_none() {
            self.plan.status.host = Some(host.clone());
        }
        let attachment = Attachment {
            owner: AttachmentOwner {
                kind: OwnerKind::VirtualHardDiskTask,
                name: name(&task.metadata).to_owned(),
                uid: uid(&task.metadata).to_owned(),
            },
            host: host.clone(),
            host_epoch: epoch,
            disk_epoch: task.spec.disk_epoch,
        };
        self.plan.status = attached(&self.plan.status, attachment);
        if !removes && self.plan.status.state != DiskState::Failed {
            let message = match task.spec.action {
                TaskAction::Import => format!("host {host} imports its image"),
                TaskAction::Adopt => format!("host {host} looks at its file"),
                _ => format!("host {host} makes its file"),
            };
            self.say(DiskState::Creating, "Creating", message);
        }
        self.plan.after.push(Action::AssignTask {
            task: ObjectKey::of(&task.metadata),
            host,
            host_epoch: epoch,
        });
    }
}

/// Whether a task has no host yet: nobody may have begun it.
#[must_use]
pub fn is_unassigned(task: &VirtualHardDiskTask) -> bool {
    task.status.as_ref().is_none_or(|s| s.host.is_none())
}

/// Whether a task's agent has reported its end.
#[must_use]
pub fn is_over(task: &VirtualHardDiskTask) -> bool {
    task.status
        .as_ref()
        .is_some_and(|s| matches!(s.state, TaskState::Succeeded | TaskState::Failed))
}
