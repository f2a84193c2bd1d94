//! How much room on a file system a copy takes at most, counted before
//! anything is written.

use std::ops::Range;

use crate::format::SECTOR;

/// File systems give room in pieces of this size, most of them.
pub(crate) const PIECE: u64 = 4096;

/// What a block of a disk takes besides its data: its bitmap, and what aligns
/// it.
pub(crate) fn block_overhead(block_size: u32) -> u64 {
    PIECE + u64::from(block_size).div_ceil(8 * SECTOR)
}

/// Counts the room for ranges of a disk, which come in their order.
#[derive(Debug)]
pub(crate) struct Room {
    /// Of a target with blocks.
    block_size: Option<u32>,
    bytes: u64,
    /// The pieces before this byte are counted, and the blocks that begin
    /// before it.
    counted: u64,
}

impl Room {
    /// In a target of the same bytes at the same places.
    pub(crate) fn flat() -> Room {
        Room {
            block_size: None,
            bytes: 0,
            counted: 0,
        }
    }

    /// In a dynamic disk with blocks of so many bytes.
    pub(crate) fn in_blocks(block_size: u32) -> Room {
        Room {
            block_size: Some(block_size),
            ..Room::flat()
        }
    }

    /// Counts a range that isn't empty.
    pub(crate) fn add(&mut self, range: Range<u64>) {
        let end = range.end.next_multiple_of(PIECE);
        let start = (range.start / PIECE * PIECE).max(self.counted);
        if start >= end {
            return;
        }
        self.bytes += end - start;
        if let Some(block_size) = self.block_size {
            let len = u64::from(block_size);
            let blocks = end.div_ceil(len) - self.counted.div_ceil(len).max(start / len);
            self.bytes += blocks * block_overhead(block_size);
        }
        self.counted = end;
    }

    /// All that was counted.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // Ranges are what is meant.
mod tests {
    use super::*;

    #[test]
    fn pieces_are_counted_once_and_so_are_the_blocks_they_lie_in() {
        let count = |block_size: Option<u32>, ranges: &[Range<u64>]| {
            let mut room = block_size.map_or_else(Room::flat, Room::in_blocks);
            ranges.iter().for_each(|range| room.add(range.clone()));
            room.bytes()
        };
        for (ranges, flat, blocks) in [
            (&[][..], 0, 0),
            (&[0..1], 4096, 1),
            (&[4095..4097], 8192, 1),
            (&[0..10, 20..30, 4000..5000], 8192, 1),
            (&[0..1, 8192..8193], 8192, 1),
            // The last piece of a block, and the first of the next.
            (&[16_000..16_500], 8192, 2),
            (&[100..200, 16_000..16_500, 16_600..16_700], 12_288, 2),
            (&[16_384..16_385], 4096, 1),
            (&[0..65_536], 65_536, 4),
            (&[5000..5001, 50_000..50_001], 8192, 2),
        ] {
            assert_eq!(count(None, ranges), flat, "{ranges:?}");
            let overhead = blocks * (4096 + 4);
            assert_eq!(count(Some(16_384), ranges), flat + overhead, "{ranges:?}");
        }
    }
}
