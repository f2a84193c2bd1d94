//! The quickstart, and booting through the BIOS.

use crate::{
    cluster::Context,
    guest::{self, Guest, Running, internal_network},
    runner::{Manner, Scenario},
};
use anyhow::{Result, ensure};
use std::fs;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "quickstart_in_any_order_of_documents",
        manner: Manner::Beside,
        run: quickstart,
    },
    Scenario {
        name: "boots_from_an_ide_disk_through_the_bios",
        manner: Manner::Beside,
        run: ide_through_bios,
    },
];

/// Machines before disks before the network: the worst order.
fn quickstart(cx: &Context<'_>) -> Result<()> {
    let folder = cx.checkout()?.join("manifests/quickstart");
    let mut documents = Vec::new();
    for file in ["network.yaml", "web-1.yaml", "web-2.yaml"] {
        let text = fs::read_to_string(folder.join(file))?;
        documents.extend(text.split("\n---\n").map(str::to_owned));
    }
    ensure!(
        documents.len() == 5,
        "expected a network, two disks and two machines, found {}",
        documents.len()
    );
    documents.sort_by_key(|text| {
        [
            "kind: VirtualMachine\n",
            "kind: VirtualHardDisk\n",
            "kind: VirtualNetwork\n",
        ]
        .iter()
        .position(|kind| text.contains(kind))
    });
    for document in &documents {
        cx.kubectl.apply(document)?;
    }
    let timeout = format!("--timeout={}s", guest::BOOT.as_secs());
    cx.kubectl
        .run(&["wait", "--for=condition=Ready", "vm", "--all", &timeout])?;
    let first = guest::wait_running(cx, "web-1")?;
    let second = guest::wait_running(cx, "web-2")?;
    ensure!(
        first.address != second.address,
        "both have {}",
        first.address
    );
    for (name, running) in [("web-1", &first), ("web-2", &second)] {
        ensure!(
            running.says["hostname"] == name,
            "{name} is called {}",
            running.says["hostname"]
        );
        ensure!(
            running.says["addresses"] == serde_json::json!([running.address]),
            "{name}: {}",
            running.says
        );
        ensure!(running.boots() == 1, "{name}: {}", running.says);
        ensure!(
            running.says["disks"]["vda"] == 1 << 30,
            "{name}: {}",
            running.says
        );
    }

    let path = folder.to_string_lossy().into_owned();
    let diff = cx.kubectl.output(&["diff", "-k", &path], "")?;
    ensure!(
        diff.status.success() && diff.stdout.is_empty(),
        "kubectl diff: {}{}",
        String::from_utf8_lossy(&diff.stdout),
        String::from_utf8_lossy(&diff.stderr)
    );

    tells_a_person(cx, &first)?;

    // In one go and in whatever order kubectl takes: it must end.
    cx.kubectl.run(&["delete", "-k", &path, "--timeout=90s"])?;
    let left = cx
        .kubectl
        .run(&["get", "vm,vhd,vnet,vmi,vhdtask", "-o", "name"])?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

/// What a person reads who never looks at a log.
fn tells_a_person(cx: &Context<'_>, web_1: &Running) -> Result<()> {
    let says = |arguments: &[&str], parts: &[&str]| -> Result<()> {
        let text = cx.kubectl.run(arguments)?;
        for part in parts {
            ensure!(
                text.contains(part),
                "kubectl {}: expected {part:?} in {text}",
                arguments.join(" ")
            );
        }
        Ok(())
    };
    let runs = format!("runs on host {}", web_1.host);
    says(
        &["describe", "vm", "web-1"],
        &[&runs, &web_1.address, "Placed"],
    )?;
    let described = cx.kubectl.run(&["describe", "vm", "web-1"])?;
    let events = described.split_once("Events:").map(|(_, events)| events);
    ensure!(
        events.is_some_and(|events| events.contains("Normal")),
        "expected an event in {described}"
    );
    let tables = cx.kubectl.run(&["get", "vm,vhd,vnet,host", "-o", "wide"])?;
    let heads: Vec<Vec<&str>> = tables
        .lines()
        .filter(|line| line.starts_with("NAME "))
        .map(|line| line.split_whitespace().collect())
        .collect();
    ensure!(heads.len() == 4, "expected four tables, found {tables}");
    for (head, columns) in heads.iter().zip([
        ["STATE", "READY", "HOST"],
        ["STATE", "READY", "SIZE"],
        ["TYPE", "READY", "SUBNET"],
        ["STATE", "READY", "CORES"],
    ]) {
        for column in columns {
            ensure!(head.contains(&column), "expected {column} in {head:?}");
        }
    }
    says(
        &["explain", "vm.spec", "--recursive"],
        &["runPolicy", "networkAdapters", "virtualHardDiskRef"],
    )
}

fn ide_through_bios(cx: &Context<'_>) -> Result<()> {
    let guest = Guest {
        bus: "IDE",
        direct: false,
        pool: "default",
        ..Guest::new("old")
    };
    cx.kubectl.apply(&(guest.yaml() + &internal_network(61)))?;
    let running = guest::wait_running(cx, "old")?;
    ensure!(running.says["disks"]["sda"] == 64 << 20, "{}", running.says);
    ensure!(
        running.says["dataDevice"] == "/dev/sda2",
        "{}",
        running.says
    );
    Ok(())
}
