//! Where blocks go: reserving regions, taking them back, growing the file.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

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
    /// Whether a growth that failed may have left something behind `footer`.
    rubbish_behind: bool,
    /// Whether the last growth failed, so that the next one is as small as can
    /// be.
    small_steps: bool,
    /// Whether the file is being made longer: `footer` changes hands when
    /// that is over.
    growing: bool,
}

/// Files grow by an eighth of their length, at least by what is tuned and at
/// most by so many bytes: a growth costs a sync, and while the room is not
/// used it costs nothing else.
const MAX_GROWTH: u64 = 512 << 20;

/// So many changed entries at most wait for a flush: more are committed
/// without one.
const MAX_CHANGED: usize = 1 << 16;

impl Allocation {
    pub(super) fn new(table: Vec<u32>, used_end: u64, footer: u64) -> Allocation {
        Allocation {
            table,
            changed: BTreeSet::new(),
            freed: Vec::new(),
            free: Vec::new(),
            next: used_end,
            footer,
            // A crash may have left data there that no entry names.
            slack_is_zero: false,
            rubbish_behind: false,
            small_steps: false,
            growing: false,
        }
    }

    /// How much the file is to grow by.
    fn step(&self, least: u64) -> u64 {
        if self.small_steps {
            return 0;
        }
        least.max((self.footer / 8).min(MAX_GROWTH))
    }
}

impl Dynamic {
    /// Gives a block a region if it has none, and returns it. Its entry goes
    /// to disk with a later commit. Hold the block's stripe.
    pub(super) fn reserve(&self, block: u32) -> Result<u32, IoError> {
        let mut allocation = self.allocation();
        let entry = loop {
            let entry = self.entry(block);
            if entry != UNALLOCATED {
                return Ok(entry);
            }
            if let Some(entry) = allocation.free.pop() {
                break entry;
            }
            let (entry, end) = self.next_region(&mut allocation)?;
            if end <= allocation.footer {
                allocation.next = end;
                let room = allocation.footer - end;
                if !allocation.growing && room < allocation.step(self.tuning.growth) / 2 {
                    self.upkeep.room.store(true, Ordering::SeqCst);
                }
                break entry;
            }
            // What waited in there may have been given a region meanwhile, or
            // there may be a free one.
            let (again, grown) = self.grow(allocation, end);
            grown?;
            allocation = again;
        };
        allocation.changed.insert(block);
        if allocation.changed.len() >= MAX_CHANGED {
            self.upkeep.commit.store(true, Ordering::SeqCst);
        }
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
        allocation.changed.insert(block);
        if self.tuning.is(Mutant::ReuseBeforeDurable) {
            allocation.free.push(entry);
        } else {
            allocation.freed.push(entry);
        }
        self.bitmaps().remove(block);
    }

    /// The region behind those in use, and where it ends. There may be no
    /// room for it yet.
    fn next_region(&self, allocation: &mut Allocation) -> Result<(u32, u64), IoError> {
        let entry = self
            .layout
            .aligned_entry(allocation.next)
            .ok_or_else(|| self.backing.format_is_full())?;
        if !allocation.slack_is_zero {
            let nothing = allocation.footer == allocation.next && !allocation.rubbish_behind;
            if !nothing && !self.tuning.is(Mutant::TrustSlack) {
                self.trim(allocation)?;
            }
            allocation.slack_is_zero = true;
        }
        Ok((entry, self.layout.region(entry) + self.layout.region_len()))
    }

    /// Makes room up to `end` and some further on; or waits until another
    /// thread has done so, which may not be far enough. Others go on using
    /// the room there is.
    fn grow<'a>(
        &'a self,
        mut allocation: MutexGuard<'a, Allocation>,
        end: u64,
    ) -> (MutexGuard<'a, Allocation>, Result<(), IoError>) {
        if allocation.growing {
            return (self.wait_for_growth(allocation), Ok(()));
        }
        let old = allocation.footer;
        let far = old
            .saturating_add(allocation.step(self.tuning.growth))
            .max(end)
            .next_multiple_of(SECTOR);
        allocation.growing = true;
        drop(allocation);
        let mut moved = self.move_footer(old, far);
        let mut allocation = self.allocation();
        allocation.growing = false;
        self.grown.notify_all();
        allocation.small_steps = moved.is_err();
        if moved.is_ok() {
            allocation.footer = far;
        } else if !self.tuning.is(Mutant::TrustFailedGrowth) {
            // A part of a footer, where a region may come to lie.
            allocation.slack_is_zero = false;
            allocation.rubbish_behind = true;
        }
        if far > end && matches!(moved, Err(IoError::NoSpace { .. })) {
            // Such a long file may be too much for the file system: the
            // caller looks again, and takes a small step.
            moved = Ok(());
        }
        (allocation, moved)
    }

    /// Moves the footer from the place `old` further back. It is durable in
    /// its new place before its old one becomes part of the room.
    fn move_footer(&self, old: u64, new: u64) -> Result<(), IoError> {
        self.backing.write(&self.footer_bytes, new)?;
        if !self.tuning.is(Mutant::GrowUnsynced) {
            self.backing.sync()?;
        }
        self.backing.write(&[0; footer::LEN], old)
    }

    fn wait_for_growth<'a>(
        &self,
        mut allocation: MutexGuard<'a, Allocation>,
    ) -> MutexGuard<'a, Allocation> {
        while allocation.growing {
            allocation = self
                .grown
                .wait(allocation)
                .unwrap_or_else(PoisonError::into_inner);
        }
        allocation
    }

    /// Makes room before it is needed. Not being able to is for those to say
    /// who need it.
    pub(super) fn grow_ahead(&self) {
        let allocation = self.allocation();
        let room = allocation.footer.saturating_sub(allocation.next);
        if !allocation.growing
            && allocation.slack_is_zero
            && room < allocation.step(self.tuning.growth) / 2
        {
            let end = allocation.footer;
            let _ = self.grow(allocation, end);
        }
    }

    /// Ends the file where the last region ends. What lay behind it, if
    /// anything, is named by no entry: reserved space, or left by a crash.
    pub(super) fn trim(&self, allocation: &mut Allocation) -> Result<(), IoError> {
        let footer = allocation.next;
        if !self.tuning.is(Mutant::TrustFailedTrim) {
            // Until it is over: a footer where a region may come to lie.
            allocation.slack_is_zero = false;
            allocation.rubbish_behind = true;
        }
        self.backing.write(&self.footer_bytes, footer)?;
        self.backing.sync()?;
        // Behind the sync: if the file were cut first, a crash could leave it
        // with no footer at its end.
        self.backing.set_len(footer + footer::LEN as u64)?;
        self.backing.sync()?;
        allocation.footer = footer;
        allocation.slack_is_zero = true;
        allocation.rubbish_behind = false;
        Ok(())
    }

    /// Gives back what was reserved for growth and is not used, if all that
    /// happened is durable.
    pub(super) fn release_slack(&self) -> Result<(), IoError> {
        let mut allocation = self.wait_for_growth(self.allocation());
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
