//! Guests of the test image: the objects that make one, and what it answers.

use crate::{cluster::Context, wait};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::time::Duration;

/// Long enough for a guest to boot under emulation beside two others on two busy cores.
pub const BOOT: Duration = Duration::from_secs(150);
/// Long enough for the operator and an agent to react, no guest involved.
pub const REACTION: Duration = Duration::from_secs(40);

/// The command line of directly booted guests.
const COMMAND_LINE: &str = "console=ttyS0 quiet mitigations=off no_timer_check tsc=reliable";

/// A guest to be made.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Name of the machine and of its disk.
    pub name: String,
    /// Pool of its disk.
    pub pool: &'static str,
    /// Bus of its disk.
    pub bus: &'static str,
    /// Whether its kernel is started directly instead of by the BIOS from its disk.
    pub direct: bool,
    /// Network of its adapter.
    pub network: &'static str,
    /// Labels its host must carry, as a flow mapping; empty: any.
    pub host: &'static str,
    /// Further lines of the machine's spec, as flow mappings.
    pub extra: String,
}

impl Guest {
    /// A guest on the network `lab` that starts fastest.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            pool: "shared",
            bus: "Virtio",
            direct: true,
            network: "lab",
            host: "",
            extra: String::new(),
        }
    }

    /// One that is turned off at once: it need not have booted far enough to hear its power button.
    #[must_use]
    pub fn unbooted(name: &str) -> Self {
        Self {
            extra: "  stopDeadlineSeconds: 0\n".to_owned(),
            ..Self::new(name)
        }
    }

    /// Its disk.
    #[must_use]
    pub fn disk_yaml(&self) -> String {
        let Self { name, pool, .. } = self;
        format!(
            "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDisk\nmetadata: {{name: {name}}}\nspec:\n  size: 64Mi\n  file: {{pool: {pool}}}\n  source: {{image: {{pool: images, path: tiny-linux.img}}}}\n---\n"
        )
    }

    /// Its disk, with nothing on it: faster made than a copy of the image.
    #[must_use]
    pub fn empty_disk_yaml(&self) -> String {
        self.disk_yaml().replace(
            "  source: {image: {pool: images, path: tiny-linux.img}}\n",
            "",
        )
    }

    /// Its machine.
    #[must_use]
    pub fn machine_yaml(&self) -> String {
        let Self {
            name,
            bus,
            network,
            extra,
            ..
        } = self;
        let boot = if self.direct {
            format!(
                "  boot: {{kernel: {{pool: images, path: tiny-linux.vmlinuz, initrd: tiny-linux.initrd, commandLine: \"{COMMAND_LINE}\"}}}}\n"
            )
        } else {
            String::new()
        };
        let selector = if self.host.is_empty() {
            String::new()
        } else {
            format!(
                "  hostSelector: {{matchLabels: {{paddock.dev/test-host: {}}}}}\n",
                self.host
            )
        };
        format!(
            "apiVersion: paddock.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name}}}\nspec:\n  memory: 160Mi\n{boot}{selector}  disks: [{{name: system, bus: {bus}, virtualHardDiskRef: {{name: {name}}}}}]\n  networkAdapters: [{{name: lan, virtualNetworkRef: {{name: {network}}}}}]\n{extra}---\n"
        )
    }

    /// Machine and disk.
    #[must_use]
    pub fn yaml(&self) -> String {
        self.disk_yaml() + &self.machine_yaml()
    }
}

/// The network `lab`.
#[must_use]
pub fn internal_network(third: u8) -> String {
    format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualNetwork\nmetadata: {{name: lab}}\nspec: {{type: Internal, subnet: 192.168.{third}.0/24, dhcp: {{mode: Enabled}}}}\n---\n"
    )
}

/// A guest that answers.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its host.
    pub host: String,
    /// Its address.
    pub address: String,
    /// Its instance's process.
    pub process_id: i64,
    /// What it says of itself.
    pub says: Value,
}

impl Running {
    /// Its count of boots.
    #[must_use]
    pub fn boots(&self) -> i64 {
        self.says["boots"].as_i64().unwrap_or(-1)
    }
}

/// Asks a guest, from a host.
///
/// # Errors
/// When it does not answer within 4 s, or not with JSON.
pub fn ask(cx: &Context<'_>, host: &str, address: &str, path: &str) -> Result<Value> {
    let url = format!("http://{address}/cgi-bin/{path}");
    let text = cx.lab.exec_ok(
        host,
        &[
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "4",
            &url,
        ],
    )?;
    serde_json::from_str(&text).with_context(|| format!("{url} answered {text:?}"))
}

/// As [`ask`], for requests that take longer, such as pings that are not answered.
///
/// # Errors
/// When it does not answer within 30 s, or not with JSON.
pub fn ask_patiently(cx: &Context<'_>, host: &str, address: &str, path: &str) -> Result<Value> {
    let url = format!("http://{address}/cgi-bin/{path}");
    let text = cx.lab.exec_ok(
        host,
        &[
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "30",
            &url,
        ],
    )?;
    serde_json::from_str(&text).with_context(|| format!("{url} answered {text:?}"))
}

/// Waits until a machine is Ready and its page answers from its host.
///
/// # Errors
/// Past the deadline.
pub fn wait_running(cx: &Context<'_>, name: &str) -> Result<Running> {
    cx.kubectl
        .wait_condition(&format!("vm/{name}"), "Ready", BOOT)?;
    wait_page(cx, name, |_| true)
}

/// Waits until a machine's page answers and says what is wanted.
///
/// # Errors
/// Past the deadline.
pub fn wait_page(
    cx: &Context<'_>,
    name: &str,
    wanted: impl Fn(&Running) -> bool,
) -> Result<Running> {
    wait::until(&format!("the page of {name}"), BOOT, || {
        let running = look(cx, name)?;
        ensure!(wanted(&running), "it says {:?}", running);
        Ok(running)
    })
}

/// What a machine says right now.
///
/// # Errors
/// When it has no address or does not answer.
pub fn look(cx: &Context<'_>, name: &str) -> Result<Running> {
    let vm = cx.kubectl.get(&format!("vm/{name}"))?;
    let text = |pointer: &str| {
        vm.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (host, address) = (text("/status/host"), text("/status/ipAddress"));
    ensure!(
        !host.is_empty() && !address.is_empty(),
        "no host or address yet: {}",
        vm["status"]
    );
    let instance = cx.kubectl.get(&format!("vmi/{name}"))?;
    let process_id = instance
        .pointer("/status/processId")
        .and_then(Value::as_i64)
        .unwrap_or(-1);
    let says = ask(cx, &host, &address, "status")?;
    Ok(Running {
        host,
        address,
        process_id,
        says,
    })
}
