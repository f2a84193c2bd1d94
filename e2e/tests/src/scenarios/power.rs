//! Power: run policy, restarts, changes that wait, guests that reboot or power off, processes that die.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
    wait,
};
use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use paddock_lab::Fault;
use serde_json::{Value, json};
use std::{fs, os::unix::fs::MetadataExt as _, time::Duration};

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
    // Nobody writes it any more: what is told of it is what it takes.
    let path = cx.kubectl.text("vhd/p", "/status/file/path")?;
    let file = cx.lab.directory().join("pools/shared").join(path);
    let takes = fs::metadata(&file)?.blocks() / 2;
    let told = cx.kubectl.text("vhd/p", "/status/allocated")?;
    ensure!(
        told == format!("{takes}Ki") || takes % 1024 == 0 && told == format!("{}Mi", takes / 1024),
        "{} takes {takes}Ki, and {told} is told",
        file.display()
    );
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
        line.split(' ').any(|word| word == "size=176M"),
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
    let uid = || cx.kubectl.text("vmi/g", "/metadata/uid");
    let instance = uid()?;
    guest::ask(cx, &before.host, &before.address, "reboot")?;
    // All the while, not just afterwards.
    let rebooted = guest::wait_page(cx, "g", |r| {
        r.boots() == 2 || uid().is_ok_and(|now| now != instance)
    })?;
    ensure!(uid()? == instance, "a reboot made a new instance");
    ensure!(
        rebooted.boots() == 2 && rebooted.process_id == before.process_id,
        "a reboot made a new process: {before:?} became {rebooted:?}"
    );

    let mut process_id = before.process_id;
    for (boots, restarts) in [(3, 1), (4, 2)] {
        guest::ask(cx, &before.host, &before.address, "poweroff")?;
        let back = guest::wait_page(cx, "g", |r| r.boots() == boots)?;
        ensure!(
            back.process_id != process_id,
            "the process outlived the power-off"
        );
        process_id = back.process_id;
        wait::until("the count of restarts", REACTION, || {
            let vm = cx.kubectl.get("vm/g")?;
            ensure!(vm["status"]["restarts"] == restarts, "{}", vm["status"]);
            Ok(())
        })?;
    }
    // By the times in the host's log: 1 s, then 2 s, of which the writing of a line may take some.
    let waits = waits_after_ends(cx, &before.host, "g")?;
    ensure!(
        waits.len() == 2 && waits[0] >= 0.8 && waits[1] >= 1.8,
        "started again {waits:?} s after the guest had switched itself off"
    );

    // With runPolicy Stopped nothing starts it again.
    cx.kubectl
        .patch("vm/g", &json!({"spec": {"runPolicy": "Stopped"}}))?;
    cx.kubectl
        .wait_field("vm/g", ".status.state", "Stopped", Duration::from_secs(90))
}

/// Seconds from each end of a machine that ended by itself to its next start, as its host logged them.
fn waits_after_ends(cx: &Context<'_>, host: &str, name: &str) -> Result<Vec<f64>> {
    let log = fs::read_to_string(cx.lab.directory().join(format!("logs/{host}.log")))?;
    let instance = format!("instance={}/{name} ", cx.namespace());
    let mut ended: Option<Timestamp> = None;
    let mut waits = Vec::new();
    for line in log.lines().filter(|line| line.contains(&instance)) {
        let first = line.split(' ').next().unwrap_or_default();
        let Ok(time) = first.parse::<Timestamp>() else {
            continue;
        };
        if line.contains("phase=Restarting") {
            ended.get_or_insert(time);
        } else if line.contains(": started ")
            && let Some(ended) = ended.take()
        {
            waits.push(time.duration_since(ended).as_secs_f64());
        }
    }
    Ok(waits)
}

/// Of the unit in which the kernel counts when processes started.
const TICKS_A_SECOND: f64 = 100.0;

/// Seconds from a fault that ends a machine's processes to the start of its next QEMU, by the kernel's own times.
fn time_to_start(cx: &Context<'_>, name: &str, host: &str, fault: Fault) -> Result<f64> {
    let object = format!("vmi/{name}");
    let restarts = cx.kubectl.get(&object)?["status"]["restarts"]
        .as_i64()
        .unwrap_or_default();
    let uptime = fs::read_to_string("/proc/uptime")?;
    cx.lab.fault(fault)?;
    let process_id = wait::until("the next start", REACTION, || {
        let status = cx.kubectl.get(&object)?["status"].take();
        ensure!(
            status["restarts"] == restarts + 1 && status["phase"] == "Running",
            "{status}"
        );
        status["processId"].as_i64().context("no process id")
    })?;
    let start = cx.lab.exec_ok(
        host,
        &[
            "sh",
            "-c",
            "awk '{print $22}' /proc/$(pgrep -P $0 qemu)/stat",
            &process_id.to_string(),
        ],
    )?;
    let killed: f64 = uptime.split(' ').next().unwrap_or_default().parse()?;
    Ok(start.trim().parse::<f64>()? / TICKS_A_SECOND - killed)
}

fn killed_processes(cx: &Context<'_>) -> Result<()> {
    cx.kubectl
        .apply(&(Guest::new("k").yaml() + &internal_network(65)))?;
    let before = guest::wait_running(cx, "k")?;
    let (vm, namespace) = ("k".to_owned(), cx.namespace().to_owned());
    let kill_vmm = Fault::KillVmm {
        vm: vm.clone(),
        namespace: namespace.clone(),
    };
    let kill_qemu = Fault::KillQemu { vm, namespace };
    let mut seconds = vec![time_to_start(cx, "k", &before.host, kill_vmm.clone())?];
    let second = guest::wait_page(cx, "k", |r| r.boots() == 2)?;
    ensure!(
        second.process_id != before.process_id,
        "the same process after it was killed"
    );

    seconds.push(time_to_start(cx, "k", &before.host, kill_qemu)?);
    let third = guest::wait_page(cx, "k", |r| r.boots() == 3)?;
    ensure!(
        third.process_id != second.process_id,
        "the same process after its QEMU was killed"
    );
    seconds.push(time_to_start(cx, "k", &before.host, kill_vmm)?);
    // The best of them: the guests of other tests take the processors too.
    ensure!(
        seconds.iter().any(|seconds| *seconds < 1.0),
        "started again {seconds:?} s after being killed, expected less than a second"
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
