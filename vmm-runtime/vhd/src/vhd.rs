//! The disk that callers hold.

use std::path::Path;

use crate::block::{BlockDevice, Extent, IoError};
use crate::create::{CreateError, CreateOptions};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::gate::Gate;
use crate::pool::Pool;

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
    device: Box<dyn BlockDevice>,
    disk_type: DiskType,
}

impl Vhd {
    /// Creates the disk `rel` and the folders on the way to it, and opens it
    /// for writing, with a gate that is open. The file gets its name when it
    /// is complete and durable, and is readable and writable by its owner
    /// alone.
    pub fn create(
        pool: &Pool,
        rel: impl AsRef<Path>,
        _options: &CreateOptions,
    ) -> Result<Vhd, CreateError> {
        let place = pool.place_creating_folders(rel.as_ref());
        Err(CreateError::Io {
            path: rel.as_ref().to_owned(),
            operation: "create",
            source: std::io::Error::other(format!("{place:?}")),
        })
    }

    /// Opens the disk `rel`. Every change of it passes `gate`.
    pub fn open(
        pool: &Pool,
        rel: impl AsRef<Path>,
        _access: Access,
        _gate: Gate,
    ) -> Result<Vhd, OpenError> {
        let place = pool.place(rel.as_ref());
        Err(OpenError::Unsupported {
            path: rel.as_ref().to_owned(),
            what: format!("{place:?}"),
        })
    }

    /// The type of the disk.
    pub fn disk_type(&self) -> DiskType {
        self.disk_type
    }

    /// Flushes, gives back space that was reserved for growth, and releases
    /// the locks. Dropping the disk tries the same and ignores errors.
    pub fn close(self) -> Result<(), IoError> {
        self.device.flush()
    }
}

impl BlockDevice for Vhd {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read_only(&self) -> bool {
        self.device.read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        self.device.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.device.write_at(buf, offset)
    }

    fn flush(&self) -> Result<(), IoError> {
        self.device.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.device.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.device.write_zeroes(offset, len)
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        self.device.block_status(offset, len)
    }
}
