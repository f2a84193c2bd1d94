//! Undo disks: kept, committed or discarded at a stop, and always kept when the guest shuts down from inside.

use crate::{
    cluster::Context,
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
};
use anyhow::{Result, ensure};
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "undo_disks_are_discarded_kept_and_committed",
    manner: Manner::Beside,
    run: undo_disks,
}];

fn undo_disks(cx: &Context<'_>) -> Result<()> {
    let guest = Guest {
        extra: "  undoDisks: {mode: Enabled, onStop: Discard}\n".to_owned(),
        ..Guest::new("u")
    };
    cx.kubectl.apply(&(guest.yaml() + &internal_network(82)))?;
    let policy = |policy: &str| {
        cx.kubectl
            .patch("vm/u", &json!({"spec": {"runPolicy": policy}}))
    };
    let on_stop = |what: &str| {
        cx.kubectl
            .patch("vm/u", &json!({"spec": {"undoDisks": {"onStop": what}}}))
    };
    // How often the disk has counted when each guest runs: what is discarded is not counted.
    for (what, boots) in [("Discard", 1), ("Keep", 1), ("Commit", 2), ("Keep", 3)] {
        on_stop(what)?;
        policy("Running")?;
        let running = guest::wait_running(cx, "u")?;
        ensure!(running.boots() == boots, "before {what}: {running:?}");
        policy("Stopped")?;
        cx.kubectl
            .wait_field("vm/u", ".status.state", "Stopped", guest::BOOT)?;
        let kept = what == "Keep";
        crate::wait::until(&format!("undo disks after {what}"), REACTION, || {
            let undo = cx.kubectl.get("vhd/u")?["status"]["undo"].clone();
            ensure!(
                kept && undo["state"] == "Kept" || !kept && undo.is_null(),
                "{undo}"
            );
            Ok(())
        })?;
    }
    // Disabled while it is off: what was kept goes at once.
    cx.kubectl.patch(
        "vm/u",
        &json!({"spec": {"undoDisks": {"mode": "Disabled"}}}),
    )?;
    crate::wait::until("the undo disk's end", REACTION, || {
        let undo = cx.kubectl.get("vhd/u")?["status"]["undo"].clone();
        ensure!(undo.is_null(), "{undo}");
        Ok(())
    })?;
    policy("Running")?;
    let running = guest::wait_running(cx, "u")?;
    ensure!(running.boots() == 3, "{running:?}");
    let left = cx.lab.exec_ok(
        "host-a",
        &[
            "ls",
            &format!("/var/lib/paddock/pools/shared/{}", cx.namespace()),
        ],
    )?;
    ensure!(!left.contains(".vud"), "{left}");
    Ok(())
}
