//! Power: run policy, restarts, changes that wait, guests that reboot or power off, processes that die.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
    wait,
};
use anyhow::{Result, ensure};
use paddock_lab::Fault;
use serde_json::{Value, json};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "run_policy_stops_pauses_and_runs",
        manner: Manner::Beside,
        run: run_policy,
    },
    Scenario {
        name: "restart_token_restarts_once_and_applies_changes",
        manner: Manner::Beside,
        run: restart_token,
    },
    Scenario {
        name: "guest_reboot_stays_and_guest_power_off_follows_run_policy",
        manner: Manner::Beside,
        run: guest_ends,
    },
    Scenario {
        name: "killed_vmm_and_killed_qemu_are_started_again",
        manner: Manner::Beside,
        run: killed_processes,
    },
];

fn run_policy(cx: &Context<'_>) -> Result<()> {
    cx.kubectl
        .apply(&(Guest::new("p").yaml() + &internal_network(62)))?;
    let before = guest::wait_running(cx, "p")?;

    cx.kubectl
        .patch("vm/p", &json!({"spec": {"runPolicy": "Paused"}}))?;
    cx.kubectl
        .wait_field("vm/p", ".status.state", "Paused", REACTION)?;
    ensure!(
        guest::ask(cx, &before.host, &before.address, "status").is_err(),
        "a paused guest answers"
    );
    cx.kubectl
        .patch("vm/p", &json!({"spec": {"runPolicy": "Running"}}))?;
    cx.kubectl
        .wait_field("vm/p", ".status.state", "Running", REACTION)?;
    let resumed = guest::wait_page(cx, "p", |_| true)?;
    ensure!(
        resumed.boots() == 1 && resumed.process_id == before.process_id,
        "pausing restarted it: {before:?} {resumed:?}"
    );

    cx.kubectl
        .patch("vm/p", &json!({"spec": {"runPolicy": "Stopped"}}))?;
    cx.kubectl
        .wait_field("vm/p", ".status.state", "Stopped", Duration::from_secs(90))?;
    cx.kubectl.wait_gone("vmi/p", REACTION)?;
    ensure!(
        cx.kubectl.text("vhd/p", "/status/attachment")?.is_empty(),
        "the disk of a stopped machine is attached"
    );
    cx.kubectl.wait_condition("vm/p", "Ready", REACTION)?;
    // The guest was asked, not killed: it had time to unmount.
    let step = cx.kubectl.text("vm/p", "/status/stopStep")?;
    ensure!(step == "PowerButton", "it ended by {step:?}");

    cx.kubectl
        .patch("vm/p", &json!({"spec": {"runPolicy": "Running"}}))?;
    let again = guest::wait_page(cx, "p", |r| r.boots() == 2)?;
    ensure!(
        again.address == before.address,
        "its address changed from {} to {}",
        before.address,
        again.address
    );
    Ok(())
}

fn restart_token(cx: &Context<'_>) -> Result<()> {
    cx.kubectl
        .apply(&(Guest::new("r").yaml() + &internal_network(63)))?;
    let before = guest::wait_running(cx, "r")?;
    cx.kubectl
        .patch("vm/r", &json!({"spec": {"memory": "176Mi"}}))?;
    cx.kubectl
        .wait_condition("vm/r", "RestartRequired", REACTION)?;
    let still = guest::look(cx, "r")?;
    ensure!(
        still.boots() == 1 && still.process_id == before.process_id,
        "changing memory restarted it: {still:?}"
    );

    cx.kubectl
        .patch("vm/r", &json!({"spec": {"restartToken": "one"}}))?;
    let after = guest::wait_page(cx, "r", |r| r.boots() == 2)?;
    ensure!(after.process_id != before.process_id, "the process stayed");
    wait::until("RestartRequired to pass", REACTION, || {
        let vm = cx.kubectl.get("vm/r")?;
        let conditions = vm
            .pointer("/status/conditions")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let required = conditions
            .iter()
            .any(|c| c["type"] == "RestartRequired" && c["status"] == "True");
        ensure!(!required, "{conditions:?}");
        Ok(())
    })?;
    let line = cx.lab.exec_ok(
        &after.host,
        &[
            "sh",
            "-c",
            "tr '\\0' ' ' < /proc/$(pgrep -P $0 qemu)/cmdline",
            &after.process_id.to_string(),
        ],
    )?;
    ensure!(
        line.contains("176"),
        "176 MiB are not on QEMU's command line: {line}"
    );
    // Once is once.
    wait::throughout("restarting once", Duration::from_secs(3), || {
        let now = guest::look(cx, "r")?;
        ensure!(
            now.boots() == 2 && now.process_id == after.process_id,
            "{now:?}"
        );
        Ok(())
    })
}

fn guest_ends(cx: &Context<'_>) -> Result<()> {
    cx.kubectl
        .apply(&(Guest::new("g").yaml() + &internal_network(64)))?;
    let before = guest::wait_running(cx, "g")?;
    guest::ask(cx, &before.host, &before.address, "reboot")?;
    let rebooted = guest::wait_page(cx, "g", |r| r.boots() == 2)?;
    ensure!(
        rebooted.process_id == before.process_id,
        "a reboot made a new process"
    );

    guest::ask(cx, &before.host, &before.address, "poweroff")?;
    let back = guest::wait_page(cx, "g", |r| r.boots() == 3)?;
    ensure!(
        back.process_id != before.process_id,
        "the process outlived the power-off"
    );
    wait::until("the count of restarts", REACTION, || {
        let vm = cx.kubectl.get("vm/g")?;
        ensure!(vm["status"]["restarts"] == 1, "{}", vm["status"]);
        Ok(())
    })?;

    // With runPolicy Stopped nothing starts it again.
    cx.kubectl
        .patch("vm/g", &json!({"spec": {"runPolicy": "Stopped"}}))?;
    cx.kubectl
        .wait_field("vm/g", ".status.state", "Stopped", Duration::from_secs(90))
}

fn killed_processes(cx: &Context<'_>) -> Result<()> {
    cx.kubectl
        .apply(&(Guest::new("k").yaml() + &internal_network(65)))?;
    let before = guest::wait_running(cx, "k")?;
    let namespace = cx.namespace().to_owned();
    cx.lab.fault(Fault::KillVmm {
        vm: "k".into(),
        namespace: namespace.clone(),
    })?;
    let second = guest::wait_page(cx, "k", |r| r.boots() == 2)?;
    ensure!(
        second.process_id != before.process_id,
        "the same process after it was killed"
    );

    cx.lab.fault(Fault::KillQemu {
        vm: "k".into(),
        namespace,
    })?;
    let third = guest::wait_page(cx, "k", |r| r.boots() == 3)?;
    ensure!(
        third.process_id != second.process_id,
        "the same process after its QEMU was killed"
    );
    // One QEMU for this machine, not two.
    let pattern = format!("^[^ ]*qemu-system.*guest={}/k,", cx.namespace());
    let count = cx.lab.exec_ok(
        &third.host,
        &["sh", "-c", "pgrep -fc \"$0\" || true", &pattern],
    )?;
    ensure!(
        count.trim() == "1",
        "{} QEMU processes of one machine",
        count.trim()
    );
    Ok(())
}
