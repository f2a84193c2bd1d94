//! What travels over `api.sock`, and what is left in `result.json`.
//!
//! HTTP/1.1 with JSON bodies:
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/vm` | | [`Status`] |
//! | `PUT /v1/vm/power` | [`PowerRequest`] | [`Status`] right after the request was taken in |
//! | `PUT /v1/vm/reset` | [`ResetRequest`] | [`Status`] |
//! | `GET /v1/vm/events` | | a [`Status`] per line: the current one at once, then the newest one after each change |
//!
//! Refusals carry an [`ApiError`]. Every verb may be repeated: asking for what is already so changes nothing.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The version in the paths of the API and in `vmm.json`.
pub const API_VERSION: &str = "v1";

/// Where a machine is in its life. The diagram is in the documentation of the crate's `lifecycle` module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// The process is there; nothing has been opened yet.
    Created,
    /// Disks are being opened and QEMU is being started.
    Starting,
    /// The guest's processors run.
    Running,
    /// The guest's processors are stopped and can go on; [`Status::pause_reason`] says why.
    Paused,
    /// The guest is being stopped.
    Stopping,
    /// The guest has ended in an orderly way.
    Stopped,
    /// The machine could not be started, or died.
    Failed,
}

impl State {
    /// True when nothing will happen any more.
    pub fn is_final(self) -> bool {
        matches!(self, State::Stopped | State::Failed)
    }
}

/// Why a machine is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PauseReason {
    /// It was asked for.
    Requested,
    /// A disk's pool has no space left. The guest's requests are held; it goes on by itself once there is room, and they
    /// are tried at once when the machine is set to `Running`.
    NoSpace,
    /// QEMU stopped the guest by itself for another reason, said in [`Status::message`].
    Qemu,
}

/// The step of the stop ladder that ended the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StopStep {
    /// The guest shut down when its power button was pressed.
    PowerButton,
    /// QEMU was told to quit: the guest was cut off, its acknowledged writes are on the disk.
    Quit,
    /// QEMU did not quit and was killed.
    Kill,
}

/// The answer to `GET /v1/vm`, and each line of the event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `id` of the configuration.
    pub id: String,
    /// `name` of the configuration.
    pub name: String,
    /// `hostEpoch` of the configuration, for the agent that adopts this process.
    pub host_epoch: u64,
    /// Where the machine is.
    pub state: State,
    /// Since when it is there.
    pub since: Timestamp,
    /// Process id of `paddock-vmm`.
    pub pid: u32,
    /// Process id of QEMU while it runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub qemu_pid: Option<u32>,
    /// How often the guest was reset, by itself or on request, since this process started.
    pub resets: u64,
    /// The newest token of [`ResetRequest`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reset_token: Option<String>,
    /// Why it is paused, if it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pause_reason: Option<PauseReason>,
    /// The step of the stop ladder that is being tried, or that ended the guest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stop_step: Option<StopStep>,
    /// One sentence for a person; empty when there is nothing to say.
    pub message: String,
}

/// What a machine's power can be set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Power {
    /// Start or resume.
    Running,
    /// Stop the processors, keep the memory.
    Paused,
    /// Stop the guest: power button, then quit, then kill.
    Stopped,
}

/// The body of `PUT /v1/vm/power`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PowerRequest {
    /// The wish.
    pub power: Power,
    /// With `Stopped`: how long the guest may take after the power button was pressed, in seconds, 0 to 86,400. 0 turns
    /// it off at once. Without it the configuration's `stopDeadlineSeconds` holds. A second request can shorten a
    /// deadline that is running, never lengthen it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deadline_seconds: Option<u32>,
}

/// The body of `PUT /v1/vm/reset`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResetRequest {
    /// Any text of 1 to 128 characters. The same token as last time changes nothing.
    pub token: String,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorReason {
    /// The body or a value in it is wrong.
    BadRequest,
    /// No such path.
    NotFound,
    /// The path has no such method.
    MethodNotAllowed,
    /// The machine is being stopped or has ended; it cannot be called back.
    Stopping,
    /// The process is too busy to take the request in.
    Busy,
    /// A reason that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The body of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiError {
    /// The kind of refusal.
    pub reason: ErrorReason,
    /// One sentence for a person.
    pub message: String,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// The guest switched itself off; nobody had asked.
    GuestPowerOff,
    /// It was stopped on request; [`RunResult::stop_step`] says how.
    Stopped,
    /// It could not start, or it died; [`RunResult::reason`] says why.
    Failed,
}

/// The kinds of end, more precise than [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EndReason {
    /// With `GuestPowerOff`.
    GuestPowerOff,
    /// With `Stopped`.
    StopRequested,
    /// The configuration was refused.
    InvalidConfig,
    /// A disk could not be opened.
    DiskNotOpened,
    /// Somebody else holds a disk.
    DiskInUse,
    /// A parent of a disk was not found, or another disk lies in its place.
    ParentNotFound,
    /// A parent of a disk was modified since its child was made.
    ParentChanged,
    /// The undo disk that has a guest's changes is not there.
    UndoDiskNotFound,
    /// A pool has no room for what opening a disk writes.
    PoolFull,
    /// A disk does not fit on its bus.
    DiskTooLargeForBus,
    /// The kernel or the initial ramdisk could not be read.
    KernelNotRead,
    /// A network adapter's tap device could not be opened.
    TapNotOpened,
    /// QEMU could not be started, or did not get ready in time.
    QemuNotStarted,
    /// QEMU ended by itself.
    QemuExited,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// The guest had ended, but what it had written could not be made durable.
    DiskNotFlushed,
    /// Something on the host failed; the message says what.
    HostError,
    /// A reason that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The content of `result.json`. It is written once, as the last thing a run does: a run directory without it belongs
/// to a process that runs or that crashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunResult {
    /// How it ended.
    pub outcome: Outcome,
    /// With `Stopped`: the step that ended the guest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stop_step: Option<StopStep>,
    /// Why it ended.
    pub reason: EndReason,
    /// One sentence for a person.
    pub message: String,
    /// How often the guest had been reset.
    pub resets: u64,
    /// When it ended.
    pub time: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_has_the_documented_shape() {
        let status = Status {
            id: "a".into(),
            name: "web".into(),
            host_epoch: 3,
            state: State::Paused,
            since: "2026-01-02T03:04:05Z".parse().unwrap(),
            pid: 10,
            qemu_pid: Some(11),
            resets: 2,
            reset_token: None,
            pause_reason: Some(PauseReason::NoSpace),
            stop_step: None,
            message: "disk full".into(),
        };
        let json = concat!(
            r#"{"id":"a","name":"web","hostEpoch":3,"state":"Paused","since":"2026-01-02T03:04:05Z","pid":10,"#,
            r#""qemuPid":11,"resets":2,"pauseReason":"NoSpace","message":"disk full"}"#
        );
        assert_eq!(serde_json::to_string(&status).unwrap(), json);
        assert_eq!(serde_json::from_str::<Status>(json).unwrap(), status);
    }

    #[test]
    fn an_unknown_end_reason_is_kept_as_unknown() {
        let json = r#"{"outcome":"Failed","reason":"FromTheFuture","message":"m","resets":0,"time":"2026-01-02T03:04:05Z"}"#;
        assert_eq!(
            serde_json::from_str::<RunResult>(json).unwrap().reason,
            EndReason::Unknown
        );
    }

    #[test]
    fn requests_refuse_unknown_fields() {
        assert!(
            serde_json::from_str::<PowerRequest>(r#"{"power":"Stopped","deadline":3}"#).is_err()
        );
        assert_eq!(
            serde_json::from_str::<PowerRequest>(r#"{"power":"Stopped","deadlineSeconds":3}"#)
                .unwrap(),
            PowerRequest {
                power: Power::Stopped,
                deadline_seconds: Some(3)
            }
        );
    }
}
