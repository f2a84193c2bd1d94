//! A machine that fits nowhere.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "what_fits_nowhere_says_why_and_starts_when_there_is_room",
        manner: Manner::Alone,
        run: fits_nowhere,
    },
    Scenario {
        name: "machines_that_cannot_start_keep_no_room_from_others",
        manner: Manner::Alone,
        run: room_for_others,
    },
];

/// Two of them are more than a host has.
const MOST_OF_A_HOST_PERCENT: i64 = 60;

/// A machine that takes most of a host's memory.
fn large(cx: &Context<'_>, name: &str, host: &'static str) -> Result<String> {
    let capacity = cx.kubectl.get("host/host-a")?["status"]["capacity"]["memoryBytes"].as_i64();
    let bytes = capacity.context("host-a says nothing of its memory")?;
    let mebibytes = (bytes / 100 * MOST_OF_A_HOST_PERCENT) >> 20;
    let guest = Guest {
        host,
        ..Guest::unbooted(name)
    };
    Ok(guest
        .machine_yaml()
        .replace("memory: 160Mi", &format!("memory: {mebibytes}Mi")))
}

fn room_for_others(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.apply(&internal_network(87))?;
    let wrong = format!("tiny-linux.img, sha256: \"{}\"", "0".repeat(64));
    for (name, host) in [("blocked-a", "host-a"), ("blocked-b", "host-b")] {
        let guest = Guest {
            pool: "default",
            ..Guest::new(name)
        };
        let disk = guest.disk_yaml().replace("tiny-linux.img", &wrong);
        cx.kubectl.apply(&(disk + &large(cx, name, host)?))?;
        cx.kubectl.wait_reason(
            &format!("vhd/{name}"),
            "Ready",
            "False",
            "ChecksumMismatch",
            &[],
            REACTION,
        )?;
    }
    let good = Guest::new("good").empty_disk_yaml() + &large(cx, "good", "")?;
    cx.kubectl.apply(&good)?;
    cx.kubectl.wait_condition("vm/good", "Ready", guest::BOOT)
}

fn fits_nowhere(cx: &Context<'_>) -> Result<()> {
    for host in ["host-a", "host-b"] {
        cx.kubectl.patch(
            &format!("host/{host}"),
            &json!({"spec": {"reserve": {"memory": "10Ti"}}}),
        )?;
        cx.kubectl
            .wait_field(&format!("host/{host}"), ".status.memory", "0", REACTION)?;
    }
    let waiting = waits_then_starts(cx);
    // Whatever came of it, the others need their hosts back.
    for host in ["host-a", "host-b"] {
        cx.kubectl.patch(
            &format!("host/{host}"),
            &json!({"spec": {"reserve": {"memory": null}}}),
        )?;
    }
    waiting?;
    cx.kubectl.wait_condition("vm/big", "Ready", guest::BOOT)
}

fn waits_then_starts(cx: &Context<'_>) -> Result<()> {
    cx.kubectl
        .apply(&(Guest::new("big").yaml() + &internal_network(72)))?;
    cx.kubectl.wait_reason(
        "vm/big",
        "Scheduled",
        "False",
        "Unschedulable",
        &["host-a: ", "host-b: ", "memory short by"],
        REACTION,
    )?;
    ensure!(
        cx.kubectl.text("vm/big", "/status/state")? == "Pending",
        "{}",
        cx.kubectl.get("vm/big")?["status"]
    );
    cx.kubectl.patch(
        "host/host-b",
        &json!({"spec": {"reserve": {"memory": null}}}),
    )?;
    cx.kubectl.wait_condition("vm/big", "Ready", guest::BOOT)?;
    ensure!(
        cx.kubectl.text("vm/big", "/status/host")? == "host-b",
        "{}",
        cx.kubectl.get("vm/big")?["status"]
    );
    Ok(())
}
