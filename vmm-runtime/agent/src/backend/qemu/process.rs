//! One `paddock-vmm`: started, followed, taken over.

use super::{measure, run_folder::RunFolder};
use crate::{
    backend::{Monitor, Teller, Told},
    instance::{
        core::{End, Failure, Guest, Pause},
        status,
    },
};
use futures::FutureExt;
use paddock_vmm::{
    api::{EndReason, Outcome, PauseReason, RunResult, State, Status, StopStep},
    client::VmmClient,
};
use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::unix::AsyncFd,
    process::{Child, Command},
};
use tracing::debug;

/// From one try to reach the process to the next.
const CONNECT_EACH: Duration = Duration::from_millis(20);

/// A process that is followed.
pub enum Process {
    /// Started by this agent.
    Child(Box<Child>),
    /// Started by an earlier one: a pidfd.
    Adopted(AsyncFd<OwnedFd>),
}

impl Process {
    /// Takes a process over by its pidfd.
    ///
    /// # Errors
    /// When the pidfd cannot be waited for.
    pub fn adopt(pidfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an OwnedFd keeps its descriptor open and the same until it is dropped, together with the AsyncFd.
        let pidfd =
            unsafe { AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE) }?;
        Ok(Self::Adopted(pidfd))
    }

    async fn exited(&mut self) {
        match self {
            // An error means that there is no such child any more.
            Self::Child(child) => {
                let _ = child.wait().await;
            }
            Self::Adopted(pidfd) => {
                let _ = pidfd.readable().await;
            }
        }
    }
}

/// Starts `paddock-vmm`. It outlives the agent: it has a session of its own from the start, so that what ends the
/// agent's does not end it, and none of its descriptors lead to the agent.
///
/// # Errors
/// When the program cannot be started.
pub fn spawn(vmm: &Path, config: &Path, cgroup: &Path, folder: &RunFolder) -> io::Result<Child> {
    let log = folder.log()?;
    let mut command = std::process::Command::new(vmm);
    command
        .arg("run")
        .arg("--config")
        .arg(config)
        .arg("--cgroup")
        .arg(cgroup)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: between fork and exec only this runs: one system call, which allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    for name in ["PATH", "PADDOCK_LOG"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    Command::from(command).kill_on_drop(false).spawn()
}

/// Follows a process to its end.
pub fn follow(mut process: Process, folder: RunFolder, teller: Teller) -> Monitor {
    async move {
        let client = VmmClient::for_run_directory(folder.path());
        tokio::select! {
            () = process.exited() => {}
            () = listen(&client, &teller) => {}
            () = measure::run(&folder, &teller) => {}
        }
        measure::last(&folder, &teller).await;
        let end = end(folder.result().as_ref());
        teller.tell(Told::Exited(end)).await;
    }
    .boxed()
}

/// Tells what the process tells, over one connection after the other, for ever.
async fn listen(client: &VmmClient, teller: &Teller) {
    let mut last = None;
    loop {
        match client.events().await {
            Err(error) => debug!(%error, "not connected"),
            Ok(mut events) => loop {
                match events.next().await {
                    Ok(Some(status)) => {
                        let guest = guest(&status);
                        if guest.is_some() && guest != last {
                            last.clone_from(&guest);
                            if let Some(guest) = guest {
                                teller.tell(Told::GuestIs(guest)).await;
                            }
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        debug!(%error, "the connection broke");
                        break;
                    }
                }
            },
        }
        tokio::time::sleep(CONNECT_EACH).await;
    }
}

/// What a status says of the guest; nothing while it is being stopped.
#[must_use]
pub fn guest(status: &Status) -> Option<Guest> {
    Some(match status.state {
        State::Created | State::Starting => Guest::Starting,
        State::Running => Guest::Running,
        State::Paused => Guest::Paused(match status.pause_reason {
            None | Some(PauseReason::Requested) => Pause::Requested,
            Some(PauseReason::NoSpace) => {
                Pause::Trouble(Failure::new("PoolFull", status.message.clone()))
            }
            Some(PauseReason::Qemu) => {
                Pause::Trouble(Failure::new("HypervisorFailed", status.message.clone()))
            }
        }),
        State::Stopping | State::Stopped | State::Failed => return None,
    })
}

/// How a process ended, by the result that it left.
#[must_use]
pub fn end(result: Option<&RunResult>) -> End {
    let Some(result) = result else {
        return End::Crashed;
    };
    match result.outcome {
        Outcome::GuestPowerOff => End::GuestPowerOff,
        Outcome::Stopped => End::Stopped(match result.stop_step {
            Some(StopStep::PowerButton) => status::POWER_BUTTON,
            Some(StopStep::Quit) => status::QUIT,
            Some(StopStep::Kill) | None => status::KILL,
        }),
        Outcome::Failed => {
            let reason = match result.reason {
                EndReason::DiskInUse => "DiskInUse",
                EndReason::DiskTooLargeForBus => "DiskTooLargeForBus",
                EndReason::ParentNotFound => "ParentNotFound",
                EndReason::ParentChanged => "ParentChanged",
                EndReason::UndoDiskNotFound => "UndoDiskNotFound",
                EndReason::PoolFull => "PoolFull",
                EndReason::DiskNotOpened => "DiskNotOpened",
                EndReason::DiskNotFlushed => "DiskNotFlushed",
                EndReason::KernelNotRead => "ImageNotFound",
                EndReason::TapNotOpened => "NetworkUnavailable",
                EndReason::QemuExited => "HypervisorCrashed",
                EndReason::GuestPanicked => "GuestPanicked",
                _ => "HypervisorFailed",
            };
            End::Failed(Failure::new(reason, result.message.clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_leads_a_session_of_its_own() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let record = super::super::run_folder::Record {
            namespace: "t".into(),
            name: "a".into(),
            generation: 1,
            config_revision: "c".into(),
            restart_token: None,
            at: String::new(),
            accelerator: paddock_crds::host::Accelerator::Emulation,
            user: 0,
            adapters: vec![],
            dhcp: String::new(),
            version: 1,
        };
        let folder = super::super::run_folder::RunFolders::below(dir.path())
            .unwrap()
            .of("a-1")
            .unwrap();
        folder.begin(&record).unwrap();
        let (program, told) = (dir.path().join("vmm"), dir.path().join("told"));
        // "run --config FILE": the session is the sixth word of stat.
        std::fs::write(
            &program,
            "#!/bin/sh\ncut -d' ' -f6 /proc/$$/stat > \"$3\"\n",
        )
        .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = spawn(&program, &told, dir.path(), &folder).unwrap();
        let pid = child.id().unwrap();
        assert!(child.wait().await.unwrap().success());
        let session = std::fs::read_to_string(&told).unwrap();
        assert_eq!(session.trim(), pid.to_string());
    }

    fn result(json: &str) -> RunResult {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_end_without_a_result_is_a_crash() {
        assert_eq!(end(None), End::Crashed);
    }

    #[test]
    fn ends_are_what_the_result_says() {
        let at = r#""message":"m","resets":0,"time":"2026-01-02T03:04:05Z""#;
        for (json, expected) in [
            (
                format!(r#"{{"outcome":"GuestPowerOff","reason":"GuestPowerOff",{at}}}"#),
                End::GuestPowerOff,
            ),
            (
                format!(
                    r#"{{"outcome":"Stopped","stopStep":"Quit","reason":"StopRequested",{at}}}"#
                ),
                End::Stopped("Quit"),
            ),
            (
                format!(r#"{{"outcome":"Failed","reason":"QemuExited",{at}}}"#),
                End::Failed(Failure::new("HypervisorCrashed", "m")),
            ),
            (
                format!(r#"{{"outcome":"Failed","reason":"DiskInUse",{at}}}"#),
                End::Failed(Failure::new("DiskInUse", "m")),
            ),
            (
                format!(r#"{{"outcome":"Failed","reason":"PoolFull",{at}}}"#),
                End::Failed(Failure::new("PoolFull", "m")),
            ),
            (
                format!(r#"{{"outcome":"Failed","reason":"FromTheFuture",{at}}}"#),
                End::Failed(Failure::new("HypervisorFailed", "m")),
            ),
        ] {
            assert_eq!(end(Some(&result(&json))), expected, "{json}");
        }
    }
}
