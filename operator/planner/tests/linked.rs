//! Linked disks: made and kept on their host, the source of other disks, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{Model, host, key, life::Life, machine, ready_disk, unmade_disk, with_disk};
use paddock_crds::{
    VirtualHardDisk,
    names::condition::READY,
    reference::LocalReference,
    virtual_hard_disk::{BoundFile, DiskSource, DiskState, DiskType, LinkedDisk},
    virtual_hard_disk_task::{TaskAction, TaskResult, TaskState},
    virtual_machine::{Bus, MachineState},
};
use std::sync::Arc;

fn device() -> LinkedDisk {
    LinkedDisk {
        host: "host-b".to_owned(),
        device: "/dev/disk/by-id/ata-X".to_owned(),
        serial: None,
    }
}

fn unmade(name: &str) -> VirtualHardDisk {
    let mut disk = unmade_disk(name, "shared");
    disk.spec.size = None;
    disk.spec.disk_type = Some(DiskType::Linked);
    disk.spec.linked = Some(device());
    disk
}

fn made(name: &str) -> VirtualHardDisk {
    let mut disk = ready_disk(name, Some("host-b"));
    disk.spec = unmade(name).spec;
    disk.status.as_mut().unwrap().disk_type = Some(DiskType::Linked);
    disk
}

fn named(name: &str) -> Option<LocalReference> {
    Some(LocalReference {
        name: name.to_owned(),
    })
}

#[test]
fn a_linked_disk_is_made_on_its_host_and_stays_there() {
    let mut life = Life::new(unmade("d"));
    life.settle();
    let task = life.task();
    assert_eq!(task.spec.action, TaskAction::Create);
    assert_eq!(
        task.status.as_ref().unwrap().host.as_deref(),
        Some("host-b")
    );
    let order = life.order();
    assert_eq!(order.device, Some(device()));
    assert_eq!(
        (order.disk_type, order.size_bytes),
        (Some(DiskType::Linked), None)
    );
    let task = Arc::make_mut(life.tasks.values_mut().next().unwrap());
    let status = task.status.as_mut().unwrap();
    status.state = TaskState::Succeeded;
    status.result = Some(TaskResult {
        size_bytes: Some(5 << 30),
        disk_type: Some(DiskType::Linked),
        serial: Some("Z1F2".to_owned()),
        ..TaskResult::default()
    });
    life.settle();
    let status = life.disk.status.as_ref().unwrap();
    assert_eq!(status.state, DiskState::Ready);
    assert_eq!(status.host.as_deref(), Some("host-b"));
    assert_eq!(status.serial.as_deref(), Some("Z1F2"));
    assert_eq!(status.size.as_deref(), Some("5Gi"));
    // Nothing more is wished for.
    assert!(life.tasks.is_empty());
}

#[test]
fn the_descriptor_of_a_linked_disk_is_no_other_disk() {
    let mut life = Life::new(unmade_disk("d", "shared"));
    life.settle();
    let task = Arc::make_mut(life.tasks.values_mut().next().unwrap());
    let status = task.status.as_mut().unwrap();
    status.state = TaskState::Succeeded;
    status.result = Some(TaskResult {
        disk_type: Some(DiskType::Linked),
        ..TaskResult::default()
    });
    life.settle();
    assert_eq!(life.state(), DiskState::Failed);
    assert_eq!(life.ready().1, "UnsupportedFormat");
}

#[test]
fn a_disk_is_made_of_a_physical_one_on_its_host() {
    let mut disk = unmade_disk("d", "default");
    disk.spec.size = None;
    disk.spec.source = Some(DiskSource {
        linked_ref: named("old"),
        ..DiskSource::default()
    });
    let mut life = Life::new(disk);
    life.settle();
    assert_eq!(life.ready().1, "SourceNotFound");
    life.family.source = Some(Arc::new(ready_disk("old", Some("host-b"))));
    life.settle();
    assert_eq!(life.ready().1, "SourceNotLinked");
    life.family.source = Some(Arc::new(made("old")));
    life.settle();
    let task = life.task();
    assert_eq!(task.spec.action, TaskAction::Import);
    assert_eq!(
        task.status.as_ref().unwrap().host.as_deref(),
        Some("host-b")
    );
    let order = life.order();
    let linked = order.linked.as_ref().unwrap();
    assert_eq!(
        BoundFile {
            pool: linked.pool.clone(),
            path: linked.path.clone(),
        },
        made("old").status.unwrap().file.unwrap()
    );
    assert!(order.clone.is_empty() && order.source.is_none());
    assert_eq!(life.ready().2, "host host-b copies a physical disk");
    assert_eq!(
        life.disk.status.as_ref().unwrap().host.as_deref(),
        Some("host-b")
    );
}

#[test]
fn a_linked_disk_is_no_copys_source_and_no_parent() {
    let mut copy = unmade_disk("d", "default");
    copy.spec.source = Some(DiskSource {
        clone_ref: named("old"),
        ..DiskSource::default()
    });
    let mut life = Life::new(copy);
    life.family.source = Some(Arc::new(made("old")));
    life.settle();
    assert_eq!(life.ready().1, "SourceLinked");
    let mut child = unmade_disk("d", "default");
    child.spec.disk_type = Some(DiskType::Differencing);
    child.spec.size = None;
    child.spec.parent_ref = named("old");
    let mut life = Life::new(child);
    life.family.parent = Some(Arc::new(made("old")));
    life.settle();
    assert_eq!(life.ready().1, "ParentLinked");
    assert!(life.tasks.is_empty());
}

#[test]
fn no_work_is_done_on_a_linked_disk() {
    for action in [
        TaskAction::Compact,
        TaskAction::Merge,
        TaskAction::Resize,
        TaskAction::Check,
        TaskAction::Export,
    ] {
        let mut life = Life::new(made("d"));
        let spec = serde_json::from_value(serde_json::json!({
            "action": action,
            "virtualHardDiskRef": {"name": "d"},
        }));
        life.create(&key("asked"), &spec.unwrap());
        let task = Arc::make_mut(life.tasks.get_mut(&key("asked")).unwrap());
        // Made by a person.
        task.metadata.owner_references = None;
        life.settle();
        let status = life.tasks[&key("asked")].status.clone().unwrap();
        assert_eq!(
            (status.state, status.reason.as_deref()),
            (TaskState::Failed, Some("Linked")),
            "{action:?}"
        );
    }
}

#[test]
fn a_machine_never_gets_a_linked_disk() {
    let mut model = Model::new(vec![host("host-b", "2Gi")]);
    model.add_disk(made("old"));
    let vm = model.add(with_disk(machine("web", 64), "old", Bus::Virtio));
    model.settle(&vm);
    let c = model.condition(&vm, READY);
    assert_eq!(
        (c.reason.as_str(), c.message.as_str()),
        (
            "DiskLinked",
            "disk \"disk-0\": VirtualHardDisk \"old\" stands for a physical disk, which no machine may use: make a disk of it by source.linkedRef, and name that"
        )
    );
    let state = model.machines[&vm].status.as_ref().unwrap().state;
    assert_eq!(state, MachineState::Failed);
    assert!(model.instances.is_empty());
}
