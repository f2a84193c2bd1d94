//! The gate in front of every change of a disk.
//!
//! A host that may have been fenced must stop writing. The holder of a disk
//! keeps a [`Gate`] and moves its deadline on as the host's lease is renewed;
//! past the deadline, or once closed, no write, discard or sync is submitted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::block::IoError;

/// Lets writes through until it is closed or its deadline has passed. Clones
/// are handles to the same gate.
///
/// A gate that has closed stays closed, whatever closed it: whoever may write
/// again opens the disk again, with a new gate, and so takes its locks and
/// reads its header again.
#[derive(Debug, Clone)]
pub struct Gate(Arc<State>);

#[derive(Debug)]
struct State {
    /// Nanoseconds since boot from which on nothing passes; `CLOSED`, `NEVER`.
    deadline: AtomicU64,
    /// Passes that are held.
    passing: AtomicU64,
}

const CLOSED: u64 = 0;
const NEVER: u64 = u64::MAX;

impl Gate {
    /// A gate that is open and has no deadline.
    pub fn open() -> Gate {
        Gate(Arc::new(State {
            deadline: AtomicU64::new(NEVER),
            passing: AtomicU64::new(0),
        }))
    }

    /// The time since boot, suspended time included (`CLOCK_BOOTTIME`): the
    /// clock of the deadlines.
    pub fn now() -> Duration {
        let time = clock_gettime(ClockId::Boottime);
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or(0),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )
    }

    /// Moves the deadline to `deadline` after boot (see [`Gate::now`]),
    /// forward or back. False if the gate was closed already, or its old
    /// deadline had passed: then it is closed for good.
    pub fn until(&self, deadline: Duration) -> bool {
        let new = u64::try_from(deadline.as_nanos())
            .unwrap_or(NEVER - 1)
            .clamp(CLOSED + 1, NEVER - 1);
        let moved = self
            .0
            .deadline
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
                Some(if expired(old) { CLOSED } else { new })
            });
        moved.is_ok_and(|old| old != CLOSED) && self.is_open()
    }

    /// Closes the gate for good. Calls that are past it may still be
    /// finishing: see [`Gate::drain`].
    pub fn close(&self) {
        self.0.deadline.store(CLOSED, Ordering::SeqCst);
    }

    /// Whether a write would be let through now.
    pub fn is_open(&self) -> bool {
        !expired(self.0.deadline.load(Ordering::SeqCst))
    }

    /// Waits until no system call that passed the gate is under way, at most
    /// for `timeout`. True if there is none. Close the gate first.
    pub fn drain(&self, timeout: Duration) -> bool {
        let end = Gate::now().saturating_add(timeout);
        loop {
            if self.0.passing.load(Ordering::SeqCst) == 0 {
                return true;
            }
            if Gate::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Passes the gate, for as long as the returned pass is held.
    pub fn enter(&self) -> Result<GatePass<'_>, IoError> {
        // Counted before the check: a drain that sees no pass then knows that
        // whoever comes later finds the gate closed.
        self.0.passing.fetch_add(1, Ordering::SeqCst);
        let pass = GatePass(&self.0);
        if self.is_open() {
            Ok(pass)
        } else {
            Err(IoError::GateClosed)
        }
    }
}

impl Gate {
    /// As [`Gate::enter`], for a change that another thread may end.
    pub(crate) fn enter_held(&self) -> Result<HeldPass, IoError> {
        // One for the look, one to keep.
        let pass = self.enter()?;
        self.0.passing.fetch_add(1, Ordering::SeqCst);
        drop(pass);
        Ok(HeldPass(self.clone()))
    }
}

fn expired(deadline: u64) -> bool {
    match deadline {
        CLOSED => true,
        NEVER => false,
        deadline => Gate::now().as_nanos() >= u128::from(deadline),
    }
}

/// The same as a [`GatePass`], for a change whose end is elsewhere.
#[derive(Debug)]
pub(crate) struct HeldPass(Gate);

impl HeldPass {
    /// The gate that was passed.
    pub(crate) fn gate(&self) -> Gate {
        self.0.clone()
    }
}

impl Drop for HeldPass {
    fn drop(&mut self) {
        self.0.0.passing.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The right to submit one change, from [`Gate::enter`].
#[derive(Debug)]
pub struct GatePass<'a>(&'a State);

impl Drop for GatePass<'_> {
    fn drop(&mut self) {
        self.0.passing.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_gate_lets_through_until_it_is_closed() {
        let gate = Gate::open();
        let other = gate.clone();
        assert!(gate.enter().is_ok());
        other.close();
        assert!(matches!(gate.enter(), Err(IoError::GateClosed)));
        assert!(!gate.is_open());
    }

    #[test]
    fn a_deadline_closes_it_and_cannot_be_moved_once_passed() {
        let gate = Gate::open();
        assert!(gate.until(Gate::now() + Duration::from_secs(3600)));
        assert!(gate.is_open());
        assert!(!gate.until(Duration::from_nanos(1)));
        assert!(!gate.is_open());
        assert!(!gate.until(Gate::now() + Duration::from_secs(3600)));
        assert!(!gate.is_open());
    }

    #[test]
    fn a_closed_gate_does_not_open_again() {
        let gate = Gate::open();
        gate.close();
        assert!(!gate.until(Gate::now() + Duration::from_secs(3600)));
        assert!(!gate.is_open());
    }

    #[test]
    fn drain_waits_for_those_who_passed() {
        let gate = Gate::open();
        let pass = gate.enter().unwrap();
        gate.close();
        assert!(!gate.drain(Duration::from_millis(1)));
        drop(pass);
        assert!(gate.drain(Duration::ZERO));
    }
}
