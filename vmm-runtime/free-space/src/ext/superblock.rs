//! The superblock: whether the file system may be believed, and its geometry.

use super::Blocks;
use crate::checksum::{agrees, crc32c};
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;
use crate::report::Kind;

/// How many groups are read at most: those of 2040 GiB in blocks of 1 KiB.
const MAX_GROUPS: u64 = 1 << 18;

/// Features that change nothing about which blocks are free, or that are
/// accounted for here.
mod compat {
    pub(super) const HAS_JOURNAL: u32 = 0x4;
    pub(super) const SPARSE_SUPER2: u32 = 0x200;
    /// Also: preallocated folders, imagic inodes, extended attributes, inode for
    /// resizing, indexed folders, fast commits, stable inodes, orphan file.
    pub(super) const KNOWN: u32 =
        0x1 | 0x2 | HAS_JOURNAL | 0x8 | 0x10 | 0x20 | SPARSE_SUPER2 | 0x400 | 0x800 | 0x1000;
}

mod incompat {
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const JOURNAL_DEV: u32 = 0x8;
    pub(super) const META_BG: u32 = 0x10;
    pub(super) const BIT64: u32 = 0x80;
    pub(super) const MMP: u32 = 0x100;
    pub(super) const CSUM_SEED: u32 = 0x2000;
    /// Also: file types, extents, flexible groups, attributes in inodes, large
    /// folders, inline data, encryption, case folding.
    pub(super) const KNOWN: u32 = 0x2
        | META_BG
        | 0x40
        | BIT64
        | MMP
        | 0x200
        | 0x400
        | CSUM_SEED
        | 0x4000
        | 0x8000
        | 0x1_0000
        | 0x2_0000;
    /// What ext3 knows.
    pub(super) const EXT3: u32 = 0x2 | META_BG;
}

mod ro_compat {
    pub(super) const SPARSE_SUPER: u32 = 0x1;
    pub(super) const GDT_CSUM: u32 = 0x10;
    pub(super) const BIGALLOC: u32 = 0x200;
    pub(super) const METADATA_CSUM: u32 = 0x400;
    pub(super) const ORPHANS: u32 = 0x1_0000;
    /// Also: large files, B-tree folders, huge files, many links, large inodes,
    /// quotas, read-only, project quotas, verity.
    pub(super) const KNOWN: u32 = SPARSE_SUPER
        | 0x2
        | 0x4
        | 0x8
        | GDT_CSUM
        | 0x20
        | 0x40
        | 0x100
        | BIGALLOC
        | METADATA_CSUM
        | 0x1000
        | 0x2000
        | 0x8000;
    /// What ext3 knows.
    pub(super) const EXT3: u32 = SPARSE_SUPER | 0x2 | 0x4;
}

/// Which checksum group descriptors have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DescriptorSum {
    None,
    Crc16,
    Crc32c,
}

/// A superblock that contradicts neither itself nor the volume.
pub(super) struct Superblock {
    /// Bytes in a block.
    pub(super) block: u64,
    /// Blocks in a cluster.
    pub(super) cluster: u64,
    pub(super) blocks: u64,
    pub(super) first_data_block: u64,
    pub(super) blocks_per_group: u64,
    pub(super) clusters_per_group: u64,
    pub(super) groups: u64,
    /// Blocks of a group's inode table.
    pub(super) inode_table: u64,
    /// Bytes of a group descriptor.
    pub(super) descriptor: u64,
    pub(super) descriptor_sum: DescriptorSum,
    pub(super) metadata_csum: bool,
    /// What checksums of metadata start with.
    pub(super) seed: u32,
    pub(super) uuid: [u8; 16],
    /// The first group of descriptors that lie in their own groups, if any do.
    pub(super) first_meta_bg: Option<u64>,
    pub(super) reserved_gdt: u64,
    pub(super) backups: Backups,
}

/// Which groups have a copy of the superblock.
pub(super) enum Backups {
    All,
    /// Groups 0, 1 and the powers of 3, 5 and 7.
    Sparse,
    /// Group 0 and these.
    Two([u64; 2]),
}

/// What kind of ext a volume is that has its signature.
pub(super) fn kind(part: &Part<'_>) -> Result<Kind, Stop> {
    let bytes = part.read(1024, 1024)?;
    let (compat, incompat, ro_compat) = features(&Fields(&bytes))?;
    Ok(name(compat, incompat, ro_compat))
}

/// The compatible, incompatible and read-only compatible features.
fn features(fields: &Fields<'_>) -> Result<(u32, u32, u32), Stop> {
    Ok(match fields.le32(76)? {
        0 => (0, 0, 0),
        _ => (fields.le32(92)?, fields.le32(96)?, fields.le32(100)?),
    })
}

impl Superblock {
    /// Reads it and says what kind of ext it is. Refuses one that isn't clean.
    pub(super) fn read(part: &Part<'_>, kind: &mut Kind) -> Result<Superblock, Stop> {
        let bytes = part.read(1024, 1024)?;
        let fields = Fields(&bytes);
        let revision = fields.le32(76)?;
        let (compat, incompat, ro_compat) = features(&fields)?;
        *kind = name(compat, incompat, ro_compat);
        clean(&fields, incompat, ro_compat)?;
        known("compatible", compat, compat::KNOWN)?;
        known("incompatible", incompat, incompat::KNOWN)?;
        known("read-only compatible", ro_compat, ro_compat::KNOWN)?;
        if revision > 1 {
            return doubt(format!("its revision is {revision}, expected 0 or 1"));
        }
        let metadata_csum = ro_compat & ro_compat::METADATA_CSUM != 0;
        if metadata_csum {
            let sum = crc32c(!0, fields.bytes(0, 1020)?);
            if fields.u8(373)? != 1 || !agrees(fields.le32(1020)?, sum) {
                return doubt("the checksum of its superblock is wrong: run e2fsck");
            }
        }
        let uuid = fields.array(104)?;
        let seed = if incompat & incompat::CSUM_SEED != 0 {
            fields.le32(624)?
        } else {
            crc32c(!0, &uuid)
        };
        let descriptor_sum = match (metadata_csum, ro_compat & ro_compat::GDT_CSUM != 0) {
            (true, _) => DescriptorSum::Crc32c,
            (false, true) => DescriptorSum::Crc16,
            (false, false) => DescriptorSum::None,
        };
        let superblock = Superblock {
            descriptor_sum,
            metadata_csum,
            seed,
            uuid,
            ..geometry(&fields, part, revision, compat, incompat, ro_compat)?
        };
        if incompat & incompat::MMP != 0 {
            not_mounted_elsewhere(part, &superblock, fields.le64(360)?)?;
        }
        Ok(superblock)
    }

    /// The blocks of a group.
    pub(super) fn group(&self, number: u64) -> Blocks {
        let start = self.first_data_block + number * self.blocks_per_group;
        start..(start + self.blocks_per_group).min(self.blocks)
    }

    /// How many clusters a group's blocks are.
    pub(super) fn clusters_in(&self, blocks: &Blocks) -> u64 {
        (blocks.end - blocks.start).div_ceil(self.cluster)
    }

    /// Whether a group has a copy of the superblock.
    pub(super) fn has_backup(&self, group: u64) -> bool {
        let power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        match self.backups {
            _ if group == 0 => true,
            Backups::All => true,
            Backups::Sparse => group == 1 || [3, 5, 7].into_iter().any(power_of),
            Backups::Two(groups) => groups.contains(&group),
        }
    }
}

/// What Linux would mount it as.
fn name(compat: u32, incompat: u32, ro_compat: u32) -> Kind {
    let beyond_ext3 = incompat & !(incompat::EXT3 | incompat::RECOVER | incompat::JOURNAL_DEV) != 0
        || ro_compat & !ro_compat::EXT3 != 0;
    match (beyond_ext3, compat & compat::HAS_JOURNAL != 0) {
        (true, _) => Kind::Ext4,
        (false, true) => Kind::Ext3,
        (false, false) => Kind::Ext2,
    }
}

fn clean(fields: &Fields<'_>, incompat: u32, ro_compat: u32) -> Result<(), Stop> {
    let state = fields.le16(58)?;
    if incompat & incompat::JOURNAL_DEV != 0 {
        return doubt("it is the journal of another file system");
    }
    if incompat & incompat::RECOVER != 0 {
        return doubt(
            "its journal has not been replayed: it was not unmounted; start the machine and shut it down, or run e2fsck",
        );
    }
    if state & 2 != 0 || fields.le32(404)? != 0 {
        return doubt("it has recorded errors: run e2fsck");
    }
    if state != 1 || fields.le32(232)? != 0 || ro_compat & ro_compat::ORPHANS != 0 {
        return doubt(
            "it was not unmounted cleanly; start the machine and shut it down, or run e2fsck",
        );
    }
    Ok(())
}

fn known(what: &str, features: u32, known: u32) -> Result<(), Stop> {
    match features & !known {
        0 => Ok(()),
        unknown => doubt(format!(
            "it has {what} features that are not known here: {unknown:#x}"
        )),
    }
}

/// The parts of a superblock that are numbers; the rest is left empty.
fn geometry(
    fields: &Fields<'_>,
    part: &Part<'_>,
    revision: u32,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
) -> Result<Superblock, Stop> {
    let log_block = fields.le32(24)?;
    let log_cluster = fields.le32(28)?;
    if log_block > 6 {
        return doubt(format!(
            "its blocks have 2^{log_block} KiB, expected at most 64"
        ));
    }
    let block = 1024_u64 << log_block;
    let bigalloc = ro_compat & ro_compat::BIGALLOC != 0;
    let cluster = match (bigalloc, log_cluster.checked_sub(log_block)) {
        (false, _) => 1,
        (true, Some(log @ 0..=16)) => 1 << log,
        (true, _) => {
            return doubt(format!(
                "its clusters have 2^{log_cluster} KiB, expected at least a block and at most 65536 of them"
            ));
        }
    };
    let bit64 = incompat & incompat::BIT64 != 0;
    let high = |at: usize| -> Result<u64, Stop> {
        Ok(if bit64 {
            u64::from(fields.le32(at)?) << 32
        } else {
            0
        })
    };
    let blocks = u64::from(fields.le32(4)?) | high(336)?;
    let first_data_block = u64::from(fields.le32(20)?);
    let fits = blocks.checked_mul(block).is_some_and(|len| len <= part.len);
    if !fits || blocks <= first_data_block {
        return doubt(format!(
            "it has {blocks} blocks of {block} bytes, expected them within the volume's {} bytes",
            part.len
        ));
    }
    // Only where blocks and clusters have 1 KiB does a block lie in front.
    if first_data_block != u64::from(block == 1024 && cluster == 1) {
        return doubt(format!("its first data block is {first_data_block}"));
    }
    let blocks_per_group = u64::from(fields.le32(32)?);
    let clusters_per_group = if bigalloc {
        u64::from(fields.le32(36)?)
    } else {
        blocks_per_group
    };
    if clusters_per_group == 0
        || clusters_per_group > block * 8
        || !clusters_per_group.is_multiple_of(8)
        || clusters_per_group * cluster != blocks_per_group
    {
        return doubt(format!(
            "its groups have {blocks_per_group} blocks in {clusters_per_group} clusters, expected at most {} clusters of {cluster}",
            block * 8
        ));
    }
    let groups = (blocks - first_data_block).div_ceil(blocks_per_group);
    if groups > MAX_GROUPS {
        return doubt(format!(
            "it has {groups} groups, at most {MAX_GROUPS} are read"
        ));
    }
    let inodes_per_group = u64::from(fields.le32(40)?);
    let inode = if revision == 0 {
        128
    } else {
        u64::from(fields.le16(88)?)
    };
    if inodes_per_group == 0
        || inodes_per_group > block * 8
        || inode < 128
        || inode > block
        || !inode.is_power_of_two()
        || u64::from(fields.le32(0)?) != inodes_per_group * groups
    {
        return doubt(format!(
            "its {groups} groups have {inodes_per_group} inodes of {inode} bytes each, {} in total",
            fields.le32(0)?
        ));
    }
    let descriptor = if bit64 {
        u64::from(fields.le16(254)?)
    } else {
        32
    };
    if bit64 && !(64..=1024).contains(&descriptor) || !descriptor.is_power_of_two() {
        return doubt(format!("its group descriptors have {descriptor} bytes"));
    }
    let backups = if compat & compat::SPARSE_SUPER2 != 0 {
        Backups::Two([fields.le32(588)?.into(), fields.le32(592)?.into()])
    } else if ro_compat & ro_compat::SPARSE_SUPER != 0 {
        Backups::Sparse
    } else {
        Backups::All
    };
    Ok(Superblock {
        block,
        cluster,
        blocks,
        first_data_block,
        blocks_per_group,
        clusters_per_group,
        groups,
        inode_table: (inodes_per_group * inode).div_ceil(block),
        descriptor,
        descriptor_sum: DescriptorSum::None,
        metadata_csum: false,
        seed: 0,
        uuid: [0; 16],
        first_meta_bg: if incompat & incompat::META_BG != 0 {
            Some(fields.le32(260)?.into())
        } else {
            None
        },
        // As Linux does, without regard to the feature for resizing.
        reserved_gdt: if revision == 0 {
            0
        } else {
            fields.le16(206)?.into()
        },
        backups,
    })
}

/// Multiple mount protection: its block tells whether someone has it mounted.
fn not_mounted_elsewhere(part: &Part<'_>, superblock: &Superblock, block: u64) -> Result<(), Stop> {
    if block >= superblock.blocks {
        return doubt(format!(
            "its block for mount protection, {block}, is beyond its end"
        ));
    }
    let bytes = part.read(block * superblock.block, 1024)?;
    let fields = Fields(&bytes);
    if fields.le32(0)? != 0x004d_4d50 || fields.le32(4)? != 0xff4d_4d50 {
        return doubt("its mount protection says that someone has it mounted");
    }
    Ok(())
}
