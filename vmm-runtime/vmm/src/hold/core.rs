//! The decisions about the held requests of one disk: `step(now, event) -> actions`, without threads or clocks.
//!
//! ```text
//!            Refused: Tell(Full), Look
//!     Open ───────────────────────────► Full ──┐ Looked (enough), Ordered, Tick: Wake (all are tried again)
//!       ▲                                │  ▲  │ Refused again: held again
//!       └────────────────────────────────┘  └──┘
//!          the last one Ended: Tell(Room)
//!                         GiveUp: Wake ─────► GivenUp: nothing is held any more
//! ```
//!
//! Free space is looked at every [`LOOK_EACH`]. There is room once it is a [`margin`]; if the requests are refused all
//! the same, once it has grown by a margin from the least that was seen since. Not each freed kilobyte lets the guest go
//! on, to be stopped again at its next write. What the file system says is not everything (a quota, blocks reserved for
//! root), so the requests are tried again every [`TRY_EACH`] anyway.

use std::time::Duration;

/// From one look at the free space to the next.
pub const LOOK_EACH: Duration = Duration::from_secs(1);
/// From one try of the held requests to the next, when no room shows.
pub const TRY_EACH: Duration = Duration::from_secs(30);

/// Of a file system's size: what must have become free before it counts as room; between 1 and 64 MiB.
const MARGIN_PART: u64 = 64;
const LEAST_MARGIN: u64 = 1 << 20;
const MOST_MARGIN: u64 = 64 << 20;

/// How many bytes must be free on a file system of `total` bytes.
fn margin(total: u64) -> u64 {
    (total / MARGIN_PART).clamp(LEAST_MARGIN, MOST_MARGIN)
}

/// Room on a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its size.
    pub total: u64,
    /// What may still be written.
    pub available: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request was refused for lack of space; `again`: it had been held and was tried again.
    Refused { again: bool },
    /// A request that was tried again was not refused for lack of space.
    Ended,
    /// The answer to [`Action::Look`]; `None` when the file system does not say.
    Looked(Option<Room>),
    /// Somebody wants the requests to be tried again now.
    Ordered,
    /// Nothing is to be held any more.
    GiveUp,
    /// [`Core::deadline`] has come.
    Tick,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Say that requests are held.
    TellFull,
    /// Say that all of them were carried out.
    TellRoom,
    /// Ask the file system for its room.
    Look,
    /// Try all held requests again; once nothing is held any more, let them fail.
    Wake,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    Full(Full),
    GivenUp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Full {
    /// Requests that wait.
    held: usize,
    /// Requests that are being tried again.
    trying: usize,
    /// The least room seen since that which showed and was not enough; 0 before.
    least: u64,
    look_at: Duration,
    try_at: Duration,
}

/// The core of one disk.
#[derive(Clone, Debug, Default)]
pub struct Core {
    state: State,
    /// Whether a look has not been answered yet.
    looking: bool,
    /// Counts the [`Action::Wake`]s, for those who wait for the next one.
    round: u64,
}

impl Core {
    /// Takes in what happened; `now` is on any clock that does not go back.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if event == Event::GiveUp {
            if matches!(self.state, State::Full(_)) {
                self.round += 1;
                actions.push(Action::Wake);
            }
            self.state = State::GivenUp;
            return actions;
        }
        if let Event::Looked(_) = event {
            self.looking = false;
        }
        match &mut self.state {
            State::GivenUp => {}
            State::Open => {
                if let Event::Refused { .. } = event {
                    self.state = State::Full(Full {
                        held: 1,
                        trying: 0,
                        least: 0,
                        look_at: now + LOOK_EACH,
                        try_at: now + TRY_EACH,
                    });
                    actions.push(Action::TellFull);
                    if !std::mem::replace(&mut self.looking, true) {
                        actions.push(Action::Look);
                    }
                }
            }
            State::Full(full) => {
                if event == Event::Tick && !self.looking && full.look_at <= now {
                    self.looking = true;
                    actions.push(Action::Look);
                }
                if full.take(now, event) {
                    self.round += 1;
                    actions.push(Action::Wake);
                }
                if full.held == 0 && full.trying == 0 {
                    self.state = State::Open;
                    actions.push(Action::TellRoom);
                }
            }
        }
        actions
    }

    /// Whether a refused request is to wait.
    pub fn is_full(&self) -> bool {
        matches!(self.state, State::Full(_))
    }

    /// How many requests wait.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        match &self.state {
            State::Full(full) => full.held,
            State::Open | State::GivenUp => 0,
        }
    }

    /// Which round of tries this is: who is held in one waits for the next.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        let State::Full(full) = &self.state else {
            return None;
        };
        let look = (!self.looking).then_some(full.look_at);
        let retry = (full.held > 0).then_some(full.try_at);
        look.into_iter().chain(retry).min()
    }
}

impl Full {
    /// Whether all held requests are to be tried again.
    fn take(&mut self, now: Duration, event: Event) -> bool {
        let due = match event {
            Event::Refused { again } => {
                self.held += 1;
                if again {
                    self.trying = self.trying.saturating_sub(1);
                }
                false
            }
            Event::Ended => {
                self.trying = self.trying.saturating_sub(1);
                false
            }
            Event::Looked(room) => {
                self.look_at = now + LOOK_EACH;
                room.is_some_and(|room| {
                    self.least = self.least.min(room.available);
                    let is_room = room.available - self.least >= margin(room.total);
                    if is_room && self.held > 0 {
                        // If that is not enough, it takes more.
                        self.least = room.available;
                    }
                    is_room
                })
            }
            Event::Ordered => true,
            Event::Tick => self.try_at <= now,
            Event::GiveUp => false,
        };
        if !due || self.held == 0 {
            return false;
        }
        self.trying += self.held;
        self.held = 0;
        self.try_at = now + TRY_EACH;
        true
    }
}
