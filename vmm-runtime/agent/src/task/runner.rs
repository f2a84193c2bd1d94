//! Carries tasks out: each in a job of its own, a few at work at once in each pool, one report per result.

use super::{
    core::{CANCELLED, Next, next},
    lanes::{Lane, Lanes},
    progress::{Progress, STUCK_AFTER, Told},
};
use crate::{
    clock::{Clock, SystemClock},
    instance::{core::Failure, status::shorten},
    lease::Holding,
    metrics::Metrics,
};
use futures::{Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kube::{ResourceExt, runtime::watcher::Event as WatchEvent};
use paddock_crds::{
    VirtualHardDiskTask,
    virtual_hard_disk_task::{TaskAction, TaskResult, TaskState},
};
use paddock_vhd::Gate;
use serde::Serialize;
use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    task::JoinHandle,
};
use tracing::{info, warn};

/// From one look at the progress to the next.
const LOOK_EACH: Duration = Duration::from_secs(1);
/// A task that waits longer than this for others in its pools says so.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
const CALL_LIMIT: Duration = Duration::from_secs(15);
const MAX_MESSAGE: usize = 1024;

/// Which task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TaskKey {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The agent's part of a task's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How far it is.
    pub state: TaskState,
    /// Per cent done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_percent: Option<i32>,
    /// Why it failed, in a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it failed, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What it made or found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<TaskResult>,
}

/// Why a report was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskWriteError {
    /// There is no such task any more.
    Gone,
    /// Another reason.
    Failed(String),
}

/// Tasks in the API.
pub trait TaskApi: Send + Sync + 'static {
    /// Reads a task with quorum; `None` when there is none of this uid.
    fn read<'a>(
        &'a self,
        key: &'a TaskKey,
    ) -> BoxFuture<'a, Result<Option<VirtualHardDiskTask>, String>>;
    /// Writes the agent's part of its status.
    fn report<'a>(
        &'a self,
        key: &'a TaskKey,
        report: &'a Report,
    ) -> BoxFuture<'a, Result<(), TaskWriteError>>;
}

/// How a job and its work talk while the work goes on.
#[derive(Debug)]
pub struct Control {
    cancelled: AtomicBool,
    gate: Gate,
    percent: AtomicU8,
    beat: AtomicU64,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            cancelled: AtomicBool::default(),
            gate: Gate::open(),
            percent: AtomicU8::default(),
            beat: AtomicU64::default(),
        }
    }
}

impl Control {
    /// What changes of the disk in place have to pass.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// The task is not this host's any more, so the disk may be another's: nothing is written from here on, whatever
    /// that leaves half done.
    pub fn revoke(&self) {
        self.cancel();
        self.gate.close();
    }

    /// Whether the work was revoked.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        !self.gate.is_open()
    }

    /// Whether the work should end early.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Asks the work to end early.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Tells how far the work is.
    pub fn set_progress(&self, done: u64, total: u64) {
        let percent = (u128::from(done) * 100)
            .checked_div(u128::from(total))
            .unwrap_or(0)
            .min(100);
        // At most 100.
        self.percent
            .store(u8::try_from(percent).unwrap_or(100), Ordering::Relaxed);
        self.beat.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes whenever the work tells something.
    fn beat(&self) -> u64 {
        self.beat.load(Ordering::Relaxed)
    }

    fn percent(&self) -> u8 {
        self.percent.load(Ordering::Relaxed)
    }
}

/// Does the work of tasks.
pub trait DiskWorker: Send + Sync + 'static {
    /// Does it; may be called again for a task that an earlier agent was at work on.
    fn perform(
        &self,
        task: Arc<VirtualHardDiskTask>,
        control: Arc<Control>,
    ) -> BoxFuture<'static, Result<TaskResult, Failure>>;
    /// Clears away what a task has made that failed or is not gone on with, and looks at what it left: whether a merge
    /// was begun. `None` for a task of which there is nothing to be told, and where that cannot be known. `begun` tells
    /// whether anybody was at work on it.
    fn leave_off(
        &self,
        task: Arc<VirtualHardDiskTask>,
        begun: bool,
    ) -> BoxFuture<'static, Option<TaskResult>>;
}

/// What jobs use.
pub struct Surroundings {
    /// This host.
    pub host: String,
    /// The API.
    pub api: Arc<dyn TaskApi>,
    /// Who works.
    pub worker: Arc<dyn DiskWorker>,
    /// The host's lease.
    pub holding: Holding,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Bounds the tasks at work at once.
    pub lanes: Lanes,
}

/// Runs the tasks of this host for ever.
pub async fn run(
    world: Arc<Surroundings>,
    tasks: impl Stream<Item = WatchEvent<VirtualHardDiskTask>> + Send,
) {
    let mut jobs: HashMap<String, watch::Sender<Option<Arc<VirtualHardDiskTask>>>> = HashMap::new();
    let mut running: FuturesUnordered<BoxFuture<'static, String>> = FuturesUnordered::new();
    let mut listed: HashSet<String> = HashSet::new();
    let mut tasks = pin!(tasks);
    loop {
        tokio::select! {
            event = tasks.next() => match event {
                None => return,
                Some(WatchEvent::Init) => listed.clear(),
                Some(WatchEvent::InitDone) => {
                    for (uid, job) in &jobs {
                        if !listed.contains(uid) {
                            job.send_replace(None);
                        }
                    }
                    listed.clear();
                }
                Some(WatchEvent::Delete(task)) => {
                    if let Some(job) = task.uid().and_then(|uid| jobs.get(&uid)) {
                        job.send_replace(None);
                    }
                }
                Some(event @ (WatchEvent::InitApply(_) | WatchEvent::Apply(_))) => {
                    let is_listing = matches!(event, WatchEvent::InitApply(_));
                    let (WatchEvent::InitApply(task) | WatchEvent::Apply(task)) = event else {
                        continue;
                    };
                    let Some(key) = key(&task) else { continue };
                    if is_listing {
                        listed.insert(key.uid.clone());
                    }
                    let task = Arc::new(task);
                    if let Some(job) = jobs.get(&key.uid) {
                        job.send_replace(Some(task));
                    } else if next(&task, &world.host, None) != Next::Done {
                        let uid = key.uid.clone();
                        let (sender, receiver) = watch::channel(Some(task));
                        jobs.insert(uid.clone(), sender);
                        let job: JoinHandle<()> = tokio::spawn(work_on(key, world.clone(), receiver));
                        running.push(Box::pin(async move {
                            if let Err(error) = job.await {
                                warn!(uid, %error, "a task's job broke off");
                            }
                            uid
                        }));
                    }
                }
            },
            Some(uid) = running.next() => {
                jobs.remove(&uid);
            }
        }
    }
}

fn key(task: &VirtualHardDiskTask) -> Option<TaskKey> {
    Some(TaskKey {
        uid: task.uid()?,
        namespace: task.namespace()?,
        name: task.name_any(),
    })
}

type Latest = watch::Receiver<Option<Arc<VirtualHardDiskTask>>>;

/// One task from its assignment to its result.
async fn work_on(key: TaskKey, world: Arc<Surroundings>, mut latest: Latest) {
    let Some(task) = allowed(&key, &world, &mut latest).await else {
        return;
    };
    let Some(order) = task
        .status
        .as_ref()
        .and_then(|status| status.order.as_ref())
    else {
        return;
    };
    // An order does not change, so neither does its lane.
    let lane = world.lanes.of(order);
    let Some(_permit) = its_turn(&key, &world, &mut latest, &task, &lane).await else {
        return;
    };
    // It may have changed while others worked; and only a read with quorum says that the task is still this host's.
    let Some(task) = confirmed(&key, &world, &mut latest).await else {
        return;
    };
    let action = task.spec.action;
    if is_told_first(action) && !is_begun(&task) {
        write(&key, &world, &running(Told::default(), &lane)).await;
    }
    info!(task = %key.name, namespace = %key.namespace, ?action, "working on a disk");
    let control = Arc::new(Control::default());
    let mut work = world.worker.perform(task.clone(), control.clone());
    let start = Instant::now();
    let mut progress = Progress::default();
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome,
            changed = latest.changed(), if !control.is_revoked() => {
                if changed.is_err() || is_lost(&mut latest, &world.host) {
                    control.revoke();
                } else if is_deleted(&mut latest) {
                    control.cancel();
                }
            }
            () = tokio::time::sleep(LOOK_EACH) => {
                let due = progress.due(start.elapsed(), control.beat(), control.percent());
                if let Some(told) = due {
                    // The next one says more; nothing depends on this one.
                    let report = running(told, &lane);
                    match tokio::time::timeout(CALL_LIMIT, world.api.report(&key, &report)).await {
                        Ok(Err(TaskWriteError::Gone)) => control.revoke(),
                        Ok(Err(TaskWriteError::Failed(error))) => {
                            warn!(task = %key.name, %error, "progress was not written");
                        }
                        Ok(Ok(())) | Err(_) => {}
                    }
                }
            }
        }
    };
    let report = match outcome {
        Ok(result) => {
            world.metrics.tasks_succeeded.add(1);
            info!(task = %key.name, namespace = %key.namespace, ?action, "the disk is done");
            Report {
                state: TaskState::Succeeded,
                progress_percent: Some(100),
                result: Some(result),
                ..Report::default()
            }
        }
        Err(failure) => {
            world.metrics.tasks_failed.add(1);
            warn!(task = %key.name, namespace = %key.namespace, ?action, reason = failure.reason, message = %failure.message, "the task failed");
            left_off(&world, task, true, &failure).await
        }
    };
    write(&key, &world, &report).await;
}

/// Whether a task is told as running before it begins. What it works on may be gone, or made, when it ends: who comes
/// after a crash must know that it was begun, and nobody else's doing is taken for its own.
fn is_told_first(action: TaskAction) -> bool {
    matches!(
        action,
        TaskAction::Merge | TaskAction::CommitUndo | TaskAction::Compact
    )
}

/// Whether an agent was at work on a task.
fn is_begun(task: &VirtualHardDiskTask) -> bool {
    let status = task.status.as_ref();
    status.is_some_and(|status| status.state == TaskState::Running)
}

/// The report of a task that failed, with what is left of it.
async fn left_off(
    world: &Surroundings,
    task: Arc<VirtualHardDiskTask>,
    begun: bool,
    failure: &Failure,
) -> Report {
    let left = tokio::time::timeout(CALL_LIMIT, world.worker.leave_off(task, begun)).await;
    Report {
        result: left.ok().flatten(),
        ..failed(failure)
    }
}

/// Says that a task was deleted, and what is left of it.
async fn cancel(key: &TaskKey, world: &Surroundings, task: Arc<VirtualHardDiskTask>) {
    let begun = is_begun(&task);
    write(
        key,
        world,
        &left_off(world, task, begun, &cancelled()).await,
    )
    .await;
}

/// Waits until others in the same pools are done; `None` when the task was deleted meanwhile.
async fn its_turn(
    key: &TaskKey,
    world: &Surroundings,
    latest: &mut Latest,
    task: &Arc<VirtualHardDiskTask>,
    lane: &Lane,
) -> Option<OwnedSemaphorePermit> {
    let mut turn = Box::pin(lane.enter());
    let mut patience = Some(PATIENCE);
    loop {
        tokio::select! {
            biased;
            permit = &mut turn => return permit,
            changed = latest.changed() => {
                changed.ok()?;
                if is_deleted(latest) {
                    cancel(key, world, task.clone()).await;
                    return None;
                }
            }
            () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => {
                patience = None;
                let report = queued(task, lane);
                if let Ok(Err(TaskWriteError::Failed(error))) =
                    tokio::time::timeout(CALL_LIMIT, world.api.report(key, &report)).await
                {
                    warn!(task = %key.name, %error, "that it waits was not written");
                }
            }
        }
    }
}

fn is_deleted(latest: &mut Latest) -> bool {
    match latest.borrow_and_update().as_ref() {
        Some(task) => task.metadata.deletion_timestamp.is_some(),
        None => true,
    }
}

/// Whether the task is gone, or another host's.
fn is_lost(latest: &mut Latest, host: &str) -> bool {
    match latest.borrow_and_update().as_ref() {
        Some(task) => {
            let status = task.status.as_ref();
            status.and_then(|status| status.host.as_deref()) != Some(host)
        }
        None => true,
    }
}

/// Waits until the task may be worked on; `None` when it never will.
async fn allowed(
    key: &TaskKey,
    world: &Surroundings,
    latest: &mut Latest,
) -> Option<Arc<VirtualHardDiskTask>> {
    let mut epoch = world.holding.epoch();
    loop {
        let task = latest.borrow_and_update().clone()?;
        let held = *epoch.borrow_and_update();
        match next(&task, &world.host, held) {
            Next::Work => return Some(task),
            Next::Done => return None,
            Next::Cancel => {
                cancel(key, world, task).await;
                return None;
            }
            Next::Wait => {
                tokio::select! {
                    changed = latest.changed() => changed.ok()?,
                    changed = epoch.changed() => changed.ok()?,
                }
            }
        }
    }
}

/// The task as a read with quorum shows it, once it may be worked on; `None` when it never will.
async fn confirmed(
    key: &TaskKey,
    world: &Surroundings,
    latest: &mut Latest,
) -> Option<Arc<VirtualHardDiskTask>> {
    loop {
        match tokio::time::timeout(CALL_LIMIT, world.api.read(key)).await {
            Ok(Ok(None)) => return None,
            Ok(Ok(Some(task))) => {
                // After its deadline somebody else may have been told that this host holds nothing any more.
                let held = world.holding.valid_epoch(SystemClock.boottime());
                match next(&task, &world.host, held) {
                    Next::Work => return Some(Arc::new(task)),
                    Next::Done => return None,
                    Next::Cancel => {
                        cancel(key, world, Arc::new(task)).await;
                        return None;
                    }
                    Next::Wait => {
                        allowed(key, world, latest).await?;
                    }
                }
            }
            Ok(Err(error)) => warn!(task = %key.name, %error, "the task could not be read"),
            Err(_) => warn!(task = %key.name, "the task could not be read: no answer in time"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Writes a result until the API has taken it or the task is gone.
async fn write(key: &TaskKey, world: &Surroundings, report: &Report) {
    loop {
        match tokio::time::timeout(CALL_LIMIT, world.api.report(key, report)).await {
            Ok(Ok(())) => {
                world.metrics.status_writes.add(1);
                return;
            }
            Ok(Err(TaskWriteError::Gone)) => return,
            Ok(Err(TaskWriteError::Failed(error))) => {
                warn!(task = %key.name, %error, "the result was not written");
            }
            Err(_) => warn!(task = %key.name, "the result was not written: no answer in time"),
        }
        world.metrics.status_write_failures.add(1);
        tokio::time::sleep(RETRY).await;
    }
}

/// That a task waits for its turn. That an earlier agent has begun it is never taken back.
fn queued(task: &VirtualHardDiskTask, lane: &Lane) -> Report {
    Report {
        state: match is_begun(task) {
            true => TaskState::Running,
            false => TaskState::Pending,
        },
        reason: Some("Queued".to_owned()),
        message: Some(format!("it waits for other tasks in pool {}", lane.pools())),
        ..Report::default()
    }
}

fn running(told: Told, lane: &Lane) -> Report {
    let stuck = told.stuck.then(|| {
        format!(
            "nothing was heard of the work for {} s: pool {} may hang on this host",
            STUCK_AFTER.as_secs(),
            lane.pools()
        )
    });
    Report {
        state: TaskState::Running,
        progress_percent: Some(told.percent.into()),
        reason: stuck.is_some().then(|| "NoProgress".to_owned()),
        message: stuck,
        ..Report::default()
    }
}

fn failed(failure: &Failure) -> Report {
    Report {
        state: TaskState::Failed,
        reason: Some(failure.reason.to_owned()),
        message: Some(shorten(&failure.message, MAX_MESSAGE)),
        ..Report::default()
    }
}

fn cancelled() -> Failure {
    Failure::new(CANCELLED, "the task was deleted before it was done")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::core::{test_order, test_task};
    use paddock_crds::{VirtualHardDiskTaskStatus, reference::PoolFile};

    #[test]
    fn a_task_that_was_begun_waits_for_its_turn_as_running() {
        let order = test_order(PoolFile {
            pool: "default".into(),
            path: "d.vhd".into(),
        });
        let lane = Lanes::default().of(&order);
        for state in [TaskState::Pending, TaskState::Running] {
            let mut task = test_task(TaskAction::Merge);
            task.status = Some(VirtualHardDiskTaskStatus {
                state,
                ..VirtualHardDiskTaskStatus::default()
            });
            let told = queued(&task, &lane);
            assert_eq!(
                (told.state, told.reason.as_deref()),
                (state, Some("Queued"))
            );
        }
    }
}
