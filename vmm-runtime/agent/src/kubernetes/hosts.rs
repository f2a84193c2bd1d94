//! The Host object: made bare when it is missing; its status applied.

use super::{describe, has_code};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use paddock_crds::{Host, HostSpec, names::manager};
use serde_json::Value;

/// Why a Host was not written.
#[derive(Debug, thiserror::Error)]
pub enum HostWriteError {
    /// There is none.
    #[error("there is no such Host")]
    Missing,
    /// Another reason.
    #[error("{0}")]
    Failed(String),
}

/// One Host.
#[derive(Clone)]
pub struct HostClient {
    api: Api<Host>,
    name: String,
}

impl HostClient {
    /// The Host `name`.
    #[must_use]
    pub fn new(client: Client, name: &str) -> Self {
        Self {
            api: Api::all(client),
            name: name.to_owned(),
        }
    }

    /// Creates it; fine when somebody was faster.
    ///
    /// # Errors
    /// When the API refuses or does not answer.
    pub async fn create(&self, spec: HostSpec) -> Result<(), HostWriteError> {
        let host = Host {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec,
            status: None,
        };
        let parameters = PostParams {
            field_manager: Some(manager::AGENT.to_owned()),
            ..PostParams::default()
        };
        match self.api.create(&parameters, &host).await {
            Ok(_) => Ok(()),
            Err(error) if has_code(&error, 409) => Ok(()),
            Err(error) => Err(HostWriteError::Failed(describe(&error))),
        }
    }

    /// Applies a body that holds only what is the agent's own; answers the Host as it is then.
    ///
    /// # Errors
    /// When there is no such Host, or the API refuses or does not answer.
    pub async fn apply_status(&self, body: &Value) -> Result<Host, HostWriteError> {
        let parameters = PatchParams::apply(manager::AGENT).force();
        match self
            .api
            .patch_status(&self.name, &parameters, &Patch::Apply(body))
            .await
        {
            Ok(host) => Ok(host),
            Err(error) if has_code(&error, 404) => Err(HostWriteError::Missing),
            Err(error) => Err(HostWriteError::Failed(describe(&error))),
        }
    }
}
