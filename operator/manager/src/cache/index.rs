//! What refers to what, kept up to date with every change, and what follows from one.

use super::{
    Follow, World,
    files::{self, FileKey},
    held::{instance_addresses, instance_macs, spec_macs, status_addresses, status_macs},
    memory::Memory,
    sets::Sets,
    table::{Change, Kept, Table},
};
use crate::{queue::Work, shrink::give_back};
use paddock_crds::{
    Host, HostSpec, HostStatus, VirtualHardDisk, VirtualHardDiskTask, VirtualMachine,
    VirtualMachineInstance, VirtualNetwork,
    virtual_hard_disk::{DiskType, OwnerKind},
};
use paddock_planner::{
    ObjectKey,
    address::{AddressClaims, MacClaims, Source},
    disk, identity,
    machine::{Reservation, instance_memory},
    resolve,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

/// What refers to what.
#[derive(Default)]
pub struct Index {
    disk_users: Sets<ObjectKey>,
    network_users: Sets<ObjectKey>,
    attached: Sets<String>,
    instances_on: Sets<String>,
    tasks_of: Sets<String>,
    tasks_on: Sets<String>,
    files: Sets<FileKey>,
    targets: Sets<FileKey>,
    /// Who holds which MAC address.
    pub macs: MacClaims,
    /// Who holds which IP address.
    pub addresses: AddressClaims,
    pub(super) memory: Memory,
    pub(super) reserved: BTreeMap<ObjectKey, Reservation>,
    reserved_disks: HashMap<ObjectKey, ObjectKey>,
    task_disks: HashMap<ObjectKey, ObjectKey>,
    tasks_named: Sets<ObjectKey>,
    children: Sets<ObjectKey>,
    copies: Sets<ObjectKey>,
    committed: HashMap<(String, Option<String>), (i64, i32)>,
}

impl Index {
    /// Disks that have a disk as their parent, or are to have it.
    pub fn children_of(&self, disk: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        self.children.get(disk)
    }

    /// Disks that are to be copies of a disk and are not made yet.
    pub fn copies_of(&self, disk: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        self.copies.get(disk)
    }

    /// The sum of the sizes of the disks in a pool, and how many they are: those bound to `host`, or with none those
    /// of a pool that hosts share.
    #[must_use]
    pub fn committed(&self, pool: &str, host: Option<&str>) -> (i64, i32) {
        let key = (pool.to_owned(), host.map(str::to_owned));
        self.committed.get(&key).copied().unwrap_or_default()
    }

    fn commit(&mut self, disk: &VirtualHardDisk, sign: i64) {
        let Some((key, bytes)) = commitment(disk) else {
            return;
        };
        let sum = self.committed.entry(key.clone()).or_default();
        sum.0 = sum.0.saturating_add(sign.saturating_mul(bytes));
        sum.1 = sum.1.saturating_add(if sign > 0 { 1 } else { -1 });
        if sum.1 <= 0 {
            self.committed.remove(&key);
        }
    }

    /// Machines that name a disk.
    pub fn users_of_disk(&self, disk: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        self.disk_users.get(disk)
    }

    /// Machines with an adapter in a network.
    pub fn users_of_network(&self, network: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        self.network_users.get(network)
    }

    /// Disks attached to the owner with a UID.
    pub fn attached_to(&self, uid: &str) -> impl Iterator<Item = &ObjectKey> {
        self.attached.get(uid)
    }

    /// Instances on a host.
    pub fn instances_on(&self, host: &str) -> impl Iterator<Item = &ObjectKey> {
        self.instances_on.get(host)
    }

    /// Tasks of the disk with a UID.
    pub fn tasks_of(&self, uid: &str) -> impl Iterator<Item = &ObjectKey> {
        self.tasks_of.get(uid)
    }

    /// How many tasks each host works on.
    #[must_use]
    pub fn busy(&self) -> BTreeMap<String, usize> {
        let by_host = self.tasks_on.sizes();
        by_host.map(|(host, tasks)| (host.clone(), tasks)).collect()
    }

    /// Disks with a task on a host.
    pub fn disks_at_work_on(&self, host: &str) -> impl Iterator<Item = &ObjectKey> {
        self.tasks_on
            .get(host)
            .filter_map(|task| self.task_disks.get(task))
    }

    /// Tasks of the disk with a key, whatever its UID.
    pub fn tasks_named_for<'a>(
        &'a self,
        disk: &'a ObjectKey,
    ) -> impl Iterator<Item = &'a ObjectKey> {
        self.tasks_named.get(disk)
    }

    /// Disks that name a file, in their spec or in what they have.
    pub fn disks_with_file(&self, file: &FileKey) -> impl Iterator<Item = &ObjectKey> {
        self.files.get(file)
    }

    /// Disks for which a task makes a file, or has made it.
    pub fn disks_to_get_file(&self, file: &FileKey) -> impl Iterator<Item = &ObjectKey> {
        let tasks = self.targets.get(file);
        tasks.filter_map(|task| self.task_disks.get(task))
    }

    /// What a machine's plan took.
    #[must_use]
    pub fn reservation(&self, machine: &ObjectKey) -> Option<&Reservation> {
        self.reserved.get(machine)
    }

    /// The machine whose plan is just taking a disk.
    #[must_use]
    pub fn reserver_of(&self, disk: &ObjectKey) -> Option<&ObjectKey> {
        self.reserved_disks.get(disk)
    }

    /// Replaces what a machine's plan took; see [`World::reserve`].
    pub(super) fn reserve(&mut self, machine: &ObjectKey, what: Option<Reservation>) {
        let old = self.reserved.remove(machine);
        if old.is_none() && what.is_none() {
            return;
        }
        for disk in old.iter().flat_map(|old| &old.disks) {
            let disk = ObjectKey::new(&machine.namespace, disk);
            self.reserved_disks.remove(&disk);
        }
        give_back(&mut self.reserved_disks);
        let macs = |what: &Option<Reservation>| {
            what.as_ref()
                .map_or_else(Vec::new, |what| what.macs.clone())
        };
        let addresses = |what: &Option<Reservation>| -> Vec<(ObjectKey, Ipv4Addr)> {
            let named = what.iter().flat_map(|what| &what.addresses);
            named
                .map(|(name, address)| (ObjectKey::new(&machine.namespace, name), *address))
                .collect()
        };
        let source = Source::Planned;
        self.macs
            .replace(machine, source, None, macs(&old), macs(&what));
        self.addresses
            .replace(machine, source, None, addresses(&old), addresses(&what));
        if let Some(what) = what {
            for disk in &what.disks {
                self.reserved_disks
                    .insert(ObjectKey::new(&machine.namespace, disk), machine.clone());
            }
            self.reserved.insert(machine.clone(), what);
        }
    }
}

/// The pool and host that a disk's file takes room in, and its size in bytes.
fn commitment(disk: &VirtualHardDisk) -> Option<((String, Option<String>), i64)> {
    let status = disk.status.as_ref()?;
    let file = status.file.as_ref()?;
    if status.disk_type == Some(DiskType::Linked) {
        // Its bytes are not the pool's.
        return None;
    }
    let key = (file.pool.clone(), status.host.clone());
    Some((key, status.size_bytes.unwrap_or(0)))
}

/// What `of` finds in an object, nothing without one.
fn all_of<K, T>(object: Option<&std::sync::Arc<K>>, of: impl Fn(&K) -> Vec<T>) -> Vec<T> {
    object.map_or_else(Vec::new, |object| of(object))
}

/// Whether something that was there is there no more.
fn lost<T: PartialEq>(old: &[T], new: &[T]) -> bool {
    old.iter().any(|value| !new.contains(value))
}

impl Kept for VirtualMachine {
    const PLURAL: &'static str = "virtualmachines";

    fn table(world: &mut World) -> &mut Table<Self> {
        &mut world.machines
    }

    fn follow(world: &mut World, change: &Change<Self>) -> Vec<Follow> {
        let key = &change.key;
        let index = &mut world.index;
        let mut follow = vec![Follow::Now(Work::Machine(key.clone()))];
        let sibling = |name: &str| ObjectKey::new(&key.namespace, name);
        let networks = |vm: &Self| -> Vec<ObjectKey> {
            let named = vm
                .spec
                .network_adapters
                .iter()
                .filter_map(|a| a.virtual_network_ref.as_ref())
                .map(|r| sibling(&r.name));
            let given = vm
                .status
                .iter()
                .flat_map(|s| &s.network_adapters)
                .filter_map(|a| a.virtual_network.as_deref())
                .map(sibling);
            named.chain(given).collect()
        };
        if let Some(old) = &change.old {
            for disk in &old.spec.disks {
                index
                    .disk_users
                    .remove(&sibling(&disk.virtual_hard_disk_ref.name), key);
            }
            for network in networks(old) {
                index.network_users.remove(&network, key);
            }
        }
        let mut created = None;
        match &change.new {
            Some(new) => {
                created = resolve::created(new);
                for disk in &new.spec.disks {
                    index
                        .disk_users
                        .insert(sibling(&disk.virtual_hard_disk_ref.name), key);
                }
                for network in networks(new) {
                    index.network_users.insert(network, key);
                }
            }
            None => {
                // Its memory, disks and addresses may be what another waits for.
                follow.push(Follow::Pending);
                world.reserve(key, None);
                world.pending_machines.remove(key);
                if let Some(old) = &change.old {
                    world.never_ordered.remove(identity::uid(&old.metadata));
                }
            }
        }
        let index = &mut world.index;
        let spec_changed = match (&change.old, &change.new) {
            (Some(old), Some(new)) => old.metadata.generation != new.metadata.generation,
            _ => false,
        };
        let policy = |vm: &Option<std::sync::Arc<Self>>| vm.as_ref().map(|vm| vm.spec.run_policy);
        if change.old.is_some() && policy(&change.old) != policy(&change.new) {
            // Some work on its disks waits until no machine wants them.
            for vm in change.old.iter().chain(&change.new) {
                let named = vm.spec.disks.iter();
                let named = named.map(|d| sibling(&d.virtual_hard_disk_ref.name));
                follow.extend(named.map(|d| Follow::Now(Work::Disk(d))));
            }
        }
        if spec_changed {
            // It may have given up an address or a disk that another waits for.
            follow.push(Follow::Pending);
        }
        let (old, new) = (change.old.as_ref(), change.new.as_ref());
        let (was, is) = (all_of(old, spec_macs), all_of(new, spec_macs));
        index.macs.replace(key, Source::Spec, created, was, is);
        let (was, is) = (all_of(old, status_macs), all_of(new, status_macs));
        let lost_mac = lost(&was, &is);
        index.macs.replace(key, Source::Status, created, was, is);
        let (was, is) = (all_of(old, status_addresses), all_of(new, status_addresses));
        let lost_address = lost(&was, &is);
        index
            .addresses
            .replace(key, Source::Status, created, was, is);
        if new.is_some() && (lost_mac || lost_address) {
            // Another may wait for the address.
            follow.push(Follow::Pending);
        }
        let of = |vm: &Option<std::sync::Arc<Self>>| {
            vm.as_ref()
                .and_then(|vm| vm.status.as_ref())
                .map(|s| s.network_adapters.clone())
                .unwrap_or_default()
        };
        if of(&change.old) != of(&change.new) {
            let both = change.old.iter().chain(&change.new);
            let touched: BTreeSet<ObjectKey> = both.flat_map(|vm| networks(vm)).collect();
            follow.extend(touched.into_iter().map(Follow::Count));
        }
        follow
    }
}

impl Kept for VirtualMachineInstance {
    const PLURAL: &'static str = "virtualmachineinstances";

    fn table(world: &mut World) -> &mut Table<Self> {
        &mut world.instances
    }

    fn follow(world: &mut World, change: &Change<Self>) -> Vec<Follow> {
        let key = &change.key;
        let index = &mut world.index;
        let mut follow = vec![Follow::Now(Work::Machine(key.clone()))];
        if let Some(old) = &change.old {
            index.instances_on.remove(&old.spec.host, key);
        }
        let planned = index.reserved.get(key);
        index.memory.subtract(change.old.as_deref(), planned);
        index.memory.add(change.new.as_deref(), planned);
        let told = |i: &Option<std::sync::Arc<Self>>| {
            let status = i.as_ref().and_then(|i| i.status.as_ref());
            status.map(|s| s.disks.clone()).unwrap_or_default()
        };
        if told(&change.old) != told(&change.new) {
            let disks = change.new.iter().flat_map(|i| &i.spec.config.disks);
            let disks = disks.map(|d| ObjectKey::new(&key.namespace, &d.virtual_hard_disk));
            follow.extend(disks.map(|d| Follow::Now(Work::Disk(d))));
        }
        if let Some(new) = &change.new {
            index.instances_on.insert(new.spec.host.clone(), key);
        }
        let (old, new) = (change.old.as_ref(), change.new.as_ref());
        let (was, is) = (all_of(old, instance_macs), all_of(new, instance_macs));
        let lost_mac = lost(&was, &is);
        index.macs.replace(key, Source::Instance, None, was, is);
        let (was, is) = (
            all_of(old, instance_addresses),
            all_of(new, instance_addresses),
        );
        let lost_address = lost(&was, &is);
        index
            .addresses
            .replace(key, Source::Instance, None, was, is);
        let memory = |instance: &std::sync::Arc<Self>| instance_memory(instance);
        let frees = match (old, new) {
            (Some(old), Some(new)) => {
                memory(new) < memory(old)
                    || new.spec.host != old.spec.host
                    || lost_mac
                    || lost_address
            }
            (old, new) => old.is_some() && new.is_none(),
        };
        if frees {
            // Room on its host or an address may be what another waits for.
            follow.push(Follow::Pending);
        }
        follow
    }
}

impl Kept for VirtualHardDisk {
    const PLURAL: &'static str = "virtualharddisks";

    fn table(world: &mut World) -> &mut Table<Self> {
        &mut world.disks
    }

    fn follow(world: &mut World, change: &Change<Self>) -> Vec<Follow> {
        let key = &change.key;
        let index = &mut world.index;
        let mut follow = vec![Follow::Now(Work::Disk(key.clone()))];
        let mut machines: BTreeSet<ObjectKey> = index.disk_users.get(key).cloned().collect();
        let holder = |disk: &Self| disk.status.as_ref().and_then(|s| s.attachment.clone());
        let sibling = |name: &str| ObjectKey::new(&key.namespace, name);
        let parent = |disk: &Self| disk::parent_name(disk).map(sibling);
        let source = |disk: &Self| {
            let made = disk.status.as_ref().is_some_and(|s| s.file.is_some());
            disk::source_name(disk).filter(|_| !made).map(sibling)
        };
        // What the disks that it has to do with decide from.
        let gist = |disk: &Self| {
            let status = disk.status.as_ref();
            (
                identity::deleting(&disk.metadata),
                disk.spec.access,
                status.map(|s| {
                    (
                        s.file.clone(),
                        s.host.clone(),
                        s.attachment.as_ref().map(|a| a.disk_epoch),
                        s.undo.is_some(),
                        s.unfinished.is_some(),
                        s.lineage.first().cloned(),
                    )
                }),
            )
        };
        if change.old.as_deref().map(gist) != change.new.as_deref().map(gist) {
            let mut kin: BTreeSet<ObjectKey> = BTreeSet::new();
            for disk in change.old.iter().chain(&change.new) {
                kin.extend(parent(disk));
                // Merges into what it is copied from wait for it, too.
                if let Some(source) = source(disk) {
                    kin.extend(index.children.get(&source).cloned());
                    kin.insert(source);
                }
            }
            kin.extend(index.children.get(key).cloned());
            kin.extend(index.copies.get(key).cloned());
            for disk in &kin {
                machines.extend(index.disk_users.get(disk).cloned());
            }
            follow.extend(kin.into_iter().map(|d| Follow::Now(Work::Disk(d))));
        }
        let merging = |disk: &std::sync::Arc<Self>| disk::is_merging(disk);
        if change.old.as_ref().is_some_and(merging) && !change.new.as_ref().is_some_and(merging) {
            // Other children may have waited for the end of the merge.
            follow.push(Follow::Pending);
        }
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && files::gives_up(old, new)
        {
            // Another disk may have waited for that file.
            follow.push(Follow::Pending);
        }
        let takes = |disk: &Option<std::sync::Arc<Self>>| disk.as_deref().and_then(commitment);
        let (took, takes) = (takes(&change.old), takes(&change.new));
        if took != takes {
            let pools = took.iter().chain(&takes).map(|(key, _)| key.0.clone());
            follow.extend(pools.map(Follow::CountPool));
        }
        if let Some(old) = &change.old {
            index.commit(old, -1);
            if let Some(parent) = parent(old) {
                index.children.remove(&parent, key);
            }
            if let Some(source) = source(old) {
                index.copies.remove(&source, key);
            }
            if let Some(a) = holder(old) {
                index.attached.remove(&a.owner.uid, key);
                if a.owner.kind == OwnerKind::VirtualMachine {
                    machines.insert(ObjectKey::new(&key.namespace, &a.owner.name));
                }
            }
            for file in files::named(old) {
                index.files.remove(&file, key);
            }
        }
        match &change.new {
            Some(new) => {
                index.commit(new, 1);
                if let Some(parent) = parent(new) {
                    index.children.insert(parent, key);
                }
                if let Some(source) = source(new) {
                    index.copies.insert(source, key);
                }
                if let Some(a) = holder(new) {
                    index.attached.insert(a.owner.uid.clone(), key);
                    if a.owner.kind == OwnerKind::VirtualMachine {
                        machines.insert(ObjectKey::new(&key.namespace, &a.owner.name));
                    }
                }
                for file in files::named(new) {
                    index.files.insert(file, key);
                }
            }
            None => {
                follow.push(Follow::Pending);
                world.pending_disks.remove(key);
                if let Some(old) = &change.old {
                    world.creation_refused.remove(identity::uid(&old.metadata));
                }
            }
        }
        follow.extend(machines.into_iter().map(|m| Follow::Now(Work::Machine(m))));
        follow
    }
}

impl Kept for VirtualHardDiskTask {
    const PLURAL: &'static str = "virtualharddisktasks";

    fn table(world: &mut World) -> &mut Table<Self> {
        &mut world.tasks
    }

    fn follow(world: &mut World, change: &Change<Self>) -> Vec<Follow> {
        let key = &change.key;
        let index = &mut world.index;
        let mut follow = Vec::new();
        let system = world.system_namespace.as_str();
        let parent = |task: &Self| disk::made_for(task, system).map(str::to_owned);
        let disk_of = |task: &Self| disk::disk_of(task, system);
        let target = |task: &Self| files::target(task);
        let at_work = |task: &Self| {
            let status = task.status.as_ref()?;
            status.host.clone().filter(|_| !disk::is_over(task))
        };
        if let Some(old) = &change.old {
            if let Some(uid) = parent(old) {
                index.tasks_of.remove(&uid, key);
            }
            if let Some(host) = at_work(old) {
                index.tasks_on.remove(&host, key);
            }
            if let Some(disk) = index.task_disks.remove(key) {
                index.tasks_named.remove(&disk, key);
            }
            if let Some(file) = target(old) {
                index.targets.remove(&file, key);
            }
        }
        if let Some(new) = &change.new {
            if let Some(uid) = parent(new) {
                index.tasks_of.insert(uid, key);
            }
            if let Some(host) = at_work(new) {
                index.tasks_on.insert(host, key);
            }
            if let Some(file) = target(new) {
                index.targets.insert(file, key);
            }
            index.tasks_named.insert(disk_of(new), key);
            index.task_disks.insert(key.clone(), disk_of(new));
        }
        if let Some(task) = change.new.as_ref().or(change.old.as_ref()) {
            follow.push(Follow::Now(Work::Disk(disk_of(task))));
        }
        follow
    }
}

impl Kept for VirtualNetwork {
    const PLURAL: &'static str = "virtualnetworks";

    fn table(world: &mut World) -> &mut Table<Self> {
        &mut world.networks
    }

    fn follow(world: &mut World, change: &Change<Self>) -> Vec<Follow> {
        let mut follow = vec![Follow::Now(Work::Network(change.key.clone()))];
        let same_spec = match (&change.old, &change.new) {
            (Some(old), Some(new)) => old.spec == new.spec,
            _ => false,
        };
        if !same_spec {
            let users = world.index.network_users.get(&change.key);
            follow.extend(users.map(|m| Follow::Now(Work::Machine(m.clone()))));
        }
        follow
    }
}

/// What of a host something may wait for: all but what is only counted, of which every disk that is made is news.
fn offer(host: &Host) -> (HostSpec, Option<HostStatus>, Labels, bool) {
    let mut status = host.status.clone();
    if let Some(status) = &mut status {
        status.committed.clear();
        status.storage = None;
        for pool in &mut status.pools {
            pool.free_bytes = None;
        }
    }
    let labels = host.metadata.labels.clone();
    let ends = identity::deleting(&host.metadata);
    (host.spec.clone(), status, labels, ends)
}

type Labels = Option<BTreeMap<String, String>>;

impl Kept for Host {
    const PLURAL: &'static str = "hosts";

    fn table(world: &mut World) -> &mut Table<Self> {
        &mut world.hosts
    }

    fn follow(world: &mut World, change: &Change<Self>) -> Vec<Follow> {
        let host = &change.key.name;
        let mut follow = vec![Follow::Now(Work::Host(host.clone()))];
        if change.old.as_deref().map(offer) != change.new.as_deref().map(offer) {
            // Room, a pool or an uplink may be what something waits for.
            follow.push(Follow::Pending);
        }
        let gist = |h: &Option<std::sync::Arc<Self>>| {
            h.as_ref().map(|h| {
                (
                    identity::deleting(&h.metadata),
                    h.status
                        .as_ref()
                        .map(|s| (s.out_of_service_epoch, s.host_epoch, s.capacity.is_some())),
                )
            })
        };
        if gist(&change.old) != gist(&change.new) {
            let on = world.index.instances_on.get(host);
            follow.extend(on.map(|m| Follow::Now(Work::Machine(m.clone()))));
            let held = world.disks.all().filter(|(_, disk)| {
                let attachment = disk.status.as_ref().and_then(|s| s.attachment.as_ref());
                attachment.is_some_and(|a| a.host == *host)
            });
            follow.extend(held.flat_map(|(key, disk)| {
                let attachment = disk.status.as_ref().and_then(|s| s.attachment.as_ref());
                let owner = attachment
                    .filter(|a| a.owner.kind == OwnerKind::VirtualMachine)
                    .map(|a| ObjectKey::new(&key.namespace, &a.owner.name));
                owner
                    .map(|m| Follow::Now(Work::Machine(m)))
                    .into_iter()
                    .chain([Follow::Now(Work::Disk(key.clone()))])
            }));
        }
        follow
    }
}
