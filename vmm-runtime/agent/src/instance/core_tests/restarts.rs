//! What makes a guest start again, and how soon.

use super::*;

#[test]
fn a_crash_restarts_at_once_and_then_backs_off() {
    let crashed = |restarts| Status {
        restarts,
        ..phase(
            Phase::Restarting,
            1,
            Some(("MonitorCrashed", "the machine's monitor process died")),
        )
    };
    let up = |restarts| Status {
        restarts,
        ..running(1)
    };
    Script::new(None)
        .up()
        .at(
            100,
            Event::Exited(2, End::Crashed),
            &[Action::Clear, report(crashed(1))],
        )
        .at(110, Event::Cleared, &[Action::Confirm])
        .at(
            120,
            Event::Confirmed(Some(wish(1, Power::Running))),
            &[Action::Prepare],
        )
        .at(130, Event::Prepared(Ok(())), &[Action::Spawn(3)])
        .at(
            140,
            Event::Spawned(Ok(started(1))),
            &[wake(140 + START_LIMIT.as_millis() as u64)],
        )
        // What the first process still tells is not the second's.
        .at(
            141,
            Event::Exited(2, End::Crashed),
            &[wake(140 + START_LIMIT.as_millis() as u64)],
        )
        .at(150, Event::GuestIs(3, Guest::Running), &[report(up(1))])
        .at(
            200,
            Event::Exited(3, End::Crashed),
            &[Action::Clear, report(crashed(2))],
        )
        .at(210, Event::Cleared, &[wake(400)])
        .at(400, Event::Tick, &[Action::Confirm]);
}

#[test]
fn three_crashes_in_a_row_are_each_answered_within_a_second() {
    let mut script = Script::new(None);
    script.up();
    let mut now = 1_000;
    for (crash, wait) in [(1, 0), (2, 200), (3, 500), (4, 1_000), (5, 2_000)] {
        let run = crash + 1;
        let crashed = Status {
            restarts: i32::try_from(crash).unwrap(),
            ..phase(
                Phase::Restarting,
                1,
                Some(("MonitorCrashed", "the machine's monitor process died")),
            )
        };
        script.at(
            now,
            Event::Exited(run, End::Crashed),
            &[Action::Clear, report(crashed.clone())],
        );
        if wait == 0 {
            script.at(now, Event::Cleared, &[Action::Confirm]);
        } else {
            script.at(now, Event::Cleared, &[wake(now + wait)]).at(
                now + wait,
                Event::Tick,
                &[Action::Confirm],
            );
        }
        now += wait;
        script
            .at(
                now,
                Event::Confirmed(Some(wish(1, Power::Running))),
                &[Action::Prepare],
            )
            .at(now, Event::Prepared(Ok(())), &[Action::Spawn(run + 1)])
            .at(
                now,
                Event::Spawned(Ok(started(1))),
                &[wake(now + START_LIMIT.as_millis() as u64)],
            )
            .at(
                now,
                Event::GuestIs(run + 1, Guest::Running),
                &[report(Status {
                    restarts: crashed.restarts,
                    ..running(1)
                })],
            );
        now += 100;
    }
}

#[test]
fn a_guests_power_off_restarts_after_a_second() {
    Script::new(None)
        .up()
        .at(
            100,
            Event::Exited(2, End::GuestPowerOff),
            &[
                Action::Clear,
                report(Status {
                    restarts: 1,
                    stop_step: Some("GuestPowerOff".into()),
                    ..phase(
                        Phase::Restarting,
                        1,
                        Some(("GuestPowerOff", "the guest switched itself off")),
                    )
                }),
            ],
        )
        .at(110, Event::Cleared, &[wake(1100)])
        .at(1100, Event::Tick, &[Action::Confirm]);
}

#[test]
fn a_new_token_restarts_once() {
    let token = |generation| Wish {
        restart_token: Some("again".into()),
        ..wish(generation, Power::Running)
    };
    let from_token = Started {
        restart_token: Some("again".into()),
        ..started(2)
    };
    Script::new(None)
        .up()
        .at(
            5_000,
            Event::Wished(token(2)),
            &[Action::Stop(30), wake(6_000)],
        )
        .at(
            6_000,
            Event::Tick,
            &[
                report(phase(
                    Phase::Restarting,
                    2,
                    Some((
                        "RestartRequested",
                        "the guest is stopped to be started again",
                    )),
                )),
                wake(45_000),
            ],
        )
        .at(
            7_000,
            Event::Exited(2, End::Stopped("PowerButton")),
            &[Action::Clear],
        )
        .at(7_010, Event::Cleared, &[Action::Confirm])
        .at(7_020, Event::Confirmed(Some(token(2))), &[Action::Prepare])
        .at(7_030, Event::Prepared(Ok(())), &[Action::Spawn(3)])
        .at(
            7_040,
            Event::Spawned(Ok(from_token)),
            &[wake(7_040 + START_LIMIT.as_millis() as u64)],
        )
        .at(
            7_050,
            Event::GuestIs(3, Guest::Running),
            &[report(Status {
                restart_token: Some("again".into()),
                stop_step: Some("PowerButton".into()),
                ..running(2)
            })],
        )
        .at(7_060, Event::Wished(token(2)), &[]);
}

#[test]
fn a_token_that_is_taken_away_restarts_nothing() {
    let token = Wish {
        restart_token: Some("again".into()),
        ..wish(2, Power::Running)
    };
    let status = |observed| Status {
        observed_generation: Some(observed),
        restart_token: Some("again".into()),
        ..running(2)
    };
    let guest = Found::Adopted {
        started: Started {
            restart_token: Some("again".into()),
            ..started(2)
        },
        guest: Guest::Running,
    };
    Script::new(Some(&status(2)))
        .at(0, Event::Wished(token), &[])
        .at(1, Event::Examined(guest), &[])
        .at(
            2,
            Event::Wished(wish(3, Power::Running)),
            &[report(status(3))],
        );
}

#[test]
fn a_rebooted_host_says_so_and_starts_again_under_its_new_epoch() {
    let restarting = |generation| Status {
        restarts: 1,
        ..phase(
            Phase::Restarting,
            generation,
            Some((
                "HostRestarted",
                "the host was restarted; the guest starts again once the host has joined anew",
            )),
        )
    };
    let mut stamped = wish(2, Power::Running);
    stamped.host_epoch = EPOCH + 1;
    Script::new(Some(&running(1)))
        .with_lease(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(1, Event::Examined(Found::Nothing), &[report(restarting(1))])
        .with_lease(Some(EPOCH + 1))
        .at(7_000, Event::Tick, &[])
        .at(
            7_100,
            Event::Wished(stamped.clone()),
            &[Action::Confirm, report(restarting(2))],
        )
        .at(7_110, Event::Confirmed(Some(stamped)), &[Action::Prepare]);
}
