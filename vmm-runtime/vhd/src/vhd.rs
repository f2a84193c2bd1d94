//! The disk that callers hold.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::block::{BlockDevice, Extent, IoError};
use crate::chain::{self, ParentSearch, Parents};
use crate::create::{self, CreateError, CreateOptions};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::format::geometry::Geometry;
use crate::gate::Gate;
use crate::image::{self, Image, Recognised, Tuning, recognise};
use crate::import::Progress;
use crate::lock::{self, LockOwner, Mode, Sidecar};
use crate::modified::Stamp;
use crate::pool::{Place, Pool};
use crate::queue::{self, Intent};
use crate::repair;
use crate::resize;
use crate::sidefile::MERGING;
use crate::storage::{Backing, DirectStorage, FileStorage, Storage};

/// How a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Reading; other readers are welcome, writers are not.
    ReadOnly,
    /// Reading and writing; nobody else may have it open.
    ReadWrite,
}

/// How and by whom a disk is opened.
///
/// ```no_run
/// use paddock_vhd::{Access, Gate, LockOwner, OpenOptions, Pool};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = Pool::open("/var/lib/paddock/pools/shared")?;
/// let owner = LockOwner::new(7, "node-a", LockOwner::this_boot()?)?;
/// let disk = OpenOptions::new(Access::ReadWrite)
///     .gate(Gate::open())
///     .owner(owner)
///     .open(&pool, "web/root.vhd")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct OpenOptions {
    access: Access,
    gate: Gate,
    search: ParentSearch,
    owner: Option<LockOwner>,
    direct: bool,
}

impl OpenOptions {
    /// A gate that is open, parents where the disk says, no owner, through the
    /// page cache.
    pub fn new(access: Access) -> OpenOptions {
        OpenOptions {
            access,
            gate: Gate::open(),
            search: ParentSearch::new(),
            owner: None,
            direct: false,
        }
    }

    /// Every change of the disk passes `gate`.
    #[must_use]
    pub fn gate(self, gate: Gate) -> OpenOptions {
        OpenOptions { gate, ..self }
    }

    /// Where the parents of a differencing disk are looked for as well.
    #[must_use]
    pub fn search(self, search: ParentSearch) -> OpenOptions {
        OpenOptions { search, ..self }
    }

    /// Opens the disk as `owner`, for folders that hosts share. Opened for
    /// writing, the disk's lock file names the owner, durably, before
    /// anything else is written, and until the disk is closed in order. The
    /// highest epoch stays there.
    ///
    /// Refused with [`OpenError::InUse`] when the file has a higher epoch, or
    /// names another host with the same one: that host may be alive, and only
    /// a higher epoch tells that it was fenced. After a crash a host gets its
    /// disk again in the same epoch, on another boot too.
    ///
    /// Without an owner a disk is refused, for reading too, while its lock
    /// file names a host, unless that is this boot: then its process is gone.
    /// So are the parents of a differencing disk, which nobody owns.
    #[must_use]
    pub fn owner(self, owner: LockOwner) -> OpenOptions {
        OpenOptions {
            owner: Some(owner),
            ..self
        }
    }

    /// The disk's own file is read and written past the page cache
    /// (`O_DIRECT`), as far as requests are of whole pages; those that are not
    /// are copied, or go through the cache. Parents, which many share, are
    /// read through the page cache. Where the file system can't, opening fails
    /// with [`OpenError::Io`] of the kind `Unsupported`.
    #[must_use]
    pub fn direct(self, direct: bool) -> OpenOptions {
        OpenOptions { direct, ..self }
    }

    /// Opens the disk `rel`, see [`Vhd::open_with`].
    pub fn open(&self, pool: &Pool, rel: impl AsRef<Path>) -> Result<Vhd, OpenError> {
        let opened = Opened::open_as(pool, rel.as_ref(), self)?;
        let disk = Vhd::new(
            opened.image,
            opened.disk_type,
            opened.lock,
            opened.parent_locks,
        );
        Ok(disk.stamped(opened.stamp))
    }
}

/// An open VHD. Locked until it is dropped.
pub struct Vhd {
    image: Box<dyn Image>,
    disk_type: DiskType,
    /// Those of the parents: also released after the image is gone.
    parents: Vec<Sidecar>,
    /// Cleared once the image has been put away, or need not be.
    open: bool,
    /// Of a disk that was there before and is open for writing.
    stamp: Option<(Stamp, Gate)>,
    /// Whether what it shows may have changed.
    changed: AtomicBool,
    /// Released last: fields are dropped in order.
    lock: Sidecar,
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
    /// for writing. The file gets its name when it is complete and durable,
    /// and is readable and writable by its owner alone.
    pub fn create(
        pool: &Pool,
        rel: impl AsRef<Path>,
        options: &CreateOptions,
    ) -> Result<Vhd, CreateError> {
        Vhd::create_with(pool, rel, options, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Vhd::create`]. Where the file system can't reserve space, the
    /// zeros of a fixed disk are written: `progress` is told of them after
    /// each 64 MiB, and may cancel.
    pub fn create_with(
        pool: &Pool,
        rel: impl AsRef<Path>,
        options: &CreateOptions,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vhd, CreateError> {
        let total = options.size.bytes();
        let zeroing = &mut |done| progress(Progress { done, total });
        let new = create::NewDisk::begin(pool, rel.as_ref(), options, None, zeroing)?;
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
        OpenOptions::new(access)
            .gate(gate)
            .search(search.clone())
            .open(pool, rel)
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
            stamp: None,
            changed: AtomicBool::new(false),
            lock,
        }
    }

    fn stamped(mut self, stamp: Option<(Stamp, Gate)>) -> Vhd {
        self.stamp = stamp;
        self
    }

    /// The type of the disk.
    pub fn disk_type(&self) -> DiskType {
        self.disk_type
    }

    /// Refuses with [`OpenError::InUse`] when the lock file does not name the
    /// owner of this disk any more, see [`OpenOptions::owner`]: another host
    /// has it, so close the gate. The file is read past the page cache where
    /// the file system can do that. Nothing to refuse without an owner.
    pub fn check_owner(&self) -> Result<(), OpenError> {
        let path = self.lock.disk();
        self.lock
            .check_owner()
            .map_err(|error| OpenError::from_lock(&path, error))
    }

    /// Flushes, gives back space that was reserved for growth, and releases
    /// the locks. Dropping the disk tries the same and ignores errors.
    ///
    /// A disk that was written to within the second of its last change before
    /// gets a later one, durably: to its children, who know their parent's
    /// time to the second, it has changed. (After a crash within that second
    /// they can't know.)
    pub fn close(mut self) -> Result<(), IoError> {
        self.put_away()
    }

    pub(crate) fn put_away(&mut self) -> Result<(), IoError> {
        self.open = false;
        self.image.put_away()?;
        if self.changed.load(Ordering::SeqCst) {
            move_on(self.stamp.as_ref(), &self.lock.disk())?;
        }
        self.lock.release()
    }

    /// Notes that what it shows is about to change.
    fn note_change(&self) {
        // Most of the time it is noted already.
        if !self.changed.load(Ordering::Relaxed) {
            self.changed.store(true, Ordering::SeqCst);
        }
    }
}

/// Shows the children of a disk that was changed that it was.
fn move_on(stamp: Option<&(Stamp, Gate)>, disk: &Path) -> Result<(), IoError> {
    match stamp {
        Some((stamp, gate)) => stamp.move_on(gate, &disk.to_string_lossy()),
        None => Ok(()),
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
    stamp: Option<(Stamp, Gate)>,
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
        let options = OpenOptions::new(access).gate(gate).search(search.clone());
        Opened::open_as(pool, rel, &options)
    }

    fn open_as(pool: &Pool, rel: &Path, options: &OpenOptions) -> Result<Opened, OpenError> {
        let opened = Opened::open_unmarked(pool, rel, options)?;
        if options.access == Access::ReadWrite {
            // Whoever goes on with a merge into it must know of this.
            MERGING.forget(&pool.place(rel)?)?;
        }
        Ok(opened)
    }

    /// Opens the parent of a merge for writing, which leaves the marker of a
    /// merge that was cut off. `owner`: as whom, until [`Opened::release`].
    pub(crate) fn open_to_merge(
        pool: &Pool,
        rel: &Path,
        gate: Gate,
        search: &ParentSearch,
        owner: Option<&LockOwner>,
    ) -> Result<Opened, OpenError> {
        let options = OpenOptions::new(Access::ReadWrite)
            .gate(gate)
            .search(search.clone());
        let options = OpenOptions {
            owner: owner.cloned(),
            ..options
        };
        Opened::open_unmarked(pool, rel, &options)
    }

    fn open_unmarked(pool: &Pool, rel: &Path, options: &OpenOptions) -> Result<Opened, OpenError> {
        let mode = match options.access {
            Access::ReadOnly => Mode::Shared,
            Access::ReadWrite => Mode::Exclusive,
        };
        let place = pool.place(rel)?;
        let (gate, owner) = (&options.gate, options.owner.as_ref());
        let (file, mut lock) = lock::open_owned(&place, mode, gate, owner)
            .map_err(|error| OpenError::from_lock(rel, error))?;
        match Contents::open(pool, &place, options, file.into()) {
            Ok(Contents {
                image,
                found,
                modified,
                stamp,
                parents,
            }) => Ok(Opened {
                image,
                disk_type: found.disk_type,
                unique_id: found.footer.unique_id,
                geometry: found.footer.geometry,
                modified,
                parents: parents.places.len(),
                changed: parents.changed,
                stamp: stamp.map(|stamp| (stamp, options.gate.clone())),
                lock,
                parent_locks: parents.locks,
            }),
            Err(error) => {
                // It is the first error that is told.
                let _ = lock.release();
                Err(error)
            }
        }
    }

    /// Shows the children of the disk, which was changed, that it was. It is
    /// not written to any more.
    pub(crate) fn move_on(&self) -> Result<(), IoError> {
        move_on(self.stamp.as_ref(), &self.lock.disk())
    }

    /// Says that the owner, if there is one, has the disk no more. It is
    /// durable, and not written to any more.
    pub(crate) fn release(&mut self) -> Result<(), IoError> {
        self.lock.release()
    }

    /// The same after an error, which is told instead of any other. While
    /// what was written may not be durable, the owner goes on having the disk:
    /// as after a crash.
    pub(crate) fn give_up(&mut self) {
        if self.image.flush().is_ok() {
            let _ = self.lock.release();
        }
    }

    /// The disk as the parent of another, and all locks.
    pub(crate) fn into_parent(self) -> (Box<dyn Image>, Vec<Sidecar>) {
        let mut locks = self.parent_locks;
        locks.push(self.lock);
        (self.image, locks)
    }
}

/// A disk whose file is locked, opened.
struct Contents {
    image: Box<dyn Image>,
    found: Recognised,
    modified: u32,
    stamp: Option<Stamp>,
    parents: Parents,
}

impl Contents {
    fn open(
        pool: &Pool,
        place: &Place,
        options: &OpenOptions,
        file: File,
    ) -> Result<Contents, OpenError> {
        let &OpenOptions {
            access,
            ref gate,
            ref search,
            direct,
            ..
        } = options;
        let rel = place.rel();
        let (identity, modified) = chain::look_at(rel, &file)?;
        let stamp = match access {
            Access::ReadOnly => None,
            Access::ReadWrite => Some(Stamp::take(&file).map_err(|source| OpenError::Io {
                path: rel.to_owned(),
                operation: "look at the file",
                source,
            })?),
        };
        let storage: Box<dyn Storage> = if direct {
            let opened = DirectStorage::new(file, gate.clone());
            Box::new(opened.map_err(|source| OpenError::Io {
                path: rel.to_owned(),
                operation: "open past the page cache",
                source,
            })?)
        } else if access == Access::ReadWrite {
            Box::new(FileStorage::of_guest(file))
        } else {
            Box::new(FileStorage::new(file))
        };
        let backing = Backing::new(storage, gate.clone(), &rel.to_string_lossy());
        let refused = |refusal| OpenError::from_refusal(rel, refusal);
        if access == Access::ReadWrite {
            let afresh = backing.read_afresh();
            afresh.map_err(|error| refused(error.into()))?;
        }
        // A resize may have been cut off, or a repair.
        let found = match access {
            Access::ReadOnly => resize::fixed::recognise_at(place, &backing),
            Access::ReadWrite => {
                repair::refuse_cut_off(place, &backing)?;
                resize::fixed::settle(place, &backing)
                    .and_then(|()| recognise(&backing, Tuning::default()))
            }
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
        Ok(Contents {
            image,
            found,
            modified,
            stamp,
            parents,
        })
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
        self.note_change();
        self.image.write_at(buf, offset)
    }

    fn flush(&self) -> Result<(), IoError> {
        self.image.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.note_change();
        self.image.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.note_change();
        self.image.write_zeroes(offset, len)
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        self.image.block_status(offset, len)
    }

    fn locate(&self, intent: Intent, offset: u64, len: u64) -> Option<queue::Place> {
        if intent == Intent::Write {
            self.note_change();
        }
        self.image.locate(intent, offset, len)
    }
}
