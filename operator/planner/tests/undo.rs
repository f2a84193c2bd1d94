//! A machine's undo disks: all disks or none, switched only while it is off, and lost only when the user said so.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{Model, host, machine, ready_disk, with_disk};
use paddock_crds::{
    names::condition::{READY, UNDO_DISKS_PENDING},
    reference::condition,
    virtual_hard_disk::{Access, UndoState},
    virtual_machine::{Bus, MachineState, OnStop, RunPolicy, UndoAction, UndoMode, UndoRequest},
};
use paddock_planner::{ObjectKey, resolve::Readers};
use std::sync::Arc;

fn running(on_stop: OnStop) -> (Model, ObjectKey) {
    let mut model = Model::new(vec![host("host-a", "2Gi")]);
    model.add_disk(ready_disk("root", Some("host-a")));
    model.add_disk(ready_disk("data", Some("host-a")));
    let vm = with_disk(machine("web", 192), "root", Bus::Virtio);
    let mut vm = with_disk(vm, "data", Bus::Virtio);
    vm.spec.undo_disks.mode = UndoMode::Enabled;
    vm.spec.undo_disks.on_stop = on_stop;
    let key = model.add(vm);
    start(&mut model, &key);
    (model, key)
}

fn start(model: &mut Model, key: &ObjectKey) {
    model.settle(key);
    model.answer(key);
    if let Some(status) = model.instances.get_mut(key).and_then(|i| i.status.as_mut()) {
        status.started_at = Some("2026-01-01T00:00:00Z".to_owned());
    }
    model.settle(key);
}

fn stop(model: &mut Model, key: &ObjectKey, step: &str) {
    model.change(key, |spec| spec.run_policy = RunPolicy::Stopped);
    model.settle(key);
    model.answer(key);
    let status = model.instances.get_mut(key).and_then(|i| i.status.as_mut());
    let status = status.unwrap();
    // As its host tells of one that has ended.
    status.started_at = None;
    status.stop_step = Some(step.to_owned());
    model.settle(key);
    assert!(model.instances.is_empty());
}

fn undo(model: &Model) -> Vec<Option<UndoState>> {
    let state = |name: &str| {
        let status = model.disks[name].status.as_ref().unwrap();
        status.undo.as_ref().map(|u| u.state)
    };
    vec![state("root"), state("data")]
}

/// The disks' own work is done.
fn disks_are_settled(model: &mut Model) {
    for disk in model.disks.values_mut() {
        Arc::make_mut(disk).status.as_mut().unwrap().undo = None;
    }
}

fn pending(model: &Model, key: &ObjectKey) -> Option<String> {
    let status = model.machines[key].status.as_ref().unwrap();
    condition(&status.conditions, UNDO_DISKS_PENDING).map(|c| c.reason.clone())
}

#[test]
fn every_disk_gets_one_in_the_write_that_attaches_it() {
    let (model, key) = running(OnStop::Keep);
    let config = &model.instances[&key].spec.config;
    assert_eq!(config.disks.len(), 2);
    for disk in &config.disks {
        let undo = disk.undo.as_ref().unwrap();
        assert_eq!(undo.state, UndoState::New);
        assert!(undo.file.path.ends_with("-2.vud"), "{}", undo.file.path);
        assert_eq!(undo.file.pool, "default");
    }
    let status = model.machines[&key].status.as_ref().unwrap();
    let told: Vec<_> = status.undo_disks.iter().map(|u| &*u.name).collect();
    assert_eq!(told, ["disk-0", "disk-1"]);
    assert_eq!(pending(&model, &key), None);
}

#[test]
fn a_stop_does_what_was_asked_for_and_a_shutdown_from_inside_keeps() {
    for (on_stop, step, expected) in [
        (OnStop::Keep, "PowerButton", UndoState::Kept),
        (OnStop::Commit, "PowerButton", UndoState::Committing),
        (OnStop::Commit, "Kill", UndoState::Committing),
        (OnStop::Discard, "PowerButton", UndoState::Discarding),
        (OnStop::Discard, "GuestPowerOff", UndoState::Kept),
        (OnStop::Commit, "GuestPowerOff", UndoState::Kept),
    ] {
        let (mut model, key) = running(on_stop);
        stop(&mut model, &key, step);
        assert_eq!(
            undo(&model),
            [Some(expected), Some(expected)],
            "{on_stop:?} after {step}"
        );
    }
}

#[test]
fn what_was_kept_is_gone_on_with_and_must_be_there() {
    let (mut model, key) = running(OnStop::Keep);
    let path = |model: &Model| {
        let disk = &model.instances[&key].spec.config.disks[0];
        disk.undo.clone().unwrap()
    };
    let first = path(&model);
    let revision = model.instances[&key].spec.config_revision.clone();
    stop(&mut model, &key, "PowerButton");
    model.change(&key, |spec| spec.run_policy = RunPolicy::Running);
    start(&mut model, &key);
    let second = path(&model);
    assert_eq!(second.file, first.file);
    assert_eq!(second.state, UndoState::Kept);
    assert_eq!(model.instances[&key].spec.config_revision, revision);
}

#[test]
fn a_start_waits_until_disks_are_committed() {
    let (mut model, key) = running(OnStop::Commit);
    stop(&mut model, &key, "PowerButton");
    model.change(&key, |spec| spec.run_policy = RunPolicy::Running);
    model.settle(&key);
    assert!(model.instances.is_empty());
    let c = model.condition(&key, READY);
    assert_eq!(c.reason, "VirtualHardDiskNotReady");
    assert!(
        c.message.contains("committed or discarded"),
        "{}",
        c.message
    );
    disks_are_settled(&mut model);
    start(&mut model, &key);
    assert_eq!(model.condition(&key, READY).status, "True");
    assert_eq!(undo(&model), [Some(UndoState::New), Some(UndoState::New)]);
}

#[test]
fn the_mode_is_switched_only_while_the_machine_is_off() {
    let (mut model, key) = running(OnStop::Keep);
    model.change(&key, |spec| spec.undo_disks.mode = UndoMode::Disabled);
    model.settle(&key);
    assert_eq!(pending(&model, &key).as_deref(), Some("ModeChanged"));
    assert!(model.instances[&key].spec.config.disks[0].undo.is_some());
    // Stopped: it is off, and they go at once.
    stop(&mut model, &key, "PowerButton");
    assert_eq!(pending(&model, &key), None);
    let gone = Some(UndoState::Discarding);
    assert_eq!(undo(&model), [gone, gone]);
    disks_are_settled(&mut model);
    model.change(&key, |spec| spec.run_policy = RunPolicy::Running);
    start(&mut model, &key);
    assert_eq!(undo(&model), [None, None]);
    model.change(&key, |spec| spec.undo_disks.mode = UndoMode::Enabled);
    model.settle(&key);
    assert_eq!(pending(&model, &key).as_deref(), Some("ModeChanged"));
    assert_eq!(undo(&model), [None, None]);
    assert_eq!(model.condition(&key, READY).status, "True");
}

#[test]
fn a_request_is_carried_out_once_and_waits_for_the_end() {
    let (mut model, key) = running(OnStop::Keep);
    let request = |token: &str| {
        Some(UndoRequest {
            action: UndoAction::Commit,
            token: token.to_owned(),
        })
    };
    model.change(&key, |spec| spec.undo_disks.request = request("one"));
    model.settle(&key);
    assert_eq!(pending(&model, &key).as_deref(), Some("RequestWaits"));
    assert_eq!(undo(&model), [Some(UndoState::New), Some(UndoState::New)]);
    stop(&mut model, &key, "PowerButton");
    let commits = Some(UndoState::Committing);
    assert_eq!(undo(&model), [commits, commits]);
    let token = |model: &Model| {
        let status = model.machines[&key].status.as_ref().unwrap();
        status.undo_request_token.clone()
    };
    assert_eq!(token(&model).as_deref(), Some("one"));
    disks_are_settled(&mut model);
    model.change(&key, |spec| spec.run_policy = RunPolicy::Running);
    start(&mut model, &key);
    stop(&mut model, &key, "PowerButton");
    // The same token is no new command.
    assert_eq!(undo(&model), [Some(UndoState::Kept), Some(UndoState::Kept)]);
    // A commit that is asked for comes before the deletion that no undo disks would mean.
    model.change(&key, |spec| {
        spec.undo_disks.request = request("two");
        spec.undo_disks.mode = UndoMode::Disabled;
    });
    model.settle(&key);
    assert_eq!(undo(&model), [commits, commits]);
}

#[test]
fn a_deleted_machine_does_with_them_what_a_stop_does() {
    for (on_stop, expected) in [
        (OnStop::Keep, UndoState::Kept),
        (OnStop::Commit, UndoState::Committing),
        (OnStop::Discard, UndoState::Discarding),
    ] {
        let (mut model, key) = running(on_stop);
        model.delete(&key);
        model.settle(&key);
        model.answer(&key);
        model.settle(&key);
        assert!(model.machines.is_empty());
        assert_eq!(undo(&model), [Some(expected), Some(expected)]);
        // Off when it is deleted: likewise.
        let (mut model, key) = running(OnStop::Keep);
        stop(&mut model, &key, "PowerButton");
        model.change(&key, |spec| spec.undo_disks.on_stop = on_stop);
        model.delete(&key);
        model.settle(&key);
        assert!(model.machines.is_empty());
        assert_eq!(undo(&model), [Some(expected), Some(expected)]);
    }
}

#[test]
fn another_machine_may_not_use_a_disk_with_changes_over_it() {
    let (mut model, key) = running(OnStop::Keep);
    stop(&mut model, &key, "PowerButton");
    let other = model.add(with_disk(machine("db", 64), "root", Bus::Virtio));
    model.settle(&other);
    let c = model.condition(&other, READY);
    assert_eq!(c.reason, "DiskInUse");
    assert!(
        c.message.contains("VirtualMachine \"web\""),
        "{}",
        c.message
    );
    assert_eq!(undo(&model)[0], Some(UndoState::Kept));
}

#[test]
fn a_disk_that_may_not_be_written_is_used_with_undo_disks_alone_and_never_committed() {
    let (mut model, key) = running(OnStop::Commit);
    let read_only = |model: &mut Model| {
        let root = model.disks.get_mut("root").unwrap();
        Arc::make_mut(root).spec.access = Access::ReadOnly;
    };
    read_only(&mut model);
    stop(&mut model, &key, "PowerButton");
    assert_eq!(
        undo(&model),
        [Some(UndoState::Kept), Some(UndoState::Committing)]
    );
    let mut model = Model::new(vec![host("host-a", "2Gi")]);
    model.add_disk(ready_disk("root", Some("host-a")));
    read_only(&mut model);
    let key = model.add(with_disk(machine("web", 64), "root", Bus::Virtio));
    model.settle(&key);
    assert_eq!(model.condition(&key, READY).reason, "DiskReadOnly");
    let state = model.machines[&key].status.as_ref().unwrap().state;
    assert_eq!(state, MachineState::Failed);
    model.change(&key, |spec| spec.undo_disks.mode = UndoMode::Enabled);
    start(&mut model, &key);
    assert_eq!(model.condition(&key, READY).status, "True");
}

#[test]
fn a_base_with_children_is_refused_but_a_running_machine_goes_on() {
    let (mut model, key) = running(OnStop::Keep);
    let children = Readers {
        children: (0..7).map(|n| format!("k{n}")).collect(),
        ..Readers::default()
    };
    model.readers.insert("root".to_owned(), children);
    model.settle(&key);
    assert_eq!(model.condition(&key, READY).status, "True");
    let other = with_disk(machine("db", 64), "base", Bus::Virtio);
    model.add_disk(ready_disk("base", Some("host-a")));
    let other = model.add(other);
    let children = model.readers["root"].clone();
    model.readers.insert("base".to_owned(), children);
    model.settle(&other);
    let c = model.condition(&other, READY);
    assert_eq!(c.reason, "DiskHasChildren");
    assert!(c.message.contains("\"k4\" and 2 more"), "{}", c.message);
}

/// A machine of the same name as one that was deleted and has left undo disks, not stopped.
fn made_anew(mode: UndoMode) -> (Model, ObjectKey) {
    let (mut model, key) = running(OnStop::Keep);
    stop(&mut model, &key, "PowerButton");
    let mut vm = model.machines[&key].clone();
    model.delete(&key);
    model.settle(&key);
    assert!(model.machines.is_empty());
    vm.metadata.uid = Some("uid-of-another".to_owned());
    vm.metadata.finalizers = None;
    vm.status = None;
    vm.spec.run_policy = RunPolicy::Running;
    vm.spec.undo_disks.mode = mode;
    let key = model.add(vm);
    (model, key)
}

#[test]
fn a_machine_made_anew_discards_nothing_of_an_earlier_one_unasked() {
    let kept = Some(UndoState::Kept);
    let (mut model, key) = made_anew(UndoMode::Disabled);
    model.settle(&key);
    assert_eq!(undo(&model), [kept, kept]);
    let c = model.condition(&key, READY);
    assert_eq!(c.reason, "DiskInUse");
    let part = "changes of an earlier VirtualMachine \"web\"";
    assert!(c.message.contains(part), "{}", c.message);
    // Off, or deleted: likewise.
    model.change(&key, |spec| {
        spec.run_policy = RunPolicy::Stopped;
        spec.undo_disks.on_stop = OnStop::Discard;
    });
    model.settle(&key);
    assert_eq!(undo(&model), [kept, kept]);
    let mut deleted = model.clone();
    deleted.delete(&key);
    deleted.settle(&key);
    assert!(deleted.machines.is_empty());
    assert_eq!(undo(&deleted), [kept, kept]);
    model.change(&key, |spec| {
        spec.undo_disks.request = Some(UndoRequest {
            action: UndoAction::Discard,
            token: "one".to_owned(),
        });
    });
    model.settle(&key);
    let gone = Some(UndoState::Discarding);
    assert_eq!(undo(&model), [gone, gone]);
}

#[test]
fn a_machine_made_anew_with_undo_disks_goes_on_with_those_of_an_earlier_one() {
    let (mut model, key) = made_anew(UndoMode::Enabled);
    start(&mut model, &key);
    assert_eq!(model.condition(&key, READY).status, "True");
    let owner = |model: &Model| {
        let undo = model.disks["root"].status.as_ref().unwrap().undo.clone();
        undo.unwrap().machine_uid
    };
    assert_eq!(owner(&model).as_deref(), Some("uid-of-another"));
    // They are its own from then on.
    model.change(&key, |spec| spec.undo_disks.mode = UndoMode::Disabled);
    stop(&mut model, &key, "PowerButton");
    let gone = Some(UndoState::Discarding);
    assert_eq!(undo(&model), [gone, gone]);
}

#[test]
fn a_commit_that_cannot_be_is_told() {
    let (mut model, key) = running(OnStop::Keep);
    stop(&mut model, &key, "PowerButton");
    let root = model.disks.get_mut("root").unwrap();
    Arc::make_mut(root).spec.access = Access::ReadOnly;
    let request = |action, token: &str| {
        Some(UndoRequest {
            action,
            token: token.to_owned(),
        })
    };
    model.change(&key, |spec| {
        spec.undo_disks.request = request(UndoAction::Commit, "one");
    });
    model.settle(&key);
    let kept = Some(UndoState::Kept);
    assert_eq!(undo(&model), [kept, Some(UndoState::Committing)]);
    let c = model.condition(&key, UNDO_DISKS_PENDING);
    assert_eq!((&*c.status, &*c.reason), ("True", "DiskReadOnly"));
    assert!(c.message.contains("kept of \"root\""), "{}", c.message);
    model.change(&key, |spec| {
        spec.undo_disks.request = request(UndoAction::Discard, "two");
    });
    model.settle(&key);
    assert_eq!(undo(&model)[0], Some(UndoState::Discarding));
    assert_eq!(pending(&model, &key), None);
}

#[test]
fn whether_a_guest_has_run_is_known_of_every_undo_disk() {
    let ran = |model: &Model| {
        let undo = model.disks["root"].status.as_ref().unwrap().undo.clone();
        undo.unwrap().ran
    };
    for on_stop in [OnStop::Keep, OnStop::Commit] {
        let (mut model, key) = running(on_stop);
        assert!(!ran(&model));
        stop(&mut model, &key, "PowerButton");
        assert!(ran(&model), "{on_stop:?}");
    }
    // Its host could not start it.
    let (mut model, key) = running(OnStop::Commit);
    let status = model.instances.get_mut(&key).unwrap().status.as_mut();
    status.unwrap().started_at = None;
    model.change(&key, |spec| spec.run_policy = RunPolicy::Stopped);
    model.settle(&key);
    model.answer(&key);
    model.settle(&key);
    assert_eq!(undo(&model)[0], Some(UndoState::Committing));
    assert!(!ran(&model));
}
