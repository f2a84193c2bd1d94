//! Bridges and cables, by `ip` and `nft`.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cuts::{Cuts, ruleset};

/// Runs `program` with `arguments`; its messages become the error.
pub fn run(program: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            format!("{program} could not be run; `paddock-lab doctor` says what to install")
        })?;
    if !output.status.success() {
        bail!(
            "`{program} {}`: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

/// Runs `ip` with arguments separated by single spaces.
pub fn ip(arguments: &str) -> Result<()> {
    run("ip", &arguments.split(' ').collect::<Vec<_>>()).map(drop)
}

/// Makes a bridge that forwards at once and learns only from frames.
pub fn make_bridge(name: &str) -> Result<()> {
    ip(&format!(
        "link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
    ))?;
    ip(&format!("link set {name} up"))
}

/// Lays a cable from the port `port` of `bridge` into another network namespace, where it is named `inner`.
///
/// `namespace` is a process id or a path, as `ip link … netns` takes it. A cable left from an earlier boot is replaced.
pub fn make_cable(bridge: &str, port: &str, inner: &str, namespace: &str) -> Result<()> {
    remove_link(port);
    ip(&format!(
        "link add {port} type veth peer name {inner} netns {namespace}"
    ))?;
    ip(&format!("link set {port} master {bridge} up"))
}

/// Removes a link; that there is none is fine.
pub fn remove_link(name: &str) {
    if let Err(error) = ip(&format!("link del {name}")) {
        tracing::debug!("{error:#}");
    }
}

/// Brings up `lo`, and `link` with an address, in the namespace of the caller.
pub fn configure_here(link: &str, address_with_prefix: &str) -> Result<()> {
    ip("link set lo up")?;
    ip(&format!("address add {address_with_prefix} dev {link}"))?;
    ip(&format!("link set {link} up"))
}

/// Makes exactly these cuts.
pub fn apply_cuts(cuts: &Cuts) -> Result<()> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("nft could not be run; install the package nftables")?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin
            .write_all(ruleset(cuts).as_bytes())
            .context("rules for nft")?;
    }
    let output = nft.wait_with_output().context("nft")?;
    if !output.status.success() {
        bail!(
            "nft: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Name of a host's port on the management bridge.
pub fn management_port(index: u8) -> String {
    format!("m{index}")
}

/// Name of a host's port on the LAN bridge.
pub fn lan_port(index: u8) -> String {
    format!("l{index}")
}

/// Whether a TCP connection to `address` succeeds within half a second.
pub fn answers(address: Ipv4Addr, port: u16) -> bool {
    std::net::TcpStream::connect_timeout(
        &(address, port).into(),
        std::time::Duration::from_millis(500),
    )
    .is_ok()
}
