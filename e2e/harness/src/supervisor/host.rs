//! A host: booted, watched, booted again.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::service::describe;
use crate::backoff::Backoff;
use crate::cgroup::Cgroup;
use crate::folder::LabFolder;
use crate::host_init::{AGENT_REPORT, AgentReport, Boot, LAB_RUN, Order};
use crate::logs::open_log;
use crate::namespaces::spawn_as_init;
use crate::network::links::{lan_port, make_cable, management_port};
use crate::protocol::{HostState, ServiceState, ServiceStatus};

/// A host with namespaces of its own.
pub struct Host {
    /// Its number, which gives its address and its ports.
    pub index: u8,
    boot: Boot,
    hosts_cgroup: Cgroup,
    cgroup: Cgroup,
    log: PathBuf,
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    wanted: bool,
    state: HostState,
    boots: u32,
    boot_id: Option<String>,
    process: Option<HostProcess>,
}

struct HostProcess {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    orders: ChildStdin,
}

impl Host {
    /// Switches it on, and starts a thread that boots it again whenever it ends. `boot` serves all boots but for its identity.
    pub fn start(folder: &LabFolder, index: u8, boot: Boot, hosts: Cgroup) -> Result<Arc<Self>> {
        let inner = Inner {
            wanted: true,
            state: HostState::Booting,
            boots: 0,
            boot_id: None,
            process: None,
        };
        let log = folder.log(&boot.name);
        let host = Arc::new(Self {
            index,
            cgroup: hosts.child(&boot.name),
            hosts_cgroup: hosts,
            boot,
            log,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        });
        let keeper = Arc::clone(&host);
        std::thread::Builder::new()
            .name(host.boot.name.chars().take(15).collect())
            .spawn(move || keeper.keep())?;
        Ok(host)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.boot.name
    }

    fn keep(&self) {
        let mut backoff = Backoff::new();
        loop {
            let mut inner = self.lock();
            while !inner.wanted {
                inner = self.wait(inner, Duration::from_secs(3600));
            }
            inner.state = HostState::Booting;
            drop(inner);
            match self.boot() {
                Ok(mut child) => {
                    backoff.started(Instant::now());
                    self.changed.notify_all();
                    let ended = describe(&child.wait());
                    tracing::info!("{} went down: {ended}", self.name());
                }
                Err(error) => tracing::warn!("{} did not boot: {error:#}", self.name()),
            }
            let mut inner = self.lock();
            inner.process = None;
            inner.state = HostState::Down;
            self.changed.notify_all();
            let until = Instant::now() + backoff.ended(Instant::now());
            while inner.wanted && Instant::now() < until {
                inner = self.wait(inner, until.saturating_duration_since(Instant::now()));
            }
        }
    }

    /// Boots it: what an earlier boot left in memory (control groups) is gone, as after a power cut.
    fn boot(&self) -> Result<Child> {
        self.cgroup.destroy()?;
        self.hosts_cgroup.create_child(self.name())?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("host-init")
            .arg("--cgroup")
            .arg(self.cgroup.path());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(open_log(&self.log)?);
        let mut child = spawn_as_init(command).context("starting host-init")?;
        match self.connect(&mut child) {
            Ok(process) => {
                let mut inner = self.lock();
                inner.process = Some(process);
                inner.state = HostState::Running;
                inner.boots += 1;
                Ok(child)
            }
            Err(error) => {
                let _ = child.kill();
                let ended = describe(&child.wait());
                Err(error.context(format!(
                    "host-init ended with {ended}; see {}",
                    self.log.display()
                )))
            }
        }
    }

    fn connect(&self, child: &mut Child) -> Result<HostProcess> {
        let pid = child.id();
        let pidfd =
            Arc::new(pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("pidfd")?);
        let mut line = String::new();
        let stdout = child.stdout.take().context("no pipe")?;
        BufReader::new(stdout)
            .read_line(&mut line)
            .context("first word of host-init")?;
        if line != "ready\n" {
            bail!("host-init said {line:?} instead of ready");
        }
        make_cable(
            "mgmt",
            &management_port(self.index),
            "mgmt0",
            &pid.to_string(),
        )?;
        make_cable("lan", &lan_port(self.index), "lan0", &pid.to_string())?;
        let boot_id = uuid::Uuid::new_v4().to_string();
        let mut orders = child.stdin.take().context("no pipe")?;
        let boot = Boot {
            boot_id: boot_id.clone(),
            ..self.boot.clone()
        };
        let mut line = serde_json::to_vec(&boot)?;
        line.push(b'\n');
        orders.write_all(&line).context("boot line")?;
        self.lock().boot_id = Some(boot_id);
        Ok(HostProcess { pid, pidfd, orders })
    }

    /// Cuts its power, and waits until nothing of it is left.
    pub fn kill(&self, stay_down: bool) -> Result<()> {
        let mut inner = self.lock();
        let boots = inner.boots;
        match &inner.process {
            Some(process) => {
                pidfd_send_signal(&process.pidfd, Signal::KILL).context("killing the host")?
            }
            None if stay_down => {}
            None => bail!("{} is down already", self.name()),
        }
        inner.wanted &= !stay_down;
        drop(inner);
        self.wait_until(Duration::from_secs(30), |inner| {
            inner.process.is_none() || inner.boots != boots
        })
    }

    /// Switches it on and waits until it is up.
    pub fn switch_on(&self) -> Result<()> {
        self.lock().wanted = true;
        self.changed.notify_all();
        self.wait_until(Duration::from_secs(30), |inner| inner.process.is_some())
    }

    /// Freezes it, or lets it run on.
    pub fn pause(&self, pause: bool) -> Result<()> {
        let mut inner = self.lock();
        if inner.process.is_none() {
            bail!("{} is down", self.name());
        }
        self.cgroup.freeze(pause)?;
        inner.state = if pause {
            HostState::Paused
        } else {
            HostState::Running
        };
        Ok(())
    }

    /// Tells its init what to do with the agent, and waits until it is so.
    pub fn order(&self, order: Order) -> Result<()> {
        let mut line = serde_json::to_vec(&order)?;
        line.push(b'\n');
        match &mut self.lock().process {
            Some(process) => process
                .orders
                .write_all(&line)
                .context("order to the host")?,
            None => bail!("{} is down", self.name()),
        }
        let deadline = Instant::now() + Duration::from_secs(15);
        let mut killed = false;
        loop {
            let report = self.agent_report();
            let done = report.as_ref().is_some_and(|report| match order {
                Order::StopAgent => report.stopped && report.pid.is_none(),
                Order::StartAgent => report.pid.is_some(),
            });
            if done {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "the agent of {} did not follow within 15 s; see `paddock-lab logs {}`",
                    self.name(),
                    self.name()
                );
            }
            if order == Order::StopAgent && left < Duration::from_secs(5) && !killed {
                killed = true;
                let _ = self.signal_agent(Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal to its agent.
    pub fn signal_agent(&self, signal: Signal) -> Result<()> {
        let pid = self.agent_report().and_then(|report| report.pid);
        let pid = pid
            .with_context(|| format!("the agent of {} does not run at the moment", self.name()))?;
        self.signal_inside(pid, signal)
    }

    /// Kills its agent and waits until that process is gone.
    pub fn kill_agent(&self) -> Result<()> {
        let pid = self.agent_report().and_then(|report| report.pid);
        self.signal_agent(Signal::KILL)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.agent_report().is_some_and(|report| report.pid == pid) {
            if Instant::now() > deadline {
                bail!(
                    "the agent of {} did not die within 10 s; is the host paused?",
                    self.name()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Sends a signal to a process by its id on the host.
    pub fn signal_inside(&self, pid: i32, signal: Signal) -> Result<()> {
        let init = self.init_pid()?;
        let outer = outer_pid(init, pid)?
            .with_context(|| format!("no process {pid} on {}", self.name()))?;
        let pidfd = pidfd_open(outer, PidfdFlags::empty())
            .with_context(|| format!("process {pid} on {}", self.name()))?;
        // Asked again, now that it cannot be replaced unnoticed.
        if outer_pid(init, pid)? != Some(outer) {
            bail!("process {pid} on {} ended meanwhile", self.name());
        }
        pidfd_send_signal(pidfd, signal)
            .with_context(|| format!("signal to process {pid} on {}", self.name()))
    }

    /// What its init says of the agent.
    pub fn agent_report(&self) -> Option<AgentReport> {
        let path = self
            .root()
            .ok()?
            .join(LAB_RUN.trim_start_matches('/'))
            .join(AGENT_REPORT);
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Its file system as a path of ours.
    pub fn root(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root", self.init_pid()?)))
    }

    fn init_pid(&self) -> Result<u32> {
        self.lock()
            .process
            .as_ref()
            .map(|process| process.pid)
            .with_context(|| format!("{} is down", self.name()))
    }

    /// Its init, to enter its namespaces by.
    pub fn pidfd(&self) -> Result<Arc<OwnedFd>> {
        let inner = self.lock();
        inner
            .process
            .as_ref()
            .map(|process| Arc::clone(&process.pidfd))
            .with_context(|| format!("{} is down", self.name()))
    }

    /// State, boots and boot id.
    pub fn status(&self) -> (HostState, u32, Option<String>) {
        let inner = self.lock();
        (inner.state, inner.boots, inner.boot_id.clone())
    }

    /// Its agent as a service.
    pub fn agent_status(&self) -> ServiceStatus {
        let report = self.agent_report();
        let stopped = report.as_ref().is_some_and(|report| report.stopped) || !self.lock().wanted;
        let pid = report.as_ref().and_then(|report| report.pid);
        ServiceStatus {
            name: "agent".into(),
            state: match (pid, stopped) {
                (Some(_), _) => ServiceState::Running,
                (None, true) => ServiceState::Stopped,
                (None, false) => ServiceState::Restarting,
            },
            restarts: report.as_ref().map_or(0, |report| report.restarts),
            pid: pid.and_then(|pid| u32::try_from(pid).ok()),
            last_exit: report.and_then(|report| report.last_exit),
            cut: None,
        }
    }

    fn wait_until(&self, limit: Duration, done: impl Fn(&Inner) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut inner = self.lock();
        while !done(&inner) {
            if Instant::now() >= deadline {
                bail!(
                    "{} did not change state within {} s; see `paddock-lab logs supervisor`",
                    self.name(),
                    limit.as_secs()
                );
            }
            inner = self.wait(inner, deadline.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, Inner>, limit: Duration) -> MutexGuard<'a, Inner> {
        self.changed
            .wait_timeout(guard, limit)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

/// The process that has the id `inner` in the process-id namespace of `init`, by its id in ours.
fn outer_pid(init: u32, inner: i32) -> Result<Option<Pid>> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = namespace(&init.to_string()).context("the host went down")?;
    for entry in std::fs::read_dir("/proc").context("/proc")? {
        let name = entry.context("/proc")?.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
            continue;
        };
        if innermost_pid(&status) == Some(inner) && namespace(pid).as_ref() == Some(&wanted) {
            return Ok(pid.parse().ok().and_then(Pid::from_raw));
        }
    }
    Ok(None)
}

/// The last number of the line `NSpid:` in the text of a `/proc/PID/status`: its id in its own namespace.
fn innermost_pid(status: &str) -> Option<i32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?
        .split_whitespace()
        .last()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_innermost_id() {
        assert_eq!(
            innermost_pid("Name:\tx\nNSpid:\t4021\t17\t3\nNSpgid:\t1\n"),
            Some(3)
        );
        assert_eq!(innermost_pid("NSpid:\t12\n"), Some(12));
        assert_eq!(innermost_pid("Name:\tx\n"), None);
    }
}
