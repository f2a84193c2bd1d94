//! Views of the world that decisions are made from.

use super::World;
use paddock_crds::{Host, host::PoolScope};
use paddock_planner::{ObjectKey, host as host_core, identity, placement::HostView};
use std::{collections::BTreeSet, sync::Arc};

impl World {
    /// A host as placement sees it. What the plan of `except` took is left out: it is being made anew.
    #[must_use]
    pub fn host_view(&self, host: &Arc<Host>, except: Option<&ObjectKey>) -> HostView {
        let name = identity::name(&host.metadata);
        HostView {
            host: host.clone(),
            availability: host_core::availability(host, self.leases.get(name)),
            ended_below: host_core::ended_below(host),
            allocated: self.allocated(name, except),
        }
    }

    /// Every host, by name.
    #[must_use]
    pub fn host_views(&self, except: Option<&ObjectKey>) -> Vec<HostView> {
        let mut views: Vec<HostView> = self
            .hosts
            .all()
            .map(|(_, host)| self.host_view(host, except))
            .collect();
        views.sort_by(|a, b| a.name().cmp(b.name()));
        views
    }

    /// Pools that any host calls shared.
    #[must_use]
    pub fn shared_pools(&self) -> BTreeSet<String> {
        self.hosts
            .all()
            .flat_map(|(_, host)| &host.spec.pools)
            .filter(|pool| pool.scope == PoolScope::Shared)
            .map(|pool| pool.name.clone())
            .collect()
    }
}
