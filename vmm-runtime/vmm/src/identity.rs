//! Who a `paddock-vmm` process is, in a form that survives its pid being used again.
//!
//! The process writes `vmm.json` before it listens. An agent that starts later compares pid, start time and boot id
//! before it believes that the process behind the pid is still the one that wrote the file.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::api::API_VERSION;

/// The name of the file in the run directory.
pub const IDENTITY_FILE: &str = "vmm.json";

/// Upper bound of the file's size in bytes; a real one has about 150.
const MAX_IDENTITY_BYTES: u64 = 4096;

/// The content of `vmm.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Process id, in the pid namespace that the agent shares.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`, see proc_pid_stat(5).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The version of the API on `api.sock`.
    pub api_version: String,
}

/// Why an identity could not be read, written or compared.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: expected {expected}, found {found:?}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// What is there, shortened.
        found: String,
    },
    /// The process could not be opened.
    #[error("pidfd_open({pid}): {source}")]
    Pidfd {
        /// The process id.
        pid: i32,
        /// What the system said.
        source: io::Error,
    },
}

impl Identity {
    /// The calling process.
    pub fn of_this_process() -> Result<Self, IdentityError> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let start_time = start_time(pid)?.ok_or_else(|| IdentityError::Malformed {
            path: stat_path(pid),
            expected: "the calling process",
            found: "no such process".to_owned(),
        })?;
        Ok(Identity {
            pid,
            start_time,
            boot_id: boot_id()?,
            api_version: API_VERSION.to_owned(),
        })
    }

    /// Reads `vmm.json` in `run_directory`; `None` when there is none.
    pub fn read(run_directory: &Path) -> Result<Option<Self>, IdentityError> {
        let path = run_directory.join(IDENTITY_FILE);
        let bytes = match read_bounded(&path, MAX_IDENTITY_BYTES) {
            Ok(bytes) => bytes,
            Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        match serde_json::from_slice(&bytes) {
            Ok(identity) => Ok(Some(identity)),
            Err(error) => Err(IdentityError::Malformed {
                path,
                expected: "pid, startTime, bootId and apiVersion",
                found: error.to_string(),
            }),
        }
    }

    /// Writes `vmm.json` in `run_directory`, whole or not at all, mode 0600.
    pub fn write(&self, run_directory: &Path) -> Result<(), IdentityError> {
        let path = run_directory.join(IDENTITY_FILE);
        let write = || -> io::Result<()> {
            let mut text = serde_json::to_vec(self)?;
            text.push(b'\n');
            write_whole(&path, &text)
        };
        write().map_err(|source| IdentityError::Io {
            path: path.clone(),
            source,
        })
    }
}

/// A pidfd of the process that `identity` describes, or `None` when that process is gone (the machine was rebooted, or
/// the pid is free or somebody else's).
///
/// A zombie that nobody has reaped yet is still returned: its pidfd is readable at once.
pub fn open_pidfd_if_same(identity: &Identity) -> Result<Option<OwnedFd>, IdentityError> {
    if identity.boot_id != boot_id()? {
        return Ok(None);
    }
    // `from_raw` takes no negative number.
    let Some(pid) = Pid::from_raw(identity.pid.max(0)) else {
        return Ok(None);
    };
    // Opened first, compared second: if the start time matches now, the pid has belonged to that process since before
    // the identity was written, hence also when the pidfd was opened.
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(errno) => {
            return Err(IdentityError::Pidfd {
                pid: identity.pid,
                source: errno.into(),
            });
        }
    };
    match start_time(identity.pid)? {
        Some(start_time) if start_time == identity.start_time => Ok(Some(pidfd)),
        _ => Ok(None),
    }
}

/// This boot's id.
pub fn boot_id() -> Result<String, IdentityError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = read_bounded(path, 128)?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    if text.is_empty() {
        return Err(IdentityError::Malformed {
            path: path.to_owned(),
            expected: "a boot id",
            found: text,
        });
    }
    Ok(text)
}

fn stat_path(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/stat"))
}

/// Field 22 of `/proc/PID/stat`; `None` when there is no such process.
fn start_time(pid: i32) -> Result<Option<u64>, IdentityError> {
    let path = stat_path(pid);
    let bytes = match read_bounded(&path, MAX_IDENTITY_BYTES) {
        Ok(bytes) => bytes,
        Err(IdentityError::Io { source, .. })
            if source.kind() == io::ErrorKind::NotFound
                || source.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&bytes);
    match parse_start_time(&text) {
        Some(ticks) => Ok(Some(ticks)),
        None => Err(IdentityError::Malformed {
            path,
            expected: "a start time in field 22",
            found: text.chars().take(80).collect(),
        }),
    }
}

/// The command in field 2 may hold spaces and parentheses, so fields are counted from the last `)`.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_command) = stat.rsplit_once(')')?;
    after_command.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, IdentityError> {
    use io::Read;
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(max).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| IdentityError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Replaces a file by a new one with this content and mode 0600. Not synced: run directories do not outlive a boot.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    drop(file);
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time("7 (a) S 1"), None);
        assert_eq!(parse_start_time(""), None);
    }

    #[test]
    fn finds_itself_and_nobody_else() {
        let me = Identity::of_this_process().unwrap();
        assert!(open_pidfd_if_same(&me).unwrap().is_some());
        for other in [
            Identity {
                start_time: me.start_time + 1,
                ..me.clone()
            },
            Identity {
                boot_id: "another".into(),
                ..me.clone()
            },
            Identity {
                pid: 0,
                ..me.clone()
            },
            Identity {
                pid: -1,
                ..me.clone()
            },
            // Above the largest pid that Linux gives out (2^22).
            Identity {
                pid: 4_194_305,
                ..me.clone()
            },
        ] {
            assert!(open_pidfd_if_same(&other).unwrap().is_none(), "{other:?}");
        }
    }

    #[test]
    fn is_read_back_as_written() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Identity::read(directory.path()).unwrap(), None);
        let me = Identity::of_this_process().unwrap();
        me.write(directory.path()).unwrap();
        me.write(directory.path()).unwrap();
        assert_eq!(Identity::read(directory.path()).unwrap(), Some(me));
        fs::write(directory.path().join(IDENTITY_FILE), "{\"pid\":1}").unwrap();
        assert!(matches!(
            Identity::read(directory.path()),
            Err(IdentityError::Malformed { .. })
        ));
    }
}
