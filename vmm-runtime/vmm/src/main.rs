//! `paddock-vmm`: runs one virtual machine.
//!
//! `run` takes a configuration, runs its machine to its end and leaves `result.json` in the run directory. The exit
//! status is 0 when the machine ended in an orderly way, 1 when it failed (the result says how), 2 when it could not
//! begin (the error output says why; there is no result).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use jiff::Timestamp;
use paddock_vmm::accelerator::ProbeArguments;
use paddock_vmm::api::{EndReason, Outcome, RunResult};
use paddock_vmm::config::{MAX_CONFIG_BYTES, VmConfig};
use paddock_vmm::identity::Identity;
use paddock_vmm::run_directory::RunDirectory;
use paddock_vmm::supervisor::supervise;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(name = "paddock-vmm", version, about = "Runs one virtual machine")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a machine to its end
    Run {
        /// The machine's configuration (JSON)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// A cgroup (its folder) to join before anything else
        #[arg(long, value_name = "DIR")]
        cgroup: Option<PathBuf>,
    },
    /// Find out what can run guests on this host
    Probe(ProbeArguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { config, cgroup } => run(&config, cgroup.as_deref()),
        Command::Probe(arguments) => arguments.run().context("probe"),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("paddock-vmm: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(config: &Path, cgroup: Option<&Path>) -> anyhow::Result<ExitCode> {
    if let Some(cgroup) = cgroup {
        let procs = cgroup.join("cgroup.procs");
        std::fs::write(&procs, "0").with_context(|| format!("join cgroup {}", procs.display()))?;
    }
    // Out of the starter's session, so that what ends that does not end the machine. Fails for one who leads a group
    // already: the agent gives it a session, a shell a group that nothing of the shell ends.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // The guest's memory belongs in no core file. QEMU inherits the limit.
    rustix::process::setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )
    .context("forbid core files")?;
    keep_inherited_descriptors_from_children()?;
    start_log();
    abort_on_panic();

    let config = read_config(config)?;
    if !config.run_directory.is_absolute() {
        bail!(
            "runDirectory is {}; it must be an absolute path",
            config.run_directory.display()
        );
    }
    let directory = RunDirectory::take(&config.run_directory)?;
    Identity::of_this_process()
        .and_then(|me| me.write(directory.path()))
        .context("write who this is")?;
    let config = match config.validate() {
        Ok(config) => config,
        Err(error) => {
            let result = RunResult {
                outcome: Outcome::Failed,
                stop_step: None,
                reason: EndReason::InvalidConfig,
                message: error.to_string(),
                resets: 0,
                time: Timestamp::now(),
            };
            directory.write_result(&result)?;
            bail!("{error}");
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    // On the main thread, which QEMU's life is tied to.
    let result = runtime.block_on(supervise(config, directory))?;
    Ok(match result.outcome {
        Outcome::Failed => ExitCode::FAILURE,
        Outcome::Stopped | Outcome::GuestPowerOff => ExitCode::SUCCESS,
    })
}

fn read_config(path: &Path) -> anyhow::Result<VmConfig> {
    let read = || -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        File::open(path)?
            .take(MAX_CONFIG_BYTES as u64 + 1)
            .read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().with_context(|| format!("read {}", path.display()))?;
    VmConfig::from_json(&text).with_context(|| path.display().to_string())
}

/// Whatever descriptors this process was born with are not for QEMU. Called before anything is opened.
fn keep_inherited_descriptors_from_children() -> anyhow::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd").context("list the open descriptors")? {
        let name = entry.context("list the open descriptors")?.file_name();
        let Some(fd @ 3..) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // SAFETY: it was open a moment ago, and no other thread runs that could have closed it since.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl_setfd(fd, FdFlags::CLOEXEC).context("close a descriptor on exec")?;
    }
    Ok(())
}

/// To the error output. `PADDOCK_LOG` chooses what is logged, as `RUST_LOG` does elsewhere.
fn start_log() {
    let filter = EnvFilter::try_from_env("PADDOCK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        // Whoever read the error output may be gone; that must not end the machine.
        .log_internal_errors(false)
        .init();
}

/// A thread that has panicked may have left a request unanswered or a lock held: better to be restarted than to limp.
/// QEMU ends with this process.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
