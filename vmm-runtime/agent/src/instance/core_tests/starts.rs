//! How a guest is started, and what keeps it from being.

use super::*;

#[test]
fn a_normal_start_is_one_report() {
    Script::new(None).up();
}

#[test]
fn a_slow_start_is_told_after_a_second() {
    Script::new(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            0,
            Event::Examined(Found::Nothing),
            &[Action::Confirm, wake(1000)],
        )
        .at(
            5,
            Event::Confirmed(Some(wish(1, Power::Running))),
            &[Action::Prepare, wake(1000)],
        )
        .at(
            1000,
            Event::Tick,
            &[report(phase(Phase::Starting, 1, None))],
        )
        .at(1500, Event::Prepared(Ok(())), &[Action::Spawn(2)])
        .at(
            1600,
            Event::Spawned(Ok(started(1))),
            &[wake(1600 + START_LIMIT.as_millis() as u64)],
        )
        .at(
            1700,
            Event::GuestIs(2, Guest::Running),
            &[report(running(1))],
        );
}

#[test]
fn nothing_starts_without_the_instances_epoch() {
    Script::new(None)
        .with_lease(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(10, Event::Examined(Found::Nothing), &[])
        .with_lease(Some(EPOCH - 1))
        .at(20, Event::Tick, &[])
        .with_lease(Some(EPOCH + 1))
        .at(30, Event::Tick, &[])
        .with_lease(Some(EPOCH))
        .at(40, Event::Tick, &[Action::Confirm, wake(1040)]);
}

#[test]
fn a_read_from_before_the_fencing_is_none() {
    let mut stamped = wish(2, Power::Running);
    stamped.host_epoch = EPOCH + 1;
    Script::new(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            0,
            Event::Examined(Found::Nothing),
            &[Action::Confirm, wake(1000)],
        )
        .at(
            5,
            Event::Confirmed(Some(wish(1, Power::Running))),
            &[Action::Prepare, wake(1000)],
        )
        .with_lease(Some(EPOCH + 1))
        .at(10, Event::Wished(stamped.clone()), &[wake(1000)])
        .at(20, Event::Prepared(Ok(())), &[Action::Confirm, wake(1000)])
        .at(
            30,
            Event::Confirmed(Some(stamped)),
            &[Action::Prepare, wake(1000)],
        );
}

#[test]
fn a_lapsed_lease_starts_nothing() {
    let mut script = Script::new(None);
    script
        .with_lease(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(10, Event::Examined(Found::Nothing), &[]);
    let now = Now {
        boot: boot(5_000),
        wall: WALL.parse().unwrap(),
        held: Some(Held {
            epoch: EPOCH,
            until: boot(5_000),
        }),
    };
    assert_eq!(script.core.step(now, Event::Tick), [wake(6_000)]);
}

#[test]
fn what_the_quorum_read_says_counts() {
    // Off meanwhile.
    Script::new(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            0,
            Event::Examined(Found::Nothing),
            &[Action::Confirm, wake(1000)],
        )
        .at(
            5,
            Event::Confirmed(Some(wish(2, Power::Stopped))),
            &[Action::Clean, wake(1000)],
        )
        .at(9, Event::Cleaned, &[report(stopped(2, None))])
        .at(10, Event::Vanished, &[Action::Confirm])
        .at(11, Event::Confirmed(None), &[Action::End]);
    // Gone meanwhile.
    Script::new(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            0,
            Event::Examined(Found::Nothing),
            &[Action::Confirm, wake(1000)],
        )
        .at(5, Event::Confirmed(None), &[Action::Clean])
        .at(9, Event::Cleaned, &[Action::End]);
    // Unreadable: nothing is started, tried again.
    Script::new(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            0,
            Event::Examined(Found::Nothing),
            &[Action::Confirm, wake(1000)],
        )
        .at(5, Event::ConfirmFailed, &[wake(1000)])
        .at(
            1005,
            Event::Tick,
            &[Action::Confirm, report(phase(Phase::Starting, 1, None))],
        );
}

#[test]
fn a_failed_start_says_why_once_and_is_tried_again() {
    let failure = || Failure::new("DiskMissing", "disk system: no file");
    let failed = report(phase(
        Phase::Failed,
        1,
        Some(("DiskMissing", "disk system: no file")),
    ));
    Script::new(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            0,
            Event::Examined(Found::Nothing),
            &[Action::Confirm, wake(1000)],
        )
        .at(
            5,
            Event::Confirmed(Some(wish(1, Power::Running))),
            &[Action::Prepare, wake(1000)],
        )
        .at(10, Event::Prepared(Err(failure())), &[failed, wake(1010)])
        .at(1010, Event::Tick, &[Action::Confirm])
        .at(
            1015,
            Event::Confirmed(Some(wish(1, Power::Running))),
            &[Action::Prepare],
        )
        // The same again: no write, a longer wait.
        .at(1020, Event::Prepared(Err(failure())), &[wake(3020)])
        // Somebody changed something: tried at once.
        .at(
            1500,
            Event::Wished(wish(2, Power::Running)),
            &[
                Action::Confirm,
                report(phase(
                    Phase::Failed,
                    2,
                    Some(("DiskMissing", "disk system: no file")),
                )),
            ],
        )
        .at(
            1505,
            Event::Confirmed(Some(wish(2, Power::Running))),
            &[Action::Prepare],
        )
        .at(1510, Event::Prepared(Ok(())), &[Action::Spawn(2)])
        // A spawn that failed may have left something: cleared first.
        .at(
            1520,
            Event::Spawned(Err(Failure::new("HypervisorFailed", "no"))),
            &[
                Action::Clear,
                report(phase(Phase::Failed, 2, Some(("HypervisorFailed", "no")))),
            ],
        )
        .at(
            1530,
            Event::ClearFailed("pid 5 is left".into()),
            &[
                report(phase(
                    Phase::Failed,
                    2,
                    Some(("HypervisorFailed", "pid 5 is left")),
                )),
                wake(2530),
            ],
        )
        .at(2530, Event::Tick, &[Action::Clear])
        .at(
            2540,
            Event::Cleared,
            &[
                report(phase(Phase::Failed, 2, Some(("HypervisorFailed", "no")))),
                wake(5520),
            ],
        );
}

#[test]
fn a_disk_that_is_in_use_fails_the_start_and_not_the_guest() {
    Script::new(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            0,
            Event::Examined(Found::Nothing),
            &[Action::Confirm, wake(1000)],
        )
        .at(
            5,
            Event::Confirmed(Some(wish(1, Power::Running))),
            &[Action::Prepare, wake(1000)],
        )
        .at(10, Event::Prepared(Ok(())), &[Action::Spawn(2), wake(1000)])
        .at(20, Event::Spawned(Ok(started(1))), &[wake(1000)])
        .at(
            30,
            Event::Exited(2, End::Failed(Failure::new("DiskInUse", "locked"))),
            &[
                Action::Clear,
                report(phase(Phase::Failed, 1, Some(("DiskInUse", "locked")))),
            ],
        )
        .at(40, Event::Cleared, &[wake(1030)]);
}

#[test]
fn a_guest_that_never_runs_is_given_up() {
    let limit = 25 + START_LIMIT.as_millis() as u64;
    Script::new(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            0,
            Event::Examined(Found::Nothing),
            &[Action::Confirm, wake(1000)],
        )
        .at(
            5,
            Event::Confirmed(Some(wish(1, Power::Running))),
            &[Action::Prepare, wake(1000)],
        )
        .at(10, Event::Prepared(Ok(())), &[Action::Spawn(2), wake(1000)])
        .at(25, Event::Spawned(Ok(started(1))), &[wake(1000)])
        .at(
            1000,
            Event::Tick,
            &[report(phase(Phase::Starting, 1, None)), wake(limit)],
        )
        .at(
            limit,
            Event::Tick,
            &[
                Action::Clear,
                report(phase(
                    Phase::Failed,
                    1,
                    Some(("HypervisorFailed", "the guest did not run within 120 s")),
                )),
            ],
        );
}

#[test]
fn a_released_instance_never_starts_again() {
    let (mut core, actions) = InstanceCore::new(Some(&stopped(2, None)));
    assert_eq!(actions, []);
    let now = Now {
        boot: boot(0),
        wall: WALL.parse().unwrap(),
        held: Some(Held {
            epoch: EPOCH,
            until: boot(1_000_000),
        }),
    };
    assert_eq!(core.step(now, Event::Wished(wish(9, Power::Running))), []);
    assert_eq!(core.step(now, Event::Vanished), [Action::Confirm]);
    assert_eq!(core.step(now, Event::Confirmed(None)), [Action::End]);
}

#[test]
fn remains_are_cleared_before_anything_starts() {
    Script::new(Some(&running(1)))
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            1,
            Event::Examined(Found::Ended(End::Crashed)),
            &[
                Action::Clear,
                report(Status {
                    restarts: 1,
                    ..phase(
                        Phase::Restarting,
                        1,
                        Some(("MonitorCrashed", "the machine's monitor process died")),
                    )
                }),
            ],
        )
        .at(2, Event::Tick, &[])
        .at(3, Event::Cleared, &[Action::Confirm]);
    Script::new(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            1,
            Event::ExamineFailed("no cgroup".into()),
            &[wake(1 + RETRY.as_millis() as u64)],
        )
        .at(1001, Event::Tick, &[Action::Examine(1)]);
}

#[test]
fn what_was_made_ready_for_another_spec_is_not_spawned() {
    Script::new(None)
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            10,
            Event::Examined(Found::Nothing),
            &[Action::Confirm, wake(1010)],
        )
        .at(
            15,
            Event::Confirmed(Some(wish(1, Power::Running))),
            &[Action::Prepare, wake(1010)],
        )
        .at(17, Event::Wished(wish(2, Power::Running)), &[wake(1010)])
        .at(20, Event::Prepared(Ok(())), &[Action::Confirm, wake(1010)])
        .at(
            25,
            Event::Confirmed(Some(wish(2, Power::Running))),
            &[Action::Prepare, wake(1010)],
        )
        .at(30, Event::Prepared(Ok(())), &[Action::Spawn(2), wake(1010)]);
}
