//! What a disk looks like to the one who serves it to a guest.

use std::io;
use std::sync::Arc;

use crate::queue::{Intent, Place};

/// A disk of [`size`](BlockDevice::size) bytes.
///
/// Offsets and lengths are bytes and need not be multiples of a sector. All
/// methods take `&self` and may be called from many threads at once. Two
/// writes to the same bytes that overlap in time leave either's data there.
///
/// A returned `Ok` of [`write_at`](BlockDevice::write_at),
/// [`discard`](BlockDevice::discard) or
/// [`write_zeroes`](BlockDevice::write_zeroes) means that later reads see it;
/// only [`flush`](BlockDevice::flush) makes it survive a crash. After an error
/// the bytes of that request are the old or the new ones, and nothing else
/// has changed.
pub trait BlockDevice: Send + Sync {
    /// The size of the disk in bytes.
    fn size(&self) -> u64;

    /// Whether writes are refused with [`IoError::ReadOnly`].
    fn read_only(&self) -> bool;

    /// Fills `buf` with the bytes from `offset` on.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError>;

    /// Writes `buf` from `offset` on.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError>;

    /// Makes everything durable whose call returned before this one began.
    fn flush(&self) -> Result<(), IoError>;

    /// Makes the range read as zeros and gives its space back where the disk
    /// type allows it (a fixed disk keeps its space).
    fn discard(&self, offset: u64, len: u64) -> Result<(), IoError>;

    /// Makes the range read as zeros.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError>;

    /// What is stored in the range, in order and without gaps, beginning at
    /// `offset`. At least one extent for a range that is not empty. The list
    /// covers the whole range unless that would take more than
    /// [`Extent::MAX_PER_CALL`] extents; then it covers its beginning.
    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError>;

    /// Where a range lies in one file in one piece, with the right to read or
    /// write it there, for a [`Queue`](crate::Queue). `None`, as a disk
    /// without such files says always: use the calls above, which also tell
    /// why a range can't be read or written. Does not wait.
    fn locate(&self, _intent: Intent, _offset: u64, _len: u64) -> Option<Place> {
        None
    }
}

/// A run of bytes of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte of the run on the disk.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// What the run holds.
    pub kind: ExtentKind,
}

impl Extent {
    /// The most extents that one [`BlockDevice::block_status`] returns.
    pub const MAX_PER_CALL: usize = 4096;
}

/// What an [`Extent`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that may be anything.
    Data,
    /// Zeros for which the file has a place.
    Zero,
    /// Zeros for which nothing is allocated.
    Hole,
}

/// Why a request to a disk failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The gate is closed or its deadline has passed.
    #[error("the disk's gate is closed: this host may no longer write to it")]
    GateClosed,
    /// The disk was opened for reading.
    #[error("the disk is open for reading only")]
    ReadOnly,
    /// The range does not lie within the disk.
    #[error("{len} bytes at {offset} do not lie within the disk of {size} bytes")]
    OutOfRange {
        /// First byte of the request.
        offset: u64,
        /// Length of the request in bytes.
        len: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// The file system is full, or the file can't grow within the format.
    /// Nothing that was acknowledged is lost; the request may be repeated
    /// once there is room.
    #[error("{disk}: {operation}: no space left ({reason}); free some and repeat the request")]
    NoSpace {
        /// The file.
        disk: Arc<str>,
        /// What was being done.
        operation: &'static str,
        /// What is full.
        reason: Arc<str>,
    },
    /// A sync of the file failed earlier. The kernel does not say which of
    /// the writes since the last successful flush it dropped, so this disk
    /// takes no more writes until it is opened again.
    #[error(
        "{disk}: an earlier sync failed ({source}); writes since the last successful flush may be lost: \
         stop the user of this disk, check the storage below, open the disk again"
    )]
    SyncFailed {
        /// The file.
        disk: Arc<str>,
        /// What the sync said.
        source: Arc<io::Error>,
    },
    /// The file can't be read or written.
    #[error("{disk}: {operation}: {source}")]
    Io {
        /// The file.
        disk: Arc<str>,
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        source: Arc<io::Error>,
    },
}

/// The kinds of [`IoError`], for those who only need to branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoErrorKind {
    /// See [`IoError::GateClosed`].
    GateClosed,
    /// See [`IoError::ReadOnly`].
    ReadOnly,
    /// See [`IoError::OutOfRange`].
    OutOfRange,
    /// See [`IoError::NoSpace`].
    NoSpace,
    /// See [`IoError::SyncFailed`].
    SyncFailed,
    /// See [`IoError::Io`].
    Io,
}

impl IoError {
    /// Which kind of error this is.
    pub fn kind(&self) -> IoErrorKind {
        match self {
            IoError::GateClosed => IoErrorKind::GateClosed,
            IoError::ReadOnly => IoErrorKind::ReadOnly,
            IoError::OutOfRange { .. } => IoErrorKind::OutOfRange,
            IoError::NoSpace { .. } => IoErrorKind::NoSpace,
            IoError::SyncFailed { .. } => IoErrorKind::SyncFailed,
            IoError::Io { .. } => IoErrorKind::Io,
        }
    }
}

/// Refuses a range that does not lie within a disk of `size` bytes.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> Result<(), IoError> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(IoError::OutOfRange { offset, len, size }),
    }
}
