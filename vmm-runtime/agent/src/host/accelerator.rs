//! What runs guests on this host, found out by `paddock-vmm probe`, which runs some.

use paddock_crds::host::Accelerator;
use paddock_vmm::{accelerator::ProbeReport, config};
use std::{ffi::OsString, path::Path, process::Stdio, time::Duration};
use tokio::{io::AsyncReadExt, process::Command};
use tracing::warn;

/// Longest report that is read, in bytes.
const MAX_REPORT: u64 = 256 << 10;
/// What the program may take beyond its own deadline: it kills what hangs, and that takes a moment.
const GRACE: Duration = Duration::from_secs(15);

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What runs guests' instructions.
    pub accelerator: Accelerator,
    /// QEMU's CPU model to use with it.
    pub cpu_model: Option<String>,
    /// Why, for people.
    pub message: String,
}

impl Verdict {
    /// What a pretending host says.
    #[must_use]
    pub fn hollow() -> Self {
        Self {
            accelerator: Accelerator::Emulation,
            cpu_model: None,
            message: "guests are pretended".to_owned(),
        }
    }

    fn nothing(message: String) -> Self {
        Self {
            accelerator: Accelerator::None,
            cpu_model: None,
            message,
        }
    }
}

/// What to probe with.
#[derive(Clone, Debug)]
pub struct Probe<'a> {
    /// `paddock-vmm`.
    pub vmm: &'a Path,
    /// QEMU.
    pub qemu: &'a Path,
    /// Its deadline.
    pub deadline: Duration,
    /// The user of the machines: root may open a `/dev/kvm` that they may not.
    pub user: Option<(u32, u32)>,
}

/// Runs the probe. Always answers; a probe that fails means that nothing runs guests.
pub async fn probe(probe: &Probe<'_>) -> Verdict {
    match run(probe).await {
        Ok(report) => verdict(&report),
        Err(error) => {
            warn!(error, "the probe of this host failed");
            Verdict::nothing(error)
        }
    }
}

async fn run(probe: &Probe<'_>) -> Result<ProbeReport, String> {
    let vmm = probe.vmm.display();
    let mut arguments: Vec<OsString> = vec![
        "probe".into(),
        "--json".into(),
        "--deadline".into(),
        probe.deadline.as_secs().max(1).to_string().into(),
        "--qemu".into(),
        probe.qemu.into(),
    ];
    if let Some((uid, gid)) = probe.user {
        arguments.push(format!("--qemu-uid={uid}").into());
        arguments.push(format!("--qemu-gid={gid}").into());
    }
    let mut child = Command::new(probe.vmm)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{vmm} probe: {error}; give its place with --vmm"))?;
    let stdout = child.stdout.take();
    let read = async {
        let mut text = Vec::new();
        if let Some(stdout) = stdout {
            stdout
                .take(MAX_REPORT)
                .read_to_end(&mut text)
                .await
                .map_err(|error| format!("{vmm} probe: {error}"))?;
        }
        let status = child
            .wait()
            .await
            .map_err(|error| format!("{vmm} probe: {error}"))?;
        if !status.success() {
            return Err(format!("{vmm} probe ended with {status}"));
        }
        serde_json::from_slice(&text)
            .map_err(|error| format!("{vmm} probe: expected a report, found: {error}"))
    };
    match tokio::time::timeout(probe.deadline + GRACE, read).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "{vmm} probe did not end within {} s",
            (probe.deadline + GRACE).as_secs()
        )),
    }
}

fn verdict(report: &ProbeReport) -> Verdict {
    let version = report.qemu.version.as_deref().unwrap_or("?");
    match report.recommended {
        Some(config::Accelerator::Kvm) => Verdict {
            accelerator: Accelerator::Kvm,
            cpu_model: report.cpu_model.clone(),
            message: format!("QEMU {version} runs guests with KVM: {}", report.kvm.reason),
        },
        Some(config::Accelerator::Tcg) => Verdict {
            accelerator: Accelerator::Emulation,
            cpu_model: report.cpu_model.clone(),
            message: format!(
                "QEMU {version} translates guests' instructions; KVM: {}; QEMU with KVM: {}",
                report.kvm.reason, report.qemu.kvm
            ),
        },
        None => Verdict::nothing(format!(
            "no guest runs; KVM: {}; QEMU with KVM: {}; QEMU without: {}",
            report.kvm.reason, report.qemu.kvm, report.qemu.tcg
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paddock_vmm::accelerator::{KvmReport, KvmVerdict, QemuReport, Usability};

    fn report(recommended: Option<config::Accelerator>) -> ProbeReport {
        ProbeReport {
            kvm: KvmReport {
                verdict: KvmVerdict::Emulated,
                reason: "slow".into(),
                instructions_per_second: None,
                steps: Vec::new(),
            },
            qemu: QemuReport {
                version: Some("7.2".into()),
                kvm: Usability::Unusable("not tried".into()),
                tcg: Usability::Usable,
            },
            recommended,
            cpu_model: Some("max".into()),
            elapsed_ms: 1,
        }
    }

    #[test]
    fn says_what_the_probe_recommends_and_why() {
        let found = verdict(&report(Some(config::Accelerator::Tcg)));
        assert_eq!(found.accelerator, Accelerator::Emulation);
        assert_eq!(found.cpu_model.as_deref(), Some("max"));
        assert_eq!(
            found.message,
            "QEMU 7.2 translates guests' instructions; KVM: slow; QEMU with KVM: unusable: not tried"
        );
        assert_eq!(
            verdict(&report(Some(config::Accelerator::Kvm))).accelerator,
            Accelerator::Kvm
        );
        assert_eq!(verdict(&report(None)).accelerator, Accelerator::None);
    }

    #[tokio::test]
    async fn a_missing_program_is_an_answer() {
        let found = probe(&Probe {
            vmm: Path::new("/no/such/paddock-vmm"),
            qemu: Path::new("/no/qemu"),
            deadline: Duration::from_secs(1),
            user: None,
        })
        .await;
        assert_eq!(found.accelerator, Accelerator::None);
        assert!(
            found.message.contains("/no/such/paddock-vmm"),
            "{}",
            found.message
        );
    }
}
