//! What changes a disk below another: merges and commits. Only one that has begun bars the disk, and nothing reads what is
//! changed below it meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{
    at,
    disks::{child, dynamic, kept_undo, seen, unmade_child, unmade_copy},
    key,
    life::{Life, held_by_machine},
    metadata,
};
use paddock_crds::{
    VirtualHardDiskTask, VirtualHardDiskTaskSpec,
    names::condition::PROGRESSING,
    reference::condition,
    virtual_hard_disk::{DiskState, ReclaimPolicy, UndoState, Unfinished},
    virtual_hard_disk_task::{TaskAction, TaskResult, TaskState},
};
use paddock_planner::{ObjectKey, disk, placement::Availability};
use std::{collections::BTreeMap, sync::Arc};

/// A child of `base`.
fn merging_life() -> Life {
    let mut life = Life::new(seen(child("d", "base")));
    life.family.parent = Some(Arc::new(dynamic("base")));
    life
}

/// A disk with a kept undo disk.
fn undo_life() -> Life {
    let mut life = Life::new(dynamic("d"));
    life.disk.status.as_mut().unwrap().undo = Some(kept_undo("d-2.vud"));
    life
}

fn ask(life: &mut Life, name: &str, action: TaskAction) -> ObjectKey {
    life.now += 1;
    let task = life.ask(name, VirtualHardDiskTaskSpec::new(action, "d"));
    life.settle();
    task
}

fn end(life: &mut Life, task: &ObjectKey, state: TaskState, reason: &str, begun: Option<bool>) {
    let found = Arc::make_mut(life.tasks.get_mut(task).unwrap());
    let status = found.status.as_mut().expect("it was assigned");
    assert!(status.order.is_some(), "{task} was never assigned");
    status.state = state;
    status.reason = Some(reason.to_owned());
    status.result = Some(TaskResult {
        begun,
        ..TaskResult::default()
    });
    life.settle();
}

fn fail(life: &mut Life, task: &ObjectKey, begun: Option<bool>) {
    end(life, task, TaskState::Failed, "PoolFull", begun);
}

fn succeed(life: &mut Life, task: &ObjectKey) {
    end(life, task, TaskState::Succeeded, "", None);
}

fn delete(life: &mut Life, task: &ObjectKey) {
    let found = Arc::make_mut(life.tasks.get_mut(task).unwrap());
    found.metadata.deletion_timestamp = Some(at(5));
    life.settle();
}

fn told(life: &Life, task: &ObjectKey) -> (TaskState, String) {
    let status = life.tasks[task].status.clone().unwrap_or_default();
    (status.state, status.reason.unwrap_or_default())
}

fn unfinished(life: &Life) -> Option<(TaskAction, bool)> {
    let unfinished = life.disk.status.as_ref().unwrap().unfinished.clone();
    unfinished.map(
        |Unfinished {
             action,
             interrupted,
         }| (action, interrupted),
    )
}

fn undo_state(life: &Life) -> Option<UndoState> {
    let undo = life.disk.status.as_ref().unwrap().undo.as_ref();
    undo.map(|undo| undo.state)
}

fn progressing(life: &Life) -> Option<String> {
    let status = life.disk.status.as_ref().unwrap();
    condition(&status.conditions, PROGRESSING).map(|c| c.reason.clone())
}

fn is_at_work(life: &Life, task: &ObjectKey) -> bool {
    let task = &life.tasks[task];
    !disk::is_unassigned(task) && !disk::is_over(task)
}

#[test]
fn a_merge_leaves_a_disk_that_says_where_its_content_is() {
    let mut life = merging_life();
    let task = ask(&mut life, "m", TaskAction::Merge);
    assert_eq!(unfinished(&life), Some((TaskAction::Merge, false)));
    fail(&mut life, &task, Some(true));
    // The parent may have a part of it: nothing but another merge goes on.
    assert_eq!(life.ready().1, "MergeInterrupted");
    assert!(life.ready().2.contains("\"base\""), "{}", life.ready().2);
    assert_eq!(unfinished(&life), Some((TaskAction::Merge, true)));
    let compact = ask(&mut life, "c", TaskAction::Compact);
    let again = ask(&mut life, "n", TaskAction::Merge);
    assert_eq!(told(&life, &compact).1, "MergeInterrupted");
    let found = Arc::make_mut(life.tasks.get_mut(&again).unwrap());
    let status = found.status.as_mut().unwrap();
    status.state = TaskState::Succeeded;
    status.result = Some(TaskResult {
        allocated_bytes: Some(9 << 20),
        ..TaskResult::default()
    });
    life.settle();
    let status = life.disk.status.as_ref().unwrap();
    assert_eq!(life.state(), DiskState::Merged);
    assert_eq!(status.merged_into.as_deref(), Some("base"));
    assert_eq!((&status.file, &status.attachment), (&None, &None));
    assert_eq!(status.unfinished, None);
    assert_eq!(disk::parent_name(&life.disk), None);
    assert_eq!(life.ready().1, "Merged");
    // The parent has what its machines have written, and more blocks than before.
    let parent = life.family.parent.clone().unwrap().status.clone().unwrap();
    assert_eq!(parent.allocated.as_deref(), Some("9Mi"));
    assert_eq!(parent.used_epoch, Some(parent.disk_epoch));
    life.disk.spec.reclaim_policy = ReclaimPolicy::Delete;
    life.delete();
    life.settle();
    assert!(life.gone);
}

#[test]
fn a_merge_that_never_began_leaves_the_disk_as_usable_as_before() {
    for action in [TaskAction::Merge, TaskAction::CommitUndo] {
        let mut life = match action {
            TaskAction::Merge => merging_life(),
            _ => undo_life(),
        };
        let task = ask(&mut life, "m", action);
        assert!(is_at_work(&life, &task));
        fail(&mut life, &task, Some(false));
        assert_eq!(life.state(), DiskState::Ready, "{action:?}");
        assert_eq!(unfinished(&life), None);
        if action == TaskAction::CommitUndo {
            assert_eq!(undo_state(&life), Some(UndoState::Kept));
        }
        // Nothing else begins by itself, and it may be asked for again.
        assert!(life.tasks.values().all(|t| disk::is_over(t)));
        let again = ask(&mut life, "n", action);
        assert!(is_at_work(&life, &again));
        // Deleted while it is queued on its host.
        delete(&mut life, &again);
        end(
            &mut life,
            &again,
            TaskState::Failed,
            "Cancelled",
            Some(false),
        );
        assert_eq!(life.state(), DiskState::Ready);
        assert_eq!(unfinished(&life), None);
    }
}

#[test]
fn a_task_that_was_given_the_disk_and_no_host_has_begun_nothing() {
    for (action, deletes_disk) in [
        (TaskAction::Merge, false),
        (TaskAction::CommitUndo, false),
        (TaskAction::Merge, true),
    ] {
        let mut life = match action {
            TaskAction::Merge => merging_life(),
            _ => undo_life(),
        };
        let task = key("m");
        let mut plan = {
            let metadata = metadata("m", "uid-m");
            let mut asked =
                VirtualHardDiskTask::new("m", VirtualHardDiskTaskSpec::new(action, "d"));
            asked.metadata = metadata;
            life.tasks.insert(task.clone(), Arc::new(asked));
            life.plan()
        };
        // The operator dies after the write that gives the attachment.
        plan.after.clear();
        life.apply(&plan);
        assert_eq!(unfinished(&life), Some((action, false)));
        if deletes_disk {
            life.delete();
            life.settle();
            assert_eq!(unfinished(&life), None);
            continue;
        }
        delete(&mut life, &task);
        assert_eq!(unfinished(&life), None);
        assert_eq!(life.state(), DiskState::Ready);
    }
}

#[test]
fn what_nobody_knows_bars_the_disk_until_somebody_does() {
    let mut life = merging_life();
    let task = ask(&mut life, "m", TaskAction::Merge);
    life.silence("host-a");
    life.hosts[0].ended_below = Some(2);
    life.settle();
    assert_eq!(told(&life, &task).1, "HostOutOfService");
    assert_eq!(unfinished(&life), Some((TaskAction::Merge, true)));
    assert_eq!(life.ready().1, "MergeInterrupted");
    life.hosts[0].availability = Availability::Ready { epoch: 2 };
    // Another merge that is deleted before it begins, while its host cannot look, says nothing new.
    let again = ask(&mut life, "n", TaskAction::Merge);
    delete(&mut life, &again);
    end(&mut life, &again, TaskState::Failed, "Cancelled", None);
    assert_eq!(unfinished(&life), Some((TaskAction::Merge, true)));
    // A check that finds a record neither.
    let check = ask(&mut life, "c", TaskAction::Check);
    end(&mut life, &check, TaskState::Succeeded, "", Some(true));
    assert_eq!(life.ready().1, "MergeInterrupted");
    let check = ask(&mut life, "e", TaskAction::Check);
    end(&mut life, &check, TaskState::Succeeded, "", Some(false));
    assert_eq!(unfinished(&life), None);
    assert_eq!(life.state(), DiskState::Ready);
}

#[test]
fn a_commit_that_was_interrupted_goes_on_and_cannot_be_discarded() {
    let mut life = undo_life();
    let task = ask(&mut life, "m", TaskAction::CommitUndo);
    // What the user sees says nothing of a wish until the disk is changed.
    assert_eq!(undo_state(&life), Some(UndoState::Kept));
    fail(&mut life, &task, Some(true));
    assert_eq!(unfinished(&life), Some((TaskAction::CommitUndo, true)));
    let own = key("d-commitundo-3");
    assert!(is_at_work(&life, &own), "{:?}", life.tasks.keys());
    let discard = ask(&mut life, "x", TaskAction::DiscardUndo);
    fail(&mut life, &own, Some(true));
    assert_eq!(told(&life, &discard).1, "CommitBegun");
    // Its record was not there after all.
    life.retry_due = true;
    let plan = life.plan();
    life.apply(&plan);
    life.retry_due = false;
    life.settle();
    let own = key("d-commitundo-4");
    fail(&mut life, &own, Some(false));
    assert_eq!(unfinished(&life), None);
    assert_eq!(undo_state(&life), Some(UndoState::Kept));
    assert_eq!(progressing(&life), None);
    let discard = ask(&mut life, "y", TaskAction::DiscardUndo);
    assert!(is_at_work(&life, &discard));
    succeed(&mut life, &discard);
    assert_eq!(undo_state(&life), None);
}

#[test]
fn a_discard_that_was_taken_back_discards_nothing() {
    let mut life = undo_life();
    let task = ask(&mut life, "x", TaskAction::DiscardUndo);
    assert!(is_at_work(&life, &task));
    delete(&mut life, &task);
    end(&mut life, &task, TaskState::Failed, "Cancelled", None);
    assert_eq!(undo_state(&life), Some(UndoState::Kept));
    assert!(life.tasks.is_empty(), "{:?}", life.tasks.keys());
    // Only where nobody can say whether the file is gone, it is discarded again.
    ask(&mut life, "y", TaskAction::DiscardUndo);
    life.silence("host-a");
    life.hosts[0].ended_below = Some(2);
    life.settle();
    assert_eq!(undo_state(&life), Some(UndoState::Discarding));
}

#[test]
fn a_wish_to_commit_that_fails_may_be_discarded_instead() {
    let mut life = undo_life();
    let undo = |life: &mut Life, state| {
        let undo = life.disk.status.as_mut().unwrap().undo.as_mut();
        undo.unwrap().state = state;
    };
    undo(&mut life, UndoState::Committing);
    life.settle();
    let own = ObjectKey::of(&life.task().metadata);
    fail(&mut life, &own, Some(false));
    assert_eq!(progressing(&life).as_deref(), Some("PoolFull"));
    assert_eq!(undo_state(&life), Some(UndoState::Committing));
    let discard = ask(&mut life, "x", TaskAction::DiscardUndo);
    assert!(is_at_work(&life, &discard));
    succeed(&mut life, &discard);
    assert_eq!((undo_state(&life), progressing(&life)), (None, None));
}

#[test]
fn an_undo_disk_that_is_missing_is_committed_only_if_no_guest_ran_with_it() {
    for ran in [false, true] {
        let mut life = undo_life();
        let undo = life.disk.status.as_mut().unwrap().undo.as_mut().unwrap();
        undo.ran = ran;
        undo.state = UndoState::Committing;
        life.settle();
        let own = ObjectKey::of(&life.task().metadata);
        end(
            &mut life,
            &own,
            TaskState::Failed,
            "FileNotFound",
            Some(false),
        );
        let expected = ran.then_some(UndoState::Committing);
        assert_eq!(undo_state(&life), expected);
        let told = ran.then(|| "FileNotFound".to_owned());
        assert_eq!(progressing(&life), told);
        assert_eq!(life.tasks.len(), usize::from(ran));
    }
}

#[test]
fn a_child_that_waits_for_the_commit_does_not_hinder_it() {
    let mut life = undo_life();
    let mut waiting = seen(unmade_child("k", "base"));
    waiting.spec.parent_ref.as_mut().unwrap().name = "d".to_owned();
    life.family.children = vec![Arc::new(waiting.clone())];
    let task = ask(&mut life, "m", TaskAction::CommitUndo);
    assert!(is_at_work(&life, &task), "{:?}", told(&life, &task));
    // The child waits for that.
    let mut made = Life::new(waiting);
    made.family.parent = Some(Arc::new(life.disk.clone()));
    made.settle();
    assert_eq!(made.ready().1, "ParentInUse");
    succeed(&mut life, &task);
    made.family.parent = Some(Arc::new(life.disk.clone()));
    made.settle();
    assert_eq!(made.task().spec.action, TaskAction::Create);
    // One that is just being given to its task is none that waits.
    let mut life = undo_life();
    life.family.children = vec![Arc::new(seen(unmade_child("k", "base")))];
    life.family.taken.insert("k".to_owned());
    let task = ask(&mut life, "m", TaskAction::CommitUndo);
    assert_eq!(told(&life, &task).1, "HasChildren");
}

#[test]
fn nothing_reads_or_changes_a_parent_while_a_child_is_merged_into_it() {
    let merging = BTreeMap::from([("base".to_owned(), "other".to_owned())]);
    // A copy of it.
    let mut life = Life::new(unmade_copy("d", "base"));
    life.family.source = Some(Arc::new(dynamic("base")));
    life.family.merging = merging.clone();
    life.settle();
    assert_eq!(life.ready().1, "SourceInUse");
    assert!(life.tasks.is_empty());
    life.family.merging.clear();
    life.settle();
    assert_eq!(life.task().spec.action, TaskAction::Clone);
    // Work on it.
    let mut base = dynamic("d");
    base.metadata.name = Some("base".to_owned());
    let mut life = Life::new(base);
    life.family.merging = merging;
    for action in [TaskAction::Check, TaskAction::Compact] {
        let task = ask(&mut life, &format!("{action:?}"), action);
        assert_eq!(
            told(&life, &task),
            (TaskState::Pending, "ParentInUse".to_owned()),
        );
    }
    life.family.merging.clear();
    life.settle();
    assert!(is_at_work(&life, &key("Check")));
}

#[test]
fn a_merge_waits_for_copies_of_the_parent() {
    let mut life = merging_life();
    let mut copying = unmade_copy("c", "base");
    life.family.parent_copies = vec![Arc::new(copying.clone())];
    life.family.taken.insert("c".to_owned());
    let task = ask(&mut life, "m", TaskAction::Merge);
    let waits = (TaskState::Pending, "BeingCopied".to_owned());
    assert_eq!(told(&life, &task), waits);
    life.family.taken.clear();
    held_by_machine(&mut copying);
    life.family.parent_copies = vec![Arc::new(copying)];
    life.settle();
    assert_eq!(told(&life, &task), waits);
    // One that waits itself is none.
    life.family.parent_copies = vec![Arc::new(unmade_copy("c", "base"))];
    life.settle();
    assert!(is_at_work(&life, &task));
}
