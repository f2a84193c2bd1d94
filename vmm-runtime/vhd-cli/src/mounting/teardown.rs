//! Taking a mounted disk away again.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::failure::{Exit, Failure};
use crate::mounting::loop_device;
use crate::mounting::server::CLOSED;
use crate::mounting::state::{Mounted, StateFolder};

/// A loop device lets go of its file a moment after it is told to.
const DETACHING: Duration = Duration::from_secs(20);
/// A disk may have much to write when it is closed.
const CLOSING: Duration = Duration::from_secs(600);

/// Unmounts the volumes, detaches the devices, and waits until the disk is
/// closed and durable. Whoever is in the way is told, and nothing that can't
/// be undone is done before.
pub(crate) fn take_down(folder: &StateFolder, mounted: &mut Mounted) -> Result<(), Failure> {
    for at in 0..mounted.volumes.len() {
        let Some(dir) = mounted
            .volumes
            .get(at)
            .and_then(|volume| volume.folder.clone())
        else {
            continue;
        };
        umount(&dir)?;
        if let Some(volume) = mounted.volumes.get_mut(at) {
            volume.folder = None;
        }
        folder.save(mounted)?;
    }
    let own = mounted.volumes.iter().filter(|volume| volume.own_loop);
    let mut devices: Vec<_> = own.map(|volume| volume.device.clone()).collect();
    devices.push(mounted.device.clone());
    if folder.is_served() {
        for volume in &mounted.volumes {
            in_use(&volume.device)?;
        }
        in_use(&mounted.device)?;
        // Each has a cache of its own.
        for volume in &mounted.volumes {
            loop_device::sync(&volume.device)?;
        }
        loop_device::sync(&mounted.device)?;
    }
    for device in &devices {
        loop_device::detach(device)?;
    }
    close(folder)
}

fn in_use(device: &Path) -> Result<(), Failure> {
    if loop_device::is_free(device)? {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Busy,
        format!(
            "{}: the device is mounted, or otherwise in use; unmount it first",
            device.display()
        ),
    ))
}

fn umount(dir: &Path) -> Result<(), Failure> {
    // Not ours any more, if the user unmounted it.
    if !is_mount_point(dir) {
        return Ok(());
    }
    let flags = UnmountFlags::empty();
    rustix::mount::unmount(dir, flags).map_err(|error| match error {
        Errno::BUSY => Failure::new(
            Exit::Busy,
            format!(
                "{}: the folder is in use; close what uses it (`fuser -vm` names it)",
                dir.display()
            ),
        ),
        error => Failure::io(dir, "unmount", &error.into()),
    })
}

fn is_mount_point(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| {
        line.split(' ')
            .nth(4)
            .is_some_and(|path| Path::new(&unescape(path)) == dir)
    })
}

/// The kernel writes blanks, tabs, newlines and backslashes as `\040`.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Unmounts the FUSE file system, and waits for the end of its server.
pub(crate) fn close(folder: &StateFolder) -> Result<(), Failure> {
    let fuse = folder.fuse();
    let end = Instant::now() + DETACHING;
    loop {
        match rustix::mount::unmount(&fuse, UnmountFlags::empty()) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => break,
            Err(Errno::BUSY) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::BUSY) => {
                return Err(Failure::new(
                    Exit::Busy,
                    format!("{}: the disk's file is in use", fuse.display()),
                ));
            }
            Err(error) => return Err(Failure::io(&fuse, "unmount", &error.into())),
        }
    }
    let end = Instant::now() + CLOSING;
    while folder.is_served() {
        if Instant::now() >= end {
            return Err(Failure::new(
                Exit::Busy,
                format!(
                    "{}: the disk is still being written; ask again later",
                    folder.path().display()
                ),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match fs::read_to_string(folder.end()) {
        Ok(text) if text == CLOSED => Ok(()),
        Ok(text) => Err(Failure::new(
            Exit::System,
            format!("the server of the disk ended with an error: {text}"),
        )),
        Err(_) => Err(Failure::new(
            Exit::System,
            "the server of the disk was killed: what was not flushed is lost",
        )),
    }
}

/// Mounts the file system on a device, whatever it is.
pub(crate) fn mount(device: &Path, dir: &Path, read_only: bool) -> Result<(), Failure> {
    let mut command = Command::new("mount");
    if read_only {
        command.args(["-o", "ro"]);
    }
    let output = command
        .arg("--")
        .arg(device)
        .arg(dir)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::io(Path::new("mount"), "run the program", &error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::System,
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}
