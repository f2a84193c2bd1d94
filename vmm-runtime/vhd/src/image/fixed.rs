//! Fixed disks: the data as it is, then the footer. Raw images are so without
//! it.

use std::ops::Range;

use super::{Image, Recognised};
use crate::block::{BlockDevice, Extent, ExtentKind, IoError, check_range};
use crate::queue::{Intent, Place};
use crate::storage::{Backing, Space};

/// An open fixed disk. Its space stays reserved: a discard writes zeros
/// without giving space back.
pub(crate) struct Fixed {
    backing: Backing,
    size: u64,
    read_only: bool,
    /// What becomes of the space of what is discarded.
    discarded: Space,
}

impl Fixed {
    pub(crate) fn new(backing: Backing, found: &Recognised, read_only: bool) -> Fixed {
        Fixed {
            backing,
            size: found.footer.current_size,
            read_only,
            discarded: Space::Keep,
        }
    }

    /// The first `size` bytes of a raw image: it gives space back.
    pub(crate) fn raw(backing: Backing, size: u64, read_only: bool) -> Fixed {
        Fixed {
            backing,
            size,
            read_only,
            discarded: Space::Release,
        }
    }

    /// Refuses what may not be written, before anything is.
    fn admit(&self, offset: u64, len: u64) -> Result<(), IoError> {
        check_range(offset, len, self.size)?;
        if self.read_only {
            return Err(IoError::ReadOnly);
        }
        self.backing.may_write().map(drop)
    }
}

impl BlockDevice for Fixed {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        check_range(offset, buf.len() as u64, self.size)?;
        self.backing.read(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.admit(offset, buf.len() as u64)?;
        self.backing.write(buf, offset)
    }

    fn flush(&self) -> Result<(), IoError> {
        if self.read_only {
            return Ok(());
        }
        self.backing.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.admit(offset, len)?;
        self.backing.zero(offset, len, self.discarded)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.admit(offset, len)?;
        self.backing.zero(offset, len, Space::Keep)
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        check_range(offset, len, self.size)?;
        let mut extents = super::extents::Extents::new(offset);
        extents.push_file(
            &self.backing,
            offset,
            offset..offset + len,
            ExtentKind::Zero,
        )?;
        Ok(extents.finish())
    }

    fn locate(&self, intent: Intent, offset: u64, len: u64) -> Option<Place> {
        check_range(offset, len, self.size).ok()?;
        match intent {
            Intent::Read => self.backing.place_to_read(offset),
            Intent::Write if self.read_only => None,
            Intent::Write => self.backing.place_to_write(offset),
        }
    }
}

impl Image for Fixed {
    fn put_away(&self) -> Result<(), IoError> {
        self.flush()
    }

    fn write_behind(&self, offset: u64, len: u64) {
        self.backing.write_behind(offset..offset + len);
    }

    fn growth(&self, range: Range<u64>, _: u64) -> Result<u64, IoError> {
        super::holes(&self.backing, range)
    }
}
