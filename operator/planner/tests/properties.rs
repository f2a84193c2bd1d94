//! Random lives of a small cluster. Whatever happens in whatever order: no disk is open in two guests, no address or
//! MAC is given twice, no host gives more memory than it has, and what is settled stays settled.
//!
//! Mutants that this suite was seen to kill: a disk detached when its instance is merely deleted; an attachment given
//! over one that is there; a disk detached by the proof of another host; an instance made again after it was taken
//! away by hand; a word that also ends its own epoch; memory counted without what a guest still holds, or without
//! overhead; a changed machine ordered without asking whether it fits; an address given without asking who has it;
//! a start placed on another host than its attachment's.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{Model, host, key, machine, network, ready_disk, with_adapter, with_disk};
use paddock_crds::{
    quantity::ByteQuantity,
    virtual_machine::{Bus, RunPolicy},
    virtual_machine_instance::{InstancePhase, Power, Released, VirtualMachineInstanceStatus},
};
use paddock_planner::{ObjectKey, identity, machine::Action, placement::Availability};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const MACHINES: u8 = 5;
const HOSTS: u8 = 3;

#[derive(Clone, Debug)]
enum Op {
    /// Plans for a machine and applies at most this many steps; with all of them, the status too.
    Operate(u8, u8),
    /// A host's agent looks at its instances.
    Agent(u8),
    Create(u8, u8, u8),
    Delete(u8),
    Policy(u8, u8),
    Memory(u8, u8),
    Restart(u8, u8),
    /// A host falls silent and is fenced; its guests go on.
    Silence(u8),
    Return(u8),
    /// A silent host is turned off, and a person says so.
    Word(u8),
    /// Somebody takes the finalizers off a machine, or its instance away.
    ForceMachine(u8),
    ForceInstance(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let machine = 0..MACHINES;
    let host = 0..HOSTS;
    prop_oneof![
        12 => (machine.clone(), 0..8u8).prop_map(|(m, n)| Op::Operate(m, n)),
        8 => host.clone().prop_map(Op::Agent),
        4 => (machine.clone(), 0..16u8, 0..8u8).prop_map(|(m, d, a)| Op::Create(m, d, a)),
        2 => machine.clone().prop_map(Op::Delete),
        2 => (machine.clone(), 0..3u8).prop_map(|(m, p)| Op::Policy(m, p)),
        2 => (machine.clone(), 0..8u8).prop_map(|(m, n)| Op::Memory(m, n)),
        1 => (machine.clone(), 0..4u8).prop_map(|(m, n)| Op::Restart(m, n)),
        2 => host.clone().prop_map(Op::Silence),
        3 => host.clone().prop_map(Op::Return),
        1 => host.prop_map(Op::Word),
        1 => machine.clone().prop_map(Op::ForceMachine),
        1 => machine.prop_map(Op::ForceInstance),
    ]
}

/// A guest that really runs.
#[derive(Clone, Debug)]
struct Guest {
    host: String,
    disks: BTreeSet<String>,
    macs: BTreeSet<String>,
    mebibytes: i64,
}

struct Cluster {
    model: Model,
    epochs: BTreeMap<String, i64>,
    /// By UID of the instance: a guest outlives its object.
    guests: BTreeMap<String, Guest>,
    born: u64,
}

fn host_name(n: u8) -> String {
    format!("host-{n}")
}

fn machine_key(n: u8) -> ObjectKey {
    key(&format!("m{n}"))
}

impl Cluster {
    fn new() -> Self {
        let mut model = Model::new((0..HOSTS).map(|n| host(&host_name(n), "1Gi")).collect());
        for n in 0..4 {
            let bound = (n % 2 == 0).then(|| host_name(n % HOSTS));
            model.add_disk(ready_disk(&format!("d{n}"), bound.as_deref()));
        }
        model.add_network(network("lab", Some(("192.168.50.9", "192.168.50.12"))));
        Self {
            model,
            epochs: (0..HOSTS).map(|n| (host_name(n), 1)).collect(),
            guests: BTreeMap::new(),
            born: 0,
        }
    }

    fn set_host(&mut self, name: &str, availability: Availability) {
        for host in &mut self.model.hosts {
            if host.name() == name {
                host.availability = availability.clone();
            }
        }
    }

    fn is_ready(&self, name: &str) -> bool {
        let mut hosts = self.model.hosts.iter();
        hosts.any(|h| h.name() == name && h.epoch().is_some())
    }

    fn run(&mut self, op: &Op) {
        self.model.now += 1;
        match op {
            Op::Operate(m, steps) => self.operate(&machine_key(*m), usize::from(*steps)),
            Op::Agent(h) => self.agent(&host_name(*h)),
            Op::Create(m, disks, adapters) => self.create(*m, *disks, *adapters),
            Op::Delete(m) => {
                let key = machine_key(*m);
                if self.model.machines.contains_key(&key) {
                    self.model.delete(&key);
                }
            }
            Op::Policy(m, p) => self.change(*m, |spec| {
                spec.run_policy =
                    [RunPolicy::Running, RunPolicy::Stopped, RunPolicy::Paused][usize::from(*p)];
            }),
            Op::Memory(m, n) => self.change(*m, |spec| {
                spec.memory = ByteQuantity::from_bytes((16 + 96 * u64::from(*n)) << 20);
            }),
            Op::Restart(m, n) => {
                self.change(*m, |spec| spec.restart_token = Some(n.to_string()));
            }
            Op::Silence(h) => {
                let name = host_name(*h);
                if self.is_ready(&name) {
                    *self.epochs.get_mut(&name).unwrap() += 1;
                    let gone = Availability::NotReady {
                        reason: "LeaseExpired",
                        message: "silent".to_owned(),
                    };
                    self.set_host(&name, gone);
                }
            }
            Op::Return(h) => {
                let name = host_name(*h);
                let epoch = self.epochs[&name];
                self.set_host(&name, Availability::Ready { epoch });
            }
            Op::Word(h) => {
                let name = host_name(*h);
                if !self.is_ready(&name) {
                    self.guests.retain(|_, guest| guest.host != name);
                    let below = self.epochs[&name];
                    for host in &mut self.model.hosts {
                        if host.name() == name {
                            host.ended_below = Some(below);
                        }
                    }
                }
            }
            Op::ForceMachine(m) => {
                let key = machine_key(*m);
                if let Some(vm) = self.model.machines.get_mut(&key) {
                    vm.metadata.finalizers = None;
                    self.model.delete(&key);
                }
            }
            Op::ForceInstance(m) => {
                let key = machine_key(*m);
                // In the moment before the status first tells of it, its going cannot be told from never having been.
                let told = self
                    .model
                    .machines
                    .get(&key)
                    .is_none_or(|vm| vm.status.as_ref().is_some_and(|s| s.restarts.is_some()));
                if told {
                    self.model.instances.remove(&key);
                }
            }
        }
    }

    fn change(&mut self, m: u8, change: impl FnOnce(&mut paddock_crds::VirtualMachineSpec)) {
        let key = machine_key(m);
        if self.model.machines.contains_key(&key) {
            self.model.change(&key, change);
        }
    }

    fn create(&mut self, m: u8, disks: u8, adapters: u8) {
        let key = machine_key(m);
        if self.model.machines.contains_key(&key) {
            return;
        }
        let mut vm = machine(&key.name, 64 + 64 * u64::from(adapters));
        for n in (0..4).filter(|n| disks & (1 << n) != 0) {
            vm = with_disk(vm, &format!("d{n}"), Bus::Virtio);
        }
        for _ in 0..adapters % 3 {
            let mac = (adapters == 4).then_some("02:00:00:00:00:01");
            vm = with_adapter(vm, Some("lab"), mac);
        }
        self.born += 1;
        vm.metadata.uid = Some(format!("uid-vm-{}", self.born));
        vm.metadata.creation_timestamp = Some(model::at(self.model.now));
        self.model.add(vm);
    }

    fn operate(&mut self, key: &ObjectKey, steps: usize) {
        let plan = self.model.plan(key);
        if steps >= plan.actions.len() {
            self.model.apply(key, &plan);
        } else {
            for action in &plan.actions[..steps] {
                self.model.apply_step(key, action);
            }
        }
    }

    fn agent(&mut self, host: &str) {
        if !self.is_ready(host) {
            return;
        }
        let epoch = self.epochs[host];
        for instance in self.model.instances.values_mut() {
            if instance.spec.host != host {
                continue;
            }
            let uid = identity::uid(&instance.metadata).to_owned();
            let spec = &instance.spec;
            let mut status = instance.status.clone().unwrap_or_default();
            if identity::deleting(&instance.metadata) || spec.power == Power::Stopped {
                self.guests.remove(&uid);
                status.released = Some(Released {
                    host_epoch: epoch,
                    time: "2026-01-01T00:00:00Z".to_owned(),
                });
                status.phase = InstancePhase::Stopped;
            } else if spec.host_epoch == epoch {
                let restart =
                    spec.restart_token.is_some() && spec.restart_token != status.restart_token;
                if restart || !self.guests.contains_key(&uid) {
                    let config = &spec.config;
                    let disks = config.disks.iter().map(|d| d.virtual_hard_disk.clone());
                    let macs = config
                        .network_adapters
                        .iter()
                        .map(|a| a.mac_address.clone());
                    self.guests.insert(
                        uid,
                        Guest {
                            host: host.to_owned(),
                            disks: disks.collect(),
                            macs: macs.collect(),
                            mebibytes: config.memory_mebibytes,
                        },
                    );
                    status = VirtualMachineInstanceStatus {
                        started_config_revision: Some(spec.config_revision.clone()),
                        restart_token: spec.restart_token.clone(),
                        ..status
                    };
                }
                status.phase = match spec.power {
                    Power::Paused => InstancePhase::Paused,
                    _ => InstancePhase::Running,
                };
            }
            instance.status = Some(status);
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mut disks = BTreeMap::new();
        for (uid, guest) in &self.guests {
            for disk in &guest.disks {
                if let Some(other) = disks.insert(disk.clone(), uid.clone()) {
                    return Err(TestCaseError::fail(format!(
                        "{disk} is open in {other} and {uid}"
                    )));
                }
            }
        }
        let mut addresses = BTreeSet::new();
        let mut macs = BTreeSet::new();
        for (key, instance) in &self.model.instances {
            for adapter in &instance.spec.config.network_adapters {
                let address = adapter.ip_address.clone();
                prop_assert!(
                    address.is_none_or(|a| addresses.insert(a)),
                    "{key}: an address was given twice"
                );
                prop_assert!(
                    macs.insert(adapter.mac_address.clone()),
                    "{key}: a MAC was given twice"
                );
            }
        }
        for n in 0..HOSTS {
            let name = host_name(n);
            let given = self.model.allocated(&name);
            prop_assert!(given <= 1 << 30, "{name} gives {given} bytes");
            // What guests really have, those with an instance: never more than is counted.
            let real: u64 = self
                .model
                .instances
                .values()
                .filter(|i| i.spec.host == name)
                .filter_map(|i| self.guests.get(identity::uid(&i.metadata)))
                .map(|g| paddock_planner::memory::need_of_mebibytes(g.mebibytes))
                .sum();
            prop_assert!(real <= given, "{name}: {real} bytes used, {given} counted");
        }
        Ok(())
    }

    /// Plans until nothing changes; then nothing may change a minute later either.
    fn settled(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..40 {
            let before = (self.model.made, self.statuses());
            for m in 0..MACHINES {
                self.operate(&machine_key(m), usize::MAX);
                self.check()?;
            }
            for h in 0..HOSTS {
                self.agent(&host_name(h));
                self.check()?;
            }
            if (self.model.made, self.statuses()) == before {
                self.model.now += 60;
                for m in 0..MACHINES {
                    let key = machine_key(m);
                    let plan = self.model.plan(&key);
                    prop_assert_eq!(plan.actions, Vec::<Action>::new());
                    let now = self
                        .model
                        .machines
                        .get(&key)
                        .and_then(|vm| vm.status.clone());
                    prop_assert!(plan.status.is_none() || plan.status == now);
                }
                return Ok(());
            }
        }
        Err(TestCaseError::fail("it never settles"))
    }

    fn statuses(&self) -> String {
        let machines = self.model.machines.values().map(|vm| &vm.status);
        let instances = self.model.instances.values().map(|i| &i.status);
        format!(
            "{:?} {:?}",
            machines.collect::<Vec<_>>(),
            instances.collect::<Vec<_>>()
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4_096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_given_twice(ops in proptest::collection::vec(op(), 1..80)) {
        let mut cluster = Cluster::new();
        for op in &ops {
            cluster.run(op);
            cluster.check()?;
        }
        cluster.settled()?;
    }
}

/// The random lives reach what they are to test: guests that run, stop, and share nothing.
#[test]
fn a_plain_life_has_guests() {
    let mut cluster = Cluster::new();
    cluster.create(0, 0b0001, 1);
    cluster.create(1, 0b0010, 2);
    cluster.create(2, 0b0001, 0);
    cluster.settled().unwrap();
    assert_eq!(cluster.guests.len(), 2);
    let disks: Vec<_> = cluster.guests.values().flat_map(|g| &g.disks).collect();
    assert_eq!(disks.len(), 2);
    assert!(cluster.guests.values().any(|g| !g.macs.is_empty()));
}
