//! The bitmap in front of a block's data: one bit per sector, the most
//! significant bit of a byte first. A clear bit in a dynamic disk: the sector
//! is zero, whatever the file holds there.

use std::ops::Range;

/// A block's bitmap, as many bytes as it has on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bitmap {
    bytes: Box<[u8]>,
    sectors: u32,
}

impl Bitmap {
    /// The bitmap in `bytes` of a block of `sectors` sectors.
    pub(crate) fn new(bytes: Vec<u8>, sectors: u32) -> Bitmap {
        debug_assert!(bytes.len() * 8 >= sectors as usize);
        Bitmap {
            bytes: bytes.into_boxed_slice(),
            sectors,
        }
    }

    /// What is on disk.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the bit of `sector` is set.
    pub(crate) fn is_set(&self, sector: u32) -> bool {
        self.bytes
            .get(sector as usize / 8)
            .is_some_and(|byte| byte & (0x80 >> (sector % 8)) != 0)
    }

    /// Whether all bits of `sectors` are set.
    pub(crate) fn all_set(&self, sectors: Range<u32>) -> bool {
        self.run(sectors.clone())
            .is_none_or(|(set, end)| set && end == sectors.end)
    }

    /// Whether every sector of the block has its bit set.
    pub(crate) fn is_full(&self) -> bool {
        self.all_set(0..self.sectors)
    }

    /// Sets the bits of `sectors`.
    pub(crate) fn set(&mut self, sectors: Range<u32>) {
        for sector in sectors {
            if let Some(byte) = self.bytes.get_mut(sector as usize / 8) {
                *byte |= 0x80 >> (sector % 8);
            }
        }
    }

    /// The value of the first bit of `sectors`, and where the run of that
    /// value ends within `sectors`. `None` when the range is empty.
    pub(crate) fn run(&self, sectors: Range<u32>) -> Option<(bool, u32)> {
        if sectors.is_empty() {
            return None;
        }
        let set = self.is_set(sectors.start);
        let whole = if set { 0xff } else { 0 };
        let mut at = sectors.start;
        while at < sectors.end {
            if at.is_multiple_of(8)
                && sectors.end - at >= 8
                && self.bytes.get(at as usize / 8) == Some(&whole)
            {
                at += 8;
            } else if self.is_set(at) == set {
                at += 1;
            } else {
                break;
            }
        }
        Some((set, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_significant_bit_comes_first() {
        let mut bitmap = Bitmap::new(vec![0; 512], 64);
        bitmap.set(0..1);
        bitmap.set(9..11);
        assert_eq!(bitmap.bytes()[..3], [0x80, 0x60, 0]);
        assert!(bitmap.is_set(0) && bitmap.is_set(10) && !bitmap.is_set(11));
        assert!(!bitmap.is_set(1 << 20));
    }

    #[test]
    fn runs_end_where_the_value_changes() {
        let mut bitmap = Bitmap::new(vec![0; 512], 4096);
        bitmap.set(3..100);
        assert_eq!(bitmap.run(0..4096), Some((false, 3)));
        assert_eq!(bitmap.run(3..4096), Some((true, 100)));
        assert_eq!(bitmap.run(100..4096), Some((false, 4096)));
        assert_eq!(bitmap.run(50..60), Some((true, 60)));
        assert_eq!(bitmap.run(7..7), None);
        assert!(bitmap.all_set(3..100) && !bitmap.all_set(3..101) && bitmap.all_set(5..5));
        bitmap.set(0..4096);
        assert!(bitmap.is_full());
    }
}
