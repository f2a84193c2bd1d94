//! A folder of disks that no path can leave.
//!
//! Paths come from objects that users write, and the folder may be shared
//! with hosts and programs that put symbolic links there. So a path is
//! resolved by the kernel, component by component beneath the folder
//! (`openat2`), and files are then handled through the folder's descriptor
//! and their last name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A pool: a folder in which disks live. Clones share one descriptor, which
/// stays with the folder even if it is renamed or mounted over.
#[derive(Debug, Clone)]
pub struct Pool {
    folder: Arc<OwnedFd>,
    path: PathBuf,
    assigned: bool,
}

/// Why a pool, or a file in it, can't be used. Names the path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// There is no such folder or file.
    #[error("{}: there is no such file or folder", path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },
    /// The path would leave the pool: it is absolute, has `..` in it, or
    /// passes a symbolic link.
    #[error("{}: the path leaves its pool: it must be relative, without '..' and without symbolic links", path.display())]
    PathEscapes {
        /// The path as given.
        path: PathBuf,
    },
    /// The path leads to something that is not a regular file.
    #[error("{}: not a regular file but a {found}", path.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The system refused.
    #[error("{}: {operation}: {source}", path.display())]
    Io {
        /// The path as given.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// How much room a pool's file system has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpace {
    /// The size of the file system.
    pub total: u64,
    /// What an unprivileged writer may still use.
    pub available: u64,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

impl Pool {
    /// Holds the folder at `path`, which must exist. The way to it may pass
    /// symbolic links: an administrator chose it.
    pub fn open(path: impl AsRef<Path>) -> Result<Pool, PoolError> {
        let path = path.as_ref();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| from_errno(path, "open the folder of the pool", error))?;
        Ok(Pool {
            folder: Arc::new(folder),
            path: path.to_owned(),
            assigned: false,
        })
    }

    /// For a caller whom a cluster tells which disks it may open: the word
    /// that no host has them of those that their lock files name. A host that
    /// died with a disk then keeps nobody from it, as a parent too. Only the
    /// epoch in the lock file still counts, see
    /// [`OpenOptions::owner`](crate::OpenOptions::owner) and
    /// [`claim`](crate::claim()).
    #[must_use]
    pub fn assigned(self) -> Pool {
        Pool {
            assigned: true,
            ..self
        }
    }

    /// The path by which the pool was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode of the folder.
    pub(crate) fn identity(&self) -> Result<(u64, u64), PoolError> {
        let stat = rustix::fs::fstat(&self.folder)
            .map_err(|error| from_errno(&self.path, "look at the folder", error))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// How much room the file system below the pool has.
    pub fn space(&self) -> Result<PoolSpace, PoolError> {
        space(self.folder.as_fd())
            .map_err(|error| from_errno(&self.path, "ask for free space", error))
    }

    /// Opens a regular file in the pool for reading, as it is: an image to
    /// import, a kernel to boot.
    pub fn open_read(&self, rel: impl AsRef<Path>) -> Result<File, PoolError> {
        let place = self.place(rel.as_ref())?;
        place.open(OFlags::RDONLY).map(File::from)
    }

    /// What is in the folder `rel` (`""`: the pool itself): names and types,
    /// in no order, `.` and `..` left out. Symbolic links are not followed.
    pub(crate) fn entries(&self, rel: &Path) -> Result<Vec<(OsString, FileType)>, PoolError> {
        let failed = |error| from_errno(rel, "list the folder", error);
        let folder = self.folder_beneath(rel, rel)?;
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    match rustix::fs::statat(&folder, name, flags) {
                        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                        // Removed meanwhile.
                        Err(Errno::NOENT) => continue,
                        Err(error) => return Err(failed(error)),
                    }
                }
                kind => kind,
            };
            entries.push((name.to_owned(), kind));
        }
        Ok(entries)
    }

    /// Resolves `rel` to its folder and its last name; the folder must exist.
    pub(crate) fn place(&self, rel: &Path) -> Result<Place, PoolError> {
        let (parents, name) = split(rel)?;
        let folder = self.folder_beneath(rel, &parents)?;
        Ok(Place {
            folder,
            name,
            rel: rel.to_owned(),
            assigned: self.assigned,
        })
    }

    /// As [`Pool::place`], but creates the folders on the way (mode 0700).
    pub(crate) fn place_creating_folders(&self, rel: &Path) -> Result<Place, PoolError> {
        let (parents, name) = split(rel)?;
        let mut done = PathBuf::new();
        let mut folder = self.folder_beneath(rel, &done)?;
        for part in parents.components() {
            match rustix::fs::mkdirat(&folder, part.as_os_str(), Mode::RWXU) {
                Ok(()) => sync_folder(&folder)
                    .map_err(|error| from_errno(rel, "sync the folder", error))?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(from_errno(rel, "create the folder", error)),
            }
            done.push(part);
            folder = self.folder_beneath(rel, &done)?;
        }
        Ok(Place {
            folder,
            name,
            rel: rel.to_owned(),
            assigned: self.assigned,
        })
    }

    fn folder_beneath(&self, rel: &Path, parents: &Path) -> Result<OwnedFd, PoolError> {
        let parents = if parents.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parents
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match rustix::fs::openat2(&self.folder, parents, flags, Mode::empty(), BENEATH) {
                // The kernel could not rule out a concurrent rename.
                Err(Errno::AGAIN | Errno::INTR) if attempts < 100 => {}
                Ok(folder) => return Ok(folder),
                Err(error) => return Err(from_errno(rel, "open the folder", error)),
            }
        }
    }
}

/// A name in a folder of a pool, whether or not there is a file yet.
#[derive(Debug)]
pub(crate) struct Place {
    folder: OwnedFd,
    name: OsString,
    rel: PathBuf,
    assigned: bool,
}

impl Place {
    /// The path relative to the pool, as the caller gave it.
    pub(crate) fn rel(&self) -> &Path {
        &self.rel
    }

    /// See [`Pool::assigned`].
    pub(crate) fn is_assigned(&self) -> bool {
        self.assigned
    }

    /// Another name in the same folder.
    pub(crate) fn sibling(&self, name: OsString) -> Result<Place, PoolError> {
        let folder = rustix::io::fcntl_dupfd_cloexec(&self.folder, 0)
            .map_err(|error| from_errno(&self.rel, "duplicate the folder's descriptor", error))?;
        Ok(Place {
            folder,
            rel: self.rel.with_file_name(&name),
            name,
            assigned: self.assigned,
        })
    }

    /// The sibling whose name is this one's with `suffix` behind it.
    pub(crate) fn with_suffix(&self, suffix: &str) -> Result<Place, PoolError> {
        let mut name = self.name.clone();
        name.push(suffix);
        self.sibling(name)
    }

    /// Opens the regular file of this name.
    pub(crate) fn open(&self, flags: OFlags) -> Result<OwnedFd, PoolError> {
        // NONBLOCK: opening a FIFO must not wait for its other end.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let open = || rustix::fs::openat(&self.folder, &self.name, flags, Mode::RUSR | Mode::WUSR);
        let fd = match flags.contains(OFlags::CREATE) {
            true => step(&self.folder, Step::Create(&self.name), open),
            false => open(),
        };
        let fd = fd.map_err(|error| from_errno(&self.rel, "open the file", error))?;
        let stat = rustix::fs::fstat(&fd)
            .map_err(|error| from_errno(&self.rel, "look at the file", error))?;
        match kind_name(FileType::from_raw_mode(stat.st_mode)) {
            None => Ok(fd),
            Some(found) => Err(PoolError::NotAFile {
                path: self.rel.clone(),
                found,
            }),
        }
    }

    /// Whether anything has this name.
    pub(crate) fn exists(&self) -> Result<bool, PoolError> {
        match self.identity() {
            Ok(_) => Ok(true),
            Err(PoolError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Device and inode of what has this name.
    pub(crate) fn identity(&self) -> Result<(u64, u64), PoolError> {
        let stat = rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| from_errno(&self.rel, "look at the file", error))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// How many bytes of the file of this name the file system has no room
    /// for yet.
    pub(crate) fn missing(&self) -> Result<u64, PoolError> {
        let stat = rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| from_errno(&self.rel, "look at the file", error))?;
        // stat counts in 512 bytes, whatever the file system's blocks.
        let reserved = u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512);
        Ok(u64::try_from(stat.st_size)
            .unwrap_or(0)
            .saturating_sub(reserved))
    }

    /// Gives the file of this name the name `to` in the same folder, durably.
    /// Refused when that name is taken.
    pub(crate) fn rename_to(&self, to: &Place) -> Result<(), RenameError> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match step(&self.folder, Step::Move(&self.name, &to.name), || {
            rustix::fs::renameat_with(&self.folder, &self.name, &to.folder, &to.name, flags)
        }) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(RenameError::Taken),
            // A file system without renameat2 (NFS): a hard link doesn't
            // replace either, and the old name goes after it.
            Err(Errno::INVAL | Errno::NOSYS) => {
                match rustix::fs::linkat(
                    &self.folder,
                    &self.name,
                    &to.folder,
                    &to.name,
                    AtFlags::empty(),
                ) {
                    Ok(()) => {}
                    Err(Errno::EXIST) => return Err(RenameError::Taken),
                    Err(error) => {
                        return Err(RenameError::Failed(from_errno(
                            &to.rel,
                            "name the file",
                            error,
                        )));
                    }
                }
                self.unlink().map_err(RenameError::Failed)?;
            }
            Err(error) => {
                return Err(RenameError::Failed(from_errno(
                    &to.rel,
                    "name the file",
                    error,
                )));
            }
        }
        self.sync_folder().map_err(RenameError::Failed)
    }

    /// Gives the file of this name the name `to` in the same folder, in the
    /// place of what has that name. Durable once the folder is synced.
    pub(crate) fn replace(&self, to: &Place) -> Result<(), PoolError> {
        step(&self.folder, Step::Move(&self.name, &to.name), || {
            rustix::fs::renameat(&self.folder, &self.name, &to.folder, &to.name)
        })
        .map_err(|error| from_errno(&to.rel, "replace the file", error))
    }

    /// Takes the name away.
    pub(crate) fn unlink(&self) -> Result<(), PoolError> {
        step(&self.folder, Step::Remove(&self.name), || {
            rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty())
        })
        .map_err(|error| from_errno(&self.rel, "remove the file", error))
    }

    /// Makes names that were given or taken in the folder durable.
    pub(crate) fn sync_folder(&self) -> Result<(), PoolError> {
        sync_folder(&self.folder).map_err(|error| from_errno(&self.rel, "sync the folder", error))
    }

    /// How much room the file system below the folder has.
    pub(crate) fn space(&self) -> Result<PoolSpace, PoolError> {
        space(self.folder.as_fd())
            .map_err(|error| from_errno(&self.rel, "ask for free space", error))
    }
}

/// Why a new file did not get its name.
#[derive(Debug)]
pub(crate) enum RenameError {
    /// Another file has it.
    Taken,
    /// The system refused.
    Failed(PoolError),
}

/// Splits a path into the folder part and the last name, refusing what is not
/// a plain relative path.
fn split(rel: &Path) -> Result<(PathBuf, OsString), PoolError> {
    let escapes = || PoolError::PathEscapes {
        path: rel.to_owned(),
    };
    let mut parts: Vec<&OsStr> = Vec::new();
    for component in rel.components() {
        match component {
            Component::Normal(part) if !part.as_bytes().contains(&0) => parts.push(part),
            Component::CurDir => {}
            _ => return Err(escapes()),
        }
    }
    // "disk.vhd/" and "disk.vhd/." would name a folder.
    let bytes = rel.as_os_str().as_bytes();
    if bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        return Err(escapes());
    }
    let name = parts.pop().ok_or_else(escapes)?;
    Ok((parts.iter().collect(), name.to_owned()))
}

#[cfg(test)]
thread_local! {
    /// What tests say that any file system has left.
    pub(crate) static AVAILABLE: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

fn space(fd: BorrowedFd<'_>) -> rustix::io::Result<PoolSpace> {
    #[cfg(test)]
    if let Some(available) = AVAILABLE.get() {
        return Ok(PoolSpace {
            total: available,
            available,
        });
    }
    let stat = rustix::fs::fstatvfs(fd)?;
    Ok(PoolSpace {
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

fn sync_folder(folder: &OwnedFd) -> rustix::io::Result<()> {
    step(folder, Step::Sync, || rustix::fs::fsync(folder))
}

/// What happens to the names in a folder.
#[derive(Debug)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum Step<'a> {
    /// A file of this name is created.
    Create(&'a OsStr),
    /// The name goes.
    Remove(&'a OsStr),
    /// The first name goes, and the second stands for its file.
    Move(&'a OsStr, &'a OsStr),
    /// What happened is made durable.
    Sync,
}

/// Does something to the names in a folder. Tests watch that.
fn step<T>(
    folder: &OwnedFd,
    step: Step<'_>,
    call: impl FnOnce() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    #[cfg(test)]
    let call = || crate::storage::trace::step(folder, step, call);
    #[cfg(not(test))]
    let _ = (folder, step);
    call()
}

/// What a thing is that is not a regular file.
fn kind_name(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::RegularFile => None,
        FileType::Directory => Some("folder"),
        FileType::Fifo => Some("pipe"),
        FileType::Socket => Some("socket"),
        FileType::BlockDevice => Some("block device"),
        FileType::CharacterDevice => Some("character device"),
        FileType::Symlink => Some("symbolic link"),
        _ => Some("file of an unknown kind"),
    }
}

fn from_errno(path: &Path, operation: &'static str, error: Errno) -> PoolError {
    let path = path.to_owned();
    match error {
        Errno::LOOP | Errno::XDEV => PoolError::PathEscapes { path },
        Errno::NOENT => PoolError::NotFound { path },
        error => PoolError::Io {
            path,
            operation,
            source: error.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn pool() -> (tempfile::TempDir, Pool) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pool")).unwrap();
        std::fs::write(dir.path().join("outside"), "secret").unwrap();
        let pool = Pool::open(dir.path().join("pool")).unwrap();
        (dir, pool)
    }

    fn escapes(result: Result<Place, PoolError>, expected: &str) -> bool {
        matches!(result, Err(PoolError::PathEscapes { path }) if path == Path::new(expected))
    }

    #[test]
    fn a_plain_path_is_opened() {
        let (dir, pool) = pool();
        std::fs::create_dir_all(dir.path().join("pool/a/b")).unwrap();
        std::fs::write(dir.path().join("pool/a/b/disk"), "x").unwrap();
        assert!(pool.open_read("a/b/disk").is_ok());
        assert!(pool.open_read("./a/./b/disk").is_ok());
        assert!(matches!(
            pool.open_read("a/c/disk"),
            Err(PoolError::NotFound { .. })
        ));
        assert!(matches!(
            pool.open_read("a/b"),
            Err(PoolError::NotAFile {
                found: "folder",
                ..
            })
        ));
    }

    #[test]
    fn paths_that_leave_the_pool_are_refused_by_name() {
        let (dir, pool) = pool();
        let absolute = dir.path().join("outside");
        for rel in ["../outside", "a/../../outside", "..", "", ".", "a/", "a/."] {
            assert!(escapes(pool.place(Path::new(rel)), rel), "{rel}");
            assert!(
                escapes(pool.place_creating_folders(Path::new(rel)), rel),
                "{rel}"
            );
        }
        assert!(escapes(pool.place(&absolute), absolute.to_str().unwrap()));
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let (dir, pool) = pool();
        symlink(dir.path(), dir.path().join("pool/up")).unwrap();
        symlink(dir.path().join("outside"), dir.path().join("pool/link")).unwrap();
        assert!(escapes(pool.place(Path::new("up/outside")), "up/outside"));
        assert!(escapes(
            pool.place_creating_folders(Path::new("up/new/disk")),
            "up/new/disk"
        ));
        assert!(
            matches!(pool.open_read("link"), Err(PoolError::PathEscapes { path }) if path == Path::new("link"))
        );
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_other_end() {
        let (dir, pool) = pool();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("pool/pipe"),
            FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .unwrap();
        assert!(matches!(
            pool.open_read("pipe"),
            Err(PoolError::NotAFile { found: "pipe", .. })
        ));
    }

    #[test]
    fn folders_are_created_for_the_owner_alone() {
        let (dir, pool) = pool();
        pool.place_creating_folders(Path::new("a/b/disk")).unwrap();
        for folder in ["pool/a", "pool/a/b"] {
            let mode = std::fs::metadata(dir.path().join(folder))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o700, "{folder}");
        }
        assert!(!dir.path().join("pool/a/b/disk").exists());
    }

    #[test]
    fn a_rename_does_not_replace() {
        let (dir, pool) = pool();
        std::fs::write(dir.path().join("pool/a"), "a").unwrap();
        std::fs::write(dir.path().join("pool/b"), "b").unwrap();
        let a = pool.place(Path::new("a")).unwrap();
        let b = pool.place(Path::new("b")).unwrap();
        assert!(matches!(a.rename_to(&b), Err(RenameError::Taken)));
        assert_eq!(std::fs::read(dir.path().join("pool/b")).unwrap(), b"b");
        a.rename_to(&pool.place(Path::new("c")).unwrap()).unwrap();
        assert_eq!(std::fs::read(dir.path().join("pool/c")).unwrap(), b"a");
        assert!(!dir.path().join("pool/a").exists());
    }
}
