//! The decisions about the Lease, without clock, client or randomness.
//!
//! ```text
//!            read: Held, another session              (a rebooted host: silent until it was fenced)
//!          ┌──────────────┐
//!          ▼              │
//!  ┌──► Watching ─────────┘
//!  │       │ read: Fenced, and the host's leftovers are accounted for ─► write Held, same epoch
//!  │       │ read: Held, my session (the agent was restarted)          ─► write a new nonce
//!  │       ▼
//!  │    Holding {epoch, until = t_send + D_fence} ──every D_renew──► write a new nonce
//!  │       │  conflict, or no answer ─► read: my nonce = that attempt had succeeded
//!  └───────┘  read: Fenced, another uid, another session, another epoch ─► let go
//! ```

use crate::clock::Boottime;
use std::{collections::VecDeque, time::Duration};

/// Attempts without an answer that are remembered. More than fit into a deadline: an older one extends nothing.
const MAX_UNANSWERED: usize = 16;

/// How often and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From one renewal to the next.
    pub renew: Duration,
    /// From the sending of a renewal until the host may no longer act on it (`D_fence`).
    pub fence: Duration,
    /// What closing every gate takes at most (`K`).
    pub kill: Duration,
    /// From a failure to the next attempt.
    pub retry: Duration,
}

impl Default for Timing {
    /// The profile Default: renew 1 s, fence 4 s, kill 0.5 s, which with a clock error of 10 % and a margin of 0.2 s
    /// needs a lease of 5.72 s; the operator's is 6 s.
    fn default() -> Self {
        Self {
            renew: Duration::from_secs(1),
            fence: Duration::from_secs(4),
            kill: Duration::from_millis(500),
            retry: Duration::from_millis(250),
        }
    }
}

/// `Held` or `Fenced`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host renews it.
    Held,
    /// The operator's word: the host has to join anew.
    Fenced,
}

/// What a Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// The object's uid.
    pub uid: String,
    /// The object's resource version.
    pub resource_version: String,
    /// Held or fenced.
    pub state: State,
    /// The host epoch, at least 1.
    pub epoch: i64,
    /// The nonce of the last renewal.
    pub nonce: Option<String>,
    /// The session that renewed it.
    pub session: Option<String>,
}

/// What the host holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The host epoch.
    pub epoch: i64,
    /// Until when it may be acted upon.
    pub until: Boottime,
}

impl Held {
    /// Whether it may be acted upon now.
    #[must_use]
    pub fn is_valid(&self, now: Boottime) -> bool {
        now < self.until
    }
}

/// A compare-and-swap of the Lease: state `Held`, a new nonce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The uid it must still have.
    pub uid: String,
    /// The resource version it must still have.
    pub resource_version: String,
    /// The epoch, as it was read.
    pub epoch: i64,
    /// The new nonce.
    pub nonce: String,
    /// When this was decided, hence before it is sent.
    pub sent: Boottime,
    /// Whether it was fenced before.
    pub joins: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time went by.
    Tick,
    /// Every process that an earlier agent or boot left behind is either known or proved dead.
    LeftoversKnown,
    /// The answer to [`Action::Read`]; `None` inside: there is no Lease.
    Read(Option<LeaseView>),
    /// The Lease could not be read, or does not say what a Lease says.
    ReadFailed,
    /// The renewal was taken; what the Lease says now.
    Accepted(LeaseView),
    /// The renewal was refused: somebody changed the Lease.
    Conflict,
    /// Nobody knows whether the renewal was taken.
    NoAnswer,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the Lease, with quorum.
    Read,
    /// Renew or join.
    Write(Renewal),
    /// Tell everybody that this is held.
    Hold(Held),
    /// Tell everybody that nothing is held.
    LetGo(LetGo),
    /// Send [`Event::Tick`] then.
    WakeAt(Boottime),
}

/// Why nothing is held any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetGo {
    /// The operator fenced the host.
    Fenced,
    /// The Lease is another object, or none.
    Replaced,
    /// Another agent's session renews it.
    AnotherSession,
    /// Its epoch went back: the API server's data are older than what this host has seen. Nothing starts.
    EpochRegression,
}

#[derive(Debug)]
enum InFlight {
    Read,
    Write(Renewal),
}

/// The core. One step at a time; at most one request is in flight.
#[derive(Debug)]
pub struct LeaseCore {
    timing: Timing,
    session: String,
    nonce_prefix: String,
    nonces: u64,
    leftovers_known: bool,
    seen: Option<LeaseView>,
    held: Option<Held>,
    highest_epoch: i64,
    in_flight: Option<InFlight>,
    unanswered: VecDeque<(String, Boottime)>,
    next: Boottime,
}

impl LeaseCore {
    /// A core for this boot's `session`. `nonce_prefix` is random and belongs to this process: with a count behind it,
    /// it makes each nonce unique.
    #[must_use]
    pub fn new(timing: Timing, session: &str, nonce_prefix: &str) -> Self {
        Self {
            timing,
            session: session.to_owned(),
            nonce_prefix: nonce_prefix.to_owned(),
            nonces: 0,
            leftovers_known: false,
            seen: None,
            held: None,
            highest_epoch: 0,
            in_flight: None,
            unanswered: VecDeque::new(),
            next: Boottime::default(),
        }
    }

    /// Takes in what happened, answers what to do.
    pub fn step(&mut self, now: Boottime, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::LeftoversKnown => {
                self.leftovers_known = true;
                self.next = now;
            }
            Event::Read(view) => {
                self.in_flight = None;
                self.take_view(now, view, &mut actions);
            }
            Event::ReadFailed => {
                self.in_flight = None;
                self.seen = None;
                self.next = now.plus(self.timing.retry);
            }
            Event::Accepted(view) => {
                if let Some(InFlight::Write(renewal)) = self.in_flight.take() {
                    self.hold(renewal.epoch, renewal.sent, &mut actions);
                    self.next = renewal.sent.plus(self.timing.renew);
                }
                self.highest_epoch = self.highest_epoch.max(view.epoch);
                self.seen = Some(view);
            }
            Event::Conflict => {
                self.remember_attempt();
                self.seen = None;
                self.next = now;
            }
            Event::NoAnswer => {
                self.remember_attempt();
                self.seen = None;
                self.next = now.plus(self.timing.retry);
            }
        }
        self.advance(now, &mut actions);
        actions
    }

    /// What is held, whether or not its deadline has passed.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    fn take_view(&mut self, now: Boottime, view: Option<LeaseView>, actions: &mut Vec<Action>) {
        self.next = now.plus(self.timing.renew);
        let Some(view) = view else {
            self.seen = None;
            self.let_go(LetGo::Replaced, actions);
            return;
        };
        if view.epoch < self.highest_epoch {
            self.seen = None;
            self.let_go(LetGo::EpochRegression, actions);
            return;
        }
        self.highest_epoch = view.epoch;
        let replaced = self
            .seen
            .as_ref()
            .is_some_and(|before| before.uid != view.uid);
        if view.state == State::Fenced {
            self.let_go(LetGo::Fenced, actions);
            self.next = now;
        } else if view.session.as_deref() != Some(&self.session) {
            self.let_go(LetGo::AnotherSession, actions);
        } else if replaced || self.held.is_some_and(|held| held.epoch != view.epoch) {
            self.let_go(LetGo::Replaced, actions);
            self.next = now;
        } else {
            let sent = self
                .unanswered
                .iter()
                .find(|(nonce, _)| view.nonce.as_ref() == Some(nonce))
                .map(|(_, sent)| *sent);
            match sent {
                // It had succeeded after all; the deadline counts from the sending of that attempt.
                Some(sent) => {
                    self.hold(view.epoch, sent, actions);
                    self.next = sent.plus(self.timing.renew);
                }
                None => self.next = now,
            }
        }
        self.seen = Some(view);
    }

    /// Starts what is due.
    fn advance(&mut self, now: Boottime, actions: &mut Vec<Action>) {
        if self.in_flight.is_some() {
            return;
        }
        if now < self.next {
            actions.push(Action::WakeAt(self.next));
            return;
        }
        if let Some(renewal) = self.renewal(now) {
            self.in_flight = Some(InFlight::Write(renewal.clone()));
            actions.push(Action::Write(renewal));
        } else {
            self.in_flight = Some(InFlight::Read);
            actions.push(Action::Read);
        }
    }

    /// The renewal that the Lease as last read allows.
    fn renewal(&mut self, now: Boottime) -> Option<Renewal> {
        let view = self.seen.as_ref()?;
        let joins = match view.state {
            State::Held if view.session.as_deref() == Some(&self.session) => false,
            State::Fenced if self.leftovers_known => true,
            // A read that showed it is old by now: look again.
            State::Held | State::Fenced => return None,
        };
        self.nonces += 1;
        Some(Renewal {
            uid: view.uid.clone(),
            resource_version: view.resource_version.clone(),
            epoch: view.epoch,
            nonce: format!("{}-{}", self.nonce_prefix, self.nonces),
            sent: now,
            joins,
        })
    }

    fn remember_attempt(&mut self) {
        if let Some(InFlight::Write(renewal)) = self.in_flight.take() {
            if self.unanswered.len() == MAX_UNANSWERED {
                self.unanswered.pop_front();
            }
            self.unanswered.push_back((renewal.nonce, renewal.sent));
        }
    }

    fn hold(&mut self, epoch: i64, sent: Boottime, actions: &mut Vec<Action>) {
        let mut until = sent.plus(self.timing.fence);
        if let Some(held) = self.held
            && held.epoch == epoch
        {
            until = until.max(held.until);
        }
        let held = Held { epoch, until };
        self.unanswered.retain(|(_, other)| *other > sent);
        if self.held != Some(held) {
            self.held = Some(held);
            actions.push(Action::Hold(held));
        }
    }

    fn let_go(&mut self, why: LetGo, actions: &mut Vec<Action>) {
        self.unanswered.clear();
        if self.held.take().is_some() {
            actions.push(Action::LetGo(why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Boottime {
        Boottime::from_millis(milliseconds)
    }

    fn view(state: State, epoch: i64, version: u32, nonce: &str, session: &str) -> LeaseView {
        LeaseView {
            uid: "uid".into(),
            resource_version: version.to_string(),
            state,
            epoch,
            nonce: Some(nonce.into()),
            session: Some(session.into()),
        }
    }

    fn write(epoch: i64, version: u32, count: u32, sent: u64, joins: bool) -> Action {
        Action::Write(Renewal {
            uid: "uid".into(),
            resource_version: version.to_string(),
            epoch,
            nonce: format!("p-{count}"),
            sent: at(sent),
            joins,
        })
    }

    fn hold(epoch: i64, until: u64) -> Action {
        Action::Hold(Held {
            epoch,
            until: at(until),
        })
    }

    fn core() -> LeaseCore {
        LeaseCore::new(Timing::default(), "me", "p")
    }

    fn run(core: &mut LeaseCore, script: Vec<(u64, Event, Vec<Action>)>) {
        for (step, (time, event, expected)) in script.into_iter().enumerate() {
            let what = format!("step {step}: {event:?}");
            assert_eq!(core.step(at(time), event), expected, "{what}");
        }
    }

    /// A core that holds epoch 3, renewed at 1000, resource version 6.
    fn holding() -> LeaseCore {
        let mut core = core();
        run(
            &mut core,
            vec![
                (900, Event::Tick, vec![Action::Read]),
                (910, Event::LeftoversKnown, vec![]),
                (
                    1000,
                    Event::Read(Some(view(State::Fenced, 3, 5, "old", "old"))),
                    vec![write(3, 5, 1, 1000, true)],
                ),
                (
                    1300,
                    Event::Accepted(view(State::Held, 3, 6, "p-1", "me")),
                    vec![hold(3, 5000), Action::WakeAt(at(2000))],
                ),
            ],
        );
        core
    }

    #[test]
    fn joins_a_fenced_lease_with_the_deadline_of_the_sending() {
        assert_eq!(
            holding().held(),
            Some(Held {
                epoch: 3,
                until: at(5000)
            })
        );
    }

    #[test]
    fn renews_each_second_counted_from_the_sending() {
        run(
            &mut holding(),
            vec![
                (1999, Event::Tick, vec![Action::WakeAt(at(2000))]),
                (2000, Event::Tick, vec![write(3, 6, 2, 2000, false)]),
                (
                    2100,
                    Event::Accepted(view(State::Held, 3, 7, "p-2", "me")),
                    vec![hold(3, 6000), Action::WakeAt(at(3000))],
                ),
            ],
        );
    }

    #[test]
    fn does_not_join_before_leftovers_are_known() {
        let fenced = || view(State::Fenced, 1, 5, "old", "old");
        run(
            &mut core(),
            vec![
                (0, Event::Tick, vec![Action::Read]),
                (10, Event::Read(Some(fenced())), vec![Action::Read]),
                (20, Event::ReadFailed, vec![Action::WakeAt(at(270))]),
                (30, Event::LeftoversKnown, vec![Action::Read]),
                (
                    40,
                    Event::Read(Some(fenced())),
                    vec![write(1, 5, 1, 40, true)],
                ),
            ],
        );
    }

    #[test]
    fn a_rebooted_host_is_silent_until_it_was_fenced() {
        let before = || view(State::Held, 3, 5, "n", "before the boot");
        run(
            &mut core(),
            vec![
                (0, Event::LeftoversKnown, vec![Action::Read]),
                (
                    10,
                    Event::Read(Some(before())),
                    vec![Action::WakeAt(at(1010))],
                ),
                (1010, Event::Tick, vec![Action::Read]),
                (
                    1020,
                    Event::Read(Some(before())),
                    vec![Action::WakeAt(at(2020))],
                ),
                (2020, Event::Tick, vec![Action::Read]),
                (
                    2030,
                    Event::Read(Some(view(State::Fenced, 4, 6, "n", "before the boot"))),
                    vec![write(4, 6, 1, 2030, true)],
                ),
            ],
        );
    }

    #[test]
    fn a_restarted_agent_goes_on_renewing() {
        run(
            &mut core(),
            vec![
                (0, Event::Tick, vec![Action::Read]),
                (
                    10,
                    Event::Read(Some(view(State::Held, 3, 5, "q-9", "me"))),
                    vec![write(3, 5, 1, 10, false)],
                ),
            ],
        );
    }

    #[test]
    fn a_conflict_with_the_own_nonce_is_success_of_that_attempt() {
        run(
            &mut holding(),
            vec![
                (2000, Event::Tick, vec![write(3, 6, 2, 2000, false)]),
                (4500, Event::NoAnswer, vec![Action::WakeAt(at(4750))]),
                (4750, Event::Tick, vec![Action::Read]),
                // Read before the delayed renewal arrived, which then makes the next one conflict.
                (
                    4760,
                    Event::Read(Some(view(State::Held, 3, 6, "p-1", "me"))),
                    vec![write(3, 6, 3, 4760, false)],
                ),
                (4800, Event::Conflict, vec![Action::Read]),
                (
                    4810,
                    Event::Read(Some(view(State::Held, 3, 7, "p-2", "me"))),
                    vec![hold(3, 6000), write(3, 7, 4, 4810, false)],
                ),
            ],
        );
    }

    #[test]
    fn a_label_edit_only_costs_a_read() {
        run(
            &mut holding(),
            vec![
                (2000, Event::Tick, vec![write(3, 6, 2, 2000, false)]),
                (2010, Event::Conflict, vec![Action::Read]),
                (
                    2020,
                    Event::Read(Some(view(State::Held, 3, 9, "p-1", "me"))),
                    vec![write(3, 9, 3, 2020, false)],
                ),
            ],
        );
    }

    #[test]
    fn lets_go_when_fenced_and_joins_with_the_new_epoch() {
        run(
            &mut holding(),
            vec![
                (2000, Event::Tick, vec![write(3, 6, 2, 2000, false)]),
                (2010, Event::Conflict, vec![Action::Read]),
                (
                    2020,
                    Event::Read(Some(view(State::Fenced, 4, 9, "p-1", "me"))),
                    vec![Action::LetGo(LetGo::Fenced), write(4, 9, 3, 2020, true)],
                ),
                (
                    2030,
                    Event::Accepted(view(State::Held, 4, 10, "p-3", "me")),
                    vec![hold(4, 6020), Action::WakeAt(at(3020))],
                ),
            ],
        );
    }

    #[test]
    fn lets_go_of_what_is_not_the_same_lease_any_more() {
        let mut replaced = view(State::Held, 3, 9, "p-1", "me");
        replaced.epoch = 5;
        for (found, why) in [
            (None, LetGo::Replaced),
            (Some(replaced), LetGo::Replaced),
            (
                Some(view(State::Held, 3, 9, "x", "somebody else")),
                LetGo::AnotherSession,
            ),
            (
                Some(view(State::Held, 2, 9, "p-1", "me")),
                LetGo::EpochRegression,
            ),
            (
                Some(view(State::Fenced, 2, 9, "p-1", "me")),
                LetGo::EpochRegression,
            ),
        ] {
            let mut core = holding();
            core.step(at(2000), Event::Tick);
            core.step(at(2010), Event::Conflict);
            let actions = core.step(at(2020), Event::Read(found.clone()));
            assert_eq!(actions.first(), Some(&Action::LetGo(why)), "{found:?}");
            assert_eq!(core.held(), None, "{found:?}");
        }
    }

    #[test]
    fn an_unreadable_api_changes_nothing_that_is_held() {
        let mut core = holding();
        run(
            &mut core,
            vec![
                (2000, Event::Tick, vec![write(3, 6, 2, 2000, false)]),
                (2500, Event::NoAnswer, vec![Action::WakeAt(at(2750))]),
                (2750, Event::Tick, vec![Action::Read]),
                (2760, Event::ReadFailed, vec![Action::WakeAt(at(3010))]),
            ],
        );
        let held = core.held().unwrap();
        assert!(held.is_valid(at(4999)));
        assert!(!held.is_valid(at(5000)));
    }
}
