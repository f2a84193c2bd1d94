//! What a volume holds, by its signatures.

use crate::disk::Part;
use crate::error::Stop;
use crate::fat;
use crate::fields::Fields;
use crate::report::Kind;

/// What was found.
pub(crate) enum Found {
    Ext,
    Fat,
    ExFat,
    Ntfs,
    Xfs,
    /// Not walked, and why not.
    Other(Kind, String),
}

/// What starts a volume, as far as it is looked at: the last signature is that
/// of btrfs, at 64 KiB.
const HEAD: u64 = 68 << 10;

/// Looks for signatures. A volume that has several is told as unknown: one of
/// them is a left-over, and nothing says which.
pub(crate) fn identify(part: &Part<'_>) -> Result<Found, Stop> {
    let mut head = vec![0; HEAD as usize];
    let there = part.len.min(HEAD);
    if let Some(head) = head.get_mut(..there as usize) {
        part.fill(head, 0)?;
    }
    let fields = Fields(&head);
    let mut found: Vec<(&str, Found)> = Vec::new();
    if fields.le16(1024 + 56)? == 0xef53 {
        found.push(("ext", Found::Ext));
    }
    if fields.bytes(0, 4)? == b"XFSB" {
        found.push(("XFS", Found::Xfs));
    }
    if fields.bytes(3, 8)? == b"NTFS    " {
        found.push(("NTFS", Found::Ntfs));
    } else if fields.bytes(3, 8)? == b"EXFAT   " {
        found.push(("exFAT", Found::ExFat));
    } else if fat::is_boot_sector(&fields)? && !known_otherwise(&fields)? {
        found.push(("FAT", Found::Fat));
    }
    for (kind, name) in others(&fields, part)? {
        let reason = format!("it is {name}, which is not looked into");
        found.push((name, Found::Other(kind, reason)));
    }
    if found.len() > 1 {
        let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
        return Ok(Found::Other(
            Kind::Unknown,
            format!(
                "it has the signatures of several things: {}; wipe the left-overs",
                names.join(", ")
            ),
        ));
    }
    Ok(match found.pop() {
        Some((_, found)) => found,
        None => Found::Other(
            Kind::Unknown,
            "nothing was recognized in it, or it is empty".into(),
        ),
    })
}

/// Boot sectors that have FAT's fields, too.
fn known_otherwise(fields: &Fields<'_>) -> Result<bool, Stop> {
    Ok(matches!(fields.bytes(3, 8)?, b"-FVE-FS-" | b"ReFS\0\0\0\0"))
}

/// Things that are known, but not looked into.
fn others(fields: &Fields<'_>, part: &Part<'_>) -> Result<Vec<(Kind, &'static str)>, Stop> {
    let at = |at: usize, magic: &[u8]| Ok::<_, Stop>(fields.bytes(at, magic.len())? == magic);
    let mut found = Vec::new();
    if at(0, b"LUKS\xba\xbe")? {
        found.push((Kind::Luks, "a LUKS volume"));
    }
    for sector in 0..4 {
        if at(sector * 512, b"LABELONE")? {
            found.push((Kind::Lvm, "an LVM physical volume"));
        }
    }
    for page in [4096, 8192, 16384, 32768, 65536] {
        let place = page - 10;
        if at(place, b"SWAPSPACE2")? || at(place, b"SWAP-SPACE")? {
            found.push((Kind::Swap, "swap space"));
        } else if at(place, b"S1SUSPEND")? || at(place, b"S2SUSPEND")? || at(place, b"LINHIB0001")?
        {
            found.push((Kind::Swap, "swap space with a suspended machine"));
        }
    }
    for (place, magic, name) in [
        (3, &b"-FVE-FS-"[..], "a BitLocker volume"),
        (3, b"ReFS\0\0\0\0", "ReFS"),
        (65536 + 64, b"_BHRfS_M", "btrfs"),
        (1024, b"\x10\x20\xf5\xf2", "F2FS"),
        (32769, b"CD001", "ISO 9660"),
        (0, b"hsqs", "squashfs"),
        (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
        (4096, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID"),
        (0, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID"),
        (
            4096 + 24,
            b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
            "bcache",
        ),
    ] {
        if at(place, magic)? {
            found.push((Kind::Unknown, name));
        }
    }
    if raid_at_the_end(part)? {
        found.push((Kind::Unknown, "a member of a Linux RAID"));
    }
    Ok(found)
}

/// Superblocks of Linux RAID that lie behind the data: version 0.90 in the last
/// whole 64 KiB but one, version 1.0 in the last whole 4 KiB but one.
fn raid_at_the_end(part: &Part<'_>) -> Result<bool, Stop> {
    for unit in [64 << 10, 4 << 10] {
        let Some(place) = (part.len & !(unit - 1)).checked_sub(unit) else {
            continue;
        };
        for place in [place, place.saturating_sub(4096)] {
            let mut magic = [0; 4];
            if part.len - place >= 4 {
                part.fill(&mut magic, place)?;
            }
            if matches!(u32::from_le_bytes(magic), 0xa92b_4efc)
                || matches!(u32::from_be_bytes(magic), 0xa92b_4efc)
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
