//! Cloning a disk: the same file again, with an identity of its own.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;

use rustix::io::Errno;
use uuid::Uuid;

use crate::block::IoError;
use crate::chain::{self, ParentLink, ParentSearch};
use crate::create::{CreateError, Names};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::format::footer::Footer;
use crate::gate::Gate;
use crate::image::{NewParent, Refusal, Tuning, recognise};
use crate::import::Progress;
use crate::lock::{self, Mode};
use crate::operation::{OperationError, report};
use crate::pool::Pool;
use crate::repair;
use crate::reparent::write_parent;
use crate::resize;
use crate::storage::{Backing, FileStorage, next_data};

/// What [`clone_disk`] makes.
#[derive(Debug, Clone)]
pub struct CloneOptions {
    /// The identity that children of the clone refer to.
    pub unique_id: Uuid,
    /// The time of creation; the format keeps whole seconds from 2000 on.
    pub created: SystemTime,
    /// Where the parent of a differencing disk is looked for.
    pub search: ParentSearch,
}

impl CloneOptions {
    /// A clone with a random identity, created now.
    pub fn new() -> CloneOptions {
        CloneOptions {
            unique_id: Uuid::new_v4(),
            created: SystemTime::now(),
            search: ParentSearch::new(),
        }
    }
}

impl Default for CloneOptions {
    fn default() -> CloneOptions {
        CloneOptions::new()
    }
}

/// What a clone took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneReport {
    /// Whether both files share their space until one of them changes.
    pub reflinked: bool,
    /// Bytes that were copied: without holes, and 0 if the space is shared.
    pub bytes: u64,
}

/// Makes the disk `target` the same as the disk `rel`, of the same type, and
/// with the identity that the options give. Where the file system can share
/// space between files (btrfs, XFS) that takes neither time nor room, and a
/// write to either disk may later find the file system full, even if the disk
/// is fixed. Elsewhere the data is copied, in the kernel where it can do
/// that; there must be room for it, and the file system is asked before.
///
/// A clone of a differencing disk has the same parent, and is told the way to
/// where that is found now; refused where it is not found. It is no part of a
/// saved state that the source belongs to. The source must not be open for
/// writing. The clone gets its name when it is complete and durable; after an
/// error or a cancellation nothing is left of it. All that is written passes
/// `gate`, and so does the naming.
pub fn clone_disk(
    pool: &Pool,
    rel: impl AsRef<Path>,
    target_pool: &Pool,
    target: impl AsRef<Path>,
    gate: Gate,
    options: &CloneOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<CloneReport, OperationError> {
    let (rel, target) = (rel.as_ref(), target.as_ref());
    let place = pool.place(rel)?;
    let (source, _lock) = lock::open_locked(&place, Mode::Shared)
        .map_err(|error| OpenError::from_lock(rel, error))?;
    let source = File::from(source);
    let to_source = |operation, source| OpenError::Io {
        path: rel.to_owned(),
        operation,
        source,
    };
    let metadata = source
        .metadata()
        .map_err(|error| to_source("look at the file", error))?;
    let len = metadata.len();
    let again = source
        .try_clone()
        .map_err(|error| to_source("duplicate the descriptor", error))?;
    let backing = Backing::read_only(again, rel);
    repair::refuse_cut_off(&place, &backing)?;
    let bad = |refusal: Refusal| OpenError::from_refusal(rel, refusal);
    if resize::fixed::pending(&place, &backing)
        .map_err(bad)?
        .is_some()
    {
        return Err(OperationError::Refused {
            path: rel.to_owned(),
            reason:
                "a resize of it was cut off; open it for writing, or resize it again, to end that"
                    .to_owned(),
        });
    }
    let found = recognise(&backing, Tuning::default()).map_err(bad)?;
    let link = chain::read_link(&backing, &found).map_err(bad)?;
    let link = link.map(|link| {
        let identity = (metadata.dev(), metadata.ino());
        let parent = chain::find(pool, rel, &link, &options.search, &[identity], false)?;
        moved_link(link, target_pool, target, &parent.pool, &parent.rel)
    });
    let link = link.transpose()?.flatten();
    let data = data_len(&source, len).map_err(|error| to_source("look for data", error))?;
    report(0, len, progress)?;
    let need = match found.disk_type {
        // All of its space is reserved.
        DiskType::Fixed => len,
        DiskType::Dynamic | DiskType::Differencing => data,
    };
    let no_space = |have| OperationError::NoSpace {
        path: target.to_owned(),
        need,
        have,
    };
    // A pool elsewhere can't share the space. (One here may be on a file
    // system that can't, either: asked below.)
    let have = target_pool.space()?.available;
    if have < need && target_pool.identity()?.0 != metadata.dev() {
        return Err(no_space(have));
    }
    let gate_closed = OperationError::io(target);
    drop(gate.enter().map_err(&gate_closed)?);
    let mut names = Names::take(target_pool, target)?;
    let file = names.create()?;
    names.lock_file(&file)?;
    let to_target = |operation: &'static str, source: io::Error| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            no_space(names.target.space().map_or(0, |space| space.available))
        }
        _ => CreateError::Io {
            path: target.to_owned(),
            operation,
            source,
        }
        .into(),
    };
    let pass = gate.enter().map_err(&gate_closed)?;
    let reflinked = share(&source, &file).map_err(|error| to_target("share the data", error))?;
    drop(pass);
    if !reflinked {
        let have = names.target.space()?.available;
        if have < need {
            return Err(no_space(have));
        }
        file.set_len(len)
            .map_err(|error| to_target("set the length", error))?;
        if found.disk_type == DiskType::Fixed {
            match FileStorage::reserve(&file, len) {
                Err(error) if error.kind() != io::ErrorKind::Unsupported => {
                    return Err(to_target("reserve the disk's space", error));
                }
                _ => {}
            }
        }
        let mut copy = Copy {
            source: &source,
            target: &file,
            in_kernel: true,
            buf: Vec::new(),
        };
        let mut at = 0;
        while let Some(run) =
            next_data(&source, at..len).map_err(|error| to_source("look for data", error))?
        {
            at = run.start;
            while at < run.end {
                let _pass = gate.enter().map_err(&gate_closed)?;
                let copied = copy
                    .some(at..run.end)
                    .map_err(|error| to_target("copy the data", error))?;
                write_behind(&file, at, copied);
                at += copied;
                report(at, len, progress)?;
            }
        }
    }
    let name = target.to_string_lossy();
    let disk = Backing::new(Box::new(FileStorage::new(file)), gate.clone(), &name);
    make_own(&disk, target, link, options)?;
    report(len, len, progress)?;
    let pass = gate.enter().map_err(&gate_closed)?;
    names.publish()?;
    drop(pass);
    Ok(CloneReport {
        reflinked,
        bytes: if reflinked { 0 } else { data },
    })
}

/// Makes a copy a disk of its own, durably.
fn make_own(
    disk: &Backing,
    target: &Path,
    link: Option<NewParent>,
    options: &CloneOptions,
) -> Result<(), OperationError> {
    let bad = |refusal: Refusal| OpenError::from_refusal(target, refusal);
    let io = OperationError::io(target);
    if let Some(link) = link {
        let found = recognise(disk, Tuning::default()).map_err(bad)?;
        write_parent(disk, &found, &link, Tuning::default()).map_err(&io)?;
    }
    let found = recognise(disk, Tuning::default()).map_err(bad)?;
    let mut footer = found.footer_bytes;
    Footer::encode_identity(&mut footer, options.unique_id, options.created);
    let write = || -> Result<(), IoError> {
        if found.header.is_some() {
            disk.write(&footer, 0)?;
        }
        disk.write(&footer, found.data_end)?;
        disk.sync()
    };
    write().map_err(&io)
}

/// What the clone is told of its parent, where that is not what the source
/// says.
fn moved_link(
    link: ParentLink,
    target_pool: &Pool,
    target: &Path,
    parent_pool: &Pool,
    parent_rel: &Path,
) -> Result<Option<NewParent>, OpenError> {
    let knows = (link.unique_id, link.modified);
    let new = NewParent::locate(target_pool, target, parent_pool, parent_rel, knows)?;
    let same = link.relative.first() == new.relative.as_ref()
        && link.absolute.first() == new.absolute.as_ref();
    Ok((!same).then_some(new))
}

/// How many bytes of a file are not holes.
fn data_len(file: &File, len: u64) -> io::Result<u64> {
    let (mut bytes, mut at) = (0, 0);
    while let Some(run) = next_data(file, at..len)? {
        at = run.end;
        bytes += run.end - run.start;
    }
    Ok(bytes)
}

/// Makes `target` share all of the space of `source`. False where the file
/// system can't.
fn share(source: &File, target: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(target, source) {
        Ok(()) => Ok(true),
        Err(
            Errno::OPNOTSUPP
            | Errno::NOTTY
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOSYS
            | Errno::PERM,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Has the kernel begin to write what was copied: little is left to be synced
/// at the end.
fn write_behind(file: &File, offset: u64, len: u64) {
    // Dirty pages can't be dropped: it starts writing them, and waits for
    // nothing.
    let advice = rustix::fs::Advice::DontNeed;
    let _ = rustix::fs::fadvise(file, offset, NonZeroU64::new(len), advice);
}

/// How much is asked of the kernel at once.
const IN_KERNEL: u64 = 16 << 20;
/// How much is copied at once otherwise.
const CHUNK: u64 = 1 << 20;

struct Copy<'a> {
    source: &'a File,
    target: &'a File,
    /// Cleared once the kernel has refused.
    in_kernel: bool,
    buf: Vec<u8>,
}

impl Copy<'_> {
    /// Copies the beginning of a range that is not empty; returns how much of
    /// it.
    fn some(&mut self, range: Range<u64>) -> io::Result<u64> {
        let len = range.end - range.start;
        while self.in_kernel {
            let (mut from, mut to) = (range.start, range.start);
            let piece = len.min(IN_KERNEL) as usize;
            match rustix::fs::copy_file_range(
                self.source,
                Some(&mut from),
                self.target,
                Some(&mut to),
                piece,
            ) {
                // Between some file systems it does nothing without an error.
                Ok(0) => self.in_kernel = false,
                Ok(done) => return Ok(done as u64),
                Err(Errno::INTR) => {}
                Err(
                    Errno::XDEV
                    | Errno::NOSYS
                    | Errno::OPNOTSUPP
                    | Errno::INVAL
                    | Errno::PERM
                    | Errno::IO,
                ) => self.in_kernel = false,
                Err(error) => return Err(error.into()),
            }
        }
        let piece = len.min(CHUNK);
        self.buf.resize(piece as usize, 0);
        self.source.read_exact_at(&mut self.buf, range.start)?;
        self.target.write_all_at(&self.buf, range.start)?;
        Ok(piece)
    }
}
