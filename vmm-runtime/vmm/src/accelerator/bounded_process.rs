//! Runs a process that may hang, for so long and no longer.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, set_parent_process_death_signal,
};

/// What is kept of each output; the rest is read and dropped, so that the process does not block.
const OUTPUT_LIMIT: u64 = 64 * 1024;
/// How long a killed process may take to be gone. The kernel holds on to one that is stuck in a driver.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal, not one of ours.
    Signaled(i32),
    /// Killed at the deadline.
    TimedOut,
    /// Killed at the deadline, and still there a second later.
    Stuck,
}

impl fmt::Display for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Exited(status) => write!(formatter, "exited with status {status}"),
            End::Signaled(signal) => write!(formatter, "ended by signal {signal}"),
            End::TimedOut => formatter.write_str("was killed at its deadline"),
            End::Stuck => {
                formatter.write_str("was killed at its deadline and is stuck in the kernel")
            }
        }
    }
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> End {
        match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, signal) => End::Signaled(signal.unwrap_or_default()),
        }
    }
}

/// What a process did.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) end: End,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// Runs `command` (its standard input is the caller's to set) until it ends or the deadline passes, then kills it and
/// whatever it started. It dies with the calling thread, too.
pub(super) fn run(command: &mut Command, deadline: Instant) -> io::Result<Outcome> {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    // SAFETY: between fork and exec the closure makes one system call (prctl) and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let mut child = command.spawn()?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let end = match wait(&mut child, deadline) {
        Ok(end) => end,
        Err(error) => {
            kill(&child);
            return Err(error);
        }
    };
    // A descendant that left the group could hold a pipe open: its output is not worth a wait.
    let limit = Instant::now() + KILL_LIMIT;
    let rest = |output: Receiver<Vec<u8>>| {
        output
            .recv_timeout(limit.saturating_duration_since(Instant::now()))
            .unwrap_or_default()
    };
    Ok(Outcome {
        end,
        stdout: rest(stdout),
        stderr: rest(stderr),
    })
}

fn collect(stream: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    if let Some(mut stream) = stream {
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            // What arrived before an error is worth having.
            let _ = (&mut stream).take(OUTPUT_LIMIT).read_to_end(&mut kept);
            let _ = io::copy(&mut stream, &mut io::sink());
            let _ = sender.send(kept);
        });
    }
    receiver
}

fn wait(child: &mut Child, deadline: Instant) -> io::Result<End> {
    if gone_by(child, deadline)? {
        return Ok(child.wait()?.into());
    }
    kill(child);
    if gone_by(child, Instant::now() + KILL_LIMIT)? {
        child.wait()?;
        Ok(End::TimedOut)
    } else {
        Ok(End::Stuck)
    }
}

/// Whether the process has ended, waiting until `deadline` for it.
fn gone_by(child: &Child, deadline: Instant) -> io::Result<bool> {
    let pidfd = pidfd_open(pid(child), PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn kill(child: &Child) {
    // It can only be gone already: not waited for, its number is still its own.
    let _ = kill_process_group(pid(child), Signal::KILL);
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Outcome {
        run(
            Command::new("/bin/sh")
                .args(["-c", script])
                .stdin(Stdio::null()),
            Instant::now() + limit,
        )
        .unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn status_and_output_are_told() {
        let outcome = shell("echo out; echo err >&2; exit 7", LONG);
        assert_eq!(outcome.end, End::Exited(7));
        assert_eq!(outcome.stdout, b"out\n");
        assert_eq!(outcome.stderr, b"err\n");
    }

    #[test]
    fn a_signal_is_told() {
        assert_eq!(shell("kill -ABRT $$", LONG).end, End::Signaled(6));
    }

    #[test]
    fn what_hangs_is_killed_with_its_children_and_its_output_kept() {
        // The child of the shell holds the pipes open: only because it is killed too does the output come at once.
        let outcome = shell(
            "echo before; sleep 1000 & sleep 1000",
            Duration::from_millis(300),
        );
        assert_eq!(outcome.end, End::TimedOut);
        assert_eq!(outcome.stdout, b"before\n");
    }

    #[test]
    fn output_is_bounded() {
        let outcome = shell("head -c 1000000 /dev/zero; echo end >&2", LONG);
        assert_eq!(outcome.end, End::Exited(0));
        assert_eq!(outcome.stdout.len() as u64, OUTPUT_LIMIT);
        assert_eq!(outcome.stderr, b"end\n");
    }
}
