//! What a walk found.

use std::fmt;
use std::ops::Range;

/// What is on a disk, and which of its bytes are free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How the disk is divided.
    pub table: PartitionTable,
    /// What it is divided into, in the order of the disk. Without a partition
    /// table, the disk is one volume.
    pub volumes: Vec<Volume>,
}

impl Report {
    /// The free bytes of all volumes, sorted, disjoint, and merged.
    pub fn free_ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for volume in &self.volumes {
            let Outcome::Walked { free, .. } = &volume.outcome else {
                continue;
            };
            for range in free {
                match ranges.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => ranges.push(range.clone()),
                }
            }
        }
        ranges
    }
}

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionTable {
    /// It isn't.
    None,
    /// By a master boot record and its chain of logical partitions.
    Mbr,
    /// By a GUID partition table.
    Gpt,
}

/// A partition, or the whole of a disk that has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its first byte on the disk.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it holds.
    pub kind: Kind,
    /// Which of its bytes are free, or why nothing is known of that.
    pub outcome: Outcome,
}

/// What a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// An ext file system without a journal, extents, and what came with them.
    Ext2,
    /// An ext file system with a journal, without extents and what came with
    /// them.
    Ext3,
    /// An ext file system with a feature that ext3 doesn't know.
    Ext4,
    /// Windows NT's file system.
    Ntfs,
    /// A FAT file system with entries of 12 bits.
    Fat12,
    /// A FAT file system with entries of 16 bits.
    Fat16,
    /// A FAT file system with entries of 32 bits.
    Fat32,
    /// The FAT with an allocation bitmap.
    ExFat,
    /// XFS, of version 4 or 5.
    Xfs,
    /// Linux' swap space. It is never walked.
    Swap,
    /// A physical volume of LVM. It is never walked.
    Lvm,
    /// A volume encrypted by LUKS. It is never walked.
    Luks,
    /// Something else, or nothing. It is never walked.
    Unknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Ext2 => "ext2",
            Kind::Ext3 => "ext3",
            Kind::Ext4 => "ext4",
            Kind::Ntfs => "NTFS",
            Kind::Fat12 => "FAT12",
            Kind::Fat16 => "FAT16",
            Kind::Fat32 => "FAT32",
            Kind::ExFat => "exFAT",
            Kind::Xfs => "XFS",
            Kind::Swap => "swap space",
            Kind::Lvm => "LVM physical volume",
            Kind::Luks => "LUKS volume",
            Kind::Unknown => "unknown",
        })
    }
}

/// What became of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its file system was read.
    Walked {
        /// Bytes of the disk that the file system doesn't use: sorted,
        /// disjoint, merged. All volumes together have at most
        /// [`MAX_RANGES`](crate::MAX_RANGES); where there would be more, the
        /// shortest are missing.
        free: Vec<Range<u64>>,
        /// How many bytes these are.
        free_bytes: u64,
    },
    /// Nothing of it may be taken to be free.
    Untouched {
        /// Why, and what helps where something does.
        reason: String,
    },
}
