//! The workers: each takes an object from the queue, reconciles it, and sets when it is looked at again.

use crate::{
    cache::Cache, disk, events::Events, host, machine, metrics::Metrics, network, queue::Queue,
    queue::Work, write::WriteError, write::Writer,
};
use paddock_crds::reference::Time;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tracing::{debug, warn};

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(30);

/// What every reconcile uses.
pub struct Context {
    /// The cache.
    pub cache: Arc<Cache>,
    /// The work to do.
    pub queue: Arc<Queue>,
    /// Writes.
    pub writer: Writer,
    /// Events.
    pub events: Events,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The API client, for leases.
    pub client: kube::Client,
    /// Namespace of the leases.
    pub namespace: String,
    /// When disks may try again.
    pub retries: disk::Retries,
    /// Instances that were just created.
    pub fresh: machine::Fresh,
    failures: Mutex<HashMap<Work, u32>>,
}

/// Why an object is looked at again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A step was not done.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The lease of a host was not made.
    #[error("the lease of host {host} was not made: {message}")]
    Lease {
        /// The host.
        host: String,
        /// What went wrong.
        message: String,
    },
}

/// The present, for conditions: whole seconds, as the API keeps them.
#[must_use]
pub fn now() -> Time {
    let now = k8s_openapi::jiff::Timestamp::now();
    Time(k8s_openapi::jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
}

impl Context {
    /// A context.
    #[must_use]
    pub fn new(
        cache: Arc<Cache>,
        queue: Arc<Queue>,
        writer: Writer,
        events: Events,
        metrics: Arc<Metrics>,
        client: kube::Client,
        namespace: &str,
    ) -> Self {
        Self {
            cache,
            queue,
            writer,
            events,
            metrics,
            client,
            namespace: namespace.to_owned(),
            retries: disk::Retries::default(),
            fresh: machine::Fresh::default(),
            failures: Mutex::default(),
        }
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<Work, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until the queue is closed.
    pub async fn work(self: Arc<Self>) {
        while let Some(work) = self.queue.take().await {
            let begin = Instant::now();
            let result = self.reconcile(&work).await;
            let label = match &result {
                Ok(()) => "ok",
                Err(ReconcileError::Write(WriteError::Conflict(_) | WriteError::Gone(_))) => {
                    "conflict"
                }
                Err(_) => "error",
            };
            self.metrics.reconciled(work.kind(), label, begin.elapsed());
            match result {
                Ok(()) => {
                    self.failures().remove(&work);
                }
                Err(error) => {
                    let count = {
                        let mut failures = self.failures();
                        let count = failures.entry(work.clone()).or_default();
                        *count = count.saturating_add(1);
                        *count
                    };
                    let wait = backoff(&work, count);
                    if label == "conflict" && count < 3 {
                        debug!(?work, %error, "looked at again at once");
                        self.queue.add(work.clone());
                    } else {
                        warn!(?work, %error, wait = ?wait, "looked at again later");
                        self.queue.add_after(work.clone(), wait);
                    }
                }
            }
            self.queue.done(&work);
        }
    }

    async fn reconcile(&self, work: &Work) -> Result<(), ReconcileError> {
        match work {
            Work::Machine(key) => machine::reconcile(self, key).await,
            Work::Disk(key) => disk::reconcile(self, key).await,
            Work::Network(key) => network::reconcile(self, key).await,
            Work::Host(name) => host::reconcile(self, name).await,
        }
    }
}

/// The wait after the `count`-th failure in a row: it doubles up to 30 s, less up to a quarter that differs by object
/// and count, so that objects that failed together do not come back together.
fn backoff(work: &Work, count: u32) -> Duration {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let doubled = BACKOFF_FIRST.saturating_mul(1 << count.saturating_sub(1).min(16));
    let wait = doubled.min(BACKOFF_LAST);
    let mut hasher = DefaultHasher::new();
    (work, count).hash(&mut hasher);
    let quarter = wait / 4;
    wait - quarter.mul_f64((hasher.finish() % 1_000) as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use paddock_planner::ObjectKey;

    #[test]
    fn the_wait_doubles_up_to_its_bound() {
        let work = Work::Disk(ObjectKey::new("n", "d"));
        for (count, longest) in [(1, 100), (2, 200), (5, 1_600), (10, 30_000), (99, 30_000)] {
            let wait = backoff(&work, count).as_millis();
            assert!(
                wait <= longest && wait >= longest * 3 / 4,
                "{wait} ms after {count}"
            );
        }
    }
}
