//! What a full pool means for a machine.

use super::{Action, Lifecycle, Phase};
use crate::api::{PauseReason, Power};

impl Lifecycle {
    /// A guest that waits for requests that are held notices nothing as long as it is paused.
    pub(super) fn pool_full(&mut self, disk: String, why: &str) -> Vec<Action> {
        let message = format!(
            "disk {disk}: {why}; its requests are held, and the guest goes on once there is room"
        );
        self.held.insert(disk, message);
        self.refused = false;
        match &self.phase {
            Phase::Stopping { .. } => self.let_held_fail(),
            Phase::Live { .. } => {
                if !self.running {
                    self.show_held();
                }
                self.steer()
            }
            _ => vec![],
        }
    }

    pub(super) fn pool_has_room(&mut self, disk: &str) -> Vec<Action> {
        if self.held.remove(disk).is_none() {
            return vec![];
        }
        self.refused = false;
        if self.held.is_empty() && self.pause_reason == Some(PauseReason::NoSpace) {
            self.pause_reason = None;
            self.message.clear();
        } else {
            self.show_held();
        }
        self.steer()
    }

    /// Says why a guest that should run is paused.
    pub(super) fn show_held(&mut self) {
        if self.wish == Power::Running
            && !self.running
            && let Some(message) = self.held.values().next()
        {
            self.pause_reason = Some(PauseReason::NoSpace);
            self.message.clone_from(message);
        }
    }

    pub(super) fn let_held_fail(&mut self) -> Vec<Action> {
        if self.held.is_empty() {
            return vec![];
        }
        self.held.clear();
        vec![Action::LetHeldFail]
    }
}
