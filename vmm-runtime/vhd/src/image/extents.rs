//! Gathering the answer to a block status request.

use std::ops::Range;

use crate::block::{Extent, ExtentKind, IoError};
use crate::storage::Backing;

/// Extents that follow on each other; neighbours of a kind become one.
pub(crate) struct Extents {
    list: Vec<Extent>,
    next: u64,
}

impl Extents {
    pub(crate) fn new(offset: u64) -> Extents {
        Extents {
            list: Vec::new(),
            next: offset,
        }
    }

    /// Whether further extents are dropped.
    pub(crate) fn is_full(&self) -> bool {
        // One more than may be returned: the last one may still grow.
        self.list.len() > Extent::MAX_PER_CALL
    }

    /// Adds the bytes up to `end`.
    pub(crate) fn push(&mut self, end: u64, kind: ExtentKind) {
        let len = end.saturating_sub(self.next);
        if len == 0 || self.is_full() {
            return;
        }
        match self.list.last_mut() {
            Some(last) if last.kind == kind => last.len += len,
            _ => self.list.push(Extent {
                offset: self.next,
                len,
                kind,
            }),
        }
        self.next = end;
    }

    /// Adds the bytes of the disk's `range`, which lie in the file from
    /// `place` on: as data, or as `zero` where the file has holes.
    pub(crate) fn push_file(
        &mut self,
        backing: &Backing,
        place: u64,
        range: Range<u64>,
        zero: ExtentKind,
    ) -> Result<(), IoError> {
        let end = place + (range.end - range.start);
        let on_disk = |in_file: u64| in_file - place + range.start;
        let mut at = place;
        while at < end && !self.is_full() {
            match backing.next_data(at..end)? {
                None => {
                    self.push(range.end, zero);
                    at = end;
                }
                Some(data) => {
                    self.push(on_disk(data.start), zero);
                    self.push(on_disk(data.end), ExtentKind::Data);
                    at = data.end;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Vec<Extent> {
        self.list.truncate(Extent::MAX_PER_CALL);
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_a_kind_become_one() {
        let mut extents = Extents::new(10);
        extents.push(20, ExtentKind::Data);
        extents.push(20, ExtentKind::Hole);
        extents.push(30, ExtentKind::Data);
        extents.push(40, ExtentKind::Hole);
        assert_eq!(
            extents.finish(),
            [
                Extent {
                    offset: 10,
                    len: 20,
                    kind: ExtentKind::Data
                },
                Extent {
                    offset: 30,
                    len: 10,
                    kind: ExtentKind::Hole
                }
            ]
        );
    }

    #[test]
    fn the_answer_is_bounded() {
        let mut extents = Extents::new(0);
        for end in 1..20_000 {
            extents.push(
                end,
                if end % 2 == 0 {
                    ExtentKind::Data
                } else {
                    ExtentKind::Zero
                },
            );
        }
        let list = extents.finish();
        assert_eq!(list.len(), Extent::MAX_PER_CALL);
        assert_eq!(
            list.last().map(|last| last.offset + last.len),
            Some(Extent::MAX_PER_CALL as u64)
        );
    }
}
