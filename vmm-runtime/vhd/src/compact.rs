//! Compacting a dynamic disk: a new file without the blocks that hold
//! nothing, in the place of the old one.
//!
//! The old file isn't written to. The new one has a temporary name until it
//! is durable, so whatever happens in between, the name stands for the one
//! or the other, as a whole.

use std::fs::{File, FileTimes, Metadata, Permissions};
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};

use crate::block::{BlockDevice, ExtentKind, IoError};
use crate::children::children_of;
use crate::create::{Names, NewDisk};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::gate::Gate;
use crate::image::{Dynamic, Image, Tuning, formatted_len, recognise};
use crate::import::{Progress, is_zero};
use crate::lock::{self, Mode};
use crate::modified::later_second;
use crate::operation::{OperationError, report};
use crate::pool::Pool;
use crate::repair;
use crate::room::{self, Room};
use crate::sidefile::MERGING;
use crate::storage::Backing;

/// Says what of a disk holds nothing: ranges in bytes, sorted, and none over
/// another.
pub type FreeRanges<'a> = dyn Fn(&dyn BlockDevice) -> io::Result<Vec<Range<u64>>> + 'a;

/// How a disk is compacted.
#[derive(Clone, Default)]
pub struct CompactOptions<'a> {
    /// What of the disk is free: zeros afterwards, whatever it was. Asked for
    /// while the disk is locked, so that nobody can begin to use it
    /// meanwhile. `None`: nothing is.
    pub free: Option<&'a FreeRanges<'a>>,
    /// A new name in the same pool for the result; the old file stays as it
    /// is. `None`: the result takes the place of the disk.
    pub target: Option<PathBuf>,
    /// Blocks lie in the new file in the order in which they follow on the
    /// disk, so that reading the disk reads the file from front to back.
    /// Otherwise they keep the order that they have.
    pub defragment: bool,
}

impl std::fmt::Debug for CompactOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompactOptions")
            .field("free", &self.free.is_some())
            .field("target", &self.target)
            .field("defragment", &self.defragment)
            .finish()
    }
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactReport {
    /// Length of the old file in bytes.
    pub old_len: u64,
    /// Length of the new file in bytes.
    pub new_len: u64,
    /// Blocks that the old file held.
    pub blocks_before: u32,
    /// Blocks that the new file holds.
    pub blocks_after: u32,
    /// How many bytes of the file system the new file takes less than the
    /// old one; 0 if it takes more.
    pub freed_bytes: u64,
}

/// Makes the file of the dynamic disk `rel` as small as its content allows:
/// blocks of nothing but zeros go, and zeros within a block become holes of
/// the file. The new file has the same identity, size and geometry, and takes
/// the place of the old one, or the name that the options give.
///
/// Nobody may have the disk open. The file system must have room for both
/// files, and is asked before anything is touched; where it seems too small,
/// the zeros are counted first, and the disk read twice. After an error or a
/// cancellation everything is as it was; after a crash the name stands for
/// the old file or the new one.
///
/// Without free ranges the disk shows the same as before, and keeps its time
/// of modification, so that its children still fit. With free ranges it is
/// refused while the pool holds a child of it.
///
/// Everything that is written passes `gate`, and so does the new file's taking
/// the place of the old one: a host that may have been fenced must not put its
/// file over another's.
///
/// Refused also for a fixed disk, which has no blocks; for a differencing
/// disk, where a block of zeros may cover data of the parent; and for one
/// that belongs to a saved state.
pub fn compact(
    pool: &Pool,
    rel: impl AsRef<Path>,
    gate: Gate,
    options: &CompactOptions<'_>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<CompactReport, OperationError> {
    let rel = rel.as_ref();
    let refused = |reason: String| OperationError::Refused {
        path: rel.to_owned(),
        reason,
    };
    let place = pool.place(rel)?;
    let (file, lock) = lock::open_locked(&place, Mode::Exclusive)
        .map_err(|error| OpenError::from_lock(rel, error))?;
    let file = File::from(file);
    let old = file.metadata().map_err(system(rel, "look at the file"))?;
    let backing = Backing::read_only(file, rel);
    repair::refuse_cut_off(&place, &backing)?;
    let bad = |refusal| OpenError::from_refusal(rel, refusal);
    let found = recognise(&backing, Tuning::default()).map_err(bad)?;
    match found.disk_type {
        DiskType::Dynamic => {}
        DiskType::Fixed => {
            return Err(refused(
                "a fixed disk holds all of its size and can't be compacted; convert it to a dynamic one"
                    .to_owned(),
            ));
        }
        DiskType::Differencing => {
            return Err(refused(
                "a differencing disk can't be compacted: its zeros may cover data of its parent; merge it, or compact the disk it is merged into"
                    .to_owned(),
            ));
        }
    }
    if found.footer.saved_state {
        return Err(refused(
            "the disk belongs to a saved state; restore or discard that first".to_owned(),
        ));
    }
    let size = found.footer.current_size;
    if options.target.is_none() && old.nlink() > 1 {
        return Err(refused(
            "its file has another name (a hard link), which would keep the old file; remove that, or give the result a name of its own"
                .to_owned(),
        ));
    }
    let block_size = found.layout().map_or(0, |layout| layout.block_size);
    let source = Dynamic::load(backing, &found, None, true, Tuning::default()).map_err(bad)?;
    let free = match options.free {
        Some(free) => free(&source).map_err(system(rel, "look for what is free"))?,
        None => Vec::new(),
    };
    check_free(&free, size).map_err(refused)?;
    if !free.is_empty() {
        let children = children_of(pool, rel, &[found.footer.unique_id])?;
        if let Some(child) = children.first() {
            return Err(refused(format!(
                "its free space can't be given up while it is the parent of {} ({} in all): that would change what they show; compact it without, or merge them first",
                child.display(),
                children.len()
            )));
        }
    }
    let order = if options.defragment {
        let mut order = source.blocks_in_file_order();
        order.sort_unstable();
        order
    } else {
        source.blocks_in_file_order()
    };
    let copy = Copy {
        source: &source,
        rel,
        block_size,
        order: &order,
        free: &free,
    };
    let metadata = formatted_len(DiskType::Dynamic, size, block_size);
    let space = || pool.place(rel).and_then(|place| place.space());
    let mut need = copy.most().map_err(OperationError::io(rel))?;
    if space()?.available < metadata + need {
        need = copy.count(progress)?;
    }
    let have = space()?.available;
    if have < metadata + need {
        return Err(OperationError::NoSpace {
            path: rel.to_owned(),
            need: metadata + need,
            have,
        });
    }
    // Held to the end, where the new file doesn't take over.
    let mut kept = None;
    let names = match &options.target {
        Some(target) => {
            kept = Some(lock);
            Names::take(pool, target)?
        }
        None => Names::replacing(place, lock)?,
    };
    let target = options.target.as_deref().unwrap_or(rel);
    let io = OperationError::io(rel);
    drop(gate.enter().map_err(&io)?);
    let new = NewDisk::begin_again(names, &found.footer, block_size, need, &gate)?;
    let blocks_after = copy.to(new.image(), target, progress)?;
    new.seal()?;
    let file = new.file()?;
    adopt(&file, &old, !free.is_empty()).map_err(system(
        target,
        "give the new file the old one's owner and times",
    ))?;
    let metadata = file
        .metadata()
        .map_err(system(target, "look at the file"))?;
    // The last moment to change one's mind.
    report(copy.total(), copy.total(), progress)?;
    // Held until it has its name.
    let pass = gate.enter().map_err(&io)?;
    if options.target.is_none() && !free.is_empty() {
        // A merge into it that was cut off must not go on as if it were the
        // same: its child may lie in another pool.
        MERGING.forget(&pool.place(rel)?)?;
    }
    drop(new.publish()?);
    drop(pass);
    drop(kept);
    Ok(CompactReport {
        old_len: old.len(),
        new_len: metadata.len(),
        // No more than the 32-bit number of blocks.
        blocks_before: order.len() as u32,
        blocks_after,
        freed_bytes: old
            .blocks()
            .saturating_sub(metadata.blocks())
            .saturating_mul(512),
    })
}

fn system(path: &Path, operation: &'static str) -> impl Fn(std::io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |source| OpenError::Io {
        path: path.clone(),
        operation,
        source,
    }
}

/// Refuses ranges that are empty, out of order, over each other, or not on
/// the disk.
fn check_free(free: &[Range<u64>], size: u64) -> Result<(), String> {
    let mut end = 0;
    for range in free {
        if range.is_empty() || range.start < end || range.end > size {
            return Err(format!(
                "the free range {}..{} is not behind the one before it, which ends at {end}, or not on the disk of {size} bytes",
                range.start, range.end
            ));
        }
        end = range.end;
    }
    Ok(())
}

/// Gives the new file the owner and the mode of the old one, and its time of
/// modification if it shows the same. All of it durably.
fn adopt(file: &File, old: &Metadata, changed: bool) -> std::io::Result<()> {
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        let (uid, gid) = (Uid::from_raw(old.uid()), Gid::from_raw(old.gid()));
        rustix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
    let before = old.modified()?;
    let modified = if changed {
        later_second(before, new.modified()?)
    } else {
        before
    };
    file.set_times(FileTimes::new().set_modified(modified))?;
    file.sync_all()
}

/// How much is read at once.
const CHUNK: u64 = 1 << 20;
/// Zeros are looked for in pieces of this size: the block of most file
/// systems, so that a hole saves what it covers.
const PIECE: usize = room::PIECE as usize;

/// The copying of what a disk holds.
struct Copy<'a> {
    source: &'a Dynamic,
    rel: &'a Path,
    block_size: u32,
    /// The blocks, in the order in which they are to lie in the new file.
    order: &'a [u32],
    free: &'a [Range<u64>],
}

impl Copy<'_> {
    /// Bytes of all blocks, for the progress.
    fn total(&self) -> u64 {
        self.order.len() as u64 * u64::from(self.block_size)
    }

    /// How many bytes the new file takes at most, without looking at the data.
    fn most(&self) -> Result<u64, IoError> {
        let mut bytes = 0;
        for &block in self.order {
            bytes += room::block_overhead(self.block_size);
            let mut room = Room::flat();
            self.data(block)?
                .into_iter()
                .for_each(|range| room.add(range));
            bytes += room.bytes();
        }
        Ok(bytes)
    }

    /// How many bytes the new file takes. Reads all data.
    fn count(
        &self,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<u64, OperationError> {
        let mut bytes = 0;
        for &block in self.order {
            let mut held = Room::flat();
            self.visit(block, |piece, offset| {
                held.add(offset..offset + piece.len() as u64);
                Ok(())
            })?;
            if held.bytes() > 0 {
                bytes += held.bytes() + room::block_overhead(self.block_size);
            }
            report(0, self.total(), progress)?;
        }
        Ok(bytes)
    }

    /// Copies everything; returns how many blocks have something in them.
    fn to(
        &self,
        new: &dyn Image,
        target: &Path,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<u32, OperationError> {
        let to_target = OperationError::io(target);
        let mut blocks = 0;
        let mut done = 0;
        report(0, self.total(), progress)?;
        for &block in self.order {
            let mut holds = false;
            self.visit(block, |piece, offset| {
                holds = true;
                new.write_at(piece, offset).map_err(&to_target)
            })?;
            if holds {
                blocks += 1;
                // Little is left to be synced at the end.
                let start = u64::from(block) * u64::from(self.block_size);
                let end = (start + u64::from(self.block_size)).min(new.size());
                new.write_behind(start, end - start);
            }
            done += u64::from(self.block_size);
            report(done, self.total(), progress)?;
        }
        Ok(blocks)
    }

    /// Calls `each` for all of a block that is not zero, with its place on
    /// the disk.
    fn visit(
        &self,
        block: u32,
        mut each: impl FnMut(&[u8], u64) -> Result<(), OperationError>,
    ) -> Result<(), OperationError> {
        let io = OperationError::io(self.rel);
        let mut buf = Vec::new();
        for range in self.data(block).map_err(&io)? {
            let mut at = range.start;
            while at < range.end {
                // To the next multiple, so that pieces begin at multiples too.
                let len = (CHUNK - at % CHUNK).min(range.end - at);
                buf.resize(len as usize, 0);
                self.source.read_at(&mut buf, at).map_err(&io)?;
                for run in runs(&buf, at) {
                    let offset = at + run.start as u64;
                    each(&buf[run], offset)?;
                }
                at += len;
            }
        }
        Ok(())
    }

    /// The ranges of a block that may hold something.
    fn data(&self, block: u32) -> Result<Vec<Range<u64>>, IoError> {
        let start = u64::from(block) * u64::from(self.block_size);
        let end = (start + u64::from(self.block_size)).min(self.source.size());
        let mut ranges = Vec::new();
        let mut at = start;
        while at < end {
            for extent in self.source.block_status(at, end - at)? {
                at = extent.offset + extent.len;
                if extent.kind == ExtentKind::Data {
                    without(extent.offset..at, self.free, &mut ranges);
                }
            }
        }
        Ok(ranges)
    }
}

/// Adds what is left of `range` without the free ones.
fn without(range: Range<u64>, free: &[Range<u64>], left: &mut Vec<Range<u64>>) {
    let mut at = range.start;
    let first = free.partition_point(|free| free.end <= at);
    for free in &free[first..] {
        if free.start >= range.end {
            break;
        }
        if free.start > at {
            left.push(at..free.start);
        }
        at = free.end;
    }
    if at < range.end {
        left.push(at..range.end);
    }
}

/// The parts of `bytes`, which lie at `at` on the disk, that are not zero:
/// whole pieces, neighbours in one.
pub(crate) fn runs(bytes: &[u8], at: u64) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        // Of a remainder by a piece.
        let within = (at % PIECE as u64) as usize + start;
        let end = (start + PIECE - within % PIECE).min(bytes.len());
        if !is_zero(&bytes[start..end]) {
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        start = end;
    }
    runs
}

#[cfg(test)]
mod tests;
