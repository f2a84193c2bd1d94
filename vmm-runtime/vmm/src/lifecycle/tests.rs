use std::time::Duration;

use proptest::prelude::*;

use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn command(command: Command) -> Vec<Action> {
    vec![Action::Command(command)]
}

fn answered(command: Command) -> Input {
    Input::Answered {
        command,
        error: None,
    }
}

fn event(event: QemuEvent) -> Input {
    Input::Event(event)
}

fn exited() -> Input {
    Input::Exited {
        status: "exit status: 0".into(),
        log_tail: "last words\n".into(),
    }
}

fn launched() -> Lifecycle {
    let mut machine = Lifecycle::new(s(30));
    assert_eq!(machine.view().state, State::Created);
    assert_eq!(machine.step(s(0), Input::Begin), [Action::Open]);
    assert_eq!(machine.step(s(0), Input::Opened), [Action::Launch]);
    assert_eq!(machine.step(s(0), Input::Launched { pid: 42 }), []);
    assert_eq!(machine.view().state, State::Starting);
    assert_eq!(machine.view().qemu_pid, Some(42));
    machine
}

fn running() -> Lifecycle {
    let mut machine = launched();
    assert_eq!(machine.step(s(1), Input::Ready), command(Command::Cont));
    assert_eq!(machine.step(s(1), event(QemuEvent::Resumed)), []);
    assert_eq!(machine.step(s(1), answered(Command::Cont)), []);
    assert_eq!(machine.view().state, State::Running);
    machine
}

/// Takes a machine whose QEMU has just exited to its end.
fn finish(machine: &mut Lifecycle) -> End {
    assert_eq!(machine.view().state, State::Stopping);
    let actions = machine.step(s(99), Input::Closed { problem: None });
    let [Action::Finish(end)] = &actions[..] else {
        panic!("{actions:?}")
    };
    end.clone()
}

#[test]
fn pauses_and_resumes_once_however_often_it_is_asked() {
    let mut machine = running();
    assert_eq!(machine.set_power(s(2), Power::Running, None), Ok(vec![]));
    assert_eq!(
        machine.set_power(s(2), Power::Paused, None),
        Ok(command(Command::Stop))
    );
    assert_eq!(machine.set_power(s(2), Power::Paused, None), Ok(vec![]));
    machine.step(s(2), event(QemuEvent::Paused));
    assert_eq!(machine.step(s(2), answered(Command::Stop)), []);
    assert_eq!(machine.view().state, State::Paused);
    assert_eq!(machine.view().pause_reason, Some(PauseReason::Requested));
    assert_eq!(machine.set_power(s(2), Power::Paused, None), Ok(vec![]));
    assert_eq!(
        machine.set_power(s(3), Power::Running, None),
        Ok(command(Command::Cont))
    );
    // Changed one's mind before it had happened: done after the answer.
    assert_eq!(machine.set_power(s(3), Power::Paused, None), Ok(vec![]));
    assert_eq!(machine.step(s(3), event(QemuEvent::Resumed)), []);
    assert_eq!(
        machine.step(s(3), answered(Command::Cont)),
        command(Command::Stop)
    );
}

#[test]
fn a_machine_that_is_to_be_paused_before_it_ran_does_not_run() {
    let mut machine = launched();
    assert_eq!(machine.set_power(s(0), Power::Paused, None), Ok(vec![]));
    assert_eq!(machine.step(s(1), Input::Ready), []);
    assert_eq!(machine.view().state, State::Paused);
    assert_eq!(
        machine.set_power(s(2), Power::Running, None),
        Ok(command(Command::Cont))
    );
}

#[test]
fn the_power_button_is_pressed_until_the_guest_shuts_down() {
    let mut machine = running();
    assert_eq!(
        machine.set_power(s(10), Power::Stopped, None),
        Ok(command(Command::PowerButton))
    );
    assert_eq!(machine.view().state, State::Stopping);
    assert_eq!(machine.view().stop_step, Some(StopStep::PowerButton));
    assert_eq!(machine.set_power(s(10), Power::Stopped, None), Ok(vec![]));
    machine.step(s(10), answered(Command::PowerButton));
    assert_eq!(machine.deadline(), Some(s(15)));
    assert_eq!(machine.step(s(14), Input::Tick), []);
    assert_eq!(
        machine.step(s(15), Input::Tick),
        command(Command::PowerButton)
    );
    // Not answered yet: not pressed again.
    assert_eq!(machine.step(s(20), Input::Tick), []);
    assert_eq!(
        machine.step(s(21), event(QemuEvent::GuestShutDown)),
        command(Command::Quit)
    );
    assert_eq!(machine.step(s(21), event(QemuEvent::Paused)), []);
    assert_eq!(machine.step(s(22), exited()), [Action::Close]);
    assert_eq!(machine.view().qemu_pid, None);
    assert_eq!(
        finish(&mut machine),
        End::stopped(Some(StopStep::PowerButton))
    );
    assert_eq!(machine.view().state, State::Stopped);
}

#[test]
fn a_guest_that_does_not_listen_is_turned_off_and_then_killed() {
    let mut machine = running();
    machine
        .set_power(s(10), Power::Stopped, Some(s(7)))
        .unwrap();
    machine.step(s(10), answered(Command::PowerButton));
    assert_eq!(
        machine.step(s(15), Input::Tick),
        command(Command::PowerButton)
    );
    assert_eq!(machine.deadline(), Some(s(17)));
    assert_eq!(machine.step(s(17), Input::Tick), command(Command::Quit));
    assert_eq!(machine.view().stop_step, Some(StopStep::Quit));
    let mut quits = machine.clone();
    assert_eq!(quits.step(s(18), exited()), [Action::Close]);
    assert_eq!(finish(&mut quits), End::stopped(Some(StopStep::Quit)));
    assert_eq!(machine.deadline(), Some(s(27)));
    assert_eq!(machine.step(s(26), Input::Tick), []);
    assert_eq!(machine.step(s(27), Input::Tick), [Action::Kill]);
    assert_eq!(machine.view().stop_step, Some(StopStep::Kill));
    assert_eq!(machine.step(s(27), exited()), [Action::Close]);
    assert_eq!(finish(&mut machine), End::stopped(Some(StopStep::Kill)));
}

#[test]
fn a_second_stop_shortens_the_deadline_and_never_lengthens_it() {
    let mut machine = running();
    machine
        .set_power(s(10), Power::Stopped, Some(s(60)))
        .unwrap();
    machine
        .set_power(s(11), Power::Stopped, Some(s(3)))
        .unwrap();
    machine
        .set_power(s(12), Power::Stopped, Some(s(600)))
        .unwrap();
    assert_eq!(machine.deadline(), Some(s(14)));
    assert_eq!(
        machine.set_power(s(13), Power::Stopped, Some(s(0))),
        Ok(command(Command::Quit))
    );
    assert_eq!(
        machine
            .set_power(s(13), Power::Running, None)
            .unwrap_err()
            .reason,
        ErrorReason::Stopping
    );
    assert_eq!(
        machine.reset("t").unwrap_err().reason,
        ErrorReason::Stopping
    );
}

#[test]
fn turning_off_does_not_press_the_button() {
    let mut machine = running();
    assert_eq!(
        machine.set_power(s(2), Power::Stopped, Some(s(0))),
        Ok(command(Command::Quit))
    );
}

#[test]
fn a_paused_guest_is_resumed_to_hear_the_button() {
    let mut machine = running();
    machine.set_power(s(2), Power::Paused, None).unwrap();
    let mut pausing = machine.clone();
    let both = vec![
        Action::Command(Command::Cont),
        Action::Command(Command::PowerButton),
    ];
    assert_eq!(pausing.step(s(2), Input::Terminate), both);
    machine.step(s(2), event(QemuEvent::Paused));
    machine.step(s(2), answered(Command::Stop));
    assert_eq!(machine.step(s(2), Input::Terminate), both);
    assert_eq!(machine.step(s(2), event(QemuEvent::Resumed)), []);
    assert_eq!(machine.step(s(2), answered(Command::Cont)), []);
    assert_eq!(machine.deadline(), Some(s(7)));
}

#[test]
fn a_stop_before_the_guest_ran_ends_it_at_once() {
    let mut created = Lifecycle::new(s(30));
    assert_eq!(
        created.set_power(s(0), Power::Stopped, None),
        Ok(vec![Action::Close])
    );
    assert_eq!(created.step(s(0), Input::Begin), []);
    assert_eq!(finish(&mut created), End::stopped(None));

    let mut opening = Lifecycle::new(s(30));
    opening.step(s(0), Input::Begin);
    assert_eq!(opening.set_power(s(0), Power::Stopped, None), Ok(vec![]));
    assert_eq!(opening.view().state, State::Stopping);
    assert_eq!(opening.step(s(0), Input::Opened), [Action::Close]);
    assert_eq!(finish(&mut opening), End::stopped(None));

    let mut launching = launched();
    assert_eq!(
        launching.set_power(s(0), Power::Stopped, None),
        Ok(vec![Action::Kill])
    );
    assert_eq!(launching.step(s(0), exited()), [Action::Close]);
    assert_eq!(finish(&mut launching), End::stopped(None));

    let mut ready = launched();
    ready.step(s(0), Input::Ready);
    assert_eq!(
        ready.set_power(s(0), Power::Stopped, None),
        Ok(command(Command::Quit))
    );
}

#[test]
fn a_guest_that_switches_itself_off_is_told_from_a_stop() {
    let mut machine = running();
    assert_eq!(
        machine.step(s(2), event(QemuEvent::GuestShutDown)),
        command(Command::Quit)
    );
    assert_eq!(machine.view().state, State::Stopping);
    assert_eq!(machine.set_power(s(2), Power::Stopped, None), Ok(vec![]));
    // Even if QEMU must be killed afterwards.
    assert_eq!(machine.step(s(12), Input::Tick), [Action::Kill]);
    assert_eq!(machine.step(s(12), exited()), [Action::Close]);
    assert_eq!(finish(&mut machine), End::guest_power_off());
    assert_eq!(machine.view().state, State::Stopped);
}

#[test]
fn a_panic_is_a_failure() {
    let mut machine = running();
    assert_eq!(
        machine.step(s(2), event(QemuEvent::GuestPanicked)),
        command(Command::Quit)
    );
    machine.step(s(2), exited());
    assert_eq!(finish(&mut machine).reason, EndReason::GuestPanicked);
    assert_eq!(machine.view().state, State::Failed);
}

#[test]
fn the_death_of_qemu_is_a_failure_with_its_last_words() {
    for (mut machine, reason) in [
        (launched(), EndReason::QemuNotStarted),
        (running(), EndReason::QemuExited),
        (
            {
                let mut machine = running();
                machine.step(s(2), Input::Terminate);
                machine
            },
            EndReason::QemuExited,
        ),
    ] {
        assert_eq!(machine.step(s(3), exited()), [Action::Close]);
        let end = finish(&mut machine);
        assert_eq!((end.outcome, end.reason), (Outcome::Failed, reason));
        assert!(
            end.message.ends_with("(exit status: 0): last words"),
            "{}",
            end.message
        );
        assert_eq!(machine.view().state, State::Failed);
    }
}

#[test]
fn a_qemu_that_does_not_get_ready_is_killed() {
    let mut machine = launched();
    assert_eq!(machine.deadline(), Some(s(60)));
    assert_eq!(machine.step(s(59), Input::Tick), []);
    assert_eq!(machine.step(s(60), Input::Tick), [Action::Kill]);
    machine.step(s(60), exited());
    assert_eq!(finish(&mut machine).reason, EndReason::QemuNotStarted);
}

#[test]
fn a_qemu_that_hangs_up_is_killed_after_a_while() {
    let mut machine = running();
    machine.step(s(5), Input::ConnectionClosed);
    assert_eq!(machine.deadline(), Some(s(10)));
    assert_eq!(machine.set_power(s(6), Power::Paused, None), Ok(vec![]));
    assert_eq!(machine.step(s(10), Input::Tick), [Action::Kill]);
    machine.step(s(10), exited());
    assert_eq!(finish(&mut machine).reason, EndReason::QemuExited);
}

#[test]
fn a_full_pool_pauses_until_it_is_asked_to_run_again() {
    let mut machine = running();
    let full = QemuEvent::WriteFailed {
        disk: "root".into(),
        no_space: true,
        stops: true,
    };
    assert_eq!(machine.step(s(2), event(full)), []);
    assert_eq!(machine.step(s(2), event(QemuEvent::Paused)), []);
    let view = machine.view();
    assert_eq!(
        (view.state, view.pause_reason),
        (State::Paused, Some(PauseReason::NoSpace))
    );
    assert!(
        view.message.starts_with("disk root: no space left"),
        "{}",
        view.message
    );
    assert_eq!(
        machine.set_power(s(3), Power::Running, None),
        Ok(command(Command::Cont))
    );
    machine.step(s(3), event(QemuEvent::Resumed));
    machine.step(s(3), answered(Command::Cont));
    assert_eq!(machine.view().message, "");
    // Without such an error it is QEMU's own doing.
    machine.step(s(4), event(QemuEvent::Paused));
    assert_eq!(machine.view().pause_reason, Some(PauseReason::Qemu));
}

#[test]
fn what_qemu_refuses_is_not_tried_for_ever() {
    let mut machine = running();
    machine.set_power(s(2), Power::Paused, None).unwrap();
    machine.step(s(2), event(QemuEvent::Paused));
    machine.step(s(2), answered(Command::Stop));
    assert_eq!(
        machine.set_power(s(3), Power::Running, None),
        Ok(command(Command::Cont))
    );
    let refusal = Input::Answered {
        command: Command::Cont,
        error: Some("reset it first".into()),
    };
    assert_eq!(machine.step(s(3), refusal), []);
    let view = machine.view();
    assert_eq!(
        (view.state, view.pause_reason),
        (State::Paused, Some(PauseReason::Qemu))
    );
    assert_eq!(view.message, "QEMU refused cont: reset it first");
    assert_eq!(
        machine.set_power(s(4), Power::Running, None),
        Ok(command(Command::Cont))
    );
    // Taken, but without effect: not tried for ever either.
    assert_eq!(machine.step(s(4), answered(Command::Cont)), []);
}

#[test]
fn resets_are_counted_and_tokens_make_them_idempotent() {
    let mut machine = launched();
    assert_eq!(machine.reset("a"), Ok(vec![]), "nothing to reset yet");
    machine.step(s(1), Input::Ready);
    machine.step(s(1), event(QemuEvent::Resumed));
    machine.step(s(1), answered(Command::Cont));
    assert_eq!(machine.reset("a"), Ok(vec![]));
    assert_eq!(machine.reset("b"), Ok(command(Command::Reset)));
    machine.step(s(2), event(QemuEvent::Reset));
    machine.step(s(2), answered(Command::Reset));
    // The firmware's own.
    machine.step(s(3), event(QemuEvent::Reset));
    assert_eq!(machine.view().resets, 1);
    machine.step(s(4), event(QemuEvent::Reset));
    let view = machine.view();
    assert_eq!(
        (view.state, view.resets, view.reset_token.as_deref()),
        (State::Running, 2, Some("b"))
    );
}

#[test]
fn what_cannot_be_opened_or_flushed_is_said() {
    let mut machine = Lifecycle::new(s(30));
    machine.step(s(0), Input::Begin);
    let refused = Input::NotOpened {
        reason: EndReason::DiskInUse,
        message: "in use".into(),
    };
    assert_eq!(machine.step(s(0), refused), [Action::Close]);
    assert_eq!(
        finish(&mut machine),
        End::failed(EndReason::DiskInUse, "in use".into())
    );

    let mut machine = launched();
    let refused = Input::NotLaunched {
        reason: EndReason::QemuNotStarted,
        message: "no binary".into(),
    };
    assert_eq!(machine.step(s(0), refused), [Action::Close]);
    assert_eq!(finish(&mut machine).reason, EndReason::QemuNotStarted);

    let mut machine = running();
    machine.step(s(2), event(QemuEvent::GuestShutDown));
    machine.step(s(2), exited());
    assert_eq!(
        machine.step(
            s(2),
            Input::Closed {
                problem: Some("disk root: EIO".into())
            }
        ),
        [Action::Finish(End::failed(
            EndReason::DiskNotFlushed,
            "the guest switched itself off; then disk root: EIO".into()
        ))]
    );
}

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
                        Command::Quit => self.quitting = true,
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

    /// On a host where nothing fails, the newest wish becomes true.
    #[test]
    fn the_newest_wish_wins(wishes in prop::collection::vec((prop::bool::ANY, 0..4_usize), 1..30)) {
        let mut machine = running();
        let mut model = Model { opened: true, alive: true, was_alive: true, ready: true, running: true, ..Model::default() };
        let mut now = s(2);
        let mut last = Power::Running;
        for (run, answers) in wishes {
            last = if run { Power::Running } else { Power::Paused };
            model.apply(&mut machine, &mut now, &Move::Power(last, 0));
            for _ in 0..answers {
                model.apply(&mut machine, &mut now, &Move::Answer { refuse: false });
            }
        }
        while !model.commands.is_empty() {
            model.apply(&mut machine, &mut now, &Move::Answer { refuse: false });
        }
        let wished = if last == Power::Running { State::Running } else { State::Paused };
        prop_assert_eq!(machine.view().state, wished);
        prop_assert_eq!(model.running, last == Power::Running);
    }
}
