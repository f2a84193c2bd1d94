//! What the API holds, as this process last saw or wrote it.
//!
//! Watches feed it, and so does every own write with the object that the API answered: the cache is never older than
//! what this process did itself, and an older version that a watch brings later is passed over. What a plan takes
//! before the API can show it (memory, disks, addresses) is kept as a reservation.

mod files;
mod held;
mod index;
mod memory;
mod sets;
mod snapshot;
mod table;
pub mod watch;

pub use table::{Kept, Origin};

use crate::queue::{Queue, Work};
use index::Index;
use paddock_crds::{
    Host, VirtualHardDisk, VirtualHardDiskTask, VirtualMachine, VirtualMachineInstance,
    VirtualNetwork,
};
use paddock_planner::{ObjectKey, lease::LeaseRecord};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use table::{Change, Table};

/// How long changes of addresses gather before a network counts them.
const COUNT_DELAY: Duration = Duration::from_secs(2);

/// Everything that is known.
#[derive(Default)]
pub struct World {
    /// The operator's own namespace: only there do a task's annotations say which disk it is for.
    pub system_namespace: String,
    /// VirtualMachines.
    pub machines: Table<VirtualMachine>,
    /// VirtualMachineInstances.
    pub instances: Table<VirtualMachineInstance>,
    /// VirtualHardDisks.
    pub disks: Table<VirtualHardDisk>,
    /// VirtualHardDiskTasks.
    pub tasks: Table<VirtualHardDiskTask>,
    /// VirtualNetworks.
    pub networks: Table<VirtualNetwork>,
    /// Hosts.
    pub hosts: Table<Host>,
    /// The hosts' leases, without what changes at each renewal alone.
    pub leases: HashMap<String, LeaseRecord>,
    /// What refers to what.
    pub index: Index,
    /// Machines that wait for what other objects may free.
    pub pending_machines: HashSet<ObjectKey>,
    /// Disks that wait for a host.
    pub pending_disks: HashSet<ObjectKey>,
    /// UIDs of machines whose attachments this process gave, without having asked for an instance since.
    pub never_ordered: HashSet<String>,
    /// Disks that a plan is just giving to a task: what the API shows of them is about to change.
    pub giving: HashSet<ObjectKey>,
    /// Those of them that are given to be merged into their parents.
    pub merging: HashSet<ObjectKey>,
    /// UIDs of disks for which the API refused a new task, since their namespace is being deleted.
    pub creation_refused: HashSet<String>,
}

/// The cache, shared.
pub struct Cache {
    world: Mutex<World>,
    queue: Arc<Queue>,
}

impl Cache {
    /// An empty cache that adds work to `queue`, of an operator in `system_namespace`.
    #[must_use]
    pub fn new(queue: Arc<Queue>, system_namespace: &str) -> Self {
        let world = World {
            system_namespace: system_namespace.to_owned(),
            ..World::default()
        };
        Self {
            world: Mutex::new(world),
            queue,
        }
    }

    /// The world, for a moment: never across an await.
    pub fn world(&self) -> MutexGuard<'_, World> {
        // Decisions do not panic on any input; should one, the next still finds every object.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an object in, and adds the work that follows from it.
    pub fn observe<K: Kept>(&self, object: K, origin: Origin) {
        let mut world = self.world();
        if let Some(change) = K::table(&mut world).put(object, origin) {
            self.changed(&mut world, change);
        }
    }

    /// Takes the end of an object in.
    pub fn forget<K: Kept>(&self, key: &ObjectKey, uid: Option<&str>, origin: Origin) {
        let mut world = self.world();
        if let Some(change) = K::table(&mut world).remove(key, uid, origin) {
            self.changed(&mut world, change);
        }
    }

    /// Ends a listing: what was not listed is gone. Returns what was written here meanwhile and has to be asked for.
    pub fn listed<K: Kept>(&self, seen: &HashSet<ObjectKey>) -> Vec<ObjectKey> {
        let mut world = self.world();
        let (gone, doubtful) = K::table(&mut world).unlisted(seen);
        for key in gone {
            if let Some(change) = K::table(&mut world).remove(&key, None, Origin::Watch) {
                self.changed(&mut world, change);
            }
        }
        doubtful
    }

    fn changed<K: Kept>(&self, world: &mut World, change: Change<K>) {
        for work in K::follow(world, &change) {
            match work {
                // Addresses come and go with machines: counted once in a while, not each time.
                Follow::Count(network) => self.queue.add_after(Work::Network(network), COUNT_DELAY),
                Follow::CountPool(pool) => {
                    let hosts = world.hosts.all();
                    let with = hosts.filter(|(_, h)| h.spec.pools.iter().any(|p| p.name == pool));
                    for (key, _) in with {
                        let work = Work::Host(key.name.clone());
                        self.queue.add_after(work, COUNT_DELAY);
                    }
                }
                Follow::Now(work) => self.queue.add(work),
                Follow::Pending => self.wake_pending(world),
            }
        }
    }

    fn wake_pending(&self, world: &mut World) {
        for key in std::mem::take(&mut world.pending_machines) {
            self.queue.add(Work::Machine(key));
        }
        for key in std::mem::take(&mut world.pending_disks) {
            self.queue.add(Work::Disk(key));
        }
    }

    /// Looks at everything that waits for what other objects may free.
    pub fn something_is_free(&self) {
        self.wake_pending(&mut self.world());
    }

    /// Takes a host's lease in; `None`: there is none.
    pub fn observe_lease(&self, host: &str, lease: Option<LeaseRecord>) {
        let mut world = self.world();
        let gist = |l: &LeaseRecord| (l.uid.clone(), l.state, l.epoch, l.nonce.is_some());
        if world.leases.get(host).map(gist) == lease.as_ref().map(gist) {
            return;
        }
        match lease {
            Some(lease) => world.leases.insert(host.to_owned(), lease),
            None => world.leases.remove(host),
        };
        self.queue.add(Work::Host(host.to_owned()));
        for key in world.index.instances_on(host) {
            self.queue.add(Work::Machine(key.clone()));
        }
        for key in world.index.disks_at_work_on(host) {
            self.queue.add(Work::Disk(key.clone()));
        }
        self.wake_pending(&mut world);
    }
}

/// What follows from a change.
pub enum Follow {
    /// Look at an object now.
    Now(Work),
    /// Count a network's addresses soon.
    Count(ObjectKey),
    /// Count soon what the disks of a pool are committed to.
    CountPool(String),
    /// Look at everything that waits.
    Pending,
}
