//! Errors as the command reports them: a message, and an exit code.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use paddock_nbd::ServeError;
use paddock_vhd::{CreateError, ImportError, IoError, OpenError, OperationError, PoolError};
use serde::{Deserialize, Serialize};

/// How the command ends. The numbers are documented in the help and stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Good = 0,
    WrongUse = 1,
    Damaged = 2,
    Busy = 3,
    NoRoom = 4,
    Differ = 5,
    System = 6,
    Cancelled = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl Exit {
    fn name(self) -> &'static str {
        match self {
            Exit::Good => "good",
            Exit::WrongUse => "wrongUse",
            Exit::Damaged => "damaged",
            Exit::Busy => "busy",
            Exit::NoRoom => "noRoom",
            Exit::Differ => "differ",
            Exit::System => "system",
            Exit::Cancelled => "cancelled",
        }
    }

    /// The exit of another process of ours.
    pub(crate) fn from_code(code: Option<i32>) -> Exit {
        [
            Exit::WrongUse,
            Exit::Damaged,
            Exit::Busy,
            Exit::NoRoom,
            Exit::Cancelled,
        ]
        .into_iter()
        .find(|exit| code == Some(*exit as i32))
        .unwrap_or(Exit::System)
    }

    fn of_io(error: &io::Error) -> Exit {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Exit::NoRoom,
            io::ErrorKind::NotFound
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::NotADirectory => Exit::WrongUse,
            io::ErrorKind::ResourceBusy | io::ErrorKind::AddrInUse => Exit::Busy,
            _ => Exit::System,
        }
    }
}

/// Why the command did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    message: String,
    hint: Option<Cow<'static, str>>,
}

/// The shape of an error in JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    error: Cow<'a, str>,
    kind: Cow<'a, str>,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<Cow<'a, str>>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn wrong_use(message: impl Into<String>) -> Failure {
        Failure::new(Exit::WrongUse, message)
    }

    pub(crate) fn cancelled() -> Failure {
        Failure::new(Exit::Cancelled, "cancelled; nothing was changed")
    }

    /// What the system said to `operation` on `path`.
    pub(crate) fn io(path: &Path, operation: &str, error: &io::Error) -> Failure {
        Failure::new(
            Exit::of_io(error),
            format!("{}: {operation}: {error}", path.display()),
        )
    }

    /// An error of a disk that is open.
    pub(crate) fn disk(path: &Path, error: &IoError) -> Failure {
        let exit = match error {
            IoError::NoSpace { .. } => Exit::NoRoom,
            IoError::OutOfRange { .. } | IoError::ReadOnly => Exit::WrongUse,
            _ => Exit::System,
        };
        Failure::new(exit, format!("{}: {error}", path.display()))
    }

    /// With something that the user should know.
    pub(crate) fn noting(mut self, note: &str) -> Failure {
        self.message.push_str("; ");
        self.message.push_str(note);
        self
    }

    /// With the path of what it is about in front.
    pub(crate) fn of(mut self, path: &Path) -> Failure {
        self.message = format!("{}: {}", path.display(), self.message);
        self
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn hinting(mut self, hint: &'static str) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn to_json(&self) -> String {
        let report = Report {
            error: self.message.as_str().into(),
            kind: self.exit.name().into(),
            exit_code: self.exit as u8,
            hint: self.hint.as_deref().map(Cow::from),
        };
        serde_json::to_string(&report).unwrap_or_default()
    }

    /// What another process of ours wrote by [`Failure::to_json`].
    pub(crate) fn from_json(text: &str) -> Option<Failure> {
        let report: Report<'_> = serde_json::from_str(text).ok()?;
        Some(Failure {
            exit: Exit::from_code(Some(report.exit_code.into())),
            message: report.error.into_owned(),
            hint: report.hint.map(|hint| hint.into_owned().into()),
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vhd: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n     {hint}"),
            None => Ok(()),
        }
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Failure {
        let exit = match &error {
            PoolError::Io { source, .. } => Exit::of_io(source),
            _ => Exit::WrongUse,
        };
        Failure::new(exit, error.to_string())
    }
}

/// A parent is named from the folder in which it was found, and most are found
/// from the root: for people that is a path of its own.
fn from_the_root(path: &mut PathBuf) {
    let rooted = Path::new("/").join(&path);
    if !path.exists() && rooted.exists() {
        *path = rooted;
    }
}

impl From<OpenError> for Failure {
    fn from(mut error: OpenError) -> Failure {
        match &mut error {
            OpenError::ParentMismatch { path, parent, .. }
            | OpenError::ParentChanged { path, parent, .. } => {
                from_the_root(path);
                from_the_root(parent);
            }
            OpenError::InUse { path, .. }
            | OpenError::Corrupt { path, .. }
            | OpenError::Unsupported { path, .. }
            | OpenError::ParentNotFound { path, .. }
            | OpenError::Io { path, .. } => from_the_root(path),
            _ => {}
        }
        let exit = match &error {
            OpenError::InUse { .. } => Exit::Busy,
            OpenError::Corrupt { .. }
            | OpenError::ParentNotFound { .. }
            | OpenError::ParentMismatch { .. }
            | OpenError::ParentChanged { .. } => Exit::Damaged,
            OpenError::NoSpace { .. } => Exit::NoRoom,
            OpenError::Io { source, .. } => Exit::of_io(source),
            _ => Exit::WrongUse,
        };
        let hint = match &error {
            OpenError::Corrupt { .. } => Some(
                "`vhd check FILE` lists what is wrong, `vhd repair FILE NEW` saves what is left into a new disk",
            ),
            OpenError::ParentNotFound { .. } | OpenError::ParentMismatch { .. } => Some(
                "`--search DIR` names a folder to look in, `vhd reparent FILE PARENT` reconnects the disk for good",
            ),
            OpenError::ParentChanged { .. } => Some(
                "`vhd convert` and `vhd merge --into` refuse it, too; if the parent's content is right: `vhd reparent FILE PARENT`",
            ),
            OpenError::Unsupported { what, .. } if what.contains("no VHD footer") => {
                Some("`--from raw` names a raw image; nothing is taken for one that isn't named so")
            }
            OpenError::Unsupported { what, .. } if what.contains("not a VHD") => Some(
                "its own tools convert it to a raw image, `vhd convert --from raw` that to a VHD",
            ),
            _ => None,
        };
        let failure = Failure::new(exit, error.to_string());
        match hint {
            Some(hint) => failure.hinting(hint),
            None => failure,
        }
    }
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Failure {
        let exit = match error {
            CreateError::Parent(error) => {
                let failure = Failure::from(error);
                return Failure {
                    message: format!("the parent: {}", failure.message),
                    ..failure
                };
            }
            CreateError::InUse { .. } => Exit::Busy,
            CreateError::NoSpace { .. } => Exit::NoRoom,
            CreateError::Cancelled => return Failure::cancelled(),
            CreateError::Io { ref source, .. } => Exit::of_io(source),
            _ => Exit::WrongUse,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<OperationError> for Failure {
    fn from(error: OperationError) -> Failure {
        match error {
            OperationError::Open(error) => error.into(),
            OperationError::Create(error) => error.into(),
            OperationError::Cancelled => Failure::cancelled(),
            OperationError::NoSpace { .. } => Failure::new(Exit::NoRoom, error.to_string()),
            OperationError::Io { path, source } => Failure::disk(&path, &source),
            error => Failure::wrong_use(error.to_string()),
        }
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Failure {
        match error {
            ImportError::Create(error) => error.into(),
            ImportError::Cancelled => Failure::cancelled(),
            ImportError::Source { ref source, .. } => {
                Failure::new(Exit::of_io(source), error.to_string())
            }
            ImportError::Write { path, source } => Failure::disk(&path, &source),
            error => Failure::wrong_use(error.to_string()),
        }
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Failure {
        let exit = match &error {
            ServeError::Path { source, .. }
            | ServeError::Address { source, .. }
            | ServeError::Start(source) => Exit::of_io(source),
            ServeError::Exports(_) | ServeError::NotLoopback(_) => Exit::WrongUse,
        };
        Failure::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_process_reports_is_what_it_was() {
        let failure = Failure::new(Exit::NoRoom, "disk.vhd: \"full\"").hinting("make room");
        let read = Failure::from_json(&failure.to_json()).unwrap();
        assert_eq!(read.exit, Exit::NoRoom);
        assert_eq!(read.to_string(), failure.to_string());
        assert!(Failure::from_json("closed").is_none());
    }
}
