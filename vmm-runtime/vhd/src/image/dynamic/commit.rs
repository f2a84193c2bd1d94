//! Making what was acknowledged durable: one commit for all flushes that
//! wait, two syncs for one commit.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};

use super::bitmaps::DirtyBitmap;
use super::{Dynamic, FRESH};
use crate::block::IoError;
use crate::format::SECTOR;
use crate::format::bat::UNALLOCATED;
use crate::image::Mutant;
use crate::storage::Space;

/// Entries in a sector of the table.
const PER_SECTOR: u32 = SECTOR as u32 / 4;

/// The changes that one commit makes durable: what had completed when it
/// began.
struct Frozen {
    /// Blocks and their new entries, by block.
    entries: Vec<(u32, u32)>,
    bitmaps: Vec<DirtyBitmap>,
    /// Regions that are free once the entries are durable.
    freed: Vec<u32>,
}

impl Dynamic {
    /// Makes everything durable that completed before the call. One at a
    /// time: called through [`GroupCommit`].
    pub(super) fn commit(&self) -> Result<(), IoError> {
        let frozen = self.freeze();
        let result = self.write_frozen(&frozen);
        match result {
            Ok(()) => self.settle(frozen),
            Err(_) => self.thaw(frozen),
        }
        result
    }

    fn freeze(&self) -> Frozen {
        let mut allocation = self.allocation();
        let mut entries = Vec::with_capacity(allocation.changed.len());
        let mut later = BTreeSet::new();
        for block in std::mem::take(&mut allocation.changed) {
            let entry = if self.has_mark(block, FRESH) {
                // Nothing is in it yet, and a failure may still take it back.
                later.insert(block);
                UNALLOCATED
            } else {
                self.entry(block)
            };
            entries.push((block, entry));
        }
        allocation.changed = later;
        let freed = std::mem::take(&mut allocation.freed);
        let bitmaps = self.bitmaps().begin_write();
        Frozen {
            entries,
            bitmaps,
            freed,
        }
    }

    fn write_frozen(&self, frozen: &Frozen) -> Result<(), IoError> {
        // The bitmaps of new blocks are data as yet: no entry names them.
        // (Those of a child are zero, and what is set in them comes below.)
        let ones = vec![0xff; self.layout.bitmap_len() as usize];
        let fills = self.parent.is_none() || self.tuning.is(Mutant::FillChildBlocks);
        for &(_, entry) in frozen
            .entries
            .iter()
            .filter(|(_, entry)| fills && *entry != UNALLOCATED)
        {
            self.backing.write(&ones, self.layout.region(entry))?;
        }
        if self.tuning.is(Mutant::BitmapsBeforeSync) {
            self.write_bitmaps(&frozen.bitmaps)?;
        }
        if self.tuning.is(Mutant::TableBeforeData) {
            self.write_table(&frozen.entries)?;
        }
        if !self.tuning.is(Mutant::SkipDataSync) {
            self.backing.sync()?;
        }
        if frozen.entries.is_empty() && frozen.bitmaps.is_empty() {
            // What was written during the sync is for the next one.
            return Ok(());
        }
        self.write_bitmaps(&frozen.bitmaps)?;
        self.write_table(&frozen.entries)?;
        if !self.tuning.is(Mutant::SkipMetadataSync) {
            // Costs nothing when nothing was written since the first.
            self.backing.sync()?;
        }
        Ok(())
    }

    fn write_bitmaps(&self, bitmaps: &[DirtyBitmap]) -> Result<(), IoError> {
        bitmaps
            .iter()
            .try_for_each(|DirtyBitmap { entry, bitmap, .. }| {
                self.backing
                    .write(bitmap.bytes(), self.layout.region(*entry))
            })
    }

    /// Writes the sectors of the table that hold `entries`, neighbours in one
    /// go.
    fn write_table(&self, entries: &[(u32, u32)]) -> Result<(), IoError> {
        let mut rest = entries;
        while let Some(&(first, _)) = rest.first() {
            let mut count = 1;
            while rest
                .get(count)
                .is_some_and(|(block, _)| block / PER_SECTOR - rest[count - 1].0 / PER_SECTOR <= 1)
            {
                count += 1;
            }
            let (run, behind) = rest.split_at(count);
            rest = behind;
            let from = first / PER_SECTOR * PER_SECTOR;
            let end = run[count - 1].0 / PER_SECTOR * PER_SECTOR + PER_SECTOR;
            // What pads the last sector is unallocated, as in a new disk.
            let mut entries = vec![UNALLOCATED; (end - from) as usize];
            {
                let allocation = self.allocation();
                let known =
                    &allocation.table[from as usize..allocation.table.len().min(end as usize)];
                entries[..known.len()].copy_from_slice(known);
            }
            for &(block, entry) in run {
                entries[(block - from) as usize] = entry;
            }
            let bytes: Vec<u8> = entries
                .iter()
                .flat_map(|entry| entry.to_be_bytes())
                .collect();
            self.backing
                .write(&bytes, self.layout.bat_offset + u64::from(from) * 4)?;
        }
        Ok(())
    }

    /// The commit is durable.
    fn settle(&self, frozen: Frozen) {
        {
            let mut allocation = self.allocation();
            for &(block, entry) in &frozen.entries {
                allocation.table[block as usize] = entry;
            }
            self.bitmaps().end_write(&frozen.bitmaps, true);
        }
        for entry in frozen.freed {
            let punched = if self.tuning.is(Mutant::ReuseUnpunched) {
                Ok(())
            } else {
                self.backing.zero(
                    self.layout.region(entry),
                    self.layout.region_len(),
                    Space::Release,
                )
            };
            let mut allocation = self.allocation();
            match punched {
                Ok(()) => allocation.free.push(entry),
                // Tried again after the next commit.
                Err(_) => allocation.freed.push(entry),
            }
        }
    }

    /// The commit failed: which of its entries are on disk is not known, so
    /// all of them are to be written again.
    fn thaw(&self, frozen: Frozen) {
        let mut allocation = self.allocation();
        allocation
            .changed
            .extend(frozen.entries.iter().map(|(block, _)| *block));
        allocation.freed.extend(frozen.freed);
        self.bitmaps().end_write(&frozen.bitmaps, false);
    }
}

/// Lets callers that wait at the same time share one commit.
#[derive(Default)]
pub(super) struct GroupCommit {
    state: Mutex<State>,
    over: Condvar,
}

struct State {
    /// Commits that have begun.
    begun: u64,
    /// Whether the last of them is still under way.
    under_way: bool,
    /// How the last one that is over ended.
    last: Result<(), IoError>,
}

impl Default for State {
    fn default() -> State {
        State {
            begun: 0,
            under_way: false,
            last: Ok(()),
        }
    }
}

impl GroupCommit {
    /// Returns the outcome of a commit that began after the call did.
    pub(super) fn join(&self, commit: impl FnOnce() -> Result<(), IoError>) -> Result<(), IoError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // The one under way, if any, may have begun too early for us.
        let ours = state.begun + 1;
        loop {
            if state.under_way {
                state = self
                    .over
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            } else if state.begun >= ours {
                // Ours is over, and maybe others after it: what those made
                // durable includes what ours should have.
                return state.last.clone();
            } else {
                break;
            }
        }
        state.begun += 1;
        state.under_way = true;
        drop(state);
        let result = commit();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.under_way = false;
        state.last = result.clone();
        self.over.notify_all();
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn those_who_wait_share_the_next_commit() {
        let group = GroupCommit::default();
        let commits = AtomicU32::new(0);
        let (begun, go_on) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                group.join(|| {
                    begun.wait();
                    go_on.wait();
                    Ok(())
                })
            });
            begun.wait();
            // Ten callers that come during the first commit.
            let waiting: Vec<_> = (0..10)
                .map(|_| {
                    scope.spawn(|| {
                        group.join(|| {
                            commits.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        })
                    })
                })
                .collect();
            // None of them can be served by the one under way.
            assert_eq!(commits.load(Ordering::SeqCst), 0);
            go_on.wait();
            for caller in waiting {
                caller.join().unwrap().unwrap();
            }
        });
        // One if all came in time; a late one needs its own.
        let commits = commits.into_inner();
        assert!((1..=10).contains(&commits), "{commits}");
    }

    #[test]
    fn a_failure_is_told_to_its_caller_and_not_to_the_next() {
        let group = GroupCommit::default();
        assert!(matches!(
            group.join(|| Err(IoError::GateClosed)),
            Err(IoError::GateClosed)
        ));
        assert!(group.join(|| Ok(())).is_ok());
    }
}
