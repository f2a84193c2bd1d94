//! Plugs pulled while guests serve pages.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, Running, internal_network},
    runner::{Manner, Scenario},
    wait,
};
use anyhow::{Result, ensure};
use paddock_lab::Fault;
use serde_json::json;
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "no_guest_notices_killed_agent_operator_api_server",
        manner: Manner::Alone,
        run: control_dies,
    },
    Scenario {
        name: "machines_of_a_rebooted_host_return",
        manner: Manner::Alone,
        run: reboot,
    },
    Scenario {
        name: "a_delete_with_a_dead_agent_says_how_to_force_it",
        manner: Manner::Alone,
        run: dead_agent,
    },
];

fn unchanged(cx: &Context<'_>, name: &str, before: &Running) -> Result<()> {
    let now = guest::wait_page(cx, name, |_| true)?;
    ensure!(
        now.boots() == before.boots()
            && now.process_id == before.process_id
            && now.says["bootId"] == before.says["bootId"],
        "it noticed: {before:?} became {now:?}"
    );
    Ok(())
}

/// That what was killed works again: it takes an order.
fn obeys(cx: &Context<'_>, name: &str) -> Result<()> {
    for (policy, state) in [("Paused", "Paused"), ("Running", "Running")] {
        cx.kubectl.patch(
            &format!("vm/{name}"),
            &json!({"spec": {"runPolicy": policy}}),
        )?;
        cx.kubectl
            .wait_field(&format!("vm/{name}"), ".status.state", state, REACTION)?;
    }
    Ok(())
}

fn control_dies(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.apply(
        &(Guest {
            host: "host-a",
            ..Guest::new("c")
        }
        .yaml()
            + &internal_network(73)),
    )?;
    let before = guest::wait_running(cx, "c")?;
    for fault in [
        Fault::KillAgent {
            host: "host-a".into(),
        },
        Fault::KillOperator,
        Fault::KillApiserver,
    ] {
        let name = format!("{fault:?}");
        cx.lab.fault(fault)?;
        // From the host, not through the API: the page must answer all the while.
        wait::throughout(
            &format!("the page after {name}"),
            Duration::from_secs(4),
            || guest::ask(cx, &before.host, &before.address, "status").map(drop),
        )?;
        wait::until("the API server", REACTION, || {
            cx.kubectl.run(&["get", "--raw", "/readyz"]).map(drop)
        })?;
        cx.kubectl
            .wait_condition("host/host-a", "Ready", REACTION)?;
        unchanged(cx, "c", &before)?;
        obeys(cx, "c")?;
        unchanged(cx, "c", &before)?;
    }
    Ok(())
}

fn reboot(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.apply(
        &(Guest {
            host: "host-b",
            ..Guest::new("b")
        }
        .yaml()
            + &internal_network(74)),
    )?;
    let before = guest::wait_running(cx, "b")?;
    let boot_id = cx.kubectl.text("host/host-b", "/status/bootId")?;
    cx.lab.fault(Fault::KillHost {
        host: "host-b".into(),
        stay_down: false,
    })?;
    let after = guest::wait_page(cx, "b", |r| r.boots() == before.boots() + 1)?;
    ensure!(after.host == "host-b", "{after:?}");
    ensure!(
        cx.kubectl.text("host/host-b", "/status/bootId")? != boot_id,
        "the boot id stayed"
    );
    cx.kubectl.wait_condition("vm/b", "Ready", REACTION)
}

fn dead_agent(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.apply(
        &(Guest {
            host: "host-b",
            ..Guest::new("x")
        }
        .yaml()
            + &internal_network(75)),
    )?;
    // Until its page answers, which is once its count is on the disk.
    guest::wait_running(cx, "x")?;
    cx.lab.fault(Fault::KillHost {
        host: "host-b".into(),
        stay_down: true,
    })?;
    let forced = delete_and_force(cx);
    cx.lab.fault(Fault::StartHost {
        host: "host-b".into(),
    })?;
    forced?;
    // The host comes back, finds that nothing of it is wanted any more, and takes machines again.
    cx.kubectl
        .wait_condition("host/host-b", "Ready", REACTION)?;
    let later = Guest {
        host: "host-b",
        ..Guest::new("later")
    };
    let on_its_disk = later.machine_yaml().replace(
        "virtualHardDiskRef: {name: later}",
        "virtualHardDiskRef: {name: x}",
    );
    cx.kubectl.apply(&on_its_disk)?;
    let running = guest::wait_running(cx, "later")?;
    ensure!(running.boots() == 2, "{running:?}");
    Ok(())
}

fn delete_and_force(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.run(&["delete", "vm", "x", "--wait=false"])?;
    wait::until("what the deletion waits for", REACTION, || {
        let vm = cx.kubectl.get("vm/x")?;
        let text = vm["status"]["conditions"].to_string();
        ensure!(
            text.contains("host-b") && text.contains("outOfService"),
            "{text}"
        );
        Ok(())
    })?;
    ensure!(
        !cx.kubectl.text("vhd/x", "/status/attachment")?.is_empty(),
        "the disk was released without a proof"
    );
    cx.kubectl.patch(
        "host/host-b",
        &json!({"spec": {"outOfService": {"token": cx.namespace()}}}),
    )?;
    cx.kubectl.wait_gone("vm/x", REACTION)?;
    wait::until("the release of the disk", REACTION, || {
        ensure!(
            cx.kubectl.text("vhd/x", "/status/attachment")?.is_empty(),
            "still attached"
        );
        Ok(())
    })
}
