//! Loop devices: `include/uapi/linux/loop.h` of the kernel has the figures.
//!
//! Numbers are given out again: a name such as `/dev/loop0` may be anyone's by
//! the time that it is to be detached. So a loop device is known by the file
//! that it shows, and by a mark that we leave with it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};

const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

const READ_ONLY: u32 = 1;
const PARTSCAN: u32 = 8;
const DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Config>() == 304);

impl Info {
    fn empty() -> Info {
        Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// The file behind a loop device, by its device and inode. Those of a FUSE
/// file system may be another one's later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backing {
    device: u64,
    inode: u64,
}

impl Backing {
    pub(crate) fn of(file: &Path) -> Result<Backing, Failure> {
        let metadata = file
            .metadata()
            .map_err(|error| Failure::io(file, "look at the disk's file", &error))?;
        Ok(Backing {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// Whose a loop device is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    /// The name of the mount, which no other has.
    pub(crate) id: &'a str,
    /// The file that it shows.
    pub(crate) image: &'a Path,
    /// The same, as far as that is known.
    pub(crate) backing: Option<Backing>,
}

impl Owner<'_> {
    /// What a loop device of this owner is called.
    fn mark(&self) -> [u8; 64] {
        let mut mark = [0; 64];
        let text = b"vhd-".iter().chain(self.id.as_bytes());
        // The last byte stays 0.
        for (place, byte) in mark[..63].iter_mut().zip(text) {
            *place = *byte;
        }
        mark
    }
}

/// What of a file a loop device shows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    /// 0: up to the end.
    pub(crate) len: u64,
    pub(crate) read_only: bool,
    /// Whether the kernel is to look for partitions.
    pub(crate) partitions: bool,
}

/// Makes a loop device of the owner's file.
pub(crate) fn attach(owner: Owner<'_>, part: Part) -> Result<PathBuf, Failure> {
    let file = owner.image;
    let mark = owner.mark();
    let failed = |error: &io::Error| Failure::io(file, "make a loop device of it", error);
    let backing = File::options()
        .read(true)
        .write(!part.read_only)
        .open(file)
        .map_err(|error| failed(&error))?;
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .map_err(|error| Failure::io(Path::new("/dev/loop-control"), "open", &error))?;
    // Another round when somebody else takes the free one first.
    for _ in 0..100 {
        // SAFETY: the descriptor is open, and LOOP_CTL_GET_FREE takes no
        // argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(failed(&io::Error::last_os_error()));
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| Failure::io(&path, "open the loop device", &error))?;
        match configure(&device, &backing, mark, part, DIRECT_IO) {
            Ok(()) => return Ok(path),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => continue,
            // Without direct I/O it works, but twice cached.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                configure(&device, &backing, mark, part, 0).map_err(|error| failed(&error))?;
                return Ok(path);
            }
            Err(error) => return Err(failed(&error)),
        }
    }
    Err(Failure::new(Exit::Busy, "no loop device is free for long"))
}

fn configure(
    device: &File,
    backing: &File,
    mark: [u8; 64],
    part: Part,
    direct: u32,
) -> io::Result<()> {
    let mut flags = direct;
    if part.read_only {
        flags |= READ_ONLY;
    }
    if part.partitions {
        flags |= PARTSCAN;
    }
    let config = Config {
        // A descriptor that is open is not negative.
        fd: backing.as_raw_fd() as u32,
        block_size: 512,
        info: Info {
            offset: part.offset,
            size_limit: part.len,
            flags,
            file_name: mark,
            ..Info::empty()
        },
        reserved: [0; 8],
    };
    // SAFETY: the descriptor is open, and LOOP_CONFIGURE takes a pointer to a
    // loop_config, which it only reads; `Config` has its layout.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether nobody has the device mounted, or otherwise for itself.
pub(crate) fn is_free(device: &Path) -> Result<bool, Failure> {
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(device);
    match opened {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        Err(error) => Err(Failure::io(device, "open the device", &error)),
    }
}

/// Writes what the kernel has cached for a device.
pub(crate) fn sync(device: &Path) -> Result<(), Failure> {
    File::open(device)
        .and_then(|device| device.sync_all())
        .map_err(|error| Failure::io(device, "write what is cached of it", &error))
}

/// Whether a loop device is the owner's, and not one that took its number.
pub(crate) fn is_owned(device: &Path, owner: Owner<'_>) -> Result<bool, Failure> {
    match File::open(device) {
        Ok(file) => shows(&file, device, owner),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::io(device, "open the loop device", &error)),
    }
}

fn shows(file: &File, device: &Path, owner: Owner<'_>) -> Result<bool, Failure> {
    let mut info = Info::empty();
    // SAFETY: the descriptor is open, and LOOP_GET_STATUS64 takes a pointer to
    // a loop_info64, which it writes; `Info` has its layout, and any bytes are
    // one.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    if result == 0 {
        let backing = Backing {
            device: info.device,
            inode: info.inode,
        };
        let same = owner.backing.is_none_or(|expected| expected == backing);
        return Ok(same && info.file_name == owner.mark());
    }
    let error = io::Error::last_os_error();
    match Errno::from_io_error(&error) {
        // It shows nothing, or is no loop device.
        Some(Errno::NXIO | Errno::NOTTY | Errno::INVAL) => Ok(false),
        // The kernel can't ask a dead server for the file; its path it knows.
        _ => Ok(shown_path(device).is_some_and(|path| path == owner.image)),
    }
}

/// The path of the file that a loop device shows, as the kernel tells it.
fn shown_path(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?.to_str()?;
    let text = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(text.strip_suffix('\n').unwrap_or(&text).into())
}

/// The loop devices that are the owner's: of all that there are, and of those
/// that are named.
pub(crate) fn owned(
    owner: Owner<'_>,
    named: impl Iterator<Item = PathBuf>,
) -> Result<Vec<PathBuf>, Failure> {
    let sys = Path::new("/sys/block");
    let entries = std::fs::read_dir(sys).map_err(|error| Failure::io(sys, "list", &error))?;
    let mut devices: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"loop"))
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .filter(|device| shown_path(device).is_some_and(|path| path == owner.image))
        .chain(named)
        .collect();
    devices.sort();
    devices.dedup();
    let mut owned = Vec::new();
    for device in devices {
        if is_owned(&device, owner)? {
            owned.push(device);
        }
    }
    Ok(owned)
}

/// Takes the file away from a loop device, if that is the owner's, once the
/// last one who has it open closes it.
pub(crate) fn detach(device: &Path, owner: Owner<'_>) -> Result<(), Failure> {
    let file = File::open(device).map_err(|error| Failure::io(device, "open", &error))?;
    if !shows(&file, device, owner)? {
        return Ok(());
    }
    // SAFETY: the descriptor is open, and LOOP_CLR_FD takes no argument.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), LOOP_CLR_FD) };
    let error = io::Error::last_os_error();
    match Errno::from_io_error(&error) {
        _ if result == 0 => Ok(()),
        // It has none any more.
        Some(Errno::NXIO) => Ok(()),
        _ => Err(Failure::io(device, "detach the loop device", &error)),
    }
}

/// The kernel's own node of a partition, if there is one that works.
pub(crate) fn partition_node(device: &Path, number: usize) -> Option<PathBuf> {
    let name = device.file_name()?.to_str()?;
    let node = PathBuf::from(format!("/dev/{name}p{number}"));
    let numbers = std::fs::read_to_string(format!("/sys/class/block/{name}p{number}/dev")).ok()?;
    let rdev = node.metadata().ok()?.rdev();
    let found = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
    (numbers.trim() == found).then_some(node)
}
