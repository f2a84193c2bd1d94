//! The decisions about one instance.
//!
//! ```text
//!               ┌─ Looking ──Examined(Adopted)──────────────────────────────────────────────┐
//!               │     │ Examined(Nothing)                                                   │
//!   Examined(Ended)   ▼           held epoch = wish's      Confirmed        Prepared        ▼ Spawned
//!               │  Absent ───────► Confirming ───────► Preparing ───────► Spawning ─────► Up{Starting}
//!               │   │  ▲  ▲            │ not any more      │ failed           │ failed     │ guest runs
//!               │   │  │  └────────────┴───────────────────┘                  │            ▼
//!               │   │  │ Cleared                                              │          Up{Running|Paused}
//!               └───┼──┴──────────────── Clearing ◄───────────────────────────┘            │      │ Stop
//!                   │                       ▲  ▲───────────────Exited──────────────────────┘      ▼
//!                   │ off or gone           └──────────────────Exited, or too late──────────── Stopping
//!                   ▼
//!               Cleaning ─Cleaned─► Clean ─held─► Released          (or Ended, when the instance is gone)
//! ```
//!
//! `Absent` is entered only with a proof that no process of the instance is left ([`Found::Nothing`] or
//! [`Event::Cleared`]), and a process is spawned only on the way from `Absent`: so there are never two. A spawn
//! follows a quorum read in the same pass. `Released` is final: the operator hands the disks to others once it
//! has read it, so an instance that was released never starts again.

mod telling;

use super::{
    backoff::{Backoff, Cause},
    disk_uses::{self, is_worth_telling},
    status,
};
use crate::clock::Boottime;
use paddock_crds::virtual_machine_instance::{
    InstanceDiskStatus, InstancePhase, Power, Released, VirtualMachineInstanceStatus as Status,
};
use std::time::Duration;

pub use super::vocabulary::{
    Action, DiskUse, End, Event, Failure, Found, Guest, Now, Pause, Run, Started, Wish,
};

/// A transition is reported when it takes longer than this; a quick one is seen by its result alone.
pub const QUIET: Duration = Duration::from_secs(1);
/// From a failed call to the next try.
pub const RETRY: Duration = Duration::from_secs(1);
/// Longest time from the start of the monitor until the guest runs.
pub const START_LIMIT: Duration = Duration::from_secs(120);
/// What a stop may take beyond its deadline before everything is killed.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// From a power request that showed no effect to the next one.
pub const POWER_RETRY: Duration = Duration::from_secs(5);

/// From DHCP servers that could not be told what to answer to the next try.
pub const DHCP_RETRY: Duration = Duration::from_secs(5);
/// Longest wait for the answer to [`Action::ServeDhcp`].
const DHCP_LIMIT: Duration = Duration::from_secs(60);

const RESTART_REQUESTED: &str = "RestartRequested";

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Looking,
    LookAgain,
    Absent,
    Confirming,
    Preparing,
    Spawning,
    Up(Guest),
    Stopping { deadline: u32, kill_at: Boottime },
    Clearing,
    ClearAgain { at: Boottime },
    Cleaning,
    Clean,
    Released,
    Ended,
}

/// Why the guest is not up although it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) phase: InstancePhase,
    pub(super) reason: String,
    pub(super) message: String,
}

/// The core of one instance.
#[derive(Debug)]
pub struct InstanceCore {
    stage: Stage,
    run: Run,
    wish: Option<Wish>,
    gone: bool,
    confirming: bool,
    confirm_at: Option<Boottime>,
    /// The epoch that the last read with quorum showed.
    confirmed_epoch: Option<i64>,
    /// The generation that the host is being made ready for.
    preparing: i64,
    /// The DHCP servers are being told what to answer, or were told in vain and are told again then.
    serving: Option<Boottime>,
    started: Option<Started>,
    up_since: Option<Boottime>,
    start_limit: Boottime,
    backoff: Backoff,
    retry_at: Boottime,
    quiet_until: Option<Boottime>,
    power_again: Boottime,
    trouble: Option<Trouble>,
    note: Option<String>,
    restart_token: Option<String>,
    restarts: i32,
    stop_step: Option<String>,
    disks: Vec<InstanceDiskStatus>,
    /// The same at the process's end.
    last_disks: Vec<InstanceDiskStatus>,
    released: Option<Released>,
    previous: InstancePhase,
    reported: Option<Box<Status>>,
}

impl InstanceCore {
    /// A core for an instance with the status that the API has, and the first thing to do.
    #[must_use]
    pub fn new(status: Option<&Status>) -> (Self, Vec<Action>) {
        let status = status.cloned().unwrap_or_default();
        let trouble = match status.phase {
            InstancePhase::Failed | InstancePhase::Restarting => Some(Trouble {
                phase: status.phase,
                reason: status.reason.clone().unwrap_or_default(),
                message: status.message.clone().unwrap_or_default(),
            }),
            _ => None,
        };
        let released = status.released.is_some();
        let core = Self {
            stage: if released {
                Stage::Released
            } else {
                Stage::Looking
            },
            run: 1,
            wish: None,
            gone: false,
            confirming: false,
            confirm_at: None,
            confirmed_epoch: None,
            preparing: 0,
            serving: None,
            started: None,
            up_since: None,
            start_limit: Boottime::default(),
            backoff: Backoff::default(),
            retry_at: Boottime::default(),
            quiet_until: None,
            power_again: Boottime::default(),
            trouble,
            note: None,
            restart_token: status.restart_token.clone(),
            restarts: status.restarts,
            stop_step: status.stop_step.clone(),
            disks: status.disks.clone(),
            last_disks: Vec::new(),
            released: status.released.clone(),
            previous: status.phase,
            reported: Some(Box::new(status)),
        };
        let actions = if released {
            Vec::new()
        } else {
            vec![Action::Examine(1)]
        };
        (core, actions)
    }

    /// Takes in what happened, answers what to do.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.take_in(now, event, &mut actions);
        self.advance(now, &mut actions);
        self.report(now, &mut actions);
        self.wake(now, &mut actions);
        actions
    }

    /// Whether the guest is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Up(Guest::Running | Guest::Paused(_)))
    }

    fn take_in(&mut self, now: Now, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::Wished(wish) => self.take_wish(now, wish),
            Event::Vanished => self.confirm(actions),
            Event::Confirmed(answer) => {
                self.confirming = false;
                self.confirm_at = None;
                match answer {
                    Some(wish) => {
                        self.confirmed_epoch = Some(wish.host_epoch);
                        self.take_wish(now, wish);
                    }
                    None => self.gone = true,
                }
                if self.stage == Stage::Confirming {
                    self.stage = Stage::Absent;
                    if self.may_start(now) && self.is_confirmed(now) {
                        self.stage = Stage::Preparing;
                        self.preparing = self.generation();
                        actions.push(Action::Prepare);
                    }
                }
            }
            Event::ConfirmFailed => {
                self.confirming = false;
                if self.stage == Stage::Confirming {
                    self.stage = Stage::Absent;
                    self.retry_at = now.boot.plus(RETRY);
                } else {
                    self.confirm_at = Some(now.boot.plus(RETRY));
                }
            }
            Event::Examined(found) => self.examined(now, found, actions),
            Event::ExamineFailed(message) => {
                if self.stage == Stage::Looking {
                    self.stage = Stage::LookAgain;
                    self.retry_at = now.boot.plus(RETRY);
                    self.note = Some(message);
                }
            }
            Event::Prepared(result) => {
                if self.stage == Stage::Preparing {
                    match result {
                        Err(failure) => {
                            self.stage = Stage::Absent;
                            self.failed(now, failure);
                        }
                        // What was made ready for another spec is no start of this one: it is looked at anew.
                        Ok(())
                            if self.may_start(now)
                                && self.is_confirmed(now)
                                && self.preparing == self.generation() =>
                        {
                            self.run += 1;
                            self.stage = Stage::Spawning;
                            actions.push(Action::Spawn(self.run));
                        }
                        Ok(()) => self.stage = Stage::Absent,
                    }
                }
            }
            Event::Spawned(result) => {
                if self.stage == Stage::Spawning {
                    match result {
                        Ok(started) => {
                            self.started = Some(started);
                            self.serving = None;
                            self.start_limit = now.boot.plus(START_LIMIT);
                            self.stage = Stage::Up(Guest::Starting);
                        }
                        Err(failure) => {
                            self.failed(now, failure);
                            self.clear(actions);
                        }
                    }
                }
            }
            Event::GuestIs(run, guest) => {
                if run == self.run
                    && let Stage::Up(current) = &mut self.stage
                {
                    if guest != Guest::Starting {
                        self.up_since.get_or_insert(now.boot);
                        self.trouble = None;
                        self.quiet_until = None;
                        if let Some(started) = &self.started {
                            self.restart_token.clone_from(&started.restart_token);
                        }
                    }
                    *current = guest;
                }
            }
            Event::Measured(run, uses) => {
                if run == self.run && self.is_up() && is_worth_telling(&self.disks, &uses) {
                    self.disks = disk_uses::statuses(&uses);
                }
            }
            Event::MeasuredLast(run, uses) => {
                if run == self.run {
                    self.last_disks = disk_uses::statuses(&uses);
                }
            }
            Event::DhcpServed(run, answer) => {
                if run == self.run
                    && let Some(started) = &mut self.started
                {
                    self.serving = answer.is_err().then(|| now.boot.plus(DHCP_RETRY));
                    if let Ok(dhcp) = answer {
                        started.dhcp = dhcp;
                    }
                }
            }
            Event::Exited(run, end) => {
                if run == self.run && matches!(self.stage, Stage::Up(_) | Stage::Stopping { .. }) {
                    self.ended(now, end);
                    self.clear(actions);
                }
            }
            Event::StopFailed => {
                if matches!(self.stage, Stage::Stopping { .. }) {
                    self.stop_step = Some(status::KILL.to_owned());
                    self.clear(actions);
                }
            }
            Event::Cleared => {
                if self.stage == Stage::Clearing {
                    self.note = None;
                    self.started = None;
                    self.up_since = None;
                    if !self.is_unwanted() {
                        // The next process may have others.
                        self.disks.clear();
                        self.last_disks.clear();
                    }
                    self.stage = Stage::Absent;
                }
            }
            Event::ClearFailed(message) => {
                if self.stage == Stage::Clearing {
                    self.note = Some(message);
                    self.stage = Stage::ClearAgain {
                        at: now.boot.plus(RETRY),
                    };
                }
            }
            Event::Cleaned => {
                if self.stage == Stage::Cleaning {
                    self.stage = Stage::Clean;
                }
            }
        }
    }

    fn take_wish(&mut self, now: Now, wish: Wish) {
        let newer = match &self.wish {
            None => true,
            // What a watch shows may be older than what was read; a deletion is never taken back.
            Some(old) => {
                wish.generation > old.generation
                    || (wish.generation == old.generation && wish.deleting && !old.deleting)
            }
        };
        if !newer {
            return;
        }
        if self.wish.is_some() && self.stage == Stage::Absent {
            // Somebody changed something: try at once.
            self.retry_at = now.boot;
        }
        self.wish = Some(wish);
    }

    fn examined(&mut self, now: Now, found: Found, actions: &mut Vec<Action>) {
        if self.stage != Stage::Looking {
            return;
        }
        self.note = None;
        match found {
            Found::Nothing => {
                self.disks.clear();
                self.stage = Stage::Absent;
                if matches!(
                    self.previous,
                    InstancePhase::Running | InstancePhase::Paused
                ) {
                    self.restarts = self.restarts.saturating_add(1);
                    self.trouble = Some(Trouble {
                        phase: InstancePhase::Restarting,
                        reason: "HostRestarted".into(),
                        message: "the host was restarted; the guest starts again once the host has joined anew".into(),
                    });
                }
            }
            Found::Adopted { started, guest } => {
                if guest != Guest::Starting {
                    self.trouble = None;
                    self.up_since = Some(now.boot);
                }
                self.restart_token.clone_from(&started.restart_token);
                self.started = Some(started);
                self.serving = None;
                self.start_limit = now.boot.plus(START_LIMIT);
                self.stage = Stage::Up(guest);
            }
            Found::Ended(end) => {
                // Whether it was up is not known; it was if the API says so.
                if matches!(
                    self.previous,
                    InstancePhase::Running | InstancePhase::Paused
                ) {
                    self.up_since = Some(now.boot);
                }
                self.ended(now, end);
                self.clear(actions);
            }
        }
    }

    /// A process ended: what that means for the next start.
    fn ended(&mut self, now: Now, end: End) {
        let was_up = self.up_since.take();
        if let Some(since) = was_up {
            self.backoff.was_up(now.boot.since(since));
        }
        let asked = matches!(self.stage, Stage::Stopping { .. }) || self.is_unwanted();
        if asked {
            self.stop_step = Some(
                match end {
                    End::Stopped(step) => step,
                    End::GuestPowerOff => status::GUEST_POWER_OFF,
                    End::Failed(_) | End::Crashed => status::KILL,
                }
                .to_owned(),
            );
            self.retry_at = now.boot;
            return;
        }
        self.stop_step = None;
        let (cause, phase, failure) = match end {
            End::GuestPowerOff => {
                self.stop_step = Some(status::GUEST_POWER_OFF.to_owned());
                (
                    Cause::EndOrFailure,
                    InstancePhase::Restarting,
                    Failure::new("GuestPowerOff", "the guest switched itself off"),
                )
            }
            End::Stopped(step) => {
                self.stop_step = Some(step.to_owned());
                (
                    Cause::EndOrFailure,
                    InstancePhase::Restarting,
                    Failure::new(
                        "StoppedOnHost",
                        "the guest was stopped on its host, not through the API",
                    ),
                )
            }
            End::Failed(failure) if was_up.is_some() => {
                (Cause::Crash, InstancePhase::Restarting, failure)
            }
            End::Failed(failure) => (Cause::EndOrFailure, InstancePhase::Failed, failure),
            End::Crashed => (
                Cause::Crash,
                InstancePhase::Restarting,
                Failure::new("MonitorCrashed", "the machine's monitor process died"),
            ),
        };
        if phase == InstancePhase::Restarting {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.retry_at = now.boot.plus(self.backoff.next(cause));
        self.trouble = Some(Trouble {
            phase,
            reason: failure.reason.to_owned(),
            message: failure.message,
        });
        // What happened is told at once.
        self.quiet_until = None;
    }

    /// A start failed before there was a guest.
    fn failed(&mut self, now: Now, failure: Failure) {
        self.retry_at = now.boot.plus(self.backoff.next(Cause::EndOrFailure));
        self.trouble = Some(Trouble {
            phase: InstancePhase::Failed,
            reason: failure.reason.to_owned(),
            message: failure.message,
        });
        self.quiet_until = None;
    }

    fn confirm(&mut self, actions: &mut Vec<Action>) {
        if !self.confirming && self.stage != Stage::Ended {
            self.confirming = true;
            self.confirm_at = None;
            actions.push(Action::Confirm);
        }
    }

    fn clear(&mut self, actions: &mut Vec<Action>) {
        self.stage = Stage::Clearing;
        actions.push(Action::Clear);
    }

    /// Gone, off or being deleted.
    fn is_unwanted(&self) -> bool {
        self.gone || self.wish.as_ref().is_some_and(Wish::is_off)
    }

    /// A token that is taken away asks for nothing.
    fn restart_is_due(&self) -> bool {
        match (&self.wish, &self.started) {
            (Some(wish), Some(started)) => {
                wish.restart_token.is_some() && wish.restart_token != started.restart_token
            }
            _ => false,
        }
    }

    fn generation(&self) -> i64 {
        self.wish.as_ref().map_or(0, |wish| wish.generation)
    }

    /// Whether the DHCP servers of the running guest are to be told something now.
    fn dhcp_is_due(&self, now: Now) -> bool {
        let differs = match (&self.wish, &self.started) {
            (Some(wish), Some(started)) => wish.dhcp != started.dhcp,
            _ => false,
        };
        differs && self.serving.is_none_or(|at| at <= now.boot)
    }

    fn may_start(&self, now: Now) -> bool {
        !self.is_unwanted()
            && self
                .wish
                .as_ref()
                .is_some_and(|wish| now.valid_epoch() == Some(wish.host_epoch))
    }

    /// Whether the last read with quorum was one of the epoch that is held: the host may have been fenced since.
    fn is_confirmed(&self, now: Now) -> bool {
        self.confirmed_epoch.is_some() && self.confirmed_epoch == now.valid_epoch()
    }

    /// Does what is due in the stage that the event led to.
    fn advance(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.confirm_at.is_some_and(|at| at <= now.boot) {
            self.confirm(actions);
        }
        match self.stage.clone() {
            Stage::LookAgain if self.retry_at <= now.boot => {
                self.stage = Stage::Looking;
                actions.push(Action::Examine(self.run));
            }
            Stage::Absent => self.advance_absent(now, actions),
            Stage::Up(guest) => self.advance_up(now, &guest, actions),
            Stage::Stopping { deadline, kill_at } => {
                let asked = self.wish.as_ref().map(|wish| wish.stop_deadline_seconds);
                if (self.gone && now.valid_epoch().is_some()) || kill_at <= now.boot {
                    self.stop_step = Some(status::KILL.to_owned());
                    self.clear(actions);
                } else if let Some(shorter) = asked.filter(|asked| *asked < deadline) {
                    self.stop(now, shorter, actions);
                }
            }
            Stage::ClearAgain { at } if at <= now.boot => self.clear(actions),
            Stage::Clean => {
                if self.gone {
                    self.stage = Stage::Ended;
                    actions.push(Action::End);
                } else if !self.is_unwanted() {
                    self.stage = Stage::Absent;
                    self.advance_absent(now, actions);
                } else if let Some(epoch) = now.valid_epoch() {
                    self.disks = std::mem::take(&mut self.last_disks);
                    self.released = Some(Released {
                        host_epoch: epoch,
                        time: now.wall.to_string(),
                    });
                    self.trouble = None;
                    self.stage = Stage::Released;
                }
            }
            Stage::Released if self.gone => {
                self.stage = Stage::Ended;
                actions.push(Action::End);
            }
            _ => {}
        }
    }

    fn advance_absent(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.is_unwanted() {
            self.quiet_until.get_or_insert(now.boot.plus(QUIET));
            self.stage = Stage::Cleaning;
            actions.push(Action::Clean);
        } else if self.may_start(now) && self.retry_at <= now.boot && !self.confirming {
            if self.trouble.is_none() {
                self.quiet_until.get_or_insert(now.boot.plus(QUIET));
            }
            self.stage = Stage::Confirming;
            self.confirm(actions);
        }
    }

    fn advance_up(&mut self, now: Now, guest: &Guest, actions: &mut Vec<Action>) {
        if self.gone {
            // Only a host that holds its lease knows that what it reads is meant for it.
            if now.valid_epoch().is_some() {
                self.stop_step = Some(status::KILL.to_owned());
                self.clear(actions);
            }
            return;
        }
        let Some(wish) = &self.wish else { return };
        if wish.is_off() || self.restart_is_due() {
            let deadline = wish.stop_deadline_seconds;
            if !wish.is_off() {
                self.trouble = Some(Trouble {
                    phase: InstancePhase::Restarting,
                    reason: RESTART_REQUESTED.to_owned(),
                    message: "the guest is stopped to be started again".to_owned(),
                });
            }
            self.quiet_until = Some(now.boot.plus(QUIET));
            self.stop(now, deadline, actions);
            return;
        }
        if self.dhcp_is_due(now) {
            // An answer that never comes is waited for no longer than this either.
            self.serving = Some(now.boot.plus(DHCP_LIMIT));
            actions.push(Action::ServeDhcp(self.run));
        }
        match guest {
            Guest::Starting => {
                if self.start_limit <= now.boot {
                    self.failed(
                        now,
                        Failure::new(
                            "HypervisorFailed",
                            format!("the guest did not run within {} s", START_LIMIT.as_secs()),
                        ),
                    );
                    self.clear(actions);
                }
            }
            Guest::Running | Guest::Paused(_) => {
                let differs = match (guest, wish.power) {
                    (Guest::Running, Power::Paused) => Some(Power::Paused),
                    (Guest::Paused(_), Power::Running) => Some(Power::Running),
                    _ => None,
                };
                if let Some(power) = differs
                    && self.power_again <= now.boot
                {
                    self.power_again = now.boot.plus(POWER_RETRY);
                    actions.push(Action::SetPower(power));
                } else if differs.is_none() {
                    self.power_again = now.boot;
                }
            }
        }
    }

    fn stop(&mut self, now: Now, deadline: u32, actions: &mut Vec<Action>) {
        self.stage = Stage::Stopping {
            deadline,
            kill_at: now
                .boot
                .plus(Duration::from_secs(deadline.into()))
                .plus(STOP_GRACE),
        };
        actions.push(Action::Stop(deadline));
    }
}
