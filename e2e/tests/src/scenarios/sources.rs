//! What disks are made of: images on the web, virtual hard disks of elsewhere, physical disks.

use crate::{
    cluster::{Context, Skip},
    guest::{self, Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
};
use anyhow::{Context as _, Result, ensure};
use sha2::{Digest, Sha256};
use std::{fs, path::PathBuf};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "an_image_on_the_web_becomes_a_disk_if_it_has_its_sum",
        manner: Manner::Beside,
        run: web,
    },
    Scenario {
        name: "a_vhd_of_elsewhere_becomes_a_disk_and_other_formats_are_named",
        manner: Manner::Beside,
        run: vhd_image,
    },
    Scenario {
        name: "a_physical_disk_becomes_a_disk_and_no_machine_gets_it",
        manner: Manner::Beside,
        run: linked,
    },
];

const IMAGES: &str = "/var/lib/paddock/pools/images";

fn disk(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDisk\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

/// A file of the lab's shared pools, as this process sees it.
fn in_pool(cx: &Context<'_>, pool: &str, path: &str) -> PathBuf {
    cx.lab.directory().join("pools").join(pool).join(path)
}

fn sum(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A command in the background of a host, until this is dropped.
struct Background<'a> {
    cx: &'a Context<'a>,
    host: &'static str,
    process: String,
}

impl<'a> Background<'a> {
    fn start(cx: &'a Context<'a>, host: &'static str, command: &str) -> Result<Self> {
        let script = format!("{command} </dev/null >/dev/null 2>&1 & echo $!");
        let process = cx.lab.exec_ok(host, &["sh", "-c", &script])?;
        Ok(Self {
            cx,
            host,
            process: process.trim().to_owned(),
        })
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        // It ends with the lab at the latest.
        let _ = self.cx.lab.exec(self.host, &["kill", &self.process]);
    }
}

fn web(cx: &Context<'_>) -> Result<()> {
    let status = cx.lab.status()?;
    let server = status
        .hosts
        .iter()
        .find(|host| host.name == "host-b")
        .context("no host-b")?
        .address;
    let _httpd = Background::start(
        cx,
        "host-b",
        &format!("busybox httpd -f -p {server}:8090 -h {IMAGES}"),
    )?;
    let url = format!("http://{server}:8090/tiny-linux.img");
    let right = sum(&fs::read(in_pool(cx, "images", "tiny-linux.img"))?);
    let wrong = "0".repeat(64);
    let from = |url: &str, sha256: &str| {
        format!(
            "{{size: 64Mi, file: {{pool: shared}}, source: {{http: {{url: \"{url}\", sha256: \"{sha256}\"}}}}}}"
        )
    };
    let guest = Guest::new("web");
    cx.kubectl.apply(
        &(disk("web", &from(&url, &right))
            + &guest.machine_yaml()
            + &internal_network(90)
            + &disk("wrong", &from(&url, &wrong))
            + &disk(
                "none",
                &from(&format!("http://{server}:8090/none.img"), &right),
            )
            + &disk("own", &from("http://127.0.0.1/tiny-linux.img", &right))),
    )?;
    let k = &cx.kubectl;
    for (name, reason, parts) in [
        ("wrong", "ChecksumMismatch", [&*url, &*right, &*wrong]),
        ("none", "DownloadFailed", ["none.img", "404", "200"]),
        ("own", "AddressRefused", ["127.0.0.1", "", ""]),
    ] {
        k.wait_reason(
            &format!("vhd/{name}"),
            "Ready",
            "False",
            reason,
            &parts,
            REACTION,
        )?;
    }
    let running = guest::wait_running(cx, "web")?;
    ensure!(running.boots() == 1, "{running:?}");
    let left = cx.lab.exec_ok(
        "host-a",
        &[
            "find",
            "/var/lib/paddock/pools/shared",
            "-name",
            ".web*.source",
        ],
    )?;
    ensure!(left.is_empty(), "left behind: {left}");
    // The examples are what the API takes.
    let examples = cx.checkout()?.join("manifests/sources");
    k.run(&[
        "apply",
        "--dry-run=server",
        "-k",
        &examples.to_string_lossy(),
    ])?;
    k.refused(
        &disk("bad", &from("ftp://a/b", &right)),
        &["url must begin with http:// or https://"],
    )?;
    k.refused(
        &disk("bad", "{source: {http: {url: \"http://a/b\"}}}"),
        &["sha256"],
    )
}

fn vhd_image(cx: &Context<'_>) -> Result<()> {
    let (k, namespace) = (&cx.kubectl, cx.namespace());
    let out = format!("{namespace}/out.vhd");
    k.apply(&disk(
        "a",
        "{size: 64Mi, file: {pool: shared}, source: {image: {pool: images, path: tiny-linux.img}}}",
    ))?;
    k.wait_condition("vhd/a", "Ready", REACTION)?;
    k.apply(&format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDiskTask\nmetadata: {{name: out}}\nspec: {{action: Export, virtualHardDiskRef: {{name: a}}, format: DynamicVhd, target: {{pool: shared, path: {out}}}}}\n"
    ))?;
    k.wait_field("vhdtask/out", ".status.state", "Succeeded", REACTION)?;
    let name = format!("{namespace}-out.vhd");
    let image = in_pool(cx, "images", &name);
    fs::rename(in_pool(cx, "shared", &out), &image)?;
    let other = format!("{namespace}-other.vhdx");
    fs::write(in_pool(cx, "images", &other), b"vhdxfile".repeat(1024))?;
    let from = |path: &str, more: &str| {
        format!(
            "{{size: 96Mi, file: {{pool: shared}}, source: {{image: {{pool: images, path: {path}, format: VHD{more}}}}}}}"
        )
    };
    let guest = Guest::new("b");
    k.apply(
        &(disk(
            "b",
            &from(&name, &format!(", sha256: \"{}\"", sum(&fs::read(&image)?))),
        ) + &guest.machine_yaml()
            + &internal_network(91)
            + &disk("c", &from(&other, ""))),
    )?;
    k.wait_reason(
        "vhd/c",
        "Ready",
        "False",
        "UnsupportedFormat",
        &["VHDX"],
        REACTION,
    )?;
    let running = guest::wait_running(cx, "b")?;
    ensure!(running.boots() == 1, "{running:?}");
    ensure!(running.says["disks"]["vda"] == 96 << 20, "{}", running.says);
    fs::remove_file(image)?;
    fs::remove_file(in_pool(cx, "images", &other))?;
    Ok(())
}

/// A loop device of host-a that stands for a physical disk, until this is dropped.
struct Device<'a> {
    cx: &'a Context<'a>,
    device: String,
    name: String,
}

impl<'a> Device<'a> {
    fn make(cx: &'a Context<'a>, content: &str) -> Result<Self> {
        let name = format!("/dev/disk/by-id/paddock-test-{}", cx.namespace());
        let made = cx.lab.exec(
            "host-a",
            &["losetup", "--find", "--show", "--read-only", content],
        )?;
        if !made.status.success() {
            let why = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(Skip(format!("no loop device: {why}")).into());
        }
        let device = String::from_utf8(made.stdout)?.trim().to_owned();
        let made = Self { cx, device, name };
        let link = format!(
            "mkdir -p /dev/disk/by-id && ln -s {} {}",
            made.device, made.name
        );
        cx.lab.exec_ok("host-a", &["sh", "-c", &link])?;
        Ok(made)
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        let _ = self.cx.lab.exec("host-a", &["rm", "-f", &self.name]);
        let _ = self
            .cx
            .lab
            .exec("host-a", &["losetup", "--detach", &self.device]);
    }
}

fn linked(cx: &Context<'_>) -> Result<()> {
    let (k, namespace) = (&cx.kubectl, cx.namespace());
    let content: Vec<u8> = (0..16 << 20).map(|n: u32| (n / 4096) as u8).collect();
    let image = format!("{namespace}-disk.img");
    fs::write(in_pool(cx, "images", &image), &content)?;
    let device = Device::make(cx, &format!("{IMAGES}/{image}"))?;
    let link = |serial: &str| {
        format!(
            "{{type: Linked, linked: {{host: host-a, device: {}{serial}}}, reclaimPolicy: Delete}}",
            device.name
        )
    };
    k.apply(
        &(disk("old", &link(""))
            + &disk("other", &link(", serial: Z1F2"))
            + &disk("new", "{source: {linkedRef: {name: old}}}")
            + &disk("copy", "{source: {cloneRef: {name: old}}}")
            + &Guest::new("old").machine_yaml()
            + &internal_network(92)),
    )?;
    k.wait_condition("vhd/new", "Ready", REACTION)?;
    for (object, reason, part) in [
        ("vhd/other", "WrongSerial", "expected \"Z1F2\""),
        ("vhd/copy", "SourceLinked", "source.linkedRef"),
        ("vm/old", "DiskLinked", "stands for a physical disk"),
    ] {
        k.wait_reason(object, "Ready", "False", reason, &[part], REACTION)?;
    }
    for name in ["vhd/old", "vhd/new"] {
        let status = k.get(name)?["status"].clone();
        ensure!(
            status["host"] == "host-a" && status["size"] == "16Mi",
            "{status}"
        );
    }
    ensure!(k.text("vhd/old", "/status/type")? == "Linked");
    let out = format!("{namespace}/out.img");
    k.apply(&format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDiskTask\nmetadata: {{name: out}}\nspec: {{action: Export, virtualHardDiskRef: {{name: new}}, target: {{pool: shared, path: {out}}}}}\n"
    ))?;
    k.wait_field("vhdtask/out", ".status.state", "Succeeded", REACTION)?;
    ensure!(
        fs::read(in_pool(cx, "shared", &out))? == content,
        "the disk shows something else than the physical one"
    );
    k.refused(
        &disk(
            "bad",
            "{type: Linked, linked: {host: host-a, device: /dev/sda}}",
        ),
        &["device must be /dev/disk/by-id/"],
    )?;
    // Whoever may make disks may not therefore have any disk of any host read.
    k.run(&[
        "create",
        "role",
        "maker",
        "--verb=create,get",
        "--resource=virtualharddisks.paddock.dev",
    ])?;
    k.run(&[
        "create",
        "rolebinding",
        "maker",
        "--role=maker",
        "--user=somebody",
    ])?;
    let as_somebody = |yaml: &str| k.output(&["--as=somebody", "create", "-f", "-"], yaml);
    let denied = as_somebody(&disk("theirs", &link("")))?;
    let message = String::from_utf8_lossy(&denied.stderr).into_owned();
    ensure!(
        !denied.status.success() && message.contains("is linked by who may update that Host"),
        "{message}"
    );
    let made = as_somebody(&disk("theirs", "{size: 16Mi, file: {pool: shared}}"))?;
    ensure!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    // The physical disk stays; its descriptor goes.
    k.run(&["delete", "vhd", "old", "--timeout=60s"])?;
    cx.lab.exec_ok("host-a", &["test", "-e", &device.name])?;
    fs::remove_file(in_pool(cx, "images", &image))?;
    fs::remove_file(in_pool(cx, "shared", &out))?;
    Ok(())
}
