//! Makes an actor for each instance that the API shows, and for each that an earlier agent left on the host.

use super::actor::{Actor, Address, Letter, Surroundings, key};
use crate::backend::{Backend, GuestKey, KnownUids, Leftover};
use futures::{Stream, StreamExt, stream::FuturesUnordered};
use kube::runtime::watcher::Event as WatchEvent;
use paddock_crds::VirtualMachineInstance;
use std::{collections::HashMap, pin::pin, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle};
use tracing::{info, warn};

/// From one sweep of what belongs to no instance to the next.
const SWEEP_EACH: Duration = Duration::from_secs(60);
/// From a failed inventory to the next try.
const RETRY: Duration = Duration::from_secs(1);

struct Known {
    key: GuestKey,
    address: Address,
    listed: bool,
}

/// Runs the instances of this host for ever. `leftovers_known` is set once nothing on the host is unaccounted for.
pub async fn run<B: Backend>(
    world: Arc<Surroundings<B>>,
    instances: impl Stream<Item = WatchEvent<VirtualMachineInstance>> + Send,
    leftovers_known: watch::Sender<bool>,
) {
    let mut leftovers = take_inventory(&*world.backend).await;
    leftovers_known.send_replace(true);
    let mut supervisor = Supervisor {
        world,
        known: HashMap::new(),
        uids: KnownUids::default(),
        running: FuturesUnordered::new(),
    };
    let mut instances = pin!(instances);
    let mut sweep = tokio::time::interval(SWEEP_EACH);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut listed_once = false;
    loop {
        tokio::select! {
            event = instances.next() => match event {
                Some(event) => {
                    let complete = matches!(event, WatchEvent::InitDone);
                    supervisor.take(event).await;
                    if complete {
                        listed_once = true;
                        for leftover in leftovers.drain(..) {
                            supervisor.take_orphan(leftover).await;
                        }
                    }
                }
                None => return,
            },
            Some(uid) = supervisor.running.next() => supervisor.ended(uid),
            _ = sweep.tick(), if listed_once => supervisor.sweep(),
        }
    }
}

/// What earlier agents left.
async fn take_inventory<B: Backend>(backend: &B) -> Vec<Leftover> {
    loop {
        match backend.inventory().await {
            Ok(found) => return found,
            Err(error) => {
                warn!(%error, "the inventory of this host failed");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Kills what names no instance and has the uid of none, since nobody could ever take it over.
async fn end_nameless<B: Backend>(world: Arc<Surroundings<B>>, known: KnownUids, uid: String) {
    warn!(uid, "killing remains that name no instance");
    while let Err(error) = world.backend.clear(&uid).await {
        warn!(uid, %error, "remains could not be cleared");
        tokio::time::sleep(RETRY).await;
        if known.contains(&uid) {
            return;
        }
    }
    if let Err(error) = world.backend.clean(&uid).await {
        warn!(uid, %error, "remains could not be removed");
    }
}

struct Supervisor<B> {
    world: Arc<Surroundings<B>>,
    known: HashMap<String, Known>,
    /// The keys of `known`, for those who need to know at any moment.
    uids: KnownUids,
    running: FuturesUnordered<futures::future::BoxFuture<'static, String>>,
}

impl<B: Backend> Supervisor<B> {
    async fn take(&mut self, event: WatchEvent<VirtualMachineInstance>) {
        match event {
            WatchEvent::Init => {
                for known in self.known.values_mut() {
                    known.listed = false;
                }
            }
            WatchEvent::InitApply(instance) | WatchEvent::Apply(instance) => {
                self.seen(instance).await;
            }
            WatchEvent::InitDone => {
                let missing = self.known.values().filter(|known| !known.listed);
                for address in missing.map(|k| k.address.clone()).collect::<Vec<_>>() {
                    let _ = address.send(Letter::Vanished).await;
                }
            }
            // An instance that another selector would show reaches a watch as deleted: only a read can tell.
            WatchEvent::Delete(instance) => {
                if let Some(known) = key(&instance).and_then(|key| self.known.get(&key.uid)) {
                    let _ = known.address.send(Letter::Vanished).await;
                }
            }
        }
    }

    async fn seen(&mut self, instance: VirtualMachineInstance) {
        let Some(key) = key(&instance) else { return };
        let status = instance.status.clone();
        let mut letter = Letter::Seen(Arc::new(instance));
        if let Some(known) = self.known.get_mut(&key.uid) {
            known.listed = true;
            match known.address.send(letter).await {
                Ok(()) => return,
                // It has just ended; the API shows it again, so a new one looks.
                Err(back) => letter = back,
            }
        }
        let address = self.start(key, status);
        let _ = address.send(letter).await;
    }

    /// The API does not list it: read it, and kill it once the lease is held if it is gone.
    async fn take_orphan(&mut self, Leftover { uid, key }: Leftover) {
        if self.known.contains_key(&uid) {
            return;
        }
        let Some(key) = key else {
            tokio::spawn(end_nameless(self.world.clone(), self.uids.clone(), uid));
            return;
        };
        info!(instance = %key, "an earlier agent ran an instance that is not listed for this host");
        let address = self.start(key, None);
        let _ = address.send(Letter::Vanished).await;
    }

    fn start(
        &mut self,
        key: GuestKey,
        status: Option<paddock_crds::VirtualMachineInstanceStatus>,
    ) -> Address {
        // Known before anything is made for it: a sweep takes away what nobody knows.
        self.uids.insert(&key.uid);
        let (address, actor) = Actor::start(key.clone(), status, self.world.clone());
        let uid = key.uid.clone();
        let task: JoinHandle<()> = tokio::spawn(actor);
        self.running.push(Box::pin(async move {
            if let Err(error) = task.await {
                warn!(uid, %error, "an actor broke off");
            }
            uid
        }));
        self.known.insert(
            key.uid.clone(),
            Known {
                key,
                address: address.clone(),
                listed: true,
            },
        );
        self.gauge();
        address
    }

    fn ended(&mut self, uid: String) {
        // A newer actor of the same uid may have taken its place.
        if self
            .known
            .get(&uid)
            .is_some_and(|known| known.address.is_closed())
            && let Some(known) = self.known.remove(&uid)
        {
            self.uids.remove(&uid);
            info!(instance = %known.key, "forgotten");
        }
        self.gauge();
    }

    fn gauge(&self) {
        let count = i64::try_from(self.known.len()).unwrap_or(i64::MAX);
        self.world.metrics.instances.set(count);
    }

    fn sweep(&self) {
        let known = self.uids.clone();
        let backend = self.world.backend.clone();
        tokio::spawn(async move {
            if let Err(error) = backend.sweep(&known).await {
                warn!(%error, "the sweep failed");
            }
        });
    }
}
