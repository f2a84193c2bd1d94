//! Physical disks as the host shows them: opened exclusively, and described
//! by sysfs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, SeekFrom, major, minor};
use rustix::io::Errno;

/// Where disks are found. Tests put files there that stand for some.
pub(super) struct Devices {
    /// The folder of names that stay.
    by_id: PathBuf,
    /// The folder of devices by number.
    sys: PathBuf,
    /// Whether a regular file may stand for a disk. Never on a real system:
    /// whoever writes a descriptor would read any file of the host.
    files: bool,
}

/// Why a disk was not opened.
#[derive(Debug)]
pub(super) enum Refused {
    /// Somebody has it.
    Used,
    /// It is not what it must be: what it is.
    Kind(String),
    /// The system refused.
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused::Io(error)
    }
}

/// The longest that is read of a file that describes a disk.
const MAX_ATTRIBUTE: u64 = 256;

/// The most devices (volumes on arrays on partitions) that are followed.
const MAX_LAYERS: usize = 256;

impl Devices {
    pub(super) fn system() -> Devices {
        Devices {
            by_id: PathBuf::from("/dev/disk/by-id"),
            sys: PathBuf::from("/sys/dev/block"),
            files: false,
        }
    }

    #[cfg(test)]
    pub(super) fn of_test(by_id: &Path, sys: &Path) -> Devices {
        Devices {
            by_id: by_id.to_owned(),
            sys: sys.to_owned(),
            files: true,
        }
    }

    /// Opens the whole disk of that name for reading, and for nobody else;
    /// with its serial number.
    pub(super) fn open(&self, path: &Path) -> Result<(File, String), Refused> {
        let name = path
            .strip_prefix(&self.by_id)
            .ok()
            // As it is written: paths compare equal that are not.
            .filter(|name| self.by_id.join(name).as_os_str() == path.as_os_str())
            .filter(|name| name.components().count() == 1)
            .and_then(Path::file_name);
        if name.is_none() {
            return Err(Refused::Kind(format!(
                "is not a path in {}, whose names stay",
                self.by_id.display()
            )));
        }
        // EXCL: fails while the host has it mounted, or otherwise claimed.
        // NONBLOCK: a pipe would wait.
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::BUSY) => return Err(Refused::Used),
            Err(error) => return Err(Refused::Io(error.into())),
        };
        let metadata = file.metadata()?;
        if metadata.is_file() && self.files {
            let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
            return match rustix::fs::flock(file.as_fd(), exclusive) {
                Ok(()) => Ok((file, String::new())),
                Err(Errno::WOULDBLOCK) => Err(Refused::Used),
                Err(error) => Err(Refused::Io(error.into())),
            };
        }
        if !metadata.file_type().is_block_device() {
            return Err(Refused::Kind("is not a disk".to_owned()));
        }
        let serial = self.whole_disk(metadata.rdev()).map_err(Refused::Kind)?;
        Ok((file, serial))
    }

    /// The serial number of a disk that is one as a whole. The error says
    /// what it is instead.
    pub(super) fn whole_disk(&self, device: u64) -> Result<String, String> {
        let of = self.folder(device);
        if of.join("partition").exists() {
            return Err("is a partition; link the whole disk".to_owned());
        }
        if of.join("md").exists() {
            return Err("is an array of disks, not one of them".to_owned());
        }
        if of.join("dm").exists() {
            let uuid = attribute(&of.join("dm/uuid")).unwrap_or_default();
            // Several ways to the same disk are that disk.
            if !uuid.starts_with("mpath-") {
                return Err("is a volume; link the whole disk below it".to_owned());
            }
            return Ok(uuid);
        }
        let names = ["serial", "device/serial", "device/wwid", "wwid"];
        let found = names.iter().find_map(|name| attribute(&of.join(name)));
        let found = found.or_else(|| {
            let page = bounded(&of.join("device/vpd_pg80"))?;
            // A header of four bytes, then the number.
            text(page.get(4..)?)
        });
        Ok(found.unwrap_or_default())
    }

    /// Whether the file system with the number `device` lies on `disk`, as
    /// far as sysfs says.
    pub(super) fn lies_on(&self, device: u64, disk: &File) -> io::Result<bool> {
        let metadata = disk.metadata()?;
        if !metadata.file_type().is_block_device() {
            return Ok(false);
        }
        Ok(self.layers(device).contains(&number(metadata.rdev())))
    }

    /// The numbers of a device and of all that it lies on.
    pub(super) fn layers(&self, device: u64) -> Vec<String> {
        let mut found = vec![number(device)];
        let mut next = 0;
        while let Some(of) = found.get(next).map(|number| self.sys.join(number)) {
            next += 1;
            let mut below = Vec::new();
            if of.join("partition").exists() {
                // The folder is a link into the disk's own.
                below.extend(
                    of.canonicalize()
                        .ok()
                        .and_then(|of| Some(of.parent()?.join("dev"))),
                );
            }
            if let Ok(slaves) = of.join("slaves").read_dir() {
                below.extend(slaves.flatten().map(|slave| slave.path().join("dev")));
            }
            for number in below.iter().filter_map(|dev| attribute(dev)) {
                if found.len() < MAX_LAYERS && !found.contains(&number) {
                    found.push(number);
                }
            }
        }
        found
    }

    fn folder(&self, device: u64) -> PathBuf {
        self.sys.join(number(device))
    }
}

/// How sysfs calls a device.
fn number(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

/// The length of a disk in bytes.
pub(super) fn len(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, SeekFrom::End(0))?)
}

/// The text in a file of sysfs; `None` if there is none.
fn attribute(path: &Path) -> Option<String> {
    text(&bounded(path)?)
}

fn bounded(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MAX_ATTRIBUTE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// What of it can be printed, without spaces around it.
fn text(bytes: &[u8]) -> Option<String> {
    let printable = bytes.iter().filter(|byte| matches!(byte, b' '..=b'~'));
    let text: String = printable.map(|&byte| byte as char).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
