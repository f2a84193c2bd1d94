//! Why a disk could not be opened.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::block::IoError;
use crate::image::Refusal;
use crate::lock::LockError;
use crate::pool::PoolError;

/// Why a VHD was not opened. Every variant names the file, relative to its
/// pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such file.
    #[error("{}: there is no such file in the pool", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// Someone else has it open in a way that excludes us.
    #[error("{}: the disk is in use: {holder}; stop its user first", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Which lock is held, and by whom where that is known.
        holder: String,
    },
    /// It is a VHD, but what it says of itself cannot be true.
    #[error("{}: the VHD is damaged: {found}; nothing was changed, restore it or repair a copy", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        found: String,
    },
    /// It is something that this release does not open.
    #[error("{}: cannot be opened as a disk: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What the file is, and what to do.
        what: String,
    },
    /// The path would leave the pool: it is absolute, has `..` in it, or
    /// passes a symbolic link.
    #[error("{}: the path leaves its pool: it must be relative, without '..' and without symbolic links", path.display())]
    PathEscapes {
        /// The path as given.
        path: PathBuf,
    },
    /// The parent of a differencing disk was not found.
    #[error("{}: its parent '{parent}' ({unique_id}) was not found: {tried}; name a folder to look in, or reconnect the disk", path.display())]
    ParentNotFound {
        /// The child.
        path: PathBuf,
        /// The parent's name, as the child has it.
        parent: String,
        /// The parent's identity.
        unique_id: Uuid,
        /// Where it was looked for, and what was there.
        tried: String,
    },
    /// What lies in the parent's place has another identity.
    #[error("{}: its parent is the disk {expected}, but {} is {found}; put the right one there or name its folder", path.display(), parent.display())]
    ParentMismatch {
        /// The child.
        path: PathBuf,
        /// What lies in the parent's place.
        parent: PathBuf,
        /// The parent's identity.
        expected: Uuid,
        /// The identity of what was found.
        found: Uuid,
    },
    /// The parent was modified after the child was made, so what the child
    /// shows may be wrong: it opens for reading only.
    #[error("{}: its parent {} was modified at {found} seconds since 2000, expected {expected}: open the disk for reading, and reconnect it if the content is right", path.display(), parent.display())]
    ParentChanged {
        /// The child.
        path: PathBuf,
        /// The parent.
        parent: PathBuf,
        /// Time of modification that the child knows, in seconds since
        /// 2000-01-01 UTC.
        expected: u32,
        /// The one that the parent has.
        found: u32,
    },
    /// The file system has no room for what opening has to write.
    #[error("{}: no space left on the file system of the pool", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{}: {operation}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// The kinds of [`OpenError`], for those who only need to branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// See [`OpenError::NotFound`].
    NotFound,
    /// See [`OpenError::InUse`].
    InUse,
    /// See [`OpenError::Corrupt`].
    Corrupt,
    /// See [`OpenError::Unsupported`].
    Unsupported,
    /// See [`OpenError::PathEscapes`].
    PathEscapes,
    /// See [`OpenError::ParentNotFound`].
    ParentNotFound,
    /// See [`OpenError::ParentMismatch`].
    ParentMismatch,
    /// See [`OpenError::ParentChanged`].
    ParentChanged,
    /// See [`OpenError::NoSpace`].
    NoSpace,
    /// See [`OpenError::Io`].
    Io,
}

impl OpenError {
    /// Which kind of error this is.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            OpenError::NotFound { .. } => OpenErrorKind::NotFound,
            OpenError::InUse { .. } => OpenErrorKind::InUse,
            OpenError::Corrupt { .. } => OpenErrorKind::Corrupt,
            OpenError::Unsupported { .. } => OpenErrorKind::Unsupported,
            OpenError::PathEscapes { .. } => OpenErrorKind::PathEscapes,
            OpenError::ParentNotFound { .. } => OpenErrorKind::ParentNotFound,
            OpenError::ParentMismatch { .. } => OpenErrorKind::ParentMismatch,
            OpenError::ParentChanged { .. } => OpenErrorKind::ParentChanged,
            OpenError::NoSpace { .. } => OpenErrorKind::NoSpace,
            OpenError::Io { .. } => OpenErrorKind::Io,
        }
    }
}

impl From<PoolError> for OpenError {
    fn from(error: PoolError) -> OpenError {
        match error {
            PoolError::NotFound { path } => OpenError::NotFound { path },
            PoolError::PathEscapes { path } => OpenError::PathEscapes { path },
            PoolError::NotAFile { path, found } => OpenError::Unsupported {
                path,
                what: format!("it is a {found}, not a file"),
            },
            PoolError::Io {
                path,
                operation,
                source,
            } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    OpenError::NoSpace { path }
                }
                _ => OpenError::Io {
                    path,
                    operation,
                    source,
                },
            },
        }
    }
}

impl OpenError {
    pub(crate) fn from_lock(path: &Path, error: LockError) -> OpenError {
        match error {
            LockError::Held(holder) => OpenError::InUse {
                path: path.to_owned(),
                holder,
            },
            LockError::Pool(error) => error.into(),
            LockError::Io(source) => OpenError::Io {
                path: path.to_owned(),
                operation: "lock the disk",
                source,
            },
        }
    }

    pub(crate) fn from_refusal(path: &Path, refusal: Refusal) -> OpenError {
        let path = path.to_owned();
        match refusal {
            Refusal::Corrupt(found) => OpenError::Corrupt { path, found },
            Refusal::Unsupported(what) => OpenError::Unsupported { path, what },
            Refusal::Io(IoError::NoSpace { .. }) => OpenError::NoSpace { path },
            Refusal::Io(error) => OpenError::Io {
                path,
                operation: "open the disk",
                source: io::Error::other(error),
            },
        }
    }
}
