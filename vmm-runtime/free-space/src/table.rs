//! How a disk is divided: into partitions, or not at all.

mod gpt;
mod mbr;

use crate::disk::Part;
use crate::error::{Stop, WalkError, doubt};
use crate::free_list::InUse;
use crate::identify::{Found, identify};
use crate::report::{Kind, PartitionTable};

/// What a disk is divided into, in its order.
pub(crate) struct Layout {
    pub(crate) table: PartitionTable,
    pub(crate) slots: Vec<Slot>,
}

/// The place of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Its first byte.
    pub(crate) start: u64,
    /// How many bytes it has, at least one.
    pub(crate) len: u64,
    /// Why it must not be walked even if a file system seems to be there.
    pub(crate) refused: Option<String>,
}

/// Reads a disk's partition table.
pub(crate) fn read(disk: &Part<'_>) -> Result<Layout, WalkError> {
    layout(disk).map_err(|stop| match stop {
        Stop::Failed(error) => error,
        Stop::Doubt(found) => WalkError::Table { found },
    })
}

fn layout(disk: &Part<'_>) -> Result<Layout, Stop> {
    let bare = Layout {
        table: PartitionTable::None,
        slots: vec![Slot {
            start: 0,
            len: disk.len,
            refused: None,
        }],
    };
    if disk.len < mbr::SECTOR {
        return Ok(bare);
    }
    let entries = mbr::primary(disk)?;
    let on_disk = identify(disk)?;
    let nothing_bare = matches!(on_disk, Found::Other(Kind::Unknown, _));
    let gpt_here = gpt::has_primary(disk)?;
    let Some(entries) = entries else {
        return match (nothing_bare, gpt_here) {
            (true, true) => doubt("there is a GPT, but not the MBR that protects it"),
            (false, true) => doubt("there is a GPT, and a file system over the whole disk"),
            (_, false) => Ok(bare),
        };
    };
    // What mkfs.fat writes for Windows: a partition that is the whole disk.
    if let [only] = entries.as_slice()
        && only.first == 0
        && matches!(on_disk, Found::Fat)
        && !gpt_here
    {
        return Ok(bare);
    }
    if !nothing_bare {
        return doubt("there are partitions, and a file system over the whole disk");
    }
    let (table, slots, taken) = if entries.iter().any(|entry| entry.kind == mbr::PROTECTIVE) {
        if entries.len() > 1 {
            return doubt("the MBR has a protective partition and others: a hybrid of MBR and GPT");
        }
        let (slots, taken) = gpt::read(disk)?;
        (PartitionTable::Gpt, slots, taken)
    } else if gpt_here {
        return doubt("there is a GPT, but the MBR has partitions of its own");
    } else {
        let (slots, taken) = mbr::read(disk, &entries)?;
        (PartitionTable::Mbr, slots, taken)
    };
    apart(disk, &slots, taken)?;
    let mut slots = slots;
    slots.sort_by_key(|slot| slot.start);
    Ok(Layout { table, slots })
}

/// Refuses partitions that overlap, or that lie where the table itself is.
fn apart(
    disk: &Part<'_>,
    slots: &[Slot],
    mut taken: Vec<std::ops::Range<u64>>,
) -> Result<(), Stop> {
    for slot in slots {
        match slot.start.checked_add(slot.len) {
            Some(end) if end <= disk.len => taken.push(slot.start..end),
            _ => {
                return doubt(format!(
                    "a partition of {} bytes at byte {} ends beyond the disk's {} bytes",
                    slot.len, slot.start, disk.len
                ));
            }
        }
    }
    match InUse::new(taken) {
        Ok(_) => Ok(()),
        Err(Stop::Failed(error)) => Err(Stop::Failed(error)),
        Err(Stop::Doubt(_)) => {
            doubt("two partitions overlap, or one lies over the table: expected them apart")
        }
    }
}
