//! What is done to a disk that has its file, as its spec asks for: conversions, changes of size, compactions; and what
//! parents, children and undo disks have to wait for.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{
    asked::{asked, end, path, progressing},
    disks::{child, dynamic, file, kept_undo, unmade_child},
    key,
    life::{Life, held_by_machine},
    unmade_disk,
};
use paddock_crds::{
    ByteQuantity,
    reference::LocalReference,
    virtual_hard_disk::{BoundFile, CompactionPolicy, Defragment, DiskState, DiskType, UndoState},
    virtual_hard_disk_task::{Shrink, TaskAction, TaskResult, TaskState},
};
use paddock_planner::{
    ObjectKey,
    disk::{self, Action},
};
use std::{collections::BTreeMap, sync::Arc};

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
fn a_child_is_made_where_its_parent_is_and_when_nobody_uses_that() {
    let mut life = Life::new(unmade_child("d", "base"));
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
    life.disk.status.as_mut().unwrap().undo = Some(kept_undo("d-2.vud"));
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
