//! A cache that is fed by hand, and plans made from it.

#![allow(dead_code)] // Each test file uses its part of it.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use paddock_crds::{
    Host, VirtualHardDisk, VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceSpec,
    VirtualMachineInstanceStatus, VirtualNetwork,
    names::MACHINE_FINALIZER,
    reference::{Time, condition},
};
use paddock_operator::{
    cache::{Cache, Kept, Origin},
    machine::fetch,
    queue::{Queue, Work},
};
use paddock_planner::{
    ObjectKey,
    lease::{LeaseRecord, LeaseState},
    machine::{Action, HELD_MEMORY_ANNOTATION},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

static VERSION: AtomicU64 = AtomicU64::new(1);

fn version() -> String {
    VERSION.fetch_add(1, Relaxed).to_string()
}

pub fn object<K: Kept>(kind: &str, name: &str, spec: Value, status: Value) -> K {
    let mut value = json!({
        "apiVersion": "paddock.dev/v1alpha1",
        "kind": kind,
        "metadata": {
            "name": name, "uid": format!("uid-{name}"), "resourceVersion": version(),
            "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": spec,
    });
    if kind != "Host" {
        value["metadata"]["namespace"] = json!("t");
    }
    if !status.is_null() {
        value["status"] = status;
    }
    serde_json::from_value(value).unwrap()
}

pub fn host(name: &str, memory: &str) -> Host {
    object(
        "Host",
        name,
        json!({"pools": [{"name": "shared", "path": "/s", "scope": "Shared"}]}),
        json!({
            "capacity": {"cores": 8, "memoryBytes": 1u64 << 34}, "memory": memory, "accelerator": "Emulation",
            "pools": [{"name": "shared", "state": "Available"}],
        }),
    )
}

pub fn lease(epoch: i64, state: LeaseState) -> LeaseRecord {
    LeaseRecord {
        uid: "u".to_owned(),
        resource_version: "1".to_owned(),
        state,
        epoch,
        nonce: Some("n".to_owned()),
        fence_milliseconds: 4_000,
        kill_milliseconds: 500,
    }
}

pub fn disk(name: &str) -> VirtualHardDisk {
    object(
        "VirtualHardDisk",
        name,
        json!({"size": "1Gi", "file": {"pool": "shared"}}),
        json!({"state": "Ready", "file": {"pool": "shared", "path": format!("{name}.vhd")}, "diskEpoch": 1}),
    )
}

pub fn network() -> VirtualNetwork {
    object(
        "VirtualNetwork",
        "lab",
        json!({"type": "Internal", "subnet": "10.0.0.0/24", "dhcp": {"mode": "Enabled"}}),
        Value::Null,
    )
}

/// A machine with an adapter in the network.
pub fn machine(name: &str, memory: &str, disk: Option<&str>) -> VirtualMachine {
    machine_with(name, memory, disk, 1)
}

pub fn machine_with(
    name: &str,
    memory: &str,
    disk: Option<&str>,
    adapters: usize,
) -> VirtualMachine {
    let disks: Vec<Value> = disk
        .into_iter()
        .map(|d| json!({"name": "root", "bus": "Virtio", "virtualHardDiskRef": {"name": d}}))
        .collect();
    object(
        "VirtualMachine",
        name,
        json!({
            "memory": memory, "disks": disks,
            "networkAdapters": (0..adapters)
                .map(|n| json!({"name": format!("lan{n}"), "virtualNetworkRef": {"name": "lab"}}))
                .collect::<Vec<_>>(),
        }),
        Value::Null,
    )
}

/// The instance of a machine.
pub fn instance(name: &str, spec: VirtualMachineInstanceSpec) -> VirtualMachineInstance {
    let mut instance = VirtualMachineInstance::new(name, spec);
    instance.metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("t".to_owned()),
        uid: Some(format!("uid-i-{name}")),
        resource_version: Some(version()),
        owner_references: Some(vec![OwnerReference {
            uid: format!("uid-{name}"),
            controller: Some(true),
            ..OwnerReference::default()
        }]),
        ..ObjectMeta::default()
    };
    instance
}

pub fn key(name: &str) -> ObjectKey {
    ObjectKey::new("t", name)
}

/// Why a machine is not ready.
pub fn reason(planned: &fetch::Planned) -> String {
    let status = planned.plan.status.as_ref().unwrap();
    condition(&status.conditions, "Ready")
        .unwrap()
        .reason
        .clone()
}

/// The address in the instance that a plan makes.
pub fn creates(planned: &fetch::Planned) -> Option<String> {
    planned.plan.actions.iter().find_map(|a| match a {
        Action::CreateInstance(spec) => spec.config.network_adapters[0].ip_address.clone(),
        _ => None,
    })
}

pub struct Lab {
    pub cache: Cache,
    pub queue: Arc<Queue>,
}

impl Lab {
    pub async fn new(memory: &str) -> Self {
        let queue = Arc::new(Queue::default());
        let lab = Self {
            cache: Cache::new(queue.clone(), "paddock-system"),
            queue,
        };
        lab.cache.observe(host("host-a", memory), Origin::Watch);
        lab.cache
            .observe_lease("host-a", Some(lease(1, LeaseState::Held)));
        lab.cache.observe(network(), Origin::Watch);
        lab.drain().await;
        lab
    }

    pub fn plan(&self, name: &str) -> fetch::Planned {
        let now = Time(Timestamp::from_second(1_800_000_000).unwrap());
        fetch::plan(&mut self.cache.world(), &key(name), &now).unwrap()
    }

    /// Changes a machine's spec.
    pub fn change(&self, name: &str, memory: &str, adapters: usize) {
        let mut vm = machine_with(name, memory, None, adapters);
        if let Some(old) = self.cache.world().machines.get(&key(name)) {
            vm.status.clone_from(&old.status);
            vm.metadata.finalizers.clone_from(&old.metadata.finalizers);
            vm.metadata.generation = old.metadata.generation.map(|n| n + 1);
        }
        self.cache.observe(vm, Origin::Watch);
    }

    /// Applies a plan as the API would take it.
    pub fn apply(&self, name: &str, planned: &fetch::Planned) {
        let key = key(name);
        for action in &planned.plan.actions {
            match action {
                Action::CreateInstance(spec) => {
                    self.cache
                        .observe(instance(name, spec.as_ref().clone()), Origin::Own);
                }
                Action::UpdateInstance { spec, held_memory } => {
                    let mut changed = instance(name, spec.as_ref().clone());
                    changed.status = self.told(name);
                    changed.metadata.annotations = held_memory.map(|memory| {
                        BTreeMap::from([(HELD_MEMORY_ANNOTATION.to_owned(), memory.to_string())])
                    });
                    self.cache.observe(changed, Origin::Own);
                }
                // It is written with the status.
                Action::AddFinalizer => {}
                other => panic!("{other:?} is not what this lab knows"),
            }
        }
        let vm = self.cache.world().machines.get(&key).cloned().unwrap();
        let mut vm = vm.as_ref().clone();
        vm.status.clone_from(&planned.plan.status);
        vm.metadata.finalizers = Some(vec![MACHINE_FINALIZER.to_owned()]);
        vm.metadata.resource_version = Some(version());
        self.cache.observe(vm, Origin::Own);
    }

    fn told(&self, name: &str) -> Option<VirtualMachineInstanceStatus> {
        let world = self.cache.world();
        world.instances.get(&key(name))?.status.clone()
    }

    /// The host starts a guest anew, as its instance says.
    pub fn restart(&self, name: &str) {
        let found = self.cache.world().instances.get(&key(name)).cloned();
        let Some(found) = found else { return };
        let mut changed = found.as_ref().clone();
        let status = changed.status.get_or_insert_default();
        status.started_config_revision = Some(changed.spec.config_revision.clone());
        changed.metadata.resource_version = Some(version());
        self.cache.observe(changed, Origin::Watch);
    }

    /// What waits in the queue, sorted.
    pub async fn drain(&self) -> Vec<Work> {
        let mut all = Vec::new();
        while self.queue.depth() > 0 {
            let work = self.queue.take().await.unwrap();
            self.queue.done(&work);
            all.push(work);
        }
        all.sort();
        all
    }
}
