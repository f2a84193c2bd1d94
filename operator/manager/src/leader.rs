//! Being the one operator that writes.
//!
//! A Lease of its own. A candidate takes it when it is free, given up, or when its holder has not renewed it for
//! [`DURATION`] on the candidate's own clock; a leader that could not renew for [`DEADLINE`] stops writing by itself,
//! which is earlier, since it counts from the sending of its last renewal.

use crate::{clock::boottime, metrics::Metrics};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tracing::{info, warn};

/// Name of the Lease.
pub const LEASE_NAME: &str = "paddock-operator";
/// From a holder's last renewal, as seen, until another may take over.
pub const DURATION: Duration = Duration::from_secs(6);
/// From the sending of the own last renewal until this process stops writing. A request in flight then is given
/// up at the same moment, and the second that is left to [`DURATION`] covers clocks that are 10 % apart.
pub const DEADLINE: Duration = Duration::from_secs(4);
const RENEW: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(500);
const ANSWER_LIMIT: Duration = Duration::from_millis(1_500);

/// Until when this process may write.
#[derive(Clone, Default)]
pub struct Leadership {
    /// On the clock of [`boottime`], in milliseconds; zero: not at all.
    until: Arc<AtomicU64>,
}

impl Leadership {
    /// How long this process may still write; `None`: not any more.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        Duration::from_millis(self.until.load(Relaxed))
            .checked_sub(boottime())
            .filter(|left| !left.is_zero())
    }

    fn extend(&self, sent: Duration) {
        let until = sent + DEADLINE;
        let millis = u64::try_from(until.as_millis()).unwrap_or(0);
        self.until.store(millis, Relaxed);
    }

    fn end(&self) {
        self.until.store(0, Relaxed);
    }
}

/// The candidate.
pub struct Elector {
    api: Api<Lease>,
    namespace: String,
    identity: String,
    leadership: Leadership,
    metrics: Arc<Metrics>,
    seen: Option<(Option<String>, Duration)>,
}

impl Elector {
    /// A candidate under `identity`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, identity: String, metrics: Arc<Metrics>) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            identity,
            leadership: Leadership::default(),
            metrics,
            seen: None,
        }
    }

    /// What tells how long this process may write.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Waits until this process leads.
    pub async fn lead(&mut self) {
        let mut said = false;
        loop {
            match self.attempt().await {
                Ok(true) => {
                    info!(identity = self.identity, "leads");
                    self.metrics.set_leader(true);
                    return;
                }
                Ok(false) => {
                    // A standby has nothing to fill: it is ready as soon as the API answers.
                    self.metrics.set_ready(true);
                    if !std::mem::replace(&mut said, true) {
                        info!(identity = self.identity, "stands by: another process leads");
                    }
                }
                Err(error) => warn!(%error, "the leader's lease could not be taken"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews until that has failed for [`DEADLINE`], or another process leads.
    pub async fn renew(&mut self) {
        while self.leadership.left().is_some() {
            let wait = match self.attempt().await {
                Ok(true) => RENEW,
                Ok(false) => {
                    warn!("another process leads");
                    break;
                }
                Err(error) => {
                    warn!(%error, "the leader's lease could not be renewed");
                    RETRY
                }
            };
            let left = self.leadership.left().unwrap_or_default();
            tokio::time::sleep(wait.min(left)).await;
        }
        self.leadership.end();
        self.metrics.set_leader(false);
    }

    /// Gives the lease up, so that a successor need not wait.
    pub async fn resign(&mut self) {
        self.leadership.end();
        self.metrics.set_leader(false);
        let give_up = async {
            let mut lease = self.api.get(LEASE_NAME).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = None;
                let params = PostParams::default();
                self.api.replace(LEASE_NAME, &params, &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        match tokio::time::timeout(ANSWER_LIMIT, give_up).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the leader's lease was not given up and runs out"),
            Err(_) => warn!("the leader's lease was not given up in time and runs out"),
        }
    }

    /// One attempt to take or renew the lease; whether this process holds it now.
    async fn attempt(&mut self) -> Result<bool, String> {
        let result = tokio::time::timeout(ANSWER_LIMIT, self.try_once()).await;
        match result {
            Ok(Ok(holds)) => Ok(holds),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API did not answer in time".to_owned()),
        }
    }

    async fn try_once(&mut self) -> kube::Result<bool> {
        let found = self.api.get_opt(LEASE_NAME).await?;
        let now = Timestamp::now();
        let sent = boottime();
        let params = PostParams::default();
        let duration = i32::try_from(DURATION.as_secs()).ok();
        let Some(mut lease) = found else {
            let lease = Lease {
                metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                    name: Some(LEASE_NAME.to_owned()),
                    namespace: Some(self.namespace.clone()),
                    ..Default::default()
                },
                spec: Some(LeaseSpec {
                    holder_identity: Some(self.identity.clone()),
                    lease_duration_seconds: duration,
                    acquire_time: Some(MicroTime(now)),
                    renew_time: Some(MicroTime(now)),
                    lease_transitions: Some(0),
                    ..LeaseSpec::default()
                }),
            };
            return match self.api.create(&params, &lease).await {
                Ok(_) => {
                    self.leadership.extend(sent);
                    Ok(true)
                }
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
                Err(error) => Err(error),
            };
        };
        let version = lease.metadata.resource_version.clone();
        let spec = lease.spec.get_or_insert_default();
        let holder = spec.holder_identity.clone().filter(|h| !h.is_empty());
        let mine = holder.as_deref() == Some(&self.identity);
        if !mine && holder.is_some() {
            // The version is timed on this clock: the holder's own times are never compared.
            let since = match &self.seen {
                Some((seen, since)) if *seen == version => *since,
                _ => {
                    self.seen = Some((version, sent));
                    sent
                }
            };
            if sent.saturating_sub(since) < DURATION {
                return Ok(false);
            }
        }
        if !mine {
            spec.acquire_time = Some(MicroTime(now));
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = duration;
        spec.renew_time = Some(MicroTime(now));
        match self.api.replace(LEASE_NAME, &params, &lease).await {
            Ok(_) => {
                self.leadership.extend(sent);
                Ok(true)
            }
            // A conflict of the holder's own is an attempt whose answer was lost: the next look tells.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Ok(mine && self.leadership.left().is_some())
            }
            Err(error) => Err(error),
        }
    }
}
