//! What only the operator or a host can see: a condition with a reason on the object a person looks at.

use crate::{
    cluster::{Background, Context, program},
    guest::{self, BOOT, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
    wait,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
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
        name: "a_disk_file_that_another_program_uses_is_said",
        manner: Manner::Beside,
        run: locked_file,
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
    let images = cx.lab.directory().join("pools/images");
    let (wanted, found) = (vec![7u8; 4 << 20], vec![8u8; 4 << 20]);
    let replaced = images.join("replaced.img");
    std::fs::write(&replaced, &found)?;
    let of_image = |path: &str, sum: &str| {
        format!(
            "{{file: {{pool: shared}}, source: {{image: {{pool: images, path: {path}, sha256: \"{sum}\"}}}}}}"
        )
    };
    let sum = of_image("replaced.img", &hex_sha256(&wanted[..])?);
    k.apply(&disk("wrong-sum", &sum))?;
    let right = hex_sha256(File::open(images.join("tiny-linux.img"))?)?;
    k.apply(&disk("right-sum", &of_image("tiny-linux.img", &right)))?;
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
        &[&hex_sha256(&found[..])?],
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
    k.wait_reason(
        "vhd/no-pool",
        "Ready",
        "False",
        "PoolNotFound",
        &["nowhere"],
        REACTION,
    )?;

    // Mended, each goes on by itself.
    let nothing = images.join("nothing.img");
    std::fs::write(&nothing, &wanted)?;
    std::fs::write(&replaced, &wanted)?;
    k.apply(&Guest::unbooted("huge").machine_yaml())?;
    for object in ["vhd/no-image", "vhd/wrong-sum"] {
        k.wait_condition(object, "Ready", RETRY)?;
    }
    std::fs::remove_file(nothing)?;
    std::fs::remove_file(replaced)?;
    k.wait_condition("vm/huge", "Ready", BOOT)?;
    with_pool(cx, "nowhere", "mkdir -p $0", || {
        k.wait_condition("vhd/no-pool", "Ready", RETRY)?;
        k.run(&["delete", "vhd", "no-pool", "--timeout=60s"])
            .map(drop)
    })
}

fn hex_sha256(mut bytes: impl io::Read) -> Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut bytes, &mut hash)?;
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Gives host-a a pool, made by the shell script `make` whose `$0` is its folder, for as long as `body` runs.
fn with_pool(
    cx: &Context<'_>,
    name: &str,
    make: &str,
    body: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let path = format!("/var/lib/paddock/pools/{name}");
    cx.lab.exec_ok("host-a", &["sh", "-c", make, &path])?;
    // Added and removed by themselves: others' changes of the list stay.
    let patch = |patch: Value| {
        let patch = patch.to_string();
        cx.kubectl
            .run(&["patch", "host/host-a", "--type=json", "-p", &patch])
    };
    let pool = json!({"name": name, "path": path});
    patch(json!([{"op": "add", "path": "/spec/pools/-", "value": pool}]))?;
    let result = body();
    let host = cx.kubectl.get("host/host-a")?;
    let mut pools = host["spec"]["pools"].as_array().into_iter().flatten();
    let at = pools
        .position(|p| p["name"] == name)
        .context("the pool is gone from host-a")?;
    patch(json!([
        {"op": "test", "path": format!("/spec/pools/{at}/name"), "value": name},
        {"op": "remove", "path": format!("/spec/pools/{at}")},
    ]))?;
    result
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
    through_a_link(cx)?;
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

    // Mended, each goes on by itself.
    std::fs::remove_file(folder.join("out"))?;
    std::fs::create_dir(folder.join("out"))?;
    for (name, file) in [
        ("corrupt", "corrupt.vhd"),
        ("truncated", "truncated.vhd"),
        ("absent", "absent.vhd"),
        ("outside", "out/passwd"),
    ] {
        std::fs::write(folder.join(file), &good).with_context(|| name.to_owned())?;
    }
    for name in ["corrupt", "truncated", "absent", "outside"] {
        k.wait_condition(&format!("vhd/{name}"), "Ready", RETRY)?;
    }
    Ok(())
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

/// A link in the images' pool that leads out of it: neither a disk is made from what lies behind, nor a kernel started.
fn through_a_link(cx: &Context<'_>) -> Result<()> {
    let images = cx.lab.directory().join("pools/images");
    let link = images.join(cx.namespace());
    std::os::unix::fs::symlink("/etc", &link)?;
    let path = format!("{}/passwd", cx.namespace());
    let source =
        format!("{{file: {{pool: shared}}, source: {{image: {{pool: images, path: {path}}}}}}}");
    let guest = Guest::unbooted("linked");
    let machine = guest
        .machine_yaml()
        .replace("path: tiny-linux.vmlinuz", &format!("path: {path}"));
    let k = &cx.kubectl;
    k.apply(&(disk("linked-image", &source) + &guest.empty_disk_yaml() + &machine))?;
    k.apply(&internal_network(89))?;
    for object in ["vhd/linked-image", "vm/linked"] {
        k.wait_reason(
            object,
            "Ready",
            "False",
            "PathEscapesPool",
            &[&path],
            REACTION,
        )?;
    }
    std::fs::remove_file(link)?;
    Ok(())
}

/// A file that somebody serves by hand, past the API.
fn locked_file(cx: &Context<'_>) -> Result<()> {
    let k = &cx.kubectl;
    let guest = Guest {
        host: "host-a",
        ..Guest::unbooted("locked")
    };
    k.apply(&(guest.empty_disk_yaml() + &internal_network(88)))?;
    k.wait_condition("vhd/locked", "Ready", REACTION)?;
    let file = format!(
        "/var/lib/paddock/pools/shared/{}",
        k.text("vhd/locked", "/status/file/path")?
    );
    let socket = format!("/run/{}.sock", cx.namespace());
    let vhd = program("vhd")?.to_string_lossy().into_owned();
    let serve = [vhd.as_str(), "serve", "--socket", &socket, &file];
    let served = Background::start(cx.lab, "host-a", &serve)?;
    wait::until("the file to be served", REACTION, || {
        cx.lab.exec_ok("host-a", &["test", "-S", &socket]).map(drop)
    })?;
    k.apply(&guest.machine_yaml())?;
    k.wait_reason(
        "vm/locked",
        "Ready",
        "False",
        "DiskInUse",
        &[file.rsplit('/').next().unwrap_or_default()],
        REACTION,
    )?;
    drop(served);
    k.wait_condition("vm/locked", "Ready", RETRY)
}

fn full_pool(cx: &Context<'_>) -> Result<()> {
    let make = "mkdir -p $0 && mount -t tmpfs -o size=8m tmpfs $0";
    with_pool(cx, "tiny", make, || full(cx))
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
    let pool = "/var/lib/paddock/pools/tiny";
    wait::until("a pool without remains", REACTION, || {
        let files = cx
            .lab
            .exec_ok("host-a", &["find", pool, "-type", "f", "-size", "+0"])?;
        ensure!(files.is_empty(), "{files}");
        Ok(())
    })?;
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
    // With room it goes on by itself.
    let grown = ["mount", "-o", "remount,size=128m", pool];
    cx.lab.exec_ok("host-a", &grown)?;
    cx.kubectl.wait_condition("vhd/large", "Ready", RETRY)?;
    cx.kubectl
        .run(&["delete", "vhd", "large", "little", "--timeout=60s"])
        .map(drop)
}
