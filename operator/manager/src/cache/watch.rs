//! Feeding the cache from the API.

use super::{Cache, Kept, Origin};
use crate::metrics::Metrics;
use futures::StreamExt;
use kube::{
    Api, Client,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use paddock_planner::{ObjectKey, identity::uid};
use std::{collections::HashSet, pin::pin, sync::Arc};
use tokio::sync::watch;
use tracing::{debug, warn};

/// Watches one kind for ever. `full` becomes true with the first complete listing.
pub async fn feed<K: Kept>(
    client: Client,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    full: watch::Sender<bool>,
) {
    let api: Api<DeserializeGuard<K>> = Api::all(client.clone());
    let exact: Api<K> = Api::all(client);
    let config = watcher::Config::default();
    let mut events = pin!(watcher::watcher(api, config).default_backoff());
    let mut seen = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => seen.clear(),
            Ok(Event::InitApply(object)) => {
                seen.insert(key_of(&object));
                take(&cache, &metrics, object);
            }
            Ok(Event::InitDone) => {
                for key in cache.listed::<K>(&std::mem::take(&mut seen)) {
                    confirm(&cache, &exact, &key).await;
                }
                debug!(kind = K::PLURAL, "listed");
                full.send_replace(true);
            }
            Ok(Event::Apply(object)) => take(&cache, &metrics, object),
            Ok(Event::Delete(object)) => {
                let metadata = metadata(&object);
                let key = ObjectKey::of(metadata);
                cache.forget::<K>(&key, Some(uid(metadata)), Origin::Watch);
            }
            Err(error) => {
                metrics.watch_failed();
                warn!(kind = K::PLURAL, %error, "the watch broke and is begun anew");
            }
        }
    }
}

fn metadata<K: Kept>(
    object: &DeserializeGuard<K>,
) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
    match &object.0 {
        Ok(object) => object.meta(),
        Err(invalid) => &invalid.metadata,
    }
}

fn key_of<K: Kept>(object: &DeserializeGuard<K>) -> ObjectKey {
    ObjectKey::of(metadata(object))
}

fn take<K: Kept>(cache: &Cache, metrics: &Metrics, object: DeserializeGuard<K>) {
    match object.0 {
        Ok(object) => cache.observe(object, Origin::Watch),
        Err(invalid) => {
            // What is known of it stays; nothing is decided from half an object.
            metrics.object_was_invalid();
            let key = ObjectKey::of(&invalid.metadata);
            warn!(kind = K::PLURAL, object = %key, error = %invalid, "passed over: it does not have its kind's form");
        }
    }
}

/// Asks for an object that a listing did not show although it was written here meanwhile.
async fn confirm<K: Kept>(cache: &Cache, api: &Api<K>, key: &ObjectKey) {
    // The API of all namespaces reads by metadata.name only where the kind has none.
    let found = if key.namespace.is_empty() {
        api.get_opt(&key.name).await
    } else {
        let params = kube::api::ListParams::default().fields(&format!(
            "metadata.namespace={},metadata.name={}",
            key.namespace, key.name
        ));
        api.list(&params)
            .await
            .map(|list| list.items.into_iter().next())
    };
    match found {
        Ok(Some(object)) => cache.observe(object, Origin::Watch),
        Ok(None) => cache.forget::<K>(key, None, Origin::Watch),
        Err(error) => {
            warn!(kind = K::PLURAL, object = %key, %error, "could not be read; its next write will tell");
        }
    }
}
