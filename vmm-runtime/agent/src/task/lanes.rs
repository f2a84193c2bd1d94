//! How many tasks are at work at once: a few in each set of pools, so that one that hangs holds up no other. Downloads
//! have lanes of their own: a slow server keeps no pool busy.

use paddock_crds::virtual_hard_disk_task::TaskOrder;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Tasks at work at once in the same pools: two keep a disk busy.
pub const AT_ONCE: usize = 2;
/// Lanes that nobody uses are forgotten when there are more than this.
const KEPT: usize = 64;

/// The lanes of a host.
#[derive(Debug, Default)]
pub struct Lanes(Mutex<HashMap<String, Arc<Semaphore>>>);

/// A lane: tasks that touch the same pools.
#[derive(Clone, Debug)]
pub struct Lane {
    pools: String,
    permits: Arc<Semaphore>,
}

impl Lanes {
    /// The lane of an order.
    #[must_use]
    pub fn of(&self, order: &TaskOrder) -> Lane {
        let pools = pools(order);
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() > KEPT {
            lanes.retain(|_, permits| Arc::strong_count(permits) > 1);
        }
        let permits = lanes
            .entry(pools.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE)));
        Lane {
            pools,
            permits: permits.clone(),
        }
    }
}

impl Lane {
    /// Its pools, for people.
    #[must_use]
    pub fn pools(&self) -> &str {
        &self.pools
    }

    /// Waits for its turn; `None` never comes.
    pub async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().acquire_owned().await.ok()
    }
}

/// All pools that an order touches, in order, with commas; and whether it downloads.
fn pools(order: &TaskOrder) -> String {
    let files = [
        Some(&order.file),
        order.target.as_ref(),
        order.undo.as_ref(),
        order.linked.as_ref(),
    ];
    let files = files
        .into_iter()
        .flatten()
        .chain(&order.parents)
        .chain(&order.clone)
        .map(|file| file.pool.as_str());
    let source = order.source.iter().map(|source| source.file.pool.as_str());
    let pools: BTreeSet<_> = files.chain(source).collect();
    let pools = Vec::from_iter(pools).join(", ");
    match order.download {
        Some(_) => format!("{pools} (downloads)"),
        None => pools,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::core::test_order;
    use futures::FutureExt;
    use paddock_crds::{
        reference::PoolFile,
        virtual_hard_disk::{HttpSource, ImageFormat},
    };

    fn order(file: &str, target: Option<&str>) -> TaskOrder {
        let in_pool = |pool: &str| PoolFile {
            pool: pool.into(),
            path: "d.vhd".into(),
        };
        TaskOrder {
            target: target.map(in_pool),
            ..test_order(in_pool(file))
        }
    }

    #[test]
    fn a_full_lane_holds_up_no_other() {
        let lanes = Lanes::default();
        let both = lanes.of(&order("b", Some("a")));
        assert_eq!(both.pools(), "a, b");
        let enter = |pool, target| lanes.of(&order(pool, target)).enter().now_or_never();
        let held: Vec<_> = (0..AT_ONCE).map(|_| enter("a", None).unwrap()).collect();
        assert!(enter("a", None).is_none());
        assert!(enter("b", None).is_some());
        assert!(
            enter("a", Some("b")).is_some(),
            "the order of pools does not matter"
        );
        drop(held);
        assert!(enter("a", None).is_some());
    }

    #[test]
    fn downloads_hold_up_downloads_alone() {
        let lanes = Lanes::default();
        let download = TaskOrder {
            download: Some(HttpSource {
                url: "http://a/b".into(),
                sha256: "0".repeat(64),
                format: ImageFormat::Raw,
            }),
            ..order("a", None)
        };
        let enter = |order| lanes.of(order).enter().now_or_never();
        let held: Vec<_> = (0..AT_ONCE).map(|_| enter(&download).unwrap()).collect();
        assert!(enter(&download).is_none());
        assert_eq!(lanes.of(&download).pools(), "a (downloads)");
        assert!(enter(&order("a", None)).is_some());
        drop(held);
    }

    #[test]
    fn lanes_that_nobody_uses_are_forgotten() {
        let lanes = Lanes::default();
        let used = lanes.of(&order("used", None)).enter().now_or_never();
        for index in 0..1000 {
            let _ = lanes.of(&order(&format!("p{index}"), None));
        }
        let known = lanes.0.lock().unwrap();
        assert!(known.len() <= KEPT + 2, "{}", known.len());
        assert_eq!(known["used"].available_permits(), AT_ONCE - 1);
        drop(used);
    }
}
