//! Keeps a full pool from a guest: a request that a disk refuses for lack of space is held until it can be carried out,
//! instead of being answered with an error.
//!
//! [`HoldWhenFull`] stands between the NBD server and the disk. What it holds is bounded by the server's queue: a held
//! request keeps its worker, and behind the workers the queue fills up. The machine is told ([`Told`]) and pauses the
//! guest, which notices nothing but that time has passed. Nothing that was acknowledged is lost, since nothing is
//! acknowledged before it is carried out.
//!
//! When the machine is to end, [`Hold::give_up`] lets the held requests fail: QEMU waits for all of them before it
//! stops or quits, and keeps those that failed for lack of space to itself (`werror=enospc`). A gate that closes ends
//! the waiting as well.

mod core;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use paddock_vhd::{BlockDevice, Extent, Gate, Intent, IoError, Place, Pool};
use tracing::{info, warn};

use self::core::{Action, Core, Event, Room};

/// A held request looks this often whether the gate has closed.
const GATE_EACH: Duration = Duration::from_millis(100);
/// Of the thread that looks for room.
const STACK_BYTES: usize = 256 << 10;

/// What the machine is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Requests are held. A sentence.
    Full(String),
    /// All that was held was carried out.
    Room,
}

type Tell = Box<dyn Fn(Told) + Send + Sync>;
type Look = Box<dyn Fn() -> Option<Room> + Send + Sync>;

/// The held requests of one disk.
pub(crate) struct Hold {
    name: String,
    gate: Gate,
    tell: Tell,
    look: Look,
    started: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    core: Core,
    /// Not told yet, in order.
    to_tell: VecDeque<Told>,
    look_due: bool,
    /// Whether there is a thread that looks and tells.
    watched: bool,
}

/// The room of the file system below a pool.
pub(crate) fn room_in(pool: Pool) -> Look {
    Box::new(move || {
        let space = pool.space().ok()?;
        Some(Room {
            total: space.total,
            available: space.available,
        })
    })
}

impl Hold {
    /// Holds requests of the disk `name` whose changes pass `gate`. `tell` and `look` may block; they are called from a
    /// thread of their own.
    pub fn new(name: &str, gate: Gate, look: Look, tell: Tell) -> Arc<Self> {
        Arc::new(Hold {
            name: name.to_owned(),
            gate,
            tell,
            look,
            started: Instant::now(),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Tries the held requests again now.
    pub fn retry(&self) {
        self.feed(&mut self.lock(), Event::Ordered, None);
    }

    /// Lets the held requests fail, and every later one that finds no space.
    pub fn give_up(&self) {
        self.feed(&mut self.lock(), Event::GiveUp, None);
    }

    /// No code that can panic runs under the lock, so a poisoned one is still consistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feed(&self, state: &mut State, event: Event, error: Option<&IoError>) {
        for action in state.core.step(self.started.elapsed(), event) {
            match action {
                Action::TellFull => {
                    let why = error.map(ToString::to_string).unwrap_or_default();
                    warn!(disk = self.name, "no space: {why}");
                    state.to_tell.push_back(Told::Full(why));
                }
                Action::TellRoom => {
                    info!(disk = self.name, "there is room again");
                    state.to_tell.push_back(Told::Room);
                }
                Action::Look => state.look_due = true,
                // Those who wait see the next round.
                Action::Wake => {}
            }
        }
        self.changed.notify_all();
    }

    /// Does a request, again and again as long as there is no space for it.
    fn carry_out(
        self: &Arc<Self>,
        request: impl Fn() -> Result<(), IoError>,
    ) -> Result<(), IoError> {
        let mut again = false;
        loop {
            match request() {
                Err(error @ IoError::NoSpace { .. }) => {
                    if !self.wait(again, &error) {
                        return Err(error);
                    }
                    again = true;
                }
                result => {
                    if again {
                        self.feed(&mut self.lock(), Event::Ended, None);
                    }
                    return result;
                }
            }
        }
    }

    /// Waits until the request may be tried again; false: it is to fail.
    fn wait(self: &Arc<Self>, again: bool, error: &IoError) -> bool {
        let mut state = self.lock();
        self.feed(&mut state, Event::Refused { again }, Some(error));
        if !state.core.is_full() || !self.is_watched(&mut state) {
            // The gate may have closed since it was refused, which ends the waiting of all: the disk itself says so.
            return !self.gate.is_open();
        }
        let round = state.core.round();
        while state.core.round() == round {
            if !self.gate.is_open() {
                // The disk itself says so.
                self.feed(&mut state, Event::GiveUp, None);
                return true;
            }
            (state, _) = self
                .changed
                .wait_timeout(state, GATE_EACH)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.core.is_full() || !self.gate.is_open()
    }

    /// Starts the thread that looks and tells, if there is none. Without one nothing can be held.
    fn is_watched(self: &Arc<Self>, state: &mut State) -> bool {
        if state.watched {
            return true;
        }
        let hold = self.clone();
        let started = std::thread::Builder::new()
            .name(format!("room-{}", self.name))
            .stack_size(STACK_BYTES)
            .spawn(move || hold.watch());
        match started {
            Ok(_) => state.watched = true,
            Err(error) => {
                warn!(
                    disk = self.name,
                    "requests cannot be held: start a thread: {error}"
                );
                self.feed(state, Event::GiveUp, None);
            }
        }
        state.watched
    }

    /// Looks and tells until nothing is held.
    fn watch(&self) {
        let mut state = self.lock();
        loop {
            if let Some(told) = state.to_tell.pop_front() {
                drop(state);
                (self.tell)(told);
                state = self.lock();
            } else if !state.core.is_full() {
                if std::mem::take(&mut state.look_due) {
                    // Nobody looks any more.
                    self.feed(&mut state, Event::Looked(None), None);
                }
                state.watched = false;
                return;
            } else if std::mem::take(&mut state.look_due) {
                drop(state);
                let room = (self.look)();
                state = self.lock();
                self.feed(&mut state, Event::Looked(room), None);
            } else {
                let now = self.started.elapsed();
                match state.core.deadline() {
                    Some(deadline) if deadline <= now => self.feed(&mut state, Event::Tick, None),
                    deadline => {
                        let pause = deadline.map_or(core::LOOK_EACH, |deadline| deadline - now);
                        (state, _) = self
                            .changed
                            .wait_timeout(state, pause)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                }
            }
        }
    }
}

/// A disk whose requests are held while its pool is full.
pub(crate) struct HoldWhenFull<D> {
    disk: Arc<D>,
    hold: Arc<Hold>,
}

impl<D> HoldWhenFull<D> {
    /// Holds the requests of `disk`.
    pub fn new(disk: Arc<D>, hold: Arc<Hold>) -> Self {
        HoldWhenFull { disk, hold }
    }
}

impl<D: BlockDevice> BlockDevice for HoldWhenFull<D> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        self.disk.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.hold.carry_out(|| self.disk.write_at(buf, offset))
    }

    /// A flush writes tables, which may take space, too.
    fn flush(&self) -> Result<(), IoError> {
        self.hold.carry_out(|| self.disk.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.hold.carry_out(|| self.disk.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.hold.carry_out(|| self.disk.write_zeroes(offset, len))
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        self.disk.block_status(offset, len)
    }

    /// Of reads alone: a write to a place of the file's own passes by, and may find no space either.
    fn locate(&self, intent: Intent, offset: u64, len: u64) -> Option<Place> {
        match intent {
            Intent::Read => self.disk.locate(intent, offset, len),
            Intent::Write => None,
        }
    }
}
