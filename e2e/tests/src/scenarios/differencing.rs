//! Differencing disks: many on one base, a base that is protected by them, and a merge.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
    wait,
};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "fifty_disks_on_one_base_are_made_checked_and_booted",
        manner: Manner::Beside,
        run: fifty,
    },
    Scenario {
        name: "a_merged_child_lives_on_in_its_parent",
        manner: Manner::Beside,
        run: merge,
    },
];

/// Fifty small disks, and as many checks.
const FIFTY: Duration = Duration::from_secs(180);

fn check_all(cx: &Context<'_>, numbers: std::ops::RangeInclusive<u32>) -> Result<()> {
    let count = numbers.clone().count();
    let tasks: String = numbers
        .map(|n| {
            format!(
                "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDiskTask\nmetadata: {{name: check-{n:02}, labels: {{app: desk}}}}\nspec: {{action: Check, virtualHardDiskRef: {{name: desk-{n:02}}}}}\n---\n"
            )
        })
        .collect();
    cx.kubectl.apply(&tasks)?;
    wait::until("the checks", FIFTY, || {
        let all = cx.kubectl.get("vhdtask")?;
        let done = all["items"].as_array().into_iter().flatten();
        let done = done
            .filter(|t| t["spec"]["action"] == "Check" && t["status"]["state"] == "Succeeded")
            .count();
        ensure!(done == count, "{done} of {count} succeeded");
        Ok(())
    })?;
    cx.kubectl
        .run(&["delete", "vhdtask", "-l", "app=desk", "--timeout=60s"])?;
    Ok(())
}

fn fifty(cx: &Context<'_>) -> Result<()> {
    let folder = cx.checkout()?.join("manifests/differencing");
    let path = folder.to_string_lossy().into_owned();
    cx.kubectl.run(&["apply", "-k", &path])?;
    let timeout = format!("--timeout={}s", FIFTY.as_secs());
    cx.kubectl
        .run(&["wait", "--for=condition=Ready", "vm", "--all", &timeout])?;
    let mut addresses = Vec::new();
    for name in ["desk-01", "desk-02", "desk-03"] {
        let running = guest::wait_running(cx, name)?;
        ensure!(running.boots() == 1, "{name}: {running:?}");
        addresses.push(running.address);
    }
    addresses.dedup();
    ensure!(addresses.len() == 3, "{addresses:?}");

    wait::until("fifty children", FIFTY, || {
        let base = cx.kubectl.get("vhd/base")?;
        ensure!(
            base["status"]["children"]["count"] == 50,
            "{}",
            base["status"]
        );
        let disks = cx.kubectl.get("vhd")?;
        let made = disks["items"].as_array().into_iter().flatten();
        let made = made
            .filter(|d| {
                d["status"]["type"] == "Differencing" && d["status"]["lineage"] == json!(["base"])
            })
            .count();
        ensure!(made == 50, "{made} are made");
        Ok(())
    })?;
    let wide = cx.kubectl.run(&["get", "vhd", "desk-50", "-o", "wide"])?;
    ensure!(wide.contains("LINEAGE") && wide.contains("base"), "{wide}");
    check_all(cx, 4..=50)?;

    // The base is neither deleted nor used while it has them.
    cx.kubectl.run(&["delete", "vhd", "base", "--wait=false"])?;
    cx.kubectl.wait_reason(
        "vhd/base",
        "Deleting",
        "True",
        "HasChildren",
        &["50 differencing disks", "\"desk-01\"", "and 45 more"],
        REACTION,
    )?;
    cx.kubectl
        .run(&["delete", "vm", "--all", "--timeout=120s"])?;
    check_all(cx, 1..=3)?;
    cx.kubectl.run(&[
        "delete",
        "-k",
        &path,
        "--ignore-not-found",
        "--timeout=180s",
    ])?;
    let left = cx
        .kubectl
        .run(&["get", "vm,vhd,vmi,vhdtask", "-o", "name"])?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

fn merge(cx: &Context<'_>) -> Result<()> {
    let base = Guest::new("base");
    let child = Guest::new("child");
    cx.kubectl
        .apply(&(base.disk_yaml() + &internal_network(79)))?;
    cx.kubectl.apply("apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDisk\nmetadata: {name: child}\nspec: {type: Differencing, parentRef: {name: base}, file: {pool: shared}}\n")?;
    cx.kubectl.apply(&child.machine_yaml())?;
    let first = guest::wait_running(cx, "child")?;
    ensure!(first.boots() == 1, "{first:?}");

    // The base is the child's: no machine may write it.
    cx.kubectl.apply(&base.machine_yaml())?;
    cx.kubectl.wait_reason(
        "vm/base",
        "Ready",
        "False",
        "DiskHasChildren",
        &["\"child\""],
        REACTION,
    )?;
    cx.kubectl.apply("apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDiskTask\nmetadata: {name: merge}\nspec: {action: Merge, virtualHardDiskRef: {name: child}}\n")?;
    cx.kubectl
        .wait_field("vhdtask/merge", ".status.reason", "DiskInUse", REACTION)?;
    cx.kubectl
        .run(&["delete", "vm", "child", "--timeout=120s"])?;
    cx.kubectl
        .wait_field("vhd/child", ".status.state", "Merged", REACTION)?;
    // What the guest had counted in the child is in the base now.
    let second = guest::wait_running(cx, "base")?;
    ensure!(second.boots() == 2, "{second:?}");
    let task: Value = cx.kubectl.get("vhdtask/merge")?;
    ensure!(task["status"]["state"] == "Succeeded", "{task}");
    cx.kubectl
        .run(&["delete", "vhd", "child", "--timeout=60s"])?;
    Ok(())
}
