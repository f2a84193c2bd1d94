//! A lab for a test: up while the value lives.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::client::Client;
use crate::fault::Fault;
use crate::folder::LabFolder;
use crate::protocol::{Backend, LabStatus};
use crate::start;

/// What a test's lab should consist of. Folders not given are found as `paddock-lab up` finds them.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Hosts with namespaces of their own: host-a, host-b, ….
    pub hosts: u8,
    /// How their agents run guests.
    pub backend: Backend,
    /// Memory each host believes it has, in MiB; `None`: half of the machine's, shared out.
    pub memory_mib: Option<u64>,
    /// The API server alone.
    pub control_plane_only: bool,
    /// Somebody else's cluster instead of an own control plane.
    pub kubeconfig: Option<PathBuf>,
    /// Hosts that are a plain process each: hollow-0001, ….
    pub hollow_hosts: u32,
    /// Whether the operator runs in the lab.
    pub operator: bool,
    /// The lab's folder; `None`: a temporary one.
    pub directory: Option<PathBuf>,
    /// Seconds to wait for readiness.
    pub timeout_seconds: u64,
    /// Folder of paddock-operator, paddock-agent and paddock-vmm; `None`: that of `paddock-lab`.
    pub programs: Option<PathBuf>,
    /// The program `paddock-lab`; `None`: `$PADDOCK_LAB`, else next to the test's own executable or one folder above, as Cargo
    /// puts it.
    pub program: Option<PathBuf>,
    /// Further arguments of `paddock-lab up`.
    pub arguments: Vec<String>,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            hosts: 2,
            backend: Backend::Qemu,
            memory_mib: None,
            control_plane_only: false,
            kubeconfig: None,
            hollow_hosts: 0,
            operator: true,
            directory: None,
            timeout_seconds: 120,
            programs: None,
            program: None,
            arguments: Vec::new(),
        }
    }
}

/// A running lab; dropping it ends it and removes all of it. All calls block.
#[derive(Debug)]
pub struct Lab {
    program: PathBuf,
    programs: Option<PathBuf>,
    folder: LabFolder,
    /// The temporary folder around the lab's.
    _temporary: Option<tempfile::TempDir>,
    over: bool,
}

impl Lab {
    /// Starts a lab and waits until all of it is ready; an error names what is not, with the last lines of the logs, and leaves
    /// nothing behind.
    pub fn start(options: &LabOptions) -> Result<Self> {
        let program = match &options.program {
            Some(program) => program.clone(),
            None => find_program()?,
        };
        let (folder, temporary) = match &options.directory {
            Some(directory) => (LabFolder::new(directory)?, None),
            None => {
                let temporary = tempfile::Builder::new()
                    .prefix("paddock-lab-")
                    .tempdir()
                    .context("temporary folder")?;
                (
                    LabFolder::new(&temporary.path().join("lab"))?,
                    Some(temporary),
                )
            }
        };
        // From here on dropping it cleans up.
        let lab = Self {
            programs: options.programs.clone(),
            program,
            folder,
            _temporary: temporary,
            over: false,
        };
        lab.up_again(options)?;
        Ok(lab)
    }

    /// The lab's folder.
    pub fn directory(&self) -> &Path {
        self.folder.path()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        start::kubeconfig(&self.folder)
    }

    /// Runs a command on a host (or in `lab`, `api`, `operator`) and returns its output and status, also when it failed.
    pub fn exec(&self, host: &str, command: &[&str]) -> Result<Output> {
        let mut exec = self.command("exec");
        exec.arg(host).arg("--").args(command).stdin(Stdio::null());
        exec.output()
            .with_context(|| format!("paddock-lab exec {host}"))
    }

    /// Runs a command on a host and returns its output; that it fails is an error with its messages.
    pub fn exec_ok(&self, host: &str, command: &[&str]) -> Result<String> {
        let output = self.exec(host, command)?;
        if !output.status.success() {
            bail!(
                "`{}` on {host}: {}\n{}",
                command.join(" "),
                output.status,
                text_of(&output)
            );
        }
        String::from_utf8(output.stdout)
            .with_context(|| format!("output of `{}` on {host}", command.join(" ")))
    }

    /// Breaks or mends something; returns once it is so.
    pub fn fault(&self, fault: Fault) -> Result<String> {
        Client::existing(&self.folder)?.fault(fault)
    }

    /// What the lab is doing.
    pub fn status(&self) -> Result<LabStatus> {
        Client::existing(&self.folder)?.status()
    }

    /// Adds a host and waits until it is ready.
    pub fn add_host(&self, name: &str, memory_mib: Option<u64>) -> Result<()> {
        let mut command = self.command("add-host");
        command.arg(name);
        if let Some(memory) = memory_mib {
            command.arg("--memory").arg(memory.to_string());
        }
        let output = command.output().context("paddock-lab add-host")?;
        if !output.status.success() {
            bail!(
                "paddock-lab add-host {name}: {}\n{}",
                output.status,
                text_of(&output)
            );
        }
        Ok(())
    }

    /// The last `lines` lines of every log, for the message of a test that failed.
    pub fn logs(&self, lines: usize) -> String {
        let mut out = Vec::new();
        match crate::logs::show(&self.folder, None, lines, false, &mut out) {
            Ok(()) => String::from_utf8_lossy(&out).into_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    /// Starts what is missing, as a second `paddock-lab up` with these options does.
    pub fn up_again(&self, options: &LabOptions) -> Result<()> {
        let output = self
            .command("up")
            .args(arguments(options))
            .output()
            .context("paddock-lab up")?;
        if !output.status.success() {
            bail!(
                "paddock-lab up: {}\n{}\nLogs:\n{}",
                output.status,
                text_of(&output),
                self.logs(30)
            );
        }
        Ok(())
    }

    /// Ends it; unlike dropping, says what went wrong.
    pub fn down(mut self) -> Result<()> {
        self.over = true;
        start::down(&self.folder, &mut |_| {})
    }

    /// A command line of `paddock-lab` about this lab, to be completed.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.envs(
            self.programs
                .iter()
                .map(|folder| ("PADDOCK_BIN_DIR", folder)),
        );
        command.arg(subcommand).arg("--dir").arg(self.folder.path());
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.over
            && let Err(error) = start::down(&self.folder, &mut |_| {})
        {
            eprintln!(
                "paddock-lab: the lab in {} could not be ended: {error:#}",
                self.folder.path().display()
            );
        }
    }
}

fn arguments(options: &LabOptions) -> Vec<String> {
    let mut arguments = vec![
        format!("--hosts={}", options.hosts),
        format!("--backend={}", options.backend.as_str()),
        format!("--hollow-hosts={}", options.hollow_hosts),
        format!("--timeout={}", options.timeout_seconds),
    ];
    arguments.extend(
        options
            .memory_mib
            .map(|memory| format!("--memory={memory}")),
    );
    arguments.extend(
        options
            .control_plane_only
            .then(|| "--control-plane-only".to_owned()),
    );
    arguments.extend((!options.operator).then(|| "--no-operator".to_owned()));
    arguments.extend(
        options
            .kubeconfig
            .as_ref()
            .map(|file| format!("--kubeconfig={}", file.display())),
    );
    arguments.extend(options.arguments.iter().cloned());
    arguments
}

fn find_program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("PADDOCK_LAB") {
        return Ok(program.into());
    }
    let own = std::env::current_exe().context("path of this executable")?;
    let folders = own.ancestors().skip(1).take(2);
    let found = folders
        .map(|folder| folder.join("paddock-lab"))
        .find(|program| program.is_file());
    found.with_context(|| {
        format!("no paddock-lab next to {} or one folder above; build it (cargo build -p paddock-lab) or set PADDOCK_LAB", own.display())
    })
}

fn text_of(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_arguments() {
        let options = LabOptions {
            operator: false,
            memory_mib: Some(1024),
            hollow_hosts: 3,
            ..LabOptions::default()
        };
        assert_eq!(
            arguments(&options),
            [
                "--hosts=2",
                "--backend=qemu",
                "--hollow-hosts=3",
                "--timeout=120",
                "--memory=1024",
                "--no-operator"
            ]
        );
    }
}
