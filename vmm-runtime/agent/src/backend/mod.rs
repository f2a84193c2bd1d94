//! What runs guests: the effects behind the instance core.

pub mod hollow;
pub mod qemu;

use crate::instance::core::{DiskUse, End, Failure, Found, Guest, Run, Started};
use futures::future::BoxFuture;
use paddock_crds::{
    VirtualMachineInstance,
    virtual_machine_instance::{Power, VirtualMachineInstanceStatus},
};
use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;

/// Which instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GuestKey {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for GuestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a start is made from.
#[derive(Clone, Debug)]
pub struct StartOrder {
    /// Which instance.
    pub key: GuestKey,
    /// The instance as it was read with quorum.
    pub instance: Arc<VirtualMachineInstance>,
}

/// What a monitor tells of its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// What the guest does.
    GuestIs(Guest),
    /// What its disks take.
    Measured(Vec<DiskUse>),
    /// What they take now that the process has ended.
    MeasuredLast(Vec<DiskUse>),
    /// The process has ended. Nothing follows.
    Exited(End),
}

/// Where a monitor tells it.
#[derive(Clone, Debug)]
pub struct Teller {
    run: Run,
    mails: mpsc::Sender<(Run, Told)>,
}

impl Teller {
    /// For the process of `run`.
    #[must_use]
    pub fn new(run: Run, mails: mpsc::Sender<(Run, Told)>) -> Self {
        Self { run, mails }
    }

    /// Tells. Nobody listens any more when the instance has ended; that is fine.
    pub async fn tell(&self, told: Told) {
        let _ = self.mails.send((self.run, told)).await;
    }
}

/// Follows a process until its end. It is polled once what the process was started from is known to the core, so
/// nothing it tells comes too early.
pub type Monitor = BoxFuture<'static, ()>;

/// The uids of the instances that this agent looks after, as they are at the moment of asking.
#[derive(Clone, Debug, Default)]
pub struct KnownUids(Arc<Mutex<HashSet<String>>>);

impl KnownUids {
    fn uids(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this one is looked after.
    pub fn insert(&self, uid: &str) {
        self.uids().insert(uid.to_owned());
    }

    /// It is no longer.
    pub fn remove(&self, uid: &str) {
        self.uids().remove(uid);
    }

    /// Whether it is looked after now.
    #[must_use]
    pub fn contains(&self, uid: &str) -> bool {
        self.uids().contains(uid)
    }
}

/// Something that an earlier agent left on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The uid of its instance.
    pub uid: String,
    /// The instance, if what is left says so.
    pub key: Option<GuestKey>,
}

/// Runs guests. Calls about one instance come one at a time, except `stop`, `set_power`,
/// `serve_dhcp` and a [`Monitor`].
pub trait Backend: Send + Sync + 'static {
    /// What earlier agents of this boot left.
    fn inventory(&self) -> BoxFuture<'_, Result<Vec<Leftover>, String>>;

    /// Looks for a running process of the instance and takes it over. `status` is what the API says of it.
    fn examine<'a>(
        &'a self,
        key: &'a GuestKey,
        status: &'a VirtualMachineInstanceStatus,
        teller: Teller,
    ) -> BoxFuture<'a, Result<(Found, Option<Monitor>), String>>;

    /// Makes networks and taps, looks at disks, kernel and initrd. Starts nothing.
    fn prepare<'a>(&'a self, order: &'a StartOrder) -> BoxFuture<'a, Result<(), Failure>>;

    /// Starts the process. Only called while no process of the instance is left.
    fn spawn<'a>(
        &'a self,
        order: &'a StartOrder,
        teller: Teller,
    ) -> BoxFuture<'a, Result<(Started, Monitor), Failure>>;

    /// Freezes or thaws the processors.
    fn set_power<'a>(
        &'a self,
        key: &'a GuestKey,
        power: Power,
    ) -> BoxFuture<'a, Result<(), String>>;

    /// Presses the power button; turns off after `deadline` seconds.
    fn stop<'a>(&'a self, key: &'a GuestKey, deadline: u32) -> BoxFuture<'a, Result<(), String>>;

    /// Kills every process of the instance. `Ok` is the proof that none is left.
    fn clear<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>>;

    /// Removes what the instance had on this host: taps, bridges that became empty, the run folder.
    fn clean<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>>;

    /// Lets the DHCP servers of a running guest answer what `order` says. Nothing else of its network changes.
    fn serve_dhcp<'a>(&'a self, order: &'a StartOrder) -> BoxFuture<'a, Result<(), Failure>>;

    /// Removes what belongs to none of the instances `known`, each as it is known when its turn comes.
    fn sweep<'a>(&'a self, known: &'a KnownUids) -> BoxFuture<'a, Result<(), String>>;
}
