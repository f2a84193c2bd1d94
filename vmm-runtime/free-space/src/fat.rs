//! FAT12, FAT16 and FAT32: a cluster whose entry in the file allocation table
//! is zero is free. (Microsoft's "FAT32 File System Specification", 1.03; the
//! flags of a file system in use are those of its section on FAT[1], and what
//! Linux keeps in the boot sector.)

use crate::bitmap;
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;
use crate::free_list::FreeList;
use crate::report::Kind;

/// How many clusters are read at most: two bitmaps of them are held.
const MAX_CLUSTERS: u64 = 1 << 27;

/// Bytes of the table that are read at once: whole entries of any size.
const CHUNK: u64 = 48 << 10;

/// Where things are. Bytes, unless they say otherwise.
struct Geometry {
    kind: Kind,
    cluster: u64,
    clusters: u64,
    /// The first cluster, which has the number 2.
    data: u64,
    fat: u64,
    fat_len: u64,
    copies: u64,
    media: u8,
    /// FAT32's root folder, a cluster.
    root: Option<u64>,
}

/// Whether a boot sector is one of FAT. Any of its fields may still be wrong.
pub(crate) fn is_boot_sector(sector: &Fields<'_>) -> Result<bool, Stop> {
    let jump = sector.u8(0)?;
    let sector_len = sector.le16(11)?;
    Ok(matches!(jump, 0xeb | 0xe9)
        && sector.bytes(510, 2)? == [0x55, 0xaa]
        && matches!(sector_len, 512 | 1024 | 2048 | 4096)
        && sector.u8(13)?.is_power_of_two()
        && sector.le16(14)? != 0
        && matches!(sector.u8(16)?, 1 | 2)
        && matches!(sector.u8(21)?, 0xf0 | 0xf8..))
}

/// What kind of FAT a volume is that has its signature.
pub(crate) fn kind(part: &Part<'_>) -> Result<Kind, Stop> {
    let sector = part.read(0, 512)?;
    Ok(geometry(&Fields(&sector), part)?.kind)
}

/// Adds the free bytes of a volume to `free`.
pub(crate) fn walk(part: &Part<'_>, kind: &mut Kind, free: &mut FreeList) -> Result<(), Stop> {
    let sector = part.read(0, 512)?;
    let fields = Fields(&sector);
    let geometry = geometry(&fields, part)?;
    *kind = geometry.kind;
    // Linux marks a mounted file system here, whatever the FAT's kind.
    let (state, signature) = if geometry.kind == Kind::Fat32 {
        (fields.u8(65)?, fields.u8(66)?)
    } else {
        (fields.u8(37)?, fields.u8(38)?)
    };
    if matches!(signature, 0x28 | 0x29) && state & 3 != 0 {
        return doubt(UNCLEAN);
    }
    let used = table(part, &geometry)?;
    for run in bitmap::zeros(&used, geometry.clusters) {
        let place = |index: u64| geometry.data + index * geometry.cluster;
        free.push(place(run.start)..place(run.end))?;
    }
    Ok(())
}

const UNCLEAN: &str = "it was not unmounted cleanly, or has recorded errors; start the machine and shut it down, or run fsck.fat";

fn geometry(fields: &Fields<'_>, part: &Part<'_>) -> Result<Geometry, Stop> {
    if !is_boot_sector(fields)? {
        return doubt("its boot sector isn't one of FAT");
    }
    let sector = u64::from(fields.le16(11)?);
    let cluster = sector * u64::from(fields.u8(13)?);
    let reserved = u64::from(fields.le16(14)?);
    let copies = u64::from(fields.u8(16)?);
    let root_entries = u64::from(fields.le16(17)?);
    let either = |short: usize, long: usize| -> Result<u64, Stop> {
        Ok(match fields.le16(short)? {
            0 => fields.le32(long)?.into(),
            short => short.into(),
        })
    };
    let total = either(19, 32)?;
    let fat_sectors = either(22, 36)?;
    let wide = fields.le16(22)? == 0;
    let head = reserved + copies * fat_sectors + (root_entries * 32).div_ceil(sector);
    let clusters = total.saturating_sub(head) * sector / cluster;
    let kind = match clusters {
        _ if wide => Kind::Fat32,
        ..4085 => Kind::Fat12,
        4085..65525 => Kind::Fat16,
        _ => {
            return doubt(format!(
                "it has {clusters} clusters, expected less than 65525 where the table's length has 16 bits"
            ));
        }
    };
    if total * sector > part.len || clusters == 0 || clusters > MAX_CLUSTERS {
        return doubt(format!(
            "it has {clusters} clusters in {total} sectors of {sector} bytes, expected one to {MAX_CLUSTERS} of them within the volume's {} bytes",
            part.len
        ));
    }
    let needed = (clusters + 2) * bits(kind);
    if needed > fat_sectors * sector * 8 {
        return doubt(format!(
            "its table has {fat_sectors} sectors, too few for {clusters} clusters"
        ));
    }
    if wide {
        let flags = fields.le16(40)?;
        if root_entries != 0 || fields.le16(42)? != 0 || flags & 0x80 != 0 {
            return doubt(format!(
                "it is of a version that isn't known here, or its copies of the table differ on purpose: flags {flags:#x}, version {:#x}",
                fields.le16(42)?
            ));
        }
    }
    Ok(Geometry {
        kind,
        cluster,
        clusters,
        data: head * sector,
        fat: reserved * sector,
        fat_len: fat_sectors * sector,
        copies,
        media: fields.u8(21)?,
        root: if wide {
            Some(fields.le32(44)?.into())
        } else {
            None
        },
    })
}

fn bits(kind: Kind) -> u64 {
    match kind {
        Kind::Fat12 => 12,
        Kind::Fat16 => 16,
        _ => 32,
    }
}

/// Reads the table and returns which clusters are used. Its copies must agree,
/// and no chain may lead to a cluster that is free or that another leads to.
fn table(part: &Part<'_>, geometry: &Geometry) -> Result<Vec<u8>, Stop> {
    let bits = bits(geometry.kind);
    let entries = geometry.clusters + 2;
    let len = (geometry.clusters.div_ceil(8)) as usize;
    let mut used = vec![0; len];
    let mut linked = vec![0; len];
    if let Some(root) = geometry.root {
        link(&mut linked, geometry, root)?;
    }
    let end = (entries * bits).div_ceil(8);
    let mut entry = 0;
    let mut at = 0;
    while at < end {
        let chunk = part.read(geometry.fat + at, CHUNK.min(end - at))?;
        for copy in 1..geometry.copies {
            let place = geometry.fat + copy * geometry.fat_len + at;
            if part.read(place, chunk.len() as u64)? != chunk {
                return doubt("the copies of its allocation table differ: run fsck.fat");
            }
        }
        at += chunk.len() as u64;
        let fields = Fields(&chunk);
        let per_chunk = chunk.len() as u64 * 8 / bits;
        for index in 0..per_chunk.min(entries - entry) {
            let value = value(&fields, geometry.kind, index as usize)?;
            match entry {
                0 | 1 => reserved(geometry, entry, value)?,
                _ if value == 0 => {}
                _ => {
                    bitmap::set(&mut used, entry - 2..entry - 1);
                    if let Some(next) = next(geometry.kind, value) {
                        link(&mut linked, geometry, next)?;
                    }
                }
            }
            entry += 1;
        }
    }
    let astray = linked
        .iter()
        .zip(&used)
        .any(|(linked, used)| linked & !used != 0);
    if astray {
        return doubt("a file goes on in a cluster that is said to be free: run fsck.fat");
    }
    Ok(used)
}

/// An entry's value; the four high bits of FAT32's have no meaning.
fn value(fields: &Fields<'_>, kind: Kind, index: usize) -> Result<u32, Stop> {
    Ok(match kind {
        Kind::Fat12 => {
            let pair = u32::from(fields.le16(index * 3 / 2)?);
            if index % 2 == 1 {
                pair >> 4
            } else {
                pair & 0xfff
            }
        }
        Kind::Fat16 => fields.le16(index * 2)?.into(),
        _ => fields.le32(index * 4)? & 0x0fff_ffff,
    })
}

/// The cluster that follows, unless the chain ends or the cluster is bad.
fn next(kind: Kind, value: u32) -> Option<u64> {
    let bad = match kind {
        Kind::Fat12 => 0xff7,
        Kind::Fat16 => 0xfff7,
        _ => 0x0fff_fff7,
    };
    (value < bad).then_some(value.into())
}

fn link(linked: &mut [u8], geometry: &Geometry, cluster: u64) -> Result<(), Stop> {
    let Some(index) = cluster.checked_sub(2).filter(|&at| at < geometry.clusters) else {
        return doubt(format!(
            "a file goes on in cluster {cluster}, expected 2 to {}: run fsck.fat",
            geometry.clusters + 1
        ));
    };
    if bitmap::is_set(linked, index) {
        return doubt(format!(
            "two files go on in cluster {cluster}: run fsck.fat"
        ));
    }
    bitmap::set(linked, index..index + 1);
    Ok(())
}

/// The first two entries: the medium, and whether the file system is clean.
fn reserved(geometry: &Geometry, entry: u64, value: u32) -> Result<(), Stop> {
    let (ones, clean) = match geometry.kind {
        Kind::Fat12 => (0xf00, 0),
        Kind::Fat16 => (0xff00, 0xc000),
        _ => (0x0fff_ff00, 0x0c00_0000),
    };
    if entry == 0 && value != ones | u32::from(geometry.media) {
        return doubt(format!(
            "its allocation table begins with {value:#x}, expected the medium, {:#x}",
            geometry.media
        ));
    }
    if entry == 1 && value & clean != clean {
        return doubt(UNCLEAN);
    }
    Ok(())
}
