//! Copying what a disk shows into a new disk of any type, or a raw image.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::SystemTime;

use uuid::Uuid;

use crate::block::{BlockDevice, Extent, ExtentKind, IoError};
use crate::chain::ParentSearch;
use crate::copying::{self, Stopped, Target};
use crate::create::{Blueprint, CreateError, Names, NewDisk};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::format::bat::BLOCK_SIZE;
use crate::gate::Gate;
use crate::import::{Device, Progress};
use crate::operation::{OperationError, report};
use crate::pool::Pool;
use crate::room::Room;
use crate::storage::{Backing, FileStorage};
use crate::vhd::{Access, Opened};

/// What [`convert`] makes.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// The type of the new disk: fixed or dynamic.
    pub disk_type: DiskType,
    /// The new disk's identity.
    pub unique_id: Uuid,
    /// The time of creation; the format keeps whole seconds from 2000 on.
    pub created: SystemTime,
    /// Where the parents of the source are looked for.
    pub search: ParentSearch,
}

impl ConvertOptions {
    /// A disk with a random identity, created now.
    pub fn new(disk_type: DiskType) -> ConvertOptions {
        ConvertOptions {
            disk_type,
            unique_id: Uuid::new_v4(),
            created: SystemTime::now(),
            search: ParentSearch::new(),
        }
    }
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyReport {
    /// The size of the disk in bytes.
    pub size: u64,
    /// Bytes that were not zero, and so were written; counted in pieces of
    /// 64 KiB.
    pub written_bytes: u64,
}

/// Makes the disk `target` of what the disk `rel` shows, its parents
/// included: the way to another type, and to merge a chain into a new disk.
/// The source stays as it is, and must not be open for writing. The target
/// gets its name when it is complete and durable; after an error or a
/// cancellation nothing is left of it. All that is written passes `gate`, and
/// so does the naming.
///
/// A source one of whose parents was modified is refused, see
/// [`OpenError::ParentChanged`].
pub fn convert(
    pool: &Pool,
    rel: impl AsRef<Path>,
    target_pool: &Pool,
    target: impl AsRef<Path>,
    gate: Gate,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<CopyReport, OperationError> {
    let (rel, target) = (rel.as_ref(), target.as_ref());
    if options.disk_type == DiskType::Differencing {
        return Err(CreateError::NeedsParent {
            path: target.to_owned(),
        }
        .into());
    }
    let source = open_source(pool, rel, &options.search)?;
    let blueprint = Blueprint {
        disk_type: options.disk_type,
        size: source.image.size(),
        geometry: Some(source.geometry),
        unique_id: options.unique_id,
        created: options.created,
        block_size: BLOCK_SIZE,
        parent: None,
        gate,
    };
    drop(blueprint.gate.enter().map_err(OperationError::io(target))?);
    let room = data_room(&*source.image, Room::in_blocks(BLOCK_SIZE));
    let data = room.map_err(OperationError::io(rel))?;
    let new = NewDisk::begin_over(
        target_pool,
        target,
        &blueprint,
        Some(data),
        None,
        Vec::new(),
        &mut |_| {
            progress(Progress {
                done: 0,
                total: blueprint.size,
            })
        },
    )?;
    let to = Device(new.image());
    let written_bytes = copy(&*source.image, rel, target, &to, progress)?;
    drop(new.finish()?);
    Ok(CopyReport {
        size: blueprint.size,
        written_bytes,
    })
}

/// Writes what the disk `rel` shows into the new raw image `target`, leaving
/// out zeros as holes. Otherwise as [`convert`].
pub fn export_raw(
    pool: &Pool,
    rel: impl AsRef<Path>,
    target_pool: &Pool,
    target: impl AsRef<Path>,
    gate: Gate,
    search: &ParentSearch,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<CopyReport, OperationError> {
    let (rel, target) = (rel.as_ref(), target.as_ref());
    let source = open_source(pool, rel, search)?;
    let size = source.image.size();
    let need = data_room(&*source.image, Room::flat()).map_err(OperationError::io(rel))?;
    let have = target_pool.space()?.available;
    if have < need {
        return Err(OperationError::NoSpace {
            path: target.to_owned(),
            need,
            have,
        });
    }
    let mut names = Names::take(target_pool, target)?;
    let file = names.create()?;
    let name = target.to_string_lossy();
    let backing = Backing::new(Box::new(FileStorage::new(file)), gate.clone(), &name);
    let to_target = OperationError::io(target);
    backing.set_len(size).map_err(&to_target)?;
    let to = Raw(&backing);
    let written_bytes = copy(&*source.image, rel, target, &to, progress)?;
    backing.sync().map_err(&to_target)?;
    let pass = gate.enter().map_err(&to_target)?;
    names.publish()?;
    drop(pass);
    // A raw image has no lock file.
    if let Some(lock) = names.lock.take() {
        lock.remove()?;
    }
    Ok(CopyReport {
        size,
        written_bytes,
    })
}

fn open_source(pool: &Pool, rel: &Path, search: &ParentSearch) -> Result<Opened, OpenError> {
    let mut source = Opened::open(pool, rel, Access::ReadOnly, Gate::open(), search)?;
    match source.changed.take() {
        Some(changed) => Err(changed),
        None => Ok(source),
    }
}

/// Calls `each` for all extents of a disk.
fn visit<E>(
    disk: &dyn BlockDevice,
    failed: impl Fn(IoError) -> E,
    mut each: impl FnMut(Extent) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = 0;
    while at < disk.size() {
        for extent in disk.block_status(at, disk.size() - at).map_err(&failed)? {
            at = extent.offset + extent.len;
            each(extent)?;
        }
    }
    Ok(())
}

/// How much room what may be other than zero takes.
fn data_room(disk: &dyn BlockDevice, mut room: Room) -> Result<u64, IoError> {
    visit(
        disk,
        |error| error,
        |extent| {
            if extent.kind == ExtentKind::Data {
                room.add(extent.offset..extent.offset + extent.len);
            }
            Ok(())
        },
    )?;
    Ok(room.bytes())
}

/// A new raw image.
struct Raw<'a>(&'a Backing);

impl Target for Raw<'_> {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), IoError> {
        self.0.write(bytes, offset)
    }

    fn write_behind(&self, range: Range<u64>) {
        self.0.write_behind(range);
    }
}

/// Copies all that isn't zero; returns how much that was.
fn copy(
    source: &dyn BlockDevice,
    rel: &Path,
    path: &Path,
    target: &dyn Target,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<u64, OperationError> {
    let size = source.size();
    let to_source = OperationError::io(rel);
    let copied = copying::copy(target, |feed| {
        visit(
            source,
            |error| Stopped::Reader(to_source(error)),
            |extent| {
                let end = extent.offset + extent.len;
                if extent.kind != ExtentKind::Data {
                    return Ok(report(end, size, progress)?);
                }
                let mut at = extent.offset;
                while at < end {
                    at += feed.chunk(at, end, |chunk| {
                        source.read_at(chunk, at).map_err(&to_source)
                    })?;
                    report(at, size, progress)?;
                }
                Ok(())
            },
        )
    });
    copied.map_err(|stopped| match stopped {
        Stopped::Reader(error) => error,
        Stopped::Target(error) => OperationError::io(path)(error),
    })
}
