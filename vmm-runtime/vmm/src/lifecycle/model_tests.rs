//! A QEMU that does what it is told, late and in its own time: any history of it, and of wishes.

use std::time::Duration;

use proptest::prelude::*;

use super::tests::{exited, running, s};
use super::*;

/// A QEMU that does what it is told, late and in its own time.
#[derive(Debug, Default)]
struct Model {
    opened: bool,
    closed: bool,
    finished: bool,
    alive: bool,
    was_alive: bool,
    ready: bool,
    running: bool,
    killed: bool,
    quitting: bool,
    /// The guest turned off.
    off: bool,
    /// Requests are held, and QEMU waits for them before it answers `stop`.
    held: bool,
    /// Nothing is held any more.
    given_up: bool,
    /// What has been asked for and not been done.
    open_asked: bool,
    launch_asked: bool,
    close_asked: bool,
    commands: Vec<Command>,
}

/// What the world may do next.
#[derive(Clone, Debug)]
enum Move {
    Open(bool),
    Launch(bool),
    Ready,
    Answer { refuse: bool },
    Die,
    Close,
    GuestOff,
    GuestReset,
    NoSpace,
    PoolFull,
    PoolHasRoom,
    HangUp,
    Power(Power, u64),
    Reset(u8),
    Terminate,
    Pass(u64),
}

impl Model {
    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            assert!(!self.finished, "{action:?} after the end");
            match action {
                Action::Open => {
                    assert!(!self.opened && !self.open_asked);
                    self.open_asked = true;
                }
                Action::Launch => {
                    assert!(
                        self.opened && !self.was_alive && !self.launch_asked && !self.close_asked
                    );
                    self.launch_asked = true;
                }
                Action::Command(command) => {
                    assert!(self.ready && self.alive, "{command} to nobody");
                    assert!(!self.commands.contains(&command), "{command} twice");
                    self.commands.push(command);
                }
                Action::Kill => {
                    assert!((self.alive || self.launch_asked) && !self.killed);
                    self.killed = true;
                }
                Action::RetryHeld => assert!(self.held, "nothing is held"),
                Action::LetHeldFail => {
                    assert!(self.held, "nothing is held");
                    self.held = false;
                    self.given_up = true;
                }
                Action::Close => {
                    assert!(
                        !self.alive && !self.launch_asked && !self.close_asked,
                        "disks closed under QEMU"
                    );
                    self.close_asked = true;
                }
                Action::Finish(_) => {
                    assert!(self.closed && !self.alive);
                    self.finished = true;
                }
            }
        }
    }

    fn apply(&mut self, machine: &mut Lifecycle, now: &mut Duration, next: &Move) {
        let mut feed = |model: &mut Model, input: Input| {
            let actions = machine.step(*now, input);
            model.take(actions);
        };
        match next {
            Move::Open(works) if self.open_asked && !self.opened => {
                self.opened = true;
                feed(
                    self,
                    if *works {
                        Input::Opened
                    } else {
                        Input::NotOpened {
                            reason: EndReason::DiskNotOpened,
                            message: "no".into(),
                        }
                    },
                );
            }
            Move::Launch(works) if self.launch_asked && !self.was_alive => {
                self.launch_asked = false;
                self.was_alive = true;
                self.alive = *works;
                feed(
                    self,
                    if *works {
                        Input::Launched { pid: 1 }
                    } else {
                        Input::NotLaunched {
                            reason: EndReason::QemuNotStarted,
                            message: "no".into(),
                        }
                    },
                );
            }
            Move::Ready if self.alive && !self.ready && !self.killed => {
                self.ready = true;
                feed(self, Input::Ready);
            }
            // What comes after it waits as well.
            Move::Answer { .. } if self.held && self.commands.first() == Some(&Command::Stop) => {
                let was_running = std::mem::replace(&mut self.running, false);
                if was_running {
                    feed(self, Input::Event(QemuEvent::Paused));
                }
            }
            Move::Answer { refuse } if self.alive && !self.commands.is_empty() => {
                let command = self.commands.remove(0);
                if !refuse {
                    match command {
                        Command::Cont if !self.running && !self.off => {
                            self.running = true;
                            feed(self, Input::Event(QemuEvent::Resumed));
                        }
                        Command::Stop if self.running => {
                            self.running = false;
                            feed(self, Input::Event(QemuEvent::Paused));
                        }
                        Command::Reset => feed(self, Input::Event(QemuEvent::Reset)),
                        Command::Quit => {
                            assert!(!self.held, "QEMU waits for what is held");
                            self.quitting = true;
                        }
                        _ => {}
                    }
                }
                let error = refuse.then(|| "no".to_owned());
                feed(self, Input::Answered { command, error });
            }
            Move::Die if self.alive => {
                self.alive = false;
                self.running = false;
                self.commands.clear();
                feed(self, exited());
            }
            Move::Close if self.close_asked && !self.closed => {
                self.closed = true;
                feed(self, Input::Closed { problem: None });
            }
            Move::GuestOff if self.running => {
                self.running = false;
                self.off = true;
                feed(self, Input::Event(QemuEvent::GuestShutDown));
                feed(self, Input::Event(QemuEvent::Paused));
            }
            Move::GuestReset if self.running => feed(self, Input::Event(QemuEvent::Reset)),
            Move::NoSpace if self.running => {
                self.running = false;
                let full = QemuEvent::WriteFailed {
                    disk: "d".into(),
                    no_space: true,
                    stops: true,
                };
                feed(self, Input::Event(full));
                feed(self, Input::Event(QemuEvent::Paused));
            }
            Move::PoolFull if self.running && !self.held && !self.given_up => {
                self.held = true;
                let (disk, why) = ("d".into(), "full".into());
                feed(self, Input::PoolFull { disk, why });
            }
            Move::PoolHasRoom if self.held => {
                self.held = false;
                feed(self, Input::PoolHasRoom { disk: "d".into() });
            }
            Move::HangUp if self.alive && self.ready => feed(self, Input::ConnectionClosed),
            Move::Power(power, deadline) => {
                if let Ok(actions) = machine.set_power(*now, *power, Some(s(*deadline))) {
                    self.take(actions);
                }
            }
            Move::Reset(token) => {
                if let Ok(actions) = machine.reset(&token.to_string()) {
                    self.take(actions);
                }
            }
            Move::Terminate => feed(self, Input::Terminate),
            Move::Pass(seconds) => {
                *now += s(*seconds);
                while let Some(deadline) = machine.deadline().filter(|deadline| *deadline <= *now) {
                    let before = machine.clone();
                    let actions = machine.step(*now, Input::Tick);
                    self.take(actions);
                    assert_ne!(
                        before.deadline(),
                        machine.deadline(),
                        "a timer at {deadline:?} that never ends"
                    );
                }
            }
            _ => {}
        }
    }
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        3 => prop::bool::weighted(0.9).prop_map(Move::Open),
        3 => prop::bool::weighted(0.9).prop_map(Move::Launch),
        3 => Just(Move::Ready),
        6 => prop::bool::weighted(0.1).prop_map(|refuse| Move::Answer { refuse }),
        1 => Just(Move::Die),
        2 => Just(Move::Close),
        1 => Just(Move::GuestOff),
        1 => Just(Move::GuestReset),
        1 => Just(Move::NoSpace),
        2 => Just(Move::PoolFull),
        2 => Just(Move::PoolHasRoom),
        1 => Just(Move::HangUp),
        2 => Just(Move::Power(Power::Running, 0)),
        2 => Just(Move::Power(Power::Paused, 0)),
        1 => (0..20_u64).prop_map(|deadline| Move::Power(Power::Stopped, deadline)),
        1 => (0..3_u8).prop_map(Move::Reset),
        1 => Just(Move::Terminate),
        2 => (0..30_u64).prop_map(Move::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: nothing is done twice or to nobody (asserted in the model), what is shown is what is, and a
    /// stop comes to an end on a host that does its part.
    #[test]
    fn any_history_keeps_its_promises(history in prop::collection::vec(moves(), 0..60)) {
        let mut machine = Lifecycle::new(s(30));
        let mut model = Model::default();
        let mut now = s(0);
        model.take(machine.step(now, Input::Begin));
        for next in &history {
            model.apply(&mut machine, &mut now, next);
            let view = machine.view();
            prop_assert_eq!(view.state == State::Running, model.running && !matches!(view.state, State::Stopping));
            prop_assert_eq!(view.state.is_final(), model.finished);
            prop_assert!(view.qemu_pid.is_some() == model.alive);
        }
        model.apply(&mut machine, &mut now, &Move::Terminate);
        for _ in 0..40 {
            for next in [Move::Open(true), Move::Launch(true), Move::Ready, Move::Answer { refuse: false }, Move::Pass(5)] {
                model.apply(&mut machine, &mut now, &next);
            }
            if model.killed || model.quitting {
                model.apply(&mut machine, &mut now, &Move::Die);
            }
            model.apply(&mut machine, &mut now, &Move::Close);
        }
        prop_assert!(model.finished, "no end: {machine:?}");
    }

    /// On a host where nothing fails but space, and that not for ever, the newest wish becomes true.
    #[test]
    fn the_newest_wish_wins(changes in prop::collection::vec((0..4_u8, 0..4_usize), 1..40)) {
        let mut machine = running();
        let mut model = Model { opened: true, alive: true, was_alive: true, ready: true, running: true, ..Model::default() };
        let mut now = s(2);
        let mut last = Power::Running;
        for (change, answers) in changes {
            let next = match change {
                0 => Move::PoolFull,
                1 => Move::PoolHasRoom,
                _ => {
                    last = if change == 2 { Power::Running } else { Power::Paused };
                    Move::Power(last, 0)
                }
            };
            model.apply(&mut machine, &mut now, &next);
            for _ in 0..answers {
                model.apply(&mut machine, &mut now, &Move::Answer { refuse: false });
            }
        }
        model.apply(&mut machine, &mut now, &Move::PoolHasRoom);
        while !model.commands.is_empty() {
            model.apply(&mut machine, &mut now, &Move::Answer { refuse: false });
        }
        let wished = if last == Power::Running { State::Running } else { State::Paused };
        prop_assert_eq!(machine.view().state, wished);
        prop_assert_eq!(model.running, last == Power::Running);
        let reason = (last == Power::Paused).then_some(PauseReason::Requested);
        prop_assert_eq!(machine.view().pause_reason, reason);
    }
}
