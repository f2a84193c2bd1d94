//! What only the operator or a host can see: a condition with a reason on the object a person looks at.

use crate::{
    cluster::Context,
    guest::{self, BOOT, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
    wait,
};
use anyhow::{Result, ensure};
use sha2::{Digest as _, Sha256};
use std::{fs::File, io, time::Duration};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "what_is_missing_or_wrong_is_said_and_mended_goes_on",
        manner: Manner::Beside,
        run: missing,
    },
    Scenario {
        name: "bad_disk_files_are_refused_and_left_alone",
        manner: Manner::Beside,
        run: bad_files,
    },
    Scenario {
        name: "a_disk_in_use_and_a_mac_address_in_use_are_said",
        manner: Manner::Beside,
        run: in_use,
    },
    Scenario {
        name: "a_full_pool_is_said",
        manner: Manner::Alone,
        run: full_pool,
    },
];

/// A failed task is tried again after at most a minute.
const RETRY: Duration = Duration::from_secs(90);

fn disk(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDisk\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

fn missing(cx: &Context<'_>) -> Result<()> {
    let k = &cx.kubectl;
    let guest = Guest::new("late");
    k.apply(&guest.machine_yaml())?;
    k.wait_reason(
        "vm/late",
        "Ready",
        "False",
        "VirtualHardDiskNotFound",
        &["late"],
        REACTION,
    )?;
    k.apply(&guest.disk_yaml())?;
    k.wait_reason(
        "vm/late",
        "Ready",
        "False",
        "VirtualNetworkNotFound",
        &["lab"],
        REACTION,
    )?;

    // None of these may delay the good one below.
    k.apply(
        &Guest {
            bus: "IDE",
            ..Guest::new("huge")
        }
        .machine_yaml(),
    )?;
    k.apply(&disk("huge", "{size: 200Gi, file: {pool: shared}}"))?;
    k.apply(&disk(
        "no-image",
        "{file: {pool: shared}, source: {image: {pool: images, path: nothing.img}}}",
    ))?;
    k.apply(&disk("no-pool", "{size: 16Mi, file: {pool: nowhere}}"))?;
    let wrong = "0".repeat(64);
    k.apply(&disk("wrong-sum", &format!("{{file: {{pool: shared}}, source: {{image: {{pool: images, path: tiny-linux.img, sha256: \"{wrong}\"}}}}}}")))?;
    let image = cx.lab.directory().join("pools/images/tiny-linux.img");
    let mut hash = Sha256::new();
    io::copy(&mut File::open(&image)?, &mut hash)?;
    let right: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    k.apply(&disk("right-sum", &format!("{{file: {{pool: shared}}, source: {{image: {{pool: images, path: tiny-linux.img, sha256: \"{right}\"}}}}}}")))?;
    k.apply(&disk(
        "small",
        "{size: 4Mi, file: {pool: shared}, source: {image: {pool: images, path: tiny-linux.img}}}",
    ))?;

    k.apply(&internal_network(77))?;
    k.wait_condition("vhd/right-sum", "Ready", REACTION)?;
    k.wait_condition("vm/late", "Ready", BOOT)?;
    k.wait_reason(
        "vm/huge",
        "Ready",
        "False",
        "DiskTooLargeForBus",
        &["127"],
        REACTION,
    )?;
    k.wait_reason(
        "vhd/no-image",
        "Ready",
        "False",
        "ImageNotFound",
        &["nothing.img"],
        REACTION,
    )?;
    k.wait_reason(
        "vhd/wrong-sum",
        "Ready",
        "False",
        "ChecksumMismatch",
        &[&right],
        REACTION,
    )?;
    k.wait_reason(
        "vhd/small",
        "Ready",
        "False",
        "SourceTooLarge",
        &[],
        REACTION,
    )?;
    let text = k.get("vhd/no-pool")?["status"]["conditions"].to_string();
    ensure!(
        text.contains("nowhere") && text.contains("\"False\""),
        "{text}"
    );

    // Mended, it goes on by itself.
    std::fs::write(
        cx.lab.directory().join("pools/images/nothing.img"),
        vec![7u8; 4 << 20],
    )?;
    k.wait_condition("vhd/no-image", "Ready", RETRY)?;
    std::fs::remove_file(cx.lab.directory().join("pools/images/nothing.img"))?;
    Ok(())
}

fn bad_files(cx: &Context<'_>) -> Result<()> {
    let k = &cx.kubectl;
    let folder = cx.lab.directory().join("pools/shared").join(cx.namespace());
    std::fs::create_dir_all(&folder)?;
    let path = |name: &str| format!("{}/{name}", cx.namespace());
    // A good disk to spoil.
    k.apply(&disk(
        "good",
        &format!(
            "{{size: 16Mi, file: {{pool: shared, path: {}}}}}",
            path("good.vhd")
        ),
    ))?;
    k.wait_condition("vhd/good", "Ready", REACTION)?;
    let good = std::fs::read(folder.join("good.vhd"))?;
    let mut corrupt = good.clone();
    let both_copies = [0, corrupt.len() - 512];
    for at in both_copies {
        corrupt[at + 40] ^= 0xff;
    }
    std::fs::write(folder.join("corrupt.vhd"), &corrupt)?;
    std::fs::write(folder.join("truncated.vhd"), &good[..1000])?;
    std::os::unix::fs::symlink("/etc", folder.join("out"))?;
    for (name, file, reason) in [
        ("corrupt", "corrupt.vhd", "CorruptDisk"),
        ("truncated", "truncated.vhd", "CorruptDisk"),
        ("absent", "absent.vhd", "FileNotFound"),
        ("outside", "out/passwd", "PathEscapesPool"),
    ] {
        k.apply(&disk(
            name,
            &format!(
                "{{file: {{pool: shared, path: {}, mode: Adopt}}}}",
                path(file)
            ),
        ))?;
        k.wait_reason(
            &format!("vhd/{name}"),
            "Ready",
            "False",
            reason,
            &[file.rsplit('/').next().unwrap_or(file)],
            REACTION,
        )?;
    }
    // A file that no object speaks of, and one that another object does.
    std::fs::write(folder.join("other.vhd"), b"precious")?;
    for (name, file, reason) in [
        ("again", "other.vhd", "FileExists"),
        ("mine", "corrupt.vhd", "FileInUse"),
    ] {
        k.apply(&disk(
            name,
            &format!(
                "{{size: 16Mi, file: {{pool: shared, path: {}}}}}",
                path(file)
            ),
        ))?;
        k.wait_reason(
            &format!("vhd/{name}"),
            "Ready",
            "False",
            reason,
            &[file],
            REACTION,
        )?;
    }
    ensure!(
        std::fs::read(folder.join("other.vhd"))? == b"precious",
        "a file that was there was changed"
    );
    ensure!(
        std::fs::read(folder.join("corrupt.vhd"))? == corrupt,
        "a refused file was changed"
    );
    ensure!(
        std::fs::read(folder.join("truncated.vhd"))? == good[..1000],
        "a refused file was changed"
    );

    std::fs::write(folder.join("corrupt.vhd"), &good)?;
    k.wait_condition("vhd/corrupt", "Ready", RETRY)
}

fn in_use(cx: &Context<'_>) -> Result<()> {
    let k = &cx.kubectl;
    let mac = "02:00:00:00:07:01";
    let with_mac = |name: &str| {
        Guest::new(name).machine_yaml().replace(
            "{name: lan, ",
            &format!("{{name: lan, macAddress: \"{mac}\", "),
        )
    };
    k.apply(&(Guest::new("first").disk_yaml() + &internal_network(78) + &with_mac("first")))?;
    let running = guest::wait_running(cx, "first")?;
    ensure!(running.says["mac"] == mac, "{}", running.says);

    k.apply(&(Guest::new("second").disk_yaml() + &with_mac("second")))?;
    k.wait_reason(
        "vm/second",
        "Ready",
        "False",
        "MacAddressInUse",
        &[mac, "first"],
        REACTION,
    )?;
    let thief = Guest::new("thief").machine_yaml().replace(
        "virtualHardDiskRef: {name: thief}",
        "virtualHardDiskRef: {name: first}",
    );
    k.apply(&thief)?;
    k.wait_reason(
        "vm/thief",
        "Ready",
        "False",
        "DiskInUse",
        &["first"],
        REACTION,
    )?;
    let owner = k.text("vhd/first", "/status/attachment/owner/name")?;
    ensure!(owner == "first", "the disk belongs to {owner}");

    // The first goes: both go on by themselves. The thief takes the disk over, which counts on.
    k.run(&["delete", "vm", "first", "--timeout=120s"])?;
    let thief = guest::wait_page(cx, "thief", |_| true)?;
    ensure!(thief.boots() == 2, "{thief:?}");
    k.wait_condition("vm/second", "Ready", BOOT)
}

fn full_pool(cx: &Context<'_>) -> Result<()> {
    let path = "/var/lib/paddock/pools/tiny";
    cx.lab.exec_ok(
        "host-a",
        &[
            "sh",
            "-c",
            &format!("mkdir -p {path} && mount -t tmpfs -o size=8m tmpfs {path}"),
        ],
    )?;
    let host = cx.kubectl.get("host/host-a")?;
    let pools = host["spec"]["pools"].clone();
    let mut more = pools.clone();
    if let Some(list) = more.as_array_mut() {
        list.push(serde_json::json!({"name": "tiny", "path": path}));
    }
    cx.kubectl
        .patch("host/host-a", &serde_json::json!({"spec": {"pools": more}}))?;
    let said = full(cx);
    cx.kubectl.patch(
        "host/host-a",
        &serde_json::json!({"spec": {"pools": pools}}),
    )?;
    said
}

fn full(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.apply(&disk(
        "large",
        "{type: Fixed, size: 64Mi, file: {pool: tiny}}",
    ))?;
    cx.kubectl.wait_reason(
        "vhd/large",
        "Ready",
        "False",
        "PoolFull",
        &["tiny"],
        REACTION,
    )?;
    cx.kubectl.apply(&disk(
        "little",
        "{type: Fixed, size: 4Mi, file: {pool: tiny}}",
    ))?;
    cx.kubectl.wait_condition("vhd/little", "Ready", REACTION)?;
    wait::until("the pool on the host", REACTION, || {
        let status = cx.kubectl.get("host/host-a")?;
        let free = status["status"]["pools"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["name"] == "tiny")
            .cloned();
        ensure!(
            free.as_ref()
                .is_some_and(|p| p["freeBytes"].as_i64().is_some_and(|f| f < 5 << 20)),
            "{free:?}"
        );
        Ok(())
    })?;
    cx.kubectl
        .run(&["delete", "vhd", "large", "little", "--timeout=60s"])
        .map(drop)
}
