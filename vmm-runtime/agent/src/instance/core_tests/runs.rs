//! What happens to a guest that runs.

use super::*;

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
fn what_disks_take_is_told_when_it_has_changed_enough() {
    let with = |allocated| Status {
        disks: told_use(allocated),
        ..running(1)
    };
    Script::new(None)
        .up()
        .at(100, Event::Measured(2, used(5)), &[report(with(5))])
        .at(200, Event::Measured(2, used(1 << 20)), &[])
        // Another process's.
        .at(300, Event::Measured(1, used(1 << 29)), &[])
        .at(
            400,
            Event::Measured(2, used(1 << 29)),
            &[report(with(1 << 29))],
        );
    // A new agent keeps what was told.
    Script::new(Some(&with(5)))
        .at(0, Event::Wished(wish(1, Power::Running)), &[])
        .at(
            1,
            Event::Examined(Found::Adopted {
                started: started(1),
                guest: Guest::Running,
            }),
            &[],
        )
        .at(2, Event::Measured(1, used(6)), &[]);
}

#[test]
fn what_dhcp_is_to_answer_reaches_a_running_guest() {
    let answers = |generation, dhcp: &str| Wish {
        dhcp: dhcp.into(),
        ..wish(generation, Power::Running)
    };
    let observed = |generation| {
        report(Status {
            observed_generation: Some(generation),
            ..running(1)
        })
    };
    let failure = || Err(Failure::new("NetworkUnavailable", "no"));
    Script::new(None)
        .up()
        .at(
            100,
            Event::Wished(answers(2, "new")),
            &[Action::ServeDhcp(2), observed(2), wake(60_100)],
        )
        .at(110, Event::DhcpServed(2, failure()), &[wake(5_110)])
        .at(5_110, Event::Tick, &[Action::ServeDhcp(2), wake(65_110)])
        // Once more, before the answer.
        .at(
            5_120,
            Event::Wished(answers(3, "newer")),
            &[observed(3), wake(65_110)],
        )
        .at(
            5_200,
            Event::DhcpServed(2, Ok("new".into())),
            &[Action::ServeDhcp(2), wake(65_200)],
        )
        .at(5_210, Event::DhcpServed(2, Ok("newer".into())), &[])
        .at(5_220, Event::Tick, &[]);
}
