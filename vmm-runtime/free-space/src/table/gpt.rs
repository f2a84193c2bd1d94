//! The GUID partition table, in sectors of 512 or 4096 bytes, as the UEFI
//! specification has it (chapter 5).

use std::ops::Range;

use super::Slot;
use crate::checksum::{agrees, crc32};
use crate::disk::{MAX_PIECE, Part};
use crate::error::{Stop, doubt};
use crate::fields::Fields;

/// Sizes of a sector.
const SECTORS: [u64; 2] = [512, 4096];

/// How many entries are read at most; 128 are usual.
const MAX_ENTRIES: u32 = 1024;

/// A table whose checksums agree.
struct Gpt {
    sector: u64,
    usable: Range<u64>,
    entries: Vec<u8>,
    entry_len: usize,
    /// Where the header and the entries are, in bytes.
    own: [Range<u64>; 2],
}

/// Whether the disk begins with a valid table.
pub(super) fn has_primary(disk: &Part<'_>) -> Result<bool, Stop> {
    for sector in SECTORS {
        if at(disk, 1, sector)?.is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The partitions, and the bytes that the table itself is in. The backup at the
/// disk's end counts where the first copy is bad.
pub(super) fn read(disk: &Part<'_>) -> Result<(Vec<Slot>, Vec<Range<u64>>), Stop> {
    let mut why = Vec::new();
    for backup in [false, true] {
        for sector in SECTORS {
            let Some(last) = (disk.len / sector).checked_sub(1) else {
                continue;
            };
            match at(disk, if backup { last } else { 1 }, sector)? {
                Ok(gpt) => return slots(disk, &gpt),
                Err(reason) => why.push(reason),
            }
        }
    }
    doubt(format!(
        "there should be a GPT, but neither copy is good: {}",
        why.join("; ")
    ))
}

/// The table whose header is at `lba`, or why that isn't one.
fn at(disk: &Part<'_>, lba: u64, sector: u64) -> Result<Result<Gpt, String>, Stop> {
    let place = |lba: u64, len: u64| -> Option<Range<u64>> {
        let start = lba.checked_mul(sector)?;
        let end = start.checked_add(len)?;
        (end <= disk.len).then_some(start..end)
    };
    let Some(own) = place(lba, sector) else {
        return Ok(Err(format!("sector {lba} is beyond the disk")));
    };
    let header = disk.read(own.start, sector)?;
    let fields = Fields(&header);
    let bad = |what: &str| {
        Ok(Err(format!(
            "the header in sector {lba} of {sector} {what}"
        )))
    };
    if fields.bytes(0, 8)? != b"EFI PART" {
        return bad("has no signature");
    }
    let len = fields.le32(12)?;
    if len < 92 || u64::from(len) > sector {
        return bad("has an impossible length");
    }
    if !agrees(
        fields.le32(16)?,
        crc32(fields.bytes(0, len as usize)?, Some(16)),
    ) {
        return bad("has a wrong checksum");
    }
    if fields.le64(24)? != lba {
        return bad("belongs into another sector");
    }
    let (first, last) = (fields.le64(40)?, fields.le64(48)?);
    let (count, entry_len) = (fields.le32(80)?, fields.le32(84)?);
    let table_len = u64::from(count) * u64::from(entry_len);
    if count > MAX_ENTRIES || !(128..=4096).contains(&entry_len) || table_len > MAX_PIECE as u64 {
        return bad("tells of too many or too long entries");
    }
    let Some(table) = place(fields.le64(72)?, table_len) else {
        return bad("puts its entries beyond the disk");
    };
    let entries = disk.read(table.start, table_len)?;
    if !agrees(fields.le32(88)?, crc32(&entries, None)) {
        return bad("tells of entries whose checksum is wrong");
    }
    Ok(Ok(Gpt {
        sector,
        usable: first..last.saturating_add(1),
        entries,
        entry_len: entry_len as usize,
        own: [own, table],
    }))
}

fn slots(disk: &Part<'_>, gpt: &Gpt) -> Result<(Vec<Slot>, Vec<Range<u64>>), Stop> {
    let mut slots = Vec::new();
    for entry in gpt.entries.chunks_exact(gpt.entry_len) {
        let fields = Fields(entry);
        let kind: [u8; 16] = fields.array(0)?;
        if kind == [0; 16] {
            continue;
        }
        let (first, last) = (fields.le64(32)?, fields.le64(40)?);
        let place = || {
            let count = last.checked_add(1)?.checked_sub(first)?;
            let within = gpt.usable.contains(&first) && gpt.usable.contains(&last);
            (within && count > 0).then_some(())?;
            Some((
                first.checked_mul(gpt.sector)?,
                count.checked_mul(gpt.sector)?,
            ))
        };
        let Some((start, len)) = place() else {
            return doubt(format!(
                "a GPT partition has the sectors {first} to {last}, expected them within {:?}",
                gpt.usable
            ));
        };
        slots.push(Slot {
            start,
            len,
            refused: meaning(&kind)
                .map(|what| format!("its partition type says that it is {what}")),
        });
    }
    // The first sectors and the very last belong to the table, whichever copy
    // was read.
    let mut own: Vec<Range<u64>> = vec![
        0..2 * gpt.sector,
        disk.len - disk.len.min(gpt.sector)..disk.len,
    ];
    for range in &gpt.own {
        if own.iter().all(|other| !overlap(other, range)) {
            own.push(range.clone());
        }
    }
    Ok((slots, own))
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// What partitions of a type are, when it isn't a file system of their own.
fn meaning(kind: &[u8; 16]) -> Option<&'static str> {
    // Groups one to three are little-endian on the disk.
    let text = {
        let [a, b, c, d, e, f, g, h, rest @ ..] = *kind;
        let mut text = format!(
            "{:08x}-{:04x}-{:04x}-",
            u32::from_le_bytes([a, b, c, d]),
            u16::from_le_bytes([e, f]),
            u16::from_le_bytes([g, h])
        );
        for (index, byte) in rest.iter().enumerate() {
            if index == 2 {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        text
    };
    match text.as_str() {
        "a19d880f-05fc-4d3b-a006-743f0f84911e" => Some("a member of a Linux RAID"),
        "e6d6d379-f507-44c2-a23c-238f2a3df928" => Some("an LVM physical volume"),
        "ca7d7ccb-63ed-4c53-861c-1742536059cc" => Some("a LUKS volume"),
        "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" => Some("swap space"),
        "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3" | "af9b60a0-1431-4f62-bc68-3311714a69ad" => {
            Some("part of a Windows dynamic disk")
        }
        "e75caf8f-f680-4cee-afa3-b001e56efc2d" => Some("part of a Windows storage space"),
        "e3c9e316-0b5c-4db8-817d-f92df00215ae" => Some("reserved for Windows"),
        "21686148-6449-6e6f-744e-656564454649" | "9e1a2d38-c612-4316-aa26-8b49521e5a8b" => {
            Some("a boot loader")
        }
        _ => None,
    }
}
