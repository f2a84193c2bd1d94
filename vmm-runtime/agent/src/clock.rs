//! Time, as an argument.
//!
//! Deadlines are on `CLOCK_BOOTTIME`, which goes on while the machine is suspended: `std`'s and tokio's clocks
//! stand still then, and a host that slept through its deadline would believe it still had time.

use jiff::Timestamp;
use std::{fmt, time::Duration};

/// A point on `CLOCK_BOOTTIME`, in milliseconds since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boottime(u64);

impl Boottime {
    /// A point `milliseconds` after boot.
    #[must_use]
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    /// Milliseconds since boot.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This point, `duration` later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(milliseconds))
    }

    /// The time from `earlier` until this point; zero when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Boottime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0 / 1000, self.0 % 1000)
    }
}

/// What tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Now on `CLOCK_BOOTTIME`.
    fn boottime(&self) -> Boottime;
    /// Now on the wall, to the second: for people only, never for a decision.
    fn wall(&self) -> Timestamp;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boottime(&self) -> Boottime {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
        Boottime(seconds * 1000 + nanoseconds / 1_000_000)
    }

    fn wall(&self) -> Timestamp {
        let now = Timestamp::now();
        Timestamp::from_second(now.as_second()).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_saturate_and_never_run_backwards() {
        let early = Boottime::from_millis(1_000);
        let late = early.plus(Duration::from_millis(2_500));
        assert_eq!(late.as_millis(), 3_500);
        assert_eq!(late.since(early), Duration::from_millis(2_500));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(
            late.plus(Duration::MAX).as_millis(),
            u64::MAX,
            "a wait for ever is no overflow"
        );
        assert_eq!(late.to_string(), "3.500s");
    }

    #[test]
    fn the_systems_clock_goes_on() {
        let first = SystemClock.boottime();
        assert!(first.as_millis() > 0);
        assert!(SystemClock.boottime() >= first);
        assert_eq!(SystemClock.wall().subsec_nanosecond(), 0);
    }
}
