//! Starting QEMU as a direct child that dies with this process.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, geteuid, getpid, getppid, set_parent_process_death_signal};
use tokio::process::{Child, Command};

use super::command_line::{Descriptors, arguments};
use crate::config::ValidVmConfig;

/// A QEMU that was started, and our ends of its connections.
pub(crate) struct Launched {
    /// The child; killed when dropped. Its error output is a pipe.
    pub child: Child,
    pub pid: u32,
    /// The control connection.
    pub qmp: UnixStream,
    /// The serial port.
    pub serial: UnixStream,
}

/// Starts QEMU. `folder` is its folder, `taps` are in the order of the network adapters.
///
/// Must be called on a thread that lives as long as the process: the kernel kills the child when the *thread* that
/// forked it ends.
pub(crate) fn launch(
    config: &ValidVmConfig,
    folder: &OwnedFd,
    taps: &[OwnedFd],
) -> io::Result<Launched> {
    let (qmp, qemu_qmp) = UnixStream::pair()?;
    let (serial, qemu_serial) = UnixStream::pair()?;
    let descriptors = Descriptors {
        qmp: qemu_qmp.as_raw_fd(),
        serial: qemu_serial.as_raw_fd(),
        folder: folder.as_raw_fd(),
        taps: taps.iter().map(AsRawFd::as_raw_fd).collect(),
    };
    let mut inherited: Vec<RawFd> = vec![descriptors.qmp, descriptors.serial, descriptors.folder];
    inherited.extend(&descriptors.taps);

    let mut command = Command::new(&config.qemu_binary);
    command
        .args(arguments(config, &descriptors))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if geteuid().is_root() {
        // As root, the standard library also drops the supplementary groups when it sets the user.
        command.uid(config.qemu_uid).gid(config.qemu_gid);
    }
    let parent = getpid();
    let prepare = move || {
        // After the change of user, which clears it.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before that. A child of a pid namespace's outside has no parent that it can see.
        if getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        for fd in &inherited {
            // SAFETY: the descriptors are open until `launch` returns, and a forked child has the same.
            let fd = unsafe { rustix::fd::BorrowedFd::borrow_raw(*fd) };
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes only system calls (prctl, getppid, fcntl) and does not allocate.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    let pid = child
        .id()
        .ok_or_else(|| io::Error::other("QEMU has no process id"))?;
    Ok(Launched {
        child,
        pid,
        qmp,
        serial,
    })
}
