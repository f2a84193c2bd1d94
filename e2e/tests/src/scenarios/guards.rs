//! What one user cannot do to another's disks, and what a full pool does not do to a guest.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
    wait,
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a_full_pool_pauses_a_guest_that_loses_nothing",
        manner: Manner::Alone,
        run: paused_by_a_full_pool,
    },
    Scenario {
        name: "a_task_reaches_no_disk_of_another_namespace",
        manner: Manner::Beside,
        run: annotation_attack,
    },
    Scenario {
        name: "a_file_that_a_disk_has_is_adopted_by_no_other",
        manner: Manner::Beside,
        run: adopt_a_live_file,
    },
    Scenario {
        name: "an_export_is_never_an_earlier_one",
        manner: Manner::Beside,
        run: export_again,
    },
];

fn disk(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDisk\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

fn task(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDiskTask\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

/// What a second namespace would do to a disk of the scenario's own; the namespace is removed afterwards.
fn beside(
    cx: &Context<'_>,
    attack: impl FnOnce(&crate::cluster::Kubectl) -> Result<()>,
) -> Result<()> {
    let other = format!("b-{}", cx.namespace().chars().take(58).collect::<String>());
    cx.kubectl.run(&["create", "namespace", &other])?;
    let kubeconfig = cx.lab.kubeconfig()?;
    let outcome = attack(&crate::cluster::Kubectl::new(&kubeconfig, &other));
    cx.kubectl
        .run(&["delete", "namespace", &other, "--timeout=120s"])?;
    outcome
}

fn annotation_attack(cx: &Context<'_>) -> Result<()> {
    let spec = "{size: 16Mi, file: {pool: shared}}";
    cx.kubectl.apply(&disk("d", spec))?;
    cx.kubectl.wait_condition("vhd/d", "Ready", REACTION)?;
    let victim = cx.kubectl.get("vhd/d")?;
    let uid = victim["metadata"]["uid"].as_str().unwrap_or_default();
    let target = format!("{}/d", cx.namespace());
    beside(cx, |thief| {
        // A legal task, for which there is no disk yet.
        thief.apply(&task(
            "resize",
            "{action: Resize, virtualHardDiskRef: {name: d}, size: 32Mi}",
        ))?;
        thief.wait_field(
            "vhdtask/resize",
            ".status.reason",
            "VirtualHardDiskNotFound",
            REACTION,
        )?;
        for patch in [
            json!({"metadata": {"annotations": {"paddock.dev/virtual-hard-disk": target}}}),
            json!({"metadata": {"annotations": {"paddock.dev/virtual-hard-disk-uid": uid}}}),
            json!({"metadata": {"ownerReferences": [{"apiVersion": "paddock.dev/v1alpha1", "kind": "VirtualHardDisk", "name": "d", "uid": uid, "controller": true}]}}),
        ] {
            let Err(error) = thief.patch("vhdtask/resize", &patch) else {
                bail!("allowed: {patch}")
            };
            let message = format!("{error:#}");
            ensure!(
                message.contains("to whom a task belongs cannot be changed"),
                "{message}"
            );
        }
        // It is still worked on, for the disk of its own namespace.
        thief.apply(&disk("d", spec))?;
        thief.wait_field("vhdtask/resize", ".status.state", "Succeeded", REACTION)?;
        ensure!(thief.text("vhd/d", "/status/size")? == "32Mi", "not grown");
        thief.run(&["delete", "vhdtask", "resize", "--timeout=60s"])?;
        Ok(())
    })?;
    let status = cx.kubectl.get("vhd/d")?["status"].clone();
    ensure!(
        status["size"] == "16Mi" && status["diskEpoch"] == victim["status"]["diskEpoch"],
        "the disk was worked on: {status}"
    );
    Ok(())
}

fn adopt_a_live_file(cx: &Context<'_>) -> Result<()> {
    cx.kubectl
        .apply(&disk("d", "{size: 16Mi, file: {pool: shared}}"))?;
    cx.kubectl.wait_condition("vhd/d", "Ready", REACTION)?;
    let first = cx.kubectl.text("vhd/d", "/status/file/path")?;
    // Converted, it has a name that no spec ever spoke of.
    cx.kubectl
        .patch("vhd/d", &json!({"spec": {"type": "Fixed"}}))?;
    cx.kubectl
        .wait_field("vhd/d", ".status.type", "Fixed", REACTION)?;
    cx.kubectl
        .wait_field("vhd/d", ".status.state", "Ready", REACTION)?;
    let path = cx.kubectl.text("vhd/d", "/status/file/path")?;
    ensure!(path != first, "the file is still {first}");
    let adopt = |name: &str, more: &str| {
        disk(
            name,
            &format!("{{file: {{pool: shared, path: \"{path}\", mode: Adopt}}{more}}}"),
        )
    };
    let owner = format!("{}/d", cx.namespace());
    let refused = |kubectl: &crate::cluster::Kubectl| {
        kubectl.apply(&adopt("thief", ", reclaimPolicy: Delete"))?;
        kubectl.wait_reason(
            "vhd/thief",
            "Ready",
            "False",
            "FileInUse",
            &[&owner],
            REACTION,
        )?;
        kubectl
            .run(&["delete", "vhd", "thief", "--timeout=60s"])
            .map(drop)
    };
    refused(&cx.kubectl)?;
    beside(cx, refused)?;
    let file = format!("/var/lib/paddock/pools/shared/{path}");
    cx.lab.exec_ok("host-a", &["test", "-f", &file])?;
    // Left behind, it may be adopted in its namespace alone, and keeps its type where none is asked for.
    cx.kubectl.run(&["delete", "vhd", "d", "--timeout=60s"])?;
    let as_image = format!(
        "{{file: {{pool: shared}}, source: {{image: {{pool: shared, path: \"{path}\"}}}}}}"
    );
    beside(cx, |thief| {
        let waited = [
            ("thief", adopt("thief", ""), "PathNotAllowed"),
            ("reader", disk("reader", &as_image), "NoHostAvailable"),
        ];
        for (name, object, reason) in waited {
            thief.apply(&object)?;
            thief.wait_reason(
                &format!("vhd/{name}"),
                "Ready",
                "False",
                reason,
                &["shared"],
                REACTION,
            )?;
            thief.run(&["delete", "vhd", name, "--timeout=60s"])?;
        }
        Ok(())
    })?;
    cx.kubectl.apply(&adopt("heir", ""))?;
    cx.kubectl.wait_condition("vhd/heir", "Ready", REACTION)?;
    let heir = cx.kubectl.get("vhd/heir")?["status"].clone();
    ensure!(
        heir["type"] == "Fixed" && heir["file"]["path"] == *path,
        "{heir}"
    );
    Ok(())
}

fn export_again(cx: &Context<'_>) -> Result<()> {
    cx.kubectl
        .apply(&disk("d", "{size: 16Mi, file: {pool: shared}}"))?;
    cx.kubectl.wait_condition("vhd/d", "Ready", REACTION)?;
    let out = format!("{}/out.vhd", cx.namespace());
    let export = |name: &str| {
        task(
            name,
            &format!(
                "{{action: Export, virtualHardDiskRef: {{name: d}}, target: {{pool: shared, path: \"{out}\"}}, format: DynamicVhd}}"
            ),
        )
    };
    let size = || {
        let file = format!("/var/lib/paddock/pools/shared/{out}");
        cx.lab.exec_ok("host-a", &["sha256sum", &file])
    };
    cx.kubectl.apply(&export("first"))?;
    cx.kubectl
        .wait_field("vhdtask/first", ".status.state", "Succeeded", REACTION)?;
    let before = size()?;
    cx.kubectl
        .patch("vhd/d", &json!({"spec": {"size": "32Mi"}}))?;
    cx.kubectl
        .wait_field("vhd/d", ".status.size", "32Mi", REACTION)?;
    cx.kubectl.apply(&export("second"))?;
    cx.kubectl
        .wait_field("vhdtask/second", ".status.reason", "FileExists", REACTION)?;
    ensure!(size()? == before, "the first export was changed");
    Ok(())
}

/// A pool of host-a that is small.
const SNUG: &str = "/var/lib/paddock/pools/snug";

fn on_host_a(cx: &Context<'_>, script: &str) -> Result<String> {
    cx.lab.exec_ok("host-a", &["sh", "-c", script])
}

fn paused_by_a_full_pool(cx: &Context<'_>) -> Result<()> {
    on_host_a(
        cx,
        &format!("mkdir -p {SNUG} && mount -t tmpfs -o size=80m tmpfs {SNUG}"),
    )?;
    let host = cx.kubectl.get("host/host-a")?;
    let pools = host["spec"]["pools"].clone();
    let mut more = pools.clone();
    if let Some(list) = more.as_array_mut() {
        list.push(json!({"name": "snug", "path": SNUG}));
    }
    cx.kubectl
        .patch("host/host-a", &json!({"spec": {"pools": more}}))?;
    let outcome = write_until_full(cx);
    // Whatever came of it: the guest and its disk go before their pool does.
    let removed = cx
        .kubectl
        .run(&["delete", "vm,vhd", "--all", "--timeout=120s"]);
    cx.kubectl
        .patch("host/host-a", &json!({"spec": {"pools": pools}}))?;
    outcome.and(removed.map(drop))
}

fn write_until_full(cx: &Context<'_>) -> Result<()> {
    /// More than any guest of this size can write without a new block.
    const MOST: usize = 4000;
    let guest = Guest {
        pool: "snug",
        host: "host-a",
        ..Guest::new("snug")
    };
    cx.kubectl.apply(&(guest.yaml() + &internal_network(83)))?;
    let before = guest::wait_running(cx, "snug")?;
    let filler =
        format!("dd if=/dev/zero of={SNUG}/filler bs=64k 2>/dev/null; df {SNUG} | tail -1");
    on_host_a(cx, &filler)?;

    // Each line is acknowledged once it is on the disk. The first that needs a new block stays unanswered.
    let padding = "x".repeat(2000);
    let line = |number: usize| format!("{number}-{padding}");
    let is_paused = || {
        let state = cx.kubectl.text("vm/snug", "/status/state");
        state.is_ok_and(|state| state == "Paused")
    };
    let mut acknowledged = Vec::new();
    let full = (0..MOST).any(|number| {
        let path = format!("sync-write?name=log&value={}", line(number));
        match guest::ask(cx, &before.host, &before.address, &path) {
            Ok(_) => acknowledged.push(number),
            Err(_) => return is_paused(),
        }
        false
    });
    ensure!(full, "{} lines had room in a full pool", acknowledged.len());
    cx.kubectl
        .wait_reason("vm/snug", "Ready", "False", "PoolFull", &["snug"], REACTION)?;
    cx.kubectl
        .wait_field("vm/snug", ".status.state", "Paused", REACTION)?;

    // Room again: it goes on by itself, the same guest, and has all that it had acknowledged.
    on_host_a(cx, &format!("rm {SNUG}/filler"))?;
    cx.kubectl.wait_condition("vm/snug", "Ready", REACTION)?;
    let after = guest::wait_page(cx, "snug", |_| true)?;
    ensure!(
        after.boots() == before.boots() && after.process_id == before.process_id,
        "it was started anew: {before:?}, then {after:?}"
    );
    wait::until("a further line", REACTION, || {
        guest::ask(
            cx,
            &after.host,
            &after.address,
            "sync-write?name=log&value=last",
        )
        .map(drop)
    })?;
    let url = format!("http://{}/cgi-bin/read?name=log", after.address);
    let read = ["curl", "--silent", "--fail", "--max-time", "30", &url];
    let text = cx.lab.exec_ok("host-a", &read).context("the record")?;
    let mut lines = text.lines();
    for number in acknowledged {
        let wanted = line(number);
        ensure!(lines.any(|l| l == wanted), "line {number} is lost");
    }
    Ok(())
}
