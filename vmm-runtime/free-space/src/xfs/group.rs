//! An allocation group: its header, the list of blocks kept for its trees, and
//! the tree of its free extents.

use std::ops::Range;

use super::superblock::Superblock;
use crate::checksum::{agrees, crc32c_without};
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;
use crate::free_list::{FreeList, InUse};

/// How many levels a tree has at most; XFS itself allows nine.
const MAX_LEVELS: u32 = 9;

/// How many blocks a tree has at most: some 2^27 extents in one group.
const MAX_TREE: usize = 1 << 18;

/// A group, while it is walked.
struct Group<'a> {
    part: &'a Part<'a>,
    superblock: &'a Superblock,
    number: u64,
    /// Its length in blocks.
    len: u64,
}

/// What its header says.
struct Header {
    root: u64,
    levels: u32,
    free: u64,
    longest: u64,
    /// Places in the list of kept blocks: first, last, how many.
    list: [u32; 3],
}

/// Adds the free bytes of a group to `free`.
pub(super) fn walk(
    part: &Part<'_>,
    superblock: &Superblock,
    number: u64,
    free: &mut FreeList,
) -> Result<(), Stop> {
    let group = Group {
        part,
        superblock,
        number,
        len: superblock.group_len(number),
    };
    let header = group.header()?;
    let mut own = group.kept(&header)?;
    own.push(0..(4 * superblock.sector).div_ceil(superblock.block));
    let (log_group, log) = &superblock.log;
    if *log_group == number {
        own.push(log.clone());
    }
    let leaves = group.tree(&header, &mut own)?;
    let own = InUse::new(own)?;
    let start = number * superblock.group_blocks;
    let (mut count, mut longest) = (0, 0);
    for leaf in leaves {
        let (bytes, records) = group.tree_block(leaf, 0)?;
        for record in 0..records {
            let extent = group.extent(&Fields(&bytes), record)?;
            own.refuse(&extent, "blocks")?;
            let len = extent.end - extent.start;
            count += len;
            longest = len.max(longest);
            let byte = |block: u64| (start + block) * superblock.block;
            free.push(byte(extent.start)..byte(extent.end))?;
        }
    }
    if (count, longest) != (header.free, header.longest) {
        return doubt(format!(
            "group {number} says that {} of its blocks are free, {} of them together; its tree has {count} and {longest}: run xfs_repair",
            header.free, header.longest
        ));
    }
    Ok(())
}

impl Group<'_> {
    /// Where a block of the group is.
    fn place(&self, block: u64) -> u64 {
        (self.number * self.superblock.group_blocks + block) * self.superblock.block
    }

    /// Reads one of the sectors that a group begins with, and checks what it is
    /// signed with.
    fn sector(&self, index: u64, uuid: usize, sum: usize) -> Result<Vec<u8>, Stop> {
        let sector = self.superblock.sector;
        let bytes = self.part.read(self.place(0) + index * sector, sector)?;
        if self.superblock.v5 {
            self.signed(&bytes, uuid, sum)?;
        }
        Ok(bytes)
    }

    fn signed(&self, bytes: &[u8], uuid: usize, sum: usize) -> Result<(), Stop> {
        let fields = Fields(bytes);
        if !agrees(fields.le32(sum)?, crc32c_without(bytes, sum))
            || fields.array::<16>(uuid)? != self.superblock.meta_uuid
        {
            return doubt(format!(
                "a checksum or a UUID in group {} is wrong: run xfs_repair",
                self.number
            ));
        }
        Ok(())
    }

    fn header(&self) -> Result<Header, Stop> {
        let bytes = self.sector(1, 64, 216)?;
        let fields = Fields(&bytes);
        let right = fields.bytes(0, 4)? == b"XAGF"
            && fields.be32(4)? == 1
            && u64::from(fields.be32(8)?) == self.number
            && u64::from(fields.be32(12)?) == self.len;
        let levels = fields.be32(28)?;
        if !right || levels == 0 || levels > MAX_LEVELS {
            return doubt(format!(
                "the header of group {} isn't made like one, or tells of a tree of {levels} levels: run xfs_repair",
                self.number
            ));
        }
        Ok(Header {
            root: fields.be32(16)?.into(),
            levels,
            free: fields.be32(52)?.into(),
            longest: fields.be32(56)?.into(),
            list: [fields.be32(40)?, fields.be32(44)?, fields.be32(48)?],
        })
    }

    /// The blocks that are kept for the trees: they are in none of them, and not
    /// free.
    fn kept(&self, header: &Header) -> Result<Vec<Range<u64>>, Stop> {
        let [first, last, count] = header.list;
        if count == 0 {
            return Ok(Vec::new());
        }
        let head = if self.superblock.v5 { 36 } else { 0 };
        let bytes = if self.superblock.v5 {
            self.sector(3, 8, 32)?
        } else {
            self.sector(3, 0, 0)?
        };
        let fields = Fields(&bytes);
        if self.superblock.v5
            && (fields.bytes(0, 4)? != b"XAFL" || u64::from(fields.be32(4)?) != self.number)
        {
            return doubt(format!(
                "the list of kept blocks of group {} isn't made like one: run xfs_repair",
                self.number
            ));
        }
        let places = ((bytes.len() - head) / 4) as u32;
        let right = first < places
            && last < places
            && count <= places
            && (first + count - 1) % places == last;
        if !right {
            return doubt(format!(
                "group {} keeps {count} blocks in the places {first} to {last} of {places}: run xfs_repair",
                self.number
            ));
        }
        let mut kept = Vec::new();
        for index in 0..count {
            let at = (first + index) % places;
            let block = u64::from(fields.be32(head + at as usize * 4)?);
            if block >= self.len {
                return doubt(format!(
                    "group {} keeps block {block}, beyond its {} blocks: run xfs_repair",
                    self.number, self.len
                ));
            }
            kept.push(block..block + 1);
        }
        Ok(kept)
    }

    /// The tree's leaves in their order. All its blocks are added to `own`.
    fn tree(&self, header: &Header, own: &mut Vec<Range<u64>>) -> Result<Vec<u64>, Stop> {
        let mut leaves = Vec::new();
        let mut seen = 0;
        let mut todo = vec![(header.root, header.levels - 1)];
        while let Some((block, level)) = todo.pop() {
            seen += 1;
            if seen > MAX_TREE || seen as u64 > self.len {
                return doubt(format!(
                    "the tree of free extents of group {} has too many blocks, or leads back",
                    self.number
                ));
            }
            own.push(block..block + 1);
            if level == 0 {
                leaves.push(block);
                continue;
            }
            let (bytes, records) = self.tree_block(block, level)?;
            let fields = Fields(&bytes);
            let most = (bytes.len() - self.tree_header()) / 12;
            for record in (0..records).rev() {
                let at = self.tree_header() + most * 8 + record * 4;
                todo.push((fields.be32(at)?.into(), level - 1));
            }
        }
        Ok(leaves)
    }

    fn tree_header(&self) -> usize {
        if self.superblock.v5 { 56 } else { 16 }
    }

    /// A block of the tree, and how many records it has.
    fn tree_block(&self, block: u64, level: u32) -> Result<(Vec<u8>, usize), Stop> {
        if block >= self.len {
            return doubt(format!(
                "the tree of free extents of group {} leads to block {block}, beyond its {} blocks: run xfs_repair",
                self.number, self.len
            ));
        }
        let bytes = self.part.read(self.place(block), self.superblock.block)?;
        let fields = Fields(&bytes);
        let mut right = u32::from(fields.be16(4)?) == level;
        if self.superblock.v5 {
            self.signed(&bytes, 32, 52)?;
            right &= fields.bytes(0, 4)? == b"AB3B"
                && fields.be64(16)? == self.place(block) / 512
                && u64::from(fields.be32(48)?) == self.number;
        } else {
            right &= fields.bytes(0, 4)? == b"ABTB";
        }
        let records = usize::from(fields.be16(6)?);
        let record = if level == 0 { 8 } else { 12 };
        if !right || records > (bytes.len() - self.tree_header()) / record {
            return doubt(format!(
                "block {block} of group {} should be of its tree of free extents, but isn't made like that: run xfs_repair",
                self.number
            ));
        }
        Ok((bytes, records))
    }

    /// A record of a leaf.
    fn extent(&self, leaf: &Fields<'_>, record: usize) -> Result<Range<u64>, Stop> {
        let at = self.tree_header() + record * 8;
        let (start, len) = (u64::from(leaf.be32(at)?), u64::from(leaf.be32(at + 4)?));
        if len == 0 || start + len > self.len {
            return doubt(format!(
                "{len} blocks from block {start} of group {} are said to be free, expected them within its {} blocks: run xfs_repair",
                self.number, self.len
            ));
        }
        Ok(start..start + len)
    }
}
