//! The one place that talks to the API server. Everything else sees traits and streams.

mod hosts;
mod instances;
mod leases;
mod tasks;
mod watch;

pub use hosts::{HostClient, HostWriteError};
pub use instances::InstanceClient;
pub use leases::LeaseClient;
pub use tasks::TaskClient;
pub use watch::{hosts, instances, tasks};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::{path::Path, time::Duration};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Two clients: the lease's has a connection of its own, so that no burst of status writes delays a renewal.
#[derive(Clone)]
pub struct Clients {
    /// For the lease.
    pub lease: Client,
    /// For everything else.
    pub general: Client,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig cannot be used.
    #[error("{path}: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong.
        source: kube::config::KubeconfigError,
    },
    /// There is no kubeconfig and this is no pod.
    #[error("no --kubeconfig was given, and the service account of a pod cannot be used: {0}")]
    InCluster(#[from] kube::config::InClusterError),
    /// The configuration cannot be made a client.
    #[error("the Kubernetes client cannot be made: {0}")]
    Client(#[from] kube::Error),
}

/// Clients for the cluster of `kubeconfig`, or of the pod that this runs in.
///
/// # Errors
/// When neither can be read, or holds credentials that cannot be used.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Clients, ClientError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let failed = |source| ClientError::Kubeconfig {
                path: path.display().to_string(),
                source,
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(failed)?
        }
        None => Config::incluster()?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Retries are ours: a renewal that was sent twice would not know when.
    config.default_retry = false;
    let lease = Client::try_from(config.clone())?;
    let general = Client::try_from(config)?;
    Ok(Clients { lease, general })
}

/// Whether the API server answered with this HTTP status.
fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// The error in a sentence, without the debug text of the client.
fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        error => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            crate::instance::status::shorten(&text, 500)
        }
    }
}
