//! The master boot record and the chain of logical partitions. Sectors are of
//! 512 bytes.

use std::collections::HashSet;
use std::ops::Range;

use super::Slot;
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;

/// Bytes in a sector.
pub(super) const SECTOR: u64 = 512;

/// The type of the partition that stands for a GPT.
pub(super) const PROTECTIVE: u8 = 0xee;

/// How many logical partitions are followed at most.
const MAX_LOGICAL: usize = 256;

/// An entry that is in use.
pub(super) struct Entry {
    pub(super) kind: u8,
    /// In sectors, of whatever the entry counts from.
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The used entries of the disk's first sector, if that is an MBR with any.
pub(super) fn primary(disk: &Part<'_>) -> Result<Option<Vec<Entry>>, Stop> {
    let sector = disk.read(0, SECTOR)?;
    let entries = entries(&sector)?.map(|entries| entries.into_iter().flatten().collect());
    Ok(entries.filter(|entries: &Vec<Entry>| !entries.is_empty()))
}

/// The four entries of a sector, if it is a partition table.
fn entries(sector: &[u8]) -> Result<Option<[Option<Entry>; 4]>, Stop> {
    let fields = Fields(sector);
    if fields.bytes(510, 2)? != [0x55, 0xaa] {
        return Ok(None);
    }
    let mut entries = [None, None, None, None];
    for (index, entry) in entries.iter_mut().enumerate() {
        let at = 446 + index * 16;
        // Anything else is a boot sector's program or text.
        if !matches!(fields.u8(at)?, 0 | 0x80) {
            return Ok(None);
        }
        let (kind, count) = (fields.u8(at + 4)?, fields.le32(at + 12)?);
        if kind != 0 && count != 0 {
            *entry = Some(Entry {
                kind,
                first: fields.le32(at + 8)?.into(),
                count: count.into(),
            });
        }
    }
    Ok(Some(entries))
}

/// The partitions, and the sectors that the tables themselves are in.
pub(super) fn read(
    disk: &Part<'_>,
    entries: &[Entry],
) -> Result<(Vec<Slot>, Vec<Range<u64>>), Stop> {
    let mut slots = Vec::new();
    let mut taken: Vec<_> = std::iter::once(0..SECTOR).collect();
    let mut extended = None;
    for entry in entries {
        if !entry.is_extended() {
            slots.push(slot(entry, 0));
        } else if extended.replace(entry).is_some() {
            return doubt("the MBR has two extended partitions, expected at most one");
        }
    }
    if let Some(extended) = extended {
        logical(disk, extended, &mut slots, &mut taken)?;
        // The extended partition as a whole must keep away from the others.
        let range = extended.first..extended.first + extended.count;
        for entry in entries.iter().filter(|entry| !entry.is_extended()) {
            if entry.first < range.end && range.start < entry.first + entry.count {
                return doubt("a primary partition overlaps the extended one");
            }
        }
    }
    Ok((slots, taken))
}

/// Follows the chain of logical partitions.
fn logical(
    disk: &Part<'_>,
    extended: &Entry,
    slots: &mut Vec<Slot>,
    taken: &mut Vec<Range<u64>>,
) -> Result<(), Stop> {
    let end = extended.first + extended.count;
    let mut seen = HashSet::new();
    let mut next = Some(extended.first);
    while let Some(here) = next.take() {
        if !seen.insert(here) {
            return doubt(format!(
                "the chain of logical partitions comes back to sector {here}"
            ));
        }
        if seen.len() > MAX_LOGICAL {
            return doubt(format!(
                "there are more than {MAX_LOGICAL} logical partitions"
            ));
        }
        let sector = disk.read(here * SECTOR, SECTOR)?;
        let Some([first, second, None, None]) = entries(&sector)? else {
            return doubt(format!(
                "sector {here} should describe a logical partition, but isn't made like that"
            ));
        };
        taken.push(here * SECTOR..(here + 1) * SECTOR);
        if let Some(entry) = first {
            let within = here + entry.first + entry.count <= end;
            if entry.is_extended() || !within {
                return doubt(format!(
                    "sector {here} describes a logical partition that isn't within the extended one"
                ));
            }
            slots.push(slot(&entry, here));
        }
        if let Some(entry) = second {
            let place = extended.first + entry.first;
            if !entry.is_extended() || place >= end {
                return doubt(format!(
                    "sector {here} links to sector {place}, which isn't within the extended partition"
                ));
            }
            next = Some(place);
        }
    }
    Ok(())
}

fn slot(entry: &Entry, base: u64) -> Slot {
    let what = match entry.kind {
        0x42 => Some("part of a Windows dynamic disk"),
        0x82 => Some("swap space"),
        0x8e => Some("an LVM physical volume"),
        0xfd => Some("a member of a Linux RAID"),
        0xda => Some("data without a file system"),
        _ => None,
    };
    Slot {
        start: (base + entry.first) * SECTOR,
        len: entry.count * SECTOR,
        refused: what.map(|what| {
            format!(
                "its partition type, {:#04x}, says that it is {what}",
                entry.kind
            )
        }),
    }
}
