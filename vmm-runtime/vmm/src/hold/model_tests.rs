//! The core with requests and a file system: whatever happens, each request waits, is tried or has its answer.

use std::time::Duration;

use proptest::prelude::*;

use super::core::{Action, Core, Event, LOOK_EACH, Room, TRY_EACH};

const MIB: u64 = 1 << 20;
const TOTAL: u64 = 1024 * MIB;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn room(mebibytes: u64) -> Event {
    Event::Looked(Some(Room {
        total: TOTAL,
        available: mebibytes * MIB,
    }))
}

#[test]
fn room_is_a_margin_and_after_a_try_one_more() {
    let mut core = Core::default();
    let refused = Event::Refused { again: false };
    assert_eq!(core.step(s(0), refused), [Action::TellFull, Action::Look]);
    assert_eq!(core.step(s(0), refused), []);
    assert_eq!(core.step(s(0), room(15)), [], "15 MiB of 1 GiB");
    assert_eq!(core.deadline(), Some(LOOK_EACH));
    assert_eq!(core.step(s(1), Event::Tick), [Action::Look]);
    assert_eq!(core.step(s(1), room(16)), [Action::Wake], "16 MiB of 1 GiB");
    let refused = Event::Refused { again: true };
    assert_eq!(core.step(s(1), refused), []);
    assert_eq!(core.step(s(1), refused), []);
    // What there is was not enough.
    for (second, mebibytes, expected) in [
        (2, 20, None),
        // Somebody else took more: the mark goes down with it.
        (3, 3, None),
        (4, 18, None),
        (5, 19, Some(Action::Wake)),
    ] {
        assert_eq!(core.step(s(second), Event::Tick), [Action::Look]);
        let actions = core.step(s(second), room(mebibytes));
        assert_eq!(actions, Vec::from_iter(expected), "{mebibytes} MiB");
    }
    assert_eq!(core.step(s(5), Event::Ended), []);
    assert_eq!(core.step(s(5), Event::Ended), [Action::TellRoom]);
    assert_eq!(core.deadline(), None);
    assert!(!core.is_full());
}

#[test]
fn requests_are_tried_again_without_visible_room_and_when_ordered() {
    let mut core = Core::default();
    core.step(s(0), Event::Refused { again: false });
    core.step(s(0), Event::Looked(None));
    assert_eq!(
        core.step(TRY_EACH, Event::Tick),
        [Action::Look, Action::Wake]
    );
    assert_eq!(core.round(), 1);
    assert_eq!(core.step(TRY_EACH, Event::Refused { again: true }), []);
    assert_eq!(core.step(TRY_EACH, Event::Looked(None)), []);
    assert_eq!(core.step(TRY_EACH, Event::Ordered), [Action::Wake]);
    // None is held: nobody to wake.
    assert_eq!(core.step(TRY_EACH, Event::Ordered), []);
    assert_eq!(core.step(TRY_EACH, Event::Ended), [Action::TellRoom]);
    assert_eq!(core.step(TRY_EACH, Event::Ordered), []);
}

#[test]
fn given_up_is_for_good() {
    let mut core = Core::default();
    core.step(s(0), Event::Refused { again: false });
    assert_eq!(core.step(s(0), Event::GiveUp), [Action::Wake]);
    assert_eq!(core.round(), 1);
    for event in [
        Event::Refused { again: true },
        Event::Ended,
        room(99),
        Event::Tick,
        Event::GiveUp,
    ] {
        assert_eq!(core.step(s(1), event), [], "{event:?}");
        assert!(!core.is_full());
    }
    assert_eq!(core.deadline(), None);
}

#[derive(Clone, Debug)]
enum Move {
    /// The guest writes so many MiB.
    Write(u64),
    /// One that was woken does its try; the number chooses which.
    Try(usize),
    Free(u64),
    Take(u64),
    /// The look is answered, or fails.
    Answer(bool),
    Order,
    Pass(u64),
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        4 => (1..40_u64).prop_map(Move::Write),
        6 => (0..8_usize).prop_map(Move::Try),
        2 => (1..200_u64).prop_map(Move::Free),
        2 => (1..200_u64).prop_map(Move::Take),
        3 => prop::bool::weighted(0.8).prop_map(Move::Answer),
        1 => Just(Move::Order),
        3 => (0..40_u64).prop_map(Move::Pass),
    ]
}

#[derive(Debug, Default)]
struct World {
    core: Core,
    now: Duration,
    free: u64,
    written: u64,
    looking: bool,
    held: Vec<u64>,
    trying: Vec<u64>,
    /// What the machine was told last: whether the pool is full.
    told_full: bool,
}

impl World {
    fn feed(&mut self, event: Event) {
        for action in self.core.step(self.now, event) {
            match action {
                Action::TellFull => {
                    assert!(!self.told_full, "told twice");
                    self.told_full = true;
                }
                Action::TellRoom => {
                    assert!(self.told_full, "there was room");
                    assert!(self.held.is_empty() && self.trying.is_empty(), "{self:?}");
                    self.told_full = false;
                }
                Action::Look => {
                    assert!(!self.looking, "two looks");
                    self.looking = true;
                }
                Action::Wake => {
                    assert!(!self.held.is_empty());
                    let held = std::mem::take(&mut self.held);
                    self.trying.extend(held);
                }
            }
        }
        assert_eq!(
            self.told_full,
            !(self.held.is_empty() && self.trying.is_empty()),
            "after {event:?}: {self:?}"
        );
        assert_eq!(self.core.is_full(), self.told_full);
    }

    fn request(&mut self, size: u64, again: bool) {
        if size <= self.free {
            self.free -= size;
            self.written += size;
            if again {
                self.feed(Event::Ended);
            }
        } else {
            self.held.push(size);
            self.feed(Event::Refused { again });
        }
    }

    fn apply(&mut self, next: &Move) {
        match next {
            Move::Write(size) => self.request(*size, false),
            Move::Try(index) if !self.trying.is_empty() => {
                let size = self.trying.remove(index % self.trying.len());
                self.request(size, true);
            }
            Move::Free(size) => self.free += size,
            Move::Take(size) => self.free = self.free.saturating_sub(*size),
            Move::Answer(works) if self.looking => {
                self.looking = false;
                let room = Room {
                    total: TOTAL,
                    available: self.free * MIB,
                };
                self.feed(Event::Looked(works.then_some(room)));
            }
            Move::Order => self.feed(Event::Ordered),
            Move::Pass(seconds) => {
                let end = self.now + s(*seconds);
                while let Some(deadline) = self.core.deadline().filter(|deadline| *deadline <= end)
                {
                    self.now = self.now.max(deadline);
                    let before = self.core.deadline();
                    self.feed(Event::Tick);
                    assert_ne!(self.core.deadline(), before, "a timer that never ends");
                }
                self.now = end;
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing is lost, told twice or forgotten (asserted in the world), and with room everything is written, once.
    #[test]
    fn with_room_everything_is_written_in_the_end(history in prop::collection::vec(moves(), 0..80)) {
        let mut world = World { free: 50, ..World::default() };
        let mut asked = 0;
        for next in &history {
            if let Move::Write(size) = next {
                asked += size;
            }
            world.apply(next);
        }
        world.free += 10_000;
        for _ in 0..4 {
            world.apply(&Move::Pass(31));
            world.apply(&Move::Answer(true));
            while !world.trying.is_empty() {
                world.apply(&Move::Try(0));
            }
        }
        prop_assert_eq!(world.written, asked, "{:?}", world);
        prop_assert!(!world.told_full);
    }
}
