//! Why a disk, or a part of it, was not walked.

use std::io;

/// Why nothing can be said of a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// The disk could not be read.
    #[error("read {len} bytes at byte {offset} of the disk: {source}")]
    Read {
        /// The first byte that was asked for.
        offset: u64,
        /// How many bytes were asked for.
        len: u64,
        /// What the disk said.
        source: io::Error,
    },
    /// The partition table contradicts itself, or the disk.
    #[error(
        "the partition table: {found}; nothing on the disk is taken to be free, repair the table first"
    )]
    Table {
        /// What was expected and what was found.
        found: String,
    },
}

/// Why a walk stopped: the disk failed, or what was read leaves doubts.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(WalkError),
    Doubt(String),
}

/// Stops a walk over what was read.
pub(crate) fn doubt<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Doubt(why.into()))
}
