//! What is told of an instance, and when to look at it again.

use super::{Action, Guest, InstanceCore, Now, Pause, RESTART_REQUESTED, RETRY, Stage, Status};
use crate::instance::status;
use paddock_crds::virtual_machine_instance::InstancePhase;

impl InstanceCore {
    pub(super) fn report(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.gone || self.is_quiet(now) {
            return;
        }
        let Some(status) = self.status() else { return };
        if self.reported.as_deref() != Some(&status) {
            let status = Box::new(status);
            self.reported = Some(status.clone());
            actions.push(Action::Report(status));
        }
    }

    /// Whether a transition is young enough to be told by its result alone.
    fn is_quiet(&self, now: Now) -> bool {
        !self.is_up()
            && self.stage != Stage::Released
            && self.quiet_until.is_some_and(|until| now.boot < until)
    }

    /// The status of now; `None` as long as there is nothing to say that the API does not say already.
    fn status(&self) -> Option<Status> {
        let wish = self.wish.as_ref()?;
        let (phase, reason, message) = match &self.stage {
            Stage::Looking | Stage::LookAgain | Stage::Ended => return None,
            // The last word: nothing that changes in the spec afterwards is answered.
            Stage::Released if self.reported.as_ref().is_some_and(|r| r.released.is_some()) => {
                return None;
            }
            Stage::Up(Guest::Running) => (InstancePhase::Running, None, None),
            Stage::Up(Guest::Paused(Pause::Requested)) => (InstancePhase::Paused, None, None),
            Stage::Up(Guest::Paused(Pause::Trouble(trouble))) => (
                InstancePhase::Paused,
                Some(trouble.reason.to_owned()),
                Some(trouble.message.clone()),
            ),
            Stage::Released => (InstancePhase::Stopped, None, None),
            _ if self.is_unwanted() => (InstancePhase::Stopping, None, self.note.clone()),
            stage => match &self.trouble {
                Some(trouble) => (
                    trouble.phase,
                    Some(trouble.reason.clone()),
                    Some(self.note.clone().unwrap_or_else(|| trouble.message.clone())),
                ),
                // Waiting for the lease to carry the instance's epoch is not a transition of the instance.
                None if *stage == Stage::Absent && self.quiet_until.is_none() => return None,
                None => (InstancePhase::Starting, None, self.note.clone()),
            },
        };
        let restart_requested = reason.as_deref() == Some(RESTART_REQUESTED);
        Some(status::build(status::Parts {
            phase,
            reason,
            message,
            generation: wish.generation,
            started: self.started.as_ref().filter(|_| self.is_up()),
            restart_token: self.restart_token.clone(),
            restarts: self.restarts,
            // While it is being stopped or restarted, how that ends is not known yet.
            stop_step: self
                .stop_step
                .clone()
                .filter(|_| phase != InstancePhase::Stopping && !restart_requested),
            disks: self.disks.clone(),
            released: self.released.clone(),
        }))
    }

    /// When time alone makes a difference.
    pub(super) fn wake(&self, now: Now, actions: &mut Vec<Action>) {
        if self.stage == Stage::Ended {
            return;
        }
        let mut times = vec![self.confirm_at];
        times.push(
            self.quiet_until
                .filter(|_| !self.gone && self.is_quiet(now)),
        );
        match &self.stage {
            Stage::LookAgain => times.push(Some(self.retry_at)),
            Stage::Absent if !self.is_unwanted() && self.wish.is_some() => {
                let lapsed = now.held.is_some() && now.valid_epoch().is_none();
                times.push(Some(self.retry_at).filter(|at| *at > now.boot));
                // A lease that lapsed comes back with the same epoch, which nobody is woken for.
                times.push(Some(now.boot.plus(RETRY)).filter(|_| lapsed));
            }
            Stage::Clean => times.push(Some(now.boot.plus(RETRY)).filter(|_| now.held.is_some())),
            Stage::Up(guest) => {
                if self.gone && now.held.is_some() {
                    times.push(Some(now.boot.plus(RETRY)));
                }
                times.push(self.serving);
                if *guest == Guest::Starting {
                    times.push(Some(self.start_limit));
                } else {
                    times.push(Some(self.power_again).filter(|at| *at > now.boot));
                }
            }
            Stage::Stopping { kill_at, .. } => times.push(Some(*kill_at)),
            Stage::ClearAgain { at } => times.push(Some(*at)),
            _ => {}
        }
        // What is due and was not done now waits for something else than time.
        let next = times.into_iter().flatten().filter(|at| *at > now.boot);
        if let Some(time) = next.min() {
            actions.push(Action::WakeAt(time));
        }
    }
}
