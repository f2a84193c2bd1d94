//! Tasks that make a further file of a disk's content and leave the disk as it is.

use super::{
    Job,
    failure::{file_exists, from_io, from_open, from_operation, from_source, io_error, refused},
    look::look,
    make::disk_type,
    pools::At,
};
use crate::instance::core::Failure;
use paddock_crds::virtual_hard_disk::{Defragment, Precompact};
use paddock_crds::virtual_hard_disk_task::{ExportFormat, TaskResult};
use paddock_free_space::{Disk, WalkError, free_space};
use paddock_vhd::{
    Access, BlockDevice, CompactOptions, ConvertOptions, CreateError, DiskType, Gate,
    OperationError, ParentSearch, Vhd, compact as compact_disk, convert as convert_disk,
    export_raw,
};
use std::{io, ops::Range, os::unix::fs::FileExt};
use tracing::{info, warn};

/// How much of a raw image is compared at once, in bytes.
const PIECE: u64 = 1 << 20;

pub(super) fn convert(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let disk_type = disk_type(job)?;
    let to = target(job)?;
    copy_to(job, &to, disk_type)?;
    look(&to)
}

/// Whether the target is there, made by this very task.
pub(super) fn is_converted(job: &Job<'_>, to: &At<'_>) -> bool {
    let identity = job.identity_at(to.name, &to.path.to_string_lossy());
    matches!(to.find(), Ok(Some(found)) if found.unique_id == identity)
}

/// Whether the target is there, made by an agent that was at work on this task. Only its identity and size say so, and a
/// person's copy of the disk has them too: so before anybody has begun, it is not.
pub(super) fn is_compacted(job: &Job<'_>, to: &At<'_>) -> Result<bool, Failure> {
    let source = job.pools.at(&job.order.file)?.find()?;
    let made = to.find().ok().flatten();
    let (Some(source), Some(made)) = (source, made) else {
        return Ok(false);
    };
    let is_same = made.unique_id == source.unique_id && made.virtual_size == source.virtual_size;
    Ok(job.begun && is_same)
}

/// A new file with the content of the disk, its parents' included.
fn copy_to(job: &Job<'_>, to: &At<'_>, disk_type: DiskType) -> Result<(), Failure> {
    let identity = job.identity_at(to.name, &to.path.to_string_lossy());
    let is_mine = || is_converted(job, to);
    if is_mine() {
        return Ok(());
    }
    let at = job.pools.at(&job.order.file)?;
    let mut options = ConvertOptions::new(disk_type);
    options.unique_id = identity;
    options.search = job.pools.search(&job.order.parents)?;
    let progress = &mut job.progress();
    match convert_disk(
        &at.pool,
        at.path,
        &to.pool,
        to.path,
        job.control.gate(),
        &options,
        progress,
    ) {
        Ok(_) => Ok(()),
        Err(OperationError::Create(CreateError::AlreadyExists { .. })) => {
            if is_mine() {
                Ok(())
            } else {
                Err(to.named(file_exists(&to.path.display().to_string())))
            }
        }
        Err(error) => Err(at.named(from_operation(&error))),
    }
}

/// A new file without what is unused. It keeps the disk's identity, so that one made before a crash is known by it.
pub(super) fn compact(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let to = target(job)?;
    if to.name != at.name {
        return Err(refused(format!(
            "a disk is compacted within its pool: {} is in pool {}, the target in pool {}",
            job.order.file.path, at.name, to.name
        )));
    }
    at.find()?.ok_or_else(|| {
        at.named(Failure::new(
            "FileNotFound",
            format!("{}: there is no such disk", job.order.file.path),
        ))
    })?;
    if is_compacted(job, &to)? {
        return look(&to);
    }
    let free = |disk: &dyn BlockDevice| free_ranges(disk, &at);
    let options = CompactOptions {
        free: match job.order.precompact {
            Precompact::Enabled => Some(&free),
            Precompact::Disabled => None,
        },
        target: Some(to.path.to_owned()),
        defragment: job.order.defragment == Defragment::Enabled,
    };
    match compact_disk(
        &at.pool,
        at.path,
        job.control.gate(),
        &options,
        &mut job.progress(),
    ) {
        Ok(report) => {
            info!(
                file = %to.path.display(),
                freed = report.freed_bytes,
                "compacted into a new file"
            );
            look(&to)
        }
        Err(OperationError::Create(CreateError::AlreadyExists { .. })) => {
            Err(to.named(file_exists(&to.path.display().to_string())))
        }
        Err(error) => Err(at.named(from_operation(&error))),
    }
}

/// A disk as the walkers of file systems read it.
struct Walked<'a>(&'a dyn BlockDevice);

impl Disk for Walked<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset).map_err(io::Error::other)
    }
}

/// What the guest's file systems call free. Nothing where they cannot be trusted. The disk is locked meanwhile.
fn free_ranges(disk: &dyn BlockDevice, at: &At<'_>) -> io::Result<Vec<Range<u64>>> {
    match free_space(&Walked(disk)) {
        Ok(report) => Ok(report.free_ranges()),
        Err(error @ WalkError::Read { .. }) => Err(io::Error::other(error.to_string())),
        Err(error) => {
            warn!(disk = %at.path.display(), %error, "compacted without the free space of its file systems");
            Ok(Vec::new())
        }
    }
}

pub(super) fn export(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let to = target(job)?;
    match job.order.format {
        ExportFormat::FixedVhd => copy_to(job, &to, DiskType::Fixed)?,
        ExportFormat::DynamicVhd => copy_to(job, &to, DiskType::Dynamic)?,
        ExportFormat::Raw => raw(job, &at, &to)?,
    }
    // Of the disk itself: an image says nothing of what it is.
    look(&at)
}

fn raw(job: &Job<'_>, at: &At<'_>, to: &At<'_>) -> Result<(), Failure> {
    let search = job.pools.search(&job.order.parents)?;
    let progress = &mut job.progress();
    let gate = job.control.gate();
    match export_raw(
        &at.pool, at.path, &to.pool, to.path, gate, &search, progress,
    ) {
        Ok(_) => Ok(()),
        Err(OperationError::Create(CreateError::AlreadyExists { .. })) => {
            if holds_the_same(job, at, to, &search)? {
                Ok(())
            } else {
                Err(to.named(file_exists(&to.path.display().to_string())))
            }
        }
        Err(error) => Err(at.named(from_operation(&error))),
    }
}

/// Whether the raw image that is there holds just what the disk shows: then it is what was to be made.
fn holds_the_same(
    job: &Job<'_>,
    at: &At<'_>,
    to: &At<'_>,
    search: &ParentSearch,
) -> Result<bool, Failure> {
    let image = to
        .pool
        .open_read(to.path)
        .map_err(|error| from_source(to.name, &error))?;
    let disk = Vhd::open_with(&at.pool, at.path, Access::ReadOnly, Gate::open(), search)
        .map_err(|error| at.named(from_open(&error)))?;
    let size = disk.size();
    let len = image
        .metadata()
        .map_err(|error| io_error(error.to_string()))?
        .len();
    if len != size {
        return Ok(false);
    }
    let (mut expected, mut found) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
    let mut offset = 0;
    while offset < size {
        if job.control.is_cancelled() {
            return Err(super::failure::cancelled());
        }
        // At most PIECE.
        let piece = (size - offset).min(PIECE) as usize;
        let (expected, found) = (&mut expected[..piece], &mut found[..piece]);
        disk.read_at(expected, offset)
            .map_err(|error| at.named(from_io(&error)))?;
        image
            .read_exact_at(found, offset)
            .map_err(|error| io_error(error.to_string()))?;
        if expected != found {
            return Ok(false);
        }
        offset += piece as u64;
        job.control.set_progress(offset, size);
    }
    Ok(true)
}

pub(super) fn target<'a>(job: &Job<'a>) -> Result<At<'a>, Failure> {
    let target = job
        .order
        .target
        .as_ref()
        .ok_or_else(|| io_error("the order names no target".to_owned()))?;
    job.pools.at(target)
}
