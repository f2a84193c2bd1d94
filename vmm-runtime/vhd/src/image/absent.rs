//! A parent that isn't there, for those who look only at what a child itself
//! holds.

use super::Image;
use crate::block::{BlockDevice, Extent, IoError};

/// Stands for a parent of which nothing is to be read: whole sectors are
/// copied, and of those that the disk doesn't hold none.
pub(crate) struct Absent {
    size: u64,
}

impl Absent {
    pub(crate) fn new(size: u64) -> Absent {
        Absent { size }
    }

    fn nothing<T>() -> Result<T, IoError> {
        Err(IoError::Io {
            disk: "the parent".into(),
            operation: "read",
            source: std::io::Error::other("it is not open").into(),
        })
    }
}

impl BlockDevice for Absent {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> Result<(), IoError> {
        Absent::nothing()
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<(), IoError> {
        Err(IoError::ReadOnly)
    }

    fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), IoError> {
        Err(IoError::ReadOnly)
    }

    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), IoError> {
        Err(IoError::ReadOnly)
    }

    fn block_status(&self, _: u64, _: u64) -> Result<Vec<Extent>, IoError> {
        Absent::nothing()
    }
}

impl Image for Absent {
    fn put_away(&self) -> Result<(), IoError> {
        Ok(())
    }

    fn growth(&self, _: std::ops::Range<u64>, _: u64) -> Result<u64, IoError> {
        Err(IoError::ReadOnly)
    }
}
