//! A machine's undo disks: when they begin, and what becomes of them.
//!
//! An undo disk is known by its disk's status, written in the very writes that give and end the attachment, so that
//! there is never a disk whose changes nobody knows of. Committing and discarding are the disk's own work from there on.

use super::{Action, Snapshot, attachment, owner_uid};
use crate::{
    disk::{listed, next_path},
    identity::{deleting, name, uid},
};
use paddock_crds::{
    VirtualHardDisk, VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceStatus,
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
    if let Some(undo) = &status.undo {
        // From now on it is this machine's, whoever had the name before.
        return Some(UndoDisk {
            machine_uid: Some(uid(&vm.metadata).to_owned()),
            ..undo.clone()
        });
    }
    let file = status.file.as_ref().filter(|_| wanted)?;
    Some(UndoDisk {
        file: BoundFile {
            pool: file.pool.clone(),
            path: next_path(disk, disk_epoch, "vud"),
        },
        machine: name(&vm.metadata).to_owned(),
        machine_uid: Some(uid(&vm.metadata).to_owned()),
        ran: false,
        state: UndoState::New,
    })
}

/// What an instance's end means for its undo disks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    /// Whether its guest is known to have run.
    ran: bool,
    /// What they pass to, if that changes.
    to: Option<UndoState>,
}

/// What becomes of an instance's undo disks with its end; nothing where its guest never ran.
pub(super) fn at_end(s: &Snapshot<'_>, instance: &VirtualMachineInstance) -> End {
    let status = instance.status.as_ref();
    // What started it is told only while it runs; how it was stopped, from then on.
    let ran = status.is_some_and(|status| {
        status.started_at.is_some() || status.stop_step.is_some() || status.restarts > 0
    });
    let to = status.and_then(|status| passing(s, instance, status, ran));
    End { ran, to }
}

fn passing(
    s: &Snapshot<'_>,
    instance: &VirtualMachineInstance,
    status: &VirtualMachineInstanceStatus,
    ran: bool,
) -> Option<UndoState> {
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

/// A disk's undo disk after the end of its machine's instance, if that changes it.
pub(super) fn after(disk: &VirtualHardDisk, end: End) -> Option<UndoDisk> {
    let undo = disk.status.as_ref()?.undo.as_ref()?;
    Some(UndoDisk {
        ran: undo.ran || end.ran,
        state: passes_to(disk, end.to?),
        ..undo.clone()
    })
}

/// What a disk's undo disk passes to when `wanted` is asked for: a disk that may not be written keeps it.
fn passes_to(disk: &VirtualHardDisk, wanted: UndoState) -> UndoState {
    match wanted {
        UndoState::Committing if disk.spec.access == Access::ReadOnly => UndoState::Kept,
        wanted => wanted,
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

/// Whether an undo disk holds the changes of this very machine, not those of an earlier one of its name.
pub(crate) fn is_own(vm: &VirtualMachine, undo: &UndoDisk) -> bool {
    undo.machine_uid.as_deref() == Some(uid(&vm.metadata))
}

/// What is asked for with a machine's kept undo disks while it is off: by its request, or by having none any more.
pub(super) fn settle(s: &Snapshot<'_>, vm: &VirtualMachine) -> Vec<Action> {
    let any = |_: &UndoDisk| true;
    match request(vm) {
        Some(UndoAction::Commit) => settle_to(s, vm, UndoState::Committing, any),
        Some(UndoAction::Discard) => settle_to(s, vm, UndoState::Discarding, any),
        // Whoever made this machine may not know of what an earlier one has left: that waits for a request.
        None if vm.spec.undo_disks.mode == UndoMode::Disabled => {
            settle_to(s, vm, UndoState::Discarding, |undo| is_own(vm, undo))
        }
        None => Vec::new(),
    }
}

/// What becomes of kept undo disks when a machine is deleted that is off.
pub(super) fn settle_deleted(s: &Snapshot<'_>, vm: &VirtualMachine) -> Vec<Action> {
    match vm.spec.undo_disks.on_stop {
        OnStop::Keep => Vec::new(),
        OnStop::Commit => settle_to(s, vm, UndoState::Committing, |undo| is_own(vm, undo)),
        OnStop::Discard => settle_to(s, vm, UndoState::Discarding, |undo| is_own(vm, undo)),
    }
}

fn settle_to(
    s: &Snapshot<'_>,
    vm: &VirtualMachine,
    wanted: UndoState,
    which: impl Fn(&UndoDisk) -> bool,
) -> Vec<Action> {
    all(s, vm)
        .filter(|(_, disk, undo)| {
            let kept = matches!(undo.state, UndoState::New | UndoState::Kept);
            attachment(disk).is_none() && kept && which(undo)
        })
        .filter(|(_, disk, _)| passes_to(disk, wanted) == wanted)
        .map(|(_, disk, _)| Action::SettleUndo {
            disk: name(&disk.metadata).to_owned(),
            state: wanted,
        })
        .collect()
}

/// What a request to commit has left as it was, for people: disks that may not be written.
pub(crate) fn not_committed(s: &Snapshot<'_>, vm: &VirtualMachine) -> Option<String> {
    let request = vm.spec.undo_disks.request.as_ref()?;
    let kept = all(s, vm).filter(|(_, disk, undo)| {
        disk.spec.access == Access::ReadOnly && undo.state == UndoState::Kept
    });
    let names: Vec<String> = kept.map(|(_, d, _)| name(&d.metadata).to_owned()).collect();
    (request.action == UndoAction::Commit && !names.is_empty()).then(|| {
        format!(
            "undoDisks.request asks for a commit, but spec.access is ReadOnly and the undo disk kept of {}: set it to ReadWrite and the request to a new token, or request Discard",
            listed(names)
        )
    })
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
