//! What a machine must have for a lab, and how to get it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cgroup::Cgroup;
use crate::folder::LabFolder;

/// Free disk space that a lab with a few small guests needs, in MiB: builds and caches among it.
const DISK_MIB: u64 = 6 * 1024;
/// Memory that two hosts with a small guest each need, in MiB.
const MEMORY_MIB: u64 = 3 * 1024;

/// Something that is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub what: String,
    /// What is wrong, and how to mend it; `None`: nothing.
    pub problem: Option<String>,
    /// The Debian package that mends it.
    pub package: Option<&'static str>,
}

/// A program or file that a Debian package brings.
struct Needed {
    package: &'static str,
    /// Any one of these: a program's name, or an absolute path that may hold one `*` in its last part.
    any_of: &'static [&'static str],
    purpose: &'static str,
}

const NEEDED: &[Needed] = &[
    Needed {
        package: "iproute2",
        any_of: &["ip"],
        purpose: "bridges and links",
    },
    Needed {
        package: "nftables",
        any_of: &["nft"],
        purpose: "cutting links, anti-spoofing",
    },
    Needed {
        package: "util-linux",
        any_of: &["unshare"],
        purpose: "checking namespaces",
    },
    Needed {
        package: "qemu-system-x86",
        any_of: &["qemu-system-x86_64"],
        purpose: "running guests",
    },
    Needed {
        package: "busybox-static",
        any_of: &["/bin/busybox", "/usr/bin/busybox"],
        purpose: "the guest image",
    },
    Needed {
        package: "syslinux",
        any_of: &["syslinux"],
        purpose: "the guest image",
    },
    Needed {
        package: "syslinux-common",
        any_of: &["/usr/lib/syslinux/mbr/mbr.bin", "/usr/lib/SYSLINUX/mbr.bin"],
        purpose: "the guest image",
    },
    Needed {
        package: "mtools",
        any_of: &["mcopy"],
        purpose: "the guest image",
    },
    Needed {
        package: "e2fsprogs",
        any_of: &["mke2fs"],
        purpose: "the guest image",
    },
    Needed {
        package: "cpio",
        any_of: &["cpio"],
        purpose: "the guest image",
    },
    Needed {
        package: "lz4",
        any_of: &["lz4"],
        purpose: "the guest image",
    },
    Needed {
        package: "linux-image-cloud-amd64",
        any_of: &["/boot/vmlinuz-*-cloud-amd64"],
        purpose: "the guest's kernel",
    },
];

/// Checks everything; `folder` is where the lab would be.
pub fn examine(folder: &LabFolder) -> Vec<Finding> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/bin:/bin";
    let mut findings: Vec<Finding> = NEEDED
        .iter()
        .map(|needed| Finding {
            what: format!("{} ({})", needed.package, needed.purpose),
            problem: (!is_present(needed.any_of, &path))
                .then(|| format!("install it: apt-get install {}", needed.package)),
            package: Some(needed.package),
        })
        .collect();
    let root = rustix::process::geteuid().is_root();
    check(
        &mut findings,
        "root",
        if root {
            Ok(())
        } else {
            Err("run it as root: sudo paddock-lab …".into())
        },
    );
    if root {
        check(
            &mut findings,
            "namespaces, bridges, nftables of bridges",
            kernel_network(),
        );
        check(
            &mut findings,
            "cgroup version 2 with cgroup.kill (Linux 5.14)",
            control_groups(),
        );
    }
    check(&mut findings, "/dev/net/tun", tun());
    check(
        &mut findings,
        &format!("memory: {MEMORY_MIB} MiB available"),
        memory(),
    );
    check(
        &mut findings,
        &format!("disk: {DISK_MIB} MiB free at {}", folder.path().display()),
        disk(folder.path()),
    );
    findings
}

/// Installs the packages that `findings` miss.
pub fn install(findings: &[Finding]) -> Result<()> {
    let packages: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.problem.is_some())
        .filter_map(|finding| finding.package)
        .collect();
    if packages.is_empty() {
        return Ok(());
    }
    for arguments in [
        vec!["update"],
        [
            vec!["install", "--yes", "--no-install-recommends"],
            packages,
        ]
        .concat(),
    ] {
        eprintln!("apt-get {}", arguments.join(" "));
        let status = Command::new("apt-get")
            .args(&arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status();
        let status = status.context(
            "apt-get could not be run; install the packages by your distribution's means",
        )?;
        if !status.success() {
            bail!("apt-get {}: {status}", arguments.join(" "));
        }
    }
    Ok(())
}

fn check(findings: &mut Vec<Finding>, what: &str, result: Result<(), String>) {
    findings.push(Finding {
        what: what.to_owned(),
        problem: result.err(),
        package: None,
    });
}

fn is_present(any_of: &[&str], path: &str) -> bool {
    any_of.iter().any(|name| match name.strip_prefix('/') {
        Some(_) => matches(Path::new(name)),
        None => path
            .split(':')
            .any(|folder| Path::new(folder).join(name).is_file()),
    })
}

/// Whether a file exists; its last part may hold one `*`.
fn matches(pattern: &Path) -> bool {
    let (Some(folder), Some(name)) = (
        pattern.parent(),
        pattern.file_name().and_then(|name| name.to_str()),
    ) else {
        return false;
    };
    let Some((before, after)) = name.split_once('*') else {
        return pattern.exists();
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.len() >= before.len() + after.len()
            && name.starts_with(before)
            && name.ends_with(after)
    })
}

fn kernel_network() -> Result<(), String> {
    let script = "ip link add name pdb0 type bridge && ip link add name pdv0 type veth peer name pdv1 && ip link set pdv0 master pdb0 && \
                  nft 'add table bridge t; add chain bridge t c { type filter hook prerouting priority 0; }; add rule bridge t c iifname pdv0 drop' && \
                  mount -t tmpfs none /tmp";
    let mut command = Command::new("unshare");
    command.args([
        "--net", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "sh", "-c", script,
    ]);
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "this kernel or container lacks some of it: {}; use a machine (or a privileged container) with them",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("unshare: {error}; apt-get install util-linux")),
    }
}

fn control_groups() -> Result<(), String> {
    let try_it = || -> Result<()> {
        let cgroup = Cgroup::of_lab(&format!("doctor-{}", std::process::id()))?;
        cgroup.create()?;
        let kill = cgroup.path().join("cgroup.kill").exists();
        cgroup.destroy()?;
        if !kill {
            bail!("no cgroup.kill: Linux 5.14 or newer is needed");
        }
        Ok(())
    };
    try_it().map_err(|error| format!("{error:#}"))
}

fn tun() -> Result<(), String> {
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    opened
        .map(drop)
        .map_err(|error| format!("{error}: modprobe tun, or give the container /dev/net/tun"))
}

fn memory() -> Result<(), String> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = available_mib(&meminfo).ok_or("/proc/meminfo has no MemAvailable")?;
    if available < MEMORY_MIB {
        Err(format!(
            "{available} MiB are available: end other programs, or use a larger machine"
        ))
    } else {
        Ok(())
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? / 1024)
}

fn disk(folder: &Path) -> Result<(), String> {
    let existing = folder
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)
        .map_err(|error| format!("{}: {error}", existing.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
    if free < DISK_MIB {
        Err(format!(
            "{free} MiB are free: make room, or name another folder with --dir"
        ))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_files_by_pattern() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vmlinuz-6.1-cloud-amd64"), "").unwrap();
        assert!(matches(&dir.path().join("vmlinuz-*-cloud-amd64")));
        assert!(matches(&dir.path().join("vmlinuz-6.1-cloud-amd64")));
        assert!(!matches(&dir.path().join("vmlinuz-*-arm64")));
        assert!(!matches(&dir.path().join("absent/x*")));
        let path = dir.path().display().to_string();
        assert!(is_present(&["absent", "vmlinuz-6.1-cloud-amd64"], &path));
        assert!(!is_present(&["absent"], &path));
    }

    #[test]
    fn what_is_checked_is_what_the_checkout_installs() {
        let packages = std::fs::read_to_string("../packages").unwrap();
        let listed: Vec<&str> = packages
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        for needed in NEEDED
            .iter()
            .filter(|needed| needed.package != "util-linux")
        {
            assert!(listed.contains(&needed.package), "{}", needed.package);
        }
    }

    #[test]
    fn reads_available_memory() {
        assert_eq!(
            available_mib("MemTotal: 9 kB\nMemAvailable:   2097152 kB\n"),
            Some(2048)
        );
        assert_eq!(available_mib("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn every_finding_says_what_to_do() {
        let folder = LabFolder::new(Path::new("/nonexistent/lab")).unwrap();
        let findings = examine(&folder);
        assert!(findings.len() >= NEEDED.len() + 4);
        for needed in NEEDED {
            assert!(
                findings
                    .iter()
                    .any(|finding| finding.package == Some(needed.package))
            );
        }
    }
}
