//! Events on the objects that people look at, on transitions only.
//!
//! Each is written once and forgotten: kube's own recorder keeps every event for minutes to join repetitions, which
//! transitions are not, and that is a third of what the operator would keep per machine.

use crate::metrics::Metrics;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, Resource, api::PostParams};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tracing::debug;

/// Events that wait to be sent; more are dropped and counted.
const WAITING: usize = 256;
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The API takes reasons and instances up to 128 characters and notes up to 1,024 bytes.
const REASON_LIMIT: usize = 128;
const NOTE_LIMIT: usize = 1_024;
/// Cluster-scoped objects have their events here.
const DEFAULT_NAMESPACE: &str = "default";

/// Records events without delaying anyone.
#[derive(Clone)]
pub struct Events {
    sender: mpsc::Sender<Event>,
    instance: String,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Begins to record; ends with the last clone.
    #[must_use]
    pub fn start(client: Client, identity: &str, metrics: Arc<Metrics>) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Event>(WAITING);
        tokio::spawn(async move {
            while let Some(event) = receiver.recv().await {
                let namespace = event.metadata.namespace.as_deref();
                let api: Api<Event> =
                    Api::namespaced(client.clone(), namespace.unwrap_or(DEFAULT_NAMESPACE));
                let params = PostParams::default();
                let sending = api.create(&params, &event);
                match tokio::time::timeout(ANSWER_LIMIT, sending).await {
                    Ok(Ok(_)) => {}
                    // Common while a namespace goes: events are told, not kept.
                    Ok(Err(error)) => debug!(%error, "an event was not recorded"),
                    Err(_) => debug!("an event was not recorded in time"),
                }
            }
        });
        Self {
            sender,
            instance: identity.chars().take(REASON_LIMIT).collect(),
            metrics,
        }
    }

    /// Records that something happened to an object.
    pub fn tell<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        good: bool,
        reason: &str,
        message: &str,
    ) {
        let event = event(
            object.object_ref(&()),
            &self.instance,
            Timestamp::now(),
            good,
            reason,
            message,
        );
        if self.sender.try_send(event).is_err() {
            self.metrics.event_was_dropped();
        }
    }
}

fn event(
    regarding: ObjectReference,
    instance: &str,
    now: Timestamp,
    good: bool,
    reason: &str,
    message: &str,
) -> Event {
    let kind = if good { "Normal" } else { "Warning" };
    let name = regarding.name.as_deref().unwrap_or_default();
    let end = (0..=message.len().min(NOTE_LIMIT))
        .rev()
        .find(|&i| message.is_char_boundary(i))
        .unwrap_or(0);
    Event {
        metadata: ObjectMeta {
            // Names are at most 253 characters; the time tells two events of one object apart.
            name: Some(format!(
                "{}.{:x}",
                name.chars().take(220).collect::<String>(),
                now.as_nanosecond()
            )),
            namespace: Some(
                regarding
                    .namespace
                    .clone()
                    .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            ),
            ..ObjectMeta::default()
        },
        action: Some("Reconcile".to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(message[..end].to_owned()),
        reason: Some(reason.chars().take(REASON_LIMIT).collect()),
        regarding: Some(regarding),
        reporting_controller: Some("paddock.dev/operator".to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(kind.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_stays_within_the_limits_of_the_api() {
        let regarding = ObjectReference {
            name: Some("n".repeat(253)),
            ..ObjectReference::default()
        };
        let told = event(
            regarding,
            "me",
            Timestamp::UNIX_EPOCH,
            false,
            &"R".repeat(200),
            &"ü".repeat(2_000),
        );
        assert!(told.metadata.name.unwrap().len() <= 253);
        assert_eq!(told.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(told.reason.unwrap().len(), 128);
        assert_eq!(told.note.unwrap().len(), 1_024);
        assert_eq!(told.type_.as_deref(), Some("Warning"));
    }
}
