//! The disk that callers hold.

use std::fs::File;
use std::path::Path;

use uuid::Uuid;

use crate::block::{BlockDevice, Extent, IoError};
use crate::chain::{self, ParentSearch};
use crate::create::{self, CreateError, CreateOptions};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::format::geometry::Geometry;
use crate::gate::Gate;
use crate::image::{self, Image, Tuning, recognise};
use crate::lock::{self, Mode, Sidecar};
use crate::merge;
use crate::pool::Pool;
use crate::repair;
use crate::resize;
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
    /// Those of the parents: also released after the image is gone.
    parents: Vec<Sidecar>,
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
            .field("parents", &self.parents.len())
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
    /// read from. The parents of a differencing disk are looked for in its
    /// pool, where the disk says.
    pub fn open(
        pool: &Pool,
        rel: impl AsRef<Path>,
        access: Access,
        gate: Gate,
    ) -> Result<Vhd, OpenError> {
        Vhd::open_with(pool, rel, access, gate, &ParentSearch::new())
    }

    /// As [`Vhd::open`], with further places where the parents of a
    /// differencing disk may be. All of its parents are locked and opened for
    /// reading. One that was modified since its child was made is refused,
    /// unless the disk is opened for reading.
    pub fn open_with(
        pool: &Pool,
        rel: impl AsRef<Path>,
        access: Access,
        gate: Gate,
        search: &ParentSearch,
    ) -> Result<Vhd, OpenError> {
        let opened = Opened::open(pool, rel.as_ref(), access, gate, search)?;
        Ok(Vhd::new(
            opened.image,
            opened.disk_type,
            opened.lock,
            opened.parent_locks,
        ))
    }

    pub(crate) fn new(
        image: Box<dyn Image>,
        disk_type: DiskType,
        lock: Sidecar,
        parents: Vec<Sidecar>,
    ) -> Vhd {
        Vhd {
            image,
            disk_type,
            parents,
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

/// A disk that was opened, with what its file says.
pub(crate) struct Opened {
    pub(crate) image: Box<dyn Image>,
    pub(crate) disk_type: DiskType,
    pub(crate) unique_id: Uuid,
    pub(crate) geometry: Geometry,
    /// When the file was modified, in seconds since 2000-01-01 UTC.
    pub(crate) modified: u32,
    /// How many parents, grandparents and so on there are.
    pub(crate) parents: usize,
    /// A parent that isn't as its child knows it; only when opened for
    /// reading.
    pub(crate) changed: Option<OpenError>,
    lock: Sidecar,
    parent_locks: Vec<Sidecar>,
}

impl Opened {
    pub(crate) fn open(
        pool: &Pool,
        rel: &Path,
        access: Access,
        gate: Gate,
        search: &ParentSearch,
    ) -> Result<Opened, OpenError> {
        let opened = Opened::open_unmarked(pool, rel, access, gate, search)?;
        if access == Access::ReadWrite {
            // Whoever goes on with a merge into it must know of this.
            merge::marker::forget(&pool.place(rel)?)?;
        }
        Ok(opened)
    }

    /// Opens the parent of a merge for writing, which leaves the marker of a
    /// merge that was cut off.
    pub(crate) fn open_to_merge(
        pool: &Pool,
        rel: &Path,
        gate: Gate,
        search: &ParentSearch,
    ) -> Result<Opened, OpenError> {
        Opened::open_unmarked(pool, rel, Access::ReadWrite, gate, search)
    }

    fn open_unmarked(
        pool: &Pool,
        rel: &Path,
        access: Access,
        gate: Gate,
        search: &ParentSearch,
    ) -> Result<Opened, OpenError> {
        let mode = match access {
            Access::ReadOnly => Mode::Shared,
            Access::ReadWrite => Mode::Exclusive,
        };
        let place = pool.place(rel)?;
        let (file, lock) =
            lock::open_locked(&place, mode).map_err(|error| OpenError::from_lock(rel, error))?;
        let file = File::from(file);
        let (identity, modified) = chain::look_at(rel, &file)?;
        let backing = Backing::new(
            Box::new(FileStorage::new(file)),
            gate,
            &rel.to_string_lossy(),
        );
        let refused = |refusal| OpenError::from_refusal(rel, refusal);
        // A resize may have been cut off, or a repair.
        let found = match access {
            Access::ReadOnly => resize::fixed::recognise_at(&place, &backing),
            Access::ReadWrite if repair::journal::is_cut_off(&place)? => {
                return Err(OpenError::Corrupt {
                    path: rel.to_owned(),
                    found: "a repair of it was cut off: repair it again, or undo that".to_owned(),
                });
            }
            Access::ReadWrite => resize::fixed::settle(&place, &backing)
                .and_then(|()| recognise(&backing, Tuning::default())),
        }
        .map_err(refused)?;
        let link = chain::read_link(&backing, &found).map_err(refused)?;
        let mut parents = chain::open_parents(pool, rel, identity, link, search, true)?;
        if access == Access::ReadWrite
            && let Some(changed) = parents.changed.take()
        {
            return Err(changed);
        }
        let image = image::assemble(
            backing,
            &found,
            parents.image.take(),
            access == Access::ReadOnly,
            Tuning::default(),
        )
        .map_err(refused)?;
        Ok(Opened {
            image,
            disk_type: found.disk_type,
            unique_id: found.footer.unique_id,
            geometry: found.footer.geometry,
            modified,
            parents: parents.places.len(),
            changed: parents.changed,
            lock,
            parent_locks: parents.locks,
        })
    }

    /// The disk as the parent of another, and all locks.
    pub(crate) fn into_parent(self) -> (Box<dyn Image>, Vec<Sidecar>) {
        let mut locks = self.parent_locks;
        locks.push(self.lock);
        (self.image, locks)
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
