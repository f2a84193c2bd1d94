//! Scripts in the place of operator, agent and monitor; helpers that wait and look.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use paddock_lab::{Backend, Fault, HostStatus, Lab, LabOptions};

/// An agent that counts seconds' tenths into a file of its run folder, and says how it was called.
const AGENT: &str = r#"#!/bin/bash
echo "called with: $*"
run=/run/paddock
while [ $# -gt 0 ]; do [ "$1" = --run-dir ] && run=$2; shift; done
mkdir -p "$run"
i=0
while :; do i=$((i + 1)); echo $i > "$run/.count" && mv "$run/.count" "$run/count"; sleep 0.1; done
"#;

/// Whether these tests can run; says why not.
pub fn can_run() -> bool {
    if !rustix::process::geteuid().is_root() {
        skipped("namespaces and bridges need root");
        return false;
    }
    true
}

/// Held by the one test that has labs: several at once would only slow each other down.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A folder of scripts, and options for labs that run them.
pub struct Stub {
    pub folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Stub {
    pub fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        for name in ["paddock-agent", "paddock-vmm", "paddock-operator"] {
            let path = folder.path().join(name);
            fs::write(&path, AGENT).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        Self {
            folder,
            _turn: turn,
        }
    }

    pub fn options(&self) -> LabOptions {
        LabOptions {
            backend: Backend::Hollow,
            memory_mib: Some(1024),
            operator: false,
            programs: Some(self.folder.path().to_owned()),
            program: Some(env!("CARGO_BIN_EXE_paddock-lab").into()),
            ..LabOptions::default()
        }
    }
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn host(lab: &Lab, name: &str) -> HostStatus {
    lab.status()
        .unwrap()
        .hosts
        .into_iter()
        .find(|host| host.name == name)
        .unwrap()
}

pub fn kubectl(lab: &Lab, arguments: &[&str]) -> String {
    let output = lab
        .command("kubectl")
        .arg("--")
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn fault(lab: &Lab, fault: Fault) {
    lab.fault(fault.clone())
        .unwrap_or_else(|error| panic!("{fault:?}: {error:#}\n{}", lab.logs(20)));
}

pub fn count(lab: &Lab, name: &str) -> Option<u64> {
    lab.exec_ok(name, &["cat", "/run/paddock/count"])
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Exit code of an attempt to connect: 0 connected, 1 refused, 124 no answer.
pub fn connect(lab: &Lab, from: &str, to: &str, port: u16) -> Option<i32> {
    let script = format!(": < /dev/tcp/{to}/{port}");
    lab.exec(from, &["timeout", "2", "bash", "-c", &script])
        .unwrap()
        .status
        .code()
}

/// The controllers that the machine hands to its control groups: not a lab's to change.
pub fn controllers() -> String {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = paddock_lab::cgroup::find_mount(&mountinfo).unwrap();
    fs::read_to_string(cgroups.join("cgroup.subtree_control")).unwrap()
}

pub fn nothing_left(id: &str, folder: &Path) {
    let links = Command::new("ip")
        .args(["-br", "link"])
        .output()
        .unwrap()
        .stdout;
    assert!(!String::from_utf8_lossy(&links).contains(&format!("pdl-{id}")));
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = paddock_lab::cgroup::find_mount(&mountinfo).unwrap();
    assert!(!cgroups.join(format!("paddock-lab-{id}")).exists());
    assert!(!mountinfo.contains(&folder.display().to_string()));
    assert!(!folder.exists());
}

/// Tells that a test can't run here, and why: past the test harness, which keeps
/// what a test prints that passes, while `e2e/test.sh` counts these lines.
fn skipped(why: impl std::fmt::Display) {
    // In one piece, among those of other tests.
    let line = format!("skipped: {why}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}
