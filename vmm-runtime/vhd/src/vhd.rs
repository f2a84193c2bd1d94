//! The disk that callers hold.

use std::fs::File;
use std::path::Path;

use crate::block::{BlockDevice, Extent, IoError};
use crate::create::{self, CreateError, CreateOptions};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::gate::Gate;
use crate::image::{self, Image, Tuning};
use crate::lock::{self, Mode, Sidecar};
use crate::pool::Pool;
use crate::storage::{Backing, FileStorage};

/// How a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading; other readers are welcome, writers are not.
    ReadOnly,
    /// Reading and writing; nobody else may have it open.
    ReadWrite,
}

/// An open VHD. Locked until it is dropped.
pub struct Vhd {
    image: Box<dyn Image>,
    disk_type: DiskType,
    /// Cleared once the image has been put away, or need not be.
    open: bool,
    /// Released last: fields are dropped in order.
    _lock: Sidecar,
}

impl std::fmt::Debug for Vhd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vhd")
            .field("disk_type", &self.disk_type)
            .field("size", &self.image.size())
            .field("read_only", &self.image.read_only())
            .finish_non_exhaustive()
    }
}

impl Vhd {
    /// Creates the disk `rel` and the folders on the way to it, and opens it
    /// for writing, with a gate that is open. The file gets its name when it
    /// is complete and durable, and is readable and writable by its owner
    /// alone.
    pub fn create(
        pool: &Pool,
        rel: impl AsRef<Path>,
        options: &CreateOptions,
    ) -> Result<Vhd, CreateError> {
        let new = create::NewDisk::begin(pool, rel.as_ref(), options, None)?;
        new.finish()
    }

    /// Opens the disk `rel`. Every change of it passes `gate`.
    ///
    /// Opening for writing restores a copy of the footer that a crash took;
    /// it changes nothing else. A pool that can't be written to can still be
    /// read from.
    pub fn open(
        pool: &Pool,
        rel: impl AsRef<Path>,
        access: Access,
        gate: Gate,
    ) -> Result<Vhd, OpenError> {
        let rel = rel.as_ref();
        let mode = match access {
            Access::ReadOnly => Mode::Shared,
            Access::ReadWrite => Mode::Exclusive,
        };
        let place = pool.place(rel)?;
        let (file, sidecar) =
            lock::open_locked(&place, mode).map_err(|error| OpenError::from_lock(rel, error))?;
        let storage = FileStorage::new(File::from(file));
        let backing = Backing::new(Box::new(storage), gate, &rel.to_string_lossy());
        let (image, disk_type) =
            image::open(backing, access == Access::ReadOnly, Tuning::default())
                .map_err(|refusal| OpenError::from_refusal(rel, refusal))?;
        Ok(Vhd::new(image, disk_type, sidecar))
    }

    pub(crate) fn new(image: Box<dyn Image>, disk_type: DiskType, lock: Sidecar) -> Vhd {
        Vhd {
            image,
            disk_type,
            open: true,
            _lock: lock,
        }
    }

    /// The type of the disk.
    pub fn disk_type(&self) -> DiskType {
        self.disk_type
    }

    /// Flushes, gives back space that was reserved for growth, and releases
    /// the locks. Dropping the disk tries the same and ignores errors.
    pub fn close(mut self) -> Result<(), IoError> {
        self.put_away()
    }

    pub(crate) fn put_away(&mut self) -> Result<(), IoError> {
        self.open = false;
        self.image.put_away()
    }
}

impl Drop for Vhd {
    fn drop(&mut self) {
        if self.open {
            // Who cares about the outcome calls `close`.
            let _ = self.put_away();
        }
    }
}

impl BlockDevice for Vhd {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_only(&self) -> bool {
        self.image.read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        self.image.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.image.write_at(buf, offset)
    }

    fn flush(&self) -> Result<(), IoError> {
        self.image.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.image.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.image.write_zeroes(offset, len)
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        self.image.block_status(offset, len)
    }
}
