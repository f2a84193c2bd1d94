//! Tasks that make the file of a VirtualHardDisk.

use super::{
    Job,
    failure::{
        file_exists, from_create, from_import, from_io, from_operation, from_source, io_error,
        refused,
    },
    look::{describe, look},
    pools::At,
};
use crate::instance::core::Failure;
use paddock_crds::{virtual_hard_disk, virtual_hard_disk_task::TaskResult};
use paddock_vhd::{
    ChildOptions, CloneOptions, ConvertOptions, CreateError, CreateOptions, DiskSize, DiskType,
    ImportError, ImportOptions, OperationError, ResizeOptions, Vhd, VhdInfo, clone_disk, convert,
    import_raw, resize,
};

/// An empty disk, or a differencing disk over the first of `parents`.
pub(super) fn create(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let made = match job.order.parents.first() {
        Some(parent) => {
            let parent = job.pools.at(parent)?;
            let mut options = ChildOptions::new();
            options.unique_id = job.identity();
            options.search = job.pools.search(&job.order.parents)?;
            options.gate = job.control.gate();
            Vhd::create_child(&at.pool, at.path, &parent.pool, parent.path, &options)
        }
        None => {
            let size = size(job)?.ok_or_else(|| {
                io_error("the order names no size: expected sizeBytes".to_owned())
            })?;
            let mut options = CreateOptions::new(disk_type(job)?, size);
            options.unique_id = job.identity();
            options.gate = job.control.gate();
            Vhd::create_with(&at.pool, at.path, &options, &mut job.progress())
        }
    };
    match made {
        Ok(disk) => {
            disk.close().map_err(|error| at.named(from_io(&error)))?;
            look(&at)
        }
        Err(CreateError::AlreadyExists { .. }) => {
            already_made(job, &at).map(|found| describe(&found))
        }
        Err(error) => Err(at.named(from_create(&error))),
    }
}

pub(super) fn import(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let source = job
        .order
        .source
        .as_ref()
        .ok_or_else(|| io_error("the order names no source".to_owned()))?;
    if is_mine(job, &at) {
        return look(&at);
    }
    let options = ImportOptions {
        disk_type: disk_type(job)?,
        size: size(job)?,
        sha256: source.sha256.as_deref().map(sha256).transpose()?,
        unique_id: Some(job.identity()),
        gate: job.control.gate(),
    };
    let from = job.pools.image(&source.file)?;
    let image = from.pool.open_read(from.path);
    let image = image.map_err(|error| from_source(from.name, &error))?;
    match import_raw(&image, &at.pool, at.path, &options, &mut job.progress()) {
        Ok(_) => look(&at),
        Err(ImportError::Create(CreateError::AlreadyExists { .. })) => {
            already_made(job, &at).map(|found| describe(&found))
        }
        Err(error) => Err(at.named(from_import(&error))),
    }
}

/// A copy of another disk, with what that has from its parents. Of the same type and without parents the file is copied
/// as it is, which takes no time where the file system shares space.
pub(super) fn clone(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    if !is_mine(job, &at) {
        let [source, parents @ ..] = job.order.clone.as_slice() else {
            return Err(io_error("the order names no disk to clone".to_owned()));
        };
        let from = job.pools.at(source)?;
        let found = from.find()?.ok_or_else(|| {
            Failure::new(
                "FileNotFound",
                format!(
                    "pool {}: {}: there is no such disk to clone",
                    source.pool, source.path
                ),
            )
        })?;
        let disk_type = disk_type(job)?;
        let copied = if found.disk_type == disk_type {
            let mut options = CloneOptions::new();
            options.unique_id = job.identity();
            options.search = job.pools.search(parents)?;
            let progress = &mut job.progress();
            clone_disk(
                &from.pool,
                from.path,
                &at.pool,
                at.path,
                job.control.gate(),
                &options,
                progress,
            )
            .map(drop)
        } else {
            let mut options = ConvertOptions::new(disk_type);
            options.unique_id = job.identity();
            options.search = job.pools.search(parents)?;
            let progress = &mut job.progress();
            convert(
                &from.pool,
                from.path,
                &at.pool,
                at.path,
                job.control.gate(),
                &options,
                progress,
            )
            .map(drop)
        };
        match copied {
            Ok(()) => {}
            Err(OperationError::Create(CreateError::AlreadyExists { .. })) => {
                already_made(job, &at)?;
            }
            Err(error) => return Err(at.named(from_operation(&error))),
        }
    }
    grow(job, &at)?;
    look(&at)
}

/// A disk may be larger than what it was made of.
pub(super) fn grow(job: &Job<'_>, at: &At<'_>) -> Result<(), Failure> {
    let (Some(size), Some(found)) = (size(job)?, at.find()?) else {
        return Ok(());
    };
    if size.bytes() == found.virtual_size {
        return Ok(());
    }
    if size.bytes() < found.virtual_size {
        return Err(at.named(refused(format!(
            "{}: the disk that it is cloned from has {} bytes, and size is {}: ask for no less",
            at.path.display(),
            found.virtual_size,
            size.bytes()
        ))));
    }
    let options = ResizeOptions {
        size,
        force: false,
        search: job.pools.search(&[])?,
    };
    let progress = &mut job.progress();
    resize(&at.pool, at.path, job.control.gate(), &options, progress)
        .map(drop)
        .map_err(|error| at.named(from_operation(&error)))
}

/// Whether the file is there and this VirtualHardDisk's.
pub(super) fn is_mine(job: &Job<'_>, at: &At<'_>) -> bool {
    matches!(at.find(), Ok(Some(found)) if found.unique_id == job.identity())
}

/// The file is there: is it the one that this task, before a crash, has made?
pub(super) fn already_made(job: &Job<'_>, at: &At<'_>) -> Result<VhdInfo, Failure> {
    match at.find() {
        Ok(Some(found)) if found.unique_id == job.identity() => Ok(found),
        _ => Err(at.named(file_exists(&at.path.display().to_string()))),
    }
}

/// The type of a disk that is made.
pub(super) fn disk_type(job: &Job<'_>) -> Result<DiskType, Failure> {
    match job.order.disk_type.unwrap_or_default() {
        virtual_hard_disk::DiskType::Fixed => Ok(DiskType::Fixed),
        virtual_hard_disk::DiskType::Dynamic => Ok(DiskType::Dynamic),
        virtual_hard_disk::DiskType::Linked => Err(refused(
            "a linked disk is made of a physical disk alone: the order names none".to_owned(),
        )),
        virtual_hard_disk::DiskType::Differencing => Err(refused(
            "a differencing disk is made on a parent alone: the order names none".to_owned(),
        )),
    }
}

pub(super) fn size(job: &Job<'_>) -> Result<Option<DiskSize>, Failure> {
    let Some(bytes) = job.order.size_bytes else {
        return Ok(None);
    };
    let bytes = u64::try_from(bytes)
        .map_err(|_| io_error(format!("sizeBytes is {bytes}: expected a positive number")))?;
    DiskSize::from_bytes(bytes)
        .map(Some)
        .map_err(|error| io_error(error.to_string()))
}

pub(super) fn sha256(text: &str) -> Result<[u8; 32], Failure> {
    parse_sha256(text).ok_or_else(|| {
        Failure::new(
            "ChecksumMismatch",
            format!("sha256 is {text:?}: expected 64 hexadecimal digits"),
        )
    })
}

fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut sum = [0; 32];
    for (index, byte) in sum.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_64_hexadecimal_digits() {
        let text = "00ff".to_owned() + &"aB".repeat(30);
        assert_eq!(
            parse_sha256(&text).map(|sum| (sum[0], sum[1], sum[2])),
            Some((0, 255, 0xab))
        );
        for bad in [
            "",
            "0",
            &"g".repeat(64),
            &"0".repeat(63),
            &"+".repeat(64),
            &"é".repeat(32),
        ] {
            assert_eq!(parse_sha256(bad), None, "{bad}");
        }
    }
}
