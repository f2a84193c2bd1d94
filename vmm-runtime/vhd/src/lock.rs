//! Who may have a disk open: one writer, or any number of readers.
//!
//! Two locks of the kernel, both of the open file description (`F_OFD_SETLK`), so they end
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
//!
//! On a folder that hosts share, our file also says which of them has the
//! disk, see `header`. Who opens a disk as an owner writes that there, and
//! who opens it without one (a tool, a parent's reader) is refused for as
//! long as a host of another boot has it, for reading too: that host may be
//! cut off, and still write. Only an epoch that came after proves otherwise,
//! or the word of who gives the epochs out, see [`Pool::assigned`].
//!
//! [`Pool::assigned`]: crate::Pool::assigned

mod header;

use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::block::IoError;
use crate::gate::Gate;
use crate::pool::{Place, PoolError};
use crate::vhd::Access;

pub(crate) use header::Record;
pub use header::{LockOwner, LockOwnerError};
#[cfg(fuzzing)]
pub(crate) use header::{read as read_record, record_of};

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
    /// As whom the disk is open for writing.
    owner: Option<(LockOwner, Gate)>,
    /// The disk's file, which has QEMU's locks.
    disk: Option<OwnedFd>,
}

impl Drop for Sidecar {
    /// Releases the locks as such: if a process is being started just now, it
    /// has all descriptors as well until it runs its program, and closing
    /// ours alone would leave the locks with it for that long.
    fn drop(&mut self) {
        let files = [
            self.file.as_ref().map(AsFd::as_fd),
            self.disk.as_ref().map(AsFd::as_fd),
        ];
        for file in files.into_iter().flatten() {
            unlock(file);
        }
    }
}

impl Sidecar {
    /// Takes the lock for the disk `disk`, or fails at once.
    pub(crate) fn acquire(disk: &Place, mode: Mode) -> Result<Sidecar, LockError> {
        Sidecar::acquire_gated(disk, mode, &Gate::open())
    }

    /// The same; what is noted in the lock's file passes the gate.
    fn acquire_gated(disk: &Place, mode: Mode, gate: &Gate) -> Result<Sidecar, LockError> {
        let place = disk.with_suffix(".lock")?;
        // Another round when the file was removed (with its disk) between
        // opening and locking it; each needs another remover.
        for _ in 0..100 {
            let Some(mut file) = open_sidecar(&place, mode)? else {
                return Ok(Sidecar {
                    file: None,
                    place,
                    owner: None,
                    disk: None,
                });
            };
            if !lock(file.as_fd(), mode, 0, 0)? {
                let by = noted_holder(&mut file);
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
            if mode == Mode::Exclusive
                && let Ok(_pass) = gate.enter()
            {
                note_holder(&file);
            }
            return Ok(Sidecar {
                file: Some(file),
                place,
                owner: None,
                disk: None,
            });
        }
        Err(LockError::Held(format!(
            "{} keeps being replaced",
            place.rel().display()
        )))
    }

    /// Takes QEMU's locks on the disk's own file as well. They last as long as
    /// this, or an open descriptor.
    pub(crate) fn lock_file(&mut self, file: BorrowedFd<'_>, mode: Mode) -> Result<(), LockError> {
        let again = file.try_clone_to_owned()?;
        let result = lock_for_qemu(file, mode);
        self.disk = Some(again);
        result
    }

    /// Refuses when the file says that the disk is another host's; see
    /// `header::admit`.
    fn check(&self, owner: Option<&LockOwner>) -> Result<Option<Record>, LockError> {
        let record = self.record()?;
        if owner.is_none() && self.place.is_assigned() {
            return Ok(record);
        }
        let this_boot = LockOwner::this_boot().ok();
        header::admit(record.as_ref(), owner, this_boot)
            .map_err(|why| LockError::Held(format!("{}: {why}", self.place.rel().display())))?;
        Ok(record)
    }

    /// Makes `owner` the one who has the disk, durably. Hold the lock
    /// exclusively.
    fn take(
        &mut self,
        record: Option<&Record>,
        owner: &LockOwner,
        gate: &Gate,
    ) -> Result<(), LockError> {
        let closed = |error: IoError| LockError::Io(io::Error::other(error));
        let _pass = gate.enter().map_err(closed)?;
        self.write(&header::take(record, owner))?;
        if record.is_none() {
            // The file itself may be new.
            self.place.sync_folder()?;
        }
        self.owner = Some((owner.clone(), gate.clone()));
        Ok(())
    }

    /// Says that the owner, if there is one, has the disk no more. Nothing is
    /// written if another has taken it over, or the gate is closed.
    pub(crate) fn release(&mut self) -> Result<(), IoError> {
        let Some((owner, gate)) = self.owner.take() else {
            return Ok(());
        };
        let failed = |source: io::Error| IoError::Io {
            disk: self.place.rel().to_string_lossy().into(),
            operation: "write who has the disk",
            source: source.into(),
        };
        let _pass = gate.enter()?;
        let record = self
            .record()
            .map_err(|error| failed(io::Error::other(error.to_string())))?;
        match header::release(record.as_ref(), &owner) {
            Some(change) => self.write(&[change]).map_err(failed),
            None => Ok(()),
        }
    }

    /// The disk's path in its pool.
    pub(crate) fn disk(&self) -> PathBuf {
        self.place.rel().with_extension("")
    }

    /// Refuses when the owner, if there is one, isn't the one who has the
    /// disk any more.
    pub(crate) fn check_owner(&self) -> Result<(), LockError> {
        let Some((owner, _)) = &self.owner else {
            return Ok(());
        };
        match self.record()? {
            Some(record) if record.names(owner) => Ok(()),
            record => Err(LockError::Held(format!(
                "{}: {}, and {owner} is over",
                self.place.rel().display(),
                match record {
                    Some(Record {
                        disk_epoch,
                        holder: Some((host, _)),
                        ..
                    }) => format!("host {host} has taken it over in epoch {disk_epoch}"),
                    _ => "nobody has it any more".to_owned(),
                }
            ))),
        }
    }

    /// What the file says now, past the page cache where that works: another
    /// host may have written it.
    fn record(&self) -> Result<Option<Record>, LockError> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let direct = match self.place.open(OFlags::RDONLY | OFlags::DIRECT) {
            Ok(direct) if identity_of(direct.as_fd())? != identity_of(file.as_fd())? => {
                return Err(LockError::Held(format!(
                    "{} was replaced",
                    self.place.rel().display()
                )));
            }
            Ok(direct) => read_header(direct.as_fd()),
            Err(PoolError::Io { source, .. }) => Err(source),
            Err(error) => return Err(error.into()),
        };
        let bytes = match direct {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => read_header(file.as_fd())?,
            result => result?,
        };
        header::read(&bytes).map_err(|header::Damaged| {
            LockError::Held(format!(
                "{} is damaged, so nobody knows which host has the disk; when no host has, remove that file",
                self.place.rel().display()
            ))
        })
    }

    /// Makes changes durable, one after the other.
    fn write(&self, changes: &[header::Change]) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        };
        for change in changes {
            file.write_all_at(&change.bytes, header::START + change.offset)?;
            file.sync_data()?;
        }
        Ok(())
    }

    /// Forgets who had the disk, when there is none of this name. Hold the
    /// lock exclusively.
    pub(crate) fn forget(&self) -> io::Result<()> {
        match &self.file {
            Some(file) if file.metadata()?.len() > header::START => {
                file.set_len(header::START)?;
                file.sync_data()
            }
            _ => Ok(()),
        }
    }

    /// Removes the lock's file, when there is no disk any more. Hold it
    /// exclusively. Who waits for it finds its file gone and takes a new one.
    pub(crate) fn remove(self) -> Result<(), PoolError> {
        match &self.file {
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

impl std::fmt::Display for LockError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LockError::Held(by) => f.write_str(by),
            LockError::Pool(error) => error.fmt(f),
            LockError::Io(error) => error.fmt(f),
        }
    }
}

/// Reads the header's part of a lock file. The buffer is aligned for those
/// that go past the page cache.
fn read_header(file: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    const ALIGN: usize = 4096;
    let end = (header::START as usize + header::LEN).next_multiple_of(ALIGN);
    let mut buf = vec![0; end + ALIGN];
    let skip = buf.as_ptr().align_offset(ALIGN).min(ALIGN);
    let aligned = &mut buf[skip..skip + end];
    let mut done = 0;
    while done < end {
        match rustix::io::pread(file, &mut aligned[done..], done as u64) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Such reads end where the file does, and go on at multiples alone.
        if done % ALIGN != 0 {
            break;
        }
    }
    let start = (header::START as usize).min(done);
    Ok(aligned[start..done].to_vec())
}

/// Bytes for the line that tells who holds the lock.
const NOTE: usize = 128;

/// Leaves a line for those who find the lock taken. Only a help: no error.
fn note_holder(file: &File) {
    let host = rustix::system::uname();
    let mut line = format!(
        "process {} on {}",
        std::process::id(),
        host.nodename().to_string_lossy()
    )
    .into_bytes();
    // Over what a longer one left.
    line.resize(NOTE, b'\n');
    let _ = file.write_all_at(&line, 0);
}

/// The line that was left, for messages.
fn noted_holder(file: &mut File) -> String {
    let mut holder = String::new();
    // Bounded: the file may be anyone's.
    let _ = file.take(NOTE as u64).read_to_string(&mut holder);
    let holder = holder.trim().escape_default().to_string();
    if holder.is_empty() {
        "another process".to_owned()
    } else {
        holder
    }
}

// QEMU's bytes and permissions.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
const USED: i64 = 100;
const UNSHARED: i64 = 200;

/// Takes QEMU's locks on the disk's own file. They last as long as the open
/// file description.
pub(crate) fn lock_for_qemu(file: BorrowedFd<'_>, mode: Mode) -> Result<(), LockError> {
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

/// Releases all locks of a file. Only a help where it fails: they end with
/// the last descriptor.
fn unlock(file: BorrowedFd<'_>) {
    let request = request(libc::F_UNLCK, 0, 0);
    // SAFETY: the descriptor is open for as long as it is borrowed, and
    // F_OFD_SETLK takes a pointer to a flock, which it only reads.
    let _ = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
}

/// Who has a disk, as its locks say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LockInfo {
    /// How it is open just now; `None` if it isn't, as far as this host's
    /// kernel knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<Access>,
    /// Who has it open for writing, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The highest epoch in which an owner had it open for writing, see
    /// [`LockOwner`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_epoch: Option<u64>,
    /// The host of that owner, if it has not closed the disk: it has it, or
    /// died with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The boot of that host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<Uuid>,
}

/// Looks who has the disk `place`, which is open as `file`, without taking a
/// lock. What can't be found out is left out.
pub(crate) fn look(place: &Place, file: BorrowedFd<'_>) -> LockInfo {
    let mut info = LockInfo::default();
    let lock = place.with_suffix(".lock").ok();
    let lock = lock.and_then(|place| Some((place.open(OFlags::RDONLY).ok()?, place)));
    if let Some((lock, place)) = lock {
        let mut sidecar = Sidecar {
            file: Some(lock.into()),
            place,
            owner: None,
            disk: None,
        };
        if let Ok(Some(record)) = sidecar.record() {
            info.disk_epoch = Some(record.disk_epoch);
            (info.host, info.boot_id) = record.holder.unzip();
        }
        if let Some(file) = &mut sidecar.file {
            info.open = conflict(file.as_fd(), 0, 0).ok().flatten();
            if info.open == Some(Access::ReadWrite) {
                info.by = Some(noted_holder(file));
            }
        }
    }
    if info.open.is_none() {
        // Others know nothing of our file.
        let used = |n| conflict(file, USED + n, 1).is_ok_and(|found| found.is_some());
        info.open = if used(WRITE) || used(RESIZE) {
            Some(Access::ReadWrite)
        } else {
            used(READ).then_some(Access::ReadOnly)
        };
        info.by = info.open.map(|_| "another program (QEMU?)".to_owned());
    }
    info
}

/// Whether an exclusive lock of one byte would be granted.
fn is_free(file: BorrowedFd<'_>, byte: i64) -> io::Result<bool> {
    conflict(file, byte, 1).map(|found| found.is_none())
}

/// A lock by another on bytes, to the end of the file if `len` is 0: shared
/// is for reading, exclusive for writing.
fn conflict(file: BorrowedFd<'_>, start: i64, len: i64) -> io::Result<Option<Access>> {
    let mut request = request(libc::F_WRLCK, start, len);
    // SAFETY: the descriptor is open for as long as it is borrowed, and
    // F_OFD_GETLK takes a pointer to a flock, which it may overwrite.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(match c_int::from(request.l_type) {
        libc::F_UNLCK => None,
        libc::F_RDLCK => Some(Access::ReadOnly),
        _ => Some(Access::ReadWrite),
    })
}

/// Opens the disk `place` under both of its locks, unless another host has it.
pub(crate) fn open_locked(place: &Place, mode: Mode) -> Result<(OwnedFd, Sidecar), LockError> {
    open_owned(place, mode, &Gate::open(), None)
}

/// As [`open_locked`], as `owner`. Who opens it exclusively is on record as
/// the one who has it, until [`Sidecar::release`]. What is written to the lock
/// file passes the gate.
pub(crate) fn open_owned(
    place: &Place,
    mode: Mode,
    gate: &Gate,
    owner: Option<&LockOwner>,
) -> Result<(OwnedFd, Sidecar), LockError> {
    let flags = match mode {
        Mode::Shared => OFlags::RDONLY,
        Mode::Exclusive => OFlags::RDWR,
    };
    // Looked for first: a disk that isn't there gets no lock file.
    place.identity()?;
    let mut sidecar = Sidecar::acquire_gated(place, mode, gate)?;
    let record = sidecar.check(owner)?;
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
    sidecar.lock_file(file.as_fd(), mode)?;
    if let (Mode::Exclusive, Some(owner)) = (mode, owner) {
        sidecar.take(record.as_ref(), owner, gate)?;
    }
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
    fn nothing_is_noted_past_a_closed_gate() {
        let (dir, place) = disk();
        let gate = Gate::open();
        gate.close();
        let writer = open_owned(&place, Mode::Exclusive, &gate, None).unwrap();
        assert_eq!(std::fs::read(dir.path().join("disk.lock")).unwrap(), b"");
        // Locked all the same.
        assert!(open_locked(&place, Mode::Shared).is_err());
        drop(writer);
        open_locked(&place, Mode::Exclusive).unwrap();
        assert_ne!(std::fs::read(dir.path().join("disk.lock")).unwrap(), b"");
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
    fn looking_at_them_takes_none() {
        let (dir, place) = disk();
        let info = || look(&place, File::open(dir.path().join("disk")).unwrap().as_fd());
        assert_eq!(info(), LockInfo::default());
        let reader = open_locked(&place, Mode::Shared).unwrap();
        let expected = LockInfo {
            open: Some(Access::ReadOnly),
            ..LockInfo::default()
        };
        assert_eq!(info(), expected);
        drop(reader);
        let writer = open_locked(&place, Mode::Exclusive).unwrap();
        let found = info();
        assert_eq!(found.open, Some(Access::ReadWrite));
        let by = found.by.unwrap();
        let process = format!("process {} on ", std::process::id());
        assert!(by.starts_with(&process), "{by}");
        drop(writer);
        assert_eq!(info(), LockInfo::default());
        // QEMU has no lock file.
        std::fs::remove_file(dir.path().join("disk.lock")).unwrap();
        for (mode, access) in [
            (Mode::Shared, Access::ReadOnly),
            (Mode::Exclusive, Access::ReadWrite),
        ] {
            let file = place.open(OFlags::RDWR).unwrap();
            lock_for_qemu(file.as_fd(), mode).unwrap();
            let found = info();
            assert_eq!(found.open, Some(access));
            assert_eq!(found.by.as_deref(), Some("another program (QEMU?)"));
        }
        assert!(!dir.path().join("disk.lock").exists());
    }

    /// As a process has them that is being started.
    #[test]
    fn releasing_them_does_not_wait_for_other_holders_of_the_descriptors() {
        for mode in [Mode::Exclusive, Mode::Shared] {
            let (_dir, place) = disk();
            let (file, lock) = open_locked(&place, mode).unwrap();
            let started = (
                file.try_clone().unwrap(),
                lock.file.as_ref().unwrap().try_clone().unwrap(),
            );
            assert!(open_locked(&place, Mode::Exclusive).is_err());
            drop((file, lock));
            open_locked(&place, Mode::Exclusive).unwrap();
            drop(started);
        }
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
