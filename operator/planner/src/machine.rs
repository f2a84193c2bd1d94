//! The core of VirtualMachines.
//!
//! One promise rules it: a disk's attachment is given before anything may open the disk, and taken away only on a
//! proof that its holder has ended. The proofs are `status.released` on an instance that can no longer be started
//! (it is being deleted, or was ordered to be `Stopped`, and neither is ever taken back), and a person's word that
//! the host is off (`Host.spec.outOfService`).
//!
//! An attachment without an instance is one of two things. Where the status never told of an instance, the operator
//! ended between giving the attachment and creating the instance: the start goes on, or an instance ordered to be
//! `Stopped` on that host brings the proof. Where it did, somebody took the instance away by hand: its guest may still
//! run, another instance's proof would say nothing of it, and only the person's word that the host is off counts.

mod ending;
mod reservation;
pub(crate) mod undo;

use crate::{
    identity::{ObjectKey, deleting, has_finalizer, name, uid},
    machine_status::{self as status, Situation},
    memory,
    placement::{self, HostView},
    refusal::{Class, Refusal, reason},
    resolve::{self, References, Resolved, attached_to, config_revision},
};
use ending::{end, prove_held, vanished};
use paddock_crds::{
    VirtualHardDisk, VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceSpec,
    VirtualMachineStatus,
    names::MACHINE_FINALIZER,
    reference::Time,
    virtual_hard_disk::{Attachment, AttachmentOwner, DiskState, OwnerKind, UndoDisk, UndoState},
    virtual_machine::{RunPolicy, UndoMode},
    virtual_machine_instance::Power,
};
pub use reservation::Reservation;
use reservation::reserve;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// On an instance: guest memory in MiB that its host still gives, while that is more than its spec asks for.
pub const HELD_MEMORY_ANNOTATION: &str = "paddock.dev/held-memory-mebibytes";

/// All that one machine's decision depends on.
#[derive(Debug)]
pub struct Snapshot<'a> {
    /// Namespace and name of the machine and of its instance.
    pub key: &'a ObjectKey,
    /// The machine.
    pub vm: Option<&'a VirtualMachine>,
    /// The instance of its name, whoever owns it.
    pub instance: Option<&'a VirtualMachineInstance>,
    /// Disks attached to the machine, or to the machine that owns the instance.
    pub held: &'a [Arc<VirtualHardDisk>],
    /// What its spec refers to.
    pub references: References<'a>,
    /// The hosts.
    pub hosts: &'a [HostView],
    /// The host that its last plan took memory of.
    pub reserved: Option<&'a str>,
    /// Pools that hosts share.
    pub shared_pools: &'a BTreeSet<String>,
    /// The attachments of this machine were given by this very process, and no instance was ever asked for since.
    pub never_ordered: bool,
    /// The time of a condition's transition.
    pub now: &'a Time,
}

/// One step, to be taken in order; a step that fails ends the plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Put the finalizer on the machine.
    AddFinalizer,
    /// Bind an unmade disk to a host.
    Bind {
        /// Name of the VirtualHardDisk.
        disk: String,
        /// The host.
        host: String,
    },
    /// Give a disk's attachment, or stamp it with its host's new epoch, by compare-and-swap.
    Attach {
        /// Name of the VirtualHardDisk.
        disk: String,
        /// The attachment.
        attachment: Attachment,
        /// The undo disk that the disk gets with it. One that it has already only passes to the owner.
        undo: Option<UndoDisk>,
    },
    /// Create the instance.
    CreateInstance(Box<VirtualMachineInstanceSpec>),
    /// Replace the instance's spec.
    UpdateInstance {
        /// The spec.
        spec: Box<VirtualMachineInstanceSpec>,
        /// The value of [`HELD_MEMORY_ANNOTATION`], or that it is taken away.
        held_memory: Option<i64>,
    },
    /// Delete the instance: the order to stop that is never taken back.
    DeleteInstance,
    /// Take a disk's attachment away from an owner that is proved to have ended.
    Detach {
        /// Name of the VirtualHardDisk.
        disk: String,
        /// UID of the owner.
        owner_uid: String,
        /// Its undo disk from then on, if that changes.
        undo: Option<UndoDisk>,
    },
    /// Order the undo disk of a disk that nobody holds to be committed or discarded.
    SettleUndo {
        /// Name of the VirtualHardDisk.
        disk: String,
        /// Committing or Discarding.
        state: UndoState,
    },
    /// Take the finalizer off the instance.
    ReleaseInstance,
    /// Take the finalizer off the machine.
    RemoveFinalizer,
}

/// What to do for one machine, and what to say of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The steps.
    pub actions: Vec<Action>,
    /// The status once they are taken; none without a machine.
    pub status: Option<VirtualMachineStatus>,
    /// What the steps take.
    pub reservation: Option<Reservation>,
    /// It waits for something that other objects than its own may free: ask again when a host or a machine changes.
    pub pending: bool,
}

/// The UID of an instance's machine.
#[must_use]
pub fn owner_uid(instance: &VirtualMachineInstance) -> &str {
    instance
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true))
        .map(|o| o.uid.as_str())
        .unwrap_or_default()
}

/// Guest memory in MiB that an instance keeps from others although its spec asks for less.
#[must_use]
pub fn held_memory(instance: &VirtualMachineInstance) -> Option<i64> {
    instance
        .metadata
        .annotations
        .as_ref()?
        .get(HELD_MEMORY_ANNOTATION)?
        .parse()
        .ok()
}

/// Bytes of its host's memory that an instance takes. One that was made for a proof is `Stopped` from the beginning
/// (a running one is deleted, never ordered to be `Stopped`) and takes none.
#[must_use]
pub fn instance_memory(instance: &VirtualMachineInstance) -> u64 {
    if instance.spec.power == Power::Stopped {
        return 0;
    }
    let asked = instance.spec.config.memory_mebibytes;
    memory::need_of_mebibytes(held_memory(instance).map_or(asked, |held| held.max(asked)))
}

/// Decides for one machine.
#[must_use]
pub fn decide(s: &Snapshot<'_>) -> Plan {
    let Some(vm) = s.vm else {
        // The machine is gone, its finalizer perhaps forced off: what runs is ended, and its disks wait for the proof.
        return Plan {
            actions: s.instance.map(|i| end(s, i).actions).unwrap_or_default(),
            ..Plan::default()
        };
    };
    if let Some(instance) = s.instance.filter(|i| owner_uid(i) != uid(&vm.metadata)) {
        return after_another(s, vm, instance);
    }
    if deleting(&vm.metadata) {
        return delete(s, vm);
    }
    let mut plan = match (s.instance, vm.spec.run_policy) {
        (Some(instance), policy) => {
            let ends = deleting(&instance.metadata)
                || instance.spec.power == Power::Stopped
                || policy == RunPolicy::Stopped
                || ended_by_word(s, &instance.spec.host, instance.spec.host_epoch);
            if ends {
                stop(s, vm, instance)
            } else {
                keep(s, vm, instance)
            }
        }
        (None, RunPolicy::Stopped) => off(s, vm),
        (None, _) => start(s, vm),
    };
    if !has_finalizer(&vm.metadata, MACHINE_FINALIZER) {
        plan.actions.insert(0, Action::AddFinalizer);
    }
    plan
}

fn host<'a>(s: &Snapshot<'a>, name: &str) -> Option<&'a HostView> {
    s.hosts.iter().find(|h| h.name() == name)
}

/// Whether a person's word has ended everything of an epoch on a host.
fn ended_by_word(s: &Snapshot<'_>, name: &str, host_epoch: i64) -> bool {
    host(s, name)
        .and_then(|h| h.ended_below)
        .is_some_and(|below| host_epoch < below)
}

fn attachment(disk: &VirtualHardDisk) -> Option<&Attachment> {
    disk.status.as_ref()?.attachment.as_ref()
}

/// An instance of an earlier machine with this name is still there.
fn after_another(s: &Snapshot<'_>, vm: &VirtualMachine, instance: &VirtualMachineInstance) -> Plan {
    let mut actions = end(s, instance).actions;
    // A machine in deletion never started: the instance that stands in its way is not its own.
    let mine_held = s.held.iter().any(|d| attached_to(d, uid(&vm.metadata)));
    if deleting(&vm.metadata) && !mine_held && has_finalizer(&vm.metadata, MACHINE_FINALIZER) {
        actions.push(Action::RemoveFinalizer);
    }
    Plan {
        actions,
        status: Some(status::of(
            s,
            vm,
            Situation::Refused(&[Refusal::waits(
                "PreviousInstanceEnding",
                format!(
                    "waits for host {} to prove that the guest of an earlier machine with this name has ended",
                    instance.spec.host
                ),
            )]),
        )),
        ..Plan::default()
    }
}

fn delete(s: &Snapshot<'_>, vm: &VirtualMachine) -> Plan {
    let mut ending = match s.instance {
        Some(instance) => end(s, instance),
        None => prove_held(s, vm),
    };
    let covered = |disk: &Arc<VirtualHardDisk>| {
        ending.actions.iter().any(
            |a| matches!(a, Action::Detach { disk: name_, .. } if *name_ == name(&disk.metadata)),
        )
    };
    let left = s
        .held
        .iter()
        .filter(|d| attached_to(d, uid(&vm.metadata)))
        .any(|d| !covered(d));
    if ending.proved && !left && has_finalizer(&vm.metadata, MACHINE_FINALIZER) {
        ending.actions.extend(undo::settle_deleted(s, vm));
        ending.actions.push(Action::RemoveFinalizer);
    }
    Plan {
        actions: ending.actions,
        status: Some(status::of(s, vm, Situation::Deleting)),
        ..Plan::default()
    }
}

fn stop(s: &Snapshot<'_>, vm: &VirtualMachine, instance: &VirtualMachineInstance) -> Plan {
    let ending = end(s, instance);
    Plan {
        status: Some(status::of(
            s,
            vm,
            if ending.proved && vm.spec.run_policy == RunPolicy::Stopped {
                Situation::Off
            } else {
                Situation::Stopping(instance)
            },
        )),
        actions: ending.actions,
        ..Plan::default()
    }
}

fn off(s: &Snapshot<'_>, vm: &VirtualMachine) -> Plan {
    let ending = prove_held(s, vm);
    let situation = match vanished(s, vm) {
        Some(host) => Situation::Vanished(host),
        None => Situation::Off,
    };
    let mut plan = Plan {
        actions: ending.actions,
        status: Some(status::of(s, vm, situation)),
        ..Plan::default()
    };
    if nothing_held(s, vm) {
        plan.actions.extend(undo::settle(s, vm));
        acted_upon_request(vm, &mut plan);
    }
    plan
}

fn nothing_held(s: &Snapshot<'_>, vm: &VirtualMachine) -> bool {
    !s.held.iter().any(|d| attached_to(d, uid(&vm.metadata)))
}

/// Notes that what the request asks for is ordered by the plan's actions, which come before the status.
fn acted_upon_request(vm: &VirtualMachine, plan: &mut Plan) {
    if let Some(status) = &mut plan.status {
        let request = vm.spec.undo_disks.request.as_ref();
        status.undo_request_token = request.map(|r| r.token.clone());
    }
}

fn power(policy: RunPolicy) -> Power {
    match policy {
        RunPolicy::Paused => Power::Paused,
        RunPolicy::Running => Power::Running,
        RunPolicy::Stopped => Power::Stopped,
    }
}

fn next_attachment(
    vm: &VirtualMachine,
    disk: &VirtualHardDisk,
    host: &str,
    epoch: i64,
) -> Attachment {
    let disk_epoch = disk.status.as_ref().map_or(0, |s| s.disk_epoch) + 1;
    Attachment {
        owner: AttachmentOwner {
            kind: OwnerKind::VirtualMachine,
            name: name(&vm.metadata).to_owned(),
            uid: uid(&vm.metadata).to_owned(),
        },
        host: host.to_owned(),
        host_epoch: epoch,
        disk_epoch,
    }
}

/// The disk epoch and the undo disk of each disk that a machine holds.
type Held = BTreeMap<String, (i64, Option<UndoDisk>)>;

/// The attachments to give so that `vm` holds each of `disks` on `host` under `epoch`, and the disk epochs after that.
fn attach(
    s: &Snapshot<'_>,
    vm: &VirtualMachine,
    resolved: &Resolved,
    host: &str,
    epoch: i64,
    with_undo: bool,
) -> (Vec<Action>, Held) {
    let mut actions = stamp(s, vm, epoch);
    let mut epochs = BTreeMap::new();
    for found in &resolved.disks {
        let disk = name(&found.disk.metadata).to_owned();
        match attachment(&found.disk).filter(|a| a.owner.uid == uid(&vm.metadata)) {
            Some(a) => {
                let undo = found.disk.status.as_ref().and_then(|s| s.undo.clone());
                epochs.insert(disk, (a.disk_epoch, undo));
            }
            None => {
                let attachment = next_attachment(vm, &found.disk, host, epoch);
                let undo = undo::begin(vm, &found.disk, attachment.disk_epoch, with_undo);
                epochs.insert(disk.clone(), (attachment.disk_epoch, undo.clone()));
                actions.push(Action::Attach {
                    disk,
                    attachment,
                    undo,
                });
            }
        }
    }
    (actions, epochs)
}

/// Stamps the machine's attachments with its host's epoch: the host rejoined and took its guests over.
fn stamp(s: &Snapshot<'_>, vm: &VirtualMachine, epoch: i64) -> Vec<Action> {
    s.held
        .iter()
        .filter_map(|disk| {
            let a = attachment(disk)?;
            (a.owner.uid == uid(&vm.metadata) && a.host_epoch < epoch).then(|| Action::Attach {
                disk: name(&disk.metadata).to_owned(),
                attachment: Attachment {
                    host_epoch: epoch,
                    ..a.clone()
                },
                undo: None,
            })
        })
        .collect()
}

/// An instance that goes on: its spec follows the machine's.
fn keep(s: &Snapshot<'_>, vm: &VirtualMachine, instance: &VirtualMachineInstance) -> Plan {
    let mut spec = instance.spec.clone();
    let mut actions = Vec::new();
    let mut blocked: Vec<Refusal> = Vec::new();
    let mut reservation = None;
    let resolved = resolve::resolve(vm, &s.references);
    let view = host(s, &instance.spec.host);
    let epoch = view.and_then(HostView::epoch);
    spec.power = power(vm.spec.run_policy);
    if let Some(epoch) = epoch {
        spec.host_epoch = epoch.max(spec.host_epoch);
        actions = stamp(s, vm, spec.host_epoch);
    }
    blocked.extend(resolved.refusals.iter().chain(&resolved.waits).cloned());
    if resolved.refusals.is_empty()
        && let (Some(view), Some(_)) = (view, epoch)
    {
        let alone = HostView {
            allocated: view.allocated.saturating_sub(instance_memory(instance)),
            ..view.clone()
        };
        let need = resolved.need(
            vm,
            |pool| s.shared_pools.contains(pool),
            Some(view.name().to_owned()),
        );
        match placement::refuse(&alone, &need) {
            // Its disks are made elsewhere than by a bind of its own: that is waited for, and then looked at again.
            Some(_) if !resolved.waits.is_empty() && bind(&need, view.name()).is_empty() => {}
            // A disk that it was given since it started is made where it runs.
            None if !resolved.waits.is_empty() => actions.extend(bind(&need, view.name())),
            // A token that is taken away asks for nothing.
            Some(why)
                if vm.spec.restart_token.is_some()
                    && vm.spec.restart_token != instance.spec.restart_token =>
            {
                // The restart that was asked for cannot be had here: end it, and place the new configuration anew.
                let mut plan = stop(s, vm, instance);
                plan.pending = true;
                if let Some(status) = &mut plan.status {
                    status::note_move(s, vm, status, &instance.spec.host, &why);
                }
                return plan;
            }
            Some(why) => blocked.push(Refusal::waits(
                reason::UNSCHEDULABLE,
                format!(
                    "the changed machine does not fit its host and is placed anew at its next start: {}: {why}",
                    view.name()
                ),
            )),
            None => {
                // All of its disks have undo disks, or none has, until it is next started from off.
                let with_undo = instance.spec.config.disks.iter().any(|d| d.undo.is_some());
                let (steps, held) =
                    attach(s, vm, &resolved, view.name(), spec.host_epoch, with_undo);
                let config = resolved.config(vm, |disk| {
                    held.get(name(&disk.metadata)).cloned().unwrap_or_default()
                });
                if let Some(config) = config {
                    actions = steps;
                    reservation = Some(reserve(view, &need, &resolved));
                    spec.config_revision = config_revision(&config);
                    spec.config = config;
                }
            }
        }
    }
    // Who gives a machine a new disk and asks for its restart in one go means one with the disk.
    if !being_made(&resolved) {
        spec.restart_token.clone_from(&vm.spec.restart_token);
    }
    // The deadline is not part of a start: it applies to the next stop, whatever else is blocked.
    spec.config.stop_deadline_seconds = vm.spec.stop_deadline_seconds;
    let held = held_after(instance, &spec);
    if spec != instance.spec || held != held_memory(instance) {
        actions.push(Action::UpdateInstance {
            spec: Box::new(spec.clone()),
            held_memory: held,
        });
    }
    Plan {
        // Without a step, the API shows already all that it takes.
        reservation: reservation.filter(|_| !actions.is_empty()),
        actions,
        status: Some(status::of(
            s,
            vm,
            Situation::Kept {
                instance,
                spec: &spec,
                resolved: &resolved,
                blocked: &blocked,
            },
        )),
        pending: !blocked.is_empty(),
    }
}

/// The memory in MiB to keep from others beyond what `spec` asks for: a guest gives none back before it is started anew.
fn held_after(instance: &VirtualMachineInstance, spec: &VirtualMachineInstanceSpec) -> Option<i64> {
    let asked = instance.spec.config.memory_mebibytes;
    let started = instance
        .status
        .as_ref()
        .and_then(|s| s.started_config_revision.as_deref());
    let now = if started == Some(&*instance.spec.config_revision) {
        asked
    } else {
        held_memory(instance).map_or(asked, |held| held.max(asked))
    };
    (now > spec.config.memory_mebibytes).then_some(now)
}

/// A machine without an instance that should run.
fn start(s: &Snapshot<'_>, vm: &VirtualMachine) -> Plan {
    let held: Vec<&Attachment> = s
        .held
        .iter()
        .filter_map(|d| attachment(d))
        .filter(|a| a.owner.uid == uid(&vm.metadata))
        .collect();
    if held.iter().any(|a| ended_by_word(s, &a.host, a.host_epoch)) {
        // What was given on a host that is off is taken back first; the next look places it anew.
        return Plan {
            actions: prove_held(s, vm).actions,
            status: Some(status::of(s, vm, Situation::Off)),
            pending: true,
            ..Plan::default()
        };
    }
    if let Some(host) = vanished(s, vm) {
        return Plan {
            status: Some(status::of(s, vm, Situation::Vanished(host))),
            pending: true,
            ..Plan::default()
        };
    }
    if nothing_held(s, vm) {
        let settled = undo::settle(s, vm);
        if !settled.is_empty() {
            let refusal = Refusal::waits(
                reason::VIRTUAL_HARD_DISK_NOT_READY,
                "its undo disks are committed or discarded first".to_owned(),
            );
            let mut plan = refused(s, vm, &[refusal], None);
            plan.actions = settled;
            acted_upon_request(vm, &mut plan);
            return plan;
        }
    }
    let mut plan = place(s, vm, &held);
    if nothing_held(s, vm) {
        acted_upon_request(vm, &mut plan);
    }
    plan
}

/// A machine without an instance that may start: finds its host.
fn place(s: &Snapshot<'_>, vm: &VirtualMachine, held: &[&Attachment]) -> Plan {
    let resolved = resolve::resolve(vm, &s.references);
    if !resolved.refusals.is_empty() {
        return refused(s, vm, &resolved.refusals, None);
    }
    let mut need = resolved.need(
        vm,
        |pool| s.shared_pools.contains(pool),
        held.first().map(|a| a.host.clone()),
    );
    need.reserved = s.reserved.map(str::to_owned);
    let view = match placement::place(s.hosts, &need) {
        Ok(view) => view,
        Err(none) => {
            let refusal = Refusal::waits(
                reason::UNSCHEDULABLE,
                format!("no host can run it: {}", none.message()),
            );
            return refused(s, vm, &[refusal], None);
        }
    };
    let reservation = Some(reserve(view, &need, &resolved));
    let mut actions = Vec::new();
    if !resolved.waits.is_empty() {
        let mut plan = refused(s, vm, &resolved.waits, Some(view.name()));
        plan.actions = bind(&need, view.name());
        plan.reservation = reservation.map(|r| Reservation {
            // Nobody knows when a disk that failed can be used: others need not wait for that.
            memory: if any_failed(&resolved) { 0 } else { r.memory },
            ..r
        });
        return plan;
    }
    // `place` answers with Ready hosts only.
    let epoch = view.epoch().unwrap_or_default();
    let with_undo = vm.spec.undo_disks.mode == UndoMode::Enabled;
    let (steps, held) = attach(s, vm, &resolved, view.name(), epoch, with_undo);
    actions.extend(steps);
    let config = resolved.config(vm, |disk| {
        held.get(name(&disk.metadata)).cloned().unwrap_or_default()
    });
    let Some(config) = config else {
        // Disks without a file are among `waits`, so this is not reached.
        return refused(s, vm, &[], Some(view.name()));
    };
    let spec = VirtualMachineInstanceSpec {
        host: view.name().to_owned(),
        host_epoch: epoch,
        power: power(vm.spec.run_policy),
        restart_token: vm.spec.restart_token.clone(),
        config_revision: config_revision(&config),
        config,
    };
    let status = status::of(s, vm, Situation::Starting(&spec, &resolved));
    actions.push(Action::CreateInstance(Box::new(spec)));
    Plan {
        actions,
        status: Some(status),
        reservation,
        pending: false,
    }
}

/// Has the disks that are nowhere yet made on the machine's host.
fn bind(need: &placement::Need, host: &str) -> Vec<Action> {
    let unbound = need.disks.iter();
    let unbound = unbound.filter(|disk| disk.place == placement::DiskPlace::Unbound);
    unbound
        .map(|disk| Action::Bind {
            disk: disk.name.clone(),
            host: host.to_owned(),
        })
        .collect()
}

/// Whether all that a machine waits for may be a disk that is being made.
fn being_made(resolved: &Resolved) -> bool {
    let unmade = |d: &resolve::ResolvedDisk| {
        let status = d.disk.status.as_ref();
        status.is_none_or(|s| s.file.is_none())
    };
    resolved.refusals.is_empty() && resolved.disks.iter().any(unmade) && !any_failed(resolved)
}

/// Whether a disk of a machine cannot be used until something is changed.
fn any_failed(resolved: &Resolved) -> bool {
    resolved.disks.iter().any(|d| {
        let status = d.disk.status.as_ref();
        status.is_some_and(|s| s.state == DiskState::Failed)
    })
}

fn refused(
    s: &Snapshot<'_>,
    vm: &VirtualMachine,
    refusals: &[Refusal],
    scheduled: Option<&str>,
) -> Plan {
    let situation = match scheduled {
        Some(host) => Situation::Placed(host, refusals),
        None => Situation::Refused(refusals),
    };
    Plan {
        status: Some(status::of(s, vm, situation)),
        pending: true,
        ..Plan::default()
    }
}

/// Whether any refusal needs somebody to change something.
pub(crate) fn any_wrong(refusals: &[Refusal]) -> bool {
    refusals.iter().any(|r| r.class == Class::Wrong)
}
