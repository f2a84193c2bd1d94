//! The steps of a machine's plan, in order; the first that fails ends it.

use super::fetch::Planned;
use crate::{controller::Context, disk::fetch::measured_bytes, write::WriteError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use paddock_crds::{
    VirtualHardDisk, VirtualHardDiskStatus, VirtualMachine, VirtualMachineInstance,
    VirtualMachineInstanceSpec,
    names::{INSTANCE_FINALIZER, MACHINE_FINALIZER},
    virtual_hard_disk::{Attachment, UndoDisk, UndoState},
};
use paddock_planner::{
    ObjectKey, disk,
    identity::uid,
    machine::{Action, HELD_MEMORY_ANNOTATION},
};
use std::sync::Arc;

/// Applies a plan. Returns the machine as it is afterwards.
pub async fn apply(
    context: &Context,
    key: &ObjectKey,
    planned: &Planned,
) -> Result<Option<Arc<VirtualMachine>>, WriteError> {
    for action in &planned.plan.actions {
        step(context, key, planned, action).await?;
    }
    let Some(planned_vm) = &planned.vm else {
        return Ok(None);
    };
    let current = context.cache.world().machines.get(key).cloned();
    Ok(current.filter(|vm| uid(&vm.metadata) == uid(&planned_vm.metadata)))
}

fn gone(key: &ObjectKey) -> WriteError {
    WriteError::Gone(key.to_string())
}

async fn step(
    context: &Context,
    key: &ObjectKey,
    planned: &Planned,
    action: &Action,
) -> Result<(), WriteError> {
    let writer = &context.writer;
    // Earlier steps may have changed the objects: each step starts from the newest version known here.
    let vm = || {
        let vm = context.cache.world().machines.get(key).cloned();
        vm.filter(|vm| {
            planned
                .vm
                .as_ref()
                .is_some_and(|p| uid(&p.metadata) == uid(&vm.metadata))
        })
        .ok_or_else(|| gone(key))
    };
    let instance = || {
        let found = context.cache.world().instances.get(key).cloned();
        found
            .filter(|i| {
                planned
                    .instance
                    .as_ref()
                    .is_some_and(|p| uid(&p.metadata) == uid(&i.metadata))
            })
            .ok_or_else(|| gone(key))
    };
    match action {
        Action::AddFinalizer => {
            writer
                .set_finalizer(vm()?.as_ref(), MACHINE_FINALIZER, true)
                .await
        }
        Action::RemoveFinalizer => {
            writer
                .set_finalizer(vm()?.as_ref(), MACHINE_FINALIZER, false)
                .await
        }
        Action::Bind { disk, host } => bind(context, key, disk, host).await,
        Action::Attach {
            disk,
            attachment,
            undo,
        } => attach(context, key, disk, attachment, undo.as_ref()).await,
        Action::Detach {
            disk,
            owner_uid,
            undo,
        } => detach(context, key, disk, owner_uid, undo.as_ref()).await,
        Action::SettleUndo { disk, state } => settle_undo(context, key, disk, *state).await,
        Action::CreateInstance(spec) => create(context, key, vm()?.as_ref(), spec).await,
        Action::UpdateInstance { spec, held_memory } => {
            let mut changed = instance()?.as_ref().clone();
            changed.spec = spec.as_ref().clone();
            let annotations = changed.metadata.annotations.get_or_insert_default();
            match held_memory {
                Some(memory) => {
                    annotations.insert(HELD_MEMORY_ANNOTATION.to_owned(), memory.to_string());
                }
                None => {
                    annotations.remove(HELD_MEMORY_ANNOTATION);
                }
            }
            // The status is not part of this write.
            changed.status = None;
            writer.replace(&changed).await.map(|_| ())
        }
        Action::DeleteInstance => writer.delete(instance()?.as_ref()).await,
        Action::ReleaseInstance => match instance() {
            Ok(found) => {
                writer
                    .set_finalizer(found.as_ref(), INSTANCE_FINALIZER, false)
                    .await
            }
            // Deleting it was enough: it had no finalizer.
            Err(_) => Ok(()),
        },
    }
}

fn find_disk(
    context: &Context,
    machine: &ObjectKey,
    disk: &str,
) -> Result<Arc<VirtualHardDisk>, WriteError> {
    let key = ObjectKey::new(&machine.namespace, disk);
    let found = context.cache.world().disks.get(&key).cloned();
    found.ok_or_else(|| gone(&key))
}

async fn write_disk(
    context: &Context,
    disk: &VirtualHardDisk,
    status: VirtualHardDiskStatus,
) -> Result<(), WriteError> {
    let mut changed = disk.clone();
    changed.status = Some(status);
    context.writer.replace_status(&changed).await.map(|_| ())
}

async fn bind(
    context: &Context,
    machine: &ObjectKey,
    disk: &str,
    host: &str,
) -> Result<(), WriteError> {
    let found = find_disk(context, machine, disk)?;
    let mut status = found.status.clone().unwrap_or_default();
    match &status.host {
        Some(bound) if bound == host => Ok(()),
        Some(_) => Err(WriteError::Conflict(format!("virtualharddisks {disk}"))),
        None => {
            status.host = Some(host.to_owned());
            write_disk(context, &found, status).await
        }
    }
}

/// Gives an attachment by compare-and-swap. The disk must be free or the owner's own, and its epoch the next.
async fn attach(
    context: &Context,
    machine: &ObjectKey,
    disk: &str,
    attachment: &Attachment,
    undo: Option<&UndoDisk>,
) -> Result<(), WriteError> {
    let found = find_disk(context, machine, disk)?;
    let status = found.status.clone().unwrap_or_default();
    let allowed = match &status.attachment {
        Some(held) => {
            held.owner.uid == attachment.owner.uid && held.disk_epoch == attachment.disk_epoch
        }
        None => attachment.disk_epoch > status.disk_epoch,
    };
    if !allowed {
        return Err(WriteError::Conflict(format!("virtualharddisks {disk}")));
    }
    let first = {
        let world = context.cache.world();
        let mut held = world.index.attached_to(&attachment.owner.uid);
        held.next().is_none() && world.instances.get(machine).is_none()
    };
    let mut status = disk::attached(&status, attachment.clone());
    match (&mut status.undo, undo) {
        (Some(has), Some(undo)) => has.machine_uid.clone_from(&undo.machine_uid),
        (None, undo) => status.undo = undo.cloned(),
        (Some(_), None) => {}
    }
    write_disk(context, &found, status).await?;
    if first {
        let mut world = context.cache.world();
        world.never_ordered.insert(attachment.owner.uid.clone());
    }
    Ok(())
}

async fn detach(
    context: &Context,
    machine: &ObjectKey,
    disk: &str,
    owner_uid: &str,
    undo: Option<&UndoDisk>,
) -> Result<(), WriteError> {
    let Ok(found) = find_disk(context, machine, disk) else {
        return Ok(());
    };
    let status = found.status.clone().unwrap_or_default();
    match &status.attachment {
        Some(held) if held.owner.uid == owner_uid => {
            // The last that is heard of it before another has it.
            let key = ObjectKey::new(&machine.namespace, disk);
            let told = measured_bytes(&context.cache.world(), &key, &found);
            let mut status = disk::detached(&disk::measured(&status, told));
            if status.undo.is_some() && undo.is_some() {
                status.undo = undo.cloned();
            }
            write_disk(context, &found, status).await
        }
        _ => Ok(()),
    }
}

/// Orders an undo disk to be committed or discarded, unless somebody has taken its disk meanwhile.
async fn settle_undo(
    context: &Context,
    machine: &ObjectKey,
    disk: &str,
    state: UndoState,
) -> Result<(), WriteError> {
    let found = find_disk(context, machine, disk)?;
    let mut status = found.status.clone().unwrap_or_default();
    if status.attachment.is_some() {
        return Err(WriteError::Conflict(format!("virtualharddisks {disk}")));
    }
    match &mut status.undo {
        Some(undo) if undo.machine == machine.name => {
            undo.state = state;
            write_disk(context, &found, status).await
        }
        _ => Ok(()),
    }
}

async fn create(
    context: &Context,
    key: &ObjectKey,
    vm: &VirtualMachine,
    spec: &VirtualMachineInstanceSpec,
) -> Result<(), WriteError> {
    let instance = VirtualMachineInstance {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            finalizers: Some(vec![INSTANCE_FINALIZER.to_owned()]),
            owner_references: vm.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: spec.clone(),
        status: None,
    };
    let owner = uid(&vm.metadata).to_owned();
    let unordered = context.cache.world().never_ordered.remove(&owner);
    // Noted before the answer, which may come after the host's own.
    context.fresh.insert(key);
    let result = context.writer.create(&instance).await;
    if let Err(error) = &result
        && unordered
        && error.nothing_was_done()
    {
        // Certainly nothing was made, so that the attachments need no host's proof.
        context.cache.world().never_ordered.insert(owner);
    }
    result.map(|_| ())
}
