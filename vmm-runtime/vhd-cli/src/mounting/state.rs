//! What is mounted, as it is kept for later commands.
//!
//! It is written before the first thing is made, and again with each: whatever
//! ends `vhd mount`, `vhd unmount` finds what there is to be taken away.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};
use crate::mounting::disk_file;
use crate::mounting::loop_device::{Backing, Owner};
use crate::mounting::server::CLOSED;

/// A disk that is a device of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Mounted {
    /// What it is called among those that are mounted.
    pub(crate) id: String,
    /// The disk.
    pub(crate) file: PathBuf,
    /// Where changes go, if not to the disk itself.
    pub(crate) undo: Option<PathBuf>,
    pub(crate) read_only: bool,
    /// In bytes.
    pub(crate) size: u64,
    /// The whole disk as a file.
    pub(crate) image: PathBuf,
    /// The same, as loop devices know it; once it is there.
    pub(crate) backing: Option<Backing>,
    /// The whole disk as a device; empty before it is one.
    pub(crate) device: PathBuf,
    pub(crate) volumes: Vec<Volume>,
}

impl Mounted {
    /// Whose the loop devices are.
    pub(crate) fn owner(&self) -> Owner<'_> {
        Owner {
            id: &self.id,
            image: &self.image,
            backing: self.backing,
        }
    }
}

/// A partition, or the whole of a disk that has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Volume {
    /// Counted from 1, in the order of the disk.
    pub(crate) number: usize,
    /// Its first byte on the disk.
    pub(crate) start: u64,
    /// In bytes.
    pub(crate) length: u64,
    /// What it holds, as far as that is known.
    pub(crate) kind: String,
    pub(crate) device: PathBuf,
    /// Whether the device is a loop device of its own.
    pub(crate) own_loop: bool,
    /// Where it is mounted, or is about to be.
    pub(crate) folder: Option<PathBuf>,
    /// The number of the device that is mounted there, as the kernel lists
    /// it: some file systems have one of their own.
    pub(crate) mounted_as: Option<String>,
}

/// The folder of one mounted disk.
#[derive(Debug, Clone)]
pub(crate) struct StateFolder(PathBuf);

impl StateFolder {
    /// Makes a new one, with a folder for the FUSE file system in it.
    pub(crate) fn make(id: &str) -> Result<StateFolder, Failure> {
        let path = root()?.join(id);
        make_folder(&path, 0o700)?;
        make_folder(&path.join("fuse"), 0o700)?;
        Ok(StateFolder(path))
    }

    pub(crate) fn at(path: &Path) -> StateFolder {
        StateFolder(path.to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn fuse(&self) -> PathBuf {
        self.0.join("fuse")
    }

    /// The disk, as a file of the FUSE file system.
    pub(crate) fn image(&self) -> PathBuf {
        self.fuse().join(disk_file::NAME)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// How the server ended.
    pub(crate) fn end(&self) -> PathBuf {
        self.0.join("end")
    }

    /// Held by the one command that mounts or unmounts it.
    pub(crate) fn claim(&self) -> Result<File, Failure> {
        let failed = |error: &io::Error| Failure::io(&self.0, "lock the folder", error);
        let folder = File::open(&self.0).map_err(|error| failed(&error))?;
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(folder),
            Err(Errno::WOULDBLOCK) => Err(Failure::new(
                Exit::Busy,
                format!(
                    "{}: another command mounts or unmounts this disk; wait for its end",
                    self.0.display()
                ),
            )),
            Err(error) => Err(failed(&error.into())),
        }
    }

    /// As if the server had closed the disk, once it was told that it didn't.
    pub(crate) fn forget_end(&self) -> Result<(), Failure> {
        fs::write(self.end(), CLOSED)
            .map_err(|error| Failure::io(&self.end(), "write how it ended", &error))
    }

    /// Whether nothing but the record is left, and what becomes of changes.
    pub(crate) fn is_closed(&self) -> bool {
        !self.is_served() && fs::read_to_string(self.end()).is_ok_and(|end| end == CLOSED)
    }

    /// Locked by the server as long as it runs.
    fn lock(&self) -> PathBuf {
        self.0.join("server.lock")
    }

    /// Taken by the server.
    pub(crate) fn take_lock(&self) -> io::Result<File> {
        let file = File::create(self.lock())?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    }

    /// Whether the server runs.
    pub(crate) fn is_served(&self) -> bool {
        let Ok(file) = File::open(self.lock()) else {
            return false;
        };
        let lock = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
        lock == Err(Errno::WOULDBLOCK)
    }

    pub(crate) fn save(&self, mounted: &Mounted) -> Result<(), Failure> {
        let path = self.0.join("mounted.json");
        let new = self.0.join("mounted.json.new");
        let text = serde_json::to_vec(mounted).map_err(io::Error::other);
        text.and_then(|text| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| Failure::io(&path, "keep what is mounted", &error))
    }

    pub(crate) fn load(&self) -> Result<Mounted, Failure> {
        let path = self.0.join("mounted.json");
        fs::read(&path)
            .and_then(|text| serde_json::from_slice(&text).map_err(io::Error::other))
            .map_err(|error| Failure::io(&path, "read what is mounted", &error))
    }

    /// Removes it, when nothing is mounted any more.
    pub(crate) fn remove(&self) -> Result<(), Failure> {
        // Not recursively: were something mounted there, it would be emptied.
        let removed = (|| {
            fs::remove_dir(self.fuse())?;
            for entry in fs::read_dir(&self.0)? {
                fs::remove_file(entry?.path())?;
            }
            fs::remove_dir(&self.0)
        })();
        removed.map_err(|error| Failure::io(&self.0, "remove the folder of the mount", &error))
    }
}

/// The folder for things that go when the machine stops. Not the user's own:
/// devices and mounts are the machine's, and whoever is root finds them here.
/// The variable is for tests.
fn runtime_folder() -> PathBuf {
    let other = std::env::var_os("PADDOCK_VHD_RUN").map(PathBuf::from);
    other
        .filter(|folder| folder.is_absolute())
        .unwrap_or_else(|| PathBuf::from("/run"))
}

fn is_own(folder: &Path) -> bool {
    folder.symlink_metadata().is_ok_and(|metadata| {
        metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw()
    })
}

/// Where states are kept; made if it isn't there.
fn root() -> Result<PathBuf, Failure> {
    let mut folder = runtime_folder();
    for name in ["paddock", "mounts"] {
        folder.push(name);
        match make_folder(&folder, if name == "paddock" { 0o755 } else { 0o700 }) {
            Err(_) if is_own(&folder) => {}
            made => made?,
        }
    }
    let mode = folder.symlink_metadata().map(|metadata| metadata.mode());
    if mode.is_ok_and(|mode| mode & 0o077 == 0) {
        // As the kernel names what lies in it.
        return folder
            .canonicalize()
            .map_err(|error| Failure::io(&folder, "look at the folder", &error));
    }
    Err(Failure::wrong_use(format!(
        "{}: expected a folder of this user with mode 0700; remove what is there",
        folder.display()
    )))
}

fn make_folder(path: &Path, mode: u32) -> Result<(), Failure> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(|error| Failure::io(path, "make the folder", &error))
}

/// All that are mounted, in the order of their names.
pub(crate) fn all() -> Result<Vec<(StateFolder, Mounted)>, Failure> {
    let root = runtime_folder().join("paddock/mounts");
    let entries = match fs::read_dir(&root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::io(&root, "list", &error)),
    };
    let mut list = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Failure::io(&root, "list", &error))?;
        let folder = StateFolder(entry.path());
        // One that has just been made, or is nearly gone, has none.
        if let Ok(mounted) = folder.load() {
            list.push((folder, mounted));
        }
    }
    list.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
    Ok(list)
}
