//! What a machine is given: memory, addresses, places for its disks, a name; and why it gets none.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{
    Model, at, host, key, machine,
    machines::{quickstart, running, state},
    network, ready_disk, unmade_disk, with_adapter, with_disk,
};
use paddock_crds::{
    names::condition::{READY, RESTART_REQUIRED, SCHEDULED},
    quantity::ByteQuantity,
    virtual_machine::{Bus, MachineState, RunPolicy},
};
use paddock_planner::machine::{Action, held_memory};

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
fn a_disk_given_to_a_running_machine_is_made_where_it_runs() {
    let (mut model, key) = running();
    model.add_disk(unmade_disk("data", "default"));
    let memory = model.machines[&key].spec.memory.clone();
    // Not where it cannot go on as it is to be.
    model.change(&key, |spec| {
        let mut disk = spec.disks[0].clone();
        disk.name = "data".to_owned();
        disk.virtual_hard_disk_ref.name = "data".to_owned();
        spec.disks.push(disk);
        spec.memory = ByteQuantity::from_bytes(64 << 30);
    });
    assert_eq!(model.plan(&key).actions, []);
    // Nor does a restart wait there for what is never made there.
    model.change(&key, |spec| {
        spec.restart_token = Some("elsewhere".to_owned())
    });
    assert_eq!(model.plan(&key).actions, [Action::DeleteInstance]);
    model.change(&key, |spec| {
        spec.restart_token = None;
        spec.memory = memory;
    });
    let bind = [Action::Bind {
        disk: "data".to_owned(),
        host: "host-b".to_owned(),
    }];
    assert_eq!(model.plan(&key).actions, bind);
    // A restart that is asked for with it waits for it.
    model.change(&key, |spec| {
        spec.restart_token = Some("with data".to_owned())
    });
    assert_eq!(model.plan(&key).actions, bind);
    model.settle(&key);
    assert_eq!(model.instances[&key].spec.restart_token, None);
    model.add_disk(ready_disk("data", Some("host-b")));
    model.settle(&key);
    let spec = &model.instances[&key].spec;
    assert_eq!(spec.restart_token.as_deref(), Some("with data"));
    assert_eq!(spec.config.disks.len(), 2);
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
