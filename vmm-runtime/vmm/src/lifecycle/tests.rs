use std::time::Duration;

use super::*;

pub(super) const fn s(seconds: u64) -> Duration {
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

pub(super) fn exited() -> Input {
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

pub(super) fn running() -> Lifecycle {
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

fn full(disk: &str) -> Input {
    Input::PoolFull {
        disk: disk.into(),
        why: "full".into(),
    }
}

fn room(disk: &str) -> Input {
    Input::PoolHasRoom { disk: disk.into() }
}

#[test]
fn held_requests_pause_the_guest_until_all_of_them_are_carried_out() {
    let mut machine = running();
    assert_eq!(machine.step(s(2), full("a")), command(Command::Stop));
    assert_eq!(machine.step(s(2), full("b")), []);
    assert_eq!(machine.step(s(2), event(QemuEvent::Paused)), []);
    let view = machine.view();
    assert_eq!(
        (view.state, view.pause_reason),
        (State::Paused, Some(PauseReason::NoSpace))
    );
    assert_eq!(
        view.message,
        "disk a: full; its requests are held, and the guest goes on once there is room"
    );
    // An order tries at once, and changes nothing else.
    assert_eq!(
        machine.set_power(s(3), Power::Running, None),
        Ok(vec![Action::RetryHeld])
    );
    assert_eq!(machine.view(), view);
    assert_eq!(machine.step(s(4), room("a")), []);
    assert!(machine.view().message.starts_with("disk b: full"));
    // QEMU has waited for them.
    assert_eq!(machine.step(s(5), room("b")), []);
    assert_eq!(
        machine.step(s(5), answered(Command::Stop)),
        command(Command::Cont)
    );
    machine.step(s(5), event(QemuEvent::Resumed));
    machine.step(s(5), answered(Command::Cont));
    let view = machine.view();
    assert_eq!(
        (view.state, view.pause_reason, view.message.as_str()),
        (State::Running, None, "")
    );
    assert_eq!(machine.step(s(5), room("b")), []);
}

#[test]
fn a_guest_that_is_to_be_paused_stays_so_when_there_is_room() {
    let mut machine = running();
    machine.step(s(2), full("a"));
    machine.step(s(2), event(QemuEvent::Paused));
    assert_eq!(machine.set_power(s(3), Power::Paused, None), Ok(vec![]));
    assert_eq!(machine.view().pause_reason, Some(PauseReason::Requested));
    assert_eq!(machine.step(s(4), room("a")), []);
    assert_eq!(machine.step(s(4), answered(Command::Stop)), []);
    assert_eq!(machine.view().pause_reason, Some(PauseReason::Requested));
    assert_eq!(
        machine.set_power(s(5), Power::Running, None),
        Ok(command(Command::Cont))
    );
}

#[test]
fn a_stop_lets_held_requests_fail_first() {
    let mut machine = running();
    machine.step(s(2), full("a"));
    machine.step(s(2), event(QemuEvent::Paused));
    let mut off = machine.clone();
    assert_eq!(
        off.set_power(s(3), Power::Stopped, Some(s(0))),
        Ok(vec![Action::LetHeldFail, Action::Command(Command::Quit)])
    );
    assert_eq!(
        machine.set_power(s(3), Power::Stopped, None),
        Ok(vec![
            Action::LetHeldFail,
            Action::Command(Command::Cont),
            Action::Command(Command::PowerButton)
        ])
    );
    // Another disk's, during the stop.
    assert_eq!(machine.step(s(4), full("b")), [Action::LetHeldFail]);
    assert_eq!(machine.step(s(4), room("b")), []);
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
