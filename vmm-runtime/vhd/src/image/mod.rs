//! Disks over a storage, whatever that is: reading what a file claims to be,
//! and serving it.

mod absent;
mod dynamic;
mod extents;
mod fixed;
mod format_new;
mod recognise;

#[cfg(test)]
mod bitmap_tests;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod flush_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod open_tests;
#[cfg(test)]
pub(crate) mod random;
#[cfg(test)]
pub(crate) mod sample;

pub(crate) use absent::Absent;
pub(crate) use dynamic::Dynamic;
pub(crate) use fixed::Fixed;
pub(crate) use format_new::{NewParent, format_new, formatted_len};
pub(crate) use recognise::{Recognised, recognise};

use std::ops::Range;

use crate::block::{BlockDevice, IoError};
use crate::format::DiskType;
use crate::room::PIECE;
use crate::storage::Backing;

/// Why bytes were not opened as a disk.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// A VHD, but damaged: what was found.
    Corrupt(String),
    /// Nothing that we open: what it is, and what to do.
    Unsupported(String),
    /// The file can't be read or written.
    Io(IoError),
}

impl From<IoError> for Refusal {
    fn from(error: IoError) -> Refusal {
        Refusal::Io(error)
    }
}

/// How many bytes of clean bitmaps a disk keeps in memory, unless it is one of
/// many parents: with the usual blocks, those of 32 GiB.
const DISK_BITMAPS: usize = 8 << 20;
/// The most that all parents of a chain keep together, in equal shares. The
/// share of one of 63 parents is 390 KiB, and the largest bitmap has 64 KiB.
///
/// Shares, and not one cache for all: nobody waits for another disk's lock, and
/// no disk drives out what another needs.
const PARENT_BITMAPS: usize = 24 << 20;

/// Numbers that tests make smaller, and the faults they put into the write
/// path to see that a crash test notices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// By how many bytes a dynamic disk's file grows at least.
    pub(crate) growth: u64,
    /// How many bytes of clean bitmaps are kept in memory.
    pub(crate) bitmap_cache: usize,
    #[cfg(test)]
    pub(crate) mutant: Option<Mutant>,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            // Tests look at many such files, byte by byte.
            growth: if cfg!(test) { 8 << 20 } else { 64 << 20 },
            bitmap_cache: DISK_BITMAPS,
            #[cfg(test)]
            mutant: None,
        }
    }
}

impl Tuning {
    /// For a disk that is about to be given so many bytes: its file grows at
    /// once, while a sync still costs nothing. (It ends where its data ends
    /// when it is put away.)
    pub(crate) fn for_data(bytes: u64) -> Tuning {
        let tuning = Tuning::default();
        Tuning {
            growth: tuning.growth.max(bytes.saturating_add(bytes / 64)),
            ..tuning
        }
    }

    /// For one of the `parents` parents of a disk.
    pub(crate) fn for_parent(parents: usize) -> Tuning {
        Tuning {
            bitmap_cache: DISK_BITMAPS.min(PARENT_BITMAPS / parents.max(1)),
            ..Tuning::default()
        }
    }

    #[cfg(test)]
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(test))]
    pub(crate) fn is(&self, _: Mutant) -> bool {
        false
    }
}

/// A deliberate fault of what writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A flush writes metadata without syncing the data before.
    SkipDataSync,
    /// A flush is acknowledged before the metadata is synced.
    SkipMetadataSync,
    /// A flush writes the table before it syncs the data.
    TableBeforeData,
    /// Opening looks at the end of the file only.
    ForgetHeadCopy,
    /// A freed region is given to another block before its entry is cleared
    /// durably.
    ReuseBeforeDurable,
    /// A freed region is reused with its old data in it.
    ReuseUnpunched,
    /// Bits of a bitmap go to disk before the data they stand for.
    BitmapBeforeData,
    /// A flush writes bitmaps before it syncs the data they stand for.
    BitmapsBeforeSync,
    /// Space left behind by a crash is taken for zeros.
    TrustSlack,
    /// A reservation whose first write failed is forgotten, but not its
    /// entry in memory.
    KeepFailedReservation,
    /// A block of a child is taken for written as a whole when it is
    /// allocated.
    FillChildBlocks,
    /// A discard frees a child's block whatever the parent holds there.
    UncoverParent,
    /// Zeros are not written to a child where it holds nothing.
    ZeroNothing,
    /// The bits of zeroed sectors of a child stay clear.
    ZeroWithoutBits,
    /// The footer leaves its old place before it is durable in its new one.
    GrowUnsynced,
    /// What a failed growth left behind is taken for zeros.
    TrustFailedGrowth,
    /// The footer names a new header before that is durable.
    HeadBeforeHeader,
    /// A merge is over before the parent is synced.
    #[cfg(test)]
    MergeUnsynced,
    /// A merge leaves the child's zeros out.
    #[cfg(test)]
    MergeWithoutZeros,
    /// After a failed sync the next one is believed.
    #[cfg(test)]
    TrustNextSync,
    /// What the page cache shows is taken for what the disk holds when a disk
    /// is opened.
    #[cfg(any(test, fuzzing))]
    TrustCache,
    /// What a trim that failed left behind is taken for zeros.
    TrustFailedTrim,
}

/// Opens what `backing` holds, with the parent if it needs one. A writable
/// open repairs what a crash may have left: a lost copy of the footer.
/// Nothing else is changed.
#[cfg(any(test, fuzzing))]
pub(crate) fn open(
    backing: Backing,
    parent: Option<Box<dyn Image>>,
    read_only: bool,
    tuning: Tuning,
) -> Result<(Box<dyn Image>, DiskType), Refusal> {
    if !read_only && !tuning.is(Mutant::TrustCache) {
        backing.read_afresh()?;
    }
    let found = recognise(&backing, tuning)?;
    let disk_type = found.disk_type;
    assemble(backing, &found, parent, read_only, tuning).map(|image| (image, disk_type))
}

/// Opens a disk that was recognised. `parent` is opened for reading, and used
/// by differencing disks.
pub(crate) fn assemble(
    backing: Backing,
    found: &Recognised,
    parent: Option<Box<dyn Image>>,
    read_only: bool,
    tuning: Tuning,
) -> Result<Box<dyn Image>, Refusal> {
    Ok(match (found.disk_type, parent) {
        (DiskType::Fixed, _) => Box::new(Fixed::new(backing, found, read_only)),
        (DiskType::Dynamic, _) => Box::new(Dynamic::load(backing, found, None, read_only, tuning)?),
        (DiskType::Differencing, Some(parent)) => Box::new(Dynamic::load(
            backing,
            found,
            Some(parent),
            read_only,
            tuning,
        )?),
        (DiskType::Differencing, None) => {
            let id = found
                .header
                .as_ref()
                .map(|(_, header)| header.parent.unique_id);
            return Err(Refusal::Unsupported(format!(
                "it is a differencing VHD (child of '{}', {}) and can't be read without its parent",
                found.parent_name(),
                id.unwrap_or_default()
            )));
        }
    })
}

/// A disk that can be put away in order.
pub(crate) trait Image: BlockDevice {
    /// Flushes, and gives back what was reserved for growth.
    fn put_away(&self) -> Result<(), IoError>;

    /// Begins to bring to disk what was written to a range that lies within
    /// the disk. For speed alone.
    fn write_behind(&self, _offset: u64, _len: u64) {}

    /// How many bytes of the file system writing to `range`, which lies within
    /// the disk, takes at most. Blocks that begin before `after` are counted
    /// already, with an earlier range.
    fn growth(&self, range: Range<u64>, after: u64) -> Result<u64, IoError>;

    /// How many bytes of bitmaps the disk keeps, and how many it may; then
    /// the same of its parents.
    #[cfg(test)]
    fn bitmap_bytes(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }
}

/// How many bytes writing to a range of a file takes at most: of what it has
/// no data for, in whole pieces.
fn holes(backing: &Backing, range: Range<u64>) -> Result<u64, IoError> {
    let mut missing = 0;
    let mut at = range.start;
    while at < range.end {
        let data = backing.next_data(at..range.end)?;
        let data = data.unwrap_or(range.end..range.end);
        missing += (data.start - at).next_multiple_of(PIECE);
        at = data.end;
    }
    Ok(missing)
}
