//! How a run ends.

use crate::api::{EndReason, Outcome, StopStep};

/// The end of a run, less the time and the count of resets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The outcome.
    pub outcome: Outcome,
    /// The rung of the ladder that ended the guest.
    pub stop_step: Option<StopStep>,
    /// The reason.
    pub reason: EndReason,
    /// A sentence.
    pub message: String,
}

impl End {
    /// The guest switched itself off.
    pub fn guest_power_off() -> Self {
        End {
            outcome: Outcome::GuestPowerOff,
            stop_step: None,
            reason: EndReason::GuestPowerOff,
            message: "the guest switched itself off".to_owned(),
        }
    }

    /// Stopped on request. No step: no guest had been started.
    pub fn stopped(stop_step: Option<StopStep>) -> Self {
        let message = match stop_step {
            None => "it was stopped before its guest had been started",
            Some(StopStep::PowerButton) => "the guest shut down when its power button was pressed",
            Some(StopStep::Quit) => "the guest was turned off",
            Some(StopStep::Kill) => "QEMU did not quit and was killed",
        };
        End {
            outcome: Outcome::Stopped,
            stop_step,
            reason: EndReason::StopRequested,
            message: message.to_owned(),
        }
    }

    /// It went wrong.
    pub fn failed(reason: EndReason, message: String) -> Self {
        End {
            outcome: Outcome::Failed,
            stop_step: None,
            reason,
            message,
        }
    }

    /// The same end, but a disk could not be flushed or closed afterwards. That makes a good end a failure; a failure
    /// keeps its reason.
    pub(super) fn with_disk_problem(self, problem: &str) -> Self {
        let message = format!("{}; then {problem}", self.message);
        match self.outcome {
            Outcome::Failed => End { message, ..self },
            _ => End {
                outcome: Outcome::Failed,
                reason: EndReason::DiskNotFlushed,
                message,
                ..self
            },
        }
    }
}
