//! ext2, ext3 and ext4: every block group has a bitmap of its blocks, or of its
//! clusters of blocks, except those that were never used.

mod groups;
mod superblock;

use std::ops::Range;

use crate::bitmap;
use crate::checksum::{agrees, crc32c};
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::free_list::{FreeList, InUse};
use crate::report::Kind;
use groups::Group;
use superblock::Superblock;

/// What kind of ext a volume is that has its signature.
pub(crate) fn kind(part: &Part<'_>) -> Result<Kind, Stop> {
    superblock::kind(part)
}

/// Adds the free bytes of a volume to `free`.
pub(crate) fn walk(part: &Part<'_>, kind: &mut Kind, free: &mut FreeList) -> Result<(), Stop> {
    let superblock = Superblock::read(part, kind)?;
    let groups = groups::read(part, &superblock)?;
    let own = InUse::new(groups::own(&superblock, &groups)?)?;
    for (number, group) in groups.iter().enumerate() {
        let number = number as u64;
        let bitmap = if group.uninit {
            computed(&superblock, number, &own)
        } else {
            stored(part, &superblock, number, group)?
        };
        let blocks = superblock.group(number);
        let mut count = 0;
        for clusters in bitmap::zeros(&bitmap, superblock.clusters_in(&blocks)) {
            count += clusters.end - clusters.start;
            let place = |cluster: u64| blocks.start + cluster * superblock.cluster;
            let run = place(clusters.start)..place(clusters.end).min(blocks.end);
            own.refuse(&run, "blocks")?;
            free.push(run.start * superblock.block..run.end * superblock.block)?;
        }
        if count != group.free {
            return doubt(format!(
                "group {number} says that {} of its clusters are free, its bitmap {count}: run e2fsck",
                group.free
            ));
        }
    }
    Ok(())
}

/// The bitmap of a group that was never used: nothing but the file system's own
/// structures.
fn computed(superblock: &Superblock, number: u64, own: &InUse) -> Vec<u8> {
    let blocks = superblock.group(number);
    let clusters = superblock.clusters_in(&blocks);
    let mut bits = vec![0; (clusters.div_ceil(8)) as usize];
    for used in own.within(blocks.clone()) {
        let cluster = |block: u64| (block - blocks.start) / superblock.cluster;
        let first = cluster(used.start.max(blocks.start));
        let last = cluster(used.end.min(blocks.end) - 1);
        bitmap::set(&mut bits, first..last + 1);
    }
    bits
}

fn stored(
    part: &Part<'_>,
    superblock: &Superblock,
    number: u64,
    group: &Group,
) -> Result<Vec<u8>, Stop> {
    let bits = part.read(group.block_bitmap * superblock.block, superblock.block)?;
    if superblock.metadata_csum {
        let covered = bits
            .get(..(superblock.clusters_per_group / 8) as usize)
            .unwrap_or(&bits);
        let sum = crc32c(superblock.seed, covered) & group.bitmap_csum_mask;
        if !agrees(group.bitmap_csum, sum) {
            return doubt(format!(
                "the checksum of the bitmap of group {number} is {sum:#x}, expected {:#x}: run e2fsck",
                group.bitmap_csum
            ));
        }
    }
    Ok(bits)
}

/// A range of blocks.
type Blocks = Range<u64>;
