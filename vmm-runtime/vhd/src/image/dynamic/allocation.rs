//! Where blocks go: reserving regions, taking them back, growing the file.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use super::{Dynamic, FRESH, FULL};
use crate::block::IoError;
use crate::format::SECTOR;
use crate::format::bat::UNALLOCATED;
use crate::format::bitmap::Bitmap;
use crate::format::footer;
use crate::image::Mutant;

/// What is reserved, freed, and not durable yet.
pub(super) struct Allocation {
    /// The table as it is on disk, except for `changed` blocks of a commit
    /// that failed half-way.
    pub(super) table: Vec<u32>,
    /// Regions of blocks whose entry is not durable.
    pub(super) pending: HashMap<u32, u32>,
    /// Blocks whose entry on disk may differ from what it should be.
    pub(super) changed: BTreeSet<u32>,
    /// Regions that no block has any more, while the table on disk may still
    /// name them.
    pub(super) freed: Vec<u32>,
    /// Regions that no block has, that the table on disk does not name, and
    /// that are zero.
    pub(super) free: Vec<u32>,
    /// Where the next region may begin: the end of all that are in use.
    next: u64,
    /// Where the footer is, and so the end of what may be used.
    footer: u64,
    /// Whether all between `next` and `footer` is known to be zero.
    slack_is_zero: bool,
}

impl Allocation {
    pub(super) fn new(table: Vec<u32>, used_end: u64, footer: u64) -> Allocation {
        Allocation {
            table,
            pending: HashMap::new(),
            changed: BTreeSet::new(),
            freed: Vec::new(),
            free: Vec::new(),
            next: used_end,
            footer,
            // A crash may have left data there that no entry names.
            slack_is_zero: false,
        }
    }
}

impl Dynamic {
    /// Gives a block a region if it has none, and returns it. Its entry goes
    /// to disk with a later commit. Hold the block's stripe.
    pub(super) fn reserve(&self, block: u32) -> Result<u32, IoError> {
        let mut allocation = self.allocation();
        let entry = self.entry(block);
        if entry != UNALLOCATED {
            return Ok(entry);
        }
        let entry = match allocation.free.pop() {
            Some(entry) => entry,
            None => self.next_region(&mut allocation)?,
        };
        allocation.pending.insert(block, entry);
        allocation.changed.insert(block);
        let marks = if self.parent.is_none() || self.tuning.is(Mutant::FillChildBlocks) {
            FULL | FRESH
        } else {
            let bitmap = Bitmap::new(
                vec![0; self.layout.bitmap_len() as usize],
                self.layout.block_sectors(),
            );
            self.bitmaps().insert(block, entry, bitmap);
            FRESH
        };
        self.mark(block).store(marks, Ordering::SeqCst);
        self.map[block as usize].store(entry, Ordering::SeqCst);
        Ok(entry)
    }

    /// Takes a block's region away, if it has one. The region can be used
    /// again after the next commit. Hold the block's stripe exclusively.
    pub(super) fn take_region(&self, block: u32) {
        let mut allocation = self.allocation();
        let entry = self.entry(block);
        if entry == UNALLOCATED {
            return;
        }
        if !self.tuning.is(Mutant::KeepFailedReservation) || !self.has_mark(block, FRESH) {
            self.map[block as usize].store(UNALLOCATED, Ordering::SeqCst);
            self.mark(block).store(0, Ordering::SeqCst);
        }
        allocation.pending.remove(&block);
        allocation.changed.insert(block);
        if self.tuning.is(Mutant::ReuseBeforeDurable) {
            allocation.free.push(entry);
        } else {
            allocation.freed.push(entry);
        }
        self.bitmaps().remove(block);
    }

    /// A region at the end of those in use, after making the file longer if
    /// it must be.
    fn next_region(&self, allocation: &mut Allocation) -> Result<u32, IoError> {
        let entry = self
            .layout
            .aligned_entry(allocation.next)
            .ok_or_else(|| self.backing.format_is_full())?;
        let end = self.layout.region(entry) + self.layout.region_len();
        if !allocation.slack_is_zero {
            if allocation.footer != allocation.next && !self.tuning.is(Mutant::TrustSlack) {
                self.trim(allocation)?;
            }
            allocation.slack_is_zero = true;
        }
        if end > allocation.footer {
            self.grow(allocation, end)?;
        }
        allocation.next = end;
        Ok(entry)
    }

    /// Makes room up to `end` and some further on. The footer is durable in
    /// its new place before its old one becomes part of the room.
    fn grow(&self, allocation: &mut Allocation, end: u64) -> Result<(), IoError> {
        let footer = end
            .max(allocation.footer.saturating_add(self.tuning.growth))
            .next_multiple_of(SECTOR);
        self.backing.write(&self.footer_bytes, footer)?;
        self.backing.sync()?;
        self.backing.write(&[0; footer::LEN], allocation.footer)?;
        allocation.footer = footer;
        Ok(())
    }

    /// Ends the file where the last region ends. What lay behind it, if
    /// anything, is named by no entry: reserved space, or left by a crash.
    pub(super) fn trim(&self, allocation: &mut Allocation) -> Result<(), IoError> {
        let footer = allocation.next;
        self.backing.write(&self.footer_bytes, footer)?;
        self.backing.sync()?;
        // Behind the sync: if the file were cut first, a crash could leave it
        // with no footer at its end.
        self.backing.set_len(footer + footer::LEN as u64)?;
        self.backing.sync()?;
        allocation.footer = footer;
        allocation.slack_is_zero = true;
        Ok(())
    }

    /// Gives back what was reserved for growth and is not used, if all that
    /// happened is durable.
    pub(super) fn release_slack(&self) -> Result<(), IoError> {
        let mut allocation = self.allocation();
        if !allocation.changed.is_empty() || !allocation.freed.is_empty() {
            return Ok(());
        }
        let used = allocation
            .table
            .iter()
            .filter(|entry| **entry != UNALLOCATED);
        let used_end = used
            .map(|entry| self.layout.region(*entry) + self.layout.region_len())
            .max();
        let end = used_end.unwrap_or(0).max(self.layout.metadata_end());
        if end == allocation.footer {
            return Ok(());
        }
        allocation
            .free
            .retain(|entry| self.layout.region(*entry) < end);
        allocation.next = end;
        self.trim(&mut allocation)
    }
}
