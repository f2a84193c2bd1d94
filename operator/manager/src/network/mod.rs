//! VirtualNetworks: their status is all there is to write.

use crate::{
    cache::World,
    controller::{Context, ReconcileError, now},
};
use paddock_planner::{ObjectKey, identity, network};
use std::collections::BTreeSet;

/// Looks at one network.
pub async fn reconcile(context: &Context, key: &ObjectKey) -> Result<(), ReconcileError> {
    let (found, wanted) = {
        let world = context.cache.world();
        let Some(found) = world.networks.get(key).cloned() else {
            return Ok(());
        };
        let assigned = assigned(&world, key);
        let wanted = network::decide(&found, assigned, &now());
        (found, wanted)
    };
    // A network in deletion has no finalizer of ours: what it would say is gone with it.
    if found.status.as_ref() != Some(&wanted) && !identity::deleting(&found.metadata) {
        let mut changed = found.as_ref().clone();
        changed.status = Some(wanted);
        context.writer.replace_status(&changed).await?;
    }
    Ok(())
}

/// How many addresses of a network adapters have.
fn assigned(world: &World, key: &ObjectKey) -> usize {
    let name = key.to_string();
    let mut addresses = BTreeSet::new();
    for machine in world.index.users_of_network(key) {
        let status = world
            .machines
            .get(machine)
            .and_then(|vm| vm.status.as_ref());
        let given = status.into_iter().flat_map(|s| &s.network_adapters);
        addresses.extend(
            given
                .filter(|a| a.virtual_network.as_deref() == Some(&key.name))
                .filter_map(|a| a.ip_address.clone()),
        );
        let instance = world.instances.get(machine);
        let carried = instance
            .into_iter()
            .flat_map(|i| &i.spec.config.network_adapters);
        addresses.extend(
            carried
                .filter(|a| a.network.as_ref().is_some_and(|n| n.name == name))
                .filter_map(|a| a.ip_address.clone()),
        );
    }
    addresses.len()
}
