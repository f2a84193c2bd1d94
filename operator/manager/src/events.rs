//! Events on the objects that people look at, on transitions only.

use crate::metrics::Metrics;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tracing::debug;

/// Events that wait to be sent; more are dropped and counted.
const WAITING: usize = 256;
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Records events without delaying anyone.
#[derive(Clone)]
pub struct Events {
    sender: mpsc::Sender<(Event, ObjectReference)>,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Begins to record; ends with the last clone.
    #[must_use]
    pub fn start(client: Client, identity: &str, metrics: Arc<Metrics>) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(Event, ObjectReference)>(WAITING);
        let reporter = Reporter {
            controller: "paddock.dev/operator".to_owned(),
            instance: Some(identity.to_owned()),
        };
        let recorder = Recorder::new(client, reporter);
        tokio::spawn(async move {
            while let Some((event, object)) = receiver.recv().await {
                let sending = recorder.publish(&event, &object);
                match tokio::time::timeout(ANSWER_LIMIT, sending).await {
                    Ok(Ok(())) => {}
                    // Common while a namespace goes: events are told, not kept.
                    Ok(Err(error)) => debug!(%error, "an event was not recorded"),
                    Err(_) => debug!("an event was not recorded in time"),
                }
            }
        });
        Self { sender, metrics }
    }

    /// Records that something happened to an object.
    pub fn tell<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        good: bool,
        reason: &str,
        message: &str,
    ) {
        let event = Event {
            type_: if good {
                EventType::Normal
            } else {
                EventType::Warning
            },
            reason: reason.chars().take(128).collect(),
            // The API takes notes up to 1 KiB.
            note: Some(message.chars().take(250).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if self
            .sender
            .try_send((event, object.object_ref(&())))
            .is_err()
        {
            self.metrics.event_was_dropped();
        }
    }
}
