//! This machine as a Host object: what it has, gathered, made a status, and written when it differs.

pub mod accelerator;
pub mod facts;
pub mod pool_looks;
pub mod publish;
pub mod report;
pub mod topology;
pub mod uplinks;

use crate::instance::core::Failure;
use paddock_crds::{
    HostSpec,
    host::{Pool, PoolKind, PoolScope},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;

/// The Host's spec as it was last seen; `None` until then.
pub type SpecReceiver = watch::Receiver<Option<Arc<HostSpec>>>;

/// The folder of a pool.
///
/// # Errors
/// When the Host names no such pool.
pub fn pool_path(spec: &HostSpec, pool: &str) -> Result<PathBuf, Failure> {
    find_pool(spec, pool).map(|pool| PathBuf::from(&pool.path))
}

/// The folder of a pool that images are read from. Whoever may name an image may name any file of such a pool, so it
/// holds no disks, and lies neither in the folder of one that does nor around it.
///
/// # Errors
/// When the Host names no such pool, or disks are kept in its folder.
pub fn image_pool_path(spec: &HostSpec, pool: &str) -> Result<PathBuf, Failure> {
    let found = find_pool(spec, pool)?;
    let path = Path::new(&found.path);
    let holds_disks = |other: &&Pool| {
        let folder = Path::new(&other.path);
        let overlaps = folder.starts_with(path) || path.starts_with(folder);
        overlaps && other.kinds.contains(&PoolKind::Disks)
    };
    match spec.pools.iter().find(holds_disks) {
        None => Ok(path.to_owned()),
        Some(other) => Err(Failure::new(
            "PoolHoldsDisks",
            format!(
                "no image is read from pool {pool}, since disks are kept in {} (pool {}): put the image into a pool that is for Images alone and has a folder of its own; a disk is copied by source.cloneRef",
                other.path, other.name
            ),
        )),
    }
}

fn find_pool<'a>(spec: &'a HostSpec, pool: &str) -> Result<&'a Pool, Failure> {
    spec.pools
        .iter()
        .find(|candidate| candidate.name == pool)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn host(pools: &[(&str, &str, &[PoolKind])]) -> HostSpec {
        let pool = |(name, path, kinds): &(&str, &str, &[PoolKind])| Pool {
            name: (*name).to_owned(),
            path: (*path).to_owned(),
            scope: PoolScope::Local,
            kinds: kinds.to_vec(),
        };
        HostSpec {
            pools: pools.iter().map(pool).collect(),
            ..HostSpec::default()
        }
    }

    #[test]
    fn images_are_read_where_no_disks_are_kept() {
        use PoolKind::{Disks, Images};
        let refused_for = |pools: &[_]| {
            let result = image_pool_path(&host(pools), "i");
            result.map_err(|failure| (failure.reason, failure.message))
        };
        for pools in [
            [("i", "/p/i", &[Images][..]), ("d", "/p/d", &[Disks][..])],
            // Names with a common beginning are no folders in each other.
            [("i", "/p/i", &[Images]), ("d", "/p/i2", &[Disks])],
            [("i", "/p/i", &[Images]), ("d", "/p/i/more", &[Images])],
        ] {
            assert_eq!(refused_for(&pools), Ok("/p/i".into()), "{pools:?}");
        }
        for (at, of, pools) in [
            (
                "/p/i",
                "i",
                [
                    ("i", "/p/i", &[Images, Disks][..]),
                    ("d", "/p/d", &[Disks][..]),
                ],
            ),
            (
                "/p/i",
                "d",
                [("i", "/p/i", &[Images]), ("d", "/p/i", &[Disks])],
            ),
            (
                "/p/i/d",
                "d",
                [("i", "/p/i", &[Images]), ("d", "/p/i/d", &[Disks])],
            ),
            (
                "/p",
                "d",
                [("i", "/p//i/", &[Images]), ("d", "/p", &[Disks, Images])],
            ),
        ] {
            let message = format!(
                "no image is read from pool i, since disks are kept in {at} (pool {of}): put the image into a pool that is for Images alone and has a folder of its own; a disk is copied by source.cloneRef"
            );
            assert_eq!(
                refused_for(&pools),
                Err(("PoolHoldsDisks", message)),
                "{pools:?}"
            );
        }
        let missing = image_pool_path(&host(&[]), "i").unwrap_err();
        assert_eq!(missing.reason, "PoolUnavailable");
    }
}
