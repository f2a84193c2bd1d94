//! Waiting for a condition, with a deadline.

use anyhow::{Result, bail};
use std::{
    thread,
    time::{Duration, Instant},
};

/// How long between two looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks again and again until `look` answers `Ok`; past the deadline fails with what it said last.
///
/// # Errors
/// The last answer, with `what` and the time waited.
pub fn until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= deadline => {
                bail!("{what}: not within {} s: {error:#}", deadline.as_secs())
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

/// Looks again and again for the whole of `duration` and fails as soon as `look` does.
///
/// # Errors
/// The first failure.
pub fn throughout(
    what: &str,
    duration: Duration,
    mut look: impl FnMut() -> Result<()>,
) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < duration {
        if let Err(error) = look() {
            bail!(
                "{what}: no longer after {:.1} s: {error:#}",
                start.elapsed().as_secs_f64()
            );
        }
        thread::sleep(INTERVAL);
    }
    Ok(())
}
