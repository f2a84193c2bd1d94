//! One agent per host, and a token that tells an agent's restart from a reboot of the host.
//!
//! The run folder lies on a tmpfs, so the token goes with the boot; the boot id in it makes that certain where the
//! folder outlives a boot. The lock is held for the life of the process: a second agent refuses to start.

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const LOCK_FILE: &str = "agent.lock";
const SESSION_FILE: &str = "session";
/// Upper bound of the session file's size in bytes; a real one has about 120.
const MAX_SESSION_BYTES: u64 = 4096;

/// This boot's session of the agent, and the lock that makes it the only one.
#[derive(Debug)]
pub struct Session {
    token: String,
    #[expect(dead_code, reason = "the lock lives as long as its descriptor")]
    lock: File,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    token: String,
    boot_id: String,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Another agent runs.
    #[error(
        "{}: held by another paddock-agent on this host; one host has one agent: stop the other one first", .0.display()
    )]
    AnotherAgent(PathBuf),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Session {
    /// Takes the lock in `run_dir`, made if it is missing (mode 0700), and reads this boot's token; `new_token` becomes
    /// it when there is none.
    ///
    /// # Errors
    /// When another agent holds the lock, or the folder cannot be used.
    pub fn open(run_dir: &Path, boot_id: &str, new_token: &str) -> Result<Self, SessionError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| SessionError::Io { path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run_dir)
            .map_err(failed(run_dir))?;
        let lock_path = run_dir.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(SessionError::AnotherAgent(lock_path));
            }
            Err(error) => return Err(failed(&lock_path)(error.into())),
        }
        let path = run_dir.join(SESSION_FILE);
        if let Some(stored) = read(&path).map_err(failed(&path))?
            && stored.boot_id == boot_id
            && !stored.token.is_empty()
        {
            return Ok(Self {
                token: stored.token,
                lock,
            });
        }
        let stored = Stored {
            token: new_token.to_owned(),
            boot_id: boot_id.to_owned(),
        };
        write(&path, &stored).map_err(failed(&path))?;
        Ok(Self {
            token: stored.token,
            lock,
        })
    }

    /// The token, the same for every agent of this boot.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }
}

/// What is no session of ours counts as none: the host then keeps silent until it was fenced, which is always safe.
fn read(path: &Path) -> io::Result<Option<Stored>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_SESSION_BYTES).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

fn write(path: &Path, stored: &Stored) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&serde_json::to_vec(stored)?)?;
    drop(file);
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_keeps_the_token_and_a_reboot_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let first = Session::open(&run, "boot-1", "a").unwrap();
        assert_eq!(first.token(), "a");
        drop(first);
        let second = Session::open(&run, "boot-1", "b").unwrap();
        assert_eq!(second.token(), "a");
        drop(second);
        let third = Session::open(&run, "boot-2", "c").unwrap();
        assert_eq!(third.token(), "c");
    }

    #[test]
    fn a_second_agent_is_refused_while_the_first_lives() {
        let dir = tempfile::tempdir().unwrap();
        let first = Session::open(dir.path(), "boot", "a").unwrap();
        let error = Session::open(dir.path(), "boot", "b").unwrap_err();
        assert!(matches!(&error, SessionError::AnotherAgent(path) if path.ends_with("agent.lock")));
        drop(first);
        assert_eq!(Session::open(dir.path(), "boot", "b").unwrap().token(), "a");
    }

    #[test]
    fn a_damaged_token_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("session"), b"{\"token\":").unwrap();
        assert_eq!(
            Session::open(dir.path(), "boot", "fresh").unwrap().token(),
            "fresh"
        );
    }
}
