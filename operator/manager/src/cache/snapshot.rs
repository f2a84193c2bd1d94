//! Views of the world that decisions are made from.

use super::World;
use paddock_crds::{Host, host::PoolScope};
use paddock_planner::{
    ObjectKey, host as host_core, identity, machine::instance_memory, placement::HostView,
};
use std::{collections::BTreeSet, sync::Arc};

impl World {
    /// A host as placement sees it. What the plan of `except` took is left out: it is being made anew.
    #[must_use]
    pub fn host_view(&self, host: &Arc<Host>, except: Option<&ObjectKey>) -> HostView {
        let name = identity::name(&host.metadata);
        let planned = |key: &ObjectKey| {
            let what = self.index.reservation(key);
            what.filter(|what| what.host == name && Some(key) != except)
                .map_or(0, |what| what.memory)
        };
        let placed: u64 = self
            .index
            .instances_on(name)
            .filter_map(|key| Some((key, self.instances.get(key)?)))
            // Its plan may take more than the API shows yet.
            .map(|(key, instance)| instance_memory(instance).max(planned(key)))
            .sum();
        let coming: u64 = self
            .index
            .reservations()
            .filter(|(key, _)| {
                let instance = self.instances.get(key);
                instance.is_none_or(|i| i.spec.host != name)
            })
            .map(|(key, _)| planned(key))
            .sum();
        HostView {
            host: host.clone(),
            availability: host_core::availability(host, self.leases.get(name)),
            ended_below: host_core::ended_below(host),
            allocated: placed.saturating_add(coming),
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
