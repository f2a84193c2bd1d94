//! Lines from QEMU.

use serde::Deserialize;
use serde_json::Value;

use crate::lifecycle::QemuEvent;

/// The longest line that is read, in bytes. Answers to the commands that are sent here have under a thousand.
pub const MAX_LINE_BYTES: usize = 256 * 1024;

/// A line from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first one. QEMU's version.
    Greeting {
        /// Major, minor, micro.
        version: (u64, u64, u64),
    },
    /// A command was done.
    Return {
        /// The command's id.
        id: Option<u64>,
    },
    /// A command was not done.
    Error {
        /// The command's id.
        id: Option<u64>,
        /// Why.
        description: String,
    },
    /// Something happened.
    Event {
        /// Its name.
        name: String,
        /// What belongs to it; null when there is nothing.
        data: Value,
    },
}

/// Why a line is not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not JSON of the expected form.
    #[error("expected a QMP message, found {found:?}: {message}")]
    Malformed {
        /// What the parser said.
        message: String,
        /// The line's beginning.
        found: String,
    },
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Failure>,
    event: Option<String>,
    data: Option<Value>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct Greeting {
    version: Version,
}

#[derive(Deserialize)]
struct Version {
    qemu: Numbers,
}

#[derive(Deserialize)]
struct Numbers {
    major: u64,
    minor: u64,
    micro: u64,
}

#[derive(Deserialize)]
struct Failure {
    desc: String,
}

impl Message {
    /// Reads one line.
    pub fn parse(line: &[u8]) -> Result<Self, MessageError> {
        let malformed = |message: String| MessageError::Malformed {
            message,
            found: String::from_utf8_lossy(line.get(..80).unwrap_or(line)).into_owned(),
        };
        let line: Line =
            serde_json::from_slice(line).map_err(|error| malformed(error.to_string()))?;
        match line {
            Line {
                greeting:
                    Some(Greeting {
                        version: Version { qemu },
                    }),
                ..
            } => Ok(Message::Greeting {
                version: (qemu.major, qemu.minor, qemu.micro),
            }),
            Line {
                event: Some(name),
                data,
                ..
            } => Ok(Message::Event {
                name,
                data: data.unwrap_or(Value::Null),
            }),
            Line {
                error: Some(error),
                id,
                ..
            } => Ok(Message::Error {
                id,
                description: error.desc,
            }),
            Line {
                value: Some(_), id, ..
            } => Ok(Message::Return { id }),
            _ => Err(malformed("none of QMP, event, error, return".to_owned())),
        }
    }
}

impl QemuEvent {
    /// The event of this name, or `None` when it does not matter here. `disk` finds a disk's name by its block node.
    pub fn from_qmp(
        name: &str,
        data: &Value,
        disk: impl Fn(&str) -> Option<String>,
    ) -> Option<Self> {
        let text = |key: &str| data.get(key).and_then(Value::as_str).unwrap_or_default();
        let flag = |key: &str| data.get(key).and_then(Value::as_bool).unwrap_or_default();
        match name {
            "RESUME" => Some(QemuEvent::Resumed),
            "STOP" => Some(QemuEvent::Paused),
            "RESET" => Some(QemuEvent::Reset),
            "SHUTDOWN" => Some(match text("reason") {
                "guest-shutdown" => QemuEvent::GuestShutDown,
                "guest-panic" => QemuEvent::GuestPanicked,
                reason => QemuEvent::HostShutDown {
                    reason: reason.to_owned(),
                },
            }),
            "BLOCK_IO_ERROR" if text("operation") == "write" => Some(QemuEvent::WriteFailed {
                disk: disk(text("node-name")).unwrap_or_else(|| text("node-name").to_owned()),
                no_space: flag("nospace"),
                stops: text("action") == "stop",
            }),
            _ => None,
        }
    }
}
