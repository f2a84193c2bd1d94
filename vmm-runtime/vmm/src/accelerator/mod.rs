//! What can run a guest on this host: found out by running one, not by looking for `/dev/kvm`.
//!
//! That `/dev/kvm` opens proves little. A host can offer a KVM that emulates the guest's kernel mode an instruction
//! at a time, or one that lacks instructions every kernel uses. So the probe
//!
//! 1. runs bare guests of a few instructions each in KVM, one per instruction of interest, and times a loop
//!    (`kvm`: the guests, `classify`: what their results mean);
//! 2. if that looks like real hardware, boots a boot sector in QEMU with KVM, the way virtual machines run;
//! 3. boots the same boot sector in QEMU with TCG (`qemu`).
//!
//! A guest can hang an ioctl, and QEMU can abort or spin. Every guest runs in a process of its own that is killed at
//! its deadline (`bounded_process`); the probe itself always returns.

mod arguments;
mod bounded_process;
mod classify;
mod kvm;
mod qemu;
mod report;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use arguments::ProbeArguments;
pub use qemu::QemuUser;
pub use report::{
    KvmReport, KvmStep, KvmVerdict, ProbeReport, QemuReport, StepOutcome, StepReport, Usability,
};

use crate::config::Accelerator;

/// The share of the deadline that the bare guests in KVM may take.
const KVM_SHARE: f64 = 0.4;
/// The share of what is left after them that `qemu --version` may take: on a busy host that has not run QEMU yet,
/// reading it from the disk takes seconds.
const VERSION_SHARE: f64 = 0.25;

/// What to probe with.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// QEMU: a path, or a name to look up in `PATH`.
    pub qemu: PathBuf,
    /// The user that QEMU runs as. Give the one of the virtual machines: root may open a `/dev/kvm` that they may not.
    pub qemu_user: Option<QemuUser>,
    /// The program that runs the bare guests in KVM and writes what happened to its standard output: this very
    /// program with `probe --kvm-only`.
    pub kvm_program: PathBuf,
    /// Its arguments.
    pub kvm_arguments: Vec<OsString>,
}

impl ProbeOptions {
    /// Probes with this QEMU, and `vmm` (a `paddock-vmm`) for the bare guests.
    pub fn new(qemu: PathBuf, vmm: PathBuf) -> ProbeOptions {
        ProbeOptions {
            qemu,
            qemu_user: None,
            kvm_program: vmm,
            kvm_arguments: vec!["probe".into(), "--kvm-only".into()],
        }
    }
}

/// Finds out what can run guests here. Returns within `deadline`, plus at most two seconds for each process that
/// the kernel does not let die.
pub fn probe(options: &ProbeOptions, deadline: Duration) -> ProbeReport {
    let started = Instant::now();
    let end = started + deadline;
    let kvm = kvm::probe(options, (started + deadline.mul_f64(KVM_SHARE)).min(end));

    let qemu = match qemu::version(options, Instant::now() + left(end).mul_f64(VERSION_SHARE)) {
        Ok(version) => {
            let kvm_usability = if kvm.verdict == KvmVerdict::Hardware {
                // Half of what is left, so that TCG has its turn after a KVM that hangs.
                qemu::boot(options, Accelerator::Kvm, Instant::now() + left(end) / 2)
            } else {
                Usability::Unusable(format!(
                    "not tried, because the verdict on KVM is {:?}",
                    kvm.verdict
                ))
            };
            let tcg = qemu::boot(options, Accelerator::Tcg, end);
            QemuReport {
                version: Some(version),
                kvm: kvm_usability,
                tcg,
            }
        }
        Err(reason) => QemuReport {
            version: None,
            kvm: Usability::Unusable(reason.clone()),
            tcg: Usability::Unusable(reason),
        },
    };

    let recommended = classify::recommended(kvm.verdict, &qemu);
    ProbeReport {
        cpu_model: recommended.map(|accelerator| classify::cpu_model(accelerator).to_owned()),
        kvm,
        qemu,
        recommended,
        elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_hangs_does_not_hang_the_probe() {
        let hang = r#"echo '{"event":"stepStarted","step":"portio"}'; exec sleep 1000"#;
        let options = ProbeOptions {
            qemu: "/nonexistent/qemu".into(),
            qemu_user: None,
            kvm_program: "/bin/sh".into(),
            kvm_arguments: vec!["-c".into(), hang.into()],
        };
        let report = probe(&options, Duration::from_secs(1));
        let no_qemu =
            "/nonexistent/qemu cannot be run: No such file or directory (os error 2)".to_owned();
        assert_eq!(
            report,
            ProbeReport {
                kvm: KvmReport {
                    verdict: KvmVerdict::None,
                    reason: "no guest runs: no result; the process was killed at its deadline"
                        .to_owned(),
                    instructions_per_second: None,
                    steps: vec![StepReport {
                        step: KvmStep::PortIo,
                        outcome: StepOutcome::Failed(
                            "no result; the process was killed at its deadline".to_owned()
                        ),
                    }],
                },
                qemu: QemuReport {
                    version: None,
                    kvm: Usability::Unusable(no_qemu.clone()),
                    tcg: Usability::Unusable(no_qemu),
                },
                recommended: None,
                cpu_model: None,
                elapsed_ms: report.elapsed_ms,
            }
        );
    }

    #[test]
    fn the_report_is_stable_json() {
        let report = ProbeReport {
            kvm: KvmReport {
                verdict: KvmVerdict::Emulated,
                reason: "slow".to_owned(),
                instructions_per_second: Some(1_000_000),
                steps: vec![
                    StepReport {
                        step: KvmStep::PortIo,
                        outcome: StepOutcome::Passed,
                    },
                    StepReport {
                        step: KvmStep::Sse,
                        outcome: StepOutcome::Failed("no".to_owned()),
                    },
                ],
            },
            qemu: QemuReport {
                version: Some("7.2.22".to_owned()),
                kvm: Usability::Unusable("not tried".to_owned()),
                tcg: Usability::Usable,
            },
            recommended: Some(Accelerator::Tcg),
            cpu_model: Some("max".to_owned()),
            elapsed_ms: 5,
        };
        let json = serde_json::json!({
            "kvm": {
                "verdict": "Emulated",
                "reason": "slow",
                "instructionsPerSecond": 1_000_000,
                "steps": [
                    {"step": "portio", "outcome": {"result": "Passed"}},
                    {"step": "sse", "outcome": {"result": "Failed", "reason": "no"}},
                ],
            },
            "qemu": {
                "version": "7.2.22",
                "kvm": {"state": "Unusable", "reason": "not tried"},
                "tcg": {"state": "Usable"},
            },
            "recommended": "tcg",
            "cpuModel": "max",
            "elapsedMs": 5,
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), json);
        assert_eq!(serde_json::from_value::<ProbeReport>(json).unwrap(), report);
    }
}
