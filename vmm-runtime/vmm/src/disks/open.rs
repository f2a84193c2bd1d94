//! Opens a machine's disk with its parents, or the undo disk over it.

use std::fmt::Display;
use std::path::Path;

use paddock_vhd::{
    Access, BlockDevice, ChildOptions, CreateError, Gate, IoError, OpenError, OpenErrorKind,
    OpenOptions, OperationError, ParentSearch, Pool, Vhd, inspect, start_undo,
};
use tracing::info;

use super::NotOpened;
use crate::api::EndReason;
use crate::config::{MissingUndo, PoolFile, ValidDisk};

/// An open disk.
#[derive(Debug)]
pub(super) struct Opened {
    pub vhd: Vhd,
    /// What its changes pass.
    pub gate: Gate,
    /// The pool that takes what is written.
    pub grows_in: Pool,
}

/// Opens `disk`. With an undo disk that is what is opened, made first if it may be, and the disk below it is only read.
pub(super) fn open(disk: &ValidDisk) -> Result<Opened, NotOpened> {
    let pool = pool(disk, &disk.file)?;
    let path = &disk.file.path;
    let gate = Gate::open();
    let (vhd, grows_in) = match &disk.undo {
        None => {
            let access = if disk.read_only {
                Access::ReadOnly
            } else {
                Access::ReadWrite
            };
            let vhd = options(disk, access, gate.clone(), search(disk)?)
                .open(&pool, path)
                .map_err(|error| not_opened(disk, &disk.file, &error))?;
            (vhd, pool)
        }
        Some((undo, missing)) => open_undo(disk, &pool, undo, *missing, gate.clone())?,
    };
    disk.check_size(vhd.size())
        .map_err(|error| NotOpened::new(EndReason::DiskTooLargeForBus, error))?;
    info!(
        disk = disk.name,
        bytes = vhd.size(),
        epoch = disk.disk_epoch,
        undo = disk.undo.is_some(),
        "opened"
    );
    Ok(Opened {
        vhd,
        gate,
        grows_in,
    })
}

/// How a disk, or the undo disk over it, is opened: on a folder that hosts share as its owner.
fn options(disk: &ValidDisk, access: Access, gate: Gate, search: ParentSearch) -> OpenOptions {
    let options = OpenOptions::new(access).gate(gate).search(search);
    match &disk.owner {
        Some(owner) => options.owner(owner.clone()),
        None => options,
    }
}

fn open_undo(
    disk: &ValidDisk,
    base: &Pool,
    undo: &PoolFile,
    missing: MissingUndo,
    gate: Gate,
) -> Result<(Vhd, Pool), NotOpened> {
    let undo_pool = pool(disk, undo)?;
    let search = search(disk)?;
    let failed = |error: &OpenError| not_opened(disk, undo, error);
    if is_missing(&undo_pool, &undo.path).map_err(|error| failed(&error))? {
        if missing == MissingUndo::Refuse {
            return Err(NotOpened::new(
                EndReason::UndoDiskNotFound,
                describe(
                    disk,
                    undo,
                    &"its undo disk is not there, and a guest has written into it: put it back, or discard it",
                ),
            ));
        }
        let options = ChildOptions {
            search: search.clone(),
            ..ChildOptions::new()
        };
        // Closed again: its gate is not ours.
        start_undo(&undo_pool, &undo.path, base, &disk.file.path, &options)
            .and_then(|made| {
                made.close().map_err(|source| OperationError::Io {
                    path: undo.path.clone(),
                    source,
                })
            })
            .map_err(|error| not_started(disk, undo, &error))?;
    }
    let search = search
        .root(base.clone())
        .folder(base.clone(), folder(&disk.file.path));
    let vhd = options(disk, Access::ReadWrite, gate, search)
        .open(&undo_pool, &undo.path)
        .map_err(|error| failed(&error))?;
    Ok((vhd, undo_pool))
}

fn is_missing(pool: &Pool, path: &Path) -> Result<bool, OpenError> {
    match inspect(pool, path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == OpenErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Where the parents of a disk are: in the pools and folders that the configuration names.
fn search(disk: &ValidDisk) -> Result<ParentSearch, NotOpened> {
    let mut search = ParentSearch::new();
    for parent in &disk.parents {
        let pool = pool(disk, parent)?;
        search = search.root(pool.clone()).folder(pool, folder(&parent.path));
    }
    Ok(search)
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The pool of a file. The agent was told that no other host has it: what one that died has left there does not count.
fn pool(disk: &ValidDisk, file: &PoolFile) -> Result<Pool, NotOpened> {
    Pool::open(&file.pool)
        .map(Pool::assigned)
        .map_err(|error| NotOpened::new(EndReason::DiskNotOpened, describe(disk, file, &error)))
}

/// Why the undo disk could not be made.
pub(super) fn not_started(disk: &ValidDisk, undo: &PoolFile, error: &OperationError) -> NotOpened {
    let reason = match error {
        OperationError::Open(error) | OperationError::Create(CreateError::Parent(error)) => {
            return not_opened(disk, &disk.file, error);
        }
        OperationError::NoSpace { .. }
        | OperationError::Create(CreateError::NoSpace { .. })
        | OperationError::Io {
            source: IoError::NoSpace { .. },
            ..
        } => EndReason::PoolFull,
        _ => EndReason::DiskNotOpened,
    };
    NotOpened::new(reason, describe(disk, undo, error))
}

fn not_opened(disk: &ValidDisk, file: &PoolFile, error: &OpenError) -> NotOpened {
    let reason = match error.kind() {
        OpenErrorKind::InUse => EndReason::DiskInUse,
        OpenErrorKind::NoSpace => EndReason::PoolFull,
        OpenErrorKind::ParentNotFound | OpenErrorKind::ParentMismatch => EndReason::ParentNotFound,
        OpenErrorKind::ParentChanged => EndReason::ParentChanged,
        _ => EndReason::DiskNotOpened,
    };
    NotOpened::new(reason, describe(disk, file, error))
}

fn describe(disk: &ValidDisk, file: &PoolFile, what: &dyn Display) -> String {
    format!(
        "disk {} ({}/{}): {what}",
        disk.name,
        file.pool.display(),
        file.path.display()
    )
}
