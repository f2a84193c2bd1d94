//! The folder of one run: its lock, its sockets, its result.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::process::geteuid;

use crate::api::RunResult;
use crate::identity::write_whole;

/// The API's socket.
pub const API_SOCKET: &str = "api.sock";
/// The serial console's socket.
pub const CONSOLE_SOCKET: &str = "console.sock";
/// The serial console's output.
pub const CONSOLE_LOG: &str = "console.log";
/// What QEMU writes to its error output.
pub const QEMU_LOG: &str = "qemu.log";
/// How the run ended, a [`RunResult`].
pub const RESULT_FILE: &str = "result.json";
/// Held for as long as the process lives.
pub const LOCK_FILE: &str = "vmm.lock";
/// The folder with what QEMU may reach: the disks' sockets, the kernel.
pub const QEMU_FOLDER: &str = "qemu";

/// Why the run directory cannot be used, or a file in it.
#[derive(Debug, thiserror::Error)]
pub enum RunDirectoryError {
    /// Another process has it.
    #[error("{0}: another paddock-vmm runs in this directory; stop that one first")]
    InUse(PathBuf),
    /// Others could reach the sockets.
    #[error(
        "{path}: must be a directory of user {uid} with mode 0700, is one of user {found_uid} with mode {mode:04o}"
    )]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// This process's user.
        uid: u32,
        /// Whose it is.
        found_uid: u32,
        /// Its permissions.
        mode: u32,
    },
    /// The system refused.
    #[error("{path}: {operation}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// The run directory, locked by this process.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    _lock: File,
}

impl RunDirectory {
    /// Takes the directory: locks it, then removes what an earlier run has left, except for its logs.
    pub fn take(path: &Path) -> Result<Self, RunDirectoryError> {
        let metadata = fs::symlink_metadata(path).map_err(io_error(path, "look at it"))?;
        let (uid, mode) = (geteuid().as_raw(), metadata.mode() & 0o7777);
        if !metadata.is_dir() || metadata.uid() != uid || mode & 0o077 != 0 {
            let path = path.to_owned();
            return Err(RunDirectoryError::Exposed {
                path,
                uid,
                found_uid: metadata.uid(),
                mode,
            });
        }
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error(&lock_path, "open"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(RunDirectoryError::InUse(path.to_owned()));
            }
            Err(errno) => return Err(io_error(&lock_path, "lock")(errno.into())),
        }
        let directory = RunDirectory {
            path: path.to_owned(),
            _lock: lock,
        };
        directory.remove_file(RESULT_FILE)?;
        directory.remove_sockets()?;
        Ok(directory)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes the sockets and QEMU's folder.
    pub fn remove_sockets(&self) -> Result<(), RunDirectoryError> {
        self.remove_file(API_SOCKET)?;
        self.remove_file(CONSOLE_SOCKET)?;
        let folder = self.file(QEMU_FOLDER);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error(&folder, "remove")(error))
            }
            _ => Ok(()),
        }
    }

    fn remove_file(&self, name: &str) -> Result<(), RunDirectoryError> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error(&path, "remove")(error))
            }
            _ => Ok(()),
        }
    }

    /// A listening socket that only this process's user may connect to.
    pub fn listen(&self, name: &str) -> Result<UnixListener, RunDirectoryError> {
        listen(&self.file(name), None)
    }

    /// Makes QEMU's folder.
    pub(crate) fn make_qemu_folder(
        &self,
        uid: u32,
        gid: u32,
    ) -> Result<QemuFolder, RunDirectoryError> {
        let path = self.file(QEMU_FOLDER);
        fs::create_dir(&path).map_err(io_error(&path, "create"))?;
        let owner = geteuid().is_root().then_some((uid, gid));
        // QEMU may enter it and open what it knows the name of; it may neither list nor change it.
        let mode = if owner.is_some() { 0o710 } else { 0o700 };
        if let Some((_, gid)) = owner {
            chown(&path, None, Some(gid)).map_err(io_error(&path, "change the group"))?;
        }
        fs::set_permissions(&path, Permissions::from_mode(mode))
            .map_err(io_error(&path, "change the mode"))?;
        let handle = rustix::fs::open(
            &path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| io_error(&path, "open")(errno.into()))?;
        Ok(QemuFolder {
            path,
            handle,
            owner,
        })
    }

    /// Writes the result. The last thing a run does.
    pub fn write_result(&self, result: &RunResult) -> Result<(), RunDirectoryError> {
        let path = self.file(RESULT_FILE);
        let write = || -> io::Result<()> {
            let mut text = serde_json::to_vec(result)?;
            text.push(b'\n');
            write_whole(&path, &text)
        };
        write().map_err(io_error(&path, "write"))
    }
}

/// The folder with what QEMU may reach.
#[derive(Debug)]
pub(crate) struct QemuFolder {
    path: PathBuf,
    /// What QEMU reaches it by.
    pub handle: OwnedFd,
    owner: Option<(u32, u32)>,
}

impl QemuFolder {
    /// A listening socket that QEMU may connect to.
    pub fn listen(&self, name: &str) -> Result<UnixListener, RunDirectoryError> {
        listen(&self.path.join(name), self.owner)
    }

    /// Copies a file for QEMU to read.
    ///
    /// A copy, because QEMU's user cannot be given access to a file in a pool, only to a descriptor of it, and QEMU
    /// takes no descriptor for a kernel.
    pub fn copy_in(&self, name: &str, source: &mut File) -> Result<(), RunDirectoryError> {
        let path = self.path.join(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error(&path, "create"))?;
        io::copy(source, &mut file).map_err(io_error(&path, "copy"))?;
        give(&path, self.owner)
    }

    /// Removes a copy, once QEMU has read it.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.path.join(name));
    }
}

fn listen(path: &Path, owner: Option<(u32, u32)>) -> Result<UnixListener, RunDirectoryError> {
    let listener = UnixListener::bind(path).map_err(io_error(path, "listen"))?;
    fs::set_permissions(path, Permissions::from_mode(0o600))
        .map_err(io_error(path, "change the mode"))?;
    give(path, owner)?;
    Ok(listener)
}

fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<(), RunDirectoryError> {
    match owner {
        Some((uid, gid)) => {
            chown(path, Some(uid), Some(gid)).map_err(io_error(path, "change the owner"))
        }
        None => Ok(()),
    }
}

fn io_error(path: &Path, operation: &'static str) -> impl Fn(io::Error) -> RunDirectoryError {
    let path = path.to_owned();
    move |source| RunDirectoryError::Io {
        path: path.clone(),
        operation,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private_directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
        directory
    }

    #[test]
    fn is_taken_once_at_a_time() {
        let directory = private_directory();
        let first = RunDirectory::take(directory.path()).unwrap();
        assert!(matches!(
            RunDirectory::take(directory.path()),
            Err(RunDirectoryError::InUse(_))
        ));
        drop(first);
        RunDirectory::take(directory.path()).unwrap();
    }

    #[test]
    fn what_an_earlier_run_left_is_removed_but_for_the_logs() {
        let directory = private_directory();
        let first = RunDirectory::take(directory.path()).unwrap();
        first.listen(API_SOCKET).unwrap();
        let folder = first.make_qemu_folder(65534, 65534).unwrap();
        folder.listen("nbd-root.sock").unwrap();
        fs::write(first.file(RESULT_FILE), "{}").unwrap();
        fs::write(first.file(CONSOLE_LOG), "boot").unwrap();
        // Somebody else must not lose them.
        RunDirectory::take(directory.path()).unwrap_err();
        assert!(first.file(API_SOCKET).exists() && first.file(RESULT_FILE).exists());
        drop(first);
        let second = RunDirectory::take(directory.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(second.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, [CONSOLE_LOG, LOCK_FILE]);
    }

    #[test]
    fn sockets_are_for_this_user_alone() {
        let directory = private_directory();
        let run = RunDirectory::take(directory.path()).unwrap();
        run.listen(API_SOCKET).unwrap();
        assert_eq!(
            fs::metadata(run.file(API_SOCKET)).unwrap().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let directory = private_directory();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o710)).unwrap();
        assert!(matches!(
            RunDirectory::take(directory.path()),
            Err(RunDirectoryError::Exposed { mode: 0o710, .. })
        ));
        assert!(matches!(
            RunDirectory::take(&directory.path().join("missing")),
            Err(RunDirectoryError::Io {
                operation: "look at it",
                ..
            })
        ));
    }
}
