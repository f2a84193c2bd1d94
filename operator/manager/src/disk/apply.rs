//! The steps of a disk's plan, in order, with its status between them; the first that fails ends it.

use super::fetch::Planned;
use crate::{controller::Context, queue::Work, write::WriteError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use paddock_crds::{
    VirtualHardDisk, VirtualHardDiskStatus, VirtualHardDiskTask, VirtualHardDiskTaskSpec,
    names::{
        DISK_FINALIZER, TASK_FINALIZER,
        condition::{PROGRESSING, READY},
    },
    reference::condition,
    virtual_hard_disk::DiskState,
    virtual_hard_disk_task::TaskState,
};
use paddock_planner::{
    ObjectKey,
    disk::{self, Action},
    identity::{deleting, has_finalizer, uid},
};
use serde_json::json;
use std::{sync::Arc, time::Instant};

/// Applies a plan.
pub async fn apply(
    context: &Context,
    key: &ObjectKey,
    planned: &Planned,
) -> Result<(), WriteError> {
    let id = uid(&planned.disk.metadata);
    for action in &planned.plan.before {
        step(context, key, planned, action).await?;
    }
    write_status(context, planned).await?;
    if let Some((reason, message)) = &planned.plan.note {
        context
            .events
            .tell(planned.disk.as_ref(), false, reason, message);
    }
    if let Some((reason, message)) = &planned.plan.done {
        context
            .events
            .tell(planned.disk.as_ref(), true, reason, message);
    }
    if planned.retries {
        context.retries.tried(id);
    }
    for action in &planned.plan.after {
        step(context, key, planned, action).await?;
    }
    if planned.plan.retry {
        let wait = context
            .retries
            .failed(id, Instant::now(), planned.plan.seldom);
        context.queue.add_after(Work::Disk(key.clone()), wait);
    } else if is_settled(&planned.plan.status) {
        context.retries.forget(id);
    }
    Ok(())
}

/// Whether nothing is left to be tried.
fn is_settled(status: &VirtualHardDiskStatus) -> bool {
    status.file.is_some()
        && status.obsolete_files.is_empty()
        && condition(&status.conditions, PROGRESSING).is_none()
}

fn current(context: &Context, planned: &Planned) -> Result<Arc<VirtualHardDisk>, WriteError> {
    let key = ObjectKey::of(&planned.disk.metadata);
    let found = context.cache.world().disks.get(&key).cloned();
    found
        .filter(|d| uid(&d.metadata) == uid(&planned.disk.metadata))
        .ok_or_else(|| WriteError::Gone(key.to_string()))
}

async fn write_status(context: &Context, planned: &Planned) -> Result<(), WriteError> {
    let wanted = &planned.plan.status;
    if planned.disk.status.as_ref() == Some(wanted) {
        return Ok(());
    }
    let now = current(context, planned)?;
    if now.status != planned.disk.status {
        // A machine's plan has written it meanwhile: decide anew.
        return Err(WriteError::Conflict(format!(
            "virtualharddisks {}",
            ObjectKey::of(&now.metadata)
        )));
    }
    let mut changed = now.as_ref().clone();
    changed.status = Some(wanted.clone());
    context.writer.replace_status(&changed).await?;
    tell(context, &planned.disk, wanted);
    Ok(())
}

fn tell(context: &Context, disk: &VirtualHardDisk, wanted: &VirtualHardDiskStatus) {
    let ready = |status: &VirtualHardDiskStatus| {
        condition(&status.conditions, READY).map(|c| (c.reason.clone(), c.message.clone()))
    };
    let before = disk.status.as_ref().and_then(ready);
    let Some((reason, message)) = ready(wanted) else {
        return;
    };
    let told = matches!(
        wanted.state,
        DiskState::Ready | DiskState::Attached | DiskState::Failed
    );
    if told && before.is_none_or(|(old, _)| old != reason) {
        let good = wanted.state != DiskState::Failed;
        context.events.tell(disk, good, &reason, &message);
    }
}

async fn step(
    context: &Context,
    key: &ObjectKey,
    planned: &Planned,
    action: &Action,
) -> Result<(), WriteError> {
    let writer = &context.writer;
    match action {
        Action::AddFinalizer => {
            let disk = current(context, planned)?;
            writer
                .set_finalizer(disk.as_ref(), DISK_FINALIZER, true)
                .await
        }
        Action::RemoveFinalizer => {
            let disk = current(context, planned)?;
            context.retries.forget(uid(&disk.metadata));
            writer
                .set_finalizer(disk.as_ref(), DISK_FINALIZER, false)
                .await
        }
        Action::CreateTask { task, spec } => create(context, key, planned, task, spec).await,
        Action::AssignTask {
            task,
            host,
            host_epoch,
            order,
        } => {
            let status = json!({"host": host, "hostEpoch": host_epoch, "order": order});
            writer
                .apply_status::<VirtualHardDiskTask>(task, status)
                .await
                .map(|_| ())
        }
        Action::TellTask {
            task,
            state,
            reason,
            message,
        } => {
            let status = json!({"state": state, "reason": reason, "message": message});
            writer
                .apply_status::<VirtualHardDiskTask>(task, status)
                .await
                .map(|_| ())
        }
        Action::HoldTask { task } => match find(context, task) {
            Some(found) => {
                writer
                    .set_finalizer(found.as_ref(), TASK_FINALIZER, true)
                    .await
            }
            None => Err(WriteError::Gone(task.to_string())),
        },
        Action::ReleaseTask { task } => match find(context, task) {
            Some(found) => {
                writer
                    .set_finalizer(found.as_ref(), TASK_FINALIZER, false)
                    .await
            }
            None => Ok(()),
        },
        Action::DeleteTask { task } => match find(context, task) {
            Some(task) => writer.delete(task.as_ref()).await,
            None => Ok(()),
        },
        Action::DiscardTask { task } => discard(context, task).await,
        Action::TellParent {
            parent,
            allocated_bytes,
        } => tell_parent(context, key, parent, *allocated_bytes).await,
    }
}

/// Notes on a disk that another was merged into. One that was deleted meanwhile needs it no more.
async fn tell_parent(
    context: &Context,
    child: &ObjectKey,
    parent: &str,
    allocated_bytes: Option<i64>,
) -> Result<(), WriteError> {
    let key = ObjectKey::new(&child.namespace, parent);
    let Some(found) = context.cache.world().disks.get(&key).cloned() else {
        return Ok(());
    };
    let status = found.status.clone().unwrap_or_default();
    let told = disk::grown_by_merge(&status, allocated_bytes);
    if told == status {
        return Ok(());
    }
    let mut changed = found.as_ref().clone();
    changed.status = Some(told);
    context.writer.replace_status(&changed).await.map(|_| ())
}

fn find(context: &Context, task: &ObjectKey) -> Option<Arc<VirtualHardDiskTask>> {
    context.cache.world().tasks.get(task).cloned()
}

/// Deletes a task that nobody works on.
pub async fn discard(context: &Context, task: &ObjectKey) -> Result<(), WriteError> {
    // Without its finalizer first, so that deleting it ends it in the same moment.
    if let Some(found) = find(context, task) {
        context
            .writer
            .set_finalizer(found.as_ref(), TASK_FINALIZER, false)
            .await?;
    }
    match find(context, task) {
        Some(found) => context.writer.delete(found.as_ref()).await,
        None => Ok(()),
    }
}

/// Says of a user's task that its disk is not there, and lets it go once nobody works on it.
pub async fn tell_orphan(
    context: &Context,
    key: &ObjectKey,
    task: &VirtualHardDiskTask,
) -> Result<(), WriteError> {
    const REASON: &str = "VirtualHardDiskNotFound";
    let (over, unassigned) = (disk::is_over(task), disk::is_unassigned(task));
    if (over || unassigned) && has_finalizer(&task.metadata, TASK_FINALIZER) {
        return context
            .writer
            .set_finalizer(task, TASK_FINALIZER, false)
            .await;
    }
    let told = task.status.as_ref().and_then(|s| s.reason.as_deref()) == Some(REASON);
    if over || !unassigned || told || deleting(&task.metadata) {
        return Ok(());
    }
    let message = format!(
        "there is no VirtualHardDisk \"{}\" in namespace \"{}\"",
        key.name, key.namespace
    );
    let status = json!({"state": TaskState::Pending, "reason": REASON, "message": message});
    let task = ObjectKey::of(&task.metadata);
    context
        .writer
        .apply_status::<VirtualHardDiskTask>(&task, status)
        .await
        .map(|_| ())
}

async fn create(
    context: &Context,
    key: &ObjectKey,
    planned: &Planned,
    task: &ObjectKey,
    spec: &VirtualHardDiskTaskSpec,
) -> Result<(), WriteError> {
    // An owner reference must not cross namespaces.
    let child = task.namespace == key.namespace;
    let owner = planned.disk.controller_owner_ref(&()).filter(|_| child);
    let annotations = [
        (disk::DISK_ANNOTATION.to_owned(), key.to_string()),
        (
            disk::DISK_UID_ANNOTATION.to_owned(),
            uid(&planned.disk.metadata).to_owned(),
        ),
    ];
    let task = VirtualHardDiskTask {
        metadata: ObjectMeta {
            name: Some(task.name.clone()),
            namespace: Some(task.namespace.clone()),
            finalizers: Some(vec![TASK_FINALIZER.to_owned()]),
            owner_references: owner.map(|owner| vec![owner]),
            annotations: (!child).then(|| annotations.into()),
            ..ObjectMeta::default()
        },
        spec: spec.clone(),
        status: None,
    };
    match context.writer.create(&task).await {
        Err(WriteError::Terminating(_)) => {
            let mut world = context.cache.world();
            world
                .creation_refused
                .insert(uid(&planned.disk.metadata).to_owned());
            drop(world);
            context.queue.add(Work::Disk(key.clone()));
            Ok(())
        }
        result => result.map(|_| ()),
    }
}
