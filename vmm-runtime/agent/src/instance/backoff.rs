//! How long to wait before a guest is started again.

use std::time::Duration;

/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(60);
/// A guest that was up for this long starts from the beginning.
pub const FORGIVEN_AFTER: Duration = Duration::from_secs(300);

/// Why another start is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The monitor or the hypervisor died: the first time the guest is started again at once.
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
    /// Counts one more, and says how long to wait: for a crash 0, 1, 2, 4 … 60 s, else 1, 2, 4 … 60 s.
    pub fn next(&mut self, cause: Cause) -> Duration {
        let doublings = match cause {
            Cause::Crash => self.in_a_row.checked_sub(1),
            Cause::EndOrFailure => Some(self.in_a_row),
        };
        self.in_a_row = self.in_a_row.saturating_add(1);
        match doublings {
            None => Duration::ZERO,
            Some(doublings) => Duration::from_secs(1 << doublings.min(6)).min(LONGEST),
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

    fn waits(cause: Cause) -> Vec<u64> {
        let mut backoff = Backoff::default();
        (0..9).map(|_| backoff.next(cause).as_secs()).collect()
    }

    #[test]
    fn grows_to_a_minute() {
        assert_eq!(waits(Cause::Crash), [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(waits(Cause::EndOrFailure), [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn is_forgiven_after_five_minutes_up() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.next(Cause::Crash);
        }
        backoff.was_up(Duration::from_secs(299));
        assert_eq!(backoff.next(Cause::Crash), Duration::from_secs(16));
        backoff.was_up(Duration::from_secs(300));
        assert_eq!(backoff.next(Cause::Crash), Duration::ZERO);
    }
}
