//! The words between the core of an instance and those who carry out its decisions.

use crate::{clock::Boottime, lease::Held};
use jiff::Timestamp;
use paddock_crds::{
    host::Accelerator,
    virtual_machine_instance::{Power, VirtualMachineInstanceStatus as Status},
};

/// The circumstances of a step.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For deadlines.
    pub boot: Boottime,
    /// For people.
    pub wall: Timestamp,
    /// What this host holds.
    pub held: Option<Held>,
}

impl Now {
    pub(super) fn valid_epoch(&self) -> Option<i64> {
        self.held
            .filter(|held| held.is_valid(self.boot))
            .map(|held| held.epoch)
    }
}

/// What the operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec.hostEpoch`.
    pub host_epoch: i64,
    /// `spec.power`.
    pub power: Power,
    /// `spec.restartToken`.
    pub restart_token: Option<String>,
    /// `spec.configRevision`.
    pub config_revision: String,
    /// `spec.config.stopDeadlineSeconds`.
    pub stop_deadline_seconds: u32,
    /// What its DHCP servers are to answer, as a text to compare. A running guest gets it when it asks again.
    pub dhcp: String,
    /// Whether it is being deleted.
    pub deleting: bool,
}

impl Wish {
    pub(super) fn is_off(&self) -> bool {
        self.deleting || self.power == Power::Stopped
    }
}

/// Which of the processes of an instance; counted by the core.
pub type Run = u64;

/// What a guest was started from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The generation.
    pub generation: i64,
    /// The config revision.
    pub config_revision: String,
    /// The restart token.
    pub restart_token: Option<String>,
    /// When, in RFC 3339.
    pub at: String,
    /// The monitor's process id.
    pub process_id: Option<i64>,
    /// What runs its instructions.
    pub accelerator: Option<Accelerator>,
    /// What its DHCP servers answer, as [`Wish::dhcp`]; empty when that is not known.
    pub dhcp: String,
}

/// What a guest is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Not running yet.
    Starting,
    /// Its processors run.
    Running,
    /// Its processors are frozen.
    Paused(Pause),
}

/// What a disk takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskUse {
    /// Name of the disk within the machine.
    pub name: String,
    /// That file, relative to its pool.
    pub path: String,
    /// Bytes that the file which the guest writes takes in its pool.
    pub allocated: u64,
    /// The length of that file in bytes.
    pub length: u64,
}

/// Why a guest is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pause {
    /// It was asked for.
    Requested,
    /// For another reason: a CamelCase word and a sentence. It goes on once it is told to and that reason has gone.
    Trouble(Failure),
}

/// Why something failed: a CamelCase word and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The word.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
}

impl Failure {
    /// A failure.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As it was asked to; the step that ended the guest.
    Stopped(&'static str),
    /// The guest switched itself off.
    GuestPowerOff,
    /// It said why: it did not start, or it died.
    Failed(Failure),
    /// Without a word.
    Crashed,
}

/// What an examination of the host found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing, and that is proved: no process, no run folder.
    Nothing,
    /// A process that answers and is watched from now on.
    Adopted {
        /// What it was started from.
        started: Started,
        /// What its guest does.
        guest: Guest,
    },
    /// Remains of a process that ended, or does not answer.
    Ended(End),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time went by, or the lease changed.
    Tick,
    /// The instance as a watch shows it.
    Wished(Wish),
    /// A watch no longer shows the instance.
    Vanished,
    /// The answer to [`Action::Confirm`]; `None`: there is no such instance of this host.
    Confirmed(Option<Wish>),
    /// The instance could not be read.
    ConfirmFailed,
    /// The answer to [`Action::Examine`].
    Examined(Found),
    /// The host could not be examined.
    ExamineFailed(String),
    /// The answer to [`Action::Prepare`].
    Prepared(Result<(), Failure>),
    /// The answer to [`Action::Spawn`].
    Spawned(Result<Started, Failure>),
    /// A running process tells.
    GuestIs(Run, Guest),
    /// What the disks of a running process take.
    Measured(Run, Vec<DiskUse>),
    /// What they take now that it has ended.
    MeasuredLast(Run, Vec<DiskUse>),
    /// The answer to [`Action::ServeDhcp`]: what the DHCP servers answer now.
    DhcpServed(Run, Result<String, Failure>),
    /// A process ended.
    Exited(Run, End),
    /// [`Action::Stop`] could not be delivered.
    StopFailed,
    /// No process of the instance is left: its cgroup was proved empty.
    Cleared,
    /// The proof could not be had.
    ClearFailed(String),
    /// The answer to [`Action::Clean`]. What could not be removed is left to the sweep.
    Cleaned,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Look at what an earlier agent left, take a running process over.
    Examine(Run),
    /// Read the instance, with quorum.
    Confirm,
    /// Make networks and taps, look at disks, kernel and initrd.
    Prepare,
    /// Start the process.
    Spawn(Run),
    /// Freeze or thaw the processors.
    SetPower(Power),
    /// Let the DHCP servers of the running guest answer what is wished now.
    ServeDhcp(Run),
    /// Press the power button, turn off after so many seconds.
    Stop(u32),
    /// Kill everything of the instance and prove it.
    Clear,
    /// Remove taps, empty bridges and the run folder.
    Clean,
    /// Write the status; replaces one that was not written yet.
    Report(Box<Status>),
    /// Send [`Event::Tick`] then.
    WakeAt(Boottime),
    /// Nothing is left to do, ever.
    End,
}
