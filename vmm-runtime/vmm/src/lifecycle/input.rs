//! What the state machine is told, and what it wants done.

use std::fmt;

use super::End;
use crate::api::{EndReason, ErrorReason};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Start.
    Begin,
    /// [`Action::Open`] is done.
    Opened,
    /// [`Action::Open`] failed.
    NotOpened {
        /// Why.
        reason: EndReason,
        /// Why, for a person.
        message: String,
    },
    /// [`Action::Launch`] has a process.
    Launched {
        /// Its id.
        pid: u32,
    },
    /// [`Action::Launch`] has no process.
    NotLaunched {
        /// Why.
        reason: EndReason,
        /// Why, for a person.
        message: String,
    },
    /// QEMU has been greeted and takes commands; the guest has not run yet.
    Ready,
    /// QEMU reports something.
    Event(QemuEvent),
    /// Requests to a disk are held, because there is no space for them.
    PoolFull {
        /// The disk's name.
        disk: String,
        /// What is full, for a person.
        why: String,
    },
    /// All that was held of a disk was carried out.
    PoolHasRoom {
        /// The disk's name.
        disk: String,
    },
    /// QEMU answered a command.
    Answered {
        /// The command.
        command: Command,
        /// Why it was not done.
        error: Option<String>,
    },
    /// QEMU closed the control connection.
    ConnectionClosed,
    /// The child is gone and reaped.
    Exited {
        /// Its exit status in words.
        status: String,
        /// The last lines that it wrote.
        log_tail: String,
    },
    /// [`Action::Close`] is done.
    Closed {
        /// What went wrong with a disk.
        problem: Option<String>,
    },
    /// SIGTERM or SIGINT.
    Terminate,
    /// [`super::Lifecycle::deadline`] has come.
    Tick,
}

/// QEMU's events that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QemuEvent {
    /// The processors run.
    Resumed,
    /// The processors do not run.
    Paused,
    /// The machine was reset, by the guest or on request.
    Reset,
    /// A disk refused a request.
    WriteFailed {
        /// The disk's name.
        disk: String,
        /// For lack of space.
        no_space: bool,
        /// QEMU stops the guest because of it.
        stops: bool,
    },
    /// The guest switched the machine off.
    GuestShutDown,
    /// The guest reported a panic.
    GuestPanicked,
    /// Something outside the guest ends QEMU.
    HostShutDown {
        /// QEMU's word for it.
        reason: String,
    },
}

/// Commands to QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Command {
    /// Let the processors run.
    Cont,
    /// Stop the processors.
    Stop,
    /// Reset the machine.
    Reset,
    /// Press the power button.
    PowerButton,
    /// Complete writes and exit.
    Quit,
}

impl Command {
    /// QMP's name.
    pub fn name(self) -> &'static str {
        match self {
            Command::Cont => "cont",
            Command::Stop => "stop",
            Command::Reset => "system_reset",
            Command::PowerButton => "system_powerdown",
            Command::Quit => "quit",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Something to do. Each is answered by an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open disks, kernel and taps, and serve the disks. Answered by `Opened` or `NotOpened`.
    Open,
    /// Start QEMU. Answered by `Launched`, then `Ready`, or by `NotLaunched`.
    Launch,
    /// Send a command. Answered by `Answered`, unless QEMU ends before.
    Command(Command),
    /// Kill QEMU. Answered by `Exited`.
    Kill,
    /// Try the requests that are held for lack of space again, now.
    RetryHeld,
    /// Let the requests that are held for lack of space fail, and all later ones: QEMU waits for them before it stops.
    LetHeldFail,
    /// Stop serving the disks, flush and close them. Answered by `Closed`.
    Close,
    /// Write the result and end.
    Finish(End),
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind.
    pub reason: ErrorReason,
    /// A sentence.
    pub message: String,
}
