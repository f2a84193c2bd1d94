//! Dynamic and differencing disks of another size: a longer table goes with a
//! new header behind the end of the file, and one sector, the footer's copy at
//! the beginning, then tells the new size and names that header.

use crate::block::IoError;
use crate::format::SECTOR;
use crate::format::bat::{self, Layout, MAX_ENTRIES, UNALLOCATED};
use crate::format::footer;
use crate::format::header::{self, Header};
use crate::image::{Mutant, Recognised, Tuning};
use crate::storage::{Backing, Space};

fn needed(layout: &Layout, size: u64) -> u64 {
    size.div_ceil(layout.block_size.into())
}

/// Why the disk can't have that size, if it can't.
pub(crate) fn obstacle(found: &Recognised, size: u64) -> Option<String> {
    let layout = found.layout()?;
    if let Err(what) = layout.check(found.data_end) {
        return Some(what);
    }
    let blocks = needed(&layout, size);
    (blocks > u64::from(MAX_ENTRIES)).then(|| {
        format!(
            "its blocks have {} bytes, so {size} bytes would take {blocks} of them, and {MAX_ENTRIES} is the most; convert it first",
            layout.block_size
        )
    })
}

/// How many bytes the file grows by, at most.
pub(crate) fn need(found: &Recognised, size: u64) -> u64 {
    let blocks = found.layout().map_or(0, |layout| needed(&layout, size));
    blocks * 4 + (header::LEN + 4 * footer::LEN) as u64
}

/// Gives the disk another size. At any moment it has the old or the new one;
/// bytes that come back read as zeros.
pub(crate) fn apply(
    backing: &Backing,
    found: &Recognised,
    size: u64,
    tuning: Tuning,
) -> Result<(), IoError> {
    let (Some(layout), Some((_, header))) = (found.layout(), &found.header) else {
        return Ok(());
    };
    // At most 16 MiB, and within the file: checked by the caller.
    let mut table = vec![0; layout.bat_entries as usize * 4];
    backing.read(&mut table, layout.bat_offset)?;
    let table: Vec<u32> = bat::decode(&table).collect();
    let grows = size > layout.size;
    if grows {
        clear_behind(backing, &layout, &table, layout.size)?;
    }
    if found.head_is_lost {
        // The one at the end won't be there any more.
        backing.write(&found.footer_bytes, 0)?;
        backing.sync()?;
    }
    let mut footer = found.footer.resized(size);
    let mut tail = found.data_end.next_multiple_of(SECTOR);
    // The longest table is checked by the caller.
    let entries = needed(&layout, size) as u32;
    let moved = entries > layout.bat_entries;
    let header_offset = backing.len()?.next_multiple_of(SECTOR);
    if moved {
        footer.header_offset = Some(header_offset);
    }
    // The other fields of the footer stay, those unknown to us as well.
    let mut bytes = found.footer_bytes;
    footer.encode_size(&mut bytes);
    if moved {
        if tuning.is(Mutant::HeadBeforeHeader) {
            backing.write(&bytes, 0)?;
        }
        let header = Header {
            bat_offset: header_offset + header::LEN as u64,
            bat_entries: entries,
            ..header.clone()
        };
        let used = &table[..needed(&layout, layout.size) as usize];
        let mut longer: Vec<u8> = used.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        // What pads it is unallocated as well.
        longer.resize(
            (entries as usize * 4).next_multiple_of(SECTOR as usize),
            0xff,
        );
        tail = header.bat_offset + longer.len() as u64;
        backing.write(&longer, header.bat_offset)?;
        backing.write(&header.encode(), header_offset)?;
        // The footer that is at the end now, until the new one is named.
        backing.write(&found.footer_bytes, tail)?;
    } else if grows {
        clear_entries(backing, &layout, &table, layout.size)?;
    }
    backing.sync()?;
    backing.write(&bytes, 0)?;
    backing.sync()?;
    backing.write(&bytes, tail)?;
    backing.sync()?;
    if !grows {
        // Only now: until then they were a part of the disk.
        clear_entries(backing, &layout, &table, size)?;
        backing.sync()?;
        clear_behind(backing, &layout, &table, size)?;
        for entry in behind(&layout, &table, size).filter(|entry| *entry != UNALLOCATED) {
            let region = layout.region(entry);
            backing.zero(region, layout.region_len(), Space::Release)?;
        }
        backing.sync()?;
    }
    Ok(())
}

/// The entries of the blocks behind the end of a disk of `size` bytes.
fn behind<'a>(layout: &Layout, table: &'a [u32], size: u64) -> impl Iterator<Item = u32> + 'a {
    table.iter().copied().skip(needed(layout, size) as usize)
}

/// Takes away what the table has behind the end of a disk of `size` bytes.
fn clear_entries(
    backing: &Backing,
    layout: &Layout,
    table: &[u32],
    size: u64,
) -> Result<(), IoError> {
    let count = behind(layout, table, size).count();
    if behind(layout, table, size).all(|entry| entry == UNALLOCATED) {
        return Ok(());
    }
    let first = table.len() - count;
    backing.write(&vec![0xff; count * 4], layout.bat_offset + first as u64 * 4)
}

/// Makes what the last block of a disk of `size` bytes has behind its end
/// zeros.
fn clear_behind(
    backing: &Backing,
    layout: &Layout,
    table: &[u32],
    size: u64,
) -> Result<(), IoError> {
    let within = size % u64::from(layout.block_size);
    let last = (size / u64::from(layout.block_size)) as usize;
    match table.get(last) {
        Some(&entry) if within > 0 && entry != UNALLOCATED => backing.zero(
            layout.data(entry) + within,
            u64::from(layout.block_size) - within,
            Space::Release,
        ),
        _ => Ok(()),
    }
}
