//! Hosts: their leases are made, and the operator's part of their status is written.

use crate::{
    cache::World,
    controller::{Context, ReconcileError, now},
    lease_watch,
};
use paddock_crds::{
    Host,
    host::{Committed, HostState, HostStatus, PoolKind, PoolScope},
};
use paddock_planner::{
    ObjectKey, disk,
    host::{self, OperatorPart},
};
use serde_json::json;

/// Looks at one host.
pub async fn reconcile(context: &Context, name: &str) -> Result<(), ReconcileError> {
    let key = ObjectKey::new("", name);
    let (found, plan) = {
        let world = context.cache.world();
        let Some(found) = world.hosts.get(&key).cloned() else {
            return Ok(());
        };
        let highest = highest_epoch(&world, name);
        let mut plan = host::decide(&found, world.leases.get(name), highest, &now());
        plan.part.committed = committed(&world, &found);
        plan.part.storage = host::storage(&found, &plan.part.committed);
        (found, plan)
    };
    if let Some(epoch) = plan.create_lease {
        lease_watch::create(context, name, epoch)
            .await
            .map_err(|message| ReconcileError::Lease {
                host: name.to_owned(),
                message,
            })?;
    }
    let unset = HostStatus::default();
    let status = found.status.as_ref().unwrap_or(&unset);
    let before = OperatorPart::of(status);
    if before.as_ref() != Some(&plan.part) {
        let part = &plan.part;
        let mut wanted = json!({
            "state": part.state,
            "conditions": [part.ready],
            "committed": part.committed,
        });
        let optional = [
            ("storage", part.storage.as_ref().map(|v| json!(v))),
            ("hostEpoch", part.host_epoch.map(|v| json!(v))),
            (
                "outOfServiceToken",
                part.out_of_service_token.as_ref().map(|v| json!(v)),
            ),
            (
                "outOfServiceEpoch",
                part.out_of_service_epoch.map(|v| json!(v)),
            ),
        ];
        for (field, value) in optional {
            if let Some(value) = value {
                wanted[field] = value;
            }
        }
        context.writer.apply_status::<Host>(&key, wanted).await?;
        // A new host joins within the second: that is no news.
        let news = part.state != HostState::Unknown;
        let passed = before.as_ref().map(|b| &b.ready.reason) != Some(&part.ready.reason);
        if passed && news {
            let good = part.ready.status == "True";
            context.events.tell(
                found.as_ref(),
                good,
                &part.ready.reason,
                &part.ready.message,
            );
        }
    }
    Ok(())
}

/// What the disks in each of a host's pools are committed to.
#[must_use]
pub fn committed(world: &World, found: &Host) -> Vec<Committed> {
    let name = found.metadata.name.as_deref().unwrap_or_default();
    let pools = found.spec.pools.iter();
    pools
        .filter(|p| p.kinds.contains(&PoolKind::Disks))
        .map(|pool| {
            let here = world.index.committed(&pool.name, Some(name));
            // A disk on a parent that only one host has is bound to that host, in a shared pool too.
            let shared = world.index.committed(&pool.name, None);
            let (bytes, disks) = match pool.scope {
                PoolScope::Local => here,
                PoolScope::Shared => (here.0.saturating_add(shared.0), here.1 + shared.1),
            };
            Committed {
                pool: pool.name.clone(),
                bytes,
                disks,
            }
        })
        .collect()
}

/// The highest epoch that anything on a host names.
fn highest_epoch(world: &World, name: &str) -> i64 {
    let instances = world
        .index
        .instances_on(name)
        .filter_map(|key| world.instances.get(key))
        .map(|i| i.spec.host_epoch);
    let attachments = world.disks.all().filter_map(|(_, d)| {
        let a = d.status.as_ref()?.attachment.as_ref()?;
        (a.host == name).then_some(a.host_epoch)
    });
    let tasks = world.tasks.all().filter_map(|(_, t)| {
        let status = t.status.as_ref()?;
        let here = status.host.as_deref() == Some(name) && !disk::is_over(t);
        status.host_epoch.filter(|_| here)
    });
    instances.chain(attachments).chain(tasks).max().unwrap_or(0)
}
