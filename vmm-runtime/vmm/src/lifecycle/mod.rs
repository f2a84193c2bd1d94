//! What the process does next: a pure state machine, `step(now, input) -> actions`.
//!
//! ```text
//!            Begin              Ready, RESUME           STOP
//!  Created ---------> Starting ---------------> Running <----> Paused
//!                        |                         |  RESUME     |
//!                        |                         +------+------+
//!   cannot open, cannot  |      request, SIGTERM, guest   |      QEMU exits
//!   start, QEMU exits    |      shut down or panicked     |      by itself
//!                        |                                v         |
//!                        |   request           Stopping --+         |
//!                        +------------------>  PowerButton          |
//!                        |                     Quit                 |
//!                        |                     Kill                 |
//!                        |                        | QEMU has exited |
//!                        v                        v                 v
//!                      Failed <------------- (disks flushed and closed) ---> Stopped
//! ```
//!
//! Everything that happens arrives here through one queue: requests from the API, events and answers of QEMU, the
//! child's exit, the passing of time. So there is one order of events, and the tests can try all of them.
//!
//! While requests to a disk are held for lack of space (`hold`), the guest is paused, too; it goes on when all of them
//! were carried out. QEMU answers `stop` only then, since it waits for the requests, but says at once that the guest is
//! paused. A stop lets them fail first, or QEMU could not quit.
//!
//! QEMU starts with its processors stopped (`-S`); they are started by the first `cont`. A guest that switches itself
//! off leaves QEMU there, paused, until it is told to quit (`-action shutdown=pause`): the event says who ended it.
//!
//! Stopping is a ladder. The power button is pressed, and again every [`PRESS_INTERVAL`], because a guest that is still
//! booting does not hear it; a paused guest is resumed for it, since it could not react otherwise. At the deadline QEMU
//! is told to quit, which loses the guest's caches but completes its writes. If it has not after [`QUIT_TIMEOUT`] it is
//! killed.

mod end;
mod held;
mod input;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::api::{EndReason, ErrorReason, Outcome, PauseReason, Power, State, StopStep};

pub use end::End;
pub use input::{Action, Command, Input, QemuEvent, Refusal};

/// How long QEMU may take from its start to its first answer. It reads the kernel meanwhile.
pub const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long QEMU may take to quit; it completes and flushes outstanding writes.
pub const QUIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the power button is pressed.
pub const PRESS_INTERVAL: Duration = Duration::from_secs(5);
/// How long QEMU may live on after it closed the control connection.
pub const CLOSED_GRACE: Duration = Duration::from_secs(5);

/// A reset this soon after a counted one belongs to it: SeaBIOS, started by a reset, restores itself and resets once or
/// twice more.
pub const RESET_ECHO: Duration = Duration::from_secs(2);

/// The state machine of one run.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    phase: Phase,
    /// Running or Paused, as wished by the newest request.
    wish: Power,
    /// Whether the guest's processors run, by the newest event.
    running: bool,
    /// They have run once.
    has_run: bool,
    pause_reason: Option<PauseReason>,
    /// The last `cont` or `stop` failed; not tried again until the next request.
    refused: bool,
    /// A write failed for lack of space and QEMU is about to stop because of it: the disk's number.
    no_space_on: Option<String>,
    /// Disks whose requests are held for lack of space, and what to say of them.
    held: BTreeMap<String, String>,
    /// Commands that QEMU has not answered. Each at most once.
    outstanding: BTreeSet<Command>,
    qemu_pid: Option<u32>,
    resets: u64,
    /// When the last reset was counted.
    reset_at: Option<Duration>,
    reset_token: Option<String>,
    stop_step: Option<StopStep>,
    message: String,
    default_stop_deadline: Duration,
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Created,
    /// Disks, kernel and taps are being opened.
    Opening {
        stop: bool,
    },
    /// QEMU is being started; it has not answered yet.
    Launching {
        deadline: Duration,
    },
    /// QEMU answers.
    Live {
        closed_at: Option<Duration>,
    },
    /// A rung of the ladder. `end` is set when it is known how this run ends, whatever step ends the process.
    Stopping {
        step: Step,
        end: Option<End>,
    },
    /// QEMU is gone; the disks are being flushed and closed.
    Closing {
        end: End,
    },
    Ended {
        end: End,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    PowerButton { until: Duration, press_at: Duration },
    Quit { until: Duration },
    Kill,
}

/// What a status shows, less what does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The state.
    pub state: State,
    /// QEMU's process id.
    pub qemu_pid: Option<u32>,
    /// Resets so far.
    pub resets: u64,
    /// The newest reset token.
    pub reset_token: Option<String>,
    /// Why it is paused.
    pub pause_reason: Option<PauseReason>,
    /// The rung of the ladder.
    pub stop_step: Option<StopStep>,
    /// A sentence.
    pub message: String,
}

impl Lifecycle {
    /// A machine that has not begun. `default_stop_deadline` holds for stops that name none.
    pub fn new(default_stop_deadline: Duration) -> Self {
        Lifecycle {
            phase: Phase::Created,
            wish: Power::Running,
            running: false,
            has_run: false,
            pause_reason: None,
            refused: false,
            no_space_on: None,
            held: BTreeMap::new(),
            outstanding: BTreeSet::new(),
            qemu_pid: None,
            resets: 0,
            reset_at: None,
            reset_token: None,
            stop_step: None,
            message: String::new(),
            default_stop_deadline,
        }
    }

    /// What to show now.
    pub fn view(&self) -> View {
        let paused = || {
            if self.has_run || self.pause_reason.is_some() {
                State::Paused
            } else {
                State::Starting
            }
        };
        let state = match &self.phase {
            Phase::Created => State::Created,
            Phase::Opening { stop: false } | Phase::Launching { .. } => State::Starting,
            Phase::Live { .. } if self.running => State::Running,
            Phase::Live { .. } => paused(),
            Phase::Opening { stop: true } | Phase::Stopping { .. } | Phase::Closing { .. } => {
                State::Stopping
            }
            Phase::Ended { end } if end.outcome == Outcome::Failed => State::Failed,
            Phase::Ended { .. } => State::Stopped,
        };
        let stop_step = match &self.phase {
            Phase::Closing { end } | Phase::Ended { end } => end.stop_step,
            _ => self.stop_step,
        };
        View {
            state,
            qemu_pid: self.qemu_pid,
            resets: self.resets,
            reset_token: self.reset_token.clone(),
            pause_reason: self.pause_reason.filter(|_| state == State::Paused),
            stop_step,
            message: match &self.phase {
                Phase::Ended { end } => end.message.clone(),
                _ => self.message.clone(),
            },
        }
    }

    /// When [`Input::Tick`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Launching { deadline } => Some(*deadline),
            Phase::Live { closed_at } => closed_at.map(|at| at + CLOSED_GRACE),
            Phase::Stopping {
                step: Step::PowerButton { until, press_at },
                ..
            } => Some(*until.min(press_at)),
            Phase::Stopping {
                step: Step::Quit { until },
                ..
            } => Some(*until),
            _ => None,
        }
    }

    /// A request for power. `deadline` is from now on.
    pub fn set_power(
        &mut self,
        now: Duration,
        power: Power,
        deadline: Option<Duration>,
    ) -> Result<Vec<Action>, Refusal> {
        if power == Power::Stopped {
            return Ok(self.stop(now, deadline.unwrap_or(self.default_stop_deadline)));
        }
        match &self.phase {
            Phase::Created
            | Phase::Opening { stop: false }
            | Phase::Launching { .. }
            | Phase::Live { .. } => {
                self.wish = power;
                self.refused = false;
                let paused = !self.running && matches!(self.phase, Phase::Live { .. });
                if power == Power::Paused && paused {
                    self.pause_reason = Some(PauseReason::Requested);
                } else if self
                    .pause_reason
                    .is_some_and(|reason| reason != PauseReason::Requested)
                {
                    // Asked for again after QEMU paused by itself: the reason may be gone, so it is tried.
                    self.pause_reason = (power == Power::Paused).then_some(PauseReason::Requested);
                }
                let mut actions = Vec::new();
                if power == Power::Running && !self.held.is_empty() {
                    self.show_held();
                    actions.push(Action::RetryHeld);
                }
                actions.extend(self.steer());
                Ok(actions)
            }
            _ => Err(Refusal::stopping()),
        }
    }

    /// A request to reset. The newest token again changes nothing.
    pub fn reset(&mut self, token: &str) -> Result<Vec<Action>, Refusal> {
        match &self.phase {
            _ if self.reset_token.as_deref() == Some(token) => Ok(vec![]),
            // There is no guest yet that could be reset.
            Phase::Created | Phase::Opening { stop: false } | Phase::Launching { .. } => {
                self.reset_token = Some(token.to_owned());
                Ok(vec![])
            }
            Phase::Live { .. } => {
                self.reset_token = Some(token.to_owned());
                Ok(self.command(Command::Reset))
            }
            _ => Err(Refusal::stopping()),
        }
    }

    /// Everything else that happens. `now` is on any clock that does not go back.
    pub fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        match input {
            Input::Begin if self.phase == Phase::Created => {
                self.phase = Phase::Opening { stop: false };
                vec![Action::Open]
            }
            Input::Begin => vec![],
            Input::Opened => match self.phase {
                Phase::Opening { stop: false } => {
                    self.phase = Phase::Launching {
                        deadline: now + READY_TIMEOUT,
                    };
                    vec![Action::Launch]
                }
                Phase::Opening { stop: true } => self.close(End::stopped(None)),
                _ => vec![],
            },
            Input::NotOpened { reason, message } => match self.phase {
                Phase::Opening { .. } => self.close(End::failed(reason, message)),
                _ => vec![],
            },
            Input::Launched { pid } => {
                self.qemu_pid = Some(pid);
                vec![]
            }
            Input::NotLaunched { reason, message } => match self.phase {
                Phase::Launching { .. } => self.close(End::failed(reason, message)),
                Phase::Stopping { .. } => self.close(End::stopped(None)),
                _ => vec![],
            },
            Input::Ready => match self.phase {
                Phase::Launching { .. } => {
                    self.phase = Phase::Live { closed_at: None };
                    if self.wish == Power::Paused {
                        self.pause_reason = Some(PauseReason::Requested);
                    }
                    self.show_held();
                    self.steer()
                }
                _ => vec![],
            },
            Input::Event(event) => self.event(now, event),
            Input::PoolFull { disk, why } => self.pool_full(disk, &why),
            Input::PoolHasRoom { disk } => self.pool_has_room(&disk),
            Input::Answered { command, error } => self.answered(command, error),
            Input::ConnectionClosed => {
                if let Phase::Live { closed_at } = &mut self.phase {
                    closed_at.get_or_insert(now);
                }
                vec![]
            }
            Input::Exited { status, log_tail } => self.exited(&status, &log_tail),
            Input::Closed { problem } => match &self.phase {
                Phase::Closing { end } => {
                    let end = match problem {
                        None => end.clone(),
                        Some(problem) => end.clone().with_disk_problem(&problem),
                    };
                    self.phase = Phase::Ended { end: end.clone() };
                    vec![Action::Finish(end)]
                }
                _ => vec![],
            },
            Input::Terminate => self.stop(now, self.default_stop_deadline),
            Input::Tick => self.tick(now),
        }
    }

    /// Brings what runs to what is wished.
    fn steer(&mut self) -> Vec<Action> {
        let Phase::Live { closed_at: None } = self.phase else {
            return vec![];
        };
        let busy =
            self.outstanding.contains(&Command::Cont) || self.outstanding.contains(&Command::Stop);
        let by_itself = self
            .pause_reason
            .is_some_and(|reason| reason != PauseReason::Requested);
        if busy || self.refused {
            return vec![];
        }
        match (self.wish, self.running) {
            (Power::Running, true) if !self.held.is_empty() => self.command(Command::Stop),
            (Power::Running, false) if !by_itself && self.held.is_empty() => {
                self.command(Command::Cont)
            }
            (Power::Paused, true) => self.command(Command::Stop),
            _ => vec![],
        }
    }

    /// Sends a command unless the same one is still unanswered.
    fn command(&mut self, command: Command) -> Vec<Action> {
        if self.outstanding.insert(command) {
            vec![Action::Command(command)]
        } else {
            vec![]
        }
    }

    fn event(&mut self, now: Duration, event: QemuEvent) -> Vec<Action> {
        match event {
            QemuEvent::Resumed => {
                self.running = true;
                self.has_run = true;
                self.pause_reason = None;
                self.no_space_on = None;
                if matches!(self.phase, Phase::Live { .. }) {
                    self.message.clear();
                }
            }
            QemuEvent::Paused => {
                self.running = false;
                if matches!(self.phase, Phase::Live { .. }) {
                    self.paused();
                }
            }
            QemuEvent::Reset => {
                if self.reset_at.is_none_or(|at| now >= at + RESET_ECHO) {
                    self.resets += 1;
                    self.reset_at = Some(now);
                }
            }
            QemuEvent::WriteFailed {
                disk,
                no_space,
                stops,
            } => {
                if stops {
                    self.no_space_on = no_space.then_some(disk);
                }
            }
            QemuEvent::GuestShutDown => return self.guest_ended(now, End::guest_power_off()),
            QemuEvent::GuestPanicked => {
                let message = "the guest's kernel panicked".to_owned();
                return self.guest_ended(now, End::failed(EndReason::GuestPanicked, message));
            }
            QemuEvent::HostShutDown { reason } => {
                // Its exit follows. Told to quit, that is as planned.
                if matches!(self.phase, Phase::Live { .. }) {
                    self.message = format!("QEMU is ending by itself: {reason}");
                }
            }
        }
        self.steer()
    }

    fn paused(&mut self) {
        if self.wish == Power::Paused {
            self.pause_reason = Some(PauseReason::Requested);
        } else if !self.held.is_empty() {
            self.show_held();
        } else if let Some(disk) = self.no_space_on.take() {
            self.pause_reason = Some(PauseReason::NoSpace);
            self.message = format!(
                "disk {disk}: no space left in its pool; make room, then set the power to Running again"
            );
        } else if !self.outstanding.contains(&Command::Stop) {
            self.pause_reason = Some(PauseReason::Qemu);
            self.message = "QEMU stopped the guest by itself".to_owned();
        }
    }

    /// The guest is at its end; QEMU is still there, paused.
    fn guest_ended(&mut self, now: Duration, by_itself: End) -> Vec<Action> {
        let end = match &self.phase {
            Phase::Live { .. } => by_itself,
            Phase::Stopping {
                step: Step::PowerButton { .. },
                end: None,
            } => {
                if by_itself.outcome == Outcome::GuestPowerOff {
                    End::stopped(Some(StopStep::PowerButton))
                } else {
                    by_itself
                }
            }
            // Too late to tell from the quit that was under way.
            _ => return vec![],
        };
        self.phase = Phase::Stopping {
            step: Step::Quit {
                until: now + QUIT_TIMEOUT,
            },
            end: Some(end),
        };
        let mut actions = self.let_held_fail();
        actions.extend(self.command(Command::Quit));
        actions
    }

    fn answered(&mut self, command: Command, error: Option<String>) -> Vec<Action> {
        self.outstanding.remove(&command);
        // The event comes before the answer, so now it shows whether it worked. Not tried again by itself: that could
        // go on for ever.
        match command {
            Command::Cont => self.refused |= !self.running,
            Command::Stop => self.refused |= self.running,
            _ => {}
        }
        if let Some(error) = error {
            self.message = format!("QEMU refused {command}: {error}");
            if command == Command::Cont && matches!(self.phase, Phase::Live { .. }) {
                self.pause_reason = Some(PauseReason::Qemu);
            }
        }
        self.steer()
    }

    fn exited(&mut self, status: &str, log_tail: &str) -> Vec<Action> {
        self.qemu_pid = None;
        self.running = false;
        self.outstanding.clear();
        let explain = |what: &str| {
            let tail = log_tail.trim();
            if tail.is_empty() {
                format!("{what} ({status})")
            } else {
                format!("{what} ({status}): {tail}")
            }
        };
        let end = match &self.phase {
            Phase::Launching { .. } => End::failed(
                EndReason::QemuNotStarted,
                explain("QEMU ended before it was ready"),
            ),
            Phase::Live { .. } => {
                End::failed(EndReason::QemuExited, explain("QEMU ended by itself"))
            }
            Phase::Stopping { end: Some(end), .. } => end.clone(),
            Phase::Stopping {
                step: Step::PowerButton { .. },
                end: None,
            } => End::failed(
                EndReason::QemuExited,
                explain("QEMU ended by itself while the guest was shutting down"),
            ),
            Phase::Stopping {
                step: Step::Quit { .. },
                end: None,
            } => End::stopped(Some(StopStep::Quit)),
            Phase::Stopping {
                step: Step::Kill,
                end: None,
            } => End::stopped(Some(StopStep::Kill)),
            Phase::Created
            | Phase::Opening { .. }
            | Phase::Closing { .. }
            | Phase::Ended { .. } => return vec![],
        };
        self.close(end)
    }

    fn close(&mut self, end: End) -> Vec<Action> {
        self.message.clone_from(&end.message);
        self.phase = Phase::Closing { end };
        vec![Action::Close]
    }

    /// A wish to stop, or a shorter deadline for a stop under way.
    fn stop(&mut self, now: Duration, within: Duration) -> Vec<Action> {
        match &mut self.phase {
            Phase::Created => self.close(End::stopped(None)),
            Phase::Opening { stop } => {
                *stop = true;
                vec![]
            }
            Phase::Launching { .. } => {
                // No guest instruction has run, so there is nothing to be gentle with.
                self.phase = Phase::Stopping {
                    step: Step::Kill,
                    end: Some(End::stopped(None)),
                };
                vec![Action::Kill]
            }
            Phase::Live { closed_at: Some(_) } => self.kill(End::stopped(Some(StopStep::Kill))),
            Phase::Live { closed_at: None } if within.is_zero() || !self.has_run => self.quit(now),
            Phase::Live { closed_at: None } => {
                let step = Step::PowerButton {
                    until: now + within,
                    press_at: now + PRESS_INTERVAL,
                };
                self.phase = Phase::Stopping { step, end: None };
                self.stop_step = Some(StopStep::PowerButton);
                self.message = "the power button was pressed".to_owned();
                let mut actions = self.let_held_fail();
                actions.extend(self.press());
                actions
            }
            Phase::Stopping {
                step: Step::PowerButton { until, .. },
                ..
            } => {
                *until = (*until).min(now + within);
                self.tick(now)
            }
            Phase::Stopping { .. } | Phase::Closing { .. } | Phase::Ended { .. } => vec![],
        }
    }

    fn press(&mut self) -> Vec<Action> {
        // A stop that is still unanswered would take effect after a look at `running`, so `cont` goes out then, too.
        let resume = !self.running || self.outstanding.contains(&Command::Stop);
        let mut actions = if resume {
            self.command(Command::Cont)
        } else {
            vec![]
        };
        actions.extend(self.command(Command::PowerButton));
        actions
    }

    fn quit(&mut self, now: Duration) -> Vec<Action> {
        self.phase = Phase::Stopping {
            step: Step::Quit {
                until: now + QUIT_TIMEOUT,
            },
            end: None,
        };
        self.stop_step = Some(StopStep::Quit);
        self.message = "QEMU was told to quit".to_owned();
        let mut actions = self.let_held_fail();
        actions.extend(self.command(Command::Quit));
        actions
    }

    fn kill(&mut self, end: End) -> Vec<Action> {
        self.stop_step = end.stop_step.or(self.stop_step);
        self.message = "QEMU was killed".to_owned();
        self.phase = Phase::Stopping {
            step: Step::Kill,
            end: Some(end),
        };
        vec![Action::Kill]
    }

    fn tick(&mut self, now: Duration) -> Vec<Action> {
        match self.phase.clone() {
            Phase::Launching { deadline } if now >= deadline => self.kill(End::failed(
                EndReason::QemuNotStarted,
                format!(
                    "QEMU did not answer within {} s of its start",
                    READY_TIMEOUT.as_secs()
                ),
            )),
            Phase::Live {
                closed_at: Some(at),
            } if now >= at + CLOSED_GRACE => self.kill(End::failed(
                EndReason::QemuExited,
                "QEMU closed its control connection but did not end; it was killed".to_owned(),
            )),
            Phase::Stopping {
                step: Step::PowerButton { until, .. },
                ..
            } if now >= until => self.quit(now),
            Phase::Stopping {
                step: Step::PowerButton { until, press_at },
                end,
            } if now >= press_at => {
                let step = Step::PowerButton {
                    until,
                    press_at: now + PRESS_INTERVAL,
                };
                self.phase = Phase::Stopping { step, end };
                self.press()
            }
            Phase::Stopping {
                step: Step::Quit { until },
                end,
            } if now >= until => {
                self.kill(end.unwrap_or_else(|| End::stopped(Some(StopStep::Kill))))
            }
            _ => vec![],
        }
    }
}

impl Refusal {
    fn stopping() -> Self {
        Refusal {
            reason: ErrorReason::Stopping,
            message: "the machine is being stopped or has ended; start it anew".to_owned(),
        }
    }
}
