//! What is on a disk, without a look into the file systems' accounts.

use crate::disk::{Disk, Part};
use crate::error::{Stop, WalkError};
use crate::identify::{Found, identify};
use crate::report::{Kind, PartitionTable};
use crate::table::{self, Slot};

/// How a disk is divided, and what its parts seem to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// How the disk is divided.
    pub table: PartitionTable,
    /// What it is divided into, in the order of the disk. Without a partition
    /// table, the disk is one volume.
    pub volumes: Vec<Content>,
}

/// A partition, or the whole of a disk that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Its first byte on the disk.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it holds, by its signature alone.
    pub kind: Kind,
}

/// Reads a disk's partition table, and the beginnings of what it is divided
/// into: at most some 100 KiB of each.
///
/// # Errors
///
/// When the disk cannot be read, or its partition table contradicts itself.
pub fn contents(disk: &dyn Disk) -> Result<Contents, WalkError> {
    let whole = Part::whole(disk);
    let layout = table::read(&whole)?;
    let mut volumes = Vec::new();
    for slot in &layout.slots {
        volumes.push(Content {
            start: slot.start,
            len: slot.len,
            kind: kind(&whole, slot)?,
        });
    }
    Ok(Contents {
        table: layout.table,
        volumes,
    })
}

fn kind(whole: &Part<'_>, slot: &Slot) -> Result<Kind, WalkError> {
    let Some(part) = whole.part(slot.start, slot.len) else {
        return Ok(Kind::Unknown);
    };
    let look = || match identify(&part)? {
        Found::Ext => crate::ext::kind(&part),
        Found::Fat => crate::fat::kind(&part),
        Found::ExFat => Ok(Kind::ExFat),
        Found::Ntfs => Ok(Kind::Ntfs),
        Found::Xfs => Ok(Kind::Xfs),
        Found::Other(kind, _) => Ok(kind),
    };
    match look() {
        Ok(kind) => Ok(kind),
        Err(Stop::Doubt(_)) => Ok(Kind::Unknown),
        Err(Stop::Failed(error)) => Err(error),
    }
}
