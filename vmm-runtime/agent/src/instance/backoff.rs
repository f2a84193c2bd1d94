//! How long to wait before a guest is started again.

use std::time::Duration;

/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(60);
/// The waits after the first crashes: each start is under way within a second, and a machine that dies at once again
/// and again gets slower before it keeps the host busy.
const AFTER_CRASHES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_millis(500),
];
/// A guest that was up for this long starts from the beginning.
pub const FORGIVEN_AFTER: Duration = Duration::from_secs(300);

/// Why another start is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The monitor or the hypervisor died: the first time the guest is started again at once, then after less than a
    /// second twice.
    Crash,
    /// The guest switched itself off, or did not start: a loop would keep the host busy, so the first wait is 1 s.
    EndOrFailure,
}

/// Counts ends in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    in_a_row: u32,
}

impl Backoff {
    /// Counts one more, and says how long to wait: for a crash 0, 0.2, 0.5, 1, 2, 4 … 60 s, else 1, 2, 4 … 60 s.
    pub fn next(&mut self, cause: Cause) -> Duration {
        let before = usize::try_from(self.in_a_row).unwrap_or(usize::MAX);
        self.in_a_row = self.in_a_row.saturating_add(1);
        let quick: &[Duration] = match cause {
            Cause::Crash => &AFTER_CRASHES,
            Cause::EndOrFailure => &[],
        };
        match quick.get(before) {
            Some(wait) => *wait,
            None => Duration::from_secs(1 << (before - quick.len()).min(6)).min(LONGEST),
        }
    }

    /// The guest was up for `up`.
    pub fn was_up(&mut self, up: Duration) {
        if up >= FORGIVEN_AFTER {
            self.in_a_row = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(cause: Cause) -> Vec<u128> {
        let mut backoff = Backoff::default();
        (0..11).map(|_| backoff.next(cause).as_millis()).collect()
    }

    #[test]
    fn grows_to_a_minute() {
        assert_eq!(
            waits(Cause::Crash),
            [
                0, 200, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000
            ]
        );
        assert_eq!(
            waits(Cause::EndOrFailure),
            [
                1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000, 60_000, 60_000
            ]
        );
    }

    #[test]
    fn a_crash_after_other_ends_waits_no_longer_than_after_as_many_crashes() {
        let mut backoff = Backoff::default();
        assert_eq!(
            backoff.next(Cause::EndOrFailure),
            Duration::from_millis(1000)
        );
        assert_eq!(backoff.next(Cause::Crash), Duration::from_millis(200));
        assert_eq!(
            backoff.next(Cause::EndOrFailure),
            Duration::from_millis(4000)
        );
    }

    #[test]
    fn is_forgiven_after_five_minutes_up() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.next(Cause::Crash);
        }
        backoff.was_up(Duration::from_secs(299));
        assert_eq!(backoff.next(Cause::Crash), Duration::from_secs(4));
        backoff.was_up(Duration::from_secs(300));
        assert_eq!(backoff.next(Cause::Crash), Duration::ZERO);
    }
}
