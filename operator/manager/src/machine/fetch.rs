//! The snapshot of one machine, and the plan made from it.
//!
//! Both happen under the cache's lock, and what the plan takes is reserved before it is let go: two machines planned
//! at once never get the same memory, disk or address.

use crate::cache::World;
use paddock_crds::{VirtualHardDisk, VirtualMachine, VirtualMachineInstance, reference::Time};
use paddock_planner::{
    ObjectKey, disk, identity,
    machine::{self, Plan, Snapshot},
    resolve::{Readers, References},
};
use std::{collections::BTreeMap, sync::Arc};

/// A plan and the objects that it was made from.
pub struct Planned {
    /// The machine.
    pub vm: Option<Arc<VirtualMachine>>,
    /// Its instance.
    pub instance: Option<Arc<VirtualMachineInstance>>,
    /// What to do.
    pub plan: Plan,
    /// The plan before it took something that is free now.
    pub frees: bool,
}

/// Plans for one machine; `None` when there is neither machine nor instance.
pub fn plan(world: &mut World, key: &ObjectKey, now: &Time) -> Option<Planned> {
    let vm = world.machines.get(key).cloned();
    let instance = world.instances.get(key).cloned();
    if vm.is_none() && instance.is_none() {
        world.reserve(key, None);
        world.pending_machines.remove(key);
        return None;
    }
    let vm_uid = vm.as_deref().map(|vm| identity::uid(&vm.metadata));
    let holder = instance.as_deref().map(machine::owner_uid);
    let held: Vec<_> = vm_uid
        .into_iter()
        .chain(holder.filter(|holder| Some(*holder) != vm_uid))
        .flat_map(|uid| world.index.attached_to(uid))
        .filter_map(|disk| world.disks.get(disk).cloned())
        .collect();
    let (mut disks, mut taken, mut networks) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut readers = BTreeMap::new();
    if let Some(vm) = &vm {
        for disk in &vm.spec.disks {
            let name = &disk.virtual_hard_disk_ref.name;
            let disk_key = ObjectKey::new(&key.namespace, name);
            if let Some(found) = world.disks.get(&disk_key) {
                disks.insert(name.clone(), found.clone());
                readers.insert(name.clone(), readers_of(world, &disk_key, found));
            }
            if let Some(other) = world.index.reserver_of(&disk_key).filter(|o| *o != key) {
                taken.insert(name.clone(), other.clone());
            }
        }
        for adapter in &vm.spec.network_adapters {
            if let Some(reference) = &adapter.virtual_network_ref {
                let network_key = ObjectKey::new(&key.namespace, &reference.name);
                if let Some(found) = world.networks.get(&network_key) {
                    networks.insert(reference.name.clone(), found.clone());
                }
            }
        }
    }
    // A machine that has its host asks nothing of the others.
    let hosts = match &instance {
        Some(instance) => {
            let host = ObjectKey::new("", &instance.spec.host);
            world
                .hosts
                .get(&host)
                .map(|host| world.host_view(host, Some(key)))
                .into_iter()
                .collect()
        }
        None => world.host_views(Some(key)),
    };
    let current = instance
        .as_deref()
        .filter(|i| Some(machine::owner_uid(i)) == vm_uid)
        .map(|i| i.spec.config.network_adapters.as_slice())
        .unwrap_or_default();
    let plan = machine::decide(&Snapshot {
        key,
        vm: vm.as_deref(),
        instance: instance.as_deref(),
        held: &held,
        references: References {
            disks: &disks,
            taken: &taken,
            readers: &readers,
            networks: &networks,
            macs: &world.index.macs,
            addresses: &world.index.addresses,
            current,
        },
        hosts: &hosts,
        reserved: world.index.reservation(key).map(|r| r.host.as_str()),
        shared_pools: &world.shared_pools(),
        never_ordered: vm_uid.is_some_and(|uid| world.never_ordered.contains(uid)),
        now,
    });
    let frees = world
        .index
        .reservation(key)
        .is_some_and(|old| old.frees(plan.reservation.as_ref(), instance.as_deref()));
    world.reserve(key, plan.reservation.clone());
    if plan.pending {
        world.pending_machines.insert(key.clone());
    } else {
        world.pending_machines.remove(key);
    }
    Some(Planned {
        vm,
        instance,
        plan,
        frees,
    })
}

/// Who else reads a disk, and what its file is made from.
fn readers_of(world: &World, key: &ObjectKey, disk: &VirtualHardDisk) -> Readers {
    let status = disk.status.as_ref();
    let made = status.is_some_and(|s| s.file.is_some());
    let parent = disk.spec.parent_ref.as_ref().map(|r| r.name.as_str());
    let from = parent.or(disk::source_name(disk)).filter(|_| !made);
    let copying = |copy: &&ObjectKey| {
        let attached = world.disks.get(copy).and_then(|d| d.status.as_ref());
        attached.is_some_and(|s| s.attachment.is_some()) || world.giving.contains(*copy)
    };
    let copies = world.index.copies_of(key).filter(copying);
    Readers {
        children: world
            .index
            .children_of(key)
            .map(|k| k.name.clone())
            .collect(),
        copies: copies.map(|k| k.name.clone()).collect(),
        taken: world.giving.contains(key),
        near: from.and_then(|from| {
            let from = ObjectKey::new(&key.namespace, from);
            world.disks.get(&from)?.status.as_ref()?.host.clone()
        }),
    }
}
