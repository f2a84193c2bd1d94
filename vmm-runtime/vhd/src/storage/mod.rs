//! The file below a disk, as few operations as a disk needs. A trait, so that
//! tests can put a file there that fails and loses what was not synced.

mod backing;
mod direct;
#[cfg(test)]
pub(crate) mod fault;
mod file;
#[cfg(fuzzing)]
pub(crate) mod memory;
mod read_ahead;
#[cfg(test)]
pub(crate) mod sparse;
#[cfg(test)]
pub(crate) mod trace;

pub(crate) use backing::Backing;
pub(crate) use direct::DirectStorage;
pub(crate) use file::{FileStorage, next_data};
pub(crate) use read_ahead::ReadAhead;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::queue::{Hold, Intent};

/// A file. Requests may come from many threads at once.
pub(crate) trait Storage: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buf`. An end of the file before that is an error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf`, making the file longer when it ends past its end.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes completed writes durable, and the length they need.
    fn sync_data(&self) -> io::Result<()>;

    /// Sets the length; durable after the next sync.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes a range within the file read as zeros, as durable as a write.
    /// [`io::ErrorKind::Unsupported`] where the file system has no such call.
    fn zero(&self, offset: u64, len: u64, space: Space) -> io::Result<()>;

    /// The first run of bytes in `range` that may be other than zero.
    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>>;

    /// Makes later reads come from the disk, as far as everything is synced.
    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }

    /// Begins to bring to disk what was written in the range, which nobody is
    /// going to read soon. For speed alone.
    fn write_behind(&self, _range: Range<u64>) {}

    /// The file, for who reads or writes it without these calls. `None` if
    /// this is no plain file, or can't be had without waiting.
    fn place(&self, _intent: Intent) -> Option<FilePlace> {
        None
    }
}

#[cfg(any(test, fuzzing))]
impl<S: Storage + ?Sized> Storage for Arc<S> {
    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        (**self).write_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        (**self).sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        (**self).set_len(len)
    }

    fn zero(&self, offset: u64, len: u64, space: Space) -> io::Result<()> {
        (**self).zero(offset, len, space)
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        (**self).next_data(range)
    }

    fn drop_cache(&self) -> io::Result<()> {
        (**self).drop_cache()
    }

    fn write_behind(&self, range: Range<u64>) {
        (**self).write_behind(range);
    }

    fn place(&self, intent: Intent) -> Option<FilePlace> {
        (**self).place(intent)
    }
}

/// A file to be used directly.
pub(crate) struct FilePlace {
    pub(crate) file: Arc<File>,
    /// What offsets, lengths and addresses of requests must be multiples of;
    /// 1 for the page cache.
    pub(crate) alignment: usize,
    /// To be kept until the request is over.
    pub(crate) hold: Option<Hold>,
    /// To be told of reads.
    pub(crate) ahead: Option<Arc<ReadAhead>>,
}

/// What becomes of the space below zeroed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    /// It goes back to the file system.
    Release,
    /// It stays reserved for the file.
    Keep,
}
