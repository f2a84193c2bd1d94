//! What is decided for a machine, step by step, with exact values.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{
    Model, at, host, key, machine, network, ready_disk, unmade_disk, with_adapter, with_disk,
};
use paddock_crds::{
    names::condition::{DELETING, READY, RESTART_REQUIRED, SCHEDULED},
    quantity::ByteQuantity,
    virtual_hard_disk::{Attachment, AttachmentOwner, OwnerKind},
    virtual_machine::{Bus, MachineState, RunPolicy},
    virtual_machine_instance::{InstancePhase, Power},
};
use paddock_planner::{
    ObjectKey,
    address::derived_mac,
    machine::{Action, held_memory},
    placement::Availability,
};
use std::sync::Arc;

fn attachment(vm: &str, host: &str, host_epoch: i64, disk_epoch: i64) -> Attachment {
    Attachment {
        owner: AttachmentOwner {
            kind: OwnerKind::VirtualMachine,
            name: vm.to_owned(),
            uid: format!("uid-{vm}"),
        },
        host: host.to_owned(),
        host_epoch,
        disk_epoch,
    }
}

fn quickstart() -> (Model, ObjectKey) {
    let mut model = Model::new(vec![host("host-a", "2Gi"), host("host-b", "2Gi")]);
    model.add_disk(ready_disk("root", Some("host-b")));
    model.add_network(network("lab", None));
    let vm = with_adapter(
        with_disk(machine("web", 192), "root", Bus::Virtio),
        Some("lab"),
        None,
    );
    let key = model.add(vm);
    (model, key)
}

fn running() -> (Model, ObjectKey) {
    let (mut model, key) = quickstart();
    model.settle(&key);
    model.answer(&key);
    model.settle(&key);
    assert_eq!(model.condition(&key, READY).status, "True");
    (model, key)
}

fn silence(model: &mut Model, name: &str) {
    for host in &mut model.hosts {
        if host.name() == name {
            host.availability = Availability::NotReady {
                reason: "LeaseExpired",
                message: "its agent has been silent".to_owned(),
            };
        }
    }
}

fn ready(model: &mut Model, name: &str, epoch: i64) {
    for host in &mut model.hosts {
        if host.name() == name {
            host.availability = Availability::Ready { epoch };
        }
    }
}

fn word(model: &mut Model, name: &str, below: i64) {
    for host in &mut model.hosts {
        if host.name() == name {
            host.ended_below = Some(below);
        }
    }
}

fn state(model: &Model, key: &ObjectKey) -> MachineState {
    model.machines[key].status.as_ref().unwrap().state
}

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
fn a_kept_address_outside_the_range_is_given_up() {
    let (mut model, key) = running();
    model.change(&key, |spec| spec.run_policy = RunPolicy::Stopped);
    model.settle(&key);
    model.answer(&key);
    model.settle(&key);
    let mut narrowed = model.networks["lab"].as_ref().clone();
    narrowed.spec.dhcp.reserved_count = 32;
    model.add_network(narrowed);
    model.change(&key, |spec| spec.run_policy = RunPolicy::Running);
    model.settle(&key);
    let adapter = &model.instances[&key].spec.config.network_adapters[0];
    assert_eq!(adapter.ip_address.as_deref(), Some("192.168.50.33"));
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
fn changed_memory_takes_effect_at_the_next_start_and_is_kept_until_then() {
    let (mut model, key) = running();
    model.change(&key, |spec| {
        spec.memory = ByteQuantity::from_bytes(64 << 20)
    });
    model.settle(&key);
    let restart = model.condition(&key, RESTART_REQUIRED);
    assert_eq!(
        (&*restart.status, &*restart.reason),
        ("True", "SpecChanged")
    );
    assert_eq!(model.condition(&key, READY).status, "True");
    let instance = &model.instances[&key];
    assert_eq!(instance.spec.config.memory_mebibytes, 64);
    assert_eq!(held_memory(instance), Some(192));
    model.change(&key, |spec| spec.restart_token = Some("1".to_owned()));
    model.settle(&key);
    assert_eq!(model.condition(&key, READY).reason, "RestartAsked");
    model.answer(&key);
    model.settle(&key);
    assert_eq!(model.condition(&key, RESTART_REQUIRED).status, "False");
    assert_eq!(held_memory(&model.instances[&key]), None);
}

#[test]
fn a_disk_that_is_added_to_a_running_machine_is_taken_before_others_plan() {
    let (mut model, key) = running();
    model.add_disk(ready_disk("data", Some("host-b")));
    assert_eq!(model.plan(&key).reservation, None);
    let vm = with_disk(machine("x", 1), "data", Bus::Virtio);
    model.change(&key, |spec| spec.disks.extend(vm.spec.disks));
    let plan = model.plan(&key);
    let taken = plan.reservation.clone().unwrap();
    assert_eq!(
        (&*taken.host, taken.memory, taken.disks),
        // 192 MiB and what a machine of that size takes besides: as much as its instance.
        (
            "host-b",
            337_557_585,
            vec!["root".to_owned(), "data".to_owned()]
        )
    );
    model.apply(&key, &plan);
    assert_eq!(model.plan(&key).reservation, None);
}

#[test]
fn memory_that_does_not_fit_is_not_ordered() {
    let (mut model, key) = running();
    model.change(&key, |spec| spec.memory = ByteQuantity::from_bytes(4 << 30));
    model.settle(&key);
    assert_eq!(model.instances[&key].spec.config.memory_mebibytes, 192);
    let restart = model.condition(&key, RESTART_REQUIRED);
    assert_eq!(
        (&*restart.status, &*restart.reason),
        ("True", "Unschedulable")
    );
    assert!(
        restart.message.contains("memory short by"),
        "{}",
        restart.message
    );
    // A restart that is asked for ends it, to be placed anew.
    model.change(&key, |spec| spec.restart_token = Some("1".to_owned()));
    assert_eq!(model.plan(&key).actions, [Action::DeleteInstance]);
    model.settle(&key);
    model.answer(&key);
    model.settle(&key);
    assert_eq!(state(&model, &key), MachineState::Pending);
    assert_eq!(model.condition(&key, SCHEDULED).status, "False");
}

#[test]
fn an_address_stays_with_the_guest_that_has_it() {
    let (mut model, key) = running();
    model.add_network(network("two", None));
    model.change(&key, |spec| {
        spec.network_adapters[0]
            .virtual_network_ref
            .as_mut()
            .unwrap()
            .name = "two".to_owned();
    });
    model.settle(&key);
    let status = model.machines[&key].status.clone().unwrap();
    assert_eq!(
        status.network_adapters[0].virtual_network.as_deref(),
        Some("lab")
    );
    let second = model.add(with_adapter(machine("second", 64), Some("lab"), None));
    model.settle(&second);
    assert_eq!(
        model.machines[&second]
            .status
            .as_ref()
            .unwrap()
            .ip_address
            .as_deref(),
        Some("192.168.50.18")
    );
}

#[test]
fn two_adapters_on_one_network_get_two_addresses() {
    let (mut model, _) = quickstart();
    let vm = with_adapter(
        with_adapter(machine("two", 64), Some("lab"), None),
        Some("lab"),
        None,
    );
    let key = model.add(vm);
    model.settle(&key);
    let adapters = &model.instances[&key].spec.config.network_adapters;
    let addresses: Vec<_> = adapters
        .iter()
        .map(|a| a.ip_address.clone().unwrap())
        .collect();
    assert_eq!(addresses, ["192.168.50.17", "192.168.50.18"]);
    assert_ne!(adapters[0].mac_address, adapters[1].mac_address);
}

#[test]
fn the_later_machine_with_a_mac_address_is_not_started() {
    let mut model = Model::new(vec![host("host-a", "2Gi")]);
    let mac = Some("02:00:00:00:00:01");
    let mut early = with_adapter(machine("zeta", 64), None, mac);
    early.metadata.creation_timestamp = Some(at(50));
    let early = model.add(early);
    let late = model.add(with_adapter(machine("alpha", 64), None, mac));
    model.settle(&late);
    let ready = model.condition(&late, READY);
    assert_eq!(ready.reason, "MacAddressInUse");
    assert!(ready.message.contains("t/zeta"), "{}", ready.message);
    assert_eq!(state(&model, &late), MachineState::Failed);
    model.settle(&early);
    assert!(model.instances.contains_key(&early));
    assert!(!model.instances.contains_key(&late));
    // Once mended it goes on.
    model.change(&late, |spec| spec.network_adapters[0].mac_address = None);
    model.settle(&late);
    assert!(model.instances.contains_key(&late));
}

#[test]
fn every_refusal_has_its_reason() {
    let mut model = Model::new(vec![host("host-a", "2Gi")]);
    let mut large = ready_disk("large", None);
    large.status.as_mut().unwrap().size_bytes = Some((127 << 30) + 512);
    model.add_disk(large);
    let mut limit = ready_disk("limit", None);
    limit.status.as_mut().unwrap().size_bytes = Some(127 << 30);
    model.add_disk(limit);
    model.add_disk(ready_disk("fine", None));
    model.add_network(network("tiny", Some(("192.168.50.9", "192.168.50.9"))));
    let mut broken = network("broken", None);
    broken.spec.subnet = Some("10.0.0.0/30".to_owned());
    model.add_network(broken);
    let tiny = model.add(with_adapter(machine("has-tiny", 64), Some("tiny"), None));
    model.settle(&tiny);
    assert!(model.instances.contains_key(&tiny));
    let m = || machine("m", 64);
    let cases = [
        (
            with_disk(m(), "none", Bus::Ide),
            "VirtualHardDiskNotFound",
            MachineState::Pending,
        ),
        (
            with_disk(m(), "large", Bus::Ide),
            "DiskTooLargeForBus",
            MachineState::Failed,
        ),
        (
            with_disk(with_disk(m(), "fine", Bus::Ide), "fine", Bus::Virtio),
            "DuplicateDisk",
            MachineState::Failed,
        ),
        (
            with_adapter(m(), Some("none"), None),
            "VirtualNetworkNotFound",
            MachineState::Pending,
        ),
        (
            with_adapter(m(), Some("broken"), None),
            "VirtualNetworkNotReady",
            MachineState::Pending,
        ),
        (
            with_adapter(m(), Some("tiny"), None),
            "AddressesExhausted",
            MachineState::Pending,
        ),
        (machine("m", 4096), "Unschedulable", MachineState::Pending),
    ];
    for (vm, reason, expected) in cases {
        let key = model.add(vm);
        model.settle(&key);
        assert_eq!(model.condition(&key, READY).reason, reason);
        assert_eq!(state(&model, &key), expected, "{reason}");
        assert!(!model.instances.contains_key(&key), "{reason}");
        assert!(model.plan(&key).pending, "{reason}");
    }
    let key = model.add(with_disk(m(), "limit", Bus::Ide));
    model.settle(&key);
    assert!(model.instances.contains_key(&key));
}

#[test]
fn disks_take_their_places_in_order() {
    let mut model = Model::new(vec![host("host-a", "8Gi")]);
    let mut vm = machine("m", 64);
    for i in 0..9 {
        model.add_disk(ready_disk(&format!("d{i}"), None));
        let bus = if i < 2 { Bus::Ide } else { Bus::Scsi };
        vm = with_disk(vm, &format!("d{i}"), bus);
    }
    model.add_disk(ready_disk("d9", None));
    vm = with_disk(vm, "d9", Bus::Ide);
    vm.metadata.name = Some("m".to_owned());
    let key = model.add(vm);
    model.settle(&key);
    let disks = &model.instances[&key].spec.config.disks;
    let places: Vec<_> = disks
        .iter()
        .map(|d| (d.bus, d.controller, d.unit))
        .collect();
    assert_eq!(places[..2], [(Bus::Ide, 0, 0), (Bus::Ide, 0, 1)]);
    assert_eq!(places[2], (Bus::Scsi, 0, 0));
    assert_eq!(places[8], (Bus::Scsi, 0, 6));
    assert_eq!(places[9], (Bus::Ide, 1, 0));
}

#[test]
fn an_unmade_disk_is_bound_to_the_machines_host() {
    let mut model = Model::new(vec![host("host-a", "1Gi"), host("host-b", "2Gi")]);
    model.add_disk(unmade_disk("root", "default"));
    let key = model.add(with_disk(machine("web", 64), "root", Bus::Virtio));
    let plan = model.plan(&key);
    assert_eq!(
        plan.actions,
        [
            Action::AddFinalizer,
            Action::Bind {
                disk: "root".to_owned(),
                host: "host-b".to_owned()
            }
        ]
    );
    assert_eq!(plan.reservation.as_ref().unwrap().host, "host-b");
    model.apply(&key, &plan);
    assert_eq!(
        model.condition(&key, READY).reason,
        "VirtualHardDiskNotReady"
    );
    assert_eq!(model.condition(&key, SCHEDULED).status, "True");
    assert_eq!(model.plan(&key).actions, []);
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
fn machine_names_with_dots_are_one_label_for_the_guest() {
    let mut model = Model::new(vec![host("host-a", "2Gi")]);
    let mut vm = machine("m", 64);
    vm.metadata.name = Some("web.example".to_owned());
    let named = model.add(vm);
    model.settle(&named);
    assert_eq!(model.instances[&named].spec.config.hostname, "web-example");
    assert_eq!(named, key("web.example"));
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
