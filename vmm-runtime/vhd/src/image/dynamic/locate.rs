//! Where a request lies in the file, for those who leave it to the kernel.

use std::sync::TryLockError;

use super::{Dynamic, FRESH, FULL};
use crate::block::check_range;
use crate::format::bat::UNALLOCATED;
use crate::queue::{Intent, Place};

impl Dynamic {
    /// The place of a range that lies in one block, all sectors of which the
    /// file holds; or, to read it, an ancestor's file. `None` for all that
    /// takes more: allocating, looking at a bitmap that isn't in memory,
    /// waiting for a lock.
    pub(super) fn place_of(&self, intent: Intent, offset: u64, len: u64) -> Option<Place> {
        check_range(offset, len, self.layout.size).ok()?;
        let mut pieces = self.pieces(offset, len);
        let (piece, None) = (pieces.next()?, pieces.next()) else {
            return None;
        };
        if self.read_only {
            if intent == Intent::Write {
                return None;
            }
            return self.place_of_piece(intent, &piece, offset);
        }
        let stripe = self.stripe(piece.block);
        let _shared = match stripe.lock.try_read() {
            Ok(shared) => shared,
            Err(TryLockError::Poisoned(shared)) => shared.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let place = self.place_of_piece(intent, &piece, offset)?;
        Some(place.holding(stripe.placed.hold()))
    }

    fn place_of_piece(&self, intent: Intent, piece: &super::Piece, offset: u64) -> Option<Place> {
        let entry = self.entry(piece.block);
        if entry == UNALLOCATED || self.is_clear(piece) {
            return self.place_below(intent, offset, piece.len());
        }
        // A fresh region is taken back if its first write fails.
        if intent == Intent::Write && self.has_mark(piece.block, FRESH) {
            return None;
        }
        if !self.has_mark(piece.block, FULL) {
            let bitmap = self.bitmaps().get(piece.block)?;
            match bitmap.run(piece.sectors()) {
                Some((true, end)) if end == piece.sectors().end => {}
                Some((false, end)) if end == piece.sectors().end => {
                    return self.place_below(intent, offset, piece.len());
                }
                _ => return None,
            }
        }
        let place = self.layout.data(entry) + piece.within;
        match intent {
            Intent::Read => self.backing.place_to_read(place),
            Intent::Write => self.backing.place_to_write(place),
        }
    }

    fn place_below(&self, intent: Intent, offset: u64, len: u64) -> Option<Place> {
        match intent {
            // Behind the parent's end it knows no place.
            Intent::Read => self.parent.as_ref()?.locate(intent, offset, len),
            Intent::Write => None,
        }
    }
}
