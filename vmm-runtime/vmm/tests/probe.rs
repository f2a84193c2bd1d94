//! The probe, for real, on whatever this host is.

#![allow(clippy::unwrap_used)] // The helper is a part of the tests.

mod skipped;

use std::path::Path;
use std::process::Command;

use paddock_vmm::accelerator::{KvmStep, KvmVerdict, ProbeReport, Usability};
use paddock_vmm::config::Accelerator;

use skipped::skipped;

fn probe(arguments: &[&str]) -> ProbeReport {
    let output = Command::new(env!("CARGO_BIN_EXE_paddock-vmm"))
        .args(["probe", "--json", "--deadline", "60"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_verdict_on_this_host_is_consistent() {
    let report = probe(&[]);
    println!("{report}");
    if Path::new("/dev/kvm").exists() {
        match report.kvm.verdict {
            KvmVerdict::None => assert_ne!(report.kvm.reason, ""),
            KvmVerdict::Emulated | KvmVerdict::Hardware => {
                let steps: Vec<KvmStep> = report.kvm.steps.iter().map(|step| step.step).collect();
                assert_eq!(steps, KvmStep::ALL);
                assert!(report.kvm.instructions_per_second.is_some());
            }
        }
    } else {
        skipped("the bare guests, no /dev/kvm");
        assert_eq!(report.kvm.verdict, KvmVerdict::None);
    }
    if report.qemu.version.is_none() {
        skipped("the boot sector, no QEMU");
        assert_eq!(report.recommended, None);
        return;
    }
    assert_eq!(report.qemu.tcg, Usability::Usable);
    let hardware = report.kvm.verdict == KvmVerdict::Hardware && report.qemu.kvm.is_usable();
    let expected = if hardware {
        (Accelerator::Kvm, "host")
    } else {
        (Accelerator::Tcg, "max")
    };
    assert_eq!(report.recommended, Some(expected.0));
    assert_eq!(report.cpu_model.as_deref(), Some(expected.1));
}

#[test]
fn without_qemu_nothing_is_recommended() {
    let report = probe(&["--qemu", "/nonexistent/qemu"]);
    let missing = "/nonexistent/qemu cannot be run: No such file or directory (os error 2)";
    assert_eq!(report.qemu.tcg, Usability::Unusable(missing.to_owned()));
    assert_eq!(report.recommended, None);
    assert_eq!(report.cpu_model, None);
}
