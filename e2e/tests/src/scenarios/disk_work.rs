//! Disks that are converted, grown and compacted: only while nobody uses them, and without losing anything.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
};
use anyhow::{Result, ensure};
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a_changed_type_and_size_wait_for_the_machine_and_keep_the_content",
        manner: Manner::Beside,
        run: convert_and_grow,
    },
    Scenario {
        name: "a_task_waits_for_the_machine_and_a_wrong_one_is_refused",
        manner: Manner::Beside,
        run: tasks,
    },
];

fn stop(cx: &Context<'_>, name: &str) -> Result<()> {
    let vm = format!("vm/{name}");
    cx.kubectl
        .patch(&vm, &json!({"spec": {"runPolicy": "Stopped"}}))?;
    cx.kubectl
        .wait_field(&vm, ".status.state", "Stopped", guest::BOOT)
}

fn start(cx: &Context<'_>, name: &str) -> Result<guest::Running> {
    let vm = format!("vm/{name}");
    cx.kubectl
        .patch(&vm, &json!({"spec": {"runPolicy": "Running"}}))?;
    guest::wait_running(cx, name)
}

fn convert_and_grow(cx: &Context<'_>) -> Result<()> {
    let guest = Guest::new("d");
    cx.kubectl.apply(&(guest.yaml() + &internal_network(80)))?;
    let first = guest::wait_running(cx, "d")?;
    ensure!(first.boots() == 1, "{first:?}");
    let old = cx.kubectl.text("vhd/d", "/status/file/path")?;
    cx.kubectl
        .patch("vhd/d", &json!({"spec": {"type": "Fixed", "size": "96Mi"}}))?;
    cx.kubectl.wait_reason(
        "vhd/d",
        "Progressing",
        "False",
        "DiskInUse",
        &["VirtualMachine \"d\""],
        REACTION,
    )?;
    stop(cx, "d")?;
    cx.kubectl
        .wait_field("vhd/d", ".status.size", "96Mi", REACTION)?;
    cx.kubectl
        .wait_field("vhd/d", ".status.type", "Fixed", REACTION)?;
    cx.kubectl
        .wait_field("vhd/d", ".status.state", "Ready", REACTION)?;
    let new = cx.kubectl.text("vhd/d", "/status/file/path")?;
    ensure!(new != old, "the file is still {old}");
    let second = start(cx, "d")?;
    ensure!(second.boots() == 2, "{second:?}");
    ensure!(second.says["disks"]["vda"] == 96 << 20, "{}", second.says);
    crate::wait::until("the old file's removal", REACTION, || {
        let status = cx.kubectl.get("vhd/d")?["status"].clone();
        ensure!(status["obsoleteFiles"].is_null(), "{status}");
        Ok(())
    })?;
    let left = cx.lab.exec_ok(
        "host-a",
        &[
            "ls",
            &format!("/var/lib/paddock/pools/shared/{}", cx.namespace()),
        ],
    )?;
    let old = old.rsplit('/').next().unwrap_or_default().to_owned();
    ensure!(!left.lines().any(|l| l == old), "{old} is left: {left}");
    cx.kubectl.refused(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDisk\nmetadata: {name: d}\nspec: {type: Fixed, size: 64Mi, file: {pool: shared}, source: {image: {pool: images, path: tiny-linux.img}}}\n",
        &["size can be raised, but not lowered"],
    )
}

fn task(name: &str, action: &str, disk: &str) -> String {
    format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDiskTask\nmetadata: {{name: {name}}}\nspec: {{action: {action}, virtualHardDiskRef: {{name: {disk}}}}}\n---\n"
    )
}

fn tasks(cx: &Context<'_>) -> Result<()> {
    let guest = Guest::new("d");
    cx.kubectl.apply(&(guest.yaml() + &internal_network(81)))?;
    guest::wait_running(cx, "d")?;
    let compact =
        task("compact", "Compact", "d").replace("{action", "{defragment: Disabled, action");
    cx.kubectl
        .apply(&(compact + &task("merge", "Merge", "d") + &task("none", "Check", "x")))?;
    cx.kubectl
        .wait_field("vhdtask/compact", ".status.reason", "DiskInUse", REACTION)?;
    cx.kubectl
        .wait_field("vhdtask/merge", ".status.state", "Failed", REACTION)?;
    ensure!(
        cx.kubectl.text("vhdtask/merge", "/status/reason")? == "NotDifferencing",
        "{}",
        cx.kubectl.get("vhdtask/merge")?["status"]
    );
    cx.kubectl.refused(
        &task("forged", "Delete", "d"),
        &["is done by the operator alone"],
    )?;
    stop(cx, "d")?;
    cx.kubectl
        .wait_field("vhdtask/compact", ".status.state", "Succeeded", REACTION)?;
    ensure!(
        cx.kubectl
            .text("vhdtask/compact", "/status/order/defragment")?
            == "Disabled",
        "{}",
        cx.kubectl.get("vhdtask/compact")?["status"]
    );
    let again = start(cx, "d")?;
    ensure!(again.boots() == 2, "{again:?}");
    // A task that is over stays until it is deleted, and goes at once then.
    cx.kubectl
        .run(&["delete", "vhdtask", "--all", "--timeout=30s"])?;
    Ok(())
}
