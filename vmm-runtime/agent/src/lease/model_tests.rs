//! The core against a small world: an API that loses, delays and reorders answers, and an operator that times nonces.
//!
//! The promise: while the host believes that it holds an epoch, the operator has not fenced that epoch.

use super::core::{Action, Event, LeaseCore, LeaseView, State, Timing};
use crate::clock::Boottime;
use proptest::prelude::*;
use std::time::Duration;

/// How the operator's clock runs against the host's, in per cent.
const SLOW: u64 = 90;
const FAST: u64 = 110;
/// The operator's patience on its own clock, in milliseconds.
const LEASE_MILLISECONDS: u64 = 6_000;

/// What becomes of one request, in milliseconds of the host's clock.
#[derive(Clone, Copy, Debug)]
struct Fate {
    request_delay: Option<u64>,
    answer_delay: Option<u64>,
}

fn fate() -> impl Strategy<Value = Fate> {
    let delay = || {
        prop_oneof![
            6 => (1..60u64).prop_map(Some),
            2 => (500..5_500u64).prop_map(Some),
            2 => Just(None),
        ]
    };
    (delay(), delay()).prop_map(|(request_delay, answer_delay)| Fate {
        request_delay,
        answer_delay,
    })
}

struct Request {
    id: u32,
    arrives: u64,
    action: Action,
    answer_delay: Option<u64>,
}

struct Waits {
    id: u32,
    until: u64,
    answer: Event,
}

struct World {
    now: u64,
    lease: LeaseView,
    versions: u64,
    /// The nonce that the operator times, and since when.
    timed: (Option<String>, u64),
    lease_milliseconds: u64,
    /// Requests on their way.
    requests: Vec<Request>,
    /// The one that the client waits for.
    waits: Option<Waits>,
    wake: Option<u64>,
    holds: u32,
}

impl World {
    fn serve(&mut self, action: &Action) -> Event {
        match action {
            Action::Read => Event::Read(Some(self.lease.clone())),
            Action::Write(renewal) => {
                if renewal.uid != self.lease.uid
                    || renewal.resource_version != self.lease.resource_version
                {
                    return Event::Conflict;
                }
                self.versions += 1;
                self.lease = LeaseView {
                    resource_version: self.versions.to_string(),
                    state: State::Held,
                    nonce: Some(renewal.nonce.clone()),
                    session: Some("me".into()),
                    ..self.lease.clone()
                };
                Event::Accepted(self.lease.clone())
            }
            other => panic!("{other:?} is no request"),
        }
    }

    fn operate(&mut self) {
        if self.lease.state == State::Fenced {
            self.timed = (None, self.now);
        } else if self.timed.0 != self.lease.nonce {
            self.timed = (self.lease.nonce.clone(), self.now);
        } else if self.now - self.timed.1 >= self.lease_milliseconds {
            self.versions += 1;
            self.lease.state = State::Fenced;
            self.lease.epoch += 1;
            self.lease.resource_version = self.versions.to_string();
        }
    }
}

/// Runs a schedule; the number of times something was held, or what went wrong.
fn simulate(fates: &[Fate], operator_percent: u64) -> Result<u32, String> {
    let mut core = LeaseCore::new(Timing::default(), "me", "p");
    let mut world = World {
        now: 0,
        lease: LeaseView {
            uid: "uid".into(),
            resource_version: "1".into(),
            state: State::Fenced,
            epoch: 1,
            nonce: None,
            session: None,
        },
        versions: 1,
        timed: (None, 0),
        lease_milliseconds: LEASE_MILLISECONDS * 100 / operator_percent,
        requests: Vec::new(),
        waits: None,
        wake: Some(0),
        holds: 0,
    };
    let mut fates = fates.iter().copied();
    let mut next_id = 0;
    let mut events = vec![Event::LeftoversKnown];
    loop {
        for event in std::mem::take(&mut events) {
            for action in core.step(Boottime::from_millis(world.now), event) {
                match action {
                    Action::Read | Action::Write(_) => {
                        let Some(fate) = fates.next() else {
                            return Ok(world.holds);
                        };
                        next_id += 1;
                        // The client gives up after 3 s, whatever becomes of the request.
                        world.waits = Some(Waits {
                            id: next_id,
                            until: world.now + 3_000,
                            answer: match action {
                                Action::Read => Event::ReadFailed,
                                _ => Event::NoAnswer,
                            },
                        });
                        world.wake = None;
                        if let Some(delay) = fate.request_delay {
                            world.requests.push(Request {
                                id: next_id,
                                arrives: world.now + delay,
                                action,
                                answer_delay: fate.answer_delay,
                            });
                        }
                    }
                    Action::Hold(_) => world.holds += 1,
                    Action::LetGo(_) => {}
                    Action::WakeAt(time) => world.wake = Some(time.as_millis()),
                }
            }
        }
        world.now += 1;
        if world.now > 600_000 {
            return Err("nothing happens any more".into());
        }
        let due: Vec<Request> = {
            let now = world.now;
            let (due, later) = world
                .requests
                .drain(..)
                .partition(|request| request.arrives <= now);
            world.requests = later;
            due
        };
        for request in due {
            let answer = world.serve(&request.action);
            if let (Some(delay), Some(waits)) = (request.answer_delay, &mut world.waits)
                && waits.id == request.id
                && world.now + delay < waits.until
            {
                waits.until = world.now + delay;
                waits.answer = answer;
            }
        }
        world.operate();
        if let Some(held) = core.held()
            && held.is_valid(Boottime::from_millis(world.now))
            && (world.lease.state != State::Held || world.lease.epoch != held.epoch)
        {
            return Err(format!(
                "at {} the host holds {held:?}, the lease says {:?}",
                world.now, world.lease
            ));
        }
        if world.waits.as_ref().is_some_and(|w| w.until <= world.now) {
            events.extend(world.waits.take().map(|waits| waits.answer));
        } else if world.wake.is_some_and(|time| time <= world.now) {
            world.wake = None;
            events.push(Event::Tick);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn never_holds_what_was_fenced(
        fates in prop::collection::vec(fate(), 20..120),
        percent in prop_oneof![Just(SLOW), Just(100u64), Just(FAST)],
    ) {
        let outcome = simulate(&fates, percent);
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}

#[test]
fn a_calm_network_holds_without_a_break() {
    let calm = Fate {
        request_delay: Some(2),
        answer_delay: Some(2),
    };
    // One read and one join, then a renewal each second.
    assert_eq!(simulate(&[calm; 61], 100), Ok(60));
}

#[test]
fn timing_matches_the_operators_lease() {
    let timing = Timing::default();
    let needed = Duration::from_millis(5_720);
    let rho = 0.10;
    let fence = timing.fence.as_secs_f64();
    let kill = timing.kill.as_secs_f64();
    let bound = (1.0 + rho) * (fence / (1.0 - rho) + kill + 0.2);
    assert!((bound - needed.as_secs_f64()).abs() < 0.1, "{bound}");
    assert!(bound < LEASE_MILLISECONDS as f64 / 1000.0);
}
