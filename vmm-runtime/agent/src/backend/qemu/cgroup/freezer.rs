//! Killing everything in a cgroup of the first version: frozen, nothing can fork while it is killed one by one.

use super::{CgroupError, folders, pids};
use rustix::process::{Pid, Signal, kill_process};
use std::{fs, io, path::Path, time::Duration};

/// Freezes and thaws a cgroup and those in it.
pub(super) const STATE_FILE: &str = "freezer.state";

/// From one look at the state to the next.
const LOOK_EACH: Duration = Duration::from_millis(5);
/// Looks at the state before what is not frozen yet is killed all the same: one in uninterruptible sleep may stay so.
const LOOKS: u32 = 200;

/// Kills every process of a cgroup and of those in it.
///
/// # Errors
/// When it cannot be frozen or thawed, or a process not be killed.
pub(super) async fn kill(path: &Path) -> io::Result<()> {
    let state = path.join(STATE_FILE);
    fs::write(&state, "FROZEN")?;
    for _ in 0..LOOKS {
        if fs::read_to_string(&state)?.trim() == "FROZEN" {
            break;
        }
        tokio::time::sleep(LOOK_EACH).await;
    }
    let killed = kill_all(path);
    // Only a thawed process dies.
    fs::write(&state, "THAWED")?;
    killed
}

fn kill_all(path: &Path) -> io::Result<()> {
    // One that this pid namespace does not see is written as 0.
    let pids = pids(path);
    for pid in pids.iter().filter_map(|pid| pid.parse().ok()) {
        match Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL)) {
            Some(Err(error)) if error != rustix::io::Errno::SRCH => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a cgroup or one in it has a process.
///
/// # Errors
/// When that cannot be told.
pub(super) fn populated(path: &Path) -> Result<bool, CgroupError> {
    let procs = path.join("cgroup.procs");
    let text = fs::read_to_string(&procs).map_err(super::failed(&procs))?;
    if !text.is_empty() {
        return Ok(true);
    }
    for folder in folders(path)? {
        if populated(&folder)? {
            return Ok(true);
        }
    }
    Ok(false)
}
