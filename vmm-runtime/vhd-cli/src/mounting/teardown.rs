//! Taking a mounted disk away again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::mounting::loop_device;
use crate::mounting::server::CLOSED;
use crate::mounting::state::{Mounted, StateFolder, Volume};

/// A loop device lets go of its file a moment after it is told to.
const DETACHING: Duration = Duration::from_secs(20);
/// How long a device may be in use by those who only look at it, or let go of
/// it, such as what has just made a file system.
const PATIENCE: Duration = Duration::from_secs(2);
/// From one look at it to the next.
const PAUSE: Duration = Duration::from_millis(20);
/// A disk may have much to write when it is closed.
const CLOSING: Duration = Duration::from_secs(600);

/// Unmounts the volumes, detaches the devices, and waits until the server has
/// ended. Whoever is in the way is told, and nothing that can't be undone is
/// done before. What is another's by now, under a name that was ours, stays.
/// To be asked for again after an error. `interrupt`: ends the waiting.
pub(crate) fn take_down(
    folder: &StateFolder,
    mounted: &mut Mounted,
    interrupt: Option<&Interrupt>,
) -> Result<(), Failure> {
    let owner = mounted.owner();
    let own = mounted.volumes.iter().filter(|volume| volume.own_loop);
    let named = own
        .map(|volume| volume.device.clone())
        .chain([mounted.device.clone()])
        .filter(|device| !device.as_os_str().is_empty());
    let loops = loop_device::owned(owner, named)?;
    let is_ours = |volume: &Volume| {
        let device = if volume.own_loop {
            &volume.device
        } else {
            &mounted.device
        };
        loops.contains(device)
    };
    let mut nodes = Vec::new();
    for volume in mounted.volumes.iter().filter(|volume| is_ours(volume)) {
        if volume.folder.is_some() {
            umount(volume)?;
        }
        nodes.push(volume.device.clone());
    }
    for volume in &mut mounted.volumes {
        volume.folder = None;
        volume.mounted_as = None;
    }
    // Only a help: without it, they are looked for again.
    let _ = folder.save(mounted);
    nodes.extend(loops.iter().cloned());
    if folder.is_served() {
        for node in &nodes {
            in_use(node)?;
        }
        // Each has a cache of its own.
        for node in &nodes {
            loop_device::sync(node)?;
        }
    }
    for device in &loops {
        loop_device::detach(device, mounted.owner())?;
    }
    close(folder, interrupt)
}

fn in_use(device: &Path) -> Result<(), Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        if loop_device::is_free(device)? {
            return Ok(());
        }
        if Instant::now() >= end {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    Err(Failure::new(
        Exit::Busy,
        format!(
            "{}: the device is mounted, or otherwise in use; unmount it first",
            device.display()
        ),
    ))
}

/// Unmounts a volume, if it is still what is mounted on its folder.
fn umount(volume: &Volume) -> Result<(), Failure> {
    let (Some(dir), Some(found)) = (
        &volume.folder,
        volume.folder.as_deref().and_then(mounted_on),
    ) else {
        return Ok(());
    };
    let expected = volume.mounted_as.clone().or_else(|| number(&volume.device));
    if expected != Some(found) {
        return Ok(());
    }
    let flags = UnmountFlags::NOFOLLOW;
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

/// The number of a device, as the kernel lists it.
fn number(device: &Path) -> Option<String> {
    let number = device.metadata().ok()?.rdev();
    Some(format!(
        "{}:{}",
        rustix::fs::major(number),
        rustix::fs::minor(number)
    ))
}

/// The number of the device that was mounted last on a folder, if one is.
pub(crate) fn mounted_on(dir: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    last_on(&mounts, dir)
}

fn last_on(mounts: &str, dir: &Path) -> Option<String> {
    let line = mounts.lines().rev().find(|line| {
        line.split(' ')
            .nth(4)
            .is_some_and(|path| Path::new(&unescape(path)) == dir)
    })?;
    line.split(' ').nth(2).map(str::to_owned)
}

/// The kernel writes blanks, tabs, newlines and backslashes as `\040`.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Unmounts the FUSE file system, and waits for the end of its server.
fn close(folder: &StateFolder, interrupt: Option<&Interrupt>) -> Result<(), Failure> {
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
        let writing = "the disk is still being written; ask again later";
        if interrupt.is_some_and(Interrupt::came) {
            return Err(Failure::new(Exit::Cancelled, writing));
        }
        if Instant::now() >= end {
            return Err(Failure::new(
                Exit::Busy,
                format!("{}: {writing}", folder.path().display()),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// How the server ended that has ended.
pub(crate) fn how_it_ended(folder: &StateFolder) -> Result<(), Failure> {
    match fs::read_to_string(folder.end()) {
        Ok(text) if text == CLOSED => Ok(()),
        Ok(text) => Err(Failure::from_json(&text).unwrap_or_else(|| {
            Failure::new(
                Exit::System,
                "the server of the disk was killed while it ended",
            )
        })),
        Err(_) => Err(Failure::new(
            Exit::System,
            "the server of the disk was killed: what was not flushed is lost",
        )),
    }
}

/// How a volume is mounted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MountOptions<'a> {
    pub(crate) read_only: bool,
    /// Further ones, as `mount -o` takes them.
    pub(crate) others: Option<&'a str>,
}

impl MountOptions<'_> {
    /// What `mount -o` is told. What the disk holds is a stranger's: neither
    /// programs that act as root nor devices of this machine, unless the
    /// user says so.
    fn text(self, more: Option<&str>) -> String {
        let mut options = vec!["nosuid", "nodev"];
        if self.read_only {
            options.push("ro");
        }
        options.extend(more);
        options.extend(self.others);
        options.join(",")
    }
}

/// What mounts a file system of a kind for reading though it was not put away
/// cleanly: its journal stays as it is.
fn without_journal(kind: &str) -> Option<&'static str> {
    match kind {
        "ext3" | "ext4" => Some("noload"),
        "XFS" => Some("norecovery"),
        _ => None,
    }
}

/// Mounts a volume, whatever is on it. True if what its journal has was left
/// out.
pub(crate) fn mount(
    volume: &Volume,
    dir: &Path,
    options: MountOptions<'_>,
) -> Result<bool, Failure> {
    let refused = match run_mount(&volume.device, dir, &options.text(None)) {
        Ok(()) => return Ok(false),
        Err(refused) => refused,
    };
    match without_journal(&volume.kind) {
        Some(more) if options.read_only => {
            // The first refusal says more where this doesn't help.
            run_mount(&volume.device, dir, &options.text(Some(more))).map_err(|_| refused)?;
            Ok(true)
        }
        _ => Err(refused),
    }
}

fn run_mount(device: &Path, dir: &Path, options: &str) -> Result<(), Failure> {
    let output = Command::new("mount")
        .args(["-o", options, "--"])
        .arg(device)
        .arg(dir)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::io(Path::new("mount"), "run the program", &error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = match said.trim() {
        "" => format!("`mount` said nothing and ended with {}", output.status),
        said => said.to_owned(),
    };
    Err(Failure::new(Exit::System, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_mounted_last_on_a_folder_is_found() {
        let mounts = "\
29 1 253:0 / / rw - ext4 /dev/vda rw
41 29 7:0 / /mnt/a\\040b rw - ext4 /dev/loop0 rw
42 41 7:3 / /mnt/a\\040b rw - ext4 /dev/loop3 rw
43 29 7:4 / /mnt/a rw - ext4 /dev/loop4 rw";
        let on = |dir: &str| last_on(mounts, Path::new(dir));
        assert_eq!(on("/mnt/a b").as_deref(), Some("7:3"));
        assert_eq!(on("/mnt/a").as_deref(), Some("7:4"));
        assert_eq!(on("/mnt"), None);
    }

    #[test]
    fn a_strangers_disk_gives_no_rights_unless_the_user_says_so() {
        let text = |read_only, others, more| MountOptions { read_only, others }.text(more);
        assert_eq!(text(false, None, None), "nosuid,nodev");
        assert_eq!(
            text(true, Some("suid,uid=1000"), Some("noload")),
            "nosuid,nodev,ro,noload,suid,uid=1000"
        );
    }
}
