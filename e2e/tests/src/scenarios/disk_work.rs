//! Disks that are converted, grown and compacted: only while nobody uses them, and without losing anything.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
};
use anyhow::{Result, ensure};
use paddock_lab::Fault;
use serde_json::json;
use std::{process::Command, time::Duration};

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
    Scenario {
        name: "a_conversion_comes_to_its_end_though_agent_and_operator_are_killed",
        manner: Manner::Alone,
        run: killed_conversion,
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

/// The size of the disk that is converted: so much that is not zero takes longer than to look for its task.
const CONVERTED: &str = "768M";
/// Long enough to write that a few times.
const COPIES: Duration = Duration::from_secs(120);

fn killed_conversion(cx: &Context<'_>) -> Result<()> {
    let shared = "/var/lib/paddock/pools/shared";
    let image = format!("{}.raw", cx.namespace());
    let folder = cx.lab.directory().join("pools");
    let made = Command::new("sh")
        .args(["-c", "head -c \"$0\" /dev/urandom >\"$1\"", CONVERTED])
        .arg(folder.join("images").join(&image))
        .status()?;
    ensure!(made.success(), "no image was made");
    let result = convert_twice(cx, &image);
    std::fs::remove_file(folder.join("images").join(&image))?;
    let made_files = cx
        .lab
        .exec_ok("host-a", &["ls", &format!("{shared}/{}", cx.namespace())])?;
    result?;
    // One file is left of three that were begun, and the exported one.
    let mut kept: Vec<_> = made_files
        .lines()
        .filter(|l| !l.ends_with(".lock"))
        .collect();
    kept.sort_unstable();
    let path = cx.kubectl.text("vhd/d", "/status/file/path")?;
    let path = path.rsplit('/').next().unwrap_or_default();
    let mut expected = vec![path, "out.raw"];
    expected.sort_unstable();
    ensure!(kept == expected, "{kept:?} instead of {expected:?}");
    cx.kubectl.run(&["delete", "vhd", "d", "--timeout=60s"])?;
    Ok(())
}

fn convert_twice(cx: &Context<'_>, image: &str) -> Result<()> {
    cx.kubectl.apply(&format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDisk\nmetadata: {{name: d}}\nspec: {{reclaimPolicy: Delete, file: {{pool: shared}}, source: {{image: {{pool: images, path: {image}}}}}}}\n"
    ))?;
    cx.kubectl.wait_condition("vhd/d", "Ready", COPIES)?;
    for disk_type in ["Fixed", "Dynamic"] {
        cx.kubectl
            .patch("vhd/d", &json!({"spec": {"type": disk_type}}))?;
        let host = converting_host(cx)?;
        if disk_type == "Fixed" {
            cx.lab.fault(Fault::KillAgent { host })?;
        } else {
            cx.lab.fault(Fault::KillOperator)?;
        }
        cx.kubectl
            .wait_field("vhd/d", ".status.type", disk_type, COPIES)?;
        cx.kubectl
            .wait_field("vhd/d", ".status.state", "Ready", REACTION)?;
        crate::wait::until("the old file's removal", REACTION, || {
            let status = cx.kubectl.get("vhd/d")?["status"].clone();
            ensure!(status["obsoleteFiles"].is_null(), "{status}");
            Ok(())
        })?;
    }
    let target = format!("{}/out.raw", cx.namespace());
    cx.kubectl.apply(&format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDiskTask\nmetadata: {{name: out}}\nspec: {{action: Export, virtualHardDiskRef: {{name: d}}, target: {{pool: shared, path: {target}}}}}\n"
    ))?;
    cx.kubectl
        .wait_field("vhdtask/out", ".status.state", "Succeeded", COPIES)?;
    let folder = cx.lab.directory().join("pools");
    let same = Command::new("cmp")
        .arg(folder.join("images").join(image))
        .arg(folder.join("shared").join(target))
        .status()?;
    ensure!(same.success(), "what it holds has changed");
    Ok(())
}

/// The host that is at work on the conversion, which is not over.
fn converting_host(cx: &Context<'_>) -> Result<String> {
    let task = || -> Result<serde_json::Value> {
        let tasks = cx.kubectl.get("vhdtask")?;
        let mut all = tasks["items"].as_array().into_iter().flatten();
        let found = all.find(|t| t["spec"]["action"] == "Convert");
        Ok(found.cloned().unwrap_or_default())
    };
    let host = crate::wait::until("a host that converts", REACTION, || {
        let host = task()?["status"]["host"].as_str().map(str::to_owned);
        host.ok_or_else(|| anyhow::anyhow!("no host has it"))
    })?;
    let folder = cx.lab.directory().join("pools/shared").join(cx.namespace());
    crate::wait::until("the new file's beginning", REACTION, || {
        let files = std::fs::read_dir(&folder)?.filter_map(Result::ok);
        let names: Vec<_> = files.map(|f| f.file_name().into_string()).collect();
        let begun = names.iter().flatten().filter(|n| !n.ends_with(".lock"));
        ensure!(begun.count() > 1, "{names:?}");
        Ok(())
    })?;
    let state = task()?["status"]["state"].clone();
    ensure!(
        state == "Pending" || state == "Running",
        "the conversion was over before anything was killed: {state}"
    );
    Ok(host)
}
