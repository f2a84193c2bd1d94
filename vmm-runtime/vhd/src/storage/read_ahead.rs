//! Reading ahead of those who read one piece after another, in the kernel's
//! stead.
//!
//! What the kernel reads ahead it keeps in large folios, and each small write
//! to such a one costs as much as the whole folio is long: with a read-ahead of
//! 8 MiB a random write of 4 KiB takes ten times as long as into pages that
//! came one by one. Pages that are asked for come so.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rustix::fs::Advice;

/// So many bytes are read ahead.
const WINDOW: u64 = 512 << 10;

/// And asked for in pieces of this size: what a device's usual read-ahead
/// allows in one go.
const PIECE: u64 = 128 << 10;

/// Reads that follow each other must have come to this many bytes.
const PATTERN: u64 = 16 << 10;

/// Where the one reader that is looked out for will read next: as the kernel
/// does, one for each open file.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The end of the last read.
    end: u64,
    /// Bytes that were read one after another before that.
    run: u64,
    /// The end of what was asked for.
    asked: u64,
}

impl ReadAhead {
    /// Makes the file's pages come one by one, from now on, as far as `read`
    /// is told of what is read.
    pub(crate) fn of(file: &File) -> Option<ReadAhead> {
        rustix::fs::fadvise(file, 0, None, Advice::Random).ok()?;
        Some(ReadAhead::default())
    }

    /// Begins to read what comes behind `range`, which is being read, if that
    /// follows what was read before.
    pub(crate) fn read(&self, file: &File, range: Range<u64>) {
        let mut wanted = self.next(range);
        while let Some(len) = NonZeroU64::new(PIECE.min(wanted.end - wanted.start)) {
            // For speed alone.
            let _ = rustix::fs::fadvise(file, wanted.start, Some(len), Advice::WillNeed);
            wanted.start += len.get();
        }
    }

    /// What to ask for, now that `range` is read; maybe nothing.
    fn next(&self, range: Range<u64>) -> Range<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let len = range.end.saturating_sub(range.start);
        // What another way was taken for, such as a piece that crosses blocks,
        // is passed over; and so are bitmaps.
        let follows = (state.end..=state.end.saturating_add(WINDOW)).contains(&range.start);
        if !follows || state.end == 0 {
            *state = State {
                end: range.end,
                run: len,
                asked: range.end,
            };
            return range.end..range.end;
        }
        state.end = range.end;
        state.run = state.run.saturating_add(len);
        let asked = state.asked.max(range.end);
        let until = range.end.saturating_add(WINDOW);
        if state.run < PATTERN || asked > range.end.saturating_add(WINDOW - PIECE) {
            return asked..asked;
        }
        state.asked = until;
        asked..until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    /// What is asked for after each of these reads.
    fn asked(reads: &[Range<u64>]) -> Vec<Range<u64>> {
        let ahead = ReadAhead::default();
        let next = |read: &Range<u64>| ahead.next(read.start * KIB..read.end * KIB);
        let kibibytes = |range: Range<u64>| range.start / KIB..range.end / KIB;
        reads.iter().map(next).map(kibibytes).collect()
    }

    #[test]
    fn who_reads_one_piece_after_another_is_kept_ahead_of() {
        let reads = [4..132, 132..260, 260..388, 388..392, 392..520];
        assert_eq!(
            asked(&reads),
            // The first tells nothing; the second, all of a window; then as much as was read.
            [132..132, 260..772, 772..900, 900..900, 900..1032]
        );
    }

    #[test]
    fn little_reads_must_come_in_a_row() {
        let reads = [100..104, 104..108, 108..112, 112..116, 116..120];
        let found = asked(&reads);
        assert_eq!(found[..3], [104..104, 108..108, 112..112]);
        assert_eq!(found[3..], [116..628, 628..628]);
    }

    #[test]
    fn a_gap_is_passed_over_and_a_leap_begins_anew() {
        let reads = [1000..1100, 1200..1300, 5000..5100, 5100..5101, 4000..4100];
        assert_eq!(
            asked(&reads),
            [1100..1100, 1300..1812, 5100..5100, 5101..5613, 4100..4100]
        );
    }

    #[test]
    fn the_end_of_numbers_is_no_trouble() {
        let ahead = ReadAhead::default();
        let end = u64::MAX;
        ahead.next(end - 40_000..end - 20_000);
        assert_eq!(ahead.next(end - 20_000..end), end..end);
    }

    #[test]
    fn pages_are_asked_for() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        let ahead = ReadAhead::of(&file).unwrap();
        for start in [0, 64 << 10, 128 << 10] {
            ahead.read(&file, start..start + (64 << 10));
        }
        assert_eq!(ahead.next(192 << 10..193 << 10).start, 640 << 10);
    }
}
