//! When objects became Ready, as a watching client sees it.

use anyhow::{Result, bail};
use futures::{Stream, StreamExt};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::watcher::{self, Event, watcher},
};
use paddock_crds::{Condition, VirtualHardDisk, VirtualMachine, names, reference};
use serde::de::DeserializeOwned;
use std::{
    collections::HashMap,
    fmt::Debug,
    pin::Pin,
    time::{Duration, Instant},
};

/// Watches one kind in the default namespace.
pub struct Readiness<K> {
    events: Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>,
    seen: HashMap<String, Instant>,
}

/// An object with conditions.
pub trait Conditions {
    /// Its conditions.
    fn conditions(&self) -> &[Condition];
}

impl Conditions for VirtualMachine {
    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map_or(&[], |s| &s.conditions)
    }
}

impl Conditions for VirtualHardDisk {
    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map_or(&[], |s| &s.conditions)
    }
}

impl<K> Readiness<K>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Conditions
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
    K::DynamicType: Default,
{
    /// Starts watching; returns once the list that is there is known.
    pub async fn start(client: &Client) -> Result<Self> {
        let api: Api<K> = Api::default_namespaced(client.clone());
        let mut events = watcher(api, watcher::Config::default()).boxed();
        let mut seen = HashMap::new();
        while let Some(event) = events.next().await {
            match event? {
                Event::InitDone => return Ok(Self { events, seen }),
                Event::InitApply(object) | Event::Apply(object) => note(&mut seen, &object),
                Event::Init | Event::Delete(_) => {}
            }
        }
        bail!("the watch ended")
    }

    /// Waits until `count` objects were seen Ready; returns when each was seen so first.
    pub async fn until(
        &mut self,
        count: usize,
        deadline: Duration,
    ) -> Result<&HashMap<String, Instant>> {
        let end = Instant::now() + deadline;
        while self.seen.len() < count {
            let left = end.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.events.next()).await {
                Ok(Some(event)) => {
                    if let Event::Apply(object) | Event::InitApply(object) = event? {
                        note(&mut self.seen, &object);
                    }
                }
                Ok(None) => bail!("the watch ended"),
                Err(_) => bail!(
                    "{} of {count} were Ready within {} s",
                    self.seen.len(),
                    deadline.as_secs()
                ),
            }
        }
        Ok(&self.seen)
    }
}

fn note<K: Resource + Conditions>(seen: &mut HashMap<String, Instant>, object: &K) {
    if reference::is_true(object.conditions(), names::condition::READY) {
        seen.entry(object.name_any()).or_insert_with(Instant::now);
    }
}
