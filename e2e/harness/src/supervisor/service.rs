//! A process that is kept running.

use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::backoff::Backoff;
use crate::protocol::{ServiceState, ServiceStatus};

/// Starts the process.
pub type Spawn = Box<dyn Fn() -> Result<Child> + Send + Sync>;

/// A supervised process: started anew when it ends, after a pause that grows, until it is halted.
pub struct Service {
    name: String,
    spawn: Spawn,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    wanted: bool,
    process: Option<(u32, OwnedFd)>,
    starts: u32,
    last_exit: Option<String>,
}

impl Service {
    /// Starts it, and a thread that looks after it for as long as the supervisor lives.
    pub fn start(name: &str, spawn: Spawn) -> Result<Arc<Self>> {
        let inner = Inner {
            wanted: true,
            ..Inner::default()
        };
        let service = Arc::new(Self {
            name: name.to_owned(),
            spawn,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        });
        let keeper = Arc::clone(&service);
        std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .stack_size(256 << 10)
            .spawn(move || keeper.keep())?;
        Ok(service)
    }

    fn keep(&self) {
        let mut backoff = Backoff::new();
        loop {
            let mut inner = self.lock();
            while !inner.wanted {
                inner = self.wait(inner, Duration::from_secs(3600));
            }
            let spawned = (self.spawn)().and_then(|child| {
                let pidfd =
                    pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).context("pidfd")?;
                Ok((child, pidfd))
            });
            match spawned {
                Ok((mut child, pidfd)) => {
                    inner.process = Some((child.id(), pidfd));
                    inner.starts += 1;
                    drop(inner);
                    self.changed.notify_all();
                    backoff.started(Instant::now());
                    let ended = describe(&child.wait());
                    tracing::info!("{} ended: {ended}", self.name);
                    inner = self.lock();
                    inner.process = None;
                    inner.last_exit = Some(ended);
                }
                Err(error) => {
                    tracing::warn!("{} could not be started: {error:#}", self.name);
                    inner.last_exit = Some(format!("{error:#}"));
                }
            }
            self.changed.notify_all();
            let until = Instant::now() + backoff.ended(Instant::now());
            while inner.wanted && Instant::now() < until {
                inner = self.wait(inner, until.saturating_duration_since(Instant::now()));
            }
        }
    }

    /// Sends a signal to the process that runs now.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match &self.lock().process {
            Some((_, pidfd)) => {
                pidfd_send_signal(pidfd, signal).with_context(|| format!("signal to {}", self.name))
            }
            None => bail!("{} does not run at the moment", self.name),
        }
    }

    /// Kills it and waits until that process is gone; the next one follows by itself.
    pub fn kill(&self) -> Result<()> {
        let starts = self.lock().starts;
        self.signal(Signal::KILL)?;
        self.wait_until(Duration::from_secs(10), |inner| {
            inner.process.is_none() || inner.starts != starts
        })
    }

    /// Ends it with `signal`, with SIGKILL after 10 s, and leaves it so.
    pub fn halt(&self, signal: Signal) -> Result<()> {
        self.lock().wanted = false;
        if self.lock().process.is_some() {
            self.signal(signal)?;
        }
        if self
            .wait_until(Duration::from_secs(10), |inner| inner.process.is_none())
            .is_err()
        {
            self.signal(Signal::KILL)?;
        }
        self.wait_until(Duration::from_secs(10), |inner| inner.process.is_none())
    }

    /// Starts it again after [`Self::halt`], and waits until it runs.
    pub fn resume(&self) -> Result<()> {
        self.lock().wanted = true;
        self.changed.notify_all();
        self.wait_until(Duration::from_secs(10), |inner| inner.process.is_some())
    }

    /// What it is doing.
    pub fn status(&self) -> ServiceStatus {
        let inner = self.lock();
        ServiceStatus {
            name: self.name.clone(),
            state: match (&inner.process, inner.wanted) {
                (Some(_), _) => ServiceState::Running,
                (None, true) => ServiceState::Restarting,
                (None, false) => ServiceState::Stopped,
            },
            restarts: inner.starts.saturating_sub(1),
            pid: inner.process.as_ref().map(|(pid, _)| *pid),
            last_exit: inner.last_exit.clone(),
            cut: None,
        }
    }

    fn wait_until(&self, limit: Duration, done: impl Fn(&Inner) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut inner = self.lock();
        while !done(&inner) {
            if Instant::now() >= deadline {
                bail!(
                    "{} did not change state within {} s; last end: {:?}",
                    self.name,
                    limit.as_secs(),
                    inner.last_exit
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

/// How a process ended, for people.
pub fn describe(status: &std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("unknown: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sleeper() -> Arc<Service> {
        Service::start(
            "sleeper",
            Box::new(|| Ok(Command::new("sleep").arg("600").spawn()?)),
        )
        .unwrap()
    }

    #[test]
    fn what_is_killed_comes_back() {
        let service = sleeper();
        service
            .wait_until(Duration::from_secs(10), |inner| inner.process.is_some())
            .unwrap();
        let first = service.status().pid.unwrap();
        service.kill().unwrap();
        service
            .wait_until(Duration::from_secs(10), |inner| inner.process.is_some())
            .unwrap();
        let status = service.status();
        assert_ne!(status.pid, Some(first));
        assert_eq!((status.state, status.restarts), (ServiceState::Running, 1));
        assert_eq!(status.last_exit.as_deref(), Some("signal: 9 (SIGKILL)"));
        service.halt(Signal::TERM).unwrap();
    }

    #[test]
    fn what_is_halted_stays_so_until_resumed() {
        let service = sleeper();
        service
            .wait_until(Duration::from_secs(10), |inner| inner.process.is_some())
            .unwrap();
        service.halt(Signal::TERM).unwrap();
        assert_eq!(service.status().state, ServiceState::Stopped);
        assert!(
            service
                .kill()
                .unwrap_err()
                .to_string()
                .contains("does not run")
        );
        service.resume().unwrap();
        assert_eq!(service.status().state, ServiceState::Running);
        service.halt(Signal::KILL).unwrap();
        assert_eq!(
            service.status().last_exit.as_deref(),
            Some("signal: 9 (SIGKILL)")
        );
    }
}
