//! How long to wait before something that ended is started again.

use std::time::{Duration, Instant};

/// 0.2 s, 0.4 s … 5 s; from the start again after 30 s without an end.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    started: Option<Instant>,
}

impl Backoff {
    /// Nothing has ended yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// It was started.
    pub fn started(&mut self, now: Instant) {
        self.started = Some(now);
    }

    /// It ended, or could not be started: how long to wait.
    pub fn ended(&mut self, now: Instant) -> Duration {
        let up = self
            .started
            .take()
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if up >= Duration::from_secs(30) {
            self.failures = 0;
        }
        let pause = Duration::from_millis(200 << self.failures.min(5)).min(Duration::from_secs(5));
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_five_seconds_and_forgets() {
        let now = Instant::now();
        let mut backoff = Backoff::new();
        let pauses: Vec<u64> = (0..7)
            .map(|_| backoff.ended(now).as_millis() as u64)
            .collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.started(now);
        assert_eq!(
            backoff.ended(now + Duration::from_secs(29)).as_millis(),
            5000
        );
        backoff.started(now);
        assert_eq!(
            backoff.ended(now + Duration::from_secs(30)).as_millis(),
            200
        );
    }
}
