//! How a guest is stopped, released and forgotten.

use super::*;

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
fn what_disks_take_in_the_end_is_told_with_the_proof() {
    Script::new(None)
        .up()
        .at(
            5_000,
            Event::Wished(wish(2, Power::Stopped)),
            &[Action::Stop(30), wake(6_000)],
        )
        // Another process's.
        .at(5_390, Event::MeasuredLast(1, used(9)), &[wake(6_000)])
        .at(5_395, Event::MeasuredLast(2, used(7)), &[wake(6_000)])
        .at(
            5_400,
            Event::Exited(2, End::Stopped("PowerButton")),
            &[Action::Clear, wake(6_000)],
        )
        .at(5_410, Event::Cleared, &[Action::Clean, wake(6_000)])
        .at(
            5_420,
            Event::Cleaned,
            &[report(Status {
                disks: told_use(7),
                ..stopped(2, Some("PowerButton"))
            })],
        );
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
