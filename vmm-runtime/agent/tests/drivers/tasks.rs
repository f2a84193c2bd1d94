//! Jobs of tasks, with a pretended worker.

use super::{EPOCH, eventually, held};
use futures::{FutureExt, future::BoxFuture};
use kube::runtime::watcher::Event as Watch;
use paddock_agent::{
    clock::Boottime,
    instance::core::Failure,
    lease::{Held, renew::HoldingSender},
    task::{
        lanes::Lanes,
        runner::{self, Control, DiskWorker, Report, TaskApi, TaskKey, TaskWriteError},
    },
};
use paddock_crds::{
    VirtualHardDiskTask, VirtualHardDiskTaskSpec, VirtualHardDiskTaskStatus,
    reference::{PoolFile, Time},
    virtual_hard_disk::Precompact,
    virtual_hard_disk_task::{ExportFormat, Shrink, TaskAction, TaskOrder, TaskResult, TaskState},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc};

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
    let spec = VirtualHardDiskTaskSpec::new(TaskAction::Create, "d");
    let mut task = VirtualHardDiskTask::new(name, spec);
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
