//! How fast the disk answers, and what follows from that.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A disk whose small requests take longer than this on the average is waited for by other threads. Handing a request
/// over costs about as much: two wake-ups and their switches.
const QUICK_NANOSECONDS: u32 = 32_000;
/// What a single request counts for at most: one hiccup is forgotten after a handful of quick ones.
const MOST_NANOSECONDS: u32 = 1_000_000;

/// The average time of recent small requests: what the page cache has, the thread that reads the requests does itself;
/// what a device has to be waited for is handed to workers, all at once.
#[derive(Debug, Default)]
pub(crate) struct Pace(AtomicU32);

impl Pace {
    pub fn is_quick(&self) -> bool {
        self.0.load(Ordering::Relaxed) < QUICK_NANOSECONDS
    }

    /// Takes a request's time into account. Two threads at once may lose one of the two: that is still an average.
    pub fn note(&self, took: Duration) {
        let took = u32::try_from(took.as_nanos())
            .unwrap_or(u32::MAX)
            .min(MOST_NANOSECONDS);
        let average = self.0.load(Ordering::Relaxed);
        // At most 15/16 of the most, and 1/16 of it.
        self.0
            .store(average - average / 16 + took / 16, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_requests_are_noticed_at_once_and_forgotten_soon() {
        let pace = Pace::default();
        assert!(pace.is_quick());
        for _ in 0..1000 {
            pace.note(Duration::from_micros(20));
        }
        assert!(pace.is_quick());
        pace.note(Duration::from_secs(1000));
        assert!(!pace.is_quick());
        let quick = (1..)
            .find(|_| {
                pace.note(Duration::from_micros(3));
                pace.is_quick()
            })
            .unwrap();
        assert!(quick <= 16, "{quick}");
        for _ in 0..1000 {
            pace.note(Duration::from_micros(100));
        }
        assert!(!pace.is_quick());
    }
}
