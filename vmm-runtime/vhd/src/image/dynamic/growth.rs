//! How much room on its file system a disk takes more when it is written to.

use std::ops::Range;

use super::Dynamic;
use crate::block::IoError;
use crate::format::bat::UNALLOCATED;
use crate::image::holes;
use crate::room::{PIECE, block_overhead};

impl Dynamic {
    /// See [`crate::image::Image::growth`]. What a parent holds is no room of
    /// this disk's, and neither is a hole in a block that it has.
    pub(super) fn growth_within(&self, range: Range<u64>, after: u64) -> Result<u64, IoError> {
        let mut bytes = 0;
        for piece in self.pieces(range.start, range.end - range.start) {
            let _shared = self.share(piece.block);
            let entry = self.entry(piece.block);
            if entry != UNALLOCATED {
                let start = self.layout.data(entry) + piece.within;
                bytes += holes(&self.backing, start..start + piece.len())?;
                continue;
            }
            // A whole piece at both edges.
            let end = piece.within + piece.len();
            bytes += end.next_multiple_of(PIECE) - piece.within / PIECE * PIECE;
            if after <= self.block_start(piece.block) {
                bytes += block_overhead(self.layout.block_size);
            }
        }
        Ok(bytes)
    }
}
