//! Disks outlive machines, and deletions say what they wait for.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a_new_machine_on_the_same_disk_counts_on",
        manner: Manner::Beside,
        run: same_disk,
    },
    Scenario {
        name: "reclaim_policy_keeps_or_removes_the_file",
        manner: Manner::Beside,
        run: reclaim,
    },
    Scenario {
        name: "applies_and_deletes_end_in_every_order",
        manner: Manner::Beside,
        run: delete_orders,
    },
    Scenario {
        name: "a_disk_in_a_local_pool_pins_placement",
        manner: Manner::Beside,
        run: pins,
    },
];

fn same_disk(cx: &Context<'_>) -> Result<()> {
    let guest = Guest {
        pool: "default",
        ..Guest::new("d")
    };
    cx.kubectl.apply(&(guest.yaml() + &internal_network(66)))?;
    let first = guest::wait_running(cx, "d")?;
    ensure!(first.boots() == 1, "{first:?}");

    cx.kubectl.run(&["delete", "vhd", "d", "--wait=false"])?;
    cx.kubectl
        .wait_reason("vhd/d", "Deleting", "True", "Attached", &["d"], REACTION)?;
    let still = guest::look(cx, "d")?;
    ensure!(
        still.process_id == first.process_id,
        "deleting an attached disk disturbed its machine"
    );
    cx.kubectl.run(&["delete", "vm", "d", "--timeout=90s"])?;
    cx.kubectl.wait_gone("vhd/d", REACTION)?;

    // The file was retained: adopt it, and its count goes on.
    let path = cx.lab.exec_ok(
        &first.host,
        &[
            "sh",
            "-c",
            &format!(
                "cd /var/lib/paddock/pools/default && find . -path '*{}*' -name '*.vhd'",
                cx.namespace()
            ),
        ],
    )?;
    let path = path.trim().trim_start_matches("./").to_owned();
    ensure!(
        !path.is_empty() && !path.contains('\n'),
        "expected one file, found {path:?}"
    );
    let host = &first.host;
    cx.kubectl.apply(&format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDisk\nmetadata: {{name: d}}\nspec: {{file: {{pool: default, path: \"{path}\", mode: Adopt}}}}\n"
    ))?;
    let again = Guest {
        host: if host == "host-a" { "host-a" } else { "host-b" },
        ..guest
    };
    cx.kubectl.apply(&again.machine_yaml())?;
    let second = guest::wait_running(cx, "d")?;
    ensure!(second.boots() == 2, "the count started anew: {second:?}");

    cx.kubectl.run(&["delete", "vm", "d", "--timeout=90s"])?;
    cx.kubectl
        .wait_field("vhd/d", ".status.state", "Ready", REACTION)?;
    cx.kubectl.apply(&again.machine_yaml())?;
    let third = guest::wait_running(cx, "d")?;
    ensure!(third.boots() == 3, "the count started anew: {third:?}");
    Ok(())
}

fn reclaim(cx: &Context<'_>) -> Result<()> {
    for (name, policy) in [("kept", "Retain"), ("removed", "Delete")] {
        cx.kubectl.apply(&format!(
            "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDisk\nmetadata: {{name: {name}}}\nspec: {{size: 16Mi, reclaimPolicy: {policy}, file: {{pool: shared, path: {}/{name}.vhd}}}}\n",
            cx.namespace()
        ))?;
    }
    let list = || {
        cx.lab.exec_ok(
            "host-a",
            &[
                "ls",
                &format!("/var/lib/paddock/pools/shared/{}", cx.namespace()),
            ],
        )
    };
    for name in ["kept", "removed"] {
        cx.kubectl
            .wait_condition(&format!("vhd/{name}"), "Ready", REACTION)?;
        ensure!(
            list()?.lines().any(|l| l == format!("{name}.vhd")),
            "{name}: {}",
            list()?
        );
        cx.kubectl.run(&["delete", "vhd", name, "--timeout=60s"])?;
    }
    let left = list()?;
    ensure!(
        left.lines().any(|l| l == "kept.vhd") && !left.lines().any(|l| l == "removed.vhd"),
        "{left}"
    );
    Ok(())
}

/// A running machine, its disk and its network, applied and deleted in each of the six orders without waiting in between.
fn delete_orders(cx: &Context<'_>) -> Result<()> {
    let orders = [
        ["vm/o", "vhd/o", "vnet/lab"],
        ["vm/o", "vnet/lab", "vhd/o"],
        ["vhd/o", "vm/o", "vnet/lab"],
        ["vhd/o", "vnet/lab", "vm/o"],
        ["vnet/lab", "vm/o", "vhd/o"],
        ["vnet/lab", "vhd/o", "vm/o"],
    ];
    // Nothing to boot from: it is the processors that count, and those run.
    let guest = Guest::unbooted("o");
    let document = |object: &str| match object {
        "vm/o" => guest.machine_yaml(),
        "vhd/o" => guest.empty_disk_yaml(),
        _ => internal_network(68),
    };
    for order in orders {
        for object in order {
            cx.kubectl.apply(&document(object))?;
        }
        cx.kubectl
            .wait_condition("vm/o", "Ready", REACTION)
            .with_context(|| format!("applied in the order {order:?}"))?;
        for object in order {
            cx.kubectl.run(&["delete", object, "--wait=false"])?;
        }
        for object in order {
            cx.kubectl
                .wait_gone(object, REACTION)
                .with_context(|| format!("deleted in the order {order:?}"))?;
        }
        let left = cx.kubectl.run(&["get", "vmi,vhdtask", "-o", "name"])?;
        ensure!(left.is_empty(), "left behind after {order:?}: {left}");
    }
    Ok(())
}

fn pins(cx: &Context<'_>) -> Result<()> {
    let guest = Guest {
        pool: "default",
        host: "host-b",
        ..Guest::new("pin")
    };
    cx.kubectl.apply(&guest.disk_yaml())?;
    cx.kubectl.wait_reason(
        "vhd/pin",
        "Ready",
        "False",
        "WaitingForFirstConsumer",
        &[],
        REACTION,
    )?;
    cx.kubectl
        .apply(&(guest.machine_yaml() + &internal_network(67)))?;
    cx.kubectl.wait_condition("vm/pin", "Ready", guest::BOOT)?;
    ensure!(
        cx.kubectl.text("vhd/pin", "/status/host")? == "host-b",
        "{}",
        cx.kubectl.get("vhd/pin")?["status"]
    );
    // A second one, given to it while it runs, is made where it runs, and the restart that is asked for with it has it.
    let second = Guest {
        name: "pin-2".to_owned(),
        ..guest.clone()
    };
    cx.kubectl.apply(&second.empty_disk_yaml())?;
    let value = json!({"name": "second", "bus": "Virtio", "virtualHardDiskRef": {"name": "pin-2"}});
    let patch = json!([
        {"op": "add", "path": "/spec/disks/-", "value": value},
        {"op": "add", "path": "/spec/restartToken", "value": "with the second"},
    ])
    .to_string();
    cx.kubectl
        .run(&["patch", "vm/pin", "--type=json", "-p", &patch])?;
    cx.kubectl.wait_condition("vhd/pin-2", "Ready", REACTION)?;
    ensure!(
        cx.kubectl.text("vhd/pin-2", "/status/host")? == "host-b",
        "{}",
        cx.kubectl.get("vhd/pin-2")?["status"]
    );
    cx.kubectl.wait_field(
        "vhd/pin-2",
        ".status.attachment.owner.name",
        "pin",
        REACTION,
    )?;
    guest::wait_page(cx, "pin", |r| r.boots() == 2)?;
    let vmi = cx.kubectl.get("vmi/pin")?;
    ensure!(
        vmi["status"]["startedConfigRevision"] == vmi["spec"]["configRevision"]
            && vmi["spec"]["config"]["disks"][1]["virtualHardDisk"] == "pin-2",
        "restarted without its disk: {vmi}"
    );
    cx.kubectl.run(&["delete", "vm", "pin", "--timeout=120s"])?;
    cx.kubectl.apply(
        &Guest {
            host: "host-a",
            ..guest
        }
        .machine_yaml(),
    )?;
    cx.kubectl.wait_reason(
        "vm/pin",
        "Scheduled",
        "False",
        "Unschedulable",
        &[
            "host-a: disk \"pin\" is bound to host-b",
            "host-b: labels do not match hostSelector",
        ],
        REACTION + Duration::from_secs(10),
    )
}
