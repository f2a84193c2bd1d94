//! The snapshot of one disk, and the plan made from it.

use crate::{
    cache::{Cache, World},
    controller::Context,
};
use paddock_crds::{
    VirtualHardDisk, VirtualHardDiskStatus, VirtualHardDiskTask, reference::Time,
    virtual_hard_disk::OwnerKind, virtual_hard_disk_task::TaskAction, virtual_machine::RunPolicy,
};
use paddock_planner::{
    ObjectKey,
    disk::{self, Family, Plan, Snapshot},
    identity,
};
use std::{collections::BTreeSet, sync::Arc, time::Instant};

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
    /// While it lives, other plans know that this one gives the disk to a task.
    pub giving: Option<Giving>,
}

/// A disk that is just being given to a task.
pub struct Giving {
    cache: Arc<Cache>,
    key: ObjectKey,
}

impl Drop for Giving {
    fn drop(&mut self) {
        let mut world = self.cache.world();
        world.giving.remove(&self.key);
        world.merging.remove(&self.key);
    }
}

/// Plans for one disk.
pub fn plan(context: &Context, key: &ObjectKey, now: &Time) -> Option<Planned> {
    let mut world = context.cache.world();
    let Some(disk) = world.disks.get(key).cloned() else {
        world.pending_disks.remove(key);
        return None;
    };
    let uid = identity::uid(&disk.metadata);
    let named = world.index.tasks_named_for(key);
    let keys: BTreeSet<_> = world.index.tasks_of(uid).chain(named).collect();
    let tasks: Vec<_> = keys
        .into_iter()
        .filter_map(|task| world.tasks.get(task).cloned())
        .filter(|task| disk::may_be_for(task, key, uid, &context.namespace))
        .collect();
    let family = family(&world, key, &disk);
    let wanted = world
        .index
        .users_of_disk(key)
        .filter_map(|vm| world.machines.get(vm))
        .any(|vm| vm.spec.run_policy != RunPolicy::Stopped && !identity::deleting(&vm.metadata));
    let retry_due = context.retries.is_due(uid, Instant::now());
    let same_file = world.other_with_its_file(key, &disk);
    let plan = disk::decide(&Snapshot {
        disk: &disk,
        system_namespace: &context.namespace,
        tasks: &tasks,
        family: &family,
        wanted,
        measured: measured_bytes(&world, key, &disk),
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
    let held = |s: &VirtualHardDiskStatus| s.attachment.as_ref().map(|a| a.disk_epoch);
    let gives =
        held(&plan.status).is_some() && held(&plan.status) != disk.status.as_ref().and_then(held);
    let giving = gives.then(|| {
        world.giving.insert(key.clone());
        let unfinished = plan.status.unfinished.as_ref();
        if unfinished.is_some_and(|u| u.action == TaskAction::Merge) {
            world.merging.insert(key.clone());
        }
        Giving {
            cache: context.cache.clone(),
            key: key.clone(),
        }
    });
    Some(Planned {
        tasks,
        giving,
        retries: retry_due && !plan.retry,
        plan,
        disk: disk.clone(),
    })
}

/// Bytes that a disk's file takes, as its machine's host tells while that runs. What the guest writes into an undo disk
/// is not the disk's own.
pub(crate) fn measured_bytes(
    world: &World,
    key: &ObjectKey,
    disk: &VirtualHardDisk,
) -> Option<i64> {
    let status = disk.status.as_ref()?;
    let owner = &status.attachment.as_ref()?.owner;
    if owner.kind != OwnerKind::VirtualMachine || status.undo.is_some() {
        return None;
    }
    let instance = ObjectKey::new(&key.namespace, &owner.name);
    let instance = world.instances.get(&instance)?;
    // By its file: under the name that the machine gives it, a guest that has not been started anew has another.
    let path = &status.file.as_ref()?.path;
    let mut told = instance.status.as_ref()?.disks.iter();
    told.find(|d| d.path == *path).map(|d| d.allocated_bytes)
}

/// The disks that a disk has to do with.
fn family(world: &World, key: &ObjectKey, disk: &VirtualHardDisk) -> Family {
    let sibling = |name: &str| ObjectKey::new(&key.namespace, name);
    let parent_key = disk::parent_name(disk).map(sibling);
    let source_key = disk::source_name(disk).map(sibling);
    let found = |key: &Option<ObjectKey>| world.disks.get(key.as_ref()?).cloned();
    let all = |keys: Vec<ObjectKey>| -> Vec<Arc<VirtualHardDisk>> {
        keys.iter()
            .filter_map(|k| world.disks.get(k).cloned())
            .collect()
    };
    let siblings = parent_key.iter().flat_map(|p| world.index.children_of(p));
    let siblings: Vec<_> = siblings.filter(|k| *k != key).cloned().collect();
    let children: Vec<_> = world.index.children_of(key).cloned().collect();
    let copies: Vec<_> = world.index.copies_of(key).cloned().collect();
    let parent_copies = parent_key.iter().flat_map(|p| world.index.copies_of(p));
    let parent_copies: Vec<_> = parent_copies.filter(|k| *k != key).cloned().collect();
    let named = [Some(key.clone()), parent_key.clone(), source_key.clone()];
    let is_made = |k: &ObjectKey| {
        let status = world.disks.get(k).and_then(|d| d.status.as_ref());
        status.is_some_and(|s| s.file.is_some())
    };
    // A machine reserves a disk that it waits for, too: only one that is made is taken by it.
    let is_taken = |k: &&ObjectKey| {
        world.giving.contains(*k) || is_made(k) && world.index.reserver_of(k).is_some()
    };
    let taken = named
        .iter()
        .flatten()
        .chain(&children)
        .chain(&siblings)
        .chain(&copies)
        .chain(&parent_copies)
        .filter(is_taken)
        .map(|k| k.name.clone())
        .collect();
    let merging = named.iter().flatten().filter_map(|below| {
        let mut children = world.index.children_of(below).filter(|child| *child != key);
        let child = children.find(|child| {
            let found = world.disks.get(child);
            world.merging.contains(*child) || found.is_some_and(|d| disk::is_merging(d))
        })?;
        Some((below.name.clone(), child.name.clone()))
    });
    let merging = merging.collect();
    Family {
        merging,
        parent: found(&parent_key),
        source: found(&source_key),
        siblings: all(siblings),
        children: all(children),
        copies: all(copies),
        parent_copies: all(parent_copies),
        taken,
    }
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

/// Tasks that users have made for a disk that is not there.
pub fn orphans(context: &Context, key: &ObjectKey) -> Vec<Arc<VirtualHardDiskTask>> {
    let world = context.cache.world();
    if world.disks.get(key).is_some() {
        return Vec::new();
    }
    world
        .index
        .tasks_named_for(key)
        .filter_map(|task| world.tasks.get(task).cloned())
        .filter(|task| disk::may_be_for(task, key, "", &context.namespace))
        .collect()
}
