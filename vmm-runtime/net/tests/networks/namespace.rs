//! Runs a test again inside namespaces of its own.

use std::process::Command;

const INSIDE: &str = "PADDOCK_NET_TEST_INSIDE";
const UNSHARE: [&str; 7] = ["-n", "-m", "-p", "-f", "--mount-proc", "--kill-child", "--"];

/// Runs `body` as the root of fresh namespaces. `name` is the test's full
/// name, by which the re-executed binary finds it.
pub fn isolated<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(body());
        return;
    }
    if let Some(why) = missing() {
        skipped(why);
        return;
    }
    let output = Command::new("unshare")
        .args(UNSHARE)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "inside namespaces: {text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // What the test says in there is for out here.
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        if let Some((_, why)) = line.split_once("skipped: ") {
            skipped(why);
        }
    }
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Some("no /dev/net/tun".to_owned());
    }
    for (program, arguments) in [("ip", &["-V"][..]), ("nft", &["--version"])] {
        if Command::new(program).args(arguments).output().is_err() {
            return Some(format!("no program {program}"));
        }
    }
    let check = "nft add table bridge paddock_check";
    match Command::new("unshare")
        .args(UNSHARE)
        .args(["sh", "-c", check])
        .output()
    {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "no namespaces or no nftables bridge family: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("no program unshare: {error}")),
    }
}

/// Runs a program that must succeed; returns what it wrote.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A cable from `lan0`, an interface for guests, to `far0`, the LAN behind
/// it; the host itself is silent on both.
pub fn cable(mtu: u16) {
    let mtu = mtu.to_string();
    let ends = [
        "link", "add", "lan0", "mtu", &mtu, "type", "veth", "peer", "far0", "mtu", &mtu,
    ];
    run("ip", &ends);
    for end in ["lan0", "far0"] {
        for (setting, value) in [
            ("ipv6/conf", "disable_ipv6=1"),
            ("ipv4/conf", "arp_ignore=8"),
        ] {
            let (name, value) = value.split_once('=').unwrap();
            std::fs::write(format!("/proc/sys/net/{setting}/{end}/{name}"), value).unwrap();
        }
        run("ip", &["link", "set", end, "up"]);
    }
}

/// Tells that a test can't run here, and why: past the test harness, which keeps
/// what a test prints that passes, while `e2e/test.sh` counts these lines.
pub fn skipped(why: impl std::fmt::Display) {
    // In one piece, among those of other tests.
    let line = format!("skipped: {why}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}
