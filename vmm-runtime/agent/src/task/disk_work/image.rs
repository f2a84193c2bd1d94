//! Makes a disk of an image that is a virtual hard disk itself.

use super::{
    Job,
    failure::{cancelled, from_operation, from_source, io_error},
    look::look,
    make::{already_made, disk_type, grow, is_mine, sha256, size},
    pools::At,
};
use crate::instance::core::Failure;
use paddock_crds::{
    virtual_hard_disk::ImageFormat,
    virtual_hard_disk_task::{TaskOrder, TaskResult},
};
use paddock_vhd::{
    ConvertOptions, CreateError, OperationError, ParentSearch, Progress, VhdInfo, convert,
};
use sha2::{Digest, Sha256};
use std::{fs::File, io::Read, ops::ControlFlow, path::Path};

/// How much of an image is read at once, in bytes.
const PIECE: usize = 1 << 20;

/// Whether an order is to import a virtual hard disk from a pool.
pub(super) fn is_vhd(order: &TaskOrder) -> bool {
    let source = order.source.as_ref();
    source.is_some_and(|source| source.format == ImageFormat::Vhd)
}

pub(super) fn import(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let source = job
        .order
        .source
        .as_ref()
        .ok_or_else(|| io_error("the order names no source".to_owned()))?;
    if !is_mine(job, &at) {
        let from = job.pools.image(&source.file)?;
        let file = from.pool.open_read(from.path);
        let mut file = file.map_err(|error| from_source(from.name, &error))?;
        if let Some(sum) = &source.sha256 {
            compare(job, &from, &mut file, sha256(sum)?)?;
        }
        let found = from
            .find()?
            .ok_or_else(|| from.named(vanished(&source.file.path)))?;
        fits(job, &from, &found)?;
        let folder = from.path.parent().unwrap_or(Path::new(""));
        let search = ParentSearch::new()
            .root(from.pool.clone())
            .folder(from.pool.clone(), folder);
        convert_from(job, &from, &at, search, &mut job.progress())?;
    }
    grow(job, &at)?;
    look(&at)
}

fn vanished(path: &str) -> Failure {
    Failure::new("ImageNotFound", format!("{path}: the image is gone"))
}

/// Refuses an image that is larger than the disk is to be.
pub(super) fn fits(job: &Job<'_>, from: &At<'_>, found: &VhdInfo) -> Result<(), Failure> {
    match size(job)? {
        Some(size) if size.bytes() < found.virtual_size => Err(from.named(Failure::new(
            "SourceTooLarge",
            format!(
                "{}: its disk has {} bytes and the new one only {}: choose a larger size",
                from.path.display(),
                found.virtual_size,
                size.bytes()
            ),
        ))),
        _ => Ok(()),
    }
}

/// A new disk of what the virtual hard disk `from` shows.
pub(super) fn convert_from(
    job: &Job<'_>,
    from: &At<'_>,
    at: &At<'_>,
    search: ParentSearch,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), Failure> {
    let mut options = ConvertOptions::new(disk_type(job)?);
    options.unique_id = job.identity();
    options.search = search;
    let gate = job.control.gate();
    match convert(
        &from.pool, from.path, &at.pool, at.path, gate, &options, progress,
    ) {
        Ok(_) => Ok(()),
        Err(OperationError::Create(CreateError::AlreadyExists { .. })) => {
            already_made(job, at).map(drop)
        }
        Err(error) => Err(from.named(from_operation(&error))),
    }
}

/// Compares the sum of an image's file, before anything of it is believed.
fn compare(
    job: &Job<'_>,
    from: &At<'_>,
    file: &mut File,
    expected: [u8; 32],
) -> Result<(), Failure> {
    let path = from.path.display();
    let failed = |error| from.named(io_error(format!("{path}: read: {error}")));
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        if job.control.is_cancelled() {
            return Err(cancelled());
        }
        let read = file.read(&mut piece).map_err(failed)?;
        if read == 0 {
            break;
        }
        hash.update(&piece[..read]);
    }
    let found = <[u8; 32]>::from(hash.finalize());
    if found == expected {
        return Ok(());
    }
    Err(from.named(wrong_sum(&path.to_string(), found, expected)))
}

/// An image with another sum.
pub(super) fn wrong_sum(image: &str, found: [u8; 32], expected: [u8; 32]) -> Failure {
    Failure::new(
        "ChecksumMismatch",
        format!(
            "{image}: its SHA-256 is {}, expected {}; the image was changed, or the sum is of another one",
            hex(found),
            hex(expected)
        ),
    )
}

fn hex(sum: [u8; 32]) -> String {
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}
