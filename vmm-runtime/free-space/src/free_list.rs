//! The free ranges of one volume, while they are found.

use std::ops::Range;

use crate::error::{Stop, doubt};

/// How many ranges a report holds at most. A disk that has more loses the
/// shortest ones, which a compacting copy gains least from.
pub const MAX_RANGES: usize = 1 << 20;

/// How many bytes a walk holds at most, its report included.
pub const MAX_MEMORY: usize = 64 << 20;

/// Ranges of units of a volume, pushed in order, kept as bytes of the disk.
pub(crate) struct FreeList {
    /// The volume's range of the disk.
    volume: Range<u64>,
    ranges: Vec<Range<u64>>,
    last: Option<Range<u64>>,
    limit: usize,
    /// What is shorter is left out.
    shortest: u64,
}

impl FreeList {
    /// For a volume, with room for `limit` ranges.
    pub(crate) fn new(volume: Range<u64>, limit: usize) -> FreeList {
        FreeList {
            volume,
            ranges: Vec::new(),
            last: None,
            limit: limit.max(2),
            shortest: 0,
        }
    }

    /// Adds bytes of the volume. They have to lie within it and behind those
    /// added before.
    pub(crate) fn push(&mut self, free: Range<u64>) -> Result<(), Stop> {
        let on_disk = |at: u64| {
            self.volume
                .start
                .checked_add(at)
                .filter(|&at| at <= self.volume.end)
        };
        let floor = self
            .last
            .as_ref()
            .map_or(self.volume.start, |last| last.end);
        let (Some(start), Some(end)) = (on_disk(free.start), on_disk(free.end)) else {
            return doubt(format!(
                "bytes {}..{} are said to be free, beyond its {} bytes",
                free.start,
                free.end,
                self.volume.end - self.volume.start
            ));
        };
        if start < floor || end <= start {
            return doubt(format!(
                "bytes {}..{} are said to be free out of turn",
                free.start, free.end
            ));
        }
        match &mut self.last {
            Some(last) if last.end == start => last.end = end,
            last => {
                let before = last.replace(start..end);
                self.keep(before);
            }
        }
        Ok(())
    }

    fn keep(&mut self, range: Option<Range<u64>>) {
        let Some(range) = range.filter(|range| range.end - range.start >= self.shortest) else {
            return;
        };
        while self.ranges.len() >= self.limit {
            self.shortest = (self.shortest * 2).max(1024);
            let shortest = self.shortest;
            self.ranges
                .retain(|range| range.end - range.start >= shortest);
        }
        if range.end - range.start >= self.shortest {
            self.ranges.push(range);
        }
    }

    /// The ranges, as bytes of the disk, sorted, with gaps between them.
    pub(crate) fn finish(mut self) -> Vec<Range<u64>> {
        let last = self.last.take();
        self.keep(last);
        self.ranges
    }
}

/// Ranges that the file system itself needs, in its own units: none of them may
/// be free.
#[derive(Default)]
pub(crate) struct InUse {
    ranges: Vec<Range<u64>>,
}

impl InUse {
    /// Puts ranges in order. Two that overlap are a doubt.
    pub(crate) fn new(mut ranges: Vec<Range<u64>>) -> Result<InUse, Stop> {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_unstable_by_key(|range| range.start);
        for pair in ranges.windows(2) {
            if let [one, other] = pair
                && other.start < one.end
            {
                return doubt(format!(
                    "two of its own structures lie in the same place, {}..{} and {}..{}",
                    one.start, one.end, other.start, other.end
                ));
            }
        }
        Ok(InUse { ranges })
    }

    /// The ones that a range touches.
    pub(crate) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.ranges.partition_point(|used| used.end <= range.start);
        self.ranges
            .get(first..)
            .unwrap_or_default()
            .iter()
            .take_while(move |used| used.start < range.end)
            .cloned()
    }

    /// Refuses a free range that touches one of them.
    pub(crate) fn refuse(&self, free: &Range<u64>, units: &str) -> Result<(), Stop> {
        match self.within(free.clone()).next() {
            None => Ok(()),
            Some(used) => doubt(format!(
                "{units} {}..{} are said to be free, but its own structures lie in {}..{}: check the file system",
                free.start, free.end, used.start, used.end
            )),
        }
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one() {
        let mut list = FreeList::new(1000..3000, 10);
        for range in [0..10, 10..20, 30..40, 1990..2000] {
            list.push(range).unwrap();
        }
        assert_eq!(list.finish(), [1000..1020, 1030..1040, 2990..3000]);
    }

    #[test]
    fn what_is_out_of_turn_or_outside_is_refused() {
        let mut list = FreeList::new(1000..3000, 10);
        list.push(10..20).unwrap();
        for range in [0..5, 15..25, 30..30, 1990..2001, 5..u64::MAX] {
            assert!(matches!(list.push(range), Err(Stop::Doubt(_))));
        }
        assert_eq!(list.finish(), [1010..1020]);
    }

    #[test]
    fn the_shortest_go_when_there_are_too_many() {
        let mut list = FreeList::new(0..1 << 40, 8);
        for index in 0..100_u64 {
            let len = if index % 20 == 0 { 4096 } else { 512 };
            list.push(index * 8192..index * 8192 + len).unwrap();
        }
        let expected: Vec<_> = (0..5)
            .map(|index| index * 20 * 8192..index * 20 * 8192 + 4096)
            .collect();
        assert_eq!(list.finish(), expected);
    }

    #[test]
    fn what_is_in_use_is_not_free() {
        let used = InUse::new(vec![20..30, 5..5, 10..12]).unwrap();
        assert_eq!(used.within(11..21).collect::<Vec<_>>(), [10..12, 20..30]);
        assert!(used.refuse(&(12..20), "blocks").is_ok());
        assert!(used.refuse(&(12..21), "blocks").is_err());
        assert!(used.refuse(&(29..40), "blocks").is_err());
        assert!(InUse::new(vec![20..30, 29..31]).is_err());
    }
}
