//! The group descriptors, and where the file system's own structures lie.

use super::Blocks;
use super::superblock::{DescriptorSum, Superblock};
use crate::checksum::{agrees, crc16, crc32c};
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;

/// A block group, as its descriptor has it.
pub(super) struct Group {
    pub(super) block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    /// Clusters.
    pub(super) free: u64,
    /// Its bitmap was never written.
    pub(super) uninit: bool,
    pub(super) bitmap_csum: u32,
    /// The bits of that checksum that are stored.
    pub(super) bitmap_csum_mask: u32,
}

/// Reads all descriptors.
pub(super) fn read(part: &Part<'_>, superblock: &Superblock) -> Result<Vec<Group>, Stop> {
    let per_block = superblock.block / superblock.descriptor;
    let mut groups = Vec::with_capacity(superblock.groups as usize);
    for index in 0..superblock.groups.div_ceil(per_block) {
        let block = descriptor_block(superblock, index, per_block);
        if block >= superblock.blocks {
            return doubt(format!(
                "block {block} of its group descriptors is beyond its end"
            ));
        }
        let bytes = part.read(block * superblock.block, superblock.block)?;
        for descriptor in bytes.chunks_exact(superblock.descriptor as usize) {
            let number = groups.len() as u64;
            if number == superblock.groups {
                break;
            }
            groups.push(group(superblock, number, descriptor)?);
        }
    }
    Ok(groups)
}

/// Where the `index`th block of descriptors is.
fn descriptor_block(superblock: &Superblock, index: u64, per_block: u64) -> u64 {
    match superblock.first_meta_bg {
        Some(first) if index >= first => {
            let group = index * per_block;
            let base = superblock.group(group).start;
            base + u64::from(superblock.has_backup(group)) + boot_block(superblock, group)
        }
        _ => superblock.first_data_block + boot_block(superblock, 0) + index + 1,
    }
}

/// Blocks in front of group 0's superblock that are part of the group: one if
/// blocks have 1 KiB but groups begin at block 0.
fn boot_block(superblock: &Superblock, group: u64) -> u64 {
    u64::from(group == 0 && superblock.block == 1024 && superblock.first_data_block == 0)
}

fn group(superblock: &Superblock, number: u64, descriptor: &[u8]) -> Result<Group, Stop> {
    let fields = Fields(descriptor);
    let wide = superblock.descriptor >= 64;
    let high32 = |at: usize| -> Result<u64, Stop> {
        Ok(if wide {
            u64::from(fields.le32(at)?) << 32
        } else {
            0
        })
    };
    let high16 = |at: usize| -> Result<u32, Stop> {
        Ok(if wide {
            u32::from(fields.le16(at)?) << 16
        } else {
            0
        })
    };
    let sum = match superblock.descriptor_sum {
        DescriptorSum::None => None,
        DescriptorSum::Crc16 => {
            let sum = crc16(!0, &superblock.uuid);
            let sum = crc16(sum, &(number as u32).to_le_bytes());
            let sum = crc16(sum, fields.bytes(0, 30)?);
            Some(crc16(sum, descriptor.get(32..).unwrap_or_default()))
        }
        DescriptorSum::Crc32c => {
            let sum = crc32c(superblock.seed, &(number as u32).to_le_bytes());
            let sum = crc32c(sum, fields.bytes(0, 30)?);
            let sum = crc32c(sum, &[0, 0]);
            Some(crc32c(sum, descriptor.get(32..).unwrap_or_default()) as u16)
        }
    };
    if let Some(sum) = sum
        && !agrees(fields.le16(30)?.into(), sum.into())
    {
        return doubt(format!(
            "the checksum of the descriptor of group {number} is wrong: run e2fsck"
        ));
    }
    Ok(Group {
        block_bitmap: u64::from(fields.le32(0)?) | high32(32)?,
        inode_bitmap: u64::from(fields.le32(4)?) | high32(36)?,
        inode_table: u64::from(fields.le32(8)?) | high32(40)?,
        free: u64::from(u32::from(fields.le16(12)?) | high16(44)?),
        // The flag says something only where descriptors have checksums.
        uninit: sum.is_some() && fields.le16(18)? & 2 != 0,
        bitmap_csum: u32::from(fields.le16(24)?) | high16(56)?,
        bitmap_csum_mask: if wide { !0 } else { 0xffff },
    })
}

/// The blocks that the file system itself needs: copies of the superblock and
/// of the descriptors, bitmaps, inode tables.
pub(super) fn own(superblock: &Superblock, groups: &[Group]) -> Result<Vec<Blocks>, Stop> {
    let mut own = Vec::with_capacity(groups.len() * 4);
    for (number, group) in groups.iter().enumerate() {
        let number = number as u64;
        let blocks = superblock.group(number);
        let head = blocks.start + boot_block(superblock, number) + head(superblock, number);
        own.push(blocks.start..head.min(blocks.end));
        for (first, len) in [
            (group.block_bitmap, 1),
            (group.inode_bitmap, 1),
            (group.inode_table, superblock.inode_table),
        ] {
            match first.checked_add(len) {
                Some(end) if end <= superblock.blocks && first >= superblock.first_data_block => {
                    own.push(first..end);
                }
                _ => {
                    return doubt(format!(
                        "group {number} has structures at block {first}, expected them within its {} blocks",
                        superblock.blocks
                    ));
                }
            }
        }
    }
    Ok(own)
}

/// How many blocks a group's copies of the superblock and the descriptors are.
fn head(superblock: &Superblock, number: u64) -> u64 {
    let per_block = superblock.block / superblock.descriptor;
    let copy = u64::from(superblock.has_backup(number));
    match superblock.first_meta_bg {
        // One block of descriptors, in the first, second and last group of
        // those it describes.
        Some(first) if number / per_block >= first => {
            let within = number % per_block;
            copy + u64::from(within == 0 || within == 1 || within == per_block - 1)
        }
        _ if copy == 0 => 0,
        Some(first) => 1 + first + superblock.reserved_gdt,
        None => 1 + superblock.groups.div_ceil(per_block) + superblock.reserved_gdt,
    }
}

#[cfg(test)]
mod tests {
    use super::super::superblock::Backups;
    use super::*;

    /// 16 descriptors to a block, 100 groups.
    fn superblock(first_meta_bg: Option<u64>, backups: Backups) -> Superblock {
        Superblock {
            block: 1024,
            cluster: 1,
            blocks: 100 * 8192 + 1,
            first_data_block: 1,
            blocks_per_group: 8192,
            clusters_per_group: 8192,
            groups: 100,
            inode_table: 10,
            descriptor: 64,
            descriptor_sum: DescriptorSum::None,
            metadata_csum: false,
            seed: 0,
            uuid: [0; 16],
            first_meta_bg,
            reserved_gdt: 5,
            backups,
        }
    }

    fn heads(superblock: &Superblock, groups: [u64; 9]) -> [u64; 9] {
        groups.map(|group| head(superblock, group))
    }

    #[test]
    fn copies_in_front_of_a_group() {
        let groups = [0, 1, 2, 3, 9, 15, 25, 49, 50];
        let full = 1 + 7 + 5;
        assert_eq!(
            heads(&superblock(None, Backups::Sparse), groups),
            [full, full, 0, full, full, 0, full, full, 0]
        );
        assert_eq!(heads(&superblock(None, Backups::All), groups), [full; 9]);
        assert_eq!(
            heads(&superblock(None, Backups::Two([1, 50])), groups),
            [full, full, 0, 0, 0, 0, 0, 0, full]
        );
    }

    #[test]
    fn descriptors_in_their_own_groups() {
        // Those of the first 32 groups lie together, the rest with their groups.
        let superblock = superblock(Some(2), Backups::Sparse);
        let together = 1 + 2 + 5;
        assert_eq!(
            heads(&superblock, [0, 2, 9, 31, 32, 33, 34, 47, 49]),
            [together, 0, together, 0, 1, 1, 0, 1, 2]
        );
        let blocks = [0, 1, 2, 3].map(|index| descriptor_block(&superblock, index, 16));
        assert_eq!(blocks, [2, 3, 1 + 32 * 8192, 1 + 48 * 8192]);
    }
}
