//! What a machine's status says.

use crate::{
    conditions::{Answer, Writer},
    identity::{machine_uuid, name, uid},
    machine::{Snapshot, any_wrong, undo},
    memory,
    placement::{Availability, HostView},
    refusal::{Refusal, reason},
    resolve::{Resolved, attached_to},
};
use paddock_crds::{
    VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceSpec, VirtualMachineStatus,
    names::condition::{DELETING, READY, RESTART_REQUIRED, SCHEDULED, UNDO_DISKS_PENDING},
    virtual_machine::{AssignedAdapter, MachineState},
    virtual_machine_instance::{InstancePhase, Power},
};

/// Where a machine is.
pub(crate) enum Situation<'a> {
    /// Off, as it should be.
    Off,
    /// It cannot start.
    Refused(&'a [Refusal]),
    /// It has a host and waits for its disks there.
    Placed(&'a str, &'a [Refusal]),
    /// Its instance is being created.
    Starting(&'a VirtualMachineInstanceSpec, &'a Resolved),
    /// Its instance goes on.
    Kept {
        instance: &'a VirtualMachineInstance,
        spec: &'a VirtualMachineInstanceSpec,
        resolved: &'a Resolved,
        blocked: &'a [Refusal],
    },
    /// Somebody took its instance away by hand; its disks are still attached on this host.
    Vanished(&'a str),
    /// Its instance is being ended.
    Stopping(&'a VirtualMachineInstance),
    /// It is being deleted.
    Deleting,
}

fn joined(refusals: &[Refusal]) -> String {
    let all: Vec<&str> = refusals.iter().map(|r| r.message.as_str()).collect();
    all.join("; ")
}

fn writer<'a>(
    s: &'a Snapshot<'_>,
    vm: &VirtualMachine,
    status: &'a mut VirtualMachineStatus,
) -> Writer<'a> {
    Writer {
        conditions: &mut status.conditions,
        generation: vm.metadata.generation,
        now: s.now,
    }
}

/// The status of a machine in its situation.
pub(crate) fn of(
    s: &Snapshot<'_>,
    vm: &VirtualMachine,
    situation: Situation<'_>,
) -> VirtualMachineStatus {
    let mut status = vm.status.clone().unwrap_or_default();
    status.observed_generation = vm.metadata.generation;
    status.uuid = Some(machine_uuid(uid(&vm.metadata)));
    status.memory_overhead_bytes = i64::try_from(memory::overhead(vm.spec.memory.bytes())).ok();
    status.undo_disks = undo::told(s, vm);
    let pending = match &situation {
        Situation::Kept { instance, .. } => {
            undo::pending(vm, instance).map(|(why, message)| (why, message.to_owned()))
        }
        _ => undo::not_committed(s, vm).map(|message| ("DiskReadOnly", message)),
    };
    let mut c = writer(s, vm, &mut status);
    match pending {
        Some((why, message)) => c.set(UNDO_DISKS_PENDING, Answer::True, why, message),
        None => c.remove(UNDO_DISKS_PENDING),
    }
    // The instance is gone once it has ended: how it ended is kept here.
    let ended = s.instance.and_then(|i| i.status.as_ref());
    if let Some(step) = ended.and_then(|i| i.stop_step.clone()) {
        status.stop_step = Some(step);
    }
    match situation {
        Situation::Off => off(s, vm, &mut status),
        Situation::Refused(refusals) => refused(s, vm, &mut status, None, refusals),
        Situation::Placed(host, refusals) => refused(s, vm, &mut status, Some(host), refusals),
        Situation::Starting(spec, resolved) => {
            assign(&mut status, &resolved.assigned);
            status.host = Some(spec.host.clone());
            not_running(&mut status, MachineState::Starting);
            status.restarts = Some(0);
            let mut c = writer(s, vm, &mut status);
            c.set(SCHEDULED, Answer::True, "Placed", placed(&spec.host));
            c.remove(RESTART_REQUIRED);
            let message = format!("host {} is starting it", spec.host);
            c.set(READY, Answer::False, "Starting", message);
        }
        Situation::Kept {
            instance,
            spec,
            resolved,
            blocked,
        } => kept(s, vm, &mut status, instance, spec, resolved, blocked),
        Situation::Vanished(host) => {
            status.state = MachineState::Pending;
            status.started_at = None;
            let message = format!(
                "its instance was taken away by hand, and its guest may still run on host {host}: its disks stay attached there. Turn the host off, then set spec.outOfService.token on Host \"{host}\""
            );
            let mut c = writer(s, vm, &mut status);
            c.remove(RESTART_REQUIRED);
            c.set(
                SCHEDULED,
                Answer::False,
                "InstanceVanished",
                "its end is not proved",
            );
            c.set(READY, Answer::False, "InstanceVanished", message);
        }
        Situation::Stopping(instance) => {
            status.host = Some(instance.spec.host.clone());
            status.state = MachineState::Stopping;
            let message = waits_for_end(s, &instance.spec.host);
            let mut c = writer(s, vm, &mut status);
            c.remove(RESTART_REQUIRED);
            c.set(READY, Answer::False, "Stopping", message);
        }
        Situation::Deleting => being_deleted(s, vm, &mut status),
    }
    status
}

/// Adds to a stopping machine's status why it leaves its host.
pub(crate) fn note_move(
    s: &Snapshot<'_>,
    vm: &VirtualMachine,
    status: &mut VirtualMachineStatus,
    host: &str,
    why: &str,
) {
    writer(s, vm, status).set(
        SCHEDULED,
        Answer::False,
        reason::UNSCHEDULABLE,
        format!(
            "it is placed anew, since the restart that was asked for does not fit: {host}: {why}"
        ),
    );
}

fn placed(host: &str) -> String {
    format!("placed on host {host}")
}

fn not_running(status: &mut VirtualMachineStatus, state: MachineState) {
    status.state = state;
    status.started_at = None;
    status.restarts = None;
}

fn assign(status: &mut VirtualMachineStatus, assigned: &[AssignedAdapter]) {
    status.network_adapters = assigned.to_vec();
    status.ip_address = assigned.iter().find_map(|a| a.ip_address.clone());
}

fn off(s: &Snapshot<'_>, vm: &VirtualMachine, status: &mut VirtualMachineStatus) {
    not_running(status, MachineState::Stopped);
    let how = match status.stop_step.as_deref() {
        Some("PowerButton") => "; its guest shut down when asked",
        Some("GuestPowerOff") => "; its guest had shut down by itself",
        Some("Kill" | "Quit") => "; it was turned off, because its guest did not shut down in time",
        _ => "",
    };
    let mut c = writer(s, vm, status);
    c.remove(RESTART_REQUIRED);
    c.remove(SCHEDULED);
    let message = format!("it is off, as runPolicy asks{how}");
    c.set(READY, Answer::True, "Stopped", message);
}

fn refused(
    s: &Snapshot<'_>,
    vm: &VirtualMachine,
    status: &mut VirtualMachineStatus,
    host: Option<&str>,
    refusals: &[Refusal],
) {
    let state = if any_wrong(refusals) {
        MachineState::Failed
    } else {
        MachineState::Pending
    };
    not_running(status, state);
    // What somebody has to mend comes first.
    let first = refusals
        .iter()
        .find(|r| r.class == crate::refusal::Class::Wrong)
        .or(refusals.first());
    let why = first.map_or("Pending", |r| r.reason);
    let mut c = writer(s, vm, status);
    c.remove(RESTART_REQUIRED);
    match host {
        Some(host) => c.set(SCHEDULED, Answer::True, "Placed", placed(host)),
        None if why == reason::UNSCHEDULABLE => {
            c.set(SCHEDULED, Answer::False, why, joined(refusals));
        }
        None => c.set(
            SCHEDULED,
            Answer::False,
            why,
            "no host is chosen before its references are in order",
        ),
    }
    c.set(READY, Answer::False, why, joined(refusals));
}

fn kept(
    s: &Snapshot<'_>,
    vm: &VirtualMachine,
    status: &mut VirtualMachineStatus,
    instance: &VirtualMachineInstance,
    spec: &VirtualMachineInstanceSpec,
    resolved: &Resolved,
    blocked: &[Refusal],
) {
    let unset = Default::default();
    let reported = instance.status.as_ref().unwrap_or(&unset);
    let started = reported.started_config_revision.as_deref();
    let differs = started.is_some_and(|r| r != spec.config_revision) || !blocked.is_empty();
    status.host = Some(spec.host.clone());
    status.started_at.clone_from(&reported.started_at);
    status.restarts = Some(reported.restarts);
    // Until its next start the guest has the addresses it was started with.
    if !differs {
        assign(status, &resolved.assigned);
    }
    let wish = spec.power;
    let host = spec.host.as_str();
    let why = |default: &'static str| reported.reason.as_deref().unwrap_or(default).to_owned();
    let told = |default: &str| {
        reported
            .message
            .clone()
            .unwrap_or_else(|| default.to_owned())
    };
    let token_waits = spec.restart_token.is_some() && spec.restart_token != reported.restart_token;
    let (state, answer, reason, message) = match (reported.phase, wish) {
        (InstancePhase::Pending | InstancePhase::Starting, _) => (
            MachineState::Starting,
            Answer::False,
            why("Starting"),
            told(&format!("host {host} is starting it")),
        ),
        (InstancePhase::Running | InstancePhase::Paused, _) if token_waits => (
            MachineState::Restarting,
            Answer::False,
            "RestartAsked".to_owned(),
            "restartToken changed: the guest is shut down and started once".to_owned(),
        ),
        (InstancePhase::Running, Power::Running) => (
            MachineState::Running,
            Answer::True,
            "Running".to_owned(),
            format!("runs on host {host}"),
        ),
        (InstancePhase::Paused, Power::Paused) => (
            MachineState::Paused,
            Answer::True,
            "Paused".to_owned(),
            format!("its processors are frozen on host {host}, as runPolicy asks"),
        ),
        (InstancePhase::Running, _) => (
            MachineState::Running,
            Answer::False,
            "Pausing".to_owned(),
            format!("host {host} is to freeze its processors"),
        ),
        // Its host paused it, since what it writes has no room: it goes on by itself.
        (InstancePhase::Paused, Power::Running) if reported.reason.is_some() => (
            MachineState::Paused,
            Answer::False,
            why("PoolFull"),
            told("its host has paused it until there is room for what it writes"),
        ),
        (InstancePhase::Paused, _) => (
            MachineState::Paused,
            Answer::False,
            "Resuming".to_owned(),
            format!("host {host} is to let its processors run"),
        ),
        (InstancePhase::Stopping | InstancePhase::Stopped, _) => (
            MachineState::Stopping,
            Answer::False,
            why("Stopping"),
            told("the guest was asked to shut down"),
        ),
        (InstancePhase::Restarting, _) => (
            MachineState::Restarting,
            Answer::False,
            why("Restarting"),
            told("the guest ended by itself and is started again"),
        ),
        (InstancePhase::Failed, _) => (
            MachineState::Failed,
            Answer::False,
            why("Failed"),
            told("its host could not start it and tries again"),
        ),
    };
    status.state = state;
    let silent = host_refusal(s, host);
    let mut c = writer(s, vm, status);
    c.set(SCHEDULED, Answer::True, "Placed", placed(host));
    match silent {
        Some(message) => c.set(
            READY,
            Answer::Unknown,
            "HostNotReady",
            format!("host {host} is not ready, and its guest may still run: {message}"),
        ),
        None => c.set(READY, answer, &reason, message),
    }
    if differs {
        let (why, message) = match blocked.first() {
            Some(first) => (first.reason, joined(blocked)),
            None => (
                "SpecChanged",
                "the running guest differs from the spec until its next start: change restartToken, or stop and start it".to_owned(),
            ),
        };
        c.set(RESTART_REQUIRED, Answer::True, why, message);
    } else if started.is_some() {
        c.set(
            RESTART_REQUIRED,
            Answer::False,
            "UpToDate",
            "the running guest is as the spec says",
        );
    }
}

fn host_refusal(s: &Snapshot<'_>, host: &str) -> Option<String> {
    match s.hosts.iter().find(|h| h.name() == host) {
        None => Some("there is no such Host".to_owned()),
        Some(HostView {
            availability: Availability::NotReady { message, .. },
            ..
        }) => Some(message.clone()),
        Some(_) => None,
    }
}

/// What the end of a guest on `host` waits for, and what a person can do if the host does not answer.
fn waits_for_end(s: &Snapshot<'_>, host: &str) -> String {
    match host_refusal(s, host) {
        None => format!("waits for host {host} to prove that the guest has ended"),
        Some(why) => format!(
            "waits for host {host} to prove that the guest has ended, but the host is not ready: {why}. Start its agent again, or if the host is off for good, set spec.outOfService.token on Host \"{host}\" to force it"
        ),
    }
}

fn being_deleted(s: &Snapshot<'_>, vm: &VirtualMachine, status: &mut VirtualMachineStatus) {
    status.state = MachineState::Terminating;
    let held: Vec<String> = s
        .held
        .iter()
        .filter(|d| attached_to(d, uid(&vm.metadata)))
        .map(|d| name(&d.metadata).to_owned())
        .collect();
    let host = s.instance.map(|i| i.spec.host.clone()).or_else(|| {
        let attachment = s.held.first()?.status.as_ref()?.attachment.as_ref()?;
        Some(attachment.host.clone())
    });
    let message = match &host {
        None => "nothing runs any more".to_owned(),
        Some(host) => {
            let disks = match &held[..] {
                [] => String::new(),
                names => format!(
                    " (its disks stay attached until then: {})",
                    names.join(", ")
                ),
            };
            format!("{}{disks}", waits_for_end(s, host))
        }
    };
    let mut c = writer(s, vm, status);
    c.remove(RESTART_REQUIRED);
    c.set(READY, Answer::False, "Deleting", "it is being deleted");
    let why = if host.is_some() {
        "WaitingForHost"
    } else {
        "Ended"
    };
    c.set(DELETING, Answer::True, why, message);
}
