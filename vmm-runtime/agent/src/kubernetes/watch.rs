//! Watches that end never: they list again with a short backoff, and pass over an object they cannot read.

use futures::{Stream, StreamExt};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use paddock_crds::{Host, VirtualHardDiskTask, VirtualMachineInstance};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, time::Duration};
use tracing::warn;

/// How long one watch request lasts, in seconds. A connection that died silently is noticed after it.
const WATCH_SECONDS: u32 = 30;
/// First and longest wait after a failure: an API server that comes back is found within seconds.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The instances with `spec.host` = `host`.
pub fn instances(
    client: Client,
    host: &str,
) -> impl Stream<Item = Event<VirtualMachineInstance>> + Send + use<> {
    endless(Api::all(client), &format!("spec.host={host}"))
}

/// The tasks with `status.host` = `host`.
pub fn tasks(
    client: Client,
    host: &str,
) -> impl Stream<Item = Event<VirtualHardDiskTask>> + Send + use<> {
    endless(Api::all(client), &format!("status.host={host}"))
}

/// The Host `host`.
pub fn hosts(client: Client, host: &str) -> impl Stream<Item = Event<Host>> + Send + use<> {
    endless(Api::all(client), &format!("metadata.name={host}"))
}

fn endless<K>(
    api: Api<DeserializeGuard<K>>,
    fields: &str,
) -> impl Stream<Item = Event<K>> + Send + use<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default,
{
    let config = watcher::Config::default()
        .fields(fields)
        .timeout(WATCH_SECONDS);
    let fields = fields.to_owned();
    let mut failing = false;
    watcher(api, config)
        .backoff(ShortBackoff::default())
        .filter_map(move |event| {
            let event = match event {
                Ok(event) => {
                    failing = false;
                    readable(event)
                }
                Err(error) => {
                    // Once per outage: it is tried each second.
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, fields, "a watch failed; it goes on when the API answers");
                    }
                    None
                }
            };
            std::future::ready(event)
        })
}

/// An object that this version cannot read is passed over: it must not stall the others.
fn readable<K: Resource>(event: Event<DeserializeGuard<K>>) -> Option<Event<K>> {
    let open = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(mut object) => {
            object.managed_fields_mut().clear();
            Some(object)
        }
        Err(error) => {
            warn!(
                name = error.metadata.name,
                namespace = error.metadata.namespace,
                error = error.error,
                "an object cannot be read and is passed over"
            );
            None
        }
    };
    Some(match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(open(object)?),
        Event::Apply(object) => Event::Apply(open(object)?),
        Event::Delete(object) => Event::Delete(open(object)?),
    })
}

#[derive(Debug, Default)]
struct ShortBackoff {
    failures: u32,
}

impl Iterator for ShortBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = FIRST_WAIT * (1 << self.failures.min(5));
        self.failures += 1;
        Some(wait.min(LONGEST_WAIT))
    }
}

impl Backoff for ShortBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}
