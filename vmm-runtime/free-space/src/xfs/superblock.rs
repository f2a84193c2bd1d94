//! The superblock: geometry, and features. Numbers are big-endian; checksums
//! are not.

use std::ops::Range;

use crate::checksum::{agrees, crc32c_without};
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;

/// How many allocation groups are read at most.
const MAX_GROUPS: u64 = 1 << 20;

/// Features of version 5 that change nothing about which blocks are free, or
/// that are accounted for here.
mod feature {
    /// Free-inode tree, tree of owners, shared blocks, counts of inode trees.
    pub(super) const RO_COMPAT: u32 = 0xf;
    pub(super) const META_UUID: u32 = 0x4;
    pub(super) const NEEDS_REPAIR: u32 = 0x10;
    /// File types, sparse inode chunks, its own UUID for metadata, large
    /// timestamps, large counts of extents, exchanged ranges, parent pointers.
    pub(super) const INCOMPAT: u32 = 0x1 | 0x2 | META_UUID | 0x8 | 0x20 | 0x40 | 0x80;
}

/// A superblock that contradicts neither itself nor the volume.
pub(super) struct Superblock {
    /// Bytes in a block.
    pub(super) block: u64,
    /// Bytes in a sector.
    pub(super) sector: u64,
    pub(super) blocks: u64,
    /// Blocks in every allocation group but the last.
    pub(super) group_blocks: u64,
    pub(super) groups: u64,
    /// Whether structures have checksums.
    pub(super) v5: bool,
    /// What the log is signed with.
    pub(super) uuid: [u8; 16],
    /// What structures are signed with.
    pub(super) meta_uuid: [u8; 16],
    /// The group that has the log, and the log's blocks in it.
    pub(super) log: (u64, Range<u64>),
}

impl Superblock {
    pub(super) fn read(part: &Part<'_>) -> Result<Superblock, Stop> {
        let first = part.read(0, 512)?;
        let sector = u64::from(Fields(&first).be16(102)?);
        if !(512..=32768).contains(&sector) || !sector.is_power_of_two() {
            return doubt(format!("its sectors have {sector} bytes"));
        }
        let bytes = part.read(0, sector)?;
        let fields = Fields(&bytes);
        let version = fields.be16(100)? & 15;
        if !matches!(version, 4 | 5) {
            return doubt(format!("it has version {version}, expected 4 or 5"));
        }
        let v5 = version == 5;
        if v5 && !agrees(fields.le32(224)?, crc32c_without(&bytes, 224)) {
            return doubt("the checksum of its superblock is wrong: run xfs_repair");
        }
        if fields.u8(126)? != 0 {
            return doubt("it was never made to the end: mkfs.xfs was interrupted");
        }
        let uuid = fields.array(32)?;
        let mut meta_uuid = uuid;
        if v5 {
            known(&fields)?;
            if fields.be32(216)? & feature::META_UUID != 0 {
                meta_uuid = fields.array(248)?;
            }
        }
        let superblock = Superblock {
            block: fields.be32(4)?.into(),
            sector,
            blocks: fields.be64(8)?,
            group_blocks: fields.be32(84)?.into(),
            groups: fields.be32(88)?.into(),
            v5,
            uuid,
            meta_uuid,
            log: (0, 0..0),
        };
        superblock.geometry(part, &fields)?;
        let log = superblock.log(&fields)?;
        Ok(Superblock { log, ..superblock })
    }

    fn geometry(&self, part: &Part<'_>, fields: &Fields<'_>) -> Result<(), Stop> {
        let block_ok = (512..=65536).contains(&self.block)
            && self.block.is_power_of_two()
            && self.block >= self.sector
            && u32::from(fields.u8(120)?) == self.block.trailing_zeros();
        let fits = self
            .blocks
            .checked_mul(self.block)
            .is_some_and(|len| len <= part.len);
        let groups_ok = self.group_blocks >= 64
            && self.groups <= MAX_GROUPS
            && self.blocks.div_ceil(self.group_blocks) == self.groups
            && self.blocks > 0
            && u32::from(fields.u8(124)?) == self.group_blocks.next_power_of_two().trailing_zeros();
        if !block_ok || !fits || !groups_ok {
            return doubt(format!(
                "it has {} blocks of {} bytes in {} groups of {}, expected them to agree and to be within the volume's {} bytes",
                self.blocks, self.block, self.groups, self.group_blocks, part.len
            ));
        }
        Ok(())
    }

    /// Where the log is: a block number whose high bits are the group.
    fn log(&self, fields: &Fields<'_>) -> Result<(u64, Range<u64>), Stop> {
        let (start, len) = (fields.be64(48)?, u64::from(fields.be32(96)?));
        if start == 0 {
            return doubt("its log is on another disk, so nothing says that it is clean");
        }
        let bits = u32::from(fields.u8(124)?);
        let (group, first) = (start >> bits, start & ((1 << bits) - 1));
        if group >= self.groups || len == 0 || first + len > self.group_len(group) {
            return doubt(format!(
                "its log has {len} blocks from block {first} of group {group}, expected them within the group"
            ));
        }
        Ok((group, first..first + len))
    }

    /// How many blocks an allocation group has.
    pub(super) fn group_len(&self, number: u64) -> u64 {
        let start = number * self.group_blocks;
        self.group_blocks.min(self.blocks.saturating_sub(start))
    }
}

fn known(fields: &Fields<'_>) -> Result<(), Stop> {
    let incompat = fields.be32(216)?;
    if incompat & feature::NEEDS_REPAIR != 0 {
        return doubt("it is marked as needing repair: run xfs_repair");
    }
    for (what, features, known) in [
        ("compatible", fields.be32(208)?, 0),
        (
            "read-only compatible",
            fields.be32(212)?,
            feature::RO_COMPAT,
        ),
        ("incompatible", incompat, feature::INCOMPAT),
        ("log", fields.be32(220)?, 0),
    ] {
        let unknown = features & !known;
        if unknown != 0 {
            return doubt(format!(
                "it has {what} features that are not known here: {unknown:#x}"
            ));
        }
    }
    Ok(())
}
