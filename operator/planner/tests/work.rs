//! What is done to a disk that has its file: conversions, changes of size, tasks that users ask for, files left behind.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{
    at, key,
    life::{Life, held_by_machine},
    metadata, ready_disk, unmade_disk,
};
use paddock_crds::{
    ByteQuantity, VirtualHardDisk, VirtualHardDiskTask, VirtualHardDiskTaskSpec,
    names::{
        DISK_FINALIZER, TASK_FINALIZER,
        condition::{HEALTHY, PROGRESSING},
    },
    reference::{LocalReference, PoolFile, condition},
    virtual_hard_disk::{
        Access, BoundFile, CompactionPolicy, Defragment, DiskState, DiskType, UndoDisk, UndoState,
    },
    virtual_hard_disk_task::{Shrink, TaskAction, TaskResult, TaskState},
};
use paddock_planner::{
    ObjectKey,
    disk::{self, Action},
    placement::Availability,
};
use std::{collections::BTreeMap, sync::Arc};

fn dynamic(name: &str) -> VirtualHardDisk {
    let mut disk = ready_disk(name, Some("host-a"));
    disk.metadata.finalizers = Some(vec![DISK_FINALIZER.to_owned()]);
    disk.status.as_mut().unwrap().disk_type = Some(DiskType::Dynamic);
    disk
}

fn child(name: &str, parent: &str) -> VirtualHardDisk {
    let mut disk = dynamic(name);
    disk.spec.disk_type = Some(DiskType::Differencing);
    disk.spec.size = None;
    disk.spec.parent_ref = Some(LocalReference {
        name: parent.to_owned(),
    });
    let status = disk.status.as_mut().unwrap();
    status.disk_type = Some(DiskType::Differencing);
    status.lineage = vec![parent.to_owned()];
    status.parent_files = vec![file(&format!("{parent}.vhd"))];
    disk
}

fn kept_undo() -> UndoDisk {
    UndoDisk {
        file: file("d-2.vud"),
        machine: "web".to_owned(),
        machine_uid: Some("uid-web".to_owned()),
        ran: true,
        state: UndoState::Kept,
    }
}

fn file(path: &str) -> BoundFile {
    BoundFile {
        pool: "default".to_owned(),
        path: path.to_owned(),
    }
}

fn asked(life: &mut Life, name: &str, action: TaskAction) -> ObjectKey {
    asked_with(life, name, bare_task(action))
}

fn bare_task(action: TaskAction) -> VirtualHardDiskTaskSpec {
    VirtualHardDiskTaskSpec {
        action,
        virtual_hard_disk_ref: LocalReference {
            name: "d".to_owned(),
        },
        size: None,
        shrink: None,
        precompact: None,
        defragment: None,
        target: None,
        format: None,
    }
}

fn asked_with(life: &mut Life, name: &str, spec: VirtualHardDiskTaskSpec) -> ObjectKey {
    let mut metadata = metadata(name, &format!("uid-{name}"));
    life.now += 1;
    metadata.creation_timestamp = Some(at(life.now));
    let task = VirtualHardDiskTask {
        metadata,
        spec,
        status: None,
    };
    life.tasks.insert(key(name), Arc::new(task));
    key(name)
}

fn told(life: &Life, task: &ObjectKey) -> (TaskState, Option<String>) {
    let status = life.tasks[task].status.clone().unwrap_or_default();
    (status.state, status.reason)
}

fn end(life: &mut Life, task: &ObjectKey, state: TaskState, result: TaskResult) {
    let found = Arc::make_mut(life.tasks.get_mut(task).unwrap());
    let status = found.status.as_mut().expect("it was assigned");
    assert!(status.order.is_some(), "{task} was never assigned");
    status.state = state;
    if state == TaskState::Failed {
        status.reason = Some("PoolFull".to_owned());
        status.message = Some("no room".to_owned());
    }
    status.result = Some(result);
}

fn progressing(life: &Life) -> Option<(String, String)> {
    let status = life.disk.status.as_ref().unwrap();
    condition(&status.conditions, PROGRESSING).map(|c| (c.status.clone(), c.reason.clone()))
}

fn path(life: &Life) -> &str {
    &life
        .disk
        .status
        .as_ref()
        .unwrap()
        .file
        .as_ref()
        .unwrap()
        .path
}

#[test]
fn a_changed_type_converts_switches_and_then_removes_the_old_file() {
    let mut life = Life::new(dynamic("d"));
    life.settle();
    assert!(life.tasks.is_empty());
    life.disk.spec.disk_type = Some(DiskType::Fixed);
    life.settle();
    let convert = key("d-convert-2");
    let order = life.order().clone();
    assert_eq!((order.disk_epoch, &*order.file.path), (2, "d.vhd"));
    let target = order.target.unwrap();
    assert!(target.path.starts_with("t/d-") && target.path.ends_with("-2.vhd"));
    assert_eq!(order.disk_type, Some(DiskType::Fixed));
    assert_eq!(life.state(), DiskState::Working);
    assert_eq!(life.ready().0, "False");
    end(
        &mut life,
        &convert,
        TaskState::Succeeded,
        TaskResult::default(),
    );
    // The switch is written in the write that ends the attachment, before anything removes the old file.
    let plan = life.plan();
    assert_eq!(
        plan.status.file,
        Some(BoundFile {
            pool: target.pool,
            path: target.path.clone()
        })
    );
    assert_eq!(plan.status.obsolete_files, [file("d.vhd")]);
    assert_eq!(plan.status.attachment, None);
    assert_eq!(plan.after, [Action::DiscardTask { task: convert }]);
    life.apply(&plan);
    life.settle();
    assert_eq!(life.task().spec.action, TaskAction::Delete);
    assert_eq!(life.order().file.path, "d.vhd");
    // It needs no attachment: a machine may start meanwhile.
    assert_eq!(life.state(), DiskState::Ready);
    life.report(TaskState::Succeeded, None);
    life.settle();
    assert!(life.tasks.is_empty());
    let status = life.disk.status.as_ref().unwrap();
    assert_eq!(status.disk_type, Some(DiskType::Fixed));
    assert_eq!(status.obsolete_files, []);
    assert_eq!((path(&life), progressing(&life)), (&*target.path, None));
}

#[test]
fn a_raised_size_waits_for_the_machine_and_then_grows() {
    let mut life = Life::new(dynamic("d"));
    held_by_machine(&mut life.disk);
    life.disk.spec.size = Some(ByteQuantity::from_bytes(2 << 30));
    life.settle();
    assert!(life.tasks.is_empty());
    assert_eq!(life.state(), DiskState::Attached);
    assert_eq!(
        progressing(&life),
        Some(("False".to_owned(), "DiskInUse".to_owned()))
    );
    life.disk.status = Some(disk::detached(life.disk.status.as_ref().unwrap()));
    life.settle();
    assert_eq!(life.task().spec.action, TaskAction::Resize);
    let order = life.order();
    assert_eq!((order.size_bytes, order.disk_epoch), (Some(2 << 30), 3));
    assert_eq!(order.shrink, Shrink::Refuse);
    let task = ObjectKey::of(&life.task().metadata);
    end(&mut life, &task, TaskState::Failed, TaskResult::default());
    let plan = life.settle();
    // The old disk is as usable as before, and it is tried again.
    assert!(plan.retry);
    assert_eq!(life.state(), DiskState::Ready);
    assert_eq!(
        progressing(&life),
        Some(("False".to_owned(), "PoolFull".to_owned()))
    );
    life.retry_due = true;
    let plan = life.plan();
    life.apply(&plan);
    life.retry_due = false;
    life.settle();
    assert_eq!(life.order().disk_epoch, 4);
    let task = ObjectKey::of(&life.task().metadata);
    end(
        &mut life,
        &task,
        TaskState::Succeeded,
        TaskResult::default(),
    );
    life.settle();
    let status = life.disk.status.as_ref().unwrap();
    assert_eq!(status.size.as_deref(), Some("2Gi"));
    assert!(life.tasks.is_empty() && progressing(&life).is_none());
}

#[test]
fn a_wish_taken_back_leaves_nothing() {
    let mut life = Life::new(dynamic("d"));
    life.disk.spec.disk_type = Some(DiskType::Fixed);
    let plan = life.plan();
    life.apply(&plan);
    assert!(disk::is_unassigned(life.task()));
    life.disk.spec.disk_type = Some(DiskType::Dynamic);
    life.settle();
    assert!(life.tasks.is_empty());
    assert_eq!(life.state(), DiskState::Ready);
}

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
        life.disk.status.as_mut().unwrap().undo = Some(kept_undo());
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
        ..life_task(TaskAction::Resize)
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

fn life_task(action: TaskAction) -> VirtualHardDiskTaskSpec {
    VirtualHardDiskTaskSpec {
        action,
        virtual_hard_disk_ref: LocalReference {
            name: "d".to_owned(),
        },
        size: None,
        shrink: None,
        precompact: None,
        defragment: None,
        target: None,
        format: None,
    }
}

#[test]
fn a_child_is_made_where_its_parent_is_and_when_nobody_uses_that() {
    let mut unmade = unmade_disk("d", "default");
    unmade.spec.disk_type = Some(DiskType::Differencing);
    unmade.spec.size = None;
    unmade.spec.parent_ref = Some(LocalReference {
        name: "base".to_owned(),
    });
    let mut life = Life::new(unmade);
    life.settle();
    assert_eq!(life.ready().1, "ParentNotFound");
    let mut base = child("base", "root");
    base.status.as_mut().unwrap().host = Some("host-b".to_owned());
    held_by_machine(&mut base);
    life.family.parent = Some(Arc::new(base.clone()));
    life.settle();
    assert_eq!(life.ready().1, "ParentInUse");
    assert!(life.tasks.is_empty());
    base.status.as_mut().unwrap().attachment = None;
    life.family.parent = Some(Arc::new(base.clone()));
    life.family.taken.insert("base".to_owned());
    life.settle();
    assert_eq!(life.ready().1, "ParentInUse");
    life.family.taken.clear();
    life.family.siblings = vec![Arc::new(child("other", "base"))];
    let merging = ("base".to_owned(), "other".to_owned());
    life.family.merging = BTreeMap::from([merging]);
    life.settle();
    assert_eq!(life.ready().1, "ParentInUse");
    // A sibling that a machine takes only reads the parent.
    life.family.merging.clear();
    life.family.taken.insert("other".to_owned());
    life.settle();
    let order = life.order();
    let parents: Vec<_> = order.parents.iter().map(|p| &*p.path).collect();
    assert_eq!(parents, ["base.vhd", "root.vhd"]);
    assert_eq!(
        (order.disk_type, order.size_bytes),
        (Some(DiskType::Differencing), None)
    );
    life.report(TaskState::Succeeded, None);
    life.settle();
    let status = life.disk.status.as_ref().unwrap();
    assert_eq!(status.host.as_deref(), Some("host-b"));
    assert_eq!(status.lineage, ["base", "root"]);
    assert_eq!(status.parent_files, [file("base.vhd"), file("root.vhd")]);
    assert_eq!(status.size.as_deref(), Some("1Gi"));
    assert_eq!(disk::parent_name(&life.disk), Some("base"));
}

#[test]
fn a_parent_waits_for_its_children_and_names_them() {
    let mut life = Life::new(dynamic("d"));
    life.family.children = (0..50)
        .map(|n| Arc::new(child(&format!("k{n:02}"), "d")))
        .collect();
    life.settle();
    let told = life.disk.status.as_ref().unwrap().children.clone().unwrap();
    assert_eq!((told.count, &*told.names[4]), (50, "k04"));
    assert_eq!(told.names.len(), 5);
    life.delete();
    life.settle();
    assert!(!life.gone);
    let (reason, message) = life.deleting();
    assert_eq!(reason, "HasChildren");
    assert!(
        message.starts_with("50 differencing disks have it as parent: \"k00\", \"k01\", \"k02\", \"k03\", \"k04\" and 45 more"),
        "{message}"
    );
    // One that waits for this very disk to be made on it hinders nothing.
    let mut waiting = unmade_disk("w", "default");
    waiting.spec.parent_ref = Some(LocalReference {
        name: "d".to_owned(),
    });
    life.family.children = vec![Arc::new(waiting)];
    life.settle();
    assert!(life.gone);
}

#[test]
fn an_undo_disk_is_settled_before_anything_else() {
    let mut life = Life::new(dynamic("d"));
    life.disk.spec.disk_type = Some(DiskType::Fixed);
    life.disk.status.as_mut().unwrap().undo = Some(kept_undo());
    life.settle();
    assert!(life.tasks.is_empty());
    assert_eq!(progressing(&life).unwrap().1, "HasUndoDisk");
    life.disk
        .status
        .as_mut()
        .unwrap()
        .undo
        .as_mut()
        .unwrap()
        .state = UndoState::Committing;
    life.settle();
    assert_eq!(life.task().spec.action, TaskAction::CommitUndo);
    assert_eq!(life.order().undo.as_ref().unwrap().path, "d-2.vud");
    let task = ObjectKey::of(&life.task().metadata);
    end(
        &mut life,
        &task,
        TaskState::Succeeded,
        TaskResult::default(),
    );
    life.settle();
    assert_eq!(life.disk.status.as_ref().unwrap().undo, None);
    assert_eq!(life.task().spec.action, TaskAction::Convert);
}

#[test]
fn a_disk_is_compacted_once_after_its_machines_have_stopped() {
    let mut life = Life::new(dynamic("d"));
    life.disk.spec.compaction.policy = CompactionPolicy::WhenStopped;
    life.disk.spec.compaction.defragment = Defragment::Disabled;
    life.settle();
    assert!(life.tasks.is_empty(), "nobody has used it");
    life.disk.status.as_mut().unwrap().used_epoch = Some(1);
    life.wanted = true;
    life.settle();
    assert!(life.tasks.is_empty(), "a machine is to run");
    life.wanted = false;
    life.settle();
    assert_eq!(life.task().spec.action, TaskAction::Compact);
    assert_eq!(life.task().spec.defragment, Some(Defragment::Disabled));
    assert_eq!(life.order().defragment, Defragment::Disabled);
    let task = ObjectKey::of(&life.task().metadata);
    end(
        &mut life,
        &task,
        TaskState::Succeeded,
        TaskResult::default(),
    );
    life.settle();
    assert_eq!(life.task().spec.action, TaskAction::Delete);
    life.report(TaskState::Succeeded, None);
    life.settle();
    assert!(life.tasks.is_empty());
}

#[test]
fn a_compaction_is_called_off_when_a_machine_is_to_start() {
    let mut life = Life::new(dynamic("d"));
    life.disk.spec.compaction.policy = CompactionPolicy::WhenStopped;
    life.disk.status.as_mut().unwrap().used_epoch = Some(1);
    life.settle();
    let task = ObjectKey::of(&life.task().metadata);
    life.wanted = true;
    life.settle();
    let found = Arc::make_mut(life.tasks.get_mut(&task).unwrap());
    assert!(
        found.metadata.deletion_timestamp.is_some(),
        "the order to leave off"
    );
    // Its agent has left off.
    let status = found.status.as_mut().unwrap();
    status.state = TaskState::Failed;
    status.reason = Some("Cancelled".to_owned());
    let plan = life.plan();
    assert_eq!((&plan.note, plan.retry), (&None, false));
    life.apply(&plan);
    life.settle();
    assert!(life.tasks.is_empty());
    assert_eq!((life.state(), progressing(&life)), (DiskState::Ready, None));
    // One that a user has asked for is not: nor is a conversion that is still wished for.
    let asked = asked(&mut life, "c", TaskAction::Compact);
    life.settle();
    assert_eq!(life.tasks[&asked].metadata.deletion_timestamp, None);
    end(
        &mut life,
        &asked,
        TaskState::Succeeded,
        TaskResult::default(),
    );
    life.tasks.clear();
    life.disk.status.as_mut().unwrap().attachment = None;
    life.disk.spec.disk_type = Some(DiskType::Fixed);
    life.settle();
    assert_eq!(life.task().spec.action, TaskAction::Convert);
    assert_eq!(life.task().metadata.deletion_timestamp, None);
    life.disk.spec.disk_type = Some(DiskType::Dynamic);
    life.settle();
    assert!(life.task().metadata.deletion_timestamp.is_some());
}

#[test]
fn work_that_fails_is_tried_seldom_and_at_once_when_the_spec_changes() {
    let mut life = Life::new(dynamic("d"));
    life.disk.spec.disk_type = Some(DiskType::Fixed);
    life.settle();
    let task = ObjectKey::of(&life.task().metadata);
    end(&mut life, &task, TaskState::Failed, TaskResult::default());
    let plan = life.settle();
    assert!(plan.retry && plan.seldom);
    assert_eq!(plan.note, None, "it is told once");
    assert_eq!(life.tasks.len(), 1);
    // The same wish, but somebody has changed something.
    life.disk.metadata.generation = Some(2);
    life.settle();
    let again = ObjectKey::of(&life.task().metadata);
    assert_ne!(again, task);
    assert!(!disk::is_unassigned(life.task()));
}

#[test]
fn a_base_in_a_local_pool_is_made_where_the_first_machine_of_a_child_is() {
    let mut base = Life::new(unmade_disk("d", "default"));
    let mut first = unmade_disk("k", "default");
    first.spec.disk_type = Some(DiskType::Differencing);
    first.spec.size = None;
    first.spec.parent_ref = Some(LocalReference {
        name: "d".to_owned(),
    });
    base.family.children = vec![Arc::new(first.clone())];
    base.settle();
    assert_eq!(base.ready().1, "WaitingForFirstConsumer");
    first.status.get_or_insert_default().host = Some("host-b".to_owned());
    base.family.children = vec![Arc::new(first.clone())];
    base.settle();
    assert_eq!(
        base.disk.status.as_ref().unwrap().host.as_deref(),
        Some("host-b")
    );
    base.report(TaskState::Succeeded, None);
    base.settle();
    // Another child, that a machine has bound elsewhere meanwhile, follows its parent.
    first.status.get_or_insert_default().host = Some("host-a".to_owned());
    let mut other = Life::new(first);
    other.family.parent = Some(Arc::new(base.disk.clone()));
    other.settle();
    let status = other.disk.status.as_ref().unwrap();
    assert_eq!(status.host.as_deref(), Some("host-b"));
    let attachment = status.attachment.as_ref().unwrap();
    assert_eq!(attachment.host, "host-b");
}

#[test]
fn a_running_machines_host_tells_what_the_file_takes() {
    let mut life = Life::new(dynamic("d"));
    held_by_machine(&mut life.disk);
    life.measured = Some(7 << 20);
    life.settle();
    let status = life.disk.status.as_ref().unwrap();
    assert_eq!(status.allocated.as_deref(), Some("7Mi"));
    assert_eq!(status.size_bytes, Some(1 << 30));
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
            ..bare_task(TaskAction::Export)
        };
        let task = asked_with(&mut life, path.rsplit('/').next().unwrap(), spec);
        life.settle();
        let told = told(&life, &task);
        assert_eq!((told.0, told.1.as_deref()), (state, reason), "{path}");
    }
    let order = life.order();
    assert_eq!(order.target.as_ref().unwrap().path, "t/out.img");
}
