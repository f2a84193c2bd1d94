//! What the operations that take long have in common.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::block::IoError;
use crate::create::CreateError;
use crate::error::OpenError;
use crate::import::Progress;
use crate::pool::PoolError;

/// Why an operation on a whole disk was not carried out. Unless the operation
/// says otherwise, nothing was changed and nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError {
    /// The disk can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The target can't be made.
    #[error(transparent)]
    Create(CreateError),
    /// The disk is not one for which the operation makes sense.
    #[error("{}: {reason}", path.display())]
    Refused {
        /// The disk.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The progress callback said to stop.
    #[error("the operation was cancelled")]
    Cancelled,
    /// The file system is too full.
    #[error("{}: the operation needs {need} bytes and the file system has {have} left; free some", path.display())]
    NoSpace {
        /// The disk that would grow.
        path: PathBuf,
        /// How much it takes, in bytes.
        need: u64,
        /// How much there is, in bytes.
        have: u64,
    },
    /// A disk can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The disk.
        path: PathBuf,
        /// What went wrong.
        source: IoError,
    },
}

impl OperationError {
    pub(crate) fn io(path: &Path) -> impl Fn(IoError) -> OperationError + use<> {
        let path = path.to_owned();
        move |source| OperationError::Io {
            path: path.clone(),
            source,
        }
    }
}

impl From<CreateError> for OperationError {
    fn from(error: CreateError) -> OperationError {
        match error {
            CreateError::Cancelled => OperationError::Cancelled,
            CreateError::GateClosed { path } => OperationError::Io {
                path,
                source: IoError::GateClosed,
            },
            error => OperationError::Create(error),
        }
    }
}

impl From<PoolError> for OperationError {
    fn from(error: PoolError) -> OperationError {
        OpenError::from(error).into()
    }
}

/// Reports progress; an error if the caller wants to stop.
pub(crate) fn report(
    done: u64,
    total: u64,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), OperationError> {
    match progress(Progress { done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(OperationError::Cancelled),
    }
}
