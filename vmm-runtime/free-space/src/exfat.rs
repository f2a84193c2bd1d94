//! exFAT: a bitmap, which is a file of the root folder, says which clusters are
//! used. (Microsoft's "exFAT file system specification", revision 1.00.)

use crate::bitmap;
use crate::checksum::agrees;
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;
use crate::free_list::FreeList;

/// How long a root folder may be, in bytes: what the specification allows.
const MAX_FOLDER: u64 = 256 << 20;

/// How much of a cluster is read at once, in bytes.
const CHUNK: u64 = 64 << 10;

/// Where things are. Bytes, unless they say otherwise.
struct Geometry {
    sector: u64,
    cluster: u64,
    clusters: u64,
    /// The first cluster, which has the number 2.
    heap: u64,
    fat: u64,
    root: u32,
}

/// Adds the free bytes of a volume to `free`.
pub(crate) fn walk(part: &Part<'_>, free: &mut FreeList) -> Result<(), Stop> {
    let boot = part.read(0, 512)?;
    let geometry = geometry(&Fields(&boot), part)?;
    checksum(part, geometry.sector)?;
    let mut own = chain(
        part,
        &geometry,
        geometry.root,
        MAX_FOLDER.div_ceil(geometry.cluster).min(geometry.clusters),
    )?;
    let (first, len) = allocation(part, &geometry, &own)?;
    if len != geometry.clusters.div_ceil(8) {
        return doubt(format!(
            "its allocation bitmap has {len} bytes, expected those of {} clusters",
            geometry.clusters
        ));
    }
    let bitmap = chain(part, &geometry, first, len.div_ceil(geometry.cluster))?;
    if bitmap.len() as u64 != len.div_ceil(geometry.cluster) {
        return doubt(
            "the chain of clusters of its allocation bitmap is too short: run fsck.exfat",
        );
    }
    own.extend(&bitmap);
    own.sort_unstable();
    if own.windows(2).any(|pair| pair[0] == pair[1]) {
        return doubt("its root folder and its allocation bitmap lie in the same cluster");
    }
    for (index, cluster) in bitmap.iter().enumerate() {
        let from = index as u64 * geometry.cluster;
        let here = geometry.cluster.min(len - from);
        for at in (0..here).step_by(CHUNK as usize) {
            let bits = part.read(place(&geometry, *cluster) + at, CHUNK.min(here - at))?;
            // Counted from 0; the first cluster has the number 2.
            let base = (from + at) * 8;
            for run in bitmap::zeros(&bits, geometry.clusters - base) {
                let run = base + run.start..base + run.end;
                let next = own.partition_point(|&own| u64::from(own) - 2 < run.start);
                if own
                    .get(next)
                    .is_some_and(|&own| u64::from(own) - 2 < run.end)
                {
                    return doubt(
                        "clusters of its root folder or allocation bitmap are said to be free: run fsck.exfat",
                    );
                }
                let bytes = |index: u64| geometry.heap + index * geometry.cluster;
                free.push(bytes(run.start)..bytes(run.end))?;
            }
        }
    }
    Ok(())
}

fn geometry(fields: &Fields<'_>, part: &Part<'_>) -> Result<Geometry, Stop> {
    if fields.bytes(11, 53)?.iter().any(|&byte| byte != 0) {
        return doubt("its boot sector has bytes where exFAT has none");
    }
    let flags = fields.le16(106)?;
    if flags & 2 != 0 {
        return doubt(
            "it was not unmounted cleanly; start the machine and shut it down, or run fsck.exfat",
        );
    }
    if flags & 4 != 0 {
        return doubt("it has recorded failures of its medium");
    }
    let (revision, copies) = (fields.le16(104)?, fields.u8(110)?);
    if revision >> 8 != 1 || copies != 1 || flags & 1 != 0 {
        return doubt(format!(
            "it has revision {revision:#x} and {copies} tables, expected 0x100 and one"
        ));
    }
    let (sector_bits, cluster_bits) = (u32::from(fields.u8(108)?), u32::from(fields.u8(109)?));
    if !(9..=12).contains(&sector_bits) || cluster_bits > 25 - sector_bits {
        return doubt(format!(
            "its sectors have 2^{sector_bits} bytes, its clusters 2^{cluster_bits} sectors"
        ));
    }
    let sector = 1_u64 << sector_bits;
    let cluster = sector << cluster_bits;
    let bytes = |sectors: u32| u64::from(sectors) * sector;
    let (fat, fat_len) = (bytes(fields.le32(80)?), bytes(fields.le32(84)?));
    let heap = bytes(fields.le32(88)?);
    let clusters = u64::from(fields.le32(92)?);
    let total = fields.le64(72)?;
    let end = heap.checked_add(clusters * cluster);
    let fits = total
        .checked_mul(sector)
        .is_some_and(|len| len <= part.len && end.is_some_and(|end| end <= len));
    if !fits
        || fat < 24 * sector
        || fat + fat_len > heap
        || clusters == 0
        || clusters > u64::from(u32::MAX) - 10
        || (clusters + 2) * 4 > fat_len
    {
        return doubt(format!(
            "it has {clusters} clusters of {cluster} bytes at byte {heap} and a table of {fat_len} bytes at byte {fat}, expected them apart within {total} sectors and the volume's {} bytes",
            part.len
        ));
    }
    Ok(Geometry {
        sector,
        cluster,
        clusters,
        heap,
        fat,
        root: fields.le32(96)?,
    })
}

/// The sum over the boot region's first eleven sectors, less the fields that
/// change, fills the twelfth.
fn checksum(part: &Part<'_>, sector: u64) -> Result<(), Stop> {
    let region = part.read(0, 12 * sector)?;
    let (covered, stored) = region.split_at(11 * sector as usize);
    let mut sum = 0_u32;
    for (at, &byte) in covered.iter().enumerate() {
        if !matches!(at, 106 | 107 | 112) {
            sum = sum.rotate_right(1).wrapping_add(byte.into());
        }
    }
    let stored = Fields(stored);
    for at in (0..sector as usize).step_by(4) {
        if !agrees(stored.le32(at)?, sum) {
            return doubt("the checksum of its boot region is wrong: run fsck.exfat");
        }
    }
    Ok(())
}

/// Where a cluster is.
fn place(geometry: &Geometry, cluster: u32) -> u64 {
    geometry.heap + u64::from(cluster).saturating_sub(2) * geometry.cluster
}

/// The clusters from `first` on, at most `most`.
fn chain(part: &Part<'_>, geometry: &Geometry, first: u32, most: u64) -> Result<Vec<u32>, Stop> {
    let mut clusters = Vec::new();
    let mut next = first;
    while next != u32::MAX {
        if next < 2 || u64::from(next) - 2 >= geometry.clusters {
            return doubt(format!(
                "a chain of clusters leads to {next}, expected 2 to {}: run fsck.exfat",
                geometry.clusters + 1
            ));
        }
        if clusters.len() as u64 >= most {
            return doubt(format!(
                "the chain from cluster {first} has more than {most} clusters: run fsck.exfat"
            ));
        }
        clusters.push(next);
        let mut entry = [0; 4];
        part.fill(&mut entry, geometry.fat + u64::from(next) * 4)?;
        next = u32::from_le_bytes(entry);
    }
    Ok(clusters)
}

/// The first cluster and the length of the allocation bitmap, from the root
/// folder.
fn allocation(part: &Part<'_>, geometry: &Geometry, root: &[u32]) -> Result<(u32, u64), Stop> {
    let mut found = None;
    for cluster in root {
        for at in (0..geometry.cluster).step_by(CHUNK as usize) {
            let len = CHUNK.min(geometry.cluster - at);
            let entries = part.read(place(geometry, *cluster) + at, len)?;
            for entry in entries.chunks_exact(32) {
                let fields = Fields(entry);
                match fields.u8(0)? {
                    0 => return found_one(found),
                    0x81 if fields.u8(1)? & 1 == 0 => {
                        let this = (fields.le32(20)?, fields.le64(24)?);
                        if found.replace(this).is_some() {
                            return doubt("its root folder names two allocation bitmaps");
                        }
                    }
                    0x81 => return doubt("it has a second allocation bitmap, as TexFAT has"),
                    _ => {}
                }
            }
        }
    }
    found_one(found)
}

fn found_one(found: Option<(u32, u64)>) -> Result<(u32, u64), Stop> {
    match found {
        Some(found) => Ok(found),
        None => doubt("its root folder doesn't name its allocation bitmap: run fsck.exfat"),
    }
}
