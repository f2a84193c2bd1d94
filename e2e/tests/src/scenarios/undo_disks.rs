//! Undo disks: kept, committed or discarded at a stop, and always kept when the guest shuts down from inside.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
};
use anyhow::{Result, ensure};
use paddock_lab::Fault;
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "undo_disks_are_discarded_kept_and_committed",
        manner: Manner::Beside,
        run: undo_disks,
    },
    Scenario {
        name: "an_undo_request_is_carried_out_once_for_each_token",
        manner: Manner::Beside,
        run: undo_token,
    },
    Scenario {
        name: "a_guest_that_powers_itself_off_keeps_its_undo_disk",
        manner: Manner::Alone,
        run: own_power_off,
    },
];

/// A machine `u` with undo disks on the network `lab`.
fn with_undo_disks(on_stop: &str, third: u8) -> String {
    let guest = Guest {
        extra: format!("  undoDisks: {{mode: Enabled, onStop: {on_stop}}}\n"),
        ..Guest::new("u")
    };
    guest.yaml() + &internal_network(third)
}

fn run_policy(cx: &Context<'_>, policy: &str) -> Result<()> {
    cx.kubectl
        .patch("vm/u", &json!({"spec": {"runPolicy": policy}}))
}

fn wait_stopped(cx: &Context<'_>) -> Result<()> {
    cx.kubectl
        .wait_field("vm/u", ".status.state", "Stopped", guest::BOOT)
}

/// Waits until the disk's undo disk has a state; empty: until there is none.
fn wait_undo(cx: &Context<'_>, state: &str) -> Result<()> {
    crate::wait::until(
        &format!("the undo disk's state {state:?}"),
        REACTION,
        || {
            let found = cx.kubectl.text("vhd/u", "/status/undo/state")?;
            ensure!(found == state, "it is {found:?}");
            Ok(())
        },
    )
}

/// Starts the machine, and expects that its disk has counted so many boots.
fn start_to(cx: &Context<'_>, boots: i64) -> Result<guest::Running> {
    run_policy(cx, "Running")?;
    let running = guest::wait_running(cx, "u")?;
    ensure!(running.boots() == boots, "{running:?}");
    Ok(running)
}

fn undo_token(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.apply(&with_undo_disks("Keep", 83))?;
    let stop = |cx: &Context<'_>| {
        run_policy(cx, "Stopped")?;
        wait_stopped(cx)?;
        wait_undo(cx, "Kept")
    };
    let request = |action: &str, token: &str| {
        let request = json!({"action": action, "token": token});
        cx.kubectl.patch(
            "vm/u",
            &json!({"spec": {"undoDisks": {"request": request}}}),
        )
    };
    start_to(cx, 1)?;
    // While it runs, the command waits.
    request("Commit", "first")?;
    cx.kubectl.wait_reason(
        "vm/u",
        "UndoDisksPending",
        "True",
        "RequestWaits",
        &["Stopped"],
        REACTION,
    )?;
    run_policy(cx, "Stopped")?;
    wait_stopped(cx)?;
    wait_undo(cx, "")?;
    cx.kubectl
        .wait_field("vm/u", ".status.undoRequestToken", "first", REACTION)?;
    // The same token is no new command: what comes after it is kept.
    start_to(cx, 2)?;
    stop(cx)?;
    request("Discard", "second")?;
    wait_undo(cx, "")?;
    start_to(cx, 2)?;
    Ok(())
}

fn own_power_off(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.apply(&with_undo_disks("Discard", 84))?;
    let before = start_to(cx, 1)?;
    // Its agent learns of the end and of the order to stop at once: otherwise it would start the guest again.
    let host = before.host.clone();
    cx.lab.fault(Fault::PauseAgent { host: host.clone() })?;
    let ended = end_inside(cx, &before);
    cx.lab.fault(Fault::ResumeAgent { host })?;
    ended?;
    wait_stopped(cx)?;
    let step = cx.kubectl.text("vm/u", "/status/stopStep")?;
    ensure!(step == "GuestPowerOff", "it ended by {step:?}");
    wait_undo(cx, "Kept")?;
    // Nothing of it is lost.
    start_to(cx, 2)?;
    run_policy(cx, "Stopped")?;
    wait_stopped(cx)?;
    wait_undo(cx, "")
}

fn end_inside(cx: &Context<'_>, guest: &guest::Running) -> Result<()> {
    guest::ask(cx, &guest.host, &guest.address, "poweroff")?;
    let pattern = format!("^[^ ]*qemu-system.*guest={}/u,", cx.namespace());
    crate::wait::until("the guest's end", guest::BOOT, || {
        let count = cx.lab.exec_ok(
            &guest.host,
            &["sh", "-c", "pgrep -fc \"$0\" || true", &pattern],
        )?;
        ensure!(count.trim() == "0", "{count}");
        Ok(())
    })?;
    run_policy(cx, "Stopped")
}

fn undo_disks(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.apply(&with_undo_disks("Discard", 82))?;
    let on_stop = |what: &str| {
        cx.kubectl
            .patch("vm/u", &json!({"spec": {"undoDisks": {"onStop": what}}}))
    };
    // How often the disk has counted when each guest runs: what is discarded is not counted.
    for (what, boots) in [("Discard", 1), ("Keep", 1), ("Commit", 2), ("Keep", 3)] {
        on_stop(what)?;
        start_to(cx, boots)?;
        run_policy(cx, "Stopped")?;
        wait_stopped(cx)?;
        wait_undo(cx, if what == "Keep" { "Kept" } else { "" })?;
    }
    // Disabled while it is off: what was kept goes at once.
    cx.kubectl.patch(
        "vm/u",
        &json!({"spec": {"undoDisks": {"mode": "Disabled"}}}),
    )?;
    wait_undo(cx, "")?;
    start_to(cx, 3)?;
    let left = cx.lab.exec_ok(
        "host-a",
        &[
            "ls",
            &format!("/var/lib/paddock/pools/shared/{}", cx.namespace()),
        ],
    )?;
    ensure!(!left.contains(".vud"), "{left}");
    Ok(())
}
