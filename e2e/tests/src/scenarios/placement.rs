//! A machine that fits nowhere.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
};
use anyhow::{Result, ensure};
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "what_fits_nowhere_says_why_and_starts_when_there_is_room",
    manner: Manner::Alone,
    run: fits_nowhere,
}];

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
