//! QEMU, tried with a boot sector.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::fs::{MemfdFlags, memfd_create};

use super::ProbeOptions;
use super::bounded_process::{self, End};
use super::classify;
use super::report::Usability;
use crate::config::Accelerator;

/// The user and group that QEMU runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QemuUser {
    /// User id.
    pub uid: u32,
    /// Group id, the only one.
    pub gid: u32,
}

/// The port of `isa-debug-exit`: QEMU exits with status `value * 2 + 1` when the guest writes to it.
const EXIT_PORT: u16 = 0x501;
/// What the boot sector writes there.
const EXIT_VALUE: u8 = 0x31;
/// So this is the status of success; QEMU itself uses 0 and 1.
const EXIT_STATUS: i32 = (EXIT_VALUE as i32) * 2 + 1;
/// The size of the disk. The BIOS gives a disk of less than a cylinder (504 KiB) no geometry, and then cannot read it.
const DISK_BYTES: u64 = 1024 * 1024;

/// 16-bit real mode, loaded at 0x7c00.
#[rustfmt::skip]
const BOOT_CODE: [u8; 9] = [
    0xba, EXIT_PORT as u8, (EXIT_PORT >> 8) as u8, // mov dx, EXIT_PORT
    0xb0, EXIT_VALUE,                              // mov al, EXIT_VALUE
    0xee,                                          // out dx, al
    0xf4,                                          // halt: hlt
    0xeb, 0xfd,                                    // jmp halt
];

/// The version of QEMU, or why there is none.
pub(super) fn version(options: &ProbeOptions, deadline: Instant) -> Result<String, String> {
    let qemu = options.qemu.display();
    let mut command = command(options);
    command.arg("--version").stdin(Stdio::null());
    let outcome = bounded_process::run(&mut command, deadline)
        .map_err(|error| format!("{qemu} cannot be run: {error}"))?;
    if outcome.end != End::Exited(0) {
        return Err(format!(
            "{qemu} --version {}{}",
            outcome.end,
            first_line(&outcome.stderr)
        ));
    }
    parse_version(&String::from_utf8_lossy(&outcome.stdout)).ok_or_else(|| {
        format!("{qemu} --version does not print `QEMU emulator version N`: not QEMU?")
    })
}

/// `QEMU emulator version 7.2.22 (Debian …)` -> `7.2.22`.
fn parse_version(output: &str) -> Option<String> {
    let version = output
        .strip_prefix("QEMU emulator version ")?
        .split_whitespace()
        .next()?;
    let plausible =
        version.len() <= 64 && version.starts_with(|first: char| first.is_ascii_digit());
    plausible.then(|| version.to_owned())
}

/// Boots the boot sector: BIOS, virtio disk, real mode, port I/O.
pub(super) fn boot(
    options: &ProbeOptions,
    accelerator: Accelerator,
    deadline: Instant,
) -> Usability {
    let disk = match boot_disk() {
        Ok(disk) => disk,
        Err(error) => {
            return Usability::Unusable(format!("no memory for the boot sector: {error}"));
        }
    };
    let mut command = command(options);
    let accelerator_name = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    let exit_device = format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1");
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-m", "32"])
        .args(["-accel", accelerator_name, "-cpu", classify::cpu_model(accelerator)])
        .args(["-device", &exit_device])
        // The memory file is its standard input: nothing to name, nothing to leave behind.
        .args(["-drive", "if=virtio,format=raw,readonly=on,file.driver=file,file.filename=/proc/self/fd/0,file.locking=off"])
        .stdin(disk);
    match bounded_process::run(&mut command, deadline) {
        Ok(outcome) if outcome.end == End::Exited(EXIT_STATUS) => Usability::Usable,
        Ok(outcome) => Usability::Unusable(format!(
            "QEMU -accel {accelerator_name} {} without running a boot sector{}",
            outcome.end,
            first_line(&outcome.stderr)
        )),
        Err(error) => {
            Usability::Unusable(format!("{} cannot be run: {error}", options.qemu.display()))
        }
    }
}

fn boot_disk() -> io::Result<File> {
    let mut disk = File::from(memfd_create("boot-sector", MemfdFlags::CLOEXEC)?);
    let mut sector = [0; 512];
    for (byte, code) in sector.iter_mut().zip(BOOT_CODE) {
        *byte = code;
    }
    (sector[510], sector[511]) = (0x55, 0xaa);
    disk.write_all(&sector)?;
    disk.set_len(DISK_BYTES)?;
    Ok(disk)
}

fn command(options: &ProbeOptions) -> Command {
    let mut command = Command::new(&options.qemu);
    // Messages in English, and no surprise from the caller's environment but the way to find QEMU.
    command.env_clear().env("LC_ALL", "C").env(
        "PATH",
        std::env::var_os("PATH")
            .as_deref()
            .unwrap_or(OsStr::new("")),
    );
    if let Some(user) = options.qemu_user {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

/// `: line` with the first line that a process wrote, at most 200 characters; nothing if there is none.
fn first_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    match text.lines().find(|line| !line.trim().is_empty()) {
        Some(line) => format!(
            ": {}",
            line.trim()
                .chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect::<String>()
        ),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use super::*;

    #[test]
    fn versions_are_parsed() {
        let debian =
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c) 2003-2022 …\n";
        assert_eq!(parse_version(debian), Some("7.2.22".to_owned()));
        assert_eq!(
            parse_version("QEMU emulator version 10.0.2\n"),
            Some("10.0.2".to_owned())
        );
        assert_eq!(parse_version("QEMU emulator version \n"), None);
        assert_eq!(parse_version("qemu-img version 7.2.22"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn the_boot_disk_has_the_sector_and_its_signature() {
        let mut disk = boot_disk().unwrap();
        let mut bytes = Vec::new();
        disk.rewind().unwrap();
        disk.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 1_048_576);
        assert_eq!(
            bytes[..10],
            [0xba, 0x01, 0x05, 0xb0, 0x31, 0xee, 0xf4, 0xeb, 0xfd, 0]
        );
        assert_eq!(bytes[510..513], [0x55, 0xaa, 0]);
    }

    #[test]
    fn the_first_line_is_short_and_plain() {
        assert_eq!(
            first_line(b"\n  error: \x1b[1mno\nmore\n"),
            ": error: [1mno"
        );
        assert_eq!(first_line(b" \n"), "");
        assert_eq!(first_line(&[b'x'; 500]).len(), 202);
    }

    fn fake_qemu(folder: &Path, script: &str) -> ProbeOptions {
        let path = folder.join("qemu");
        // Written by another process: a file that a fork of this one has open for writing cannot be executed.
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" >"$2" && chmod 755 "$2""#;
        let status = Command::new("/bin/sh")
            .args(["-c", write, "sh", script])
            .arg(&path)
            .status()
            .unwrap();
        assert!(status.success());
        ProbeOptions::new(path, PathBuf::from("/nonexistent"))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn only_the_status_of_the_boot_sector_counts() {
        let folder = tempfile::tempdir().unwrap();
        let usable =
            |script: &str| boot(&fake_qemu(folder.path(), script), Accelerator::Kvm, soon());
        assert_eq!(usable("exit 99"), Usability::Usable);
        let unusable = |reason: &str| Usability::Unusable(reason.to_owned());
        assert_eq!(
            usable("echo boom >&2; exit 1"),
            unusable("QEMU -accel kvm exited with status 1 without running a boot sector: boom")
        );
        assert_eq!(
            usable("exit 0"),
            unusable("QEMU -accel kvm exited with status 0 without running a boot sector")
        );
        assert_eq!(
            usable("kill -ABRT $$"),
            unusable("QEMU -accel kvm ended by signal 6 without running a boot sector")
        );
    }

    #[test]
    fn a_qemu_that_hangs_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let options = fake_qemu(folder.path(), "exec sleep 1000");
        assert_eq!(
            boot(
                &options,
                Accelerator::Tcg,
                Instant::now() + Duration::from_millis(200)
            ),
            Usability::Unusable(
                "QEMU -accel tcg was killed at its deadline without running a boot sector"
                    .to_owned()
            )
        );
    }

    #[test]
    fn a_missing_qemu_is_named() {
        let options = ProbeOptions::new(
            PathBuf::from("/nonexistent/qemu"),
            PathBuf::from("/nonexistent"),
        );
        assert_eq!(
            version(&options, soon()),
            Err(
                "/nonexistent/qemu cannot be run: No such file or directory (os error 2)"
                    .to_owned()
            )
        );
    }
}
