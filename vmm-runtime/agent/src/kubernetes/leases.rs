//! The Lease object.

use super::{describe, has_code};
use crate::{
    clock::Clock,
    lease::{
        LeaseApi, LeaseView, Timing,
        core::{Renewal, State},
        renew::Written,
    },
};
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams};
use paddock_crds::lease as annotation;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The Lease of one host.
pub struct LeaseClient {
    api: Api<Lease>,
    host: String,
    session: String,
    timing: Timing,
    clock: Arc<dyn Clock>,
    /// As it was last read or written: a renewal changes what is ours in it and nothing else.
    last: Mutex<Option<Lease>>,
}

impl LeaseClient {
    /// The Lease of `host` in `namespace`.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        host: &str,
        session: &str,
        timing: Timing,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            host: host.to_owned(),
            session: session.to_owned(),
            timing,
            clock,
            last: Mutex::new(None),
        }
    }

    fn keep(&self, lease: Option<Lease>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    fn renewed(&self, renewal: &Renewal) -> Option<Lease> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lease = last.clone()?;
        if lease.metadata.uid.as_ref() != Some(&renewal.uid)
            || lease.metadata.resource_version.as_ref() != Some(&renewal.resource_version)
        {
            return None;
        }
        lease.metadata.managed_fields = None;
        let annotations = lease.metadata.annotations.get_or_insert_default();
        for (name, value) in [
            (annotation::STATE, annotation::HELD.to_owned()),
            (annotation::NONCE, renewal.nonce.clone()),
            (annotation::SESSION, self.session.clone()),
            (
                annotation::FENCE_MILLISECONDS,
                self.timing.fence.as_millis().to_string(),
            ),
            (
                annotation::KILL_MILLISECONDS,
                self.timing.kill.as_millis().to_string(),
            ),
        ] {
            annotations.insert(name.to_owned(), value);
        }
        let now = MicroTime(self.clock.wall());
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(self.host.clone());
        spec.renew_time = Some(now.clone());
        if renewal.joins || spec.acquire_time.is_none() {
            spec.acquire_time = Some(now);
        }
        Some(lease)
    }
}

impl LeaseApi for LeaseClient {
    fn read(&self) -> BoxFuture<'_, Result<Option<LeaseView>, String>> {
        async {
            // Without a resource version a read goes through the quorum.
            let lease = self
                .api
                .get_opt(&self.host)
                .await
                .map_err(|error| describe(&error))?;
            let view = lease.as_ref().map(view).transpose()?;
            self.keep(lease);
            Ok(view)
        }
        .boxed()
    }

    fn write(&self, renewal: Renewal) -> BoxFuture<'_, Written> {
        async move {
            let Some(lease) = self.renewed(&renewal) else {
                return Written::Conflict;
            };
            match self
                .api
                .replace(&self.host, &PostParams::default(), &lease)
                .await
            {
                Ok(lease) => {
                    let written = match view(&lease) {
                        Ok(view) => Written::Accepted(view),
                        Err(error) => Written::NoAnswer(error),
                    };
                    self.keep(Some(lease));
                    written
                }
                Err(error) if has_code(&error, 409) || has_code(&error, 404) => Written::Conflict,
                Err(error) => Written::NoAnswer(describe(&error)),
            }
        }
        .boxed()
    }
}

/// What a Lease says.
fn view(lease: &Lease) -> Result<LeaseView, String> {
    let empty = BTreeMap::new();
    let annotations = lease.metadata.annotations.as_ref().unwrap_or(&empty);
    let name = lease.metadata.name.as_deref().unwrap_or_default();
    let malformed = |key: &str, expected: &str| {
        let found = annotations.get(key).map_or("nothing", String::as_str);
        format!("lease {name}: annotation {key}: expected {expected}, found {found:?}")
    };
    let state = match annotations.get(annotation::STATE).map(String::as_str) {
        Some(annotation::HELD) => State::Held,
        Some(annotation::FENCED) => State::Fenced,
        _ => return Err(malformed(annotation::STATE, "Held or Fenced")),
    };
    let epoch = annotations
        .get(annotation::EPOCH)
        .and_then(|text| text.parse::<i64>().ok())
        .filter(|epoch| *epoch >= 1)
        .ok_or_else(|| malformed(annotation::EPOCH, "a number of at least 1"))?;
    Ok(LeaseView {
        uid: lease.metadata.uid.clone().unwrap_or_default(),
        resource_version: lease.metadata.resource_version.clone().unwrap_or_default(),
        state,
        epoch,
        nonce: annotations.get(annotation::NONCE).cloned(),
        session: annotations.get(annotation::SESSION).cloned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::ObjectMeta;

    fn lease(annotations: &[(&str, &str)]) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some("host-a".into()),
                uid: Some("u".into()),
                resource_version: Some("7".into()),
                annotations: Some(
                    annotations
                        .iter()
                        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                        .collect(),
                ),
                ..ObjectMeta::default()
            },
            spec: None,
        }
    }

    #[test]
    fn reads_the_annotations() {
        let found = view(&lease(&[
            (annotation::STATE, "Fenced"),
            (annotation::EPOCH, "4"),
            (annotation::NONCE, "n"),
        ]));
        assert_eq!(
            found,
            Ok(LeaseView {
                uid: "u".into(),
                resource_version: "7".into(),
                state: State::Fenced,
                epoch: 4,
                nonce: Some("n".into()),
                session: None,
            })
        );
    }

    #[test]
    fn names_what_a_lease_does_not_say() {
        assert_eq!(
            view(&lease(&[(annotation::STATE, "held"), (annotation::EPOCH, "4")])),
            Err("lease host-a: annotation lease.paddock.dev/state: expected Held or Fenced, found \"held\"".into())
        );
        for epoch in ["0", "-1", "x", ""] {
            assert!(
                view(&lease(&[
                    (annotation::STATE, "Held"),
                    (annotation::EPOCH, epoch)
                ]))
                .is_err(),
                "{epoch:?}"
            );
        }
    }
}
