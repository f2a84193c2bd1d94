//! Creating a disk.

mod names;
mod new_disk;

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use uuid::Uuid;

use crate::block::IoError;
use crate::error::OpenError;
use crate::format::DiskType;
use crate::gate::Gate;
use crate::pool::PoolError;
use crate::size::DiskSize;

pub(crate) use names::Names;
pub(crate) use new_disk::{Blueprint, NewDisk};

/// What [`Vhd::create`](crate::Vhd::create) makes.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Fixed: all space is reserved now. Dynamic: the file grows as it is
    /// written to. Differencing is refused: see
    /// [`Vhd::create_child`](crate::Vhd::create_child).
    pub disk_type: DiskType,
    /// What the guest sees.
    pub size: DiskSize,
    /// The identity that children of the disk refer to.
    pub unique_id: Uuid,
    /// The time of creation; the format keeps whole seconds from 2000 on.
    pub created: SystemTime,
    /// What every write passes, the naming of the disk, and what is written
    /// to it while it is open.
    pub gate: Gate,
}

impl CreateOptions {
    /// A disk with a random identity, created now, with a gate that is open.
    pub fn new(disk_type: DiskType, size: DiskSize) -> CreateOptions {
        CreateOptions {
            disk_type,
            size,
            unique_id: Uuid::new_v4(),
            created: SystemTime::now(),
            gate: Gate::open(),
        }
    }
}

/// Why a disk was not created. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// A file of that name is there; it was not touched.
    #[error("{}: there is a file of that name already; choose another name or remove it", path.display())]
    AlreadyExists {
        /// The file.
        path: PathBuf,
    },
    /// Someone holds the lock of that name.
    #[error("{}: the name is in use: {holder}", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Which lock is held, and by whom where that is known.
        holder: String,
    },
    /// The path would leave the pool: it is absolute, has `..` in it, or
    /// passes a symbolic link.
    #[error("{}: the path leaves its pool: it must be relative, without '..' and without symbolic links", path.display())]
    PathEscapes {
        /// The path as given.
        path: PathBuf,
    },
    /// A differencing disk needs a parent: see
    /// [`Vhd::create_child`](crate::Vhd::create_child).
    #[error("{}: a differencing disk is made over a parent, name one", path.display())]
    NeedsParent {
        /// The file.
        path: PathBuf,
    },
    /// The parent can't be opened.
    #[error("the parent: {0}")]
    Parent(#[from] OpenError),
    /// The file system is too full.
    #[error("{}: the disk needs {need} bytes and the file system has {have} left; free some or choose another pool", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// How much it takes, in bytes.
        need: u64,
        /// How much there is, in bytes.
        have: u64,
    },
    /// The progress callback said to stop.
    #[error("the creation was cancelled")]
    Cancelled,
    /// The gate was closed, or its deadline passed.
    #[error("{}: {}", path.display(), IoError::GateClosed)]
    GateClosed {
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

impl From<PoolError> for CreateError {
    fn from(error: PoolError) -> CreateError {
        match error {
            PoolError::PathEscapes { path } => CreateError::PathEscapes { path },
            PoolError::Io {
                path,
                operation,
                source,
            } => CreateError::Io {
                path,
                operation,
                source,
            },
            PoolError::NotFound { path } => {
                let source = io::ErrorKind::NotFound.into();
                CreateError::Io {
                    path,
                    operation: "create the file",
                    source,
                }
            }
            PoolError::NotAFile { path, found } => {
                let source = io::Error::other(format!("there is a {found} of that name"));
                CreateError::Io {
                    path,
                    operation: "create the file",
                    source,
                }
            }
        }
    }
}
