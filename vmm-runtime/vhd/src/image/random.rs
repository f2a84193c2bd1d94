//! Seeded random numbers for tests.

use std::ops::Range;

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `bound - 1`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A range of bytes within `size`, at most `longest` long: half of the
    /// time of whole sectors.
    pub(crate) fn range(&mut self, size: u64, longest: u64) -> Range<u64> {
        let unit = if self.below(2) == 0 { 512 } else { 1 };
        let start = self.below(size) / unit * unit;
        let len = (1 + self.below(longest)).next_multiple_of(unit);
        start..(start + len).min(size)
    }

    /// Bytes that hold no zero.
    pub(crate) fn bytes(&mut self, len: u64) -> Vec<u8> {
        let word = self.next() | 0x0101_0101_0101_0101;
        let mut bytes = Vec::with_capacity(len as usize + 8);
        while bytes.len() < len as usize {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.truncate(len as usize);
        bytes
    }
}
