//! The first process of a lab's host: builds the host's view of the machine, starts the agent, reaps what dies.
//!
//! It knows nothing of the cluster: the supervisor tells it what to run, in lines of JSON on standard input.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::cgroup::{Cgroup, delegate};
use crate::folder::write_private;
use crate::namespaces::{HOST_NAMESPACES, leave};
use crate::network::links;

/// Where the lab's own things are inside a host; never the agent's business.
pub const LAB_RUN: &str = "/run/paddock-lab";
/// In [`LAB_RUN`]: what the agent is doing, as [`AgentReport`].
pub const AGENT_REPORT: &str = "agent.json";
/// A host's state folder, as in production.
pub const STATE: &str = "/var/lib/paddock";

/// The first line: how to boot.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Boot {
    /// The host's name.
    pub name: String,
    /// Identity of this boot, in the form of `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Address of `mgmt0` with its prefix length.
    pub address: String,
    /// What becomes `/var/lib/paddock`.
    pub state: PathBuf,
    /// What becomes the pool `shared`.
    pub shared: PathBuf,
    /// What becomes the pool `images`.
    pub images: PathBuf,
    /// What becomes `/run/paddock-lab/bin`.
    pub programs: PathBuf,
    /// The memory the host believes it has, in MiB.
    pub memory_mib: u64,
    /// The agent's kubeconfig.
    pub kubeconfig: String,
    /// The agent's program and arguments.
    pub agent: Vec<String>,
}

/// A further line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// Stop the agent (SIGTERM) and leave it stopped.
    StopAgent,
    /// Start the agent if it was stopped.
    StartAgent,
}

/// What the agent is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentReport {
    /// Its process id on the host, while it runs.
    pub pid: Option<i32>,
    /// Whether it was stopped on purpose.
    pub stopped: bool,
    /// Times it was started anew since the boot.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<String>,
}

enum Event {
    Exited(Pid, WaitStatus),
    Order(Order),
    SupervisorGone,
}

/// Runs as the first process of a process-id namespace, until the supervisor is gone.
///
/// Says `ready` on standard output once it has namespaces of its own, then waits for its boot line.
pub fn run(cgroup: &Path) -> Result<()> {
    if rustix::process::getpid() != Pid::INIT {
        bail!(
            "host-init is started by `paddock-lab up`, as the first process of a host; it is not a command to run by hand"
        );
    }
    Cgroup::at(cgroup).join()?;
    leave(HOST_NAMESPACES).context("namespaces of the host")?;
    println!("ready");
    io::stdout().flush()?;
    let mut lines = io::stdin().lines();
    let Some(line) = lines.next() else {
        return Ok(());
    };
    let boot: Boot = serde_json::from_str(&line?).context("boot line")?;
    build_host(&boot).with_context(|| format!("booting {}", boot.name))?;
    eprintln!(
        "paddock-lab: {} booted, boot id {}",
        boot.name, boot.boot_id
    );

    let (events, inbox) = mpsc::channel();
    let orders = events.clone();
    drop(lines);
    std::thread::spawn(move || read_orders(&orders));
    let (spawned, spawns) = mpsc::channel();
    std::thread::spawn(move || reap(&events, &spawns));
    let mut agent = Agent {
        command: boot.agent,
        pid: None,
        stopped: false,
        restarts: 0,
        last_exit: None,
        backoff: Backoff::new(),
    };
    let mut start_at = Some(Instant::now());
    loop {
        if start_at.is_some_and(|at| at <= Instant::now()) {
            start_at = agent
                .start()
                .then(|| Instant::now() + agent.backoff.ended(Instant::now()));
            let _ = spawned.send(());
        }
        let wait = start_at.map_or(Duration::MAX, |at| {
            at.saturating_duration_since(Instant::now())
        });
        let event = match start_at {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => inbox.recv_timeout(wait),
        };
        match event {
            Ok(Event::Exited(pid, status)) if agent.pid == Some(pid) => {
                start_at = agent.exited(status).map(|pause| Instant::now() + pause);
            }
            Ok(Event::Exited(..)) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Event::Order(Order::StopAgent)) => {
                start_at = None;
                agent.stop();
            }
            Ok(Event::Order(Order::StartAgent)) => {
                if agent.pid.is_none() {
                    start_at = Some(Instant::now());
                }
                agent.stopped = false;
                agent.report();
            }
            // The end of this process is the end of the host.
            Ok(Event::SupervisorGone) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn read_orders(events: &Sender<Event>) {
    for line in io::stdin().lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(order) => {
                let _ = events.send(Event::Order(order));
            }
            Err(error) => eprintln!("paddock-lab: order {line:?} not understood: {error}"),
        }
    }
    let _ = events.send(Event::SupervisorGone);
}

/// Waits for every process that ends on the host: as its first process we inherit the orphans.
fn reap(events: &Sender<Event>, spawns: &mpsc::Receiver<()>) {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                if events.send(Event::Exited(pid, status)).is_err() {
                    return;
                }
            }
            // Without children there is nothing to wait for until the next one is made.
            Ok(None) | Err(rustix::io::Errno::CHILD) => {
                if spawns.recv().is_err() {
                    return;
                }
            }
            Err(_) => {}
        }
    }
}

struct Agent {
    command: Vec<String>,
    pid: Option<Pid>,
    stopped: bool,
    restarts: u32,
    last_exit: Option<String>,
    backoff: Backoff,
}

impl Agent {
    /// Starts it; returns whether to try again.
    fn start(&mut self) -> bool {
        let Some((program, arguments)) = self.command.split_first() else {
            return false;
        };
        let start = || {
            // Standard output was for the supervisor's handshake; the log is standard error.
            let log = io::stderr().as_fd().try_clone_to_owned()?;
            let mut command = Command::new(program);
            command
                .args(arguments)
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(log);
            // A group of its own: what is sent to the agent's group reaches no VM and not us.
            command.process_group(0).spawn()
        };
        let result: io::Result<Child> = start();
        match result {
            Ok(child) => {
                self.pid = Some(Pid::from_child(&child));
                self.backoff.started(Instant::now());
                self.report();
                false
            }
            Err(error) => {
                self.last_exit = Some(format!("{program}: {error}"));
                eprintln!("paddock-lab: {program} could not be started: {error}");
                self.report();
                true
            }
        }
    }

    /// Notes its end; returns how long to wait before the next start.
    fn exited(&mut self, status: WaitStatus) -> Option<Duration> {
        let how = describe(status);
        self.pid = None;
        if self.stopped {
            eprintln!("paddock-lab: agent stopped: {how}");
            self.last_exit = Some(how);
            self.report();
            return None;
        }
        let pause = self.backoff.ended(Instant::now());
        eprintln!(
            "paddock-lab: agent ended: {how}; next start in {:.1} s",
            pause.as_secs_f32()
        );
        self.last_exit = Some(how);
        self.restarts += 1;
        self.report();
        Some(pause)
    }

    fn stop(&mut self) {
        self.stopped = true;
        if let Some(pid) = self.pid {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        self.report();
    }

    fn report(&self) {
        let report = AgentReport {
            pid: self.pid.map(|pid| pid.as_raw_nonzero().get()),
            stopped: self.stopped,
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
        };
        let path = Path::new(LAB_RUN).join(AGENT_REPORT);
        if let Err(error) = serde_json::to_string(&report)
            .map_err(Into::into)
            .and_then(|text| write_private(&path, &text))
        {
            eprintln!("paddock-lab: {error:#}");
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "unknown".to_owned(),
    }
}

/// The host's mounts, name, link and control group.
fn build_host(boot: &Boot) -> Result<()> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("making mounts private")?;
    // Taken before anything is covered: the folders may lie beneath /run or /var/lib.
    let state = detached(&boot.state)?;
    let shared = detached(&boot.shared)?;
    let images = detached(&boot.images)?;
    let programs = detached(&boot.programs)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None)?;
    mount("sysfs", "/sys", "sysfs", flags, None)?;
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", flags, None)?;
    mount(
        "tmpfs",
        "/run",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=755"),
    )?;
    mount(
        "tmpfs",
        "/var/lib",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=755"),
    )?;

    place(&state, Path::new(STATE))?;
    for pool in ["default", "shared", "images"] {
        folder(&Path::new(STATE).join("pools").join(pool), 0o755)?;
    }
    place(&shared, &Path::new(STATE).join("pools/shared"))?;
    place(&images, &Path::new(STATE).join("pools/images"))?;
    let lab = Path::new(LAB_RUN);
    folder(lab, 0o711)?;
    place(&programs, &lab.join("bin"))?;
    folder(Path::new("/run/lock"), 0o755)?;
    write_private(&lab.join("kubeconfig"), &boot.kubeconfig)?;
    cover(
        &lab.join("boot_id"),
        &format!("{}\n", boot.boot_id),
        "/proc/sys/kernel/random/boot_id",
    )?;
    let real = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    cover(
        &lab.join("meminfo"),
        &meminfo(&real, boot.memory_mib),
        "/proc/meminfo",
    )?;

    rustix::system::sethostname(boot.name.as_bytes()).context("host name")?;
    links::configure_here("mgmt0", &boot.address)?;
    links::ip("link set lan0 up")?;
    // The first processes go into a leaf, so that controllers may be handed to the groups beside it.
    let cgroup = Cgroup::at("/sys/fs/cgroup");
    let init = cgroup.child("init");
    fs::create_dir(init.path()).context("control group init")?;
    init.join()?;
    delegate(cgroup.path());
    Ok(())
}

fn detached(path: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).with_context(|| path.display().to_string())
}

fn place(tree: &OwnedFd, at: &Path) -> Result<()> {
    folder(at, 0o755)?;
    rustix::mount::move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("mounting on {}", at.display()))
}

fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: Option<&std::ffi::CStr>,
) -> Result<()> {
    rustix::mount::mount(source, target, kind, flags, data)
        .with_context(|| format!("mounting {kind} on {target}"))
}

fn folder(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("folder {}", path.display()))
}

/// Covers a file of the kernel with one of ours, readable by all.
fn cover(with: &Path, text: &str, target: &str) -> Result<()> {
    fs::write(with, text).with_context(|| with.display().to_string())?;
    rustix::mount::mount_bind(with, target).with_context(|| format!("covering {target}"))
}

/// The machine's `/proc/meminfo` (proc_meminfo(5)) with total, free and available memory of `mib` MiB, if the machine has as much.
pub fn meminfo(real: &str, mib: u64) -> String {
    let limit = mib.saturating_mul(1024);
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        matches!(name, "MemTotal" | "MemFree" | "MemAvailable")
            .then(|| format!("{:<15} {:>8} kB\n", format!("{name}:"), kib.min(limit)))
    };
    real.lines()
        .map(|text| line(text).unwrap_or_else(|| format!("{text}\n")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_believes_in_its_share_of_memory() {
        let real = "MemTotal:       24669368 kB\nMemFree:          900000 kB\nMemAvailable:   20000000 kB\nHugePages_Total:       0\n";
        assert_eq!(
            meminfo(real, 2048),
            "MemTotal:        2097152 kB\nMemFree:          900000 kB\nMemAvailable:    2097152 kB\nHugePages_Total:       0\n"
        );
    }

    #[test]
    fn orders_keep_their_form() {
        assert_eq!(
            serde_json::to_string(&Order::StopAgent).unwrap(),
            "\"stopAgent\""
        );
    }
}
