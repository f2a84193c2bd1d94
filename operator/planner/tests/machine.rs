//! What is decided for a machine, step by step, with exact values.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{
    at, machine,
    machines::{attachment, quickstart, ready, running, silence, state, word},
    with_disk,
};
use paddock_crds::{
    names::condition::{DELETING, READY},
    quantity::ByteQuantity,
    virtual_machine::{Bus, MachineState, RunPolicy},
    virtual_machine_instance::{InstancePhase, Power},
};
use paddock_planner::{address::derived_mac, machine::Action};
use std::sync::Arc;

#[test]
fn starting_takes_three_steps_in_this_order() {
    let (model, key) = quickstart();
    let plan = model.plan(&key);
    assert_eq!(plan.actions.len(), 3, "{:?}", plan.actions);
    assert_eq!(plan.actions[0], Action::AddFinalizer);
    assert_eq!(
        plan.actions[1],
        Action::Attach {
            disk: "root".to_owned(),
            attachment: attachment("web", "host-b", 1, 2),
            undo: None,
        }
    );
    let Action::CreateInstance(spec) = &plan.actions[2] else {
        panic!("{:?}", plan.actions[2]);
    };
    assert_eq!((&*spec.host, spec.host_epoch), ("host-b", 1));
    assert_eq!(spec.power, Power::Running);
    assert_eq!(spec.config.disks[0].disk_epoch, 2);
    assert_eq!(spec.config.memory_mebibytes, 192);
    let adapter = &spec.config.network_adapters[0];
    assert_eq!(adapter.ip_address.as_deref(), Some("192.168.50.17"));
    assert_eq!(
        adapter.mac_address,
        derived_mac("uid-web", "net-0", 0).to_string()
    );
    let status = plan.status.unwrap();
    assert_eq!(status.state, MachineState::Starting);
    assert_eq!(status.ip_address.as_deref(), Some("192.168.50.17"));
    assert_eq!(
        status.memory_overhead_bytes,
        Some((128 << 20) + (192 << 20) / 100)
    );
    let reserved = plan.reservation.unwrap();
    assert_eq!(reserved.host, "host-b");
    assert_eq!(reserved.disks, ["root"]);
}

#[test]
fn a_running_machine_is_ready_and_left_alone() {
    let (mut model, key) = running();
    assert_eq!(state(&model, &key), MachineState::Running);
    let before = model.machines[&key].status.clone();
    model.now += 60;
    let plan = model.plan(&key);
    assert_eq!(plan.actions, []);
    assert_eq!(plan.status, before);
    assert!(!plan.pending);
}

#[test]
fn stopping_waits_for_the_proof() {
    let (mut model, key) = running();
    model.change(&key, |spec| spec.run_policy = RunPolicy::Stopped);
    let plan = model.plan(&key);
    assert_eq!(plan.actions, [Action::DeleteInstance]);
    model.settle(&key);
    assert!(model.instances.contains_key(&key));
    assert_eq!(state(&model, &key), MachineState::Stopping);
    model.answer(&key);
    assert_eq!(
        model.plan(&key).actions,
        [
            Action::Detach {
                disk: "root".to_owned(),
                owner_uid: "uid-web".to_owned(),
                undo: None,
            },
            Action::ReleaseInstance
        ]
    );
    model.settle(&key);
    assert!(model.instances.is_empty());
    assert_eq!(state(&model, &key), MachineState::Stopped);
    assert_eq!(model.condition(&key, READY).status, "True");
    // Its address is kept for its next start.
    model.change(&key, |spec| spec.run_policy = RunPolicy::Running);
    model.settle(&key);
    let instance = &model.instances[&key];
    assert_eq!(
        instance.spec.config.network_adapters[0]
            .ip_address
            .as_deref(),
        Some("192.168.50.17")
    );
    assert_eq!(instance.spec.config.disks[0].disk_epoch, 3);
}

#[test]
fn released_proves_nothing_while_the_instance_may_start_again() {
    let (mut model, key) = running();
    let mut status = model.instances[&key].status.clone().unwrap();
    status.released = Some(paddock_crds::virtual_machine_instance::Released {
        host_epoch: 1,
        time: "2026-01-01T00:00:00Z".to_owned(),
    });
    model.report(&key, status);
    assert!(
        !model
            .plan(&key)
            .actions
            .iter()
            .any(|a| matches!(a, Action::Detach { .. } | Action::ReleaseInstance))
    );
    model.change(&key, |spec| spec.run_policy = RunPolicy::Stopped);
    assert_eq!(model.plan(&key).actions, [Action::DeleteInstance]);
}

#[test]
fn an_order_to_stop_is_never_taken_back() {
    let (mut model, key) = running();
    model.change(&key, |spec| spec.run_policy = RunPolicy::Stopped);
    model.settle(&key);
    model.change(&key, |spec| spec.run_policy = RunPolicy::Running);
    assert_eq!(model.plan(&key).actions, []);
    model.answer(&key);
    model.settle(&key);
    assert!(model.instances[&key].metadata.deletion_timestamp.is_none());
    model.answer(&key);
    model.settle(&key);
    assert_eq!(state(&model, &key), MachineState::Running);
}

#[test]
fn a_deletion_on_a_dead_host_says_what_it_waits_for_and_how_to_force_it() {
    let (mut model, key) = running();
    silence(&mut model, "host-b");
    model.settle(&key);
    let ready = model.condition(&key, READY);
    assert_eq!(
        (&*ready.status, &*ready.reason),
        ("Unknown", "HostNotReady")
    );
    model.delete(&key);
    model.settle(&key);
    let deleting = model.condition(&key, DELETING);
    assert_eq!(deleting.reason, "WaitingForHost");
    assert!(
        deleting.message.contains("host host-b")
            && deleting.message.contains(
                "Start its agent again, or if the host is off for good, set spec.outOfService.token on Host \"host-b\""
            )
            && deleting.message.contains("root"),
        "{}",
        deleting.message
    );
    assert_eq!(state(&model, &key), MachineState::Terminating);
    word(&mut model, "host-b", 2);
    model.settle(&key);
    assert!(model.machines.is_empty() && model.instances.is_empty());
    assert_eq!(
        model.disks["root"].status.as_ref().unwrap().attachment,
        None
    );
}

#[test]
fn a_word_does_not_end_what_was_started_after_it() {
    let (mut model, key) = running();
    word(&mut model, "host-b", 1);
    assert_eq!(model.plan(&key).actions, []);
    word(&mut model, "host-b", 2);
    assert_ne!(model.plan(&key).actions, []);
}

#[test]
fn a_rejoined_host_gets_its_machines_stamped() {
    let (mut model, key) = running();
    silence(&mut model, "host-b");
    model.settle(&key);
    ready(&mut model, "host-b", 2);
    let plan = model.plan(&key);
    assert_eq!(
        plan.actions[0],
        Action::Attach {
            disk: "root".to_owned(),
            attachment: attachment("web", "host-b", 2, 2),
            undo: None,
        }
    );
    let Action::UpdateInstance { spec, .. } = &plan.actions[1] else {
        panic!("{:?}", plan.actions);
    };
    assert_eq!(spec.host_epoch, 2);
    assert_eq!(plan.actions.len(), 2);
    model.settle(&key);
    assert_eq!(model.condition(&key, READY).status, "True");
}

#[test]
fn without_an_instance_an_attachment_is_proved_by_a_stopped_one() {
    let (mut model, key) = quickstart();
    let plan = model.plan(&key);
    // The operator died after it had given the disk.
    for action in &plan.actions[..2] {
        model.apply_step(&key, action);
    }
    model.delete(&key);
    let plan = model.plan(&key);
    let [Action::CreateInstance(spec)] = &plan.actions[..] else {
        panic!("{:?}", plan.actions);
    };
    assert_eq!((&*spec.host, spec.power), ("host-b", Power::Stopped));
    model.settle(&key);
    assert!(model.machines.contains_key(&key));
    model.answer(&key);
    model.settle(&key);
    assert!(model.machines.is_empty() && model.instances.is_empty());
}

#[test]
fn a_start_goes_on_where_it_was_broken_off() {
    let (mut model, key) = quickstart();
    let plan = model.plan(&key);
    for action in &plan.actions[..2] {
        model.apply_step(&key, action);
    }
    let again = model.plan(&key);
    assert_eq!(again.actions, plan.actions[2..]);
}

#[test]
fn finalizers_forced_off_let_no_second_machine_start() {
    let (mut model, key) = running();
    model.machines.get_mut(&key).unwrap().metadata.finalizers = None;
    model.delete(&key);
    // The instance's too, and with it goes every trace but the attachment.
    model.instances.remove(&key);
    let mut again = with_disk(machine("other", 64), "root", Bus::Virtio);
    again.metadata.uid = Some("uid-2".to_owned());
    let other = model.add(again);
    model.settle(&other);
    let ready = model.condition(&other, READY);
    assert_eq!(ready.reason, "DiskInUse");
    assert!(ready.message.contains("host-b"), "{}", ready.message);
    assert!(model.instances.is_empty());
}

#[test]
fn an_instance_taken_away_by_hand_is_not_made_again() {
    let (mut model, key) = running();
    model.instances.remove(&key);
    model.settle(&key);
    assert!(model.instances.is_empty());
    assert_eq!(model.condition(&key, READY).reason, "InstanceVanished");
    // Neither stopping nor deleting it makes up for the proof.
    model.change(&key, |spec| spec.run_policy = RunPolicy::Stopped);
    model.settle(&key);
    assert_eq!(model.condition(&key, READY).reason, "InstanceVanished");
    model.delete(&key);
    model.settle(&key);
    assert!(model.machines.contains_key(&key) && model.instances.is_empty());
    word(&mut model, "host-b", 2);
    model.settle(&key);
    assert!(model.machines.is_empty());
}

#[test]
fn a_machine_made_again_waits_for_the_old_instance() {
    let (mut model, key) = running();
    model.machines.get_mut(&key).unwrap().metadata.finalizers = None;
    model.delete(&key);
    let mut again = with_disk(machine("web", 192), "root", Bus::Virtio);
    again.metadata.uid = Some("uid-2".to_owned());
    model.add(again);
    model.settle(&key);
    assert_eq!(
        model.condition(&key, READY).reason,
        "PreviousInstanceEnding"
    );
    model.answer(&key);
    model.settle(&key);
    let instance = &model.instances[&key];
    assert_eq!(
        instance.metadata.owner_references.as_ref().unwrap()[0].uid,
        "uid-2"
    );
    assert_eq!(instance.spec.config.disks[0].disk_epoch, 3);
}

#[test]
fn the_guests_end_is_told() {
    let (mut model, key) = running();
    let mut status = model.instances[&key].status.clone().unwrap();
    status.phase = InstancePhase::Restarting;
    status.reason = Some("GuestPowerOff".to_owned());
    status.restarts = 3;
    model.report(&key, status);
    model.settle(&key);
    assert_eq!(state(&model, &key), MachineState::Restarting);
    assert_eq!(model.condition(&key, READY).reason, "GuestPowerOff");
    assert_eq!(
        model.machines[&key].status.as_ref().unwrap().restarts,
        Some(3)
    );
}

#[test]
fn a_disk_in_deletion_is_not_attached_anew() {
    let (mut model, key) = quickstart();
    let mut disk = model.disks["root"].as_ref().clone();
    disk.metadata.deletion_timestamp = Some(at(1));
    model.disks.insert("root".to_owned(), Arc::new(disk));
    model.settle(&key);
    assert_eq!(
        model.condition(&key, READY).reason,
        "VirtualHardDiskNotReady"
    );
    assert!(model.instances.is_empty());
}

#[test]
fn a_token_that_is_taken_away_ends_nothing() {
    let (mut model, key) = running();
    model.change(&key, |spec| spec.restart_token = Some("again".to_owned()));
    model.settle(&key);
    model.answer(&key);
    model.settle(&key);
    model.change(&key, |spec| {
        spec.restart_token = None;
        // More than any host has: a restart that is asked for would end it here.
        spec.memory = ByteQuantity::from_bytes(1 << 40);
    });
    model.settle(&key);
    let instance = &model.instances[&key];
    assert_eq!(instance.metadata.deletion_timestamp, None);
    assert_eq!(instance.spec.restart_token, None);
}

#[test]
fn a_guest_that_waits_for_room_is_paused_with_the_reason() {
    let (mut model, key) = running();
    let mut status = model.instances[&key].status.clone().unwrap();
    status.phase = InstancePhase::Paused;
    status.reason = Some("PoolFull".to_owned());
    status.message = Some("disk \"root\": pool default is full".to_owned());
    model.report(&key, status.clone());
    model.settle(&key);
    assert_eq!(state(&model, &key), MachineState::Paused);
    let c = model.condition(&key, READY);
    assert_eq!((&*c.status, &*c.reason), ("False", "PoolFull"));
    assert_eq!(c.message, "disk \"root\": pool default is full");
    status.phase = InstancePhase::Running;
    status.reason = None;
    status.message = None;
    model.report(&key, status);
    model.settle(&key);
    assert_eq!(model.condition(&key, READY).status, "True");
}
