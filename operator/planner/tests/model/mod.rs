//! A small API server without a network: objects in maps, plans applied step by step.

#![allow(dead_code)] // Each test file uses its part of it.

pub mod asked;
pub mod disks;
pub mod life;
pub mod machines;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use paddock_crds::{
    Host, HostSpec, HostStatus, VirtualHardDisk, VirtualHardDiskSpec, VirtualHardDiskStatus,
    VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceStatus, VirtualMachineSpec,
    VirtualNetwork, VirtualNetworkSpec,
    host::{Accelerator, Capacity, Pool, PoolKind, PoolScope, PoolState, PoolStatus},
    names::{INSTANCE_FINALIZER, MACHINE_FINALIZER},
    network::{Dhcp, DhcpMode, NetworkType},
    quantity::ByteQuantity,
    reference::{Condition, LocalReference, Time, condition},
    virtual_hard_disk::{
        Access, BoundFile, Compaction, DiskFile, DiskState, FileMode, ReclaimPolicy,
    },
    virtual_machine::{
        Acceleration, AdapterModel, Bus, Cpu, Disk, Machine, NetworkAdapter, RunPolicy, UndoDisks,
    },
    virtual_machine_instance::{InstancePhase, Power, Released},
};
use paddock_planner::{
    ObjectKey,
    address::{AddressClaims, MacClaims, Source},
    disk, identity,
    machine::{self, Action, HELD_MEMORY_ANNOTATION, Plan, Snapshot},
    placement::{Availability, HostView},
    resolve::{Readers, References},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub const NAMESPACE: &str = "t";

pub fn key(name: &str) -> ObjectKey {
    ObjectKey::new(NAMESPACE, name)
}

pub fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

pub fn metadata(name: &str, uid: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        uid: Some(uid.to_owned()),
        generation: Some(1),
        creation_timestamp: Some(at(100)),
        ..ObjectMeta::default()
    }
}

pub fn machine(name: &str, mebibytes: u64) -> VirtualMachine {
    VirtualMachine {
        metadata: metadata(name, &format!("uid-{name}")),
        spec: VirtualMachineSpec {
            run_policy: RunPolicy::Running,
            machine: Machine::Pc,
            acceleration: Acceleration::Auto,
            cpu: Cpu { cores: 1 },
            memory: ByteQuantity::from_bytes(mebibytes << 20),
            boot: None,
            disks: vec![],
            network_adapters: vec![],
            host_selector: None,
            restart_token: None,
            stop_deadline_seconds: 60,
            undo_disks: UndoDisks::default(),
        },
        status: None,
    }
}

pub fn with_disk(mut vm: VirtualMachine, name: &str, bus: Bus) -> VirtualMachine {
    vm.spec.disks.push(Disk {
        name: format!("disk-{}", vm.spec.disks.len()),
        bus,
        virtual_hard_disk_ref: LocalReference {
            name: name.to_owned(),
        },
    });
    vm
}

pub fn with_adapter(
    mut vm: VirtualMachine,
    network: Option<&str>,
    mac: Option<&str>,
) -> VirtualMachine {
    vm.spec.network_adapters.push(NetworkAdapter {
        name: format!("net-{}", vm.spec.network_adapters.len()),
        model: AdapterModel::Auto,
        virtual_network_ref: network.map(|name| LocalReference {
            name: name.to_owned(),
        }),
        mac_address: mac.map(str::to_owned),
    });
    vm
}

pub fn unmade_disk(name: &str, pool: &str) -> VirtualHardDisk {
    VirtualHardDisk {
        metadata: metadata(name, &format!("uid-{name}")),
        spec: VirtualHardDiskSpec {
            disk_type: None,
            size: Some(ByteQuantity::from_bytes(1 << 30)),
            file: DiskFile {
                pool: pool.to_owned(),
                path: None,
                mode: FileMode::Create,
            },
            source: None,
            parent_ref: None,
            linked: None,
            access: Access::ReadWrite,
            compaction: Compaction::default(),
            reclaim_policy: ReclaimPolicy::Retain,
        },
        status: None,
    }
}

pub fn ready_disk(name: &str, host: Option<&str>) -> VirtualHardDisk {
    let pool = if host.is_some() { "default" } else { "shared" };
    let mut disk = unmade_disk(name, pool);
    disk.status = Some(VirtualHardDiskStatus {
        state: DiskState::Ready,
        host: host.map(str::to_owned),
        file: Some(BoundFile {
            pool: pool.to_owned(),
            path: format!("{name}.vhd"),
        }),
        size_bytes: Some(1 << 30),
        disk_epoch: 1,
        ..VirtualHardDiskStatus::default()
    });
    disk
}

pub fn network(name: &str, range: Option<(&str, &str)>) -> VirtualNetwork {
    VirtualNetwork {
        metadata: metadata(name, &format!("uid-{name}")),
        spec: VirtualNetworkSpec {
            network_type: NetworkType::Internal,
            uplink: None,
            notes: None,
            subnet: Some("192.168.50.0/24".to_owned()),
            host_address: None,
            dhcp: Dhcp {
                mode: DhcpMode::Enabled,
                range_start: range.map(|r| r.0.to_owned()),
                range_end: range.map(|r| r.1.to_owned()),
                reserved_count: if range.is_some() { 0 } else { 16 },
                ..Dhcp::default()
            },
        },
        status: None,
    }
}

pub fn host(name: &str, memory: &str) -> HostView {
    let pools = [
        ("default", PoolScope::Local, vec![PoolKind::Disks]),
        ("shared", PoolScope::Shared, vec![PoolKind::Disks]),
        ("images", PoolScope::Shared, vec![PoolKind::Images]),
    ];
    let mut object = Host::new(
        name,
        HostSpec {
            pools: pools
                .iter()
                .map(|(name, scope, kinds)| Pool {
                    name: (*name).to_owned(),
                    path: format!("/pools/{name}"),
                    scope: *scope,
                    kinds: kinds.clone(),
                })
                .collect(),
            ..HostSpec::default()
        },
    );
    object.status = Some(HostStatus {
        capacity: Some(Capacity {
            cores: 4,
            memory_bytes: 64 << 30,
        }),
        memory: Some(memory.to_owned()),
        accelerator: Some(Accelerator::Emulation),
        pools: pools
            .iter()
            .map(|(name, ..)| PoolStatus {
                name: (*name).to_owned(),
                capacity_bytes: None,
                free_bytes: None,
                state: PoolState::Available,
                message: None,
            })
            .collect(),
        ..HostStatus::default()
    });
    HostView {
        host: Arc::new(object),
        availability: Availability::Ready { epoch: 1 },
        ended_below: None,
        allocated: 0,
    }
}

/// Everything there is.
#[derive(Clone, Default)]
pub struct Model {
    pub machines: BTreeMap<ObjectKey, VirtualMachine>,
    pub instances: BTreeMap<ObjectKey, VirtualMachineInstance>,
    pub disks: BTreeMap<String, Arc<VirtualHardDisk>>,
    pub networks: BTreeMap<String, Arc<VirtualNetwork>>,
    pub readers: BTreeMap<String, Readers>,
    pub hosts: Vec<HostView>,
    pub made: u64,
    pub now: i64,
}

impl Model {
    pub fn new(hosts: Vec<HostView>) -> Self {
        Self {
            hosts,
            now: 1_000,
            ..Self::default()
        }
    }

    pub fn add(&mut self, vm: VirtualMachine) -> ObjectKey {
        let key = ObjectKey::of(&vm.metadata);
        self.machines.insert(key.clone(), vm);
        key
    }

    pub fn add_disk(&mut self, disk: VirtualHardDisk) {
        let name = identity::name(&disk.metadata).to_owned();
        self.disks.insert(name, Arc::new(disk));
    }

    pub fn add_network(&mut self, network: VirtualNetwork) {
        let name = identity::name(&network.metadata).to_owned();
        self.networks.insert(name, Arc::new(network));
    }

    pub fn allocated(&self, host: &str) -> u64 {
        self.instances
            .values()
            .filter(|i| i.spec.host == host)
            .map(machine::instance_memory)
            .sum()
    }

    pub fn claims(&self) -> (MacClaims, AddressClaims) {
        let (mut macs, mut addresses) = (MacClaims::default(), AddressClaims::default());
        for (key, vm) in &self.machines {
            let created = vm.metadata.creation_timestamp.as_ref().map(|t| t.0);
            let named = vm.spec.network_adapters.iter();
            let spec = named.filter_map(|a| a.mac_address.as_ref()?.parse().ok());
            macs.replace(key, Source::Spec, created, vec![], spec.collect());
            let kept = vm.status.iter().flat_map(|s| &s.network_adapters);
            let status = kept.clone().filter_map(|a| a.mac_address.parse().ok());
            macs.replace(key, Source::Status, created, vec![], status.collect());
            let given = kept.filter_map(|a| {
                let network = ObjectKey::new(NAMESPACE, a.virtual_network.as_deref()?);
                Some((network, a.ip_address.as_ref()?.parse().ok()?))
            });
            addresses.replace(key, Source::Status, created, vec![], given.collect());
        }
        for (key, instance) in &self.instances {
            let adapters = &instance.spec.config.network_adapters;
            let held = adapters.iter().filter_map(|a| a.mac_address.parse().ok());
            macs.replace(key, Source::Instance, None, vec![], held.collect());
            let given = adapters.iter().filter_map(|a| {
                let (namespace, name) = a.network.as_ref()?.name.split_once('/')?;
                let network = ObjectKey::new(namespace, name);
                Some((network, a.ip_address.as_ref()?.parse().ok()?))
            });
            addresses.replace(key, Source::Instance, None, vec![], given.collect());
        }
        (macs, addresses)
    }

    pub fn plan(&self, key: &ObjectKey) -> Plan {
        let vm = self.machines.get(key);
        let instance = self.instances.get(key);
        let vm_uid = vm.map(|vm| identity::uid(&vm.metadata));
        let holder = instance.map(machine::owner_uid);
        let held: Vec<_> = self
            .disks
            .values()
            .filter(|d| {
                let attachment = d.status.as_ref().and_then(|s| s.attachment.as_ref());
                attachment
                    .is_some_and(|a| Some(&*a.owner.uid) == vm_uid || Some(&*a.owner.uid) == holder)
            })
            .cloned()
            .collect();
        let (macs, addresses) = self.claims();
        let hosts: Vec<HostView> = self
            .hosts
            .iter()
            .map(|h| HostView {
                allocated: self.allocated(h.name()),
                ..h.clone()
            })
            .collect();
        let now = at(self.now);
        machine::decide(&Snapshot {
            key,
            vm,
            instance,
            held: &held,
            references: References {
                disks: &self.disks,
                taken: &BTreeMap::new(),
                readers: &self.readers,
                networks: &self.networks,
                macs: &macs,
                addresses: &addresses,
                current: instance
                    .filter(|i| Some(machine::owner_uid(i)) == vm_uid)
                    .map(|i| i.spec.config.network_adapters.as_slice())
                    .unwrap_or_default(),
            },
            hosts: &hosts,
            reserved: None,
            shared_pools: &BTreeSet::from(["shared".to_owned(), "images".to_owned()]),
            never_ordered: false,
            now: &now,
        })
    }

    fn disk(&mut self, name: &str) -> &mut VirtualHardDisk {
        Arc::make_mut(
            self.disks
                .get_mut(name)
                .expect("a plan names disks that exist"),
        )
    }

    /// Applies one step as the API would take it.
    pub fn apply_step(&mut self, key: &ObjectKey, action: &Action) {
        self.made += 1;
        match action {
            Action::AddFinalizer => {
                let vm = self.machines.get_mut(key).unwrap();
                vm.metadata.finalizers = Some(vec![MACHINE_FINALIZER.to_owned()]);
            }
            Action::RemoveFinalizer => {
                self.machines.get_mut(key).unwrap().metadata.finalizers = None;
                self.collect(key);
            }
            Action::Bind { disk, host } => {
                let status = self.disk(disk).status.get_or_insert_default();
                assert_eq!(status.host, None, "a bound disk was bound again");
                status.host = Some(host.clone());
            }
            Action::Attach {
                disk,
                attachment,
                undo,
            } => {
                let found = self.disk(disk);
                let status = found.status.clone().unwrap_or_default();
                match &status.attachment {
                    Some(held) => {
                        assert_eq!(
                            (&held.owner.uid, held.disk_epoch),
                            (&attachment.owner.uid, attachment.disk_epoch),
                            "{disk} was attached to two owners"
                        );
                        assert_eq!(held.host, attachment.host);
                        assert!(attachment.host_epoch > held.host_epoch);
                    }
                    None => assert!(
                        attachment.disk_epoch > status.disk_epoch,
                        "the epoch of {disk} did not rise"
                    ),
                }
                let mut status = disk::attached(&status, attachment.clone());
                match (&mut status.undo, undo) {
                    (Some(has), Some(undo)) => has.machine_uid.clone_from(&undo.machine_uid),
                    (None, undo) => status.undo.clone_from(undo),
                    (Some(_), None) => {}
                }
                found.status = Some(status);
            }
            Action::SettleUndo { disk, state } => {
                let status = self.disk(disk).status.as_mut().unwrap();
                assert_eq!(status.attachment, None, "somebody uses {disk}");
                status.undo.as_mut().unwrap().state = *state;
            }
            Action::Detach {
                disk,
                owner_uid,
                undo,
            } => {
                let found = self.disk(disk);
                let status = found.status.clone().unwrap_or_default();
                let held = status.attachment.as_ref().expect("it is attached");
                assert_eq!(held.owner.uid, *owner_uid);
                let mut status = disk::detached(&status);
                if undo.is_some() {
                    assert!(status.undo.is_some(), "an undo disk came from nowhere");
                    status.undo.clone_from(undo);
                }
                found.status = Some(status);
            }
            Action::CreateInstance(spec) => {
                let vm = &self.machines[key];
                assert!(!self.instances.contains_key(key), "created twice");
                let mut metadata = metadata(&key.name, &format!("uid-i{}", self.made));
                metadata.finalizers = Some(vec![INSTANCE_FINALIZER.to_owned()]);
                metadata.owner_references = Some(vec![OwnerReference {
                    uid: identity::uid(&vm.metadata).to_owned(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]);
                let instance = VirtualMachineInstance {
                    metadata,
                    spec: spec.as_ref().clone(),
                    status: None,
                };
                self.instances.insert(key.clone(), instance);
            }
            Action::UpdateInstance { spec, held_memory } => {
                let instance = self.instances.get_mut(key).unwrap();
                assert_eq!(
                    instance.spec.host, spec.host,
                    "an instance stays on its host"
                );
                assert!(spec.host_epoch >= instance.spec.host_epoch);
                if instance.spec != **spec {
                    *instance.metadata.generation.get_or_insert_default() += 1;
                }
                instance.spec = spec.as_ref().clone();
                instance.metadata.annotations = held_memory
                    .map(|n| [(HELD_MEMORY_ANNOTATION.to_owned(), n.to_string())].into());
            }
            Action::DeleteInstance => {
                let now = at(self.now);
                let instance = self.instances.get_mut(key).unwrap();
                instance.metadata.deletion_timestamp = Some(now);
            }
            Action::ReleaseInstance => {
                let instance = self.instances.get_mut(key).unwrap();
                instance.metadata.finalizers = None;
                if identity::deleting(&instance.metadata) {
                    self.instances.remove(key);
                }
            }
        }
    }

    /// Removes a machine in deletion without finalizers, and lets the garbage collector delete its instance.
    pub fn collect(&mut self, key: &ObjectKey) {
        let vm = &self.machines[key];
        if identity::deleting(&vm.metadata) && vm.metadata.finalizers.is_none() {
            self.machines.remove(key);
            if let Some(instance) = self.instances.get_mut(key) {
                instance.metadata.deletion_timestamp = Some(at(self.now));
            }
        }
    }

    pub fn apply(&mut self, key: &ObjectKey, plan: &Plan) {
        for action in &plan.actions {
            self.apply_step(key, action);
        }
        if let (Some(vm), Some(status)) = (self.machines.get_mut(key), &plan.status) {
            vm.status = Some(status.clone());
        }
    }

    /// Plans and applies until nothing changes any more.
    pub fn settle(&mut self, key: &ObjectKey) {
        for _ in 0..10 {
            let plan = self.plan(key);
            let status = self.machines.get(key).and_then(|vm| vm.status.clone());
            let same = plan.status.is_none() || plan.status == status;
            if plan.actions.is_empty() && same {
                return;
            }
            self.apply(key, &plan);
        }
        panic!("{key} does not settle: {:?}", self.plan(key).actions);
    }

    /// The host's agent starts the instance, or stops it, as its spec says.
    pub fn answer(&mut self, key: &ObjectKey) {
        let Some(instance) = self.instances.get_mut(key) else {
            return;
        };
        let host = self.hosts.iter().find(|h| h.name() == instance.spec.host);
        let Some(epoch) = host.and_then(HostView::epoch) else {
            return;
        };
        let mut status = instance.status.clone().unwrap_or_default();
        if identity::deleting(&instance.metadata) || instance.spec.power == Power::Stopped {
            status.phase = InstancePhase::Stopped;
            status.released = Some(Released {
                host_epoch: epoch,
                time: "2026-01-01T00:00:00Z".to_owned(),
            });
        } else if instance.spec.host_epoch == epoch {
            let restart = instance.spec.restart_token.is_some()
                && instance.spec.restart_token != status.restart_token;
            if status.started_config_revision.is_none() || restart {
                status.started_config_revision = Some(instance.spec.config_revision.clone());
                status
                    .restart_token
                    .clone_from(&instance.spec.restart_token);
            }
            status.phase = match instance.spec.power {
                Power::Paused => InstancePhase::Paused,
                _ => InstancePhase::Running,
            };
        }
        instance.status = Some(status);
    }

    pub fn report(&mut self, key: &ObjectKey, status: VirtualMachineInstanceStatus) {
        self.instances.get_mut(key).unwrap().status = Some(status);
    }

    pub fn change(&mut self, key: &ObjectKey, change: impl FnOnce(&mut VirtualMachineSpec)) {
        let vm = self.machines.get_mut(key).unwrap();
        change(&mut vm.spec);
        *vm.metadata.generation.get_or_insert_default() += 1;
    }

    pub fn delete(&mut self, key: &ObjectKey) {
        let now = at(self.now);
        let vm = self.machines.get_mut(key).unwrap();
        vm.metadata.deletion_timestamp = Some(now);
        self.collect(key);
    }

    pub fn condition(&self, key: &ObjectKey, type_: &str) -> Condition {
        let status = self.machines[key].status.as_ref().expect("it has a status");
        condition(&status.conditions, type_)
            .unwrap_or_else(|| panic!("no condition {type_} in {:?}", status.conditions))
            .clone()
    }
}
