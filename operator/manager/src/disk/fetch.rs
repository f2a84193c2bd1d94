//! The snapshot of one disk, and the plan made from it.

use crate::controller::Context;
use paddock_crds::{VirtualHardDisk, VirtualHardDiskTask, reference::Time};
use paddock_planner::{
    ObjectKey,
    disk::{self, Plan, Snapshot},
    identity,
};
use std::{sync::Arc, time::Instant};

/// A plan and the objects that it was made from.
pub struct Planned {
    /// The disk.
    pub disk: Arc<VirtualHardDisk>,
    /// Its tasks.
    pub tasks: Vec<Arc<VirtualHardDiskTask>>,
    /// What to do.
    pub plan: Plan,
    /// Whether a failed task was let go for a new try.
    pub retries: bool,
}

/// Plans for one disk.
pub fn plan(context: &Context, key: &ObjectKey, now: &Time) -> Option<Planned> {
    let mut world = context.cache.world();
    let Some(disk) = world.disks.get(key).cloned() else {
        world.pending_disks.remove(key);
        return None;
    };
    let uid = identity::uid(&disk.metadata);
    let tasks: Vec<_> = world
        .index
        .tasks_of(uid)
        .filter_map(|task| world.tasks.get(task).cloned())
        .collect();
    let retry_due = context.retries.is_due(uid, Instant::now());
    let same_file = earlier_with_same_file(&world, key, &disk);
    let plan = disk::decide(&Snapshot {
        disk: &disk,
        system_namespace: &context.namespace,
        tasks: &tasks,
        hosts: &world.host_views(None),
        busy: &world.index.busy(),
        same_file: same_file.as_ref(),
        retry_due,
        creation_refused: world.creation_refused.contains(uid),
        now,
    });
    if plan.pending {
        world.pending_disks.insert(key.clone());
    } else {
        world.pending_disks.remove(key);
    }
    Some(Planned {
        tasks,
        retries: retry_due && !plan.retry,
        plan,
        disk: disk.clone(),
    })
}

/// An earlier disk whose spec names the same file, where both may mean one host.
fn earlier_with_same_file(
    world: &crate::cache::World,
    key: &ObjectKey,
    disk: &VirtualHardDisk,
) -> Option<ObjectKey> {
    let path = disk.spec.file.path.clone()?;
    let file = (disk.spec.file.pool.clone(), path);
    let host = |d: &VirtualHardDisk| d.status.as_ref().and_then(|s| s.host.clone());
    let age = |key: &ObjectKey, d: &VirtualHardDisk| {
        (
            d.metadata.creation_timestamp.as_ref().map(|t| t.0),
            key.clone(),
        )
    };
    let mine = age(key, disk);
    let my_host = host(disk);
    world
        .index
        .disks_with_file(&file)
        .filter(|other| *other != key)
        .filter_map(|other| Some((other, world.disks.get(other)?)))
        .find(|(other, found)| {
            let their_host = host(found);
            let one_place = my_host.is_none() || their_host.is_none() || my_host == their_host;
            one_place && age(other, found) < mine
        })
        .map(|(other, _)| other.clone())
}

/// Tasks in the operator's namespace that outlived the disk of `key`, and that nobody works on.
pub fn leftovers(context: &Context, key: &ObjectKey) -> Vec<ObjectKey> {
    let world = context.cache.world();
    if world.disks.get(key).is_some() {
        return Vec::new();
    }
    world
        .index
        .tasks_named_for(key)
        .filter(|task| task.namespace == context.namespace && task.namespace != key.namespace)
        .filter(|task| {
            let found = world.tasks.get(task);
            found.is_some_and(|t| disk::is_over(t) || disk::is_unassigned(t))
        })
        .cloned()
        .collect()
}
