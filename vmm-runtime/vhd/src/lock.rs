//! Who may have a disk open: one writer, or any number of readers.
//!
//! Two locks, both of the open file description (`F_OFD_SETLK`), so they end
//! with the process and are not lost when it closes another descriptor of the
//! file. The first is ours, on a file beside the disk that is never renamed:
//! a disk's file may be replaced by rename, and whoever locked the old one
//! would have locked nothing. The second is QEMU's, on bytes of the disk's
//! file itself, so that QEMU refuses what we have open and we what it has.
//!
//! QEMU's scheme (`block/file-posix.c`): byte 100+n is locked shared by those
//! who use permission n, byte 200+n by those who don't let others use it; and
//! who wants one checks that the other is free. The permissions: 0 read
//! consistently, 1 write, 3 resize.

use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;

use crate::pool::{Place, PoolError};

/// How a disk is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Others may read.
    Shared,
    /// Nobody else may do anything.
    Exclusive,
}

/// Why a lock was not taken.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Another holds one that excludes it; who, where that is known.
    Held(String),
    /// The lock's file can't be used.
    Pool(PoolError),
    /// The system refused.
    Io(io::Error),
}

impl From<PoolError> for LockError {
    fn from(error: PoolError) -> LockError {
        LockError::Pool(error)
    }
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> LockError {
        LockError::Io(error)
    }
}

/// The lock on `<disk>.lock`. Released when dropped.
#[derive(Debug)]
pub(crate) struct Sidecar {
    /// `None` where the file can't exist: a reader in a read-only pool.
    file: Option<File>,
    place: Place,
}

impl Sidecar {
    /// Takes the lock for the disk `disk`, or fails at once.
    pub(crate) fn acquire(disk: &Place, mode: Mode) -> Result<Sidecar, LockError> {
        let place = disk.with_suffix(".lock")?;
        // Another round when the file was removed (with its disk) between
        // opening and locking it; each needs another remover.
        for _ in 0..100 {
            let Some(mut file) = open_sidecar(&place, mode)? else {
                return Ok(Sidecar { file: None, place });
            };
            if !lock(file.as_fd(), mode, 0, 0)? {
                let mut holder = String::new();
                // Bounded: the file may be anyone's.
                let _ = file.by_ref().take(128).read_to_string(&mut holder);
                let holder = holder.trim().escape_default().to_string();
                let by = if holder.is_empty() {
                    "another process".to_owned()
                } else {
                    holder
                };
                return Err(LockError::Held(format!(
                    "{} is locked by {by}",
                    place.rel().display()
                )));
            }
            match place.identity() {
                Ok(identity) if identity == identity_of(file.as_fd())? => {}
                Ok(_) | Err(PoolError::NotFound { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
            if mode == Mode::Exclusive {
                note_holder(&file);
            }
            return Ok(Sidecar {
                file: Some(file),
                place,
            });
        }
        Err(LockError::Held(format!(
            "{} keeps being replaced",
            place.rel().display()
        )))
    }

    /// Removes the lock's file, when there is no disk any more. Hold it
    /// exclusively. Who waits for it finds its file gone and takes a new one.
    pub(crate) fn remove(self) -> Result<(), PoolError> {
        match self.file {
            Some(_) => self.place.unlink(),
            None => Ok(()),
        }
    }
}

fn open_sidecar(place: &Place, mode: Mode) -> Result<Option<File>, LockError> {
    match place.open(OFlags::RDWR | OFlags::CREATE) {
        Ok(fd) => Ok(Some(fd.into())),
        Err(PoolError::Io { source, .. }) if mode == Mode::Shared && is_read_only(&source) => {
            match place.open(OFlags::RDONLY) {
                Ok(fd) => Ok(Some(fd.into())),
                // Nobody locked it yet, and we can't: the lock on the disk
                // itself must do.
                Err(PoolError::NotFound { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
    )
}

/// Leaves a line for those who find the lock taken. Only a help: no error.
fn note_holder(file: &File) {
    let host = rustix::system::uname();
    let line = format!(
        "process {} on {}\n",
        std::process::id(),
        host.nodename().to_string_lossy()
    );
    if file.set_len(0).is_ok() {
        let _ = file.write_all_at(line.as_bytes(), 0);
    }
}

/// Takes QEMU's locks on the disk's own file. They last as long as the open
/// file description.
pub(crate) fn lock_for_qemu(file: BorrowedFd<'_>, mode: Mode) -> Result<(), LockError> {
    const READ: i64 = 0;
    const WRITE: i64 = 1;
    const RESIZE: i64 = 3;
    const USED: i64 = 100;
    const UNSHARED: i64 = 200;
    let uses: &[i64] = match mode {
        Mode::Shared => &[READ],
        Mode::Exclusive => &[READ, WRITE, RESIZE],
    };
    let unshares = [WRITE, RESIZE];
    let held = || LockError::Held("another program (QEMU?) has the file itself locked".to_owned());
    // First all of ours, then the checks: of two that come at once, at least
    // one sees the other.
    for byte in uses
        .iter()
        .map(|n| USED + n)
        .chain(unshares.iter().map(|n| UNSHARED + n))
    {
        if !lock(file, Mode::Shared, byte, 1)? {
            return Err(held());
        }
    }
    for byte in uses
        .iter()
        .map(|n| UNSHARED + n)
        .chain(unshares.iter().map(|n| USED + n))
    {
        if !is_free(file, byte)? {
            return Err(held());
        }
    }
    Ok(())
}

/// Device and inode of an open file.
pub(crate) fn identity_of(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn request(kind: c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        // The constants are small; the field is a short.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        // Must be 0 for locks of open file descriptions.
        l_pid: 0,
    }
}

/// Locks bytes, to the end of the file if `len` is 0. False if another holds
/// them.
fn lock(file: BorrowedFd<'_>, mode: Mode, start: i64, len: i64) -> io::Result<bool> {
    let kind = match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
    };
    let request = request(kind, start, len);
    loop {
        // SAFETY: the descriptor is open for as long as it is borrowed, and
        // F_OFD_SETLK takes a pointer to a flock, which it only reads.
        let result =
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
        if result == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => return Ok(false),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

/// Whether an exclusive lock of one byte would be granted.
fn is_free(file: BorrowedFd<'_>, byte: i64) -> io::Result<bool> {
    let mut request = request(libc::F_WRLCK, byte, 1);
    // SAFETY: the descriptor is open for as long as it is borrowed, and
    // F_OFD_GETLK takes a pointer to a flock, which it may overwrite.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(c_int::from(request.l_type) == libc::F_UNLCK)
}

/// Opens the disk `place` under both of its locks.
pub(crate) fn open_locked(place: &Place, mode: Mode) -> Result<(OwnedFd, Sidecar), LockError> {
    let flags = match mode {
        Mode::Shared => OFlags::RDONLY,
        Mode::Exclusive => OFlags::RDWR,
    };
    // Looked for first: a disk that isn't there gets no lock file.
    place.identity()?;
    let sidecar = Sidecar::acquire(place, mode)?;
    let file = match place.open(flags) {
        Ok(file) => file,
        Err(error) => {
            // It went with its disk in between.
            if mode == Mode::Exclusive && matches!(error, PoolError::NotFound { .. }) {
                sidecar.remove()?;
            }
            return Err(error.into());
        }
    };
    lock_for_qemu(file.as_fd(), mode)?;
    Ok((file, sidecar))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pool::Pool;

    fn disk() -> (tempfile::TempDir, Place) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("disk"), "x").unwrap();
        let place = Pool::open(dir.path())
            .unwrap()
            .place(Path::new("disk"))
            .unwrap();
        (dir, place)
    }

    #[test]
    fn one_writer_or_many_readers() {
        let (_dir, place) = disk();
        let reader = open_locked(&place, Mode::Shared).unwrap();
        let another = open_locked(&place, Mode::Shared).unwrap();
        assert!(matches!(
            open_locked(&place, Mode::Exclusive),
            Err(LockError::Held(_))
        ));
        drop((reader, another));
        let writer = open_locked(&place, Mode::Exclusive).unwrap();
        let Err(LockError::Held(holder)) = open_locked(&place, Mode::Shared) else {
            panic!("not held")
        };
        assert!(
            holder.contains(&format!("process {}", std::process::id())),
            "{holder}"
        );
        assert!(matches!(
            open_locked(&place, Mode::Exclusive),
            Err(LockError::Held(_))
        ));
        drop(writer);
        open_locked(&place, Mode::Exclusive).unwrap();
    }

    #[test]
    fn the_locks_on_the_file_itself_hold_without_the_sidecar() {
        let (dir, _place) = disk();
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .open(dir.path().join("disk"))
                .unwrap()
        };
        let (a, b) = (open(), open());
        lock_for_qemu(a.as_fd(), Mode::Exclusive).unwrap();
        assert!(matches!(
            lock_for_qemu(b.as_fd(), Mode::Shared),
            Err(LockError::Held(_))
        ));
        drop(a);
        let (c, d) = (open(), open());
        drop(b);
        lock_for_qemu(c.as_fd(), Mode::Shared).unwrap();
        lock_for_qemu(d.as_fd(), Mode::Shared).unwrap();
        assert!(matches!(
            lock_for_qemu(open().as_fd(), Mode::Exclusive),
            Err(LockError::Held(_))
        ));
    }

    #[test]
    fn closing_another_descriptor_does_not_release_them() {
        let (dir, place) = disk();
        let _writer = open_locked(&place, Mode::Exclusive).unwrap();
        drop(File::open(dir.path().join("disk")).unwrap());
        drop(File::open(dir.path().join("disk.lock")).unwrap());
        assert!(matches!(
            open_locked(&place, Mode::Exclusive),
            Err(LockError::Held(_))
        ));
    }

    #[test]
    fn a_disk_that_is_not_there_gets_no_lock_file() {
        let (dir, place) = disk();
        let other = place.sibling("other".into()).unwrap();
        assert!(matches!(
            open_locked(&other, Mode::Exclusive),
            Err(LockError::Pool(PoolError::NotFound { .. }))
        ));
        assert!(!dir.path().join("other.lock").exists());
    }

    #[test]
    fn a_removed_lock_file_is_replaced_by_a_new_one() {
        let (dir, place) = disk();
        let old = Sidecar::acquire(&place, Mode::Exclusive).unwrap();
        let stale = File::options()
            .read(true)
            .write(true)
            .open(dir.path().join("disk.lock"))
            .unwrap();
        old.remove().unwrap();
        // The stale one can be locked, and that excludes nobody.
        assert!(lock(stale.as_fd(), Mode::Exclusive, 0, 0).unwrap());
        let _new = Sidecar::acquire(&place, Mode::Exclusive).unwrap();
        assert!(matches!(
            Sidecar::acquire(&place, Mode::Exclusive),
            Err(LockError::Held(_))
        ));
    }
}
