//! This machine as a Host object: what it has, gathered, made a status, and written when it differs.

pub mod accelerator;
pub mod facts;
pub mod pool_looks;
pub mod publish;
pub mod report;
pub mod topology;
pub mod uplinks;

use crate::instance::core::Failure;
use paddock_crds::{HostSpec, host::PoolScope};
use std::{path::PathBuf, sync::Arc};
use tokio::sync::watch;

/// The Host's spec as it was last seen; `None` until then.
pub type SpecReceiver = watch::Receiver<Option<Arc<HostSpec>>>;

/// The folder of a pool.
///
/// # Errors
/// When the Host names no such pool.
pub fn pool_path(spec: &HostSpec, pool: &str) -> Result<PathBuf, Failure> {
    spec.pools
        .iter()
        .find(|candidate| candidate.name == pool)
        .map(|pool| PathBuf::from(&pool.path))
        .ok_or_else(|| {
            let names: Vec<_> = spec.pools.iter().map(|pool| pool.name.as_str()).collect();
            Failure::new(
                "PoolUnavailable",
                format!(
                    "this host has no pool {pool:?}: its pools are {}; name the pool in the Host's spec.pools",
                    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
                ),
            )
        })
}

/// Whether hosts share a pool.
#[must_use]
pub fn is_shared(spec: &HostSpec, pool: &str) -> bool {
    let mut pools = spec.pools.iter();
    pools.any(|found| found.name == pool && found.scope == PoolScope::Shared)
}

/// The interface of an uplink.
///
/// # Errors
/// When the Host names no such uplink.
pub fn uplink_interface(spec: &HostSpec, uplink: &str) -> Result<String, Failure> {
    spec.uplinks
        .iter()
        .find(|candidate| candidate.name == uplink)
        .map(|uplink| uplink.interface.clone())
        .ok_or_else(|| {
            Failure::new(
                "UplinkUnavailable",
                format!("this host has no uplink {uplink:?}: name it in the Host's spec.uplinks"),
            )
        })
}

/// Waits until the Host's spec was seen.
///
/// # Errors
/// When the agent ends.
pub async fn spec(receiver: &SpecReceiver) -> Result<Arc<HostSpec>, String> {
    let mut receiver = receiver.clone();
    let spec = receiver
        .wait_for(Option::is_some)
        .await
        .map_err(|_| "the agent ends".to_owned())?;
    spec.clone().ok_or_else(|| "the agent ends".to_owned())
}
