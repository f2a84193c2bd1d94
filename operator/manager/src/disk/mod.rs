//! VirtualHardDisks and their tasks: [`fetch`] a snapshot and decide, [`apply`] the steps around the status.

pub mod apply;
pub mod fetch;

use crate::controller::{Context, ReconcileError, now};
use paddock_planner::ObjectKey;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_LAST: Duration = Duration::from_secs(60);
/// For work on a disk that is usable without it.
const RETRY_LAST_SELDOM: Duration = Duration::from_secs(1800);

#[derive(Clone, Copy, Default)]
struct Retry {
    failures: u32,
    due: Option<Instant>,
}

/// When disks whose task failed may try again: after 2 s, doubling up to 60 s; seldom up to half an hour.
#[derive(Default)]
pub struct Retries(Mutex<HashMap<String, Retry>>);

impl Retries {
    fn map(&self) -> MutexGuard<'_, HashMap<String, Retry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_due(&self, uid: &str, now: Instant) -> bool {
        self.map()
            .get(uid)
            .and_then(|r| r.due)
            .is_some_and(|due| due <= now)
    }

    /// A task has failed: how long until the next try.
    fn failed(&self, uid: &str, now: Instant, seldom: bool) -> Duration {
        let mut map = self.map();
        let retry = map.entry(uid.to_owned()).or_default();
        let due = *retry.due.get_or_insert_with(|| {
            let last = match seldom {
                true => RETRY_LAST_SELDOM,
                false => RETRY_LAST,
            };
            let wait = RETRY_FIRST
                .saturating_mul(1 << retry.failures.min(16))
                .min(last);
            now + wait
        });
        due.saturating_duration_since(now)
    }

    /// The next try has begun.
    fn tried(&self, uid: &str) {
        if let Some(retry) = self.map().get_mut(uid)
            && retry.due.take().is_some()
        {
            retry.failures = retry.failures.saturating_add(1);
        }
    }

    fn forget(&self, uid: &str) {
        self.map().remove(uid);
    }
}

/// Looks at one disk.
pub async fn reconcile(context: &Context, key: &ObjectKey) -> Result<(), ReconcileError> {
    let now = now();
    let Some(planned) = fetch::plan(context, key, &now) else {
        for task in fetch::leftovers(context, key) {
            apply::discard(context, &task).await?;
        }
        for task in fetch::orphans(context, key) {
            apply::tell_orphan(context, key, &task).await?;
        }
        return Ok(());
    };
    apply::apply(context, key, &planned).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_once_per_try() {
        let often = [2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60];
        let seldom = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1800, 1800];
        for (waits, is_seldom) in [(often, false), (seldom, true)] {
            let retries = Retries::default();
            let mut now = Instant::now();
            let wait = |now| retries.failed("u", now, is_seldom).as_secs();
            for expected in waits {
                assert!(!retries.is_due("u", now));
                assert_eq!(wait(now), expected);
                assert_eq!(wait(now + Duration::from_secs(1)), expected - 1);
                now += Duration::from_secs(expected);
                assert!(retries.is_due("u", now));
                retries.tried("u");
            }
            retries.forget("u");
            assert_eq!(wait(now), 2);
        }
    }
}
