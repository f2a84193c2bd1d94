//! Scripts: what happens, and exactly what the core does about it.

mod restarts;
mod runs;
mod starts;
mod stops;

use super::core::{
    Action, DiskUse, End, Event, Failure, Found, Guest, InstanceCore, Now, Pause, QUIET, RETRY,
    START_LIMIT, Started, Wish,
};
use crate::{clock::Boottime, lease::Held};
use jiff::Timestamp;
use paddock_crds::{
    VirtualMachineInstanceStatus as Status,
    virtual_machine_instance::{InstanceDiskStatus, InstancePhase as Phase, Power, Released},
};

const EPOCH: i64 = 3;
const WALL: &str = "2026-01-02T03:04:05Z";

fn boot(milliseconds: u64) -> Boottime {
    Boottime::from_millis(milliseconds)
}

fn wish(generation: i64, power: Power) -> Wish {
    Wish {
        generation,
        host_epoch: EPOCH,
        power,
        restart_token: None,
        config_revision: format!("c{generation}"),
        stop_deadline_seconds: 30,
        dhcp: String::new(),
        deleting: false,
    }
}

fn started(generation: i64) -> Started {
    Started {
        generation,
        config_revision: format!("c{generation}"),
        restart_token: None,
        at: WALL.into(),
        process_id: Some(77),
        accelerator: None,
        dhcp: String::new(),
    }
}

fn running(generation: i64) -> Status {
    Status {
        phase: Phase::Running,
        observed_generation: Some(generation),
        started_generation: Some(generation),
        started_config_revision: Some(format!("c{generation}")),
        started_at: Some(WALL.into()),
        process_id: Some(77),
        ..Status::default()
    }
}

fn phase(phase: Phase, generation: i64, reason: Option<(&str, &str)>) -> Status {
    Status {
        phase,
        observed_generation: Some(generation),
        reason: reason.map(|(reason, _)| reason.to_owned()),
        message: reason.map(|(_, message)| message.to_owned()),
        ..Status::default()
    }
}

fn stopped(generation: i64, step: Option<&str>) -> Status {
    Status {
        stop_step: step.map(Into::into),
        released: Some(Released {
            host_epoch: EPOCH,
            time: WALL.into(),
        }),
        ..phase(Phase::Stopped, generation, None)
    }
}

/// What the only disk takes, as it is measured.
fn used(allocated: u64) -> Vec<DiskUse> {
    vec![DiskUse {
        name: "root".into(),
        path: "ns/root.vhd".into(),
        allocated,
        length: 1 << 30,
    }]
}

/// And as it is told.
fn told_use(allocated_bytes: i64) -> Vec<InstanceDiskStatus> {
    vec![InstanceDiskStatus {
        name: "root".into(),
        path: "ns/root.vhd".into(),
        allocated_bytes,
    }]
}

fn report(status: Status) -> Action {
    Action::Report(Box::new(status))
}

fn wake(milliseconds: u64) -> Action {
    Action::WakeAt(boot(milliseconds))
}

/// A core with its time and lease.
struct Script {
    core: InstanceCore,
    held: Option<i64>,
    step: usize,
}

impl Script {
    fn new(status: Option<&Status>) -> Self {
        let (core, actions) = InstanceCore::new(status);
        assert_eq!(actions, [Action::Examine(1)]);
        Self {
            core,
            held: Some(EPOCH),
            step: 0,
        }
    }

    fn at(&mut self, time: u64, event: Event, expected: &[Action]) -> &mut Self {
        self.step += 1;
        let what = format!("step {} at {time}: {event:?}", self.step);
        let now = Now {
            boot: boot(time),
            wall: WALL.parse::<Timestamp>().unwrap(),
            held: self.held.map(|epoch| Held {
                epoch,
                until: Boottime::from_millis(u64::MAX),
            }),
        };
        assert_eq!(self.core.step(now, event), expected, "{what}");
        self
    }

    fn with_lease(&mut self, held: Option<i64>) -> &mut Self {
        self.held = held;
        self
    }

    /// Up and running at 30, as run 2 of generation 1.
    fn up(&mut self) -> &mut Self {
        self.at(0, Event::Wished(wish(1, Power::Running)), &[])
            .at(
                10,
                Event::Examined(Found::Nothing),
                &[Action::Confirm, wake(1010)],
            )
            .at(
                15,
                Event::Confirmed(Some(wish(1, Power::Running))),
                &[Action::Prepare, wake(1010)],
            )
            .at(20, Event::Prepared(Ok(())), &[Action::Spawn(2), wake(1010)])
            .at(25, Event::Spawned(Ok(started(1))), &[wake(1010)])
            .at(30, Event::GuestIs(2, Guest::Running), &[report(running(1))])
    }
}
