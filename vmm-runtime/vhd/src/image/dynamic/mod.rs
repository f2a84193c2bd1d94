//! Dynamic disks: blocks that are allocated as they are first written. And
//! differencing disks, which are dynamic ones over a parent.
//!
//! What must hold after a crash at any moment is that each sector has the
//! value of the last completed flush or a later one. So a block's entry goes
//! to disk only after its data is durable, a region of the file is given to
//! another block only after the entry that named it is durably gone, and a
//! region is zero before a block gets it. `allocation` decides where blocks
//! go and grows the file, `commit` makes it durable, `bitmaps` remembers
//! which sectors of foreign disks are marked as never written.
//!
//! In a differencing disk a sector whose bit is clear is the parent's, so its
//! bit is set after its data is written, and goes to disk after its data is
//! durable (`child`). The bitmap of a new block may go there together with
//! the block's entry, in any order: the region was zero, bitmap included, so
//! whatever part of the two a crash leaves shows the parent's sectors, which
//! were the block's until then. For the same reason a block may lose its
//! region only where the parent is zero.
//!
//! A file grows ahead of its need: the footer is written and synced further
//! back while others use the room there is, and only then its old place
//! becomes room. Changes that wait for a flush are bounded; what is more is
//! committed without one.
//!
//! Locks, in the order in which they may be taken: a block's stripe, then
//! `allocation`, then `bitmaps`. Requests hold their block's stripe shared;
//! whoever takes a region away from a block holds it exclusively, so no
//! request is under way to a region when it changes hands. (Those of a queue
//! are counted instead of holding the lock, see `locate`.) `allocation` is
//! not held while the file grows: who needs room then waits for `grown`.

mod allocation;
mod bitmaps;
mod child;
mod commit;
mod growth;
mod locate;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use super::extents::Extents;
use super::{Image, Mutant, Recognised, Refusal, Tuning};
use crate::block::{BlockDevice, Extent, ExtentKind, IoError, check_range};
use crate::format::SECTOR;
use crate::format::bat::{self, Layout, UNALLOCATED};
use crate::format::bitmap::Bitmap;
use crate::format::footer;
use crate::queue::{Holds, Intent, Place};
use crate::storage::{Backing, Space};

use allocation::Allocation;
use bitmaps::Bitmaps;
use commit::GroupCommit;

/// Blocks share this many locks.
const STRIPES: usize = 64;

/// A mark of a block: all bits of its bitmap are set.
const FULL: u8 = 1;
/// A mark of a block: its region is reserved, and nothing was written to it
/// with success yet.
const FRESH: u8 = 2;
/// A mark of a block: it is known which of its parts have no bit set.
const SURVEYED: u8 = 4;

/// So many parts a block is looked at in, to skip a disk of a chain that holds
/// nothing there without looking for its bitmap.
const PARTS: u32 = u32::BITS;

/// An open dynamic or differencing disk.
pub(crate) struct Dynamic {
    backing: Backing,
    /// Of a differencing disk. Open for reading, and the same for as long as
    /// this one is open.
    parent: Option<Box<dyn Image>>,
    layout: Layout,
    footer_bytes: [u8; footer::LEN],
    read_only: bool,
    tuning: Tuning,
    /// Where each block is now, durable or not.
    map: Box<[AtomicU32]>,
    marks: Box<[AtomicU8]>,
    /// Of a parent that has a parent: which parts of a block have bits set.
    /// Empty otherwise. It is open for reading, so they stay as they are.
    parts: Box<[AtomicU32]>,
    stripes: Box<[Stripe]>,
    allocation: Mutex<Allocation>,
    /// Told when the file has been made longer, or could not be.
    grown: Condvar,
    bitmaps: Mutex<Bitmaps>,
    commits: GroupCommit,
    upkeep: Upkeep,
}

/// What is to be done soon, by whoever changed something and holds no lock.
#[derive(Default)]
struct Upkeep {
    /// The file should grow before its room is used up.
    room: AtomicBool,
    /// So much waits for a flush that it should be written without one.
    commit: AtomicBool,
}

/// Keeps the regions of some blocks where they are.
#[derive(Default)]
struct Stripe {
    lock: RwLock<()>,
    /// Requests to their regions that are under way without the lock. Begun
    /// only under it.
    placed: Holds,
}

/// The part of a request that lies in one block.
struct Piece {
    block: u32,
    /// First byte, from the beginning of the block's data.
    within: u64,
    /// The piece's bytes in the request's buffer.
    span: Range<usize>,
}

impl Piece {
    fn len(&self) -> u64 {
        self.span.len() as u64
    }

    /// The sectors of the block that the piece touches.
    fn sectors(&self) -> Range<u32> {
        // A block has at most 2^19 sectors.
        let first = self.within / SECTOR;
        let end = (self.within + self.len()).div_ceil(SECTOR);
        first as u32..end as u32
    }
}

impl Dynamic {
    /// Reads and checks the table. A writable disk gets back the copy of its
    /// footer that a crash took. `parent`: of a differencing disk.
    pub(crate) fn load(
        backing: Backing,
        found: &Recognised,
        parent: Option<Box<dyn Image>>,
        read_only: bool,
        tuning: Tuning,
    ) -> Result<Dynamic, Refusal> {
        let Some(layout) = found.layout() else {
            return Err(Refusal::Corrupt("it has no dynamic header".to_owned()));
        };
        layout.check(found.data_end).map_err(Refusal::Corrupt)?;
        // At most 16 MiB, and within the file: checked by the layout.
        let mut bytes = vec![0; layout.bat_entries as usize * 4];
        backing.read(&mut bytes, layout.bat_offset)?;
        let table: Vec<u32> = bat::decode(&bytes).collect();
        drop(bytes);
        let used_end = layout
            .check_entries(&table, found.data_end)
            .map_err(Refusal::Corrupt)?;
        #[cfg(test)]
        let backing = backing.forgetting_failed_syncs(tuning.is(Mutant::TrustNextSync));
        let disk = Dynamic::with_table(
            backing, layout, found, parent, table, used_end, read_only, tuning,
        );
        if !read_only {
            disk.restore_footers(found)?;
        }
        Ok(disk)
    }

    /// A disk open for reading, with a table of the caller's instead of the
    /// file's: its entries may overlap, but not reach past the file's end.
    pub(crate) fn with_rescued_table(
        backing: Backing,
        layout: Layout,
        found: &Recognised,
        parent: Option<Box<dyn Image>>,
        table: Vec<u32>,
    ) -> Dynamic {
        let end = found.data_end;
        let tuning = Tuning::default();
        Dynamic::with_table(backing, layout, found, parent, table, end, true, tuning)
    }

    #[allow(clippy::too_many_arguments)] // All of them fields, and named alike.
    fn with_table(
        backing: Backing,
        layout: Layout,
        found: &Recognised,
        parent: Option<Box<dyn Image>>,
        table: Vec<u32>,
        used_end: u64,
        read_only: bool,
        tuning: Tuning,
    ) -> Dynamic {
        let map = table.iter().map(|&entry| AtomicU32::new(entry)).collect();
        let entries = table.len();
        // Who reads alone allocates nothing.
        let table = if read_only { Vec::new() } else { table };
        // A block with fewer sectors than parts isn't worth it.
        let surveyed = read_only && parent.is_some() && layout.block_sectors() >= PARTS;
        Dynamic {
            parent,
            layout,
            footer_bytes: found.footer_bytes,
            read_only,
            tuning,
            map,
            marks: (0..entries).map(|_| AtomicU8::new(0)).collect(),
            parts: (0..entries)
                .filter(|_| surveyed)
                .map(|_| AtomicU32::new(0))
                .collect(),
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            allocation: Mutex::new(Allocation::new(table, used_end, found.data_end)),
            grown: Condvar::new(),
            bitmaps: Mutex::new(Bitmaps::new(tuning.bitmap_cache)),
            commits: GroupCommit::default(),
            upkeep: Upkeep::default(),
            backing,
        }
    }

    #[cfg(test)]
    pub(crate) fn is_mutant(&self, mutant: Mutant) -> bool {
        self.tuning.is(mutant)
    }

    /// How many blocks there may be.
    pub(crate) fn blocks(&self) -> u32 {
        self.layout
            .bat_entries
            .min(self.layout.size.div_ceil(self.layout.block_size.into()) as u32)
    }

    /// How many blocks the file holds.
    pub(crate) fn held_blocks(&self) -> u32 {
        let held = (0..self.blocks()).filter(|block| self.entry(*block) != UNALLOCATED);
        // No more than `blocks`.
        held.count() as u32
    }

    /// The blocks that the file holds, in the order in which they lie there.
    pub(crate) fn blocks_in_file_order(&self) -> Vec<u32> {
        let held = (0..self.blocks()).filter(|block| self.entry(*block) != UNALLOCATED);
        let mut held: Vec<u32> = held.collect();
        held.sort_by_key(|block| self.entry(*block));
        held
    }

    /// The ranges of the disk that a block itself holds, in order: not those
    /// that are zero for having never been written, nor those of a parent.
    pub(crate) fn held_ranges(&self, block: u32) -> Result<Vec<Range<u64>>, IoError> {
        let _shared = self.share(block);
        let entry = self.entry(block);
        let start = self.block_start(block);
        if entry == UNALLOCATED || start >= self.layout.size {
            return Ok(Vec::new());
        }
        let end = (start + u64::from(self.layout.block_size)).min(self.layout.size);
        let Some(bitmap) = self.bitmap(block, entry)? else {
            return Ok(std::iter::once(start..end).collect());
        };
        let mut ranges = Vec::new();
        // A block has at most 2^19 sectors.
        let mut sectors = 0..((end - start) / SECTOR) as u32;
        while let Some((set, run_end)) = bitmap.run(sectors.clone()) {
            if set {
                let first = start + u64::from(sectors.start) * SECTOR;
                ranges.push(first..start + u64::from(run_end) * SECTOR);
            }
            sectors.start = run_end;
        }
        Ok(ranges)
    }

    fn restore_footers(&self, found: &Recognised) -> Result<(), IoError> {
        if found.head_is_lost {
            self.backing.write(&self.footer_bytes, 0)?;
            self.backing.sync()?;
        }
        if found.tail_is_lost {
            self.trim(&mut self.allocation())?;
        }
        Ok(())
    }

    fn allocation(&self) -> MutexGuard<'_, Allocation> {
        self.allocation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn bitmaps(&self) -> MutexGuard<'_, Bitmaps> {
        self.bitmaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe(&self, block: u32) -> &Stripe {
        &self.stripes[block as usize % STRIPES]
    }

    /// Keeps a block's region where it is for a reader; in a disk that is open
    /// for reading only nothing moves.
    fn share_to_read(&self, block: u32) -> Option<RwLockReadGuard<'_, ()>> {
        (!self.read_only).then(|| self.share(block))
    }

    fn share(&self, block: u32) -> RwLockReadGuard<'_, ()> {
        self.stripe(block)
            .lock
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn seize(&self, block: u32) -> RwLockWriteGuard<'_, ()> {
        let stripe = self.stripe(block);
        let seized = stripe.lock.write().unwrap_or_else(PoisonError::into_inner);
        stripe.placed.wait();
        seized
    }

    fn entry(&self, block: u32) -> u32 {
        self.map[block as usize].load(Ordering::SeqCst)
    }

    fn mark(&self, block: u32) -> &AtomicU8 {
        &self.marks[block as usize]
    }

    fn has_mark(&self, block: u32, mark: u8) -> bool {
        self.mark(block).load(Ordering::SeqCst) & mark != 0
    }

    /// Splits a request that lies within the disk at the borders of blocks.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> + use<> {
        let block_size = u64::from(self.layout.block_size);
        let mut done = 0;
        std::iter::from_fn(move || {
            let within = (offset + done) % block_size;
            let piece = (len - done).min(block_size - within);
            let block = (offset + done) / block_size;
            let start = done as usize;
            done += piece;
            // Blocks are numbered by the 32-bit count of the table's entries.
            (piece > 0).then(|| Piece {
                block: block as u32,
                within,
                span: start..start + piece as usize,
            })
        })
    }

    /// Refuses what may not be written, before anything is.
    fn admit(&self, offset: u64, len: u64) -> Result<(), IoError> {
        check_range(offset, len, self.layout.size)?;
        if self.read_only {
            return Err(IoError::ReadOnly);
        }
        self.backing.may_write().map(drop)
    }

    /// The bitmap of an allocated block; `None` when all its bits are set.
    /// Hold the block's stripe.
    fn bitmap(&self, block: u32, entry: u32) -> Result<Option<Arc<Bitmap>>, IoError> {
        if self.has_mark(block, FULL) {
            return Ok(None);
        }
        if let Some(bitmap) = self.bitmaps().get(block) {
            return Ok(Some(bitmap));
        }
        let mut bytes = vec![0; self.layout.bitmap_len() as usize];
        self.backing.read(&mut bytes, self.layout.region(entry))?;
        let bitmap = Bitmap::new(bytes, self.layout.block_sectors());
        self.survey(block, &bitmap);
        if bitmap.is_full() {
            self.mark(block).fetch_or(FULL, Ordering::SeqCst);
            return Ok(None);
        }
        Ok(Some(self.bitmaps().insert(block, entry, bitmap)))
    }

    /// Notes which parts of a block have bits set.
    fn survey(&self, block: u32, bitmap: &Bitmap) {
        let Some(parts) = self.parts.get(block as usize) else {
            return;
        };
        let size = self.layout.block_sectors() / PARTS;
        let set = (0..PARTS).filter(|part| {
            let sectors = part * size..(part + 1) * size;
            bitmap.run(sectors.clone()) != Some((false, sectors.end))
        });
        parts.store(set.fold(0, |mask, part| mask | 1 << part), Ordering::SeqCst);
        self.mark(block).fetch_or(SURVEYED, Ordering::SeqCst);
    }

    /// Whether a piece is known to have no bit set.
    fn is_clear(&self, piece: &Piece) -> bool {
        let Some(parts) = self.parts.get(piece.block as usize) else {
            return false;
        };
        if !self.has_mark(piece.block, SURVEYED) {
            return false;
        }
        let (sectors, size) = (piece.sectors(), self.layout.block_sectors() / PARTS);
        let last = sectors.end.saturating_sub(1).max(sectors.start) / size;
        // Both below 32: a piece lies within its block.
        let (first, last) = (sectors.start / size % PARTS, last % PARTS);
        let mask = u32::MAX >> (PARTS - 1 - last) & u32::MAX << first;
        parts.load(Ordering::SeqCst) & mask == 0
    }

    /// Reads a piece while the block's stripe is held.
    fn read_piece(&self, piece: &Piece, buf: &mut [u8]) -> Result<(), IoError> {
        let entry = self.entry(piece.block);
        let block_start = self.block_start(piece.block);
        if entry == UNALLOCATED || self.is_clear(piece) {
            return self.read_below(buf, block_start + piece.within);
        }
        let data = self.layout.data(entry);
        let Some(bitmap) = self.bitmap(piece.block, entry)? else {
            return self.backing.read(buf, data + piece.within);
        };
        let mut sectors = piece.sectors();
        while let Some((set, end)) = bitmap.run(sectors.clone()) {
            let from = (u64::from(sectors.start) * SECTOR).max(piece.within);
            let to = (u64::from(end) * SECTOR).min(piece.within + piece.len());
            let part = &mut buf[(from - piece.within) as usize..(to - piece.within) as usize];
            if set {
                self.backing.read(part, data + from)?;
            } else {
                self.read_below(part, block_start + from)?;
            }
            sectors.start = end;
        }
        Ok(())
    }

    fn write_piece(&self, piece: &Piece, buf: &[u8]) -> Result<(), IoError> {
        let shared = self.share(piece.block);
        let mut entry = self.entry(piece.block);
        if entry == UNALLOCATED && self.parent.is_some() {
            drop(shared);
            return self.write_clear_sectors(piece, buf);
        } else if entry == UNALLOCATED {
            entry = self.reserve(piece.block)?;
        } else if let Some(bitmap) = self.bitmap(piece.block, entry)?
            && !bitmap.all_set(piece.sectors())
        {
            drop(shared);
            return self.write_clear_sectors(piece, buf);
        }
        let result = self
            .backing
            .write(buf, self.layout.data(entry) + piece.within);
        self.settle_write(piece.block, result.is_ok(), shared);
        result
    }

    /// Notes the outcome of a write: a fresh reservation is kept by the first
    /// success, and given back by a failure before any.
    fn settle_write(&self, block: u32, success: bool, shared: RwLockReadGuard<'_, ()>) {
        if !self.has_mark(block, FRESH) {
            return;
        }
        if success {
            self.mark(block).fetch_and(!FRESH, Ordering::SeqCst);
        } else {
            drop(shared);
            let _seized = self.seize(block);
            // Others may have written to it meanwhile.
            if self.has_mark(block, FRESH) {
                self.take_region(block);
            }
        }
    }

    /// Writes to a block some sectors of which are marked as never written.
    /// What the file holds there is not to be seen, so sectors are written as
    /// a whole, and their bits set only once that is done.
    fn write_clear_sectors(&self, piece: &Piece, buf: &[u8]) -> Result<(), IoError> {
        let seized = self.seize(piece.block);
        let mut entry = self.entry(piece.block);
        if entry == UNALLOCATED && self.parent.is_some() {
            entry = self.reserve(piece.block)?;
        }
        let bitmap = if entry == UNALLOCATED {
            None
        } else {
            let bitmap = self.bitmap(piece.block, entry);
            if bitmap.is_err() {
                self.settle_seized(piece.block, false);
            }
            bitmap?
        };
        let Some(bitmap) = bitmap else {
            // Discarded or filled meanwhile.
            drop(seized);
            return self.write_piece(piece, buf);
        };
        let result = self.write_seized(piece, buf, entry, bitmap);
        self.settle_seized(piece.block, result.is_ok());
        result
    }

    /// Notes the outcome of the first change of a fresh reservation. Hold the
    /// block's stripe exclusively.
    fn settle_seized(&self, block: u32, success: bool) {
        if !self.has_mark(block, FRESH) {
            return;
        }
        if success {
            self.mark(block).fetch_and(!FRESH, Ordering::SeqCst);
        } else {
            self.take_region(block);
        }
    }

    /// Writes sectors as a whole, then sets their bits. Hold the block's
    /// stripe exclusively.
    fn write_seized(
        &self,
        piece: &Piece,
        buf: &[u8],
        entry: u32,
        bitmap: Arc<Bitmap>,
    ) -> Result<(), IoError> {
        let sectors = piece.sectors();
        let from = u64::from(sectors.start) * SECTOR;
        let to = u64::from(sectors.end) * SECTOR;
        let whole = Piece {
            block: piece.block,
            within: from,
            span: 0..(to - from) as usize,
        };
        let mut padded = Vec::new();
        let bytes = if whole.len() == piece.len() {
            buf
        } else {
            padded.resize(whole.span.len(), 0);
            self.read_piece(&whole, &mut padded)?;
            let start = (piece.within - from) as usize;
            padded[start..start + buf.len()].copy_from_slice(buf);
            &padded
        };
        if self.tuning.is(Mutant::BitmapBeforeData) {
            let mut bitmap = Bitmap::clone(&bitmap);
            bitmap.set(sectors.clone());
            self.backing
                .write(bitmap.bytes(), self.layout.region(entry))?;
        }
        self.backing.write(bytes, self.layout.data(entry) + from)?;
        self.set_bits(piece.block, entry, bitmap, sectors);
        Ok(())
    }

    /// Makes a piece of a block read as zeros and keeps its region.
    fn zero_piece(&self, piece: &Piece) -> Result<(), IoError> {
        if self.parent.is_some() {
            return self.zero_piece_of_child(piece);
        }
        let _shared = self.share(piece.block);
        let entry = self.entry(piece.block);
        if entry == UNALLOCATED {
            return Ok(());
        }
        // Sectors whose bits are clear are zero already; what the file holds
        // there may as well become zero.
        let result = self.backing.zero(
            self.layout.data(entry) + piece.within,
            piece.len(),
            Space::Release,
        );
        if result.is_ok() {
            self.mark(piece.block).fetch_and(!FRESH, Ordering::SeqCst);
        }
        result
    }

    /// Sets bits of a block's bitmap, see [`Bitmaps::set`].
    fn set_bits(&self, block: u32, entry: u32, bitmap: Arc<Bitmap>, sectors: Range<u32>) {
        let mut bitmaps = self.bitmaps();
        bitmaps.set(block, entry, bitmap, sectors);
        if bitmaps.too_many_dirty() {
            self.upkeep.commit.store(true, Ordering::SeqCst);
        }
    }

    /// Does what has become due. Hold no lock. Errors are for those to tell
    /// who need it done: a request for room, a flush.
    fn keep_up(&self) {
        if self.upkeep.room.swap(false, Ordering::SeqCst) {
            self.grow_ahead();
        }
        if self.upkeep.commit.swap(false, Ordering::SeqCst) {
            let _ = self.commits.join(|| self.commit());
        }
    }

    /// Whether a piece covers all of its block that belongs to the disk.
    fn is_whole(&self, piece: &Piece) -> bool {
        let visible = self.layout.size - self.block_start(piece.block);
        piece.within == 0 && piece.len() == visible.min(self.layout.block_size.into())
    }

    /// The first byte of a block on the disk.
    fn block_start(&self, block: u32) -> u64 {
        u64::from(block) * u64::from(self.layout.block_size)
    }
}

impl BlockDevice for Dynamic {
    fn size(&self) -> u64 {
        self.layout.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        check_range(offset, buf.len() as u64, self.layout.size)?;
        for piece in self.pieces(offset, buf.len() as u64) {
            let _shared = self.share_to_read(piece.block);
            let span = piece.span.clone();
            self.read_piece(&piece, &mut buf[span])?;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.admit(offset, buf.len() as u64)?;
        for piece in self.pieces(offset, buf.len() as u64) {
            let span = piece.span.clone();
            self.write_piece(&piece, &buf[span])?;
            self.keep_up();
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), IoError> {
        if self.read_only {
            return Ok(());
        }
        self.backing.may_write().map(drop)?;
        self.commits.join(|| self.commit())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.admit(offset, len)?;
        for piece in self.pieces(offset, len) {
            if self.is_whole(&piece) && self.may_be_taken(&piece)? {
                let _seized = self.seize(piece.block);
                self.take_region(piece.block);
            } else {
                self.zero_piece(&piece)?;
            }
            self.keep_up();
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.admit(offset, len)?;
        self.pieces(offset, len).try_for_each(|piece| {
            self.zero_piece(&piece)?;
            self.keep_up();
            Ok(())
        })
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        check_range(offset, len, self.layout.size)?;
        let mut extents = Extents::new(offset);
        for piece in self.pieces(offset, len) {
            if extents.is_full() {
                break;
            }
            let _shared = self.share(piece.block);
            let entry = self.entry(piece.block);
            let start = offset + piece.span.start as u64;
            if entry == UNALLOCATED {
                self.push_below(&mut extents, start..start + piece.len(), ExtentKind::Hole)?;
                continue;
            }
            let bitmap = self.bitmap(piece.block, entry)?;
            let mut sectors = piece.sectors();
            let block_start = start - piece.within;
            let data = self.layout.data(entry);
            loop {
                let run = match &bitmap {
                    None if sectors.is_empty() => None,
                    None => Some((true, sectors.end)),
                    Some(bitmap) => bitmap.run(sectors.clone()),
                };
                let Some((set, end)) = run else { break };
                let from = (u64::from(sectors.start) * SECTOR).max(piece.within);
                let to = (u64::from(end) * SECTOR).min(piece.within + piece.len());
                let range = block_start + from..block_start + to;
                if set {
                    extents.push_file(&self.backing, data + from, range, ExtentKind::Zero)?;
                } else {
                    self.push_below(&mut extents, range, ExtentKind::Zero)?;
                }
                sectors.start = end;
            }
        }
        Ok(extents.finish())
    }

    fn locate(&self, intent: Intent, offset: u64, len: u64) -> Option<Place> {
        self.place_of(intent, offset, len)
    }
}

impl Image for Dynamic {
    fn put_away(&self) -> Result<(), IoError> {
        if self.read_only {
            return Ok(());
        }
        self.flush()?;
        self.release_slack()
    }

    fn growth(&self, range: Range<u64>, after: u64) -> Result<u64, IoError> {
        self.growth_within(range, after)
    }

    #[cfg(test)]
    fn bitmap_bytes(&self) -> Vec<(usize, usize)> {
        let mut all = vec![self.bitmaps().kept_bytes()];
        all.extend(self.parent.iter().flat_map(|parent| parent.bitmap_bytes()));
        all
    }

    fn write_behind(&self, offset: u64, len: u64) {
        let mut run: Option<Range<u64>> = None;
        for piece in self.pieces(offset, len) {
            let entry = self.entry(piece.block);
            if entry == UNALLOCATED {
                continue;
            }
            // With the bitmap: neighbours follow on each other.
            let end = self.layout.data(entry) + piece.within + piece.len();
            let start = match piece.within {
                0 => self.layout.region(entry),
                within => self.layout.data(entry) + within,
            };
            match &mut run {
                Some(run) if start >= run.end && start - run.end < 4096 => run.end = end,
                _ => {
                    if let Some(run) = run.replace(start..end) {
                        self.backing.write_behind(run);
                    }
                }
            }
        }
        if let Some(run) = run {
            self.backing.write_behind(run);
        }
    }
}
