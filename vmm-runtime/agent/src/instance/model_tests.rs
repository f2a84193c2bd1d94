//! The core in a small world: one instance in an API, one host with at most one process, a lease that comes and goes,
//! an agent that is restarted, a host that is rebooted, and answers in any order.

use super::core::{
    Action, End, Event, Failure, Found, Guest, InstanceCore, Now, Pause, Run, Started, Wish,
};
use crate::{clock::Boottime, lease::Held};
use paddock_crds::{
    VirtualMachineInstanceStatus as Status,
    virtual_machine_instance::{InstancePhase as Phase, Power},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    /// Answer one of the outstanding calls; the number chooses which, the flag whether it works.
    Answer(usize, bool),
    /// The operator's watch event arrives.
    Watch,
    /// The watch shows the wish of an earlier generation.
    OldWatch,
    /// The watch says deleted.
    Vanish,
    SetPower(Power),
    NewToken,
    Delete,
    ForceGone,
    /// The operator stamps the instance with the host's epoch.
    Stamp,
    LeaseLost,
    LeaseHeld,
    Fenced,
    Crash,
    GuestOff,
    RestartAgent,
    Reboot,
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        24 => (0..4usize, prop::bool::weighted(0.85)).prop_map(|(n, ok)| Op::Answer(n, ok)),
        5 => Just(Op::Watch),
        1 => Just(Op::OldWatch),
        1 => Just(Op::Vanish),
        3 => prop_oneof![Just(Power::Running), Just(Power::Paused), Just(Power::Stopped)].prop_map(Op::SetPower),
        1 => Just(Op::NewToken),
        1 => Just(Op::Delete),
        1 => Just(Op::ForceGone),
        2 => Just(Op::Stamp),
        1 => Just(Op::LeaseLost),
        3 => Just(Op::LeaseHeld),
        1 => Just(Op::Fenced),
        2 => Just(Op::Crash),
        1 => Just(Op::GuestOff),
        1 => Just(Op::RestartAgent),
        1 => Just(Op::Reboot),
        8 => prop_oneof![Just(10u64), Just(1_000), Just(61_000)].prop_map(Op::Pass),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Process {
    run: Run,
    started: Started,
    guest: Option<Guest>,
    stopping: bool,
}

#[derive(Debug)]
struct World {
    core: InstanceCore,
    now: u64,
    wake: Option<u64>,
    wish: Wish,
    old_wish: Wish,
    in_api: bool,
    status: Status,
    held: Option<i64>,
    epoch: i64,
    process: Option<Process>,
    /// A process that died and was not cleared: its cgroup is not proved empty.
    remains: Option<End>,
    calls: Vec<Action>,
    /// The epoch that the last read showed, and whether it showed a wish to run.
    confirmed: Option<(i64, bool)>,
    released: bool,
    ended: bool,
}

impl World {
    fn new() -> Self {
        let wish = Wish {
            generation: 1,
            host_epoch: 1,
            power: Power::Running,
            restart_token: None,
            config_revision: "c".into(),
            stop_deadline_seconds: 30,
            dhcp: String::new(),
            deleting: false,
        };
        let (core, actions) = InstanceCore::new(None);
        let mut world = Self {
            core,
            now: 1_000,
            wake: None,
            old_wish: wish.clone(),
            wish,
            in_api: true,
            status: Status::default(),
            held: Some(1),
            epoch: 1,
            process: None,
            remains: None,
            calls: actions,
            confirmed: None,
            released: false,
            ended: false,
        };
        world.tell(Event::Wished(world.wish.clone()));
        world
    }

    fn tell(&mut self, event: Event) {
        if self.ended {
            return;
        }
        let now = Now {
            boot: Boottime::from_millis(self.now),
            wall: jiff::Timestamp::UNIX_EPOCH,
            held: self.held.map(|epoch| Held {
                epoch,
                until: Boottime::from_millis(u64::MAX),
            }),
        };
        self.wake = None;
        for action in self.core.step(now, event.clone()) {
            self.check(&action, &event);
            match action {
                Action::Report(status) => self.status = *status,
                Action::WakeAt(time) => {
                    assert!(
                        time.as_millis() > self.now,
                        "woken in the past after {event:?}"
                    );
                    self.wake = Some(time.as_millis());
                }
                Action::End => self.ended = true,
                call => self.calls.push(call),
            }
        }
    }

    /// The promises.
    fn check(&mut self, action: &Action, event: &Event) {
        match action {
            Action::Prepare => self.check_start("prepared", event),
            Action::Spawn(_) => {
                self.check_start("spawned", event);
                assert_eq!(self.process, None, "two processes after {event:?}");
                assert_eq!(self.remains, None, "spawned beside remains after {event:?}");
            }
            Action::Clean => {
                assert_eq!(
                    self.process, None,
                    "cleaned a running guest after {event:?}"
                );
                assert_eq!(self.remains, None, "cleaned remains after {event:?}");
            }
            Action::Report(status) => {
                if let Some(released) = &status.released {
                    assert_eq!(self.process, None, "released while it runs after {event:?}");
                    assert_eq!(self.remains, None, "released with remains after {event:?}");
                    assert_eq!(
                        Some(released.host_epoch),
                        self.held,
                        "released without the lease"
                    );
                    assert_eq!(status.phase, Phase::Stopped);
                    self.released = true;
                }
                assert!(
                    !self.released || status.released.is_some(),
                    "took its release back"
                );
            }
            _ => {}
        }
    }

    fn check_start(&self, what: &str, event: &Event) {
        assert!(
            !self.released,
            "{what} after it was released, after {event:?}"
        );
        let (epoch, wanted) = self.confirmed.expect("nothing was read");
        assert_eq!(
            Some(epoch),
            self.held,
            "{what} under another epoch after {event:?}"
        );
        assert!(wanted, "{what} although it should be off, after {event:?}");
    }

    fn started(&self) -> Started {
        Started {
            generation: self.wish.generation,
            config_revision: self.wish.config_revision.clone(),
            restart_token: self.wish.restart_token.clone(),
            at: String::new(),
            process_id: Some(1),
            accelerator: None,
            dhcp: String::new(),
        }
    }

    fn answer(&mut self, index: usize, works: bool) {
        if self.calls.is_empty() {
            return;
        }
        let index = index % self.calls.len();
        let event = match self.calls.remove(index) {
            Action::Examine(_) if !works => Event::ExamineFailed("not now".into()),
            Action::Examine(run) => Event::Examined(match (&mut self.process, &self.remains) {
                (Some(process), _) => {
                    process.run = run;
                    Found::Adopted {
                        started: process.started.clone(),
                        guest: process.guest.clone().unwrap_or(Guest::Starting),
                    }
                }
                (None, Some(end)) => Found::Ended(end.clone()),
                (None, None) => Found::Nothing,
            }),
            Action::Confirm if !works => Event::ConfirmFailed,
            Action::Confirm => {
                let answer = self.in_api.then(|| self.wish.clone());
                if let Some(wish) = &answer {
                    let wanted = wish.power != Power::Stopped && !wish.deleting;
                    self.confirmed = Some((wish.host_epoch, wanted));
                }
                Event::Confirmed(answer)
            }
            Action::Prepare if works => Event::Prepared(Ok(())),
            Action::Prepare => Event::Prepared(Err(Failure::new("PoolUnavailable", "no"))),
            Action::Spawn(run) => {
                assert_eq!(self.process, None);
                if works {
                    let started = self.started();
                    self.process = Some(Process {
                        run,
                        started: started.clone(),
                        guest: None,
                        stopping: false,
                    });
                    self.calls.push(Action::WakeAt(Boottime::default()));
                    Event::Spawned(Ok(started))
                } else {
                    self.remains = Some(End::Crashed);
                    Event::Spawned(Err(Failure::new("HypervisorFailed", "no")))
                }
            }
            // Stands for: the guest gets to run.
            Action::WakeAt(_) => match &mut self.process {
                Some(process) if process.guest.is_none() => {
                    process.guest = Some(Guest::Running);
                    Event::GuestIs(process.run, Guest::Running)
                }
                _ => return,
            },
            Action::SetPower(power) => match &mut self.process {
                Some(process) if works && process.guest.is_some() && !process.stopping => {
                    let guest = match power {
                        Power::Paused => Guest::Paused(Pause::Requested),
                        Power::Running | Power::Stopped => Guest::Running,
                    };
                    process.guest = Some(guest.clone());
                    Event::GuestIs(process.run, guest)
                }
                _ => return,
            },
            Action::Stop(_) => match &mut self.process {
                Some(process) if works => {
                    process.stopping = true;
                    let run = process.run;
                    self.process = None;
                    self.remains = Some(End::Stopped("PowerButton"));
                    Event::Exited(run, End::Stopped("PowerButton"))
                }
                _ => Event::StopFailed,
            },
            Action::Clear if works => {
                self.process = None;
                self.remains = None;
                Event::Cleared
            }
            Action::Clear => Event::ClearFailed("left".into()),
            Action::Clean => Event::Cleaned,
            other => panic!("{other:?} is no call"),
        };
        self.tell(event);
    }

    fn die(&mut self, end: &End) {
        if let Some(process) = self.process.take() {
            self.remains = Some(end.clone());
            self.tell(Event::Exited(process.run, end.clone()));
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Wish)) {
        self.old_wish = self.wish.clone();
        change(&mut self.wish);
        self.wish.generation += 1;
    }

    fn restart_agent(&mut self) {
        if !self.in_api || self.ended {
            return;
        }
        let (core, actions) = InstanceCore::new(Some(&self.status));
        self.core = core;
        self.calls = actions;
        self.confirmed = None;
        if self.process.as_ref().is_some_and(|p| p.guest.is_none()) {
            self.calls.push(Action::WakeAt(Boottime::default()));
        }
        self.tell(Event::Wished(self.wish.clone()));
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Answer(index, works) => self.answer(index, works),
            Op::Watch if self.in_api => self.tell(Event::Wished(self.wish.clone())),
            Op::OldWatch if self.in_api => self.tell(Event::Wished(self.old_wish.clone())),
            Op::Watch | Op::OldWatch | Op::Vanish => self.tell(Event::Vanished),
            // The operator never turns a deleted or released instance on again.
            Op::SetPower(power) if !self.released => self.change(|wish| wish.power = power),
            Op::NewToken => self.change(|wish| {
                wish.restart_token = Some(format!("t{}", wish.generation));
            }),
            Op::Delete => self.change(|wish| wish.deleting = true),
            Op::ForceGone => self.in_api = false,
            Op::Stamp => {
                let epoch = self.epoch;
                self.change(|wish| wish.host_epoch = epoch);
            }
            Op::LeaseLost => {
                self.held = None;
                self.tell(Event::Tick);
            }
            Op::LeaseHeld => {
                self.held = Some(self.epoch);
                self.tell(Event::Tick);
            }
            Op::Fenced => {
                self.epoch += 1;
                self.held = None;
                self.tell(Event::Tick);
            }
            Op::Crash => self.die(&End::Crashed),
            Op::GuestOff => self.die(&End::GuestPowerOff),
            Op::RestartAgent => self.restart_agent(),
            Op::Reboot => {
                self.process = None;
                self.remains = None;
                self.epoch += 1;
                self.held = None;
                self.restart_agent();
            }
            Op::Pass(milliseconds) => self.pass(milliseconds),
            Op::SetPower(_) => {}
        }
    }

    fn pass(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds;
        while let Some(wake) = self.wake.filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            self.tell(Event::Tick);
        }
        self.now = end;
    }

    /// Everything works from now on.
    fn heal(&mut self) {
        if !self.released {
            self.change(|wish| wish.power = Power::Running);
        }
        let epoch = self.epoch;
        self.change(|wish| wish.host_epoch = epoch);
        self.held = Some(epoch);
        let event = if self.in_api {
            Event::Wished(self.wish.clone())
        } else {
            Event::Vanished
        };
        self.tell(event);
        for _ in 0..200 {
            if self.calls.is_empty() {
                self.pass(61_000);
            } else {
                self.answer(0, true);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn never_two_and_in_the_end_what_is_wished(ops in prop::collection::vec(op(), 0..120)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
        }
        world.heal();
        if !world.in_api {
            prop_assert!(world.ended, "not forgotten: {world:?}");
            prop_assert!(world.process.is_none(), "an orphan runs: {world:?}");
        } else if world.wish.deleting || world.released {
            prop_assert!(world.status.released.is_some(), "not released: {world:?}");
            prop_assert!(world.process.is_none(), "runs: {world:?}");
        } else {
            prop_assert_eq!(world.status.phase, Phase::Running, "{:?}", world);
            prop_assert_eq!(world.status.observed_generation, Some(world.wish.generation));
            prop_assert!(world.process.is_some());
        }
        prop_assert!(world.remains.is_none());
    }
}
