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
    host: String,
}

impl TaskClient {
    /// The tasks of `host`.
    #[must_use]
    pub fn new(client: Client, host: &str) -> Self {
        Self {
            client,
            host: host.to_owned(),
        }
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
                // Another object of that name, or one that changed at that moment; or one that is no longer this host's.
                Err(error) if has_code(&error, 409) || has_code(&error, 403) => {
                    let found = self.read(key).await;
                    Err(refused(found, &self.host, describe(&error)))
                }
                Err(error) => Err(TaskWriteError::Failed(describe(&error))),
            }
        }
        .boxed()
    }
}

/// What it means that a report was refused, given the task as it is now.
fn refused(
    found: Result<Option<VirtualHardDiskTask>, String>,
    host: &str,
    error: String,
) -> TaskWriteError {
    let is_mine = |task: &VirtualHardDiskTask| {
        let status = task.status.as_ref();
        status.and_then(|s| s.host.as_deref()) == Some(host)
    };
    match found {
        Ok(found) if !found.as_ref().is_some_and(is_mine) => TaskWriteError::Gone,
        _ => TaskWriteError::Failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paddock_crds::{
        VirtualHardDiskTaskSpec, VirtualHardDiskTaskStatus, virtual_hard_disk_task::TaskAction,
    };

    fn task(host: Option<&str>) -> VirtualHardDiskTask {
        let spec = VirtualHardDiskTaskSpec::new(TaskAction::Merge, "d");
        let mut task = VirtualHardDiskTask::new("t", spec);
        task.status = Some(VirtualHardDiskTaskStatus {
            host: host.map(Into::into),
            ..VirtualHardDiskTaskStatus::default()
        });
        task
    }

    #[test]
    fn a_task_of_another_host_or_none_is_gone() {
        let refused = |found| refused(found, "me", "403".to_owned());
        let failed = || TaskWriteError::Failed("403".to_owned());
        assert_eq!(refused(Ok(None)), TaskWriteError::Gone);
        assert_eq!(refused(Ok(Some(task(None)))), TaskWriteError::Gone);
        assert_eq!(refused(Ok(Some(task(Some("you"))))), TaskWriteError::Gone);
        assert_eq!(refused(Ok(Some(task(Some("me"))))), failed());
        assert_eq!(refused(Err("no answer".to_owned())), failed());
    }
}
