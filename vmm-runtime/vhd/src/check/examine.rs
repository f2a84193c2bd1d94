//! The metadata of one file.

use std::ops::ControlFlow;
use std::path::Path;

use super::{CheckReport, FindingKind, Severity, not_a_disk};
use crate::block::IoError;
use crate::format::SECTOR;
use crate::format::bat::{self, Layout, UNALLOCATED};
use crate::format::bitmap::Bitmap;
use crate::format::footer::{self, Footer};
use crate::format::geometry::Geometry;
use crate::format::header;
use crate::image::{Recognised, Refusal, Tuning, recognise};
use crate::import::Progress;
use crate::operation::{OperationError, report as tell};
use crate::storage::Backing;

/// A report on one file, and what it was recognised as.
pub(crate) struct Verdict {
    pub(crate) report: CheckReport,
    /// `None` if it can't be opened, whatever its table says.
    pub(crate) found: Option<Recognised>,
}

/// Checks one file. What is not a VHD is an error.
pub(crate) fn examine(
    backing: &Backing,
    rel: &Path,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Verdict, OperationError> {
    let mut report = CheckReport::new();
    let found = match recognise(backing, Tuning::default()) {
        Ok(found) => found,
        Err(Refusal::Corrupt(what)) => {
            let kind = what_is_corrupt(backing).map_err(OperationError::io(rel))?;
            report.add(kind, None, None, what);
            return Ok(Verdict {
                report,
                found: None,
            });
        }
        Err(refusal) => return Err(not_a_disk(rel, refusal)),
    };
    report.disk_type = Some(found.disk_type);
    check_footers(&found, &mut report);
    let Some(layout) = found.layout() else {
        return Ok(Verdict {
            report,
            found: Some(found),
        });
    };
    if let Err(what) = layout.check(found.data_end) {
        report.add(FindingKind::LayoutImpossible, None, None, what);
        return Ok(Verdict {
            report,
            found: None,
        });
    }
    check_locators(backing, &found, &mut report).map_err(OperationError::io(rel))?;
    let table = read_table(backing, &layout).map_err(OperationError::io(rel))?;
    let bitmaps = if has_padding(&layout) {
        table.iter().filter(|entry| **entry != UNALLOCATED).count() as u64 * layout.bitmap_len()
    } else {
        0
    };
    let total = layout.bat_len() + bitmaps;
    let mut done = layout.bat_len();
    tell(done, total, progress)?;
    let sorted = check_table(&table, &layout, found.data_end, &mut report);
    drop(table);
    if report.worst() == Some(Severity::Error) {
        // What lies in a wrong place is no bitmap.
        tell(total, total, progress)?;
    } else if bitmaps > 0 {
        for batch in sorted.chunks(1024) {
            for &(entry, block) in batch {
                check_bitmap(backing, &layout, entry, block, found.data_end, &mut report)
                    .map_err(OperationError::io(rel))?;
            }
            done += batch.len() as u64 * layout.bitmap_len();
            tell(done, total, progress)?;
        }
    }
    Ok(Verdict {
        report,
        found: Some(found),
    })
}

/// Which part of a file that can't be recognised is to blame.
fn what_is_corrupt(backing: &Backing) -> Result<FindingKind, IoError> {
    let len = backing.len()?;
    let mut footers = Vec::new();
    let ends = [
        (Some(0), footer::LEN),
        (len.checked_sub(footer::LEN as u64), footer::LEN),
        (len.checked_sub(footer::OLD_LEN as u64), footer::OLD_LEN),
    ];
    for (offset, footer_len) in ends {
        let Some(offset) = offset.filter(|offset| offset + footer_len as u64 <= len) else {
            continue;
        };
        let mut bytes = [0; footer::LEN];
        backing.read(&mut bytes[..footer_len], offset)?;
        footers.extend(Footer::parse(&bytes[..footer_len]).ok());
    }
    let possible = |footer: &Footer| {
        let size = footer.current_size;
        size > 0
            && size.is_multiple_of(SECTOR)
            && size <= crate::size::DiskSize::MAX.bytes()
            && (footer.header_offset.is_some() || size <= len)
    };
    Ok(match footers.first() {
        None => FindingKind::FootersDamaged,
        Some(footer) if !possible(footer) => FindingKind::SizeImpossible,
        Some(_) => FindingKind::HeaderDamaged,
    })
}

fn check_footers(found: &Recognised, report: &mut CheckReport) {
    if found.head_is_lost {
        report.add(
            FindingKind::FooterCopyDamaged,
            Some(0),
            None,
            "the copy of the footer at the beginning is damaged".to_owned(),
        );
    }
    if found.tail_is_lost {
        report.add(
            FindingKind::FooterDamaged,
            Some(found.data_end),
            None,
            "the footer at the end is missing, damaged, or not as its copy".to_owned(),
        );
    }
    let footer = &found.footer;
    if footer.geometry != Geometry::of(footer.current_size / SECTOR) {
        let Geometry {
            cylinders,
            heads,
            sectors,
        } = footer.geometry;
        report.add(
            FindingKind::GeometryDiffers,
            None,
            None,
            format!(
                "the geometry is {cylinders}/{heads}/{sectors}, not that of {} bytes",
                footer.current_size
            ),
        );
    }
    if footer.saved_state {
        let what = "the disk belongs to a saved state; it can't be compacted or resized";
        report.add(FindingKind::SavedState, None, None, what.to_owned());
    }
}

fn check_locators(
    backing: &Backing,
    found: &Recognised,
    report: &mut CheckReport,
) -> Result<(), IoError> {
    let Some((_, header::Header { parent, .. })) = &found.header else {
        return Ok(());
    };
    if found.disk_type != crate::format::DiskType::Differencing {
        return Ok(());
    }
    for (index, locator) in parent.locators.iter().enumerate() {
        if locator.platform == [0; 4] {
            continue;
        }
        let text = match locator.range() {
            Some((start, end)) => {
                // At most 16 KiB.
                let mut bytes = vec![0; (end - start) as usize];
                backing.read(&mut bytes, start)?;
                locator.text(&bytes)
            }
            None => None,
        };
        // Those of other systems are none of ours.
        let known = [
            crate::format::locator::RELATIVE,
            crate::format::locator::ABSOLUTE,
            crate::format::locator::URL,
        ];
        if text.is_none() && known.contains(&locator.platform) {
            report.add(
                FindingKind::LocatorDamaged,
                Some(locator.offset),
                None,
                format!("locator {index} of the parent can't be read"),
            );
        }
    }
    Ok(())
}

fn read_table(backing: &Backing, layout: &Layout) -> Result<Vec<u32>, IoError> {
    let mut table = Vec::with_capacity(layout.bat_entries as usize);
    let mut buf = vec![0; 64 << 10];
    let end = layout.bat_offset + u64::from(layout.bat_entries) * 4;
    let mut at = layout.bat_offset;
    while at < end {
        let piece = (end - at).min(buf.len() as u64) as usize;
        backing.read(&mut buf[..piece], at)?;
        table.extend(bat::decode(&buf[..piece]));
        at += piece as u64;
    }
    Ok(table)
}

/// The allocated blocks by their place: entry and block.
fn by_place(table: &[u32]) -> Vec<(u32, u32)> {
    let allocated = || table.iter().filter(|entry| **entry != UNALLOCATED);
    let mut sorted = Vec::with_capacity(allocated().count());
    sorted.extend(
        (0u32..)
            .zip(table)
            .filter(|(_, entry)| **entry != UNALLOCATED)
            .map(|(block, entry)| (*entry, block)),
    );
    sorted.sort_unstable();
    sorted
}

/// The parts of the file that no block may lie over.
fn metadata(layout: &Layout) -> Vec<(&'static str, u64, u64)> {
    let header_end = layout.header_offset + header::LEN as u64;
    let mut list = vec![
        ("the copy of the footer", 0, SECTOR),
        ("the header", layout.header_offset, header_end),
        (
            "the table",
            layout.bat_offset,
            layout.bat_offset + layout.bat_len(),
        ),
    ];
    let locators = layout.locators.iter().filter(|(start, end)| start < end);
    list.extend(locators.map(|&(start, end)| ("a locator of the parent", start, end)));
    list
}

/// Checks all entries against each other, the metadata and the end; returns
/// them by their place.
fn check_table(
    table: &[u32],
    layout: &Layout,
    file_end: u64,
    report: &mut CheckReport,
) -> Vec<(u32, u32)> {
    let sorted = by_place(table);
    report.allocated_blocks = sorted.len() as u64;
    let needed = layout.size.div_ceil(layout.block_size.into());
    let metadata = metadata(layout);
    let mut used = metadata
        .iter()
        .map(|&(_, from, to)| (from, to))
        .collect::<Vec<_>>();
    used.sort_unstable();
    let mut used = used.into_iter().peekable();
    let len = layout.region_len();
    let mut free_from = 0;
    let mut before: Option<(u32, u32)> = None;
    for &(entry, block) in &sorted {
        let start = layout.region(entry);
        let mut add = |kind, what| report.add(kind, Some(start), Some(block), what);
        if u64::from(block) >= needed {
            let what = format!("block {block} lies behind the end of the disk");
            add(FindingKind::BlockUnused, what);
        }
        for (name, from, to) in &metadata {
            if start < *to && start + len > *from {
                let what = format!("block {block} at sector {entry} lies over {name}");
                add(FindingKind::BlockOverMetadata, what);
            }
        }
        if let Some((other, other_block)) = before
            && start - layout.region(other) < len
        {
            let what =
                format!("blocks {other_block} and {block} overlap, at sectors {other} and {entry}");
            add(FindingKind::BlocksOverlap, what);
        }
        if start + len > file_end {
            let what = format!(
                "block {block} at sector {entry} reaches past the end of the file, byte {file_end}"
            );
            add(FindingKind::BlockPastEnd, what);
        }
        // Metadata may lie anywhere, once it has moved.
        while let Some((from, to)) = used.next_if(|(from, _)| *from < start) {
            leak(free_from, from, report);
            free_from = free_from.max(to);
        }
        leak(free_from, start.min(file_end), report);
        free_from = free_from.max(start + len);
        before = Some((entry, block));
    }
    for (from, to) in used {
        leak(free_from, from, report);
        free_from = free_from.max(to);
    }
    leak(free_from, file_end, report);
    sorted
}

/// Notes bytes that nothing uses. Up to 4 KiB are for alignment.
fn leak(from: u64, to: u64, report: &mut CheckReport) {
    let len = to.saturating_sub(from);
    if len > 4096 {
        report.leaked_bytes += len;
        let what = format!("{len} bytes from {from} on are used by nothing");
        report.add(FindingKind::SpaceLeaked, Some(from), None, what);
    }
}

/// Whether bitmaps are longer than their blocks need.
fn has_padding(layout: &Layout) -> bool {
    u64::from(layout.block_sectors()) < layout.bitmap_len() * 8
}

fn check_bitmap(
    backing: &Backing,
    layout: &Layout,
    entry: u32,
    block: u32,
    file_end: u64,
    report: &mut CheckReport,
) -> Result<(), IoError> {
    let offset = layout.region(entry);
    if offset + layout.bitmap_len() > file_end {
        return Ok(());
    }
    let mut bytes = vec![0; layout.bitmap_len() as usize];
    backing.read(&mut bytes, offset)?;
    let bits = layout.bitmap_len() as u32 * 8;
    let bitmap = Bitmap::new(bytes, bits);
    let padding = bitmap.run(layout.block_sectors()..bits);
    // All ones is how a full bitmap is written by most, us included.
    let uniform = padding.is_none_or(|(_, end)| end == bits);
    if !uniform {
        let what = format!("the bitmap of block {block} has bits behind its last sector");
        report.add(FindingKind::BitmapPadding, Some(offset), Some(block), what);
    }
    Ok(())
}

/// The table of a damaged disk with only those entries that may be right.
pub(crate) struct Rescued {
    pub(crate) table: Vec<u32>,
    /// Blocks whose entry can't be right.
    pub(crate) lost: Vec<u32>,
    /// Blocks that share bytes with another one: at most one of them is
    /// right.
    pub(crate) doubtful: Vec<u32>,
}

/// Sorts the entries of a damaged disk out.
pub(crate) fn rescue_table(
    backing: &Backing,
    layout: &Layout,
    file_end: u64,
) -> Result<Rescued, IoError> {
    let mut table = read_table(backing, layout)?;
    let metadata = metadata(layout);
    let len = layout.region_len();
    let mut lost = Vec::new();
    for (block, slot) in (0u32..).zip(&mut table) {
        let start = layout.region(*slot);
        let over = |&(_, from, to): &(&str, u64, u64)| start < to && start + len > from;
        if *slot != UNALLOCATED && (start + len > file_end || metadata.iter().any(over)) {
            *slot = UNALLOCATED;
            lost.push(block);
        }
    }
    let mut doubtful = Vec::new();
    for pair in by_place(&table).windows(2) {
        if let [(first, a), (second, b)] = *pair
            && layout.region(second) - layout.region(first) < len
        {
            doubtful.extend([a, b]);
        }
    }
    doubtful.sort_unstable();
    doubtful.dedup();
    Ok(Rescued {
        table,
        lost,
        doubtful,
    })
}
