//! Scripts: what happens, and exactly what the core does about it.

use super::core::{
    Action, End, Event, Failure, Found, Guest, InstanceCore, Now, Pause, QUIET, RETRY, START_LIMIT,
    Started, Wish,
};
use crate::{clock::Boottime, lease::Held};
use jiff::Timestamp;
use paddock_crds::{
    VirtualMachineInstanceStatus as Status,
    virtual_machine_instance::{InstancePhase as Phase, Power, Released},
};

const EPOCH: i64 = 3;
const WALL: &str = "2026-01-02T03:04:05Z";

fn boot(milliseconds: u64) -> Boottime {
    Boottime::from_millis(milliseconds)
}

fn wish(generation: i64, power: Power) -> Wish {
    Wish {
        generation,
        host_epoch: EPOCH,
        power,
        restart_token: None,
        config_revision: format!("c{generation}"),
        stop_deadline_seconds: 30,
        deleting: false,
    }
}

fn started(generation: i64) -> Started {
    Started {
        generation,
        config_revision: format!("c{generation}"),
        restart_token: None,
        at: WALL.into(),
        process_id: Some(77),
        accelerator: None,
    }
}

fn running(generation: i64) -> Status {
    Status {
        phase: Phase::Running,
        observed_generation: Some(generation),
        started_generation: Some(generation),
        started_config_revision: Some(format!("c{generation}")),
        started_at: Some(WALL.into()),
        process_id: Some(77),
        ..Status::default()
    }
}

fn phase(phase: Phase, generation: i64, reason: Option<(&str, &str)>) -> Status {
    Status {
        phase,
        observed_generation: Some(generation),
        reason: reason.map(|(reason, _)| reason.to_owned()),
        message: reason.map(|(_, message)| message.to_owned()),
        ..Status::default()
    }
}

fn stopped(generation: i64, step: Option<&str>) -> Status {
    Status {
        stop_step: step.map(Into::into),
        released: Some(Released {
            host_epoch: EPOCH,
            time: WALL.into(),
        }),
        ..phase(Phase::Stopped, generation, None)
    }
}

fn report(status: Status) -> Action {
    Action::Report(Box::new(status))
}

fn wake(milliseconds: u64) -> Action {
    Action::WakeAt(boot(milliseconds))
}

/// A core with its time and lease.
struct Script {
    core: InstanceCore,
    held: Option<i64>,
    step: usize,
}

impl Script {
    fn new(status: Option<&Status>) -> Self {
        let (core, actions) = InstanceCore::new(status);
        assert_eq!(actions, [Action::Examine(1)]);
        Self {
            core,
            held: Some(EPOCH),
            step: 0,
        }
    }

    fn at(&mut self, time: u64, event: Event, expected: &[Action]) -> &mut Self {
        self.step += 1;
        let what = format!("step {} at {time}: {event:?}", self.step);
        let now = Now {
            boot: boot(time),
            wall: WALL.parse::<Timestamp>().unwrap(),
            held: self.held.map(|epoch| Held {
                epoch,
                until: Boottime::from_millis(u64::MAX),
            }),
        };
        assert_eq!(self.core.step(now, event), expected, "{what}");
        self
    }

    fn with_lease(&mut self, held: Option<i64>) -> &mut Self {
        self.held = held;
        self
    }

    /// Up and running at 30, as run 2 of generation 1.
    fn up(&mut self) -> &mut Self {
        self.at(0, Event::Wished(wish(1, Power::Running)), &[])
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
            .at(20, Event::Prepared(Ok(())), &[Action::Spawn(2), wake(1010)])
            .at(25, Event::Spawned(Ok(started(1))), &[wake(1010)])
            .at(30, Event::GuestIs(2, Guest::Running), &[report(running(1))])
    }
}

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
fn deleted_from_a_watch_means_ask_again() {
    Script::new(None)
        .up()
        .at(100, Event::Vanished, &[Action::Confirm])
        .at(110, Event::Vanished, &[])
        .at(120, Event::Confirmed(Some(wish(1, Power::Running))), &[])
        .at(200, Event::Vanished, &[Action::Confirm])
        .at(210, Event::ConfirmFailed, &[wake(1210)])
        .at(1210, Event::Tick, &[Action::Confirm])
        .at(1220, Event::Confirmed(None), &[Action::Clear])
        .at(1230, Event::Cleared, &[Action::Clean])
        .at(1240, Event::Cleaned, &[Action::End]);
}

#[test]
fn an_orphan_goes_on_until_the_lease_is_held() {
    Script::new(None)
        .with_lease(None)
        .at(0, Event::Vanished, &[Action::Confirm])
        .at(
            1,
            Event::Examined(Found::Adopted {
                started: started(1),
                guest: Guest::Running,
            }),
            &[],
        )
        .at(2, Event::Confirmed(None), &[])
        .with_lease(Some(EPOCH))
        .at(3, Event::Tick, &[Action::Clear])
        .at(4, Event::Cleared, &[Action::Clean])
        .at(5, Event::Cleaned, &[Action::End]);
}

#[test]
fn a_restarted_agent_adopts_without_a_write() {
    Script::new(Some(&running(1)))
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            1,
            Event::Examined(Found::Adopted {
                started: started(1),
                guest: Guest::Running,
            }),
            &[],
        )
        .at(2, Event::GuestIs(1, Guest::Running), &[]);
}

#[test]
fn a_new_epoch_for_a_running_guest_is_acknowledged_and_no_more() {
    let mut stamped = wish(2, Power::Running);
    stamped.host_epoch = EPOCH + 1;
    Script::new(None)
        .up()
        .with_lease(None)
        .at(100, Event::Tick, &[])
        .with_lease(Some(EPOCH + 1))
        .at(200, Event::Tick, &[])
        .at(
            300,
            Event::Wished(stamped),
            &[report(Status {
                observed_generation: Some(2),
                ..running(1)
            })],
        );
}

#[test]
fn a_graceful_stop_is_one_report() {
    Script::new(None)
        .up()
        .at(
            5_000,
            Event::Wished(wish(2, Power::Stopped)),
            &[Action::Stop(30), wake(6_000)],
        )
        .at(
            5_400,
            Event::Exited(2, End::Stopped("PowerButton")),
            &[Action::Clear, wake(6_000)],
        )
        .at(5_410, Event::Cleared, &[Action::Clean, wake(6_000)])
        .at(
            5_420,
            Event::Cleaned,
            &[report(stopped(2, Some("PowerButton")))],
        )
        .at(5_500, Event::Wished(wish(3, Power::Stopped)), &[])
        .at(5_600, Event::Wished(wish(4, Power::Running)), &[]);
}

#[test]
fn a_deletion_stops_and_a_slow_stop_is_told() {
    let mut deleting = wish(2, Power::Running);
    deleting.deleting = true;
    Script::new(None)
        .up()
        .at(
            5_000,
            Event::Wished(deleting),
            &[Action::Stop(30), wake(6_000)],
        )
        .at(
            6_000,
            Event::Tick,
            &[report(phase(Phase::Stopping, 2, None)), wake(45_000)],
        )
        // The monitor hangs: killed 10 s after the guest's deadline.
        .at(45_000, Event::Tick, &[Action::Clear])
        .at(45_010, Event::Cleared, &[Action::Clean])
        .at(45_020, Event::Cleaned, &[report(stopped(2, Some("Kill")))]);
}

#[test]
fn a_shorter_deadline_is_passed_on_and_a_longer_is_not() {
    let with = |generation, seconds| Wish {
        stop_deadline_seconds: seconds,
        ..wish(generation, Power::Stopped)
    };
    Script::new(None)
        .up()
        .at(
            5_000,
            Event::Wished(with(2, 30)),
            &[Action::Stop(30), wake(6_000)],
        )
        .at(5_100, Event::Wished(with(3, 60)), &[wake(6_000)])
        .at(
            5_200,
            Event::Wished(with(4, 0)),
            &[Action::Stop(0), wake(6_000)],
        )
        .at(5_300, Event::StopFailed, &[Action::Clear, wake(6_000)]);
}

#[test]
fn release_waits_for_the_lease() {
    Script::new(None)
        .up()
        .at(
            5_000,
            Event::Wished(wish(2, Power::Stopped)),
            &[Action::Stop(30), wake(6_000)],
        )
        .at(
            5_100,
            Event::Exited(2, End::Stopped("PowerButton")),
            &[Action::Clear, wake(6_000)],
        )
        .with_lease(None)
        .at(5_110, Event::Cleared, &[Action::Clean, wake(6_000)])
        .at(5_120, Event::Cleaned, &[wake(6_000)])
        .with_lease(Some(EPOCH))
        .at(
            5_500,
            Event::Tick,
            &[report(stopped(2, Some("PowerButton")))],
        );
}

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
fn pauses_and_resumes() {
    let paused = |generation| Status {
        phase: Phase::Paused,
        observed_generation: Some(generation),
        ..running(1)
    };
    Script::new(None)
        .up()
        .at(
            100,
            Event::Wished(wish(2, Power::Paused)),
            &[
                Action::SetPower(Power::Paused),
                report(Status {
                    observed_generation: Some(2),
                    ..running(1)
                }),
                wake(5_100),
            ],
        )
        // No effect: asked again.
        .at(
            5_100,
            Event::Tick,
            &[Action::SetPower(Power::Paused), wake(10_100)],
        )
        .at(
            5_200,
            Event::GuestIs(2, Guest::Paused(Pause::Requested)),
            &[report(paused(2))],
        )
        .at(
            6_000,
            Event::Wished(wish(3, Power::Running)),
            &[
                Action::SetPower(Power::Running),
                report(paused(3)),
                wake(11_000),
            ],
        )
        .at(
            6_100,
            Event::GuestIs(2, Guest::Running),
            &[report(Status {
                observed_generation: Some(3),
                ..running(1)
            })],
        );
}

#[test]
fn a_full_pool_pauses_with_a_reason_and_goes_on_when_there_is_room() {
    let full = Guest::Paused(Pause::Trouble(Failure::new("PoolFull", "no space left")));
    Script::new(None)
        .up()
        .at(
            100,
            Event::GuestIs(2, full),
            &[
                Action::SetPower(Power::Running),
                report(Status {
                    phase: Phase::Paused,
                    reason: Some("PoolFull".into()),
                    message: Some("no space left".into()),
                    ..running(1)
                }),
                wake(5_100),
            ],
        )
        .at(
            5_100,
            Event::Tick,
            &[Action::SetPower(Power::Running), wake(10_100)],
        )
        .at(
            5_200,
            Event::GuestIs(2, Guest::Running),
            &[report(running(1))],
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
fn power_on_during_a_stop_starts_again_instead_of_releasing() {
    Script::new(None)
        .up()
        .at(
            5_000,
            Event::Wished(wish(2, Power::Stopped)),
            &[Action::Stop(30), wake(6_000)],
        )
        .at(
            5_100,
            Event::Wished(wish(3, Power::Running)),
            &[wake(6_000)],
        )
        .at(
            5_200,
            Event::Exited(2, End::Stopped("PowerButton")),
            &[Action::Clear, wake(6_000)],
        )
        .at(
            5_210,
            Event::Cleared,
            &[Action::Confirm, wake(5_000 + QUIET.as_millis() as u64)],
        );
}

#[test]
fn an_older_wish_from_a_lagging_watch_changes_nothing() {
    Script::new(None)
        .up()
        .at(
            5_000,
            Event::Wished(wish(3, Power::Stopped)),
            &[Action::Stop(30), wake(6_000)],
        )
        .at(
            5_010,
            Event::Wished(wish(2, Power::Running)),
            &[wake(6_000)],
        )
        .at(
            5_100,
            Event::Exited(2, End::Stopped("PowerButton")),
            &[Action::Clear, wake(6_000)],
        )
        .at(5_110, Event::Cleared, &[Action::Clean, wake(6_000)]);
}
