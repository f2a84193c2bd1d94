//! From what went wrong to a reason and a sentence.

use crate::{instance::core::Failure, task::core::CANCELLED};
use paddock_vhd::{
    CreateError, ImportError, IoError, OpenError, OpenErrorKind, OperationError, PoolError,
};

pub(super) fn io_error(message: String) -> Failure {
    Failure::new("IoError", message)
}

pub(super) fn refused(message: String) -> Failure {
    Failure::new("Refused", message)
}

pub(super) fn cancelled() -> Failure {
    Failure::new(CANCELLED, "the task was deleted before it was done")
}

/// A file that is there and was made for something else.
pub(super) fn file_exists(path: &str) -> Failure {
    Failure::new(
        "FileExists",
        format!(
            "{path}: there is a file of that name already, made for something else; it was not touched: choose another path, or adopt it"
        ),
    )
}

pub(super) fn from_io(error: &IoError) -> Failure {
    match error {
        IoError::NoSpace { .. } => Failure::new("PoolFull", error.to_string()),
        _ => io_error(error.to_string()),
    }
}

pub(super) fn from_create(error: &CreateError) -> Failure {
    let reason = match error {
        CreateError::AlreadyExists { .. } => "FileExists",
        CreateError::InUse { .. } => "DiskInUse",
        CreateError::PathEscapes { .. } => "PathEscapesPool",
        CreateError::NoSpace { .. } => "PoolFull",
        CreateError::Parent(error) => return from_parent(error),
        CreateError::Cancelled => return cancelled(),
        _ => "IoError",
    };
    Failure::new(reason, error.to_string())
}

/// A parent that cannot be opened, as the child's maker sees it.
fn from_parent(error: &OpenError) -> Failure {
    match error.kind() {
        OpenErrorKind::NotFound => Failure::new("ParentNotFound", format!("the parent: {error}")),
        _ => from_open(error),
    }
}

pub(super) fn from_operation(error: &OperationError) -> Failure {
    match error {
        OperationError::Open(error) => from_open(error),
        OperationError::Create(error) => from_create(error),
        OperationError::Refused { .. } => refused(error.to_string()),
        OperationError::Cancelled => cancelled(),
        OperationError::NoSpace { .. } => Failure::new("PoolFull", error.to_string()),
        OperationError::Io { source, .. } => Failure {
            message: error.to_string(),
            ..from_io(source)
        },
        _ => io_error(error.to_string()),
    }
}

pub(super) fn from_import(error: &ImportError) -> Failure {
    let reason = match error {
        ImportError::Create(error) => return from_create(error),
        ImportError::SourceTooLarge { .. } | ImportError::Size(_) => "SourceTooLarge",
        ImportError::NotRaw { .. } => "UnsupportedFormat",
        ImportError::WrongSha256 { .. } => "ChecksumMismatch",
        ImportError::Cancelled => return cancelled(),
        ImportError::Write { source, .. } => return from_io(source),
        _ => "IoError",
    };
    Failure::new(reason, error.to_string())
}

pub(super) fn from_source(pool: &str, error: &PoolError) -> Failure {
    let reason = match error {
        PoolError::NotFound { .. } | PoolError::NotAFile { .. } => "ImageNotFound",
        PoolError::PathEscapes { .. } => "PathEscapesPool",
        _ => "IoError",
    };
    Failure::new(reason, format!("image in pool {pool}: {error}"))
}

pub(super) fn from_open(error: &OpenError) -> Failure {
    let reason = match error.kind() {
        OpenErrorKind::NotFound => "FileNotFound",
        OpenErrorKind::InUse => "DiskInUse",
        OpenErrorKind::Corrupt => "CorruptDisk",
        OpenErrorKind::Unsupported => "UnsupportedFormat",
        OpenErrorKind::PathEscapes => "PathEscapesPool",
        OpenErrorKind::NoSpace => "PoolFull",
        OpenErrorKind::ParentNotFound | OpenErrorKind::ParentMismatch => "ParentNotFound",
        OpenErrorKind::ParentChanged => "ParentChanged",
        _ => "IoError",
    };
    Failure::new(reason, error.to_string())
}
