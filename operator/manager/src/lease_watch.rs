//! Drives the planner's watch over the hosts' leases.

use crate::{clock::boottime, controller::Context, leader};
use futures::StreamExt;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, ResourceExt,
    api::PostParams,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event as Watched},
    },
};
use paddock_crds::lease as annotation;
use paddock_planner::lease::{Action, Event, LeaseRecord, LeaseWatch};
use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

const NOT_LEADER: &str = "this process is not the leader any more";
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Answers that wait to be taken in. Each host has at most one request under way.
const ANSWERS: usize = 1_024;

fn api(context: &Context) -> Api<Lease> {
    Api::namespaced(context.client.clone(), &context.namespace)
}

/// Creates a host's lease, fenced.
pub async fn create(context: &Context, host: &str, epoch: i64) -> Result<(), String> {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(host.to_owned()),
            namespace: Some(context.namespace.clone()),
            annotations: Some(
                [
                    (annotation::STATE.to_owned(), annotation::FENCED.to_owned()),
                    (annotation::EPOCH.to_owned(), epoch.to_string()),
                ]
                .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec::default()),
    };
    if host == leader::LEASE_NAME {
        return Err(format!(
            "a Host cannot be named \"{host}\": that lease is the operator's own"
        ));
    }
    if !context.writer.leads() {
        return Err(NOT_LEADER.to_owned());
    }
    let params = PostParams::default();
    let target = api(context);
    let request = target.create(&params, &lease);
    match tokio::time::timeout(ANSWER_LIMIT, request).await {
        Ok(Ok(made)) => {
            context.metrics.wrote("create", "leases", "ok");
            context
                .cache
                .observe_lease(host, LeaseRecord::parse(&made).ok());
            Ok(())
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the API did not answer in time".to_owned()),
    }
}

/// Watches the hosts' leases for ever. `full` becomes true with the first complete listing.
pub async fn run(context: Arc<Context>, full: watch::Sender<bool>) {
    let mut core = LeaseWatch::default();
    let config = watcher::Config::default();
    let mut events = pin!(watcher::watcher(api(&context), config).default_backoff());
    let (answers_in, mut answers) = mpsc::channel(ANSWERS);
    let mut listed: Option<BTreeSet<String>> = None;
    let mut broken = false;
    loop {
        let wait = core.next_deadline().map(|at| at.saturating_sub(boottime()));
        let mut happened = Vec::new();
        tokio::select! {
            biased;
            Some(answer) = answers.recv() => happened.push(answer),
            event = events.next() => match event {
                None => return,
                Some(event) => {
                    if is_back(&mut broken, &event) {
                        happened.push(Event::Resumed);
                    }
                    take(&context, event, &mut listed, &mut happened, &full);
                }
            },
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {
                happened.push(Event::Tick);
            }
        }
        for event in happened {
            for action in core.step(boottime(), event) {
                let context = context.clone();
                let answers = answers_in.clone();
                tokio::spawn(async move {
                    let answer = act(&context, action).await;
                    // The receiver lives as long as the loop.
                    let _ = answers.send(answer).await;
                });
            }
        }
    }
}

/// Whether this event is the sign that a broken watch goes on.
///
/// A watch that only failed to start is begun again from where it was, without a new listing that would tell: its
/// next event does. The operator's own lease, renewed all the while beside the hosts', brings one soon.
fn is_back(broken: &mut bool, event: &Result<Watched<Lease>, watcher::Error>) -> bool {
    match event {
        Err(_) => *broken = true,
        // The end of a listing tells by itself.
        Ok(Watched::InitDone) => *broken = false,
        Ok(Watched::Apply(_) | Watched::Delete(_)) => return std::mem::take(broken),
        Ok(Watched::Init | Watched::InitApply(_)) => {}
    }
    false
}

fn take(
    context: &Context,
    event: Result<Watched<Lease>, watcher::Error>,
    listed: &mut Option<BTreeSet<String>>,
    happened: &mut Vec<Event>,
    full: &watch::Sender<bool>,
) {
    let mut see = |lease: Lease| {
        let host = lease.name_any();
        if host == leader::LEASE_NAME {
            return;
        }
        match LeaseRecord::parse(&lease) {
            Ok(record) => {
                context.cache.observe_lease(&host, Some(record.clone()));
                happened.push(Event::Seen {
                    host,
                    lease: record,
                });
            }
            Err(error) => {
                warn!(%error, "a lease is passed over: its host takes no machines");
                context.cache.observe_lease(&host, None);
                happened.push(Event::Gone { host });
            }
        }
    };
    match event {
        Ok(Watched::Init) => {
            *listed = Some(BTreeSet::new());
            happened.push(Event::Interrupted);
        }
        Ok(Watched::InitApply(lease)) => {
            if let Some(listed) = listed {
                listed.insert(lease.name_any());
            }
            see(lease);
        }
        Ok(Watched::InitDone) => {
            let listed = listed.take().unwrap_or_default();
            let known: Vec<String> = context.cache.world().leases.keys().cloned().collect();
            for host in known.into_iter().filter(|h| !listed.contains(h)) {
                context.cache.observe_lease(&host, None);
                happened.push(Event::Gone { host });
            }
            happened.push(Event::Resumed);
            full.send_replace(true);
        }
        Ok(Watched::Apply(lease)) => see(lease),
        Ok(Watched::Delete(lease)) => {
            let host = lease.name_any();
            context.cache.observe_lease(&host, None);
            happened.push(Event::Gone { host });
        }
        Err(error) => {
            context.metrics.watch_failed();
            warn!(%error, "the watch over leases broke: time does not count until it is back");
            happened.push(Event::Interrupted);
        }
    }
}

async fn act(context: &Context, action: Action) -> Event {
    match action {
        Action::Confirm { host } => {
            let target = api(context);
            let request = target.get_opt(&host);
            let found = match tokio::time::timeout(ANSWER_LIMIT, request).await {
                Ok(Ok(None)) => Some(None),
                Ok(Ok(Some(lease))) => LeaseRecord::parse(&lease).ok().map(Some),
                Ok(Err(_)) | Err(_) => None,
            };
            Event::Confirmed { host, found }
        }
        Action::Fence {
            host,
            uid,
            resource_version,
            epoch,
        } => {
            let written = fence(context, &host, &uid, &resource_version, epoch).await;
            match &written {
                Ok(record) => {
                    info!(host, epoch, "fenced: its agent has been silent");
                    context.metrics.wrote("update", "leases", "ok");
                    context.cache.observe_lease(&host, Some(record.clone()));
                }
                Err(error) => {
                    warn!(host, error, "not fenced");
                    context.metrics.wrote("update", "leases", "error");
                }
            }
            Event::Fenced {
                host,
                written: written.ok(),
            }
        }
    }
}

/// Writes a lease as fenced, if it is still the version that was confirmed.
async fn fence(
    context: &Context,
    host: &str,
    uid: &str,
    resource_version: &str,
    epoch: i64,
) -> Result<LeaseRecord, String> {
    if !context.writer.leads() {
        return Err(NOT_LEADER.to_owned());
    }
    // A merge patch leaves everything else as the host wrote it; uid and version make it a compare-and-swap.
    let patch = serde_json::json!({"metadata": {
        "uid": uid,
        "resourceVersion": resource_version,
        "annotations": {
            annotation::STATE: annotation::FENCED,
            annotation::EPOCH: epoch.to_string(),
        },
    }});
    let target = api(context);
    let params = kube::api::PatchParams::default();
    let patch = kube::api::Patch::Merge(patch);
    let request = target.patch(host, &params, &patch);
    match tokio::time::timeout(ANSWER_LIMIT, request).await {
        Ok(Ok(lease)) => LeaseRecord::parse(&lease).map_err(|e| e.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the API did not answer in time".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_again_with_the_first_event_after_a_break() {
        let mut broken = false;
        let lease = || Ok(Watched::Apply(Lease::default()));
        assert!(!is_back(&mut broken, &lease()), "nothing was broken");
        assert!(!is_back(
            &mut broken,
            &Err(watcher::Error::NoResourceVersion)
        ));
        assert!(is_back(&mut broken, &lease()));
        assert!(!is_back(&mut broken, &lease()), "it is back once");
    }

    #[test]
    fn a_new_listing_is_back_at_its_end() {
        let mut broken = false;
        assert!(!is_back(
            &mut broken,
            &Err(watcher::Error::NoResourceVersion)
        ));
        for event in [
            Watched::Init,
            Watched::InitApply(Lease::default()),
            Watched::InitDone,
        ] {
            assert!(!is_back(&mut broken, &Ok(event)));
        }
        assert!(!is_back(&mut broken, &Ok(Watched::Apply(Lease::default()))));
    }
}
