//! The operator's clock for leases.

use std::time::Duration;

/// Time since boot, the machine's sleep included. `std::time::Instant` stands still in a sleep, so that a leader that
/// slept past its lease would believe in it for longer.
#[must_use]
pub fn boottime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}
