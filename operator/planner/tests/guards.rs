//! What keeps one object's trouble from others, and what is said of a disk from being more than is known.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{
    Model, at, disks::dynamic, host, key, life::Life, machine, ready_disk, unmade_disk, with_disk,
};
use paddock_crds::{
    VirtualHardDiskTaskSpec,
    names::condition::{HEALTHY, PROGRESSING, READY},
    reference::condition,
    virtual_hard_disk::{DiskState, DiskType, FileMode},
    virtual_hard_disk_task::{TaskAction, TaskResult, TaskState},
    virtual_machine::Bus,
};
use paddock_planner::{ObjectKey, machine::Action};
use std::sync::Arc;

fn made() -> Life {
    Life::new(dynamic("d"))
}

#[test]
fn an_adopted_disk_is_converted_only_where_a_type_is_asked_for() {
    let adopted = |wanted: Option<DiskType>| {
        let mut life = made();
        life.disk.spec.file.mode = FileMode::Adopt;
        life.disk.spec.file.path = Some("d.vhd".to_owned());
        life.disk.spec.size = None;
        life.disk.status.as_mut().unwrap().disk_type = Some(DiskType::Fixed);
        life.disk.spec.disk_type = wanted;
        life.settle();
        life
    };
    for wanted in [None, Some(DiskType::Fixed)] {
        let life = adopted(wanted);
        assert!(life.tasks.is_empty(), "{wanted:?}");
        let status = life.disk.status.as_ref().unwrap();
        assert_eq!(condition(&status.conditions, PROGRESSING), None);
    }
    let life = adopted(Some(DiskType::Dynamic));
    assert_eq!(life.task().spec.action, TaskAction::Convert);
    assert_eq!(life.order().disk_type, Some(DiskType::Dynamic));
    // A disk that is made is Dynamic where nothing is said.
    let mut life = made();
    life.disk.status.as_mut().unwrap().disk_type = Some(DiskType::Fixed);
    life.settle();
    assert_eq!(life.order().disk_type, Some(DiskType::Dynamic));
}

#[test]
fn an_adopted_disks_epochs_go_on_where_its_files_were() {
    let mut life = Life::new(unmade_disk("d", "shared"));
    life.disk.spec.file.mode = FileMode::Adopt;
    life.disk.spec.file.path = Some("t/old.vhd".to_owned());
    life.settle();
    assert_eq!(life.order().disk_epoch, 1);
    life.report(TaskState::Succeeded, None);
    let task = Arc::make_mut(life.tasks.values_mut().next().unwrap());
    let status = task.status.as_mut().unwrap();
    status.result.as_mut().unwrap().disk_epoch = Some(57);
    life.settle();
    let status = life.disk.status.as_ref().unwrap();
    assert_eq!((status.state, status.disk_epoch), (DiskState::Ready, 57));
    life.disk.spec.size = Some("2Gi".parse().unwrap());
    life.settle();
    assert_eq!(life.order().disk_epoch, 58);
}

/// Has the disk checked, with these findings.
fn check(life: &mut Life, findings: &[&str]) {
    life.now += 10;
    let name = format!("check-{}", life.now);
    life.ask(&name, VirtualHardDiskTaskSpec::new(TaskAction::Check, "d"));
    life.settle();
    let found = Arc::make_mut(life.tasks.get_mut(&key(&name)).unwrap());
    let status = found.status.as_mut().unwrap();
    status.state = TaskState::Succeeded;
    status.result = Some(TaskResult {
        findings: Some(findings.iter().map(|&f| f.to_owned()).collect()),
        ..TaskResult::default()
    });
    life.settle();
    life.tasks.remove(&key(&name));
}

fn health(life: &Life) -> Option<(String, String, String)> {
    let status = life.disk.status.as_ref().unwrap();
    let c = condition(&status.conditions, HEALTHY)?;
    Some((c.status.clone(), c.reason.clone(), c.message.clone()))
}

#[test]
fn only_an_error_makes_a_disk_unhealthy_and_only_that_file() {
    let mut life = made();
    life.settle();
    let told = |life: &Life| health(life).unwrap();
    for (findings, status, reason) in [
        (&[][..], "True", "Checked"),
        (&["note: 2 MiB leak"], "True", "SlightFindings"),
        (
            &[
                "warning: the copy of the footer differs",
                "note: 2 MiB leak",
            ],
            "True",
            "SlightFindings",
        ),
        (
            &["error: block 3 lies outside the file", "note: 2 MiB leak"],
            "False",
            "Damaged",
        ),
    ] {
        check(&mut life, findings);
        let (found, why, message) = told(&life);
        assert_eq!((&*found, &*why), (status, reason), "{findings:?}");
        let time = at(life.now).0;
        let found = match findings {
            [] => "nothing is wrong with it".to_owned(),
            _ => findings.join("; "),
        };
        assert_eq!(
            message,
            format!("file \"d.vhd\" in pool \"default\", checked at {time}: {found}")
        );
    }
    // The file that comes in its place was not checked.
    life.disk.spec.disk_type = Some(DiskType::Fixed);
    life.settle();
    assert!(health(&life).is_some());
    life.report(TaskState::Succeeded, None);
    life.settle();
    assert_eq!(health(&life), None);
}

/// A machine on a disk that is to be made in a pool that every host has for itself.
fn with_unmade(model: &mut Model, name: &str, mebibytes: u64) -> ObjectKey {
    model.add_disk(unmade_disk(name, "default"));
    model.add(with_disk(machine(name, mebibytes), name, Bus::Virtio))
}

#[test]
fn a_machine_on_a_hopeless_disk_holds_no_memory() {
    let mut model = Model::new(vec![host("host-a", "1Gi")]);
    let bad = with_unmade(&mut model, "bad", 512);
    let plan = model.plan(&bad);
    // While its disk is being made, its place is kept.
    let reserved = plan.reservation.clone().unwrap();
    assert!(reserved.memory > 512 << 20);
    model.apply(&bad, &plan);
    let disk = Arc::make_mut(model.disks.get_mut("bad").unwrap());
    let status = disk.status.as_mut().unwrap();
    assert_eq!(status.host.as_deref(), Some("host-a"));
    status.state = DiskState::Failed;
    let plan = model.plan(&bad);
    let reserved = plan.reservation.unwrap();
    assert_eq!((&*reserved.host, reserved.memory), ("host-a", 0));
    assert_eq!(reserved.disks, ["bad"]);
    assert_eq!(plan.actions, []);
    assert_eq!(
        model.condition(&bad, READY).reason,
        "VirtualHardDiskNotReady"
    );
    // Once the disk is there, what the machine needs is looked for as ever.
    let disk = Arc::make_mut(model.disks.get_mut("bad").unwrap());
    disk.status = ready_disk("bad", Some("host-a")).status;
    let plan = model.plan(&bad);
    assert!(plan.reservation.unwrap().memory > 512 << 20);
    assert!(matches!(
        plan.actions.last(),
        Some(Action::CreateInstance(_))
    ));
}
