//! The drivers with a pretended API: actors on the hollow backend, and jobs with a pretended worker.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use futures::{FutureExt, future::BoxFuture};
use kube::runtime::watcher::Event as Watch;
use paddock_agent::{
    backend::{
        Backend, GuestKey, KnownUids, Leftover, Monitor, StartOrder, Teller, hollow::Hollow,
    },
    clock::{Boottime, SystemClock},
    instance::{
        actor::{InstanceApi, StatusWriteError, Surroundings},
        core::{Failure, Found, Started},
        supervisor,
    },
    lease::{Held, Holding, renew::HoldingSender},
    task::{
        lanes::Lanes,
        runner::{self, Control, DiskWorker, Report, TaskApi, TaskKey, TaskWriteError},
    },
};
use paddock_crds::{
    VirtualHardDiskTask, VirtualHardDiskTaskSpec, VirtualHardDiskTaskStatus,
    VirtualMachineInstance, VirtualMachineInstanceSpec, VirtualMachineInstanceStatus,
    reference::{LocalReference, PoolFile, Time},
    virtual_hard_disk::Precompact,
    virtual_hard_disk_task::{ExportFormat, Shrink, TaskAction, TaskOrder, TaskResult, TaskState},
    virtual_machine::{Acceleration, Machine},
    virtual_machine_instance::{InstanceConfig, InstancePhase, Power},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc, watch};

const EPOCH: i64 = 4;
/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

fn held() -> (HoldingSender, Holding) {
    let (sender, holding) = HoldingSender::new();
    sender.set(Some(Held {
        epoch: EPOCH,
        until: Boottime::from_millis(u64::MAX),
    }));
    (sender, holding)
}

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

#[derive(Default)]
struct Tasks {
    objects: Mutex<HashMap<String, VirtualHardDiskTask>>,
    reads: AtomicUsize,
    reports: Mutex<Vec<(String, Report)>>,
    /// Whether every report is refused, since the task is another host's.
    gone: AtomicBool,
}

impl Tasks {
    fn of(&self, name: &str) -> Vec<Report> {
        let reports = self.reports.lock().unwrap();
        reports
            .iter()
            .filter(|(written, _)| written == name)
            .map(|(_, report)| report.clone())
            .collect()
    }
}

impl TaskApi for Tasks {
    fn read<'a>(
        &'a self,
        key: &'a TaskKey,
    ) -> BoxFuture<'a, Result<Option<VirtualHardDiskTask>, String>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let found = self.objects.lock().unwrap().get(&key.uid).cloned();
        async move { Ok(found) }.boxed()
    }

    fn report<'a>(
        &'a self,
        key: &'a TaskKey,
        report: &'a Report,
    ) -> BoxFuture<'a, Result<(), TaskWriteError>> {
        let written = (key.name.clone(), report.clone());
        self.reports.lock().unwrap().push(written);
        let gone = self.gone.load(Ordering::SeqCst);
        async move {
            if gone {
                Err(TaskWriteError::Gone)
            } else {
                Ok(())
            }
        }
        .boxed()
    }
}

/// Works until it is let go or cancelled, and counts how many do at once.
struct Worker {
    /// How often a merge was found to be cancelled, and went on.
    ignored: Arc<AtomicUsize>,
    revoked: Arc<AtomicUsize>,
    at_work: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    go_on: Arc<Semaphore>,
}

impl Worker {
    fn new() -> Self {
        Self {
            ignored: Arc::default(),
            revoked: Arc::default(),
            at_work: Arc::default(),
            most: Arc::default(),
            go_on: Arc::new(Semaphore::new(0)),
        }
    }
}

impl DiskWorker for Worker {
    fn perform(
        &self,
        task: Arc<VirtualHardDiskTask>,
        control: Arc<Control>,
    ) -> BoxFuture<'static, Result<TaskResult, Failure>> {
        let (at_work, most, go_on) = (self.at_work.clone(), self.most.clone(), self.go_on.clone());
        let (revoked, ignored) = (self.revoked.clone(), self.ignored.clone());
        async move {
            most.fetch_max(at_work.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let result = loop {
                control.set_progress(1, 2);
                if control.is_revoked() {
                    revoked.fetch_add(1, Ordering::SeqCst);
                    break Err(Failure::new("IoError", "the gate is closed"));
                }
                // A merge goes on to its end.
                match (control.is_cancelled(), task.spec.action) {
                    (true, TaskAction::Merge) => {
                        ignored.fetch_add(1, Ordering::SeqCst);
                    }
                    (true, _) => break Err(Failure::new("Cancelled", "cancelled")),
                    (false, _) => {}
                }
                if let Ok(permit) = go_on.try_acquire() {
                    permit.forget();
                    break Ok(TaskResult {
                        uuid: task.metadata.uid.clone(),
                        ..TaskResult::default()
                    });
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            };
            at_work.fetch_sub(1, Ordering::SeqCst);
            result
        }
        .boxed()
    }

    fn leave_off(
        &self,
        task: Arc<VirtualHardDiskTask>,
        begun: bool,
    ) -> BoxFuture<'static, Option<TaskResult>> {
        async move {
            (task.spec.action == TaskAction::Merge).then(|| TaskResult {
                begun: Some(begun),
                ..TaskResult::default()
            })
        }
        .boxed()
    }
}

fn task(name: &str, epoch: i64) -> VirtualHardDiskTask {
    task_in("default", name, epoch)
}

fn task_in(pool: &str, name: &str, epoch: i64) -> VirtualHardDiskTask {
    let mut task = VirtualHardDiskTask::new(
        name,
        VirtualHardDiskTaskSpec {
            action: TaskAction::Create,
            virtual_hard_disk_ref: LocalReference { name: "d".into() },
            size: None,
            shrink: None,
            precompact: None,
            defragment: None,
            target: None,
            format: None,
        },
    );
    task.metadata.namespace = Some("default".into());
    task.metadata.uid = Some(format!("uid-{name}"));
    task.status = Some(VirtualHardDiskTaskStatus {
        host: Some("me".into()),
        host_epoch: Some(epoch),
        order: Some(TaskOrder {
            disk_uid: "disk".into(),
            disk_epoch: 1,
            file: PoolFile {
                pool: pool.into(),
                path: "d.vhd".into(),
            },
            parents: vec![],
            target: None,
            disk_type: None,
            size_bytes: None,
            source: None,
            download: None,
            linked: None,
            device: None,
            clone: vec![],
            undo: None,
            shrink: Shrink::default(),
            precompact: Precompact::default(),
            defragment: Default::default(),
            format: ExportFormat::default(),
        }),
        ..VirtualHardDiskTaskStatus::default()
    });
    task
}

struct TaskHost {
    api: Arc<Tasks>,
    worker: Arc<Worker>,
    watch: mpsc::Sender<Watch<VirtualHardDiskTask>>,
    lease: HoldingSender,
}

impl TaskHost {
    fn start() -> Self {
        let api = Arc::new(Tasks::default());
        let worker = Arc::new(Worker::new());
        let (lease, holding) = held();
        let world = Arc::new(runner::Surroundings {
            host: "me".into(),
            api: api.clone(),
            worker: worker.clone(),
            holding,
            metrics: Arc::default(),
            lanes: Lanes::default(),
        });
        let (watch, events) = mpsc::channel(16);
        let events = futures::stream::unfold(events, |mut events| async move {
            events.recv().await.map(|event| (event, events))
        });
        tokio::spawn(runner::run(world, events));
        Self {
            api,
            worker,
            watch,
            lease,
        }
    }

    async fn apply(&self, task: &VirtualHardDiskTask) {
        let uid = task.metadata.uid.clone().unwrap();
        self.api.objects.lock().unwrap().insert(uid, task.clone());
        self.watch.send(Watch::Apply(task.clone())).await.unwrap();
    }
}

#[tokio::test]
async fn an_epoch_past_its_deadline_starts_no_task() {
    let host = TaskHost::start();
    let hold_until = |milliseconds| {
        host.lease.set(Some(Held {
            epoch: EPOCH,
            until: Boottime::from_millis(milliseconds),
        }));
    };
    hold_until(0);
    host.apply(&task("late", EPOCH)).await;
    eventually("asked again", || host.api.reads.load(Ordering::SeqCst) >= 2).await;
    assert_eq!(host.worker.most.load(Ordering::SeqCst), 0);
    hold_until(u64::MAX);
    host.worker.go_on.add_permits(1);
    eventually("done", || host.api.of("late").len() == 1).await;
    assert_eq!(host.api.of("late")[0].state, TaskState::Succeeded);
}

#[tokio::test]
async fn two_tasks_at_once_and_one_report_each() {
    let host = TaskHost::start();
    for index in 0..5 {
        host.apply(&task(&format!("t{index}"), EPOCH)).await;
    }
    eventually("two work", || {
        host.worker.at_work.load(Ordering::SeqCst) == 2
    })
    .await;
    host.worker.go_on.add_permits(5);
    eventually("all are done", || {
        host.api.reports.lock().unwrap().len() == 5
    })
    .await;
    assert_eq!(host.worker.most.load(Ordering::SeqCst), 2);
    let reports = host.api.of("t3");
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].state, TaskState::Succeeded);
    assert_eq!(reports[0].progress_percent, Some(100));
    assert_eq!(
        reports[0]
            .result
            .as_ref()
            .and_then(|result| result.uuid.as_deref()),
        Some("uid-t3")
    );
}

#[tokio::test]
async fn a_pool_that_hangs_holds_up_no_other_pools_tasks() {
    let host = TaskHost::start();
    for index in 0..4 {
        host.apply(&task_in("hangs", &format!("stuck{index}"), EPOCH))
            .await;
    }
    eventually("two work", || {
        host.worker.at_work.load(Ordering::SeqCst) == 2
    })
    .await;
    for index in 0..2 {
        host.apply(&task_in("other", &format!("t{index}"), EPOCH))
            .await;
    }
    eventually("the other pool's work too", || {
        host.worker.at_work.load(Ordering::SeqCst) == 4
    })
    .await;
    // One that waits is cancelled without its turn.
    let mut waiting = task_in("hangs", "stuck3", EPOCH);
    waiting.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    host.apply(&waiting).await;
    eventually("cancelled", || {
        let last = host.api.of("stuck3").pop();
        last.is_some_and(|report| report.reason.as_deref() == Some("Cancelled"))
    })
    .await;
    assert_eq!(host.worker.at_work.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_task_that_an_earlier_agent_was_at_work_on_is_done() {
    let host = TaskHost::start();
    let mut merge = task("merge", EPOCH);
    merge.spec.action = TaskAction::Merge;
    if let Some(status) = &mut merge.status {
        status.state = TaskState::Running;
        status.progress_percent = Some(40);
    }
    host.worker.go_on.add_permits(1);
    host.watch.send(Watch::Init).await.unwrap();
    let uid = merge.metadata.uid.clone().unwrap();
    host.api.objects.lock().unwrap().insert(uid, merge.clone());
    host.watch.send(Watch::InitApply(merge)).await.unwrap();
    host.watch.send(Watch::InitDone).await.unwrap();
    eventually("done", || !host.api.of("merge").is_empty()).await;
    let states: Vec<_> = host.api.of("merge").iter().map(|r| r.state).collect();
    assert_eq!(states, [TaskState::Succeeded]);
}

#[tokio::test]
async fn what_cannot_be_known_afterwards_is_told_before_it_begins() {
    let host = TaskHost::start();
    host.worker.go_on.add_permits(3);
    for action in [
        TaskAction::Merge,
        TaskAction::CommitUndo,
        TaskAction::Compact,
    ] {
        let name = format!("{action:?}");
        let mut told = task(&name, EPOCH);
        told.spec.action = action;
        host.apply(&told).await;
        eventually("done", || host.api.of(&name).len() == 2).await;
        let states: Vec<_> = host.api.of(&name).iter().map(|r| r.state).collect();
        assert_eq!(states, [TaskState::Running, TaskState::Succeeded]);
    }
}

fn merge(name: &str, state: TaskState) -> VirtualHardDiskTask {
    let mut merge = task(name, EPOCH);
    merge.spec.action = TaskAction::Merge;
    merge.status.as_mut().unwrap().state = state;
    merge
}

#[tokio::test]
async fn what_is_left_is_told_of_one_that_is_cancelled_before_its_turn() {
    let host = TaskHost::start();
    for index in 0..2 {
        host.apply(&task(&format!("t{index}"), EPOCH)).await;
    }
    eventually("two work", || {
        host.worker.at_work.load(Ordering::SeqCst) == 2
    })
    .await;
    for (name, state) in [("begun", TaskState::Running), ("new", TaskState::Pending)] {
        let mut cancelled = merge(name, state);
        host.apply(&cancelled).await;
        cancelled.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        host.apply(&cancelled).await;
        eventually("cancelled", || host.api.of(name).len() == 1).await;
        let told = host.api.of(name).remove(0);
        assert_eq!(told.reason.as_deref(), Some("Cancelled"));
        let begun = told.result.and_then(|result| result.begun);
        assert_eq!(begun, Some(state == TaskState::Running));
    }
}

#[tokio::test]
async fn a_task_waits_for_its_epoch() {
    let host = TaskHost::start();
    host.worker.go_on.add_permits(2);
    host.apply(&task("later", EPOCH + 1)).await;
    host.apply(&task("now", EPOCH)).await;
    eventually("now is done", || host.api.of("now").len() == 1).await;
    assert_eq!(host.api.of("later"), []);
    host.lease.set(Some(Held {
        epoch: EPOCH + 1,
        until: Boottime::from_millis(u64::MAX),
    }));
    eventually("later is done", || host.api.of("later").len() == 1).await;
}

#[tokio::test]
async fn a_deleted_task_is_cancelled_at_work_and_before() {
    let host = TaskHost::start();
    let deleted = |name: &str, epoch| {
        let mut task = task(name, epoch);
        task.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        task
    };
    host.apply(&task("at-work", EPOCH)).await;
    eventually("it works", || {
        host.worker.at_work.load(Ordering::SeqCst) == 1
    })
    .await;
    host.apply(&deleted("at-work", EPOCH)).await;
    host.apply(&deleted("waiting", EPOCH + 1)).await;
    for name in ["at-work", "waiting"] {
        eventually("cancelled", || {
            let last = host.api.of(name).pop();
            last.is_some_and(|report| {
                report.state == TaskState::Failed && report.reason.as_deref() == Some("Cancelled")
            })
        })
        .await;
    }
    assert_eq!(host.worker.at_work.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_merge_goes_on_when_it_is_deleted_and_not_when_it_is_another_hosts() {
    let host = TaskHost::start();
    let mut merge = task("merge", EPOCH);
    merge.spec.action = TaskAction::Merge;
    host.apply(&merge).await;
    eventually("it works", || {
        host.worker.at_work.load(Ordering::SeqCst) == 1
    })
    .await;
    merge.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    host.apply(&merge).await;
    eventually("it is told", || {
        host.worker.ignored.load(Ordering::SeqCst) > 0
    })
    .await;
    host.worker.go_on.add_permits(1);
    eventually("it is done", || {
        let reports = host.api.of("merge");
        let mut states = reports.iter().map(|report| report.state);
        states.any(|state| state == TaskState::Succeeded)
    })
    .await;
    assert_eq!(host.worker.revoked.load(Ordering::SeqCst), 0);
    let mut lost = task("lost", EPOCH);
    lost.spec.action = TaskAction::Merge;
    host.apply(&lost).await;
    eventually("it works", || {
        host.worker.at_work.load(Ordering::SeqCst) == 1
    })
    .await;
    // Deleted first: it goes on, and still has to notice that it is lost.
    lost.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    host.apply(&lost).await;
    if let Some(status) = &mut lost.status {
        status.host = None;
        status.order = None;
    }
    host.apply(&lost).await;
    eventually("it is revoked", || {
        host.worker.revoked.load(Ordering::SeqCst) == 1
    })
    .await;
}

#[tokio::test]
async fn work_ends_when_the_api_says_that_the_task_is_another_hosts() {
    let host = TaskHost::start();
    let mut merge = task("merge", EPOCH);
    merge.spec.action = TaskAction::Merge;
    host.api.gone.store(true, Ordering::SeqCst);
    host.apply(&merge).await;
    eventually("it is revoked", || {
        host.worker.revoked.load(Ordering::SeqCst) == 1
    })
    .await;
}
