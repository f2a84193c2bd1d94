//! Tasks on a disk that people ask for, and what becomes of one whose operator or host dies.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{
    asked::{asked, asked_with, end, path, told},
    at,
    disks::{child, dynamic, file, kept_undo},
    key,
    life::{Life, held_by_machine},
};
use paddock_crds::{
    ByteQuantity, VirtualHardDisk, VirtualHardDiskTaskSpec,
    names::{TASK_FINALIZER, condition::HEALTHY},
    reference::{PoolFile, condition},
    virtual_hard_disk::{Access, DiskState},
    virtual_hard_disk_task::{Shrink, TaskAction, TaskResult, TaskState},
};
use paddock_planner::{
    disk::{self, Action},
    placement::Availability,
};
use std::sync::Arc;

#[test]
fn users_tasks_wait_for_the_machine_come_in_order_and_stay() {
    let mut life = Life::new(dynamic("d"));
    held_by_machine(&mut life.disk);
    let second = asked(&mut life, "b-check", TaskAction::Check);
    let third = asked(&mut life, "a-check", TaskAction::Check);
    life.settle();
    for task in [&second, &third] {
        assert_eq!(
            told(&life, task),
            (TaskState::Pending, Some("DiskInUse".to_owned()))
        );
    }
    life.disk.status = Some(disk::detached(life.disk.status.as_ref().unwrap()));
    life.settle();
    assert!(!disk::is_unassigned(&life.tasks[&second]));
    assert!(disk::is_unassigned(&life.tasks[&third]));
    end(
        &mut life,
        &second,
        TaskState::Succeeded,
        TaskResult {
            findings: Some(vec!["error: block 3 lies outside the file".to_owned()]),
            ..TaskResult::default()
        },
    );
    life.settle();
    assert!(!disk::is_unassigned(&life.tasks[&third]));
    let health = |life: &Life| {
        let status = life.disk.status.as_ref().unwrap();
        let c = condition(&status.conditions, HEALTHY).unwrap();
        (c.status.clone(), c.message.clone())
    };
    assert_eq!(
        health(&life),
        (
            "False".to_owned(),
            "file \"d.vhd\" in pool \"default\", checked at 1970-01-01T00:16:42Z: error: block 3 lies outside the file".to_owned()
        )
    );
    end(
        &mut life,
        &third,
        TaskState::Succeeded,
        TaskResult::default(),
    );
    life.settle();
    assert_eq!(health(&life).0, "True");
    assert_eq!(life.state(), DiskState::Ready);
    assert_eq!(life.tasks.len(), 2);
    for task in life.tasks.values() {
        assert_eq!(task.metadata.finalizers, None);
    }
}

#[test]
fn an_operators_death_between_attachment_and_assignment_changes_nothing() {
    let mut life = Life::new(dynamic("d"));
    let task = asked(&mut life, "c", TaskAction::Compact);
    let mut plan = life.plan();
    assert_eq!(plan.before, [Action::HoldTask { task: task.clone() }]);
    let first = plan.after.clone();
    plan.after.clear();
    life.apply(&plan);
    // The next operator finds the attachment, and gives the same order.
    let again = life.plan();
    assert_eq!(again.after, first);
    assert_eq!(again.status.attachment, plan.status.attachment);
    life.settle();
    end(
        &mut life,
        &task,
        TaskState::Succeeded,
        TaskResult::default(),
    );
    let mut plan = life.plan();
    plan.after.clear();
    life.apply(&plan);
    let switched = path(&life).to_owned();
    assert!(switched.ends_with("-2.vhd"));
    // The finalizer was not taken off yet: the result is not taken over a second time.
    life.settle();
    assert_eq!(path(&life), switched);
    let status = life.disk.status.as_ref().unwrap();
    assert_eq!(status.obsolete_files, [file("d.vhd")]);
    assert_eq!(life.tasks[&task].metadata.finalizers, None);
}

#[test]
fn a_deleted_task_is_let_go_once_its_agent_has_left_off() {
    let mut life = Life::new(dynamic("d"));
    let task = asked(&mut life, "c", TaskAction::Compact);
    life.settle();
    Arc::make_mut(life.tasks.get_mut(&task).unwrap())
        .metadata
        .deletion_timestamp = Some(at(5));
    life.settle();
    assert_eq!(life.state(), DiskState::Working);
    assert_eq!(
        life.tasks[&task].metadata.finalizers,
        Some(vec![TASK_FINALIZER.to_owned()])
    );
    end(&mut life, &task, TaskState::Failed, TaskResult::default());
    life.settle();
    assert!(life.tasks.is_empty());
    assert_eq!((life.state(), path(&life)), (DiskState::Ready, "d.vhd"));
}

#[test]
fn a_host_declared_off_frees_the_disk_and_leaves_no_file_behind() {
    let mut life = Life::new(dynamic("d"));
    let task = asked(&mut life, "c", TaskAction::Compact);
    life.settle();
    let target = life.order().target.clone().unwrap();
    life.silence("host-a");
    life.hosts[0].ended_below = Some(2);
    life.settle();
    assert_eq!(
        told(&life, &task),
        (TaskState::Failed, Some("HostOutOfService".to_owned()))
    );
    let status = life.disk.status.as_ref().unwrap();
    assert_eq!(
        (life.state(), &status.attachment),
        (DiskState::Ready, &None)
    );
    assert_eq!(status.obsolete_files, [file(&target.path)]);
    life.hosts[0].availability = Availability::Ready { epoch: 2 };
    life.tasks.clear();
    life.settle();
    assert_eq!(life.order().file.path, target.path);
    assert_eq!(path(&life), "d.vhd");
}

#[test]
fn what_was_made_on_a_host_declared_off_before_it_was_taken_over_is_removed() {
    let mut life = Life::new(dynamic("d"));
    let task = asked(&mut life, "c", TaskAction::Compact);
    life.settle();
    let target = life.order().target.clone().unwrap();
    end(
        &mut life,
        &task,
        TaskState::Succeeded,
        TaskResult::default(),
    );
    life.silence("host-a");
    life.hosts[0].ended_below = Some(2);
    life.settle();
    let status = life.disk.status.as_ref().unwrap();
    assert_eq!(status.obsolete_files, [file(&target.path)]);
    assert_eq!(path(&life), "d.vhd");
    assert_eq!(life.tasks[&task].metadata.finalizers, None);
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let refusal = |disk: VirtualHardDisk, action, set: &dyn Fn(&mut Life)| {
        let mut life = Life::new(disk);
        set(&mut life);
        let task = asked(&mut life, "x", action);
        life.settle();
        let (state, reason) = told(&life, &task);
        assert_eq!(state, TaskState::Failed);
        assert_eq!(life.disk.status.as_ref().unwrap().attachment, None);
        let status = life.tasks[&task].status.clone().unwrap();
        (reason.unwrap(), status.message.unwrap())
    };
    let nothing = |_: &mut Life| {};
    let children = |life: &mut Life| {
        let all = (0..7).map(|n| Arc::new(child(&format!("k{n}"), "d")));
        life.family.children = all.collect();
    };
    let (reason, message) = refusal(dynamic("d"), TaskAction::Compact, &children);
    assert_eq!(reason, "HasChildren");
    assert!(
        message.contains("\"k0\", \"k1\", \"k2\", \"k3\", \"k4\" and 2 more"),
        "{message}"
    );
    for (disk, action, expected) in [
        (dynamic("d"), TaskAction::Merge, "NotDifferencing"),
        (dynamic("d"), TaskAction::Delete, "NotForUsers"),
        (dynamic("d"), TaskAction::Create, "NotForUsers"),
        (dynamic("d"), TaskAction::Convert, "NotForUsers"),
        (dynamic("d"), TaskAction::CommitUndo, "NoUndoDisk"),
        (child("d", "base"), TaskAction::Compact, "NotDynamic"),
        (child("d", "base"), TaskAction::Merge, "ParentNotFound"),
    ] {
        assert_eq!(refusal(disk, action, &nothing).0, expected, "{action:?}");
    }
    let siblings = |life: &mut Life| {
        life.family.parent = Some(Arc::new(dynamic("base")));
        life.family.siblings = vec![Arc::new(child("other", "base"))];
    };
    let (reason, message) = refusal(child("d", "base"), TaskAction::Merge, &siblings);
    assert_eq!(reason, "ParentHasOtherChildren");
    assert!(message.contains("\"other\""));
    let read_only = |life: &mut Life| {
        let mut base = dynamic("base");
        base.spec.access = Access::ReadOnly;
        life.family.parent = Some(Arc::new(base));
    };
    let (reason, _) = refusal(child("d", "base"), TaskAction::Merge, &read_only);
    assert_eq!(reason, "ParentReadOnly");
    let undo = |life: &mut Life| {
        life.disk.status.as_mut().unwrap().undo = Some(kept_undo("d-2.vud"));
    };
    assert_eq!(
        refusal(dynamic("d"), TaskAction::Compact, &undo).0,
        "HasUndoDisk"
    );
}

#[test]
fn a_resize_is_not_below_what_the_spec_asks_for() {
    let mut life = Life::new(dynamic("d"));
    let smaller = VirtualHardDiskTaskSpec {
        size: Some(ByteQuantity::from_bytes(1 << 29)),
        shrink: Some(Shrink::Force),
        ..VirtualHardDiskTaskSpec::new(TaskAction::Resize, "d")
    };
    let refused = asked_with(&mut life, "r1", smaller.clone());
    life.settle();
    assert_eq!(told(&life, &refused).1.as_deref(), Some("SizeAsked"));
    life.disk.spec.size = None;
    let done = asked_with(&mut life, "r2", smaller);
    life.settle();
    let order = life.tasks[&done].status.clone().unwrap().order.unwrap();
    assert_eq!(
        (order.size_bytes, order.shrink),
        (Some(1 << 29), Shrink::Force)
    );
}

#[test]
fn an_export_lies_in_the_folder_of_its_namespace() {
    let mut life = Life::new(dynamic("d"));
    for (path, state, reason) in [
        ("out.img", TaskState::Failed, Some("PathNotAllowed")),
        (
            "other/d.vhd.repair",
            TaskState::Failed,
            Some("PathNotAllowed"),
        ),
        ("t/out.img", TaskState::Pending, None),
    ] {
        let spec = VirtualHardDiskTaskSpec {
            target: Some(PoolFile {
                pool: "default".to_owned(),
                path: path.to_owned(),
            }),
            ..VirtualHardDiskTaskSpec::new(TaskAction::Export, "d")
        };
        let task = asked_with(&mut life, &path.replace('/', "-"), spec);
        life.settle();
        let told = told(&life, &task);
        assert_eq!((told.0, told.1.as_deref()), (state, reason), "{path}");
    }
    let assigned = life.tasks[&key("t-out.img")].status.as_ref().unwrap();
    let target = assigned.order.as_ref().and_then(|o| o.target.as_ref());
    assert_eq!(target.unwrap().path, "t/out.img");
}
