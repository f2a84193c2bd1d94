//! Keeps the Host's status true: looks, compares, and writes only what differs.

use super::{
    accelerator::Verdict,
    facts::{self, Facts, Machine},
    pool_looks::{Limits, PoolLooks},
    report,
};
use crate::{
    clock::Clock,
    kubernetes::{HostClient, HostWriteError},
    metrics::Metrics,
};
use futures::{Stream, StreamExt};
use kube::{Resource, runtime::watcher::Event as WatchEvent};
use paddock_crds::{
    Host, HostSpec, HostStatus,
    host::{Pool, PoolKind, PoolScope},
};
use serde_json::{Value, json};
use std::{path::PathBuf, pin::pin, sync::Arc, time::Duration};
use tokio::sync::watch;
use tracing::{info, warn};

/// From one look at pools and uplinks to the next.
const LOOK_EACH: Duration = Duration::from_secs(5);
/// Longest time for one look at the uplinks.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
const CALL_LIMIT: Duration = Duration::from_secs(15);

/// What the publisher is given.
pub struct Publisher {
    /// The Host's name.
    pub name: String,
    /// The API.
    pub api: HostClient,
    /// What does not change.
    pub machine: Machine,
    /// Folder of the pool `default`, made when it is missing.
    pub default_pool: PathBuf,
    /// What the probe found.
    pub verdict: watch::Receiver<Option<Verdict>>,
    /// Where the spec is published.
    pub spec: watch::Sender<Option<Arc<HostSpec>>>,
    /// The clock of the conditions.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Publisher {
    /// Publishes for ever.
    pub async fn run(mut self, hosts: impl Stream<Item = WatchEvent<Host>> + Send) {
        let mut hosts = pin!(hosts);
        let mut host: Option<Host> = None;
        let mut facts: Option<Facts> = None;
        let mut pools = PoolLooks::new(Limits::default());
        let mut seen = false;
        let mut look = tokio::time::interval(LOOK_EACH);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut again = None;
        loop {
            let mut look_now = false;
            tokio::select! {
                event = hosts.next() => match event {
                    None => return,
                    Some(WatchEvent::Init) => seen = false,
                    Some(WatchEvent::InitApply(new) | WatchEvent::Apply(new)) => {
                        seen = true;
                        look_now = self.take(new, &mut host);
                    }
                    Some(WatchEvent::Delete(_)) => {
                        host = None;
                        self.create().await;
                    }
                    Some(WatchEvent::InitDone) => {
                        if !seen {
                            host = None;
                            self.create().await;
                        }
                    }
                },
                _ = look.tick() => look_now = true,
                Ok(()) = self.verdict.changed() => {}
                () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            }
            let Some(current) = &host else { continue };
            if look_now || facts.is_none() {
                facts = Some(look_at(current.spec.clone(), &mut pools).await);
            }
            let Some(facts) = &facts else { continue };
            again = match self.publish(current, facts).await {
                Ok(Some(new)) => {
                    host = Some(new);
                    None
                }
                Ok(None) => None,
                Err(()) => Some(RETRY),
            };
        }
    }

    /// Takes a newer Host in; whether its spec differs.
    fn take(&self, new: Host, host: &mut Option<Host>) -> bool {
        let differs = host.as_ref().is_none_or(|old| old.spec != new.spec);
        if differs {
            self.ensure_default_pool(&new.spec);
            self.spec.send_replace(Some(Arc::new(new.spec.clone())));
        }
        *host = Some(new);
        differs
    }

    async fn create(&self) {
        let spec = HostSpec {
            pools: vec![Pool {
                name: "default".to_owned(),
                path: self.default_pool.display().to_string(),
                scope: PoolScope::Local,
                kinds: vec![PoolKind::Disks],
            }],
            ..HostSpec::default()
        };
        loop {
            match tokio::time::timeout(CALL_LIMIT, self.api.create(spec.clone())).await {
                Ok(Ok(())) => {
                    info!(host = self.name, "made a bare Host");
                    return;
                }
                Ok(Err(error)) => warn!(%error, "the Host could not be made"),
                Err(_) => warn!("the Host could not be made: no answer in time"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Makes the folder of the pool `default` where the agent itself would put it. Any other folder is the
    /// administrator's: an unmounted one must not be mistaken for an empty one.
    fn ensure_default_pool(&self, spec: &HostSpec) {
        let is_default = spec.pools.iter().any(|pool| {
            pool.name == "default"
                && pool.scope == PoolScope::Local
                && pool.path == self.default_pool.display().to_string()
        });
        if is_default && let Err(error) = make_folder(&self.default_pool) {
            warn!(path = %self.default_pool.display(), %error, "the default pool could not be made");
        }
    }

    /// Writes the status if it differs; the Host as it is then.
    async fn publish(&self, host: &Host, facts: &Facts) -> Result<Option<Host>, ()> {
        let before = report::own_part(host);
        let mut facts = facts.clone();
        facts.accelerator = self
            .verdict
            .borrow()
            .as_ref()
            .map(|verdict| (verdict.accelerator, verdict.message.clone()));
        let mut status = report::build(
            &self.machine,
            &facts,
            &host.spec,
            host.metadata.generation,
            &before,
            self.clock.wall(),
        );
        if facts.accelerator.is_none() && before.boot_id == status.boot_id {
            // An agent of this boot has probed before: what it found holds until this one knows better.
            keep_accelerator(&mut status, &before);
        }
        if status == before {
            return Ok(None);
        }
        let body = body(&self.name, host.metadata.uid.as_deref(), &status);
        match tokio::time::timeout(CALL_LIMIT, self.api.apply_status(&body)).await {
            Ok(Ok(new)) => {
                self.metrics.status_writes.add(1);
                Ok(Some(new))
            }
            // The watch will say so.
            Ok(Err(HostWriteError::Missing)) => Ok(None),
            Ok(Err(error)) => {
                self.metrics.status_write_failures.add(1);
                warn!(%error, "the Host's status could not be written");
                Err(())
            }
            Err(_) => {
                self.metrics.status_write_failures.add(1);
                warn!("the Host's status could not be written: no answer in time");
                Err(())
            }
        }
    }
}

fn keep_accelerator(status: &mut HostStatus, before: &HostStatus) {
    use paddock_crds::names::condition::ACCELERATED;
    status.accelerator = before.accelerator;
    if let Some(old) = paddock_crds::reference::condition(&before.conditions, ACCELERATED) {
        let mut kept = old.clone();
        kept.observed_generation = status.observed_generation;
        paddock_crds::reference::set_condition(&mut status.conditions, kept);
    }
}

/// A body for server-side apply with nothing but the agent's own fields.
fn body(name: &str, uid: Option<&str>, status: &HostStatus) -> Value {
    json!({
        "apiVersion": Host::api_version(&()),
        "kind": Host::kind(&()),
        "metadata": {"name": name, "uid": uid},
        "status": status,
    })
}

async fn look_at(spec: HostSpec, pools: &mut PoolLooks) -> Facts {
    let names: Vec<_> = spec
        .uplinks
        .iter()
        .map(|uplink| uplink.name.clone())
        .collect();
    let pools = pools.round(&spec).await;
    let looking = tokio::task::spawn_blocking(move || facts::look_at_uplinks(&spec));
    let uplinks = match tokio::time::timeout(LOOK_LIMIT, looking).await {
        Ok(Ok(uplinks)) => uplinks,
        _ => {
            let error = format!(
                "it could not be looked at within {} s",
                LOOK_LIMIT.as_secs()
            );
            names
                .into_iter()
                .map(|name| (name, Err(error.clone())))
                .collect()
        }
    };
    Facts {
        pools,
        uplinks,
        accelerator: None,
    }
}

fn make_folder(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}
