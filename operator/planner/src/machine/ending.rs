//! Ending what a machine has: its instance, and the attachments that are left without one.

use super::{Action, Snapshot, attachment, ended_by_word, host, owner_uid, undo};
use crate::{
    identity::{deleting, name, uid},
    placement::HostView,
    resolve::{self, config_revision},
};
use paddock_crds::{
    VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceSpec,
    virtual_machine_instance::Power,
};

pub(super) struct End {
    pub(super) actions: Vec<Action>,
    pub(super) proved: bool,
}

/// The host of an attachment whose instance somebody took away by hand.
pub(super) fn vanished<'a>(s: &'a Snapshot<'_>, vm: &VirtualMachine) -> Option<&'a str> {
    // Every status written for an instance counts its restarts, and every other clears them.
    let had_instance = vm.status.as_ref().is_some_and(|s| s.restarts.is_some());
    if s.instance.is_some() || s.never_ordered || !had_instance {
        return None;
    }
    s.held
        .iter()
        .filter_map(|d| attachment(d))
        .find(|a| a.owner.uid == uid(&vm.metadata) && !ended_by_word(s, &a.host, a.host_epoch))
        .map(|a| a.host.as_str())
}

/// Ends an instance: deletes it, and releases what it held once its end is proved.
pub(super) fn end(s: &Snapshot<'_>, instance: &VirtualMachineInstance) -> End {
    let mut actions = Vec::new();
    let deleted = deleting(&instance.metadata);
    if !deleted {
        actions.push(Action::DeleteInstance);
    }
    let cannot_start = deleted || instance.spec.power == Power::Stopped;
    let released = instance
        .status
        .as_ref()
        .is_some_and(|status| status.released.is_some());
    let proved =
        cannot_start && released || ended_by_word(s, &instance.spec.host, instance.spec.host_epoch);
    if proved {
        let owner = owner_uid(instance);
        let ends = undo::at_end(s, instance);
        // An attachment on another host is not covered by this instance's proof.
        for disk in s.held.iter().filter(|d| {
            attachment(d).is_some_and(|a| a.owner.uid == owner && a.host == instance.spec.host)
        }) {
            actions.push(Action::Detach {
                disk: name(&disk.metadata).to_owned(),
                owner_uid: owner.to_owned(),
                undo: undo::after(disk, ends),
            });
        }
        actions.push(Action::ReleaseInstance);
    }
    End { actions, proved }
}

/// Disks of the machine without an instance: each is released on a proof, or a `Stopped` instance is ordered to get one.
pub(super) fn prove_held(s: &Snapshot<'_>, vm: &VirtualMachine) -> End {
    let mut actions = Vec::new();
    let mut unproved = None;
    for disk in s.held {
        let Some(a) = attachment(disk).filter(|a| a.owner.uid == uid(&vm.metadata)) else {
            continue;
        };
        if s.never_ordered || ended_by_word(s, &a.host, a.host_epoch) {
            actions.push(Action::Detach {
                disk: name(&disk.metadata).to_owned(),
                owner_uid: a.owner.uid.clone(),
                undo: None,
            });
        } else {
            unproved = Some(a);
        }
    }
    if let Some(a) = unproved.filter(|_| vanished(s, vm).is_none()) {
        let config = resolve::bare_config(vm);
        let host_epoch = host(s, &a.host)
            .and_then(HostView::epoch)
            .map_or(a.host_epoch, |epoch| epoch.max(a.host_epoch));
        actions.push(Action::CreateInstance(Box::new(
            VirtualMachineInstanceSpec {
                host: a.host.clone(),
                host_epoch,
                power: Power::Stopped,
                restart_token: None,
                config_revision: config_revision(&config),
                config,
            },
        )));
    }
    End {
        proved: unproved.is_none(),
        actions,
    }
}
