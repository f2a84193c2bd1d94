//! The command line `paddock-vmm probe`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};

use super::{ProbeOptions, QemuUser, kvm, probe};

/// Finds out what can run guests on this host, by running some.
#[derive(Clone, Debug, clap::Args)]
pub struct ProbeArguments {
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Seconds that the probe may take, 1 to 600.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    deadline: u32,
    /// The QEMU to try.
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// The user id that QEMU runs as (default: the caller's).
    #[arg(long, value_name = "UID", requires = "qemu_gid")]
    qemu_uid: Option<u32>,
    /// The group id that QEMU runs as.
    #[arg(long, value_name = "GID", requires = "qemu_uid")]
    qemu_gid: Option<u32>,
    /// Run the bare guests in KVM alone, without a deadline, and write what happens line by line. The probe starts
    /// itself with this.
    #[arg(long, hide = true)]
    kvm_only: bool,
}

impl ProbeArguments {
    /// Probes and prints the report. Success means that the probe ran, not that anything is usable.
    pub fn run(&self) -> io::Result<ExitCode> {
        // A QEMU that aborts here is an answer; nobody wants its core file.
        setrlimit(
            Resource::Core,
            Rlimit {
                current: Some(0),
                maximum: Some(0),
            },
        )?;
        if self.kvm_only {
            kvm::run_guests(&mut io::stdout().lock())?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut options = ProbeOptions::new(self.qemu.clone(), std::env::current_exe()?);
        options.qemu_user = match (self.qemu_uid, self.qemu_gid) {
            (Some(uid), Some(gid)) => Some(QemuUser { uid, gid }),
            _ => None,
        };
        let report = probe(&options, Duration::from_secs(self.deadline.into()));
        let mut stdout = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut stdout, &report)?;
            writeln!(stdout)?;
        } else {
            writeln!(stdout, "{report}")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
