//! One disk's life: its plans applied step by step, with what must never happen checked at each.

use super::{at, metadata, unmade_disk};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use paddock_crds::{
    VirtualHardDisk, VirtualHardDiskStatus, VirtualHardDiskTask, VirtualHardDiskTaskSpec,
    names::{
        DISK_FINALIZER, TASK_FINALIZER,
        condition::{DELETING, READY},
    },
    reference::condition,
    virtual_hard_disk::{Attachment, AttachmentOwner, DiskState, OwnerKind},
    virtual_hard_disk_task::{TaskAction, TaskOrder, TaskResult, TaskState},
};
use paddock_planner::{
    ObjectKey,
    disk::{self, Action, Family, Plan, Snapshot},
    placement::{Availability, HostView},
};
use std::{collections::BTreeMap, sync::Arc};

pub struct Life {
    pub disk: VirtualHardDisk,
    pub tasks: BTreeMap<ObjectKey, Arc<VirtualHardDiskTask>>,
    pub hosts: Vec<HostView>,
    pub family: Family,
    pub wanted: bool,
    pub measured: Option<i64>,
    pub same_file: Option<ObjectKey>,
    pub retry_due: bool,
    pub creation_refused: bool,
    pub now: i64,
    pub gone: bool,
}

impl Life {
    pub fn new(disk: VirtualHardDisk) -> Self {
        Self {
            disk,
            tasks: BTreeMap::new(),
            hosts: vec![super::host("host-a", "2Gi"), super::host("host-b", "2Gi")],
            family: Family::default(),
            wanted: false,
            measured: None,
            same_file: None,
            retry_due: false,
            creation_refused: false,
            now: 1_000,
            gone: false,
        }
    }

    pub fn plan(&self) -> Plan {
        let tasks: Vec<_> = self.tasks.values().cloned().collect();
        let mut busy = BTreeMap::new();
        for task in &tasks {
            if let Some(host) = task.status.as_ref().and_then(|s| s.host.clone()) {
                *busy.entry(host).or_default() += 1;
            }
        }
        disk::decide(&Snapshot {
            disk: &self.disk,
            system_namespace: "paddock-system",
            tasks: &tasks,
            family: &self.family,
            wanted: self.wanted,
            measured: self.measured,
            hosts: &self.hosts,
            busy: &busy,
            same_file: self.same_file.as_ref(),
            retry_due: self.retry_due,
            creation_refused: self.creation_refused,
            now: &at(self.now),
        })
    }

    pub fn step(&mut self, action: &Action) {
        match action {
            Action::AddFinalizer => {
                self.disk.metadata.finalizers = Some(vec![DISK_FINALIZER.to_owned()]);
            }
            Action::RemoveFinalizer => {
                self.disk.metadata.finalizers = None;
                self.gone = true;
            }
            Action::CreateTask { task, spec } => self.create(task, spec),
            Action::AssignTask {
                task,
                host,
                host_epoch,
                order,
            } => {
                let found = Arc::make_mut(self.tasks.get_mut(task).unwrap());
                let status = self.disk.status.as_ref().unwrap();
                assert_eq!(Some(&order.disk_uid), self.disk.metadata.uid.as_ref());
                if found.spec.action == TaskAction::Delete {
                    let named = status.file.as_ref().map(|f| &*f.path);
                    let ends = self.disk.metadata.deletion_timestamp.is_some();
                    let own = named == Some(&*order.file.path);
                    assert!(ends || !own, "its own file");
                    assert!(!own || status.attachment.is_none(), "it is in use");
                } else {
                    let attachment = status.attachment.as_ref();
                    let attachment =
                        attachment.expect("a task is assigned under its attachment only");
                    assert_eq!(Some(&attachment.owner.uid), found.metadata.uid.as_ref());
                    assert_eq!(
                        (
                            &attachment.host,
                            attachment.host_epoch,
                            attachment.disk_epoch
                        ),
                        (host, *host_epoch, order.disk_epoch)
                    );
                    assert!(found.metadata.finalizers.is_some(), "it may vanish");
                }
                let status = found.status.get_or_insert_default();
                assert!(
                    status
                        .order
                        .as_ref()
                        .is_none_or(|old| old == order.as_ref()),
                    "an order was changed"
                );
                status.host = Some(host.clone());
                status.host_epoch = Some(*host_epoch);
                status.order = Some(order.as_ref().clone());
                status.reason = None;
                status.message = None;
            }
            Action::HoldTask { task } => {
                let found = Arc::make_mut(self.tasks.get_mut(task).unwrap());
                found.metadata.finalizers = Some(vec![TASK_FINALIZER.to_owned()]);
            }
            Action::ReleaseTask { task } => {
                let found = Arc::make_mut(self.tasks.get_mut(task).unwrap());
                assert!(disk::is_over(found) || disk::is_unassigned(found));
                found.metadata.finalizers = None;
                if found.metadata.deletion_timestamp.is_some() {
                    self.tasks.remove(task);
                }
            }
            Action::TellTask {
                task,
                state,
                reason,
                message,
            } => {
                let found = Arc::make_mut(self.tasks.get_mut(task).unwrap());
                assert!(disk::is_unassigned(found) || self.hosts[0].ended_below.is_some());
                let status = found.status.get_or_insert_default();
                status.state = *state;
                status.reason = Some(reason.clone());
                status.message = Some(message.clone());
            }
            Action::TellParent {
                parent,
                allocated_bytes,
            } => {
                let mut found = self.family.parent.clone().expect("it has a parent");
                assert_eq!(found.metadata.name.as_ref(), Some(parent));
                let found_status = found.status.clone().unwrap();
                assert_eq!(found_status.attachment, None, "somebody holds {parent}");
                let told = disk::grown_by_merge(&found_status, *allocated_bytes);
                Arc::make_mut(&mut found).status = Some(told);
                self.family.parent = Some(found);
            }
            Action::DeleteTask { task } => {
                let found = Arc::make_mut(self.tasks.get_mut(task).unwrap());
                found.metadata.deletion_timestamp = Some(at(self.now));
            }
            Action::DiscardTask { task } => {
                let found = self.tasks.remove(task).expect("it is there");
                assert!(
                    disk::is_over(&found)
                        || disk::is_unassigned(&found)
                        || self.gone_by_word(&found)
                );
            }
        }
    }

    pub fn gone_by_word(&self, task: &VirtualHardDiskTask) -> bool {
        let status = task.status.as_ref().unwrap();
        self.hosts
            .iter()
            .any(|h| Some(h.name()) == status.host.as_deref() && h.ended_below > status.host_epoch)
    }

    pub fn create(&mut self, task: &ObjectKey, spec: &VirtualHardDiskTaskSpec) {
        let mut metadata = metadata(&task.name, &format!("uid-{}", task.name));
        metadata.namespace = Some(task.namespace.clone());
        metadata.finalizers = Some(vec![TASK_FINALIZER.to_owned()]);
        metadata.owner_references = Some(vec![OwnerReference {
            kind: "VirtualHardDisk".to_owned(),
            uid: self.disk.metadata.uid.clone().unwrap(),
            controller: Some(true),
            ..OwnerReference::default()
        }]);
        let made = VirtualHardDiskTask {
            metadata,
            spec: spec.clone(),
            status: None,
        };
        let old = self.tasks.insert(task.clone(), Arc::new(made));
        assert!(old.is_none(), "{task} was made twice");
    }

    pub fn apply(&mut self, plan: &Plan) {
        for action in &plan.before {
            self.step(action);
        }
        let held = |s: &VirtualHardDiskStatus| s.attachment.clone().map(|a| a.owner.uid);
        let before = self.disk.status.as_ref().and_then(held);
        if let (Some(before), Some(after)) = (before, held(&plan.status)) {
            assert_eq!(before, after, "an attachment was handed over");
        }
        self.disk.status = Some(plan.status.clone());
        for action in &plan.after {
            self.step(action);
        }
    }

    pub fn settle(&mut self) -> Plan {
        for _ in 0..10 {
            let plan = self.plan();
            let still = plan.before.is_empty() && plan.after.is_empty();
            if self.gone || still && self.disk.status.as_ref() == Some(&plan.status) {
                return plan;
            }
            self.apply(&plan);
        }
        panic!("it does not settle: {:?}", self.plan());
    }

    pub fn task(&self) -> &VirtualHardDiskTask {
        assert_eq!(self.tasks.len(), 1, "{:?}", self.tasks.keys());
        self.tasks.values().next().unwrap()
    }

    pub fn order(&self) -> &TaskOrder {
        let status = self.task().status.as_ref().unwrap();
        status.order.as_ref().unwrap()
    }

    pub fn report(&mut self, state: TaskState, reason: Option<&str>) {
        let task = Arc::make_mut(self.tasks.values_mut().next().unwrap());
        let status = task.status.get_or_insert_default();
        status.state = state;
        status.reason = reason.map(str::to_owned);
        status.message = reason.map(|r| format!("told {r}"));
        if state == TaskState::Succeeded {
            status.result = Some(TaskResult {
                uuid: Some("11111111-2222-3333-4444-555555555555".to_owned()),
                size_bytes: Some(1 << 30),
                allocated_bytes: Some(3 << 20),
                ..TaskResult::default()
            });
        }
    }

    /// A person's task, made now.
    pub fn ask(&mut self, name: &str, spec: VirtualHardDiskTaskSpec) -> ObjectKey {
        let mut metadata = metadata(name, &format!("uid-{name}"));
        metadata.creation_timestamp = Some(at(self.now));
        let task = VirtualHardDiskTask {
            metadata,
            spec,
            status: None,
        };
        self.tasks.insert(super::key(name), Arc::new(task));
        super::key(name)
    }

    pub fn ready(&self) -> (String, String, String) {
        let status = self.disk.status.as_ref().unwrap();
        let c = condition(&status.conditions, READY).unwrap();
        (c.status.clone(), c.reason.clone(), c.message.clone())
    }

    pub fn deleting(&self) -> (String, String) {
        let status = self.disk.status.as_ref().unwrap();
        let c = condition(&status.conditions, DELETING).unwrap();
        (c.reason.clone(), c.message.clone())
    }

    pub fn state(&self) -> DiskState {
        self.disk.status.as_ref().unwrap().state
    }

    pub fn delete(&mut self) {
        self.disk.metadata.deletion_timestamp = Some(at(self.now));
    }

    pub fn silence(&mut self, name: &str) {
        for host in &mut self.hosts {
            if host.name() == name {
                host.availability = Availability::NotReady {
                    reason: "LeaseExpired",
                    message: "silent".to_owned(),
                };
            }
        }
    }
}

pub fn shared() -> Life {
    Life::new(unmade_disk("d", "shared"))
}

pub fn held_by_machine(disk: &mut VirtualHardDisk) {
    let status = disk.status.get_or_insert_default();
    status.attachment = Some(Attachment {
        owner: AttachmentOwner {
            kind: OwnerKind::VirtualMachine,
            name: "web".to_owned(),
            uid: "uid-web".to_owned(),
        },
        host: "host-a".to_owned(),
        host_epoch: 1,
        disk_epoch: 2,
    });
    status.disk_epoch = 2;
    disk.metadata.finalizers = Some(vec![DISK_FINALIZER.to_owned()]);
}
