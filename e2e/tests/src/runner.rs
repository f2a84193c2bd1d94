//! Runs scenarios on one lab and counts them.

use crate::{
    cluster::{Context, Kubectl, Skip},
    guest, wait,
};
use anyhow::{Result, anyhow};
use paddock_lab::{Lab, LabOptions};
use std::{
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::{Command, ExitCode},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Scenarios that run beside each other. More guests than this booting at once starve each other on two cores.
const ABREAST: usize = 3;

/// Whether a scenario leaves the others alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It disturbs nobody: it runs beside others, in its own namespace.
    Beside,
    /// It kills, cuts or fills something that others need: it runs alone.
    Alone,
}

/// A test.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name: what must hold.
    pub name: &'static str,
    /// Whether it leaves the others alone.
    pub manner: Manner,
    /// The test.
    pub run: fn(&Context<'_>) -> Result<()>,
}

#[derive(Default)]
struct Counts {
    passed: AtomicUsize,
    failed: AtomicUsize,
    skipped: AtomicUsize,
}

/// Runs what the arguments ask for: `--list`, or parts of names.
#[must_use]
pub fn main(arguments: Vec<String>, scenarios: &[Scenario]) -> ExitCode {
    if arguments.iter().any(|a| a == "--list") {
        scenarios.iter().for_each(|s| println!("{}: test", s.name));
        return ExitCode::SUCCESS;
    }
    // Cargo hands its own flags down; only names select.
    let names: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen: Vec<Scenario> = scenarios
        .iter()
        .filter(|s| names.is_empty() || names.iter().any(|n| s.name.contains(n.as_str())))
        .copied()
        .collect();
    let counts = Counts::default();
    if chosen.is_empty() {
        println!("no test is named {names:?}; `--list` names them");
        return ExitCode::FAILURE;
    }
    if let Some(why) = unable() {
        for scenario in &chosen {
            println!("test {} ... skipped ({why})", scenario.name);
            counts.skipped.fetch_add(1, Ordering::Relaxed);
        }
    } else if let Err(error) = run_all(&chosen, &counts) {
        println!("the lab: FAILED\n{error:#}");
        counts.failed.fetch_add(1, Ordering::Relaxed);
    }
    let [passed, failed, skipped] =
        [&counts.passed, &counts.failed, &counts.skipped].map(|n| n.load(Ordering::Relaxed));
    println!("e2e: {passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Why no lab can run here.
fn unable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    for (tool, package) in [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("nft", "nftables"),
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
        ("curl", "curl"),
    ] {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .output();
        if !found.is_ok_and(|o| o.status.success()) {
            return Some(format!("{tool} is missing: install the package {package}"));
        }
    }
    None
}

fn run_all(chosen: &[Scenario], counts: &Counts) -> Result<()> {
    let start = Instant::now();
    let keep = std::env::var_os("PADDOCK_E2E_KEEP").is_some();
    let reused = std::env::var_os("PADDOCK_E2E_LAB").map(PathBuf::from);
    let options = LabOptions {
        directory: reused.clone(),
        ..LabOptions::default()
    };
    let lab = Lab::start(&options)?;
    let kubeconfig = lab.kubeconfig()?;
    let kubectl = Kubectl::new(&kubeconfig, "default");
    for host in ["host-a", "host-b"] {
        // Scenarios choose their host by this label, as a user would.
        kubectl.run(&[
            "label",
            "--overwrite",
            "host",
            host,
            &format!("paddock.dev/test-host={host}"),
        ])?;
        kubectl.wait_condition(&format!("host/{host}"), "Ready", guest::REACTION)?;
    }
    println!(
        "lab ready after {:.1} s: {}",
        start.elapsed().as_secs_f64(),
        lab.directory().display()
    );

    let (beside, alone): (Vec<_>, Vec<_>) = chosen.iter().partition(|s| s.manner == Manner::Beside);
    let queue = Mutex::new(beside.into_iter());
    thread::scope(|scope| {
        for _ in 0..ABREAST {
            scope.spawn(|| {
                while let Some(scenario) = queue.lock().ok().and_then(|mut q| q.next()) {
                    run_one(&lab, &kubectl, scenario, counts);
                }
            });
        }
    });
    for scenario in alone {
        run_one(&lab, &kubectl, scenario, counts);
    }
    if keep || reused.is_some() {
        println!("kept: {}", lab.directory().display());
        std::mem::forget(lab);
        Ok(())
    } else {
        lab.down()
    }
}

fn run_one(lab: &Lab, admin: &Kubectl, scenario: &Scenario, counts: &Counts) {
    let start = Instant::now();
    // A namespace is a DNS label: at most 63 characters.
    let mut namespace: String = scenario
        .name
        .replace(['_', ' '], "-")
        .chars()
        .take(50)
        .collect();
    namespace = format!("{}-{}", namespace.trim_end_matches('-'), std::process::id());
    let cx = Context {
        lab,
        kubectl: Kubectl::new(&lab.kubeconfig().unwrap_or_default(), &namespace),
    };
    let result = admin
        .run(&["create", "namespace", &namespace])
        .and_then(|_| {
            catch_unwind(AssertUnwindSafe(|| (scenario.run)(&cx))).unwrap_or_else(|panic| {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                    .unwrap_or_default();
                Err(anyhow!("panic: {text}"))
            })
        });
    let (count, mut text) = match &result {
        Ok(()) => (&counts.passed, "ok".to_owned()),
        Err(error) if error.is::<Skip>() => (&counts.skipped, format!("skipped ({error})")),
        Err(error) => (
            &counts.failed,
            format!("FAILED\n{error:#}\n{}", diagnosis(&cx)),
        ),
    };
    let took = start.elapsed();
    // Removing the namespace is part of the test: everything in it must be able to end, whatever state it is in.
    if let Err(error) = end(admin, &namespace)
        && result.is_ok()
    {
        text = format!(
            "FAILED\nthe namespace does not end: {error:#}\n{}",
            diagnosis(&cx)
        );
        counts.failed.fetch_add(1, Ordering::Relaxed);
    } else {
        count.fetch_add(1, Ordering::Relaxed);
    }
    let mut out = std::io::stdout().lock();
    let _ = writeln!(
        out,
        "test {} ... {text} ({:.1} s)",
        scenario.name,
        took.as_secs_f64()
    );
}

fn end(admin: &Kubectl, namespace: &str) -> Result<()> {
    admin.run(&[
        "delete",
        "namespace",
        namespace,
        "--wait=false",
        "--ignore-not-found",
    ])?;
    wait::until("end of the namespace", Duration::from_secs(120), || {
        let left = admin.run(&["get", "namespace", namespace, "--ignore-not-found"])?;
        anyhow::ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

/// What a person would look at first.
fn diagnosis(cx: &Context<'_>) -> String {
    let mut text = String::new();
    for arguments in [
        &["get", "vm,vhd,vnet,vmi,vhdtask", "-o", "wide"][..],
        &["get", "hosts", "-o", "wide"],
        &["describe", "vm,vhd,vmi,vhdtask"],
        &["get", "events"],
    ] {
        let shown = cx
            .kubectl
            .output(arguments, "")
            .map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        text.push_str(&format!(
            "$ kubectl {}\n{}\n",
            arguments.join(" "),
            shown.unwrap_or_default()
        ));
    }
    // What the control plane logs is seldom about us.
    let logs = cx.lab.logs(60);
    let ours = |line: &&str| line.starts_with("host-") || line.starts_with("operator");
    text.extend(logs.lines().filter(ours).flat_map(|line| [line, "\n"]));
    text
}
