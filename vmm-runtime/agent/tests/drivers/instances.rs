//! Actors of instances, on the hollow backend and on one that does as it is told.

use super::{EPOCH, eventually, held};
use futures::{FutureExt, future::BoxFuture};
use kube::runtime::watcher::Event as Watch;
use paddock_agent::{
    backend::{
        Backend, GuestKey, KnownUids, Leftover, Monitor, StartOrder, Teller, hollow::Hollow,
    },
    clock::SystemClock,
    instance::{
        actor::{InstanceApi, StatusWriteError, Surroundings},
        core::{Failure, Found, Started},
        supervisor,
    },
    lease::renew::HoldingSender,
};
use paddock_crds::{
    VirtualMachineInstance, VirtualMachineInstanceSpec, VirtualMachineInstanceStatus,
    virtual_machine::{Acceleration, Machine},
    virtual_machine_instance::{InstanceConfig, InstancePhase, Power},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::{Semaphore, mpsc, watch};

fn instance(name: &str, generation: i64, power: Power) -> VirtualMachineInstance {
    let mut instance = VirtualMachineInstance::new(
        name,
        VirtualMachineInstanceSpec {
            host: "me".into(),
            host_epoch: EPOCH,
            power,
            restart_token: None,
            config_revision: format!("c{generation}"),
            config: InstanceConfig {
                uuid: "7b0b3f9e-0000-4000-8000-000000000001".into(),
                hostname: name.into(),
                machine: Machine::Pc,
                acceleration: Acceleration::Auto,
                cores: 1,
                memory_mebibytes: 64,
                kernel: None,
                disks: vec![],
                network_adapters: vec![],
                stop_deadline_seconds: 30,
            },
        },
    );
    instance.metadata.namespace = Some("default".into());
    instance.metadata.uid = Some(format!("uid-{name}"));
    instance.metadata.generation = Some(generation);
    instance
}

#[derive(Default)]
struct Instances {
    objects: Mutex<HashMap<String, VirtualMachineInstance>>,
    writes: Mutex<Vec<(String, VirtualMachineInstanceStatus)>>,
    failures: AtomicUsize,
}

impl Instances {
    fn put(&self, instance: &VirtualMachineInstance) {
        let uid = instance.metadata.uid.clone().unwrap();
        self.objects.lock().unwrap().insert(uid, instance.clone());
    }

    fn phases(&self, name: &str) -> Vec<InstancePhase> {
        let writes = self.writes.lock().unwrap();
        writes
            .iter()
            .filter(|(written, _)| written == name)
            .map(|(_, status)| status.phase)
            .collect()
    }

    fn last(&self, name: &str) -> Option<VirtualMachineInstanceStatus> {
        let writes = self.writes.lock().unwrap();
        let mut of_name = writes.iter().filter(|(written, _)| written == name);
        of_name.next_back().map(|(_, status)| status.clone())
    }
}

impl InstanceApi for Instances {
    fn read<'a>(
        &'a self,
        key: &'a GuestKey,
    ) -> BoxFuture<'a, Result<Option<VirtualMachineInstance>, String>> {
        let found = self.objects.lock().unwrap().get(&key.uid).cloned();
        async move { Ok(found) }.boxed()
    }

    fn write_status<'a>(
        &'a self,
        key: &'a GuestKey,
        status: &'a VirtualMachineInstanceStatus,
    ) -> BoxFuture<'a, Result<(), StatusWriteError>> {
        async {
            let fails = self
                .failures
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                });
            if fails.is_ok() {
                return Err(StatusWriteError::Failed("no answer".into()));
            }
            if !self.objects.lock().unwrap().contains_key(&key.uid) {
                return Err(StatusWriteError::Gone);
            }
            let written = (key.name.clone(), status.clone());
            self.writes.lock().unwrap().push(written);
            Ok(())
        }
        .boxed()
    }
}

struct Host {
    api: Arc<Instances>,
    watch: mpsc::Sender<Watch<VirtualMachineInstance>>,
    world: Arc<dyn Send + Sync>,
    metrics: Arc<paddock_agent::metrics::Metrics>,
    _lease: HoldingSender,
}

impl Host {
    fn start<B: Backend>(backend: B, starts: usize) -> Self {
        let api = Arc::new(Instances::default());
        let (lease, holding) = held();
        let metrics = Arc::new(paddock_agent::metrics::Metrics::default());
        let world = Arc::new(Surroundings {
            backend: Arc::new(backend),
            api: api.clone(),
            clock: Arc::new(SystemClock),
            holding,
            metrics: metrics.clone(),
            starts: Arc::new(Semaphore::new(starts)),
            calls: Arc::new(Semaphore::new(8)),
        });
        let (watch_in, watch_out) = mpsc::channel(16);
        let events = futures::stream::unfold(watch_out, |mut events| async move {
            events.recv().await.map(|event| (event, events))
        });
        tokio::spawn(supervisor::run(
            world.clone(),
            events,
            watch::Sender::new(false),
        ));
        Self {
            api,
            watch: watch_in,
            world,
            metrics,
            _lease: lease,
        }
    }

    async fn apply(&self, instance: &VirtualMachineInstance) {
        self.api.put(instance);
        self.watch
            .send(Watch::Apply(instance.clone()))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn from_the_watch_to_running_in_one_write_and_to_released_in_one_more() {
    let host = Host::start(Hollow::default(), 4);
    host.watch.send(Watch::Init).await.unwrap();
    host.watch.send(Watch::InitDone).await.unwrap();
    host.apply(&instance("a", 1, Power::Running)).await;
    eventually("running", || {
        host.api.phases("a") == [InstancePhase::Running]
    })
    .await;
    let status = host.api.last("a").unwrap();
    assert_eq!(status.started_generation, Some(1));
    assert_eq!(status.started_config_revision.as_deref(), Some("c1"));

    host.apply(&instance("a", 2, Power::Stopped)).await;
    eventually("released", || {
        host.api.last("a").is_some_and(|s| s.released.is_some())
    })
    .await;
    assert_eq!(
        host.api.phases("a"),
        [InstancePhase::Running, InstancePhase::Stopped]
    );
    assert_eq!(
        host.api.last("a").unwrap().released.unwrap().host_epoch,
        EPOCH
    );

    let gone = host.api.objects.lock().unwrap().remove("uid-a").unwrap();
    host.watch.send(Watch::Delete(gone)).await.unwrap();
    eventually("forgotten", || host.metrics.instances.get() == 0).await;
}

#[tokio::test]
async fn deleted_from_the_watch_but_there_goes_on() {
    let host = Host::start(Hollow::default(), 4);
    let a = instance("a", 1, Power::Running);
    host.apply(&a).await;
    eventually("running", || host.metrics.instances_up.get() == 1).await;
    host.watch.send(Watch::Delete(a.clone())).await.unwrap();
    // The next change is answered by the same guest, which was not started again.
    host.apply(&instance("a", 2, Power::Paused)).await;
    eventually("paused", || {
        host.api.phases("a").last() == Some(&InstancePhase::Paused)
    })
    .await;
    assert_eq!(host.metrics.starts.get(), 1);
}

#[tokio::test]
async fn what_a_new_list_misses_is_asked_for_and_forgotten() {
    let host = Host::start(Hollow::default(), 4);
    host.apply(&instance("a", 1, Power::Running)).await;
    host.apply(&instance("b", 1, Power::Running)).await;
    eventually("running", || host.metrics.instances_up.get() == 2).await;
    host.api.objects.lock().unwrap().remove("uid-a");
    host.watch.send(Watch::Init).await.unwrap();
    host.watch
        .send(Watch::InitApply(instance("b", 1, Power::Running)))
        .await
        .unwrap();
    host.watch.send(Watch::InitDone).await.unwrap();
    eventually("a is gone", || host.metrics.instances.get() == 1).await;
    assert_eq!(host.metrics.instances_up.get(), 1);
}

#[tokio::test]
async fn a_status_that_was_not_taken_is_written_again() {
    let host = Host::start(Hollow::default(), 4);
    host.api.failures.store(2, Ordering::SeqCst);
    host.apply(&instance("a", 1, Power::Running)).await;
    eventually("written", || {
        host.api.phases("a") == [InstancePhase::Running]
    })
    .await;
    assert_eq!(host.metrics.status_write_failures.get(), 2);
}

/// Hollow, but an instance named `slow` never gets ready, and it tells what it was asked for.
#[derive(Default)]
struct Scripted {
    hollow: Hollow,
    leftovers: Vec<Leftover>,
    cleared: Arc<Mutex<Vec<String>>>,
    sweep: Option<Arc<Sweep>>,
}

/// A sweep that takes its time before it asks whether `uid-late` is known.
struct Sweep {
    begun: Semaphore,
    go_on: Semaphore,
    knew: Mutex<Option<bool>>,
}

impl Backend for Scripted {
    fn inventory(&self) -> BoxFuture<'_, Result<Vec<Leftover>, String>> {
        async { Ok(self.leftovers.clone()) }.boxed()
    }
    fn examine<'a>(
        &'a self,
        key: &'a GuestKey,
        status: &'a VirtualMachineInstanceStatus,
        teller: Teller,
    ) -> BoxFuture<'a, Result<(Found, Option<Monitor>), String>> {
        self.hollow.examine(key, status, teller)
    }
    fn prepare<'a>(&'a self, order: &'a StartOrder) -> BoxFuture<'a, Result<(), Failure>> {
        if order.key.name == "slow" {
            return std::future::pending().boxed();
        }
        self.hollow.prepare(order)
    }
    fn spawn<'a>(
        &'a self,
        order: &'a StartOrder,
        teller: Teller,
    ) -> BoxFuture<'a, Result<(Started, Monitor), Failure>> {
        self.hollow.spawn(order, teller)
    }
    fn set_power<'a>(
        &'a self,
        key: &'a GuestKey,
        power: Power,
    ) -> BoxFuture<'a, Result<(), String>> {
        self.hollow.set_power(key, power)
    }
    fn stop<'a>(&'a self, key: &'a GuestKey, deadline: u32) -> BoxFuture<'a, Result<(), String>> {
        self.hollow.stop(key, deadline)
    }
    fn clear<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        self.cleared.lock().unwrap().push(uid.to_owned());
        self.hollow.clear(uid)
    }
    fn clean<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        self.hollow.clean(uid)
    }
    fn serve_dhcp<'a>(&'a self, order: &'a StartOrder) -> BoxFuture<'a, Result<(), Failure>> {
        self.hollow.serve_dhcp(order)
    }
    fn sweep<'a>(&'a self, known: &'a KnownUids) -> BoxFuture<'a, Result<(), String>> {
        async move {
            if let Some(sweep) = &self.sweep {
                sweep.begun.add_permits(1);
                sweep.go_on.acquire().await.unwrap().forget();
                *sweep.knew.lock().unwrap() = Some(known.contains("uid-late"));
            }
            Ok(())
        }
        .boxed()
    }
}

#[tokio::test]
async fn a_sweep_spares_what_came_while_it_went_on() {
    let sweep = Arc::new(Sweep {
        begun: Semaphore::new(0),
        go_on: Semaphore::new(0),
        knew: Mutex::new(None),
    });
    let host = Host::start(
        Scripted {
            sweep: Some(sweep.clone()),
            ..Scripted::default()
        },
        4,
    );
    host.watch.send(Watch::Init).await.unwrap();
    host.watch.send(Watch::InitDone).await.unwrap();
    sweep.begun.acquire().await.unwrap().forget();
    host.apply(&instance("late", 1, Power::Running)).await;
    eventually("running", || host.metrics.instances_up.get() == 1).await;
    sweep.go_on.add_permits(1);
    eventually("swept", || sweep.knew.lock().unwrap().is_some()).await;
    assert_eq!(*sweep.knew.lock().unwrap(), Some(true));
}

#[tokio::test]
async fn remains_without_a_name_are_killed_only_if_no_instance_has_their_uid() {
    let nameless = |uid: &str| Leftover {
        uid: uid.to_owned(),
        key: None,
    };
    let cleared = Arc::new(Mutex::default());
    let host = Host::start(
        Scripted {
            leftovers: vec![nameless("uid-a"), nameless("uid-x")],
            cleared: Arc::clone(&cleared),
            ..Scripted::default()
        },
        4,
    );
    let a = instance("a", 1, Power::Running);
    host.api.put(&a);
    for event in [Watch::Init, Watch::InitApply(a), Watch::InitDone] {
        host.watch.send(event).await.unwrap();
    }
    eventually("running", || host.metrics.instances_up.get() == 1).await;
    eventually("cleared", || !cleared.lock().unwrap().is_empty()).await;
    assert_eq!(*cleared.lock().unwrap(), ["uid-x"]);
}

#[tokio::test]
async fn one_that_hangs_delays_no_other() {
    let host = Host::start(Scripted::default(), 2);
    host.apply(&instance("slow", 1, Power::Running)).await;
    for index in 0..20 {
        host.apply(&instance(&format!("n{index}"), 1, Power::Running))
            .await;
    }
    eventually("the others run", || host.metrics.instances_up.get() == 20).await;
    eventually("its start is told", || {
        host.api.phases("slow") == [InstancePhase::Starting]
    })
    .await;
    let _ = &host.world;
}
