//! Commands over the control socket.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::Supervisor;
use crate::protocol::{Channel, Reply, Request};

/// Most conversations at once.
const MAX_CONVERSATIONS: usize = 64;

/// Serves commands, for ever.
pub fn listen(supervisor: &Arc<Supervisor>, listener: &UnixListener) -> Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!("control.sock: {error}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONVERSATIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            let _ = Channel::new(stream).send(
                &Reply::Error(format!(
                    "{MAX_CONVERSATIONS} commands run already; wait for one to end"
                )),
                &[],
            );
            continue;
        }
        let (supervisor, open) = (Arc::clone(supervisor), Arc::clone(&open));
        std::thread::Builder::new()
            .name("command".into())
            .spawn(move || {
                if let Err(error) = converse(&supervisor, stream) {
                    tracing::debug!("{error:#}");
                }
                open.fetch_sub(1, Ordering::Relaxed);
            })?;
    }
    Ok(())
}

fn converse(supervisor: &Supervisor, stream: UnixStream) -> Result<()> {
    let mut channel = Channel::new(stream);
    while let Some(request) = channel.receive::<Request>()? {
        tracing::info!("command {}", name_of(&request));
        let answer = answer(supervisor, &request, &mut channel);
        let (reply, descriptors) = answer.unwrap_or_else(|error| {
            tracing::info!("failed: {error:#}");
            (Reply::Error(format!("{error:#}")), Vec::new())
        });
        let borrowed: Vec<_> = descriptors
            .iter()
            .map(|descriptor| descriptor.as_fd())
            .collect();
        channel.send(&reply, &borrowed)?;
    }
    Ok(())
}

fn answer(
    supervisor: &Supervisor,
    request: &Request,
    channel: &mut Channel,
) -> Result<(Reply, Vec<Arc<OwnedFd>>)> {
    Ok(match request {
        Request::Up(request) => {
            let missing = supervisor.bring_up(request, &mut |text| {
                tracing::info!("{text}");
                // Whoever asked may have gone; the work goes on.
                let _ = channel.send(&Reply::Progress(text), &[]);
            })?;
            for sentence in &missing {
                tracing::warn!("missing: {sentence}");
            }
            (Reply::Up { missing }, Vec::new())
        }
        Request::Status => (Reply::Status(supervisor.status()), Vec::new()),
        Request::Enter { target } => {
            let (process, descriptor) = supervisor.enter(target)?;
            (Reply::Enter { process }, vec![descriptor])
        }
        Request::Console { namespace, name } => {
            let (stream, log, host) = supervisor.console(namespace, name)?;
            let descriptors = std::iter::once(OwnedFd::from(stream))
                .chain(log.map(OwnedFd::from))
                .map(Arc::new)
                .collect();
            (Reply::Console { host }, descriptors)
        }
        Request::Fault(fault) => (Reply::Done(supervisor.fault(fault)?), Vec::new()),
    })
}

fn name_of(request: &Request) -> String {
    match request {
        Request::Up(_) => "up".into(),
        Request::Status => "status".into(),
        Request::Enter { target } => format!("enter {target}"),
        Request::Console { namespace, name } => format!("console {namespace}/{name}"),
        Request::Fault(fault) => format!("fault {fault:?}"),
    }
}

impl Supervisor {
    /// A descriptor to enter `target` by, and whether it is a process.
    fn enter(&self, target: &str) -> Result<(bool, Arc<OwnedFd>)> {
        Ok(match target {
            "lab" => (
                true,
                Arc::new(pidfd_open(getpid(), PidfdFlags::empty()).context("pidfd")?),
            ),
            "api" => (false, Arc::clone(&self.networks.api)),
            "operator" => (false, Arc::clone(&self.networks.operator)),
            "hollow" => (false, Arc::clone(&self.networks.hollow)),
            host => match self.namespaced(host) {
                Ok(host) => (true, host.pidfd()?),
                Err(error) => bail!("{error:#}; besides hosts: lab, api, operator, hollow"),
            },
        })
    }
}
