//! What a differencing disk does otherwise: what it holds nothing of is the
//! parent's, and zeros over the parent's data have to be held.

use std::ops::Range;

use super::{Dynamic, Piece};
use crate::block::{Extent, ExtentKind, IoError};
use crate::format::SECTOR;
use crate::format::bat::UNALLOCATED;
use crate::image::Mutant;
use crate::image::extents::Extents;
use crate::storage::Space;

/// Zeros for the edges of a range that isn't of whole sectors.
static ZEROS: [u8; SECTOR as usize] = [0; SECTOR as usize];

impl Dynamic {
    /// Reads what this disk holds nothing of: the parent's bytes, and zeros
    /// where there is no parent or behind its end.
    pub(super) fn read_below(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        let Some(parent) = &self.parent else {
            buf.fill(0);
            return Ok(());
        };
        let len = parent.size().saturating_sub(offset).min(buf.len() as u64);
        let (inside, behind) = buf.split_at_mut(len as usize);
        behind.fill(0);
        if inside.is_empty() {
            return Ok(());
        }
        parent.read_at(inside, offset)
    }

    /// Adds what is below in the range: the parent's extents, or `none` where
    /// there is no parent, and a hole behind its end.
    pub(super) fn push_below(
        &self,
        extents: &mut Extents,
        range: Range<u64>,
        none: ExtentKind,
    ) -> Result<(), IoError> {
        let Some(parent) = &self.parent else {
            extents.push(range.end, none);
            return Ok(());
        };
        let end = range.end.min(parent.size());
        let mut at = range.start;
        while at < end && !extents.is_full() {
            for Extent { offset, len, kind } in parent.block_status(at, end - at)? {
                at = offset + len;
                extents.push(at, kind);
            }
        }
        extents.push(range.end, ExtentKind::Hole);
        Ok(())
    }

    /// Whether an ancestor holds data in the range.
    fn has_data_below(&self, range: Range<u64>) -> Result<bool, IoError> {
        let Some(parent) = &self.parent else {
            return Ok(false);
        };
        let end = range.end.min(parent.size());
        let mut at = range.start;
        while at < end {
            for Extent { offset, len, kind } in parent.block_status(at, end - at)? {
                if kind == ExtentKind::Data {
                    return Ok(true);
                }
                at = offset + len;
            }
        }
        Ok(false)
    }

    /// Whether the region of a block may be taken away when all of the block
    /// is to be zero: not when that would uncover the parent's data.
    pub(super) fn may_be_taken(&self, piece: &Piece) -> Result<bool, IoError> {
        if self.parent.is_none() || self.tuning.is(Mutant::UncoverParent) {
            return Ok(true);
        }
        let start = self.block_start(piece.block);
        Ok(!self.has_data_below(start..start + piece.len())?)
    }

    /// Makes a piece of a child read as zeros, which takes a region where an
    /// ancestor holds data.
    pub(super) fn zero_piece_of_child(&self, piece: &Piece) -> Result<(), IoError> {
        let _seized = self.seize(piece.block);
        let result = self.zero_seized(piece);
        self.settle_seized(piece.block, result.is_ok());
        result
    }

    fn zero_seized(&self, piece: &Piece) -> Result<(), IoError> {
        let entry = self.entry(piece.block);
        let bitmap = if entry == UNALLOCATED {
            if self.tuning.is(Mutant::ZeroNothing) {
                return Ok(());
            }
            None
        } else {
            self.bitmap(piece.block, entry)?
        };
        let mut sectors = piece.sectors();
        while !sectors.is_empty() {
            let (set, end) = match &bitmap {
                Some(bitmap) => match bitmap.run(sectors.clone()) {
                    Some(run) => run,
                    None => break,
                },
                None => (entry != UNALLOCATED, sectors.end),
            };
            let from = (u64::from(sectors.start) * SECTOR).max(piece.within);
            let to = (u64::from(end) * SECTOR).min(piece.within + piece.len());
            if set {
                self.backing
                    .zero(self.layout.data(entry) + from, to - from, Space::Release)?;
            } else {
                self.cover(piece.block, from..to)?;
            }
            sectors.start = end;
        }
        Ok(())
    }

    /// Makes bytes of a block, all of them in sectors whose bits are clear,
    /// zeros of our own, unless they are zero below.
    fn cover(&self, block: u32, range: Range<u64>) -> Result<(), IoError> {
        let start = self.block_start(block);
        if !self.has_data_below(start + range.start..start + range.end)? {
            return Ok(());
        }
        let first_whole = range.start.next_multiple_of(SECTOR).min(range.end);
        let last_whole = (range.end / SECTOR * SECTOR).max(first_whole);
        self.cover_edge(block, range.start..first_whole)?;
        if first_whole < last_whole {
            let entry = self.reserve(block)?;
            self.backing.zero(
                self.layout.data(entry) + first_whole,
                last_whole - first_whole,
                Space::Release,
            )?;
            if !self.tuning.is(Mutant::ZeroWithoutBits)
                && let Some(bitmap) = self.bitmap(block, entry)?
            {
                // A block has at most 2^19 sectors.
                let sectors = (first_whole / SECTOR) as u32..(last_whole / SECTOR) as u32;
                self.set_bits(block, entry, bitmap, sectors);
            }
        }
        self.cover_edge(block, last_whole..range.end)
    }

    /// Writes zeros to a part of a sector.
    fn cover_edge(&self, block: u32, range: Range<u64>) -> Result<(), IoError> {
        let len = (range.end - range.start) as usize;
        if len == 0 {
            return Ok(());
        }
        let entry = self.reserve(block)?;
        let piece = Piece {
            block,
            within: range.start,
            span: 0..len,
        };
        match self.bitmap(block, entry)? {
            Some(bitmap) => self.write_seized(&piece, &ZEROS[..len], entry, bitmap),
            None => self
                .backing
                .write(&ZEROS[..len], self.layout.data(entry) + range.start),
        }
    }
}
