//! The bitmaps of blocks some sectors of which were never written. Disks of
//! our own have none: they mark all sectors when a block is allocated.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use crate::format::bitmap::Bitmap;

/// A cache that writes back. Only clean bitmaps may leave it; how many of
/// them stay is bounded.
pub(super) struct Bitmaps {
    slots: HashMap<u32, Slot>,
    /// Blocks whose bitmap has bits that are not on disk.
    dirty: BTreeSet<u32>,
    bytes: usize,
    limit: usize,
}

struct Slot {
    /// The block's region, where the bitmap is on disk.
    entry: u32,
    bitmap: Arc<Bitmap>,
    /// Is being written by a commit.
    writing: bool,
}

/// A bitmap that a commit is to write.
pub(super) struct DirtyBitmap {
    pub(super) block: u32,
    pub(super) entry: u32,
    pub(super) bitmap: Arc<Bitmap>,
}

impl Bitmaps {
    /// A cache that keeps clean bitmaps of up to `limit` bytes.
    pub(super) fn new(limit: usize) -> Bitmaps {
        Bitmaps {
            slots: HashMap::new(),
            dirty: BTreeSet::new(),
            bytes: 0,
            limit,
        }
    }

    /// The bytes of the bitmaps that it keeps, and the limit of those that are
    /// clean.
    #[cfg(test)]
    pub(super) fn kept_bytes(&self) -> (usize, usize) {
        (self.bytes, self.limit)
    }

    pub(super) fn get(&self, block: u32) -> Option<Arc<Bitmap>> {
        self.slots.get(&block).map(|slot| Arc::clone(&slot.bitmap))
    }

    /// Keeps a bitmap that was read from disk, unless another thread was
    /// faster, and returns the one that is kept.
    pub(super) fn insert(&mut self, block: u32, entry: u32, bitmap: Bitmap) -> Arc<Bitmap> {
        Arc::clone(&self.keep(block, entry, Arc::new(bitmap)).bitmap)
    }

    fn keep(&mut self, block: u32, entry: u32, bitmap: Arc<Bitmap>) -> &mut Slot {
        if !self.slots.contains_key(&block) {
            self.make_room(bitmap.bytes().len());
            self.bytes += bitmap.bytes().len();
        }
        self.slots.entry(block).or_insert(Slot {
            entry,
            bitmap,
            writing: false,
        })
    }

    fn make_room(&mut self, len: usize) {
        if self.bytes + len <= self.limit {
            return;
        }
        // In one sweep down to half, so that sweeps are rare.
        let mut excess = (self.bytes + len).saturating_sub(self.limit / 2);
        self.slots.retain(|block, slot| {
            let keep = self.dirty.contains(block) || slot.writing || excess == 0;
            if !keep {
                let len = slot.bitmap.bytes().len();
                excess = excess.saturating_sub(len);
                self.bytes -= len;
            }
            keep
        });
    }

    /// Sets bits of a block's bitmap, which was `bitmap` until now. (The
    /// cache may have dropped it meanwhile.) Hold the block's stripe
    /// exclusively.
    pub(super) fn set(&mut self, block: u32, entry: u32, bitmap: Arc<Bitmap>, sectors: Range<u32>) {
        let slot = self.keep(block, entry, bitmap);
        Arc::make_mut(&mut slot.bitmap).set(sectors);
        self.dirty.insert(block);
    }

    /// Whether the bitmaps that wait to be written take up half of the cache.
    pub(super) fn too_many_dirty(&self) -> bool {
        let one = self.bytes / self.slots.len().max(1);
        self.dirty.len() * one > self.limit / 2
    }

    /// Forgets a block's bitmap.
    pub(super) fn remove(&mut self, block: u32) {
        if let Some(slot) = self.slots.remove(&block) {
            self.bytes -= slot.bitmap.bytes().len();
        }
        self.dirty.remove(&block);
    }

    /// The bitmaps that a commit has to write, as they are now.
    pub(super) fn begin_write(&mut self) -> Vec<DirtyBitmap> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .filter_map(|block| {
                let slot = self.slots.get_mut(&block)?;
                slot.writing = true;
                Some(DirtyBitmap {
                    block,
                    entry: slot.entry,
                    bitmap: Arc::clone(&slot.bitmap),
                })
            })
            .collect()
    }

    /// The end of that: whether they are durable now.
    pub(super) fn end_write(&mut self, written: &[DirtyBitmap], durable: bool) {
        for DirtyBitmap { block, entry, .. } in written {
            // Unless the block has another region by now.
            if let Some(slot) = self.slots.get_mut(block)
                && slot.entry == *entry
            {
                slot.writing = false;
                if !durable {
                    self.dirty.insert(*block);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap() -> Bitmap {
        Bitmap::new(vec![0; 512], 4096)
    }

    #[test]
    fn clean_bitmaps_are_bounded_and_dirty_ones_stay() {
        let mut bitmaps = Bitmaps::new(4 * 512);
        bitmaps.set(0, 0, Arc::new(bitmap()), 0..1);
        for block in 1..100 {
            bitmaps.insert(block, block, bitmap());
            assert!(bitmaps.bytes <= 4 * 512);
            assert_eq!(bitmaps.bytes, bitmaps.slots.len() * 512);
        }
        assert!(bitmaps.get(0).is_some_and(|bitmap| bitmap.is_set(0)));
        let written = bitmaps.begin_write();
        assert_eq!(written.len(), 1);
        for block in 100..200 {
            bitmaps.insert(block, block, bitmap());
        }
        assert!(bitmaps.get(0).is_some(), "one that is being written stays");
        bitmaps.end_write(&written, true);
        bitmaps.make_room(4 * 512);
        assert!(bitmaps.get(0).is_none());
    }

    #[test]
    fn a_failed_write_leaves_them_dirty() {
        let mut bitmaps = Bitmaps::new(1 << 20);
        let clean = bitmaps.insert(3, 7, bitmap());
        bitmaps.set(3, 7, clean, 5..6);
        let written = bitmaps.begin_write();
        assert!(bitmaps.begin_write().is_empty());
        bitmaps.end_write(&written, false);
        assert_eq!(bitmaps.begin_write().len(), 1);
    }
}
