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
/// When it cannot be frozen or thawed, or a process not be killed. It is thawed all the same.
pub(super) async fn kill(path: &Path) -> io::Result<()> {
    kill_frozen(path, |state| fs::read_to_string(state)).await
}

/// `look` reads the state.
async fn kill_frozen(path: &Path, look: impl Fn(&Path) -> io::Result<String>) -> io::Result<()> {
    let state = path.join(STATE_FILE);
    // Before it is frozen: a write that fails may have done it.
    let thaw = Thaw(&state);
    fs::write(&state, "FROZEN")?;
    for _ in 0..LOOKS {
        if look(&state)?.trim() == "FROZEN" {
            break;
        }
        tokio::time::sleep(LOOK_EACH).await;
    }
    let killed = kill_all(path);
    // Only a thawed process dies.
    thaw.now()?;
    killed
}

/// Thaws a cgroup when it goes: what stays frozen neither runs nor dies, even killed, and every kill after it waits for it.
struct Thaw<'a>(&'a Path);

impl Thaw<'_> {
    fn now(self) -> io::Result<()> {
        let thawed = self.write();
        std::mem::forget(self);
        thawed
    }

    fn write(&self) -> io::Result<()> {
        fs::write(self.0, "THAWED")
    }
}

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        // Whoever sees the error that led here tries again.
        let _ = self.write();
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn what_was_frozen_is_thawed_whatever_fails() {
        let dir = tempfile::tempdir().unwrap();
        let state = || fs::read_to_string(dir.path().join(STATE_FILE)).unwrap();
        let unreadable = |path: &Path| {
            assert_eq!(fs::read_to_string(path).unwrap(), "FROZEN");
            Err(io::Error::other("no state"))
        };
        let error = kill_frozen(dir.path(), unreadable).await.unwrap_err();
        assert_eq!(
            (error.to_string(), state()),
            ("no state".into(), "THAWED".into())
        );
        // Nobody waits for its end any more.
        let freezing = |_: &Path| Ok("FREEZING".to_owned());
        assert!(kill_frozen(dir.path(), freezing).now_or_never().is_none());
        assert_eq!(state(), "THAWED");
        kill(dir.path()).await.unwrap();
        assert_eq!(state(), "THAWED");
    }
}
