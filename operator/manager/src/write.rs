//! Writes to the API: counted, guarded by leadership, and remembered by the cache.

use crate::{
    cache::{Cache, Kept, Origin},
    leader::Leadership,
    metrics::Metrics,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use paddock_crds::names::manager::OPERATOR;
use paddock_planner::{ObjectKey, identity::uid};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// The longest wait for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Why a write was not done, or not known to be done.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// This process does not lead any more.
    #[error("this process is not the leader any more")]
    NotLeader,
    /// Somebody changed the object in between.
    #[error("{0} was changed in between")]
    Conflict(String),
    /// The object is gone.
    #[error("{0} is gone")]
    Gone(String),
    /// An object of that name is there already.
    #[error("{0} is there already")]
    Exists(String),
    /// The namespace is being deleted.
    #[error("{0} cannot be made: its namespace is being deleted")]
    Terminating(String),
    /// The API refused, and has certainly done nothing.
    #[error("{object} was refused: {message}")]
    Refused {
        /// The object.
        object: String,
        /// What the API said.
        message: String,
    },
    /// Nobody knows whether it was done.
    #[error("{object}: no answer: {message}")]
    Unknown {
        /// The object.
        object: String,
        /// What went wrong.
        message: String,
    },
}

impl WriteError {
    /// Whether the API has certainly done nothing.
    #[must_use]
    pub fn nothing_was_done(&self) -> bool {
        matches!(
            self,
            Self::NotLeader | Self::Terminating(_) | Self::Refused { .. }
        )
    }
}

/// Writes to the API.
pub struct Writer {
    client: Client,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    leadership: Leadership,
}

fn api<K: Scoped>(client: &Client, namespace: &str) -> Api<K> {
    K::api(client.clone(), namespace)
}

/// How a kind is reached.
pub trait Scoped: Kept {
    /// The API of the kind in a namespace.
    fn api(client: Client, namespace: &str) -> Api<Self>;
}

macro_rules! namespaced {
    ($($kind:ty),*) => {$(
        impl Scoped for $kind {
            fn api(client: Client, namespace: &str) -> Api<Self> {
                Api::namespaced(client, namespace)
            }
        }
    )*};
}

namespaced!(
    paddock_crds::VirtualMachine,
    paddock_crds::VirtualMachineInstance,
    paddock_crds::VirtualHardDisk,
    paddock_crds::VirtualHardDiskTask,
    paddock_crds::VirtualNetwork
);

impl Scoped for paddock_crds::Host {
    fn api(client: Client, _: &str) -> Api<Self> {
        Api::all(client)
    }
}

impl Writer {
    /// A writer that feeds its answers to `cache`.
    #[must_use]
    pub fn new(
        client: Client,
        cache: Arc<Cache>,
        metrics: Arc<Metrics>,
        leadership: Leadership,
    ) -> Self {
        Self {
            client,
            cache,
            metrics,
            leadership,
        }
    }

    /// Whether this process may write.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leadership.left().is_some()
    }

    async fn send<T>(
        &self,
        verb: &'static str,
        resource: &'static str,
        object: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, WriteError> {
        let Some(left) = self.leadership.left() else {
            return Err(WriteError::NotLeader);
        };
        let answer = tokio::time::timeout(left.min(ANSWER_LIMIT), request).await;
        let result = match answer {
            Err(_) => Err(WriteError::Unknown {
                object: format!("{resource} {object}"),
                message: "the API did not answer in time".to_owned(),
            }),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(classify(error, format!("{resource} {object}"))),
        };
        let label = match &result {
            Ok(_) => "ok",
            Err(WriteError::Conflict(_)) => "conflict",
            Err(WriteError::Gone(_)) => "gone",
            Err(_) => "error",
        };
        self.metrics.wrote(verb, resource, label);
        result
    }

    /// After a conflict or a not-found the cache was wrong: reads the object with quorum.
    async fn refresh<K: Scoped>(&self, key: &ObjectKey) {
        let read = api::<K>(&self.client, &key.namespace);
        match tokio::time::timeout(ANSWER_LIMIT, read.get_opt(&key.name)).await {
            Ok(Ok(Some(object))) => self.cache.observe(object, Origin::Watch),
            Ok(Ok(None)) => self.cache.forget::<K>(key, None, Origin::Watch),
            Ok(Err(_)) | Err(_) => {}
        }
    }

    async fn settle<K: Scoped>(
        &self,
        key: &ObjectKey,
        result: Result<K, WriteError>,
    ) -> Result<K, WriteError> {
        match &result {
            Ok(object) => self.cache.observe(object.clone(), Origin::Own),
            Err(
                WriteError::Conflict(_)
                | WriteError::Gone(_)
                | WriteError::Exists(_)
                | WriteError::Unknown { .. },
            ) => self.refresh::<K>(key).await,
            Err(_) => {}
        }
        result
    }

    /// Creates an object.
    pub async fn create<K: Scoped>(&self, object: &K) -> Result<K, WriteError> {
        let key = ObjectKey::of(object.meta());
        let target = api::<K>(&self.client, &key.namespace);
        let params = PostParams {
            field_manager: Some(OPERATOR.to_owned()),
            ..PostParams::default()
        };
        let request = target.create(&params, object);
        let result = self
            .send("create", K::PLURAL, &key.to_string(), request)
            .await;
        self.settle(&key, result).await
    }

    /// Replaces an object at the version it carries.
    pub async fn replace<K: Scoped>(&self, object: &K) -> Result<K, WriteError> {
        let key = ObjectKey::of(object.meta());
        let target = api::<K>(&self.client, &key.namespace);
        let params = PostParams {
            field_manager: Some(OPERATOR.to_owned()),
            ..PostParams::default()
        };
        let request = target.replace(&key.name, &params, object);
        let result = self
            .send("update", K::PLURAL, &key.to_string(), request)
            .await;
        self.settle(&key, result).await
    }

    /// Replaces the status of an object at the version it carries.
    pub async fn replace_status<K: Scoped>(&self, object: &K) -> Result<K, WriteError> {
        let key = ObjectKey::of(object.meta());
        let target = api::<K>(&self.client, &key.namespace);
        let params = PostParams {
            field_manager: Some(OPERATOR.to_owned()),
            ..PostParams::default()
        };
        let request = target.replace_status(&key.name, &params, object);
        let result = self
            .send("update_status", K::PLURAL, &key.to_string(), request)
            .await;
        self.settle(&key, result).await
    }

    /// Applies the operator's fields of a status that an agent writes too.
    pub async fn apply_status<K: Scoped>(
        &self,
        key: &ObjectKey,
        status: Value,
    ) -> Result<K, WriteError> {
        let target = api::<K>(&self.client, &key.namespace);
        let patch = Patch::Apply(json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": key.name},
            "status": status,
        }));
        let params = PatchParams::apply(OPERATOR).force();
        let request = target.patch_status(&key.name, &params, &patch);
        let result = self
            .send("apply_status", K::PLURAL, &key.to_string(), request)
            .await;
        self.settle(key, result).await
    }

    /// Sets whether an object carries a finalizer, at the version it carries.
    pub async fn set_finalizer<K: Scoped>(
        &self,
        object: &K,
        finalizer: &str,
        present: bool,
    ) -> Result<(), WriteError> {
        let key = ObjectKey::of(object.meta());
        let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
        finalizers.retain(|f| f != finalizer);
        if present {
            finalizers.push(finalizer.to_owned());
        }
        let target = api::<K>(&self.client, &key.namespace);
        let patch = Patch::Merge(json!({"metadata": {
            "uid": uid(object.meta()),
            "resourceVersion": object.meta().resource_version,
            "finalizers": finalizers,
        }}));
        let params = PatchParams {
            field_manager: Some(OPERATOR.to_owned()),
            ..PatchParams::default()
        };
        let request = target.patch(&key.name, &params, &patch);
        let result = self
            .send("patch", K::PLURAL, &key.to_string(), request)
            .await;
        self.settle(&key, result).await.map(|_| ())
    }

    /// Deletes an object, if it is still that one.
    pub async fn delete<K: Scoped>(&self, object: &K) -> Result<(), WriteError> {
        let key = ObjectKey::of(object.meta());
        let target = api::<K>(&self.client, &key.namespace);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: object.meta().uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let request = target.delete(&key.name, &params);
        let result = self
            .send("delete", K::PLURAL, &key.to_string(), request)
            .await;
        match result {
            Ok(answer) => {
                // An object in the answer is still there while it has finalizers; a bare status means that it is gone.
                match answer.left() {
                    Some(left)
                        if left
                            .meta()
                            .finalizers
                            .as_ref()
                            .is_some_and(|f| !f.is_empty()) =>
                    {
                        self.cache.observe(left, Origin::Own);
                    }
                    _ => self
                        .cache
                        .forget::<K>(&key, object.meta().uid.as_deref(), Origin::Own),
                }
                Ok(())
            }
            Err(WriteError::Gone(_)) => {
                self.refresh::<K>(&key).await;
                Ok(())
            }
            Err(error) => {
                self.refresh::<K>(&key).await;
                Err(error)
            }
        }
    }
}

fn classify(error: kube::Error, object: String) -> WriteError {
    match error {
        kube::Error::Api(status) => match (status.code, status.reason.as_str()) {
            (409, "AlreadyExists") => WriteError::Exists(object),
            (409, _) => WriteError::Conflict(object),
            (404, _) => WriteError::Gone(object),
            (403, _)
                if status.details.as_ref().is_some_and(|d| {
                    d.causes.iter().any(|c| c.reason == "NamespaceTerminating")
                }) =>
            {
                WriteError::Terminating(object)
            }
            (400..=407 | 410..=428 | 430..=499, _) => WriteError::Refused {
                object,
                message: status.message,
            },
            _ => WriteError::Unknown {
                object,
                message: status.message,
            },
        },
        other => WriteError::Unknown {
            object,
            message: other.to_string(),
        },
    }
}
