//! VirtualHardDiskTasks: read one, write the agent's part of its status.

use super::{describe, has_code};
use crate::task::runner::{Report, TaskApi, TaskKey, TaskWriteError};
use futures::{FutureExt, future::BoxFuture};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
};
use paddock_crds::{VirtualHardDiskTask, names::manager};
use serde_json::json;

/// The tasks of one host.
pub struct TaskClient {
    client: Client,
}

impl TaskClient {
    /// The tasks.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn api(&self, namespace: &str) -> Api<VirtualHardDiskTask> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

impl TaskApi for TaskClient {
    fn read<'a>(
        &'a self,
        key: &'a TaskKey,
    ) -> BoxFuture<'a, Result<Option<VirtualHardDiskTask>, String>> {
        async move {
            let found = self
                .api(&key.namespace)
                .get_opt(&key.name)
                .await
                .map_err(|error| describe(&error))?;
            Ok(found.filter(|task| task.metadata.uid.as_ref() == Some(&key.uid)))
        }
        .boxed()
    }

    fn report<'a>(
        &'a self,
        key: &'a TaskKey,
        report: &'a Report,
    ) -> BoxFuture<'a, Result<(), TaskWriteError>> {
        async move {
            let body = json!({
                "apiVersion": VirtualHardDiskTask::api_version(&()),
                "kind": VirtualHardDiskTask::kind(&()),
                "metadata": {"name": key.name, "uid": key.uid},
                "status": report,
            });
            let parameters = PatchParams::apply(manager::AGENT).force();
            match self
                .api(&key.namespace)
                .patch_status(&key.name, &parameters, &Patch::Apply(&body))
                .await
            {
                Ok(_) => Ok(()),
                Err(error) if has_code(&error, 404) => Err(TaskWriteError::Gone),
                // Another object of that name, or one that changed at that moment.
                Err(error) if has_code(&error, 409) => match self.read(key).await {
                    Ok(None) => Err(TaskWriteError::Gone),
                    _ => Err(TaskWriteError::Failed(describe(&error))),
                },
                Err(error) => Err(TaskWriteError::Failed(describe(&error))),
            }
        }
        .boxed()
    }
}
