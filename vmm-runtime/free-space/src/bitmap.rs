//! Runs of zeros in a bitmap whose lowest bit comes first.

use std::ops::Range;

/// The runs of zeros among the first `count` bits, in order. Bits beyond the
/// end of `bits` aren't zeros.
pub(crate) fn zeros(bits: &[u8], count: u64) -> Zeros<'_> {
    Zeros {
        bits,
        at: 0,
        end: count.min(bits.len() as u64 * 8),
    }
}

pub(crate) struct Zeros<'a> {
    bits: &'a [u8],
    at: u64,
    end: u64,
}

impl Zeros<'_> {
    /// The bits from `at` on, as many as eight bytes hold, and how many they are.
    fn word(&self, at: u64) -> (u64, u32) {
        let byte = (at / 8) as usize;
        let rest = self.bits.get(byte..).unwrap_or_default();
        let mut word = [0; 8];
        let len = rest.len().min(8);
        word[..len].copy_from_slice(&rest[..len]);
        let skip = (at % 8) as u32;
        (
            u64::from_le_bytes(word) >> skip,
            (len as u32 * 8).saturating_sub(skip),
        )
    }

    /// The first bit from `at` on that is (`set`) or isn't set, or the end.
    fn next_bit(&self, mut at: u64, set: bool) -> u64 {
        while at < self.end {
            let (word, valid) = self.word(at);
            let word = if set { word } else { !word };
            let skip = word.trailing_zeros();
            if skip < valid {
                return (at + u64::from(skip)).min(self.end);
            }
            at += u64::from(valid.max(1));
        }
        self.end
    }
}

impl Iterator for Zeros<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let start = self.next_bit(self.at, false);
        if start >= self.end {
            self.at = self.end;
            return None;
        }
        self.at = self.next_bit(start, true);
        Some(start..self.at)
    }
}

/// Sets the bits of a range, those that the bitmap has.
pub(crate) fn set(bits: &mut [u8], range: Range<u64>) {
    for bit in range {
        let Some(byte) = usize::try_from(bit / 8)
            .ok()
            .and_then(|at| bits.get_mut(at))
        else {
            return;
        };
        *byte |= 1 << (bit % 8);
    }
}

/// Whether a bit is set. One that the bitmap hasn't got is.
pub(crate) fn is_set(bits: &[u8], bit: u64) -> bool {
    usize::try_from(bit / 8)
        .ok()
        .and_then(|at| bits.get(at))
        .is_none_or(|byte| byte >> (bit % 8) & 1 == 1)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    /// Bit by bit, to compare with.
    fn slowly(bits: &[u8], count: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for bit in 0..count.min(bits.len() as u64 * 8) {
            if is_set(bits, bit) {
                continue;
            }
            match runs.last_mut() {
                Some(last) if last.end == bit => last.end += 1,
                _ => runs.push(bit..bit + 1),
            }
        }
        runs
    }

    #[test]
    fn runs_cross_words_and_end_where_they_should() {
        assert_eq!(
            zeros(&[0b1110_0001, 0, 0xff, 0x7f], 100).collect::<Vec<_>>(),
            [1..5, 8..16, 31..32]
        );
        assert_eq!(zeros(&[0; 40], 300).collect::<Vec<_>>(), [0..300]);
        assert_eq!(zeros(&[0xff; 40], 300).collect::<Vec<_>>(), []);
        assert_eq!(zeros(&[], 10).collect::<Vec<_>>(), []);
    }

    #[test]
    fn as_bit_by_bit() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for len in 0..60 {
            let bits: Vec<u8> = (0..len)
                .map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    // Long runs of both, too.
                    match seed % 5 {
                        0 | 1 => 0,
                        2 | 3 => 0xff,
                        _ => (seed >> 32) as u8,
                    }
                })
                .collect();
            for count in [0, 1, len * 4, len * 8 - len.min(3), len * 8, len * 8 + 9] {
                let found: Vec<_> = zeros(&bits, count).collect();
                assert_eq!(found, slowly(&bits, count), "{bits:?} {count}");
            }
        }
    }

    #[test]
    fn sets_what_is_there() {
        let mut bits = [0; 2];
        set(&mut bits, 3..9);
        assert_eq!(bits, [0b1111_1000, 1]);
        set(&mut bits, 15..400);
        assert_eq!(bits, [0b1111_1000, 0b1000_0001]);
        assert!(is_set(&bits, 16));
    }
}
