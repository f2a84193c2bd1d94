//! VirtualMachineInstances: read one, write its status.

use super::{describe, has_code};
use crate::{
    backend::GuestKey,
    instance::actor::{InstanceApi, StatusWriteError},
};
use futures::{FutureExt, future::BoxFuture};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
};
use paddock_crds::{VirtualMachineInstance, VirtualMachineInstanceStatus, names::manager};
use serde_json::json;

/// The instances of one host.
pub struct InstanceClient {
    client: Client,
    host: String,
}

impl InstanceClient {
    /// The instances of `host`.
    #[must_use]
    pub fn new(client: Client, host: &str) -> Self {
        Self {
            client,
            host: host.to_owned(),
        }
    }

    fn api(&self, namespace: &str) -> Api<VirtualMachineInstance> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

impl InstanceApi for InstanceClient {
    fn read<'a>(
        &'a self,
        key: &'a GuestKey,
    ) -> BoxFuture<'a, Result<Option<VirtualMachineInstance>, String>> {
        async move {
            let found = self
                .api(&key.namespace)
                .get_opt(&key.name)
                .await
                .map_err(|error| describe(&error))?;
            Ok(found.filter(|instance| {
                instance.metadata.uid.as_ref() == Some(&key.uid) && instance.spec.host == self.host
            }))
        }
        .boxed()
    }

    fn write_status<'a>(
        &'a self,
        key: &'a GuestKey,
        status: &'a VirtualMachineInstanceStatus,
    ) -> BoxFuture<'a, Result<(), StatusWriteError>> {
        async move {
            let body = json!({
                "apiVersion": VirtualMachineInstance::api_version(&()),
                "kind": VirtualMachineInstance::kind(&()),
                // The uid makes it fail on another object of the same name.
                "metadata": {"name": key.name, "uid": key.uid},
                "status": status,
            });
            let parameters = PatchParams::apply(manager::AGENT).force();
            match self
                .api(&key.namespace)
                .patch_status(&key.name, &parameters, &Patch::Apply(&body))
                .await
            {
                Ok(_) => Ok(()),
                Err(error) if has_code(&error, 404) => Err(StatusWriteError::Gone),
                // Another object of that name, or one that changed at that moment.
                Err(error) if has_code(&error, 409) => match self.read(key).await {
                    Ok(None) => Err(StatusWriteError::Gone),
                    _ => Err(StatusWriteError::Failed(describe(&error))),
                },
                Err(error) => Err(StatusWriteError::Failed(describe(&error))),
            }
        }
        .boxed()
    }
}
