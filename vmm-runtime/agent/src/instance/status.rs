//! The words of an instance's status.

use super::core::Started;
use paddock_crds::virtual_machine_instance::{
    InstanceDiskStatus, InstancePhase, Released, VirtualMachineInstanceStatus as Status,
};

/// `stopStep`: the guest shut down when its power button was pressed.
pub const POWER_BUTTON: &str = "PowerButton";
/// `stopStep`: the hypervisor was told to quit.
pub const QUIT: &str = "Quit";
/// `stopStep`: everything was killed.
pub const KILL: &str = "Kill";
/// `stopStep`: the guest switched itself off.
pub const GUEST_POWER_OFF: &str = "GuestPowerOff";

/// Longest message, in bytes: the CRD's bound is in characters, which are no shorter.
const MAX_MESSAGE: usize = 1024;

pub(super) struct Parts<'a> {
    pub phase: InstancePhase,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub generation: i64,
    pub started: Option<&'a Started>,
    pub restart_token: Option<String>,
    pub restarts: i32,
    pub stop_step: Option<String>,
    pub disks: Vec<InstanceDiskStatus>,
    pub released: Option<Released>,
}

pub(super) fn build(parts: Parts<'_>) -> Status {
    Status {
        phase: parts.phase,
        observed_generation: Some(parts.generation),
        started_generation: parts.started.map(|started| started.generation),
        started_config_revision: parts.started.map(|started| started.config_revision.clone()),
        restart_token: parts.restart_token,
        started_at: parts.started.map(|started| started.at.clone()),
        process_id: parts.started.and_then(|started| started.process_id),
        restarts: parts.restarts,
        accelerator: parts.started.and_then(|started| started.accelerator),
        reason: parts.reason,
        message: parts.message.map(|message| shorten(&message, MAX_MESSAGE)),
        stop_step: parts.stop_step,
        disks: parts.disks,
        released: parts.released,
        conditions: Vec::new(),
    }
}

/// `text`, cut to at most `limit` bytes at a character's boundary.
#[must_use]
pub fn shorten(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = (0..=limit.saturating_sub('…'.len_utf8()))
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortens_at_a_character() {
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("abcdef", 5), "ab…");
        assert_eq!(shorten("äöüß", 7), "äö…");
        assert_eq!(shorten("abcdef", 0), "…");
    }
}
