//! A machine's undo disks: when they begin, and what becomes of them.
//!
//! An undo disk is known by its disk's status, written in the very writes that give and end the attachment, so that
//! there is never a disk whose changes nobody knows of. Committing and discarding are the disk's own work from there on.

use super::{Action, Snapshot, attachment, owner_uid};
use crate::{
    disk::next_path,
    identity::{deleting, name, uid},
};
use paddock_crds::{
    VirtualHardDisk, VirtualMachine, VirtualMachineInstance,
    virtual_hard_disk::{Access, BoundFile, UndoDisk, UndoState},
    virtual_machine::{OnStop, RunPolicy, UndoAction, UndoDiskStatus, UndoMode},
};
use std::sync::Arc;

/// The undo disk of a disk that a machine takes under a disk epoch.
pub(super) fn begin(
    vm: &VirtualMachine,
    disk: &VirtualHardDisk,
    disk_epoch: i64,
    wanted: bool,
) -> Option<UndoDisk> {
    let status = disk.status.as_ref()?;
    if status.undo.is_some() {
        return status.undo.clone();
    }
    let file = status.file.as_ref().filter(|_| wanted)?;
    Some(UndoDisk {
        file: BoundFile {
            pool: file.pool.clone(),
            path: next_path(disk, disk_epoch, "vud"),
        },
        machine: name(&vm.metadata).to_owned(),
        state: UndoState::New,
    })
}

/// What becomes of an instance's undo disks with its end; nothing where its guest never ran.
pub(super) fn at_end(s: &Snapshot<'_>, instance: &VirtualMachineInstance) -> Option<UndoState> {
    let status = instance.status.as_ref()?;
    // What started it is told only while it runs; how it was stopped, from then on.
    let ran = status.started_at.is_some() || status.stop_step.is_some() || status.restarts > 0;
    let kept = ran.then_some(UndoState::Kept);
    let vm = s.vm.filter(|vm| uid(&vm.metadata) == owner_uid(instance));
    let Some(vm) = vm else {
        return kept;
    };
    let ordered = deleting(&vm.metadata) || vm.spec.run_policy == RunPolicy::Stopped;
    // Without its host's own word nobody knows how the guest ended; and what ended from inside is kept.
    let inside = status.stop_step.as_deref() == Some("GuestPowerOff");
    if !ordered || inside || status.released.is_none() {
        return kept;
    }
    match vm.spec.undo_disks.on_stop {
        OnStop::Keep => kept,
        OnStop::Commit => Some(UndoState::Committing),
        OnStop::Discard => Some(UndoState::Discarding),
    }
}

/// What a disk's undo disk passes to when `wanted` is asked for: a disk that may not be written keeps it.
pub(super) fn passes_to(disk: &VirtualHardDisk, wanted: Option<UndoState>) -> Option<UndoState> {
    disk.status.as_ref()?.undo.as_ref()?;
    match wanted? {
        UndoState::Committing if disk.spec.access == Access::ReadOnly => Some(UndoState::Kept),
        wanted => Some(wanted),
    }
}

/// The undo disks of a machine: its disks' names, the disks, and what their statuses say.
fn all<'a>(
    s: &'a Snapshot<'_>,
    vm: &'a VirtualMachine,
) -> impl Iterator<Item = (&'a str, &'a Arc<VirtualHardDisk>, &'a UndoDisk)> {
    vm.spec.disks.iter().filter_map(move |d| {
        let disk = s.references.disks.get(&d.virtual_hard_disk_ref.name)?;
        let undo = disk.status.as_ref()?.undo.as_ref()?;
        (undo.machine == name(&vm.metadata)).then_some((d.name.as_str(), disk, undo))
    })
}

/// What is asked for with a machine's kept undo disks while it is off: by its request, or by having none any more.
pub(super) fn settle(s: &Snapshot<'_>, vm: &VirtualMachine) -> Vec<Action> {
    let spec = &vm.spec.undo_disks;
    let wanted = match request(vm) {
        Some(UndoAction::Commit) => UndoState::Committing,
        Some(UndoAction::Discard) => UndoState::Discarding,
        None if spec.mode == UndoMode::Disabled => UndoState::Discarding,
        None => return Vec::new(),
    };
    settle_to(s, vm, wanted)
}

/// What becomes of kept undo disks when a machine is deleted that is off.
pub(super) fn settle_deleted(s: &Snapshot<'_>, vm: &VirtualMachine) -> Vec<Action> {
    match vm.spec.undo_disks.on_stop {
        OnStop::Keep => Vec::new(),
        OnStop::Commit => settle_to(s, vm, UndoState::Committing),
        OnStop::Discard => settle_to(s, vm, UndoState::Discarding),
    }
}

fn settle_to(s: &Snapshot<'_>, vm: &VirtualMachine, wanted: UndoState) -> Vec<Action> {
    all(s, vm)
        .filter(|(_, disk, undo)| {
            attachment(disk).is_none() && matches!(undo.state, UndoState::New | UndoState::Kept)
        })
        .filter_map(|(_, disk, undo)| {
            let state = passes_to(disk, Some(wanted)).filter(|state| *state != undo.state)?;
            (state == wanted).then(|| Action::SettleUndo {
                disk: name(&disk.metadata).to_owned(),
                state,
            })
        })
        .collect()
}

/// The request that was not acted upon yet.
pub(crate) fn request(vm: &VirtualMachine) -> Option<UndoAction> {
    let request = vm.spec.undo_disks.request.as_ref()?;
    let acted = vm
        .status
        .as_ref()
        .and_then(|s| s.undo_request_token.as_ref());
    (acted != Some(&request.token)).then_some(request.action)
}

/// What the machine's status says of its undo disks.
pub(crate) fn told(s: &Snapshot<'_>, vm: &VirtualMachine) -> Vec<UndoDiskStatus> {
    all(s, vm)
        .map(|(name_in_machine, disk, undo)| UndoDiskStatus {
            name: name_in_machine.to_owned(),
            virtual_hard_disk: name(&disk.metadata).to_owned(),
            file: undo.file.clone(),
            state: undo.state,
        })
        .collect()
}

/// Why a change of `undoDisks` waits until a running machine is off.
pub(crate) fn pending(
    vm: &VirtualMachine,
    instance: &VirtualMachineInstance,
) -> Option<(&'static str, &'static str)> {
    let disks = &instance.spec.config.disks;
    let has = disks.iter().any(|d| d.undo.is_some());
    let wants = vm.spec.undo_disks.mode == UndoMode::Enabled;
    if request(vm).is_some() {
        return Some((
            "RequestWaits",
            "undoDisks.request is carried out once the machine is off: set runPolicy to Stopped",
        ));
    }
    match (has, wants) {
        (false, true) if !disks.is_empty() => Some((
            "ModeChanged",
            "its disks get undo disks when it is next started from off: set runPolicy to Stopped, then to Running",
        )),
        (true, false) => Some((
            "ModeChanged",
            "its undo disks are deleted, with all that they hold, once it is off: to keep what they hold, set undoDisks.onStop or undoDisks.request to Commit",
        )),
        _ => None,
    }
}
