//! From a disk to the report on it.

use std::ops::Range;

use crate::disk::{Disk, Part};
use crate::error::{Stop, WalkError};
use crate::free_list::{FreeList, MAX_RANGES};
use crate::identify::{Found, identify};
use crate::report::{Kind, Outcome, Report, Volume};
use crate::table::{self, Slot};

/// Reads a disk's partition table and the file systems on it, and tells which
/// of its bytes they don't use.
///
/// # Errors
///
/// When the disk cannot be read, or its partition table contradicts itself.
/// A file system that cannot be trusted is no error: its volume is
/// [`Outcome::Untouched`].
pub fn free_space(disk: &dyn Disk) -> Result<Report, WalkError> {
    let whole = Part::whole(disk);
    let layout = table::read(&whole)?;
    let limit = MAX_RANGES / layout.slots.len().max(1);
    let mut volumes = Vec::new();
    for slot in &layout.slots {
        volumes.push(volume(&whole, slot, limit)?);
    }
    Ok(Report {
        table: layout.table,
        volumes,
    })
}

/// Walks one volume.
fn volume(whole: &Part<'_>, slot: &Slot, limit: usize) -> Result<Volume, WalkError> {
    let mut kind = Kind::Unknown;
    let outcome = match walk(whole, slot, limit, &mut kind) {
        Ok(free) => Outcome::Walked {
            free_bytes: free.iter().map(|range| range.end - range.start).sum(),
            free,
        },
        Err(Stop::Doubt(reason)) => Outcome::Untouched { reason },
        Err(Stop::Failed(error)) => return Err(error),
    };
    Ok(Volume {
        start: slot.start,
        len: slot.len,
        kind,
        outcome,
    })
}

fn walk(
    whole: &Part<'_>,
    slot: &Slot,
    limit: usize,
    kind: &mut Kind,
) -> Result<Vec<Range<u64>>, Stop> {
    if let Some(refused) = &slot.refused {
        return Err(Stop::Doubt(refused.clone()));
    }
    let Some(part) = whole.part(slot.start, slot.len) else {
        return Err(Stop::Doubt("it lies beyond the end of the disk".into()));
    };
    let mut free = FreeList::new(part.start..part.start + part.len, limit);
    match identify(&part)? {
        Found::Ext => crate::ext::walk(&part, kind, &mut free)?,
        Found::Fat => crate::fat::walk(&part, kind, &mut free)?,
        Found::ExFat => {
            *kind = Kind::ExFat;
            crate::exfat::walk(&part, &mut free)?;
        }
        Found::Ntfs => {
            *kind = Kind::Ntfs;
            crate::ntfs::walk(&part, &mut free)?;
        }
        Found::Xfs => {
            *kind = Kind::Xfs;
            crate::xfs::walk(&part, &mut free)?;
        }
        Found::Other(other, reason) => {
            *kind = other;
            return Err(Stop::Doubt(reason));
        }
    }
    Ok(free.finish())
}
