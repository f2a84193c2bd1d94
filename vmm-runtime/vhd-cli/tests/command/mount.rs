//! mount, unmount, mounts.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Folder, MIB, signal, skipped, wait, wait_for};

/// Whether disks can be mounted here; a word about it, where not.
pub(crate) fn can_mount() -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        "needs root"
    } else if !may_mount() {
        "needs CAP_SYS_ADMIN"
    } else if fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_err()
    {
        "needs /dev/fuse"
    } else if fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .is_err()
    {
        "needs loop devices"
    } else if !on_path("mkfs.ext4") || !on_path("mount") {
        "needs mkfs.ext4 and mount"
    } else {
        return true;
    };
    skipped(missing);
    false
}

/// Whether this process has CAP_SYS_ADMIN, which root in a container may lack.
fn may_mount() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
    set & (1 << 21) != 0
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// A folder whose mounts go when the test ends, well or not.
pub(crate) struct Mounts {
    pub(crate) folder: Folder,
}

impl Mounts {
    pub(crate) fn new() -> Mounts {
        let folder = Folder::new();
        fs::create_dir(folder.path("mnt")).unwrap();
        Mounts { folder }
    }

    /// Mounts as told, and tells what came of it.
    pub(crate) fn mount(&self, arguments: &[&str]) -> Value {
        self.folder.json(&[&["mount"], arguments].concat())
    }

    pub(crate) fn unmount(&self, arguments: &[&str]) -> Value {
        self.folder.json(&[&["unmount"], arguments].concat())
    }

    /// A disk of 64 MiB with an ext4 file system and nothing else.
    pub(crate) fn ext4(&self, name: &str) {
        self.folder
            .vhd(&["create", "--type", "dynamic", "--size", "64MiB", name])
            .ends(0);
        let mounted = self.mount(&["--direct", name]);
        let device = mounted["device"].as_str().unwrap();
        self.folder
            .other("mkfs.ext4", &["-q", "-F", device])
            .unwrap()
            .ends(0);
        self.unmount(&[name]);
    }

    /// A disk with partitions of Linux, by their starts and lengths.
    pub(crate) fn partitioned(&self, name: &str, size: u64, partitions: &[(u64, u64)]) {
        let folder = &self.folder;
        folder.raw("disk.raw", size, &[]);
        let image = fs::File::options()
            .write(true)
            .open(folder.path("disk.raw"))
            .unwrap();
        let mut sector = [0u8; 512];
        for (entry, (start, len)) in sector[446..510].chunks_exact_mut(16).zip(partitions) {
            entry[4] = 0x83;
            entry[8..12].copy_from_slice(&((start / 512) as u32).to_le_bytes());
            entry[12..].copy_from_slice(&((len / 512) as u32).to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        image.write_all_at(&sector, 0).unwrap();
        folder
            .vhd(&[
                "convert", "--from", "raw", "--to", "dynamic", "disk.raw", name,
            ])
            .ends(0);
        fs::remove_file(folder.path("disk.raw")).unwrap();
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path("mnt").join(name)
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = self.folder.vhd(&["unmount", "--all", "--discard"]);
            eprintln!("{said:?}");
        }
    }
}

#[test]
fn without_root_it_says_what_it_needs() {
    if rustix::process::geteuid().is_root() {
        skipped("needs not to be root");
        return;
    }
    let folder = Folder::new();
    folder.disk("disk.vhd");
    folder.vhd(&["mount", "disk.vhd"]).fails(6, &["need root"]);
}

#[test]
fn changes_are_committed_discarded_or_kept() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    assert_eq!(folder.json(&["mounts"]), json!([]));
    let mounted = mounts.mount(&["disk.vhd", "mnt"]);
    let undo = mounted["undo"].as_str().unwrap().to_owned();
    assert_eq!(mounted["file"], json!(folder.path("disk.vhd")));
    assert_eq!(mounted["size"], 64 * MIB);
    let volume = &mounted["volumes"][0];
    assert_eq!(volume["kind"], "ext4");
    assert_eq!(volume["device"], mounted["device"]);
    assert_eq!(volume["folder"], json!(folder.path("mnt")));
    assert!(
        Path::new(&undo).starts_with(folder.path("")) && undo.ends_with(".vud"),
        "{undo}"
    );
    let listed = folder.json(&["mounts"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["id"], mounted["id"]);
    assert_eq!(listed[0]["served"], true);
    // The disk is in use.
    folder.vhd(&["resize", "--size", "1G", "disk.vhd"]).ends(3);
    fs::write(mounts.file("kept"), "kept").unwrap();
    folder
        .vhd(&["unmount", "mnt"])
        .fails(1, &["--commit, --discard or --keep"]);
    // Nor is it unmounted while someone uses it.
    let file = fs::File::open(mounts.file("kept")).unwrap();
    folder
        .vhd(&["unmount", "--keep", "mnt"])
        .fails(3, &["the folder is in use"]);
    drop(file);
    let unmounted = mounts.unmount(&["--keep", "mnt"]);
    assert_eq!(
        unmounted,
        json!([{"file": folder.path("disk.vhd"), "changes": "kept", "undo": undo}])
    );
    assert_eq!(folder.json(&["mounts"]), json!([]));
    assert_eq!(fs::read_dir(folder.path("mnt")).unwrap().count(), 0);
    // The disk itself has no change yet.
    mounts.mount(&["--read-only", "disk.vhd", "mnt"]);
    assert!(!mounts.file("kept").exists());
    assert!(fs::write(mounts.file("new"), "new").is_err());
    mounts.unmount(&["disk.vhd"]);
    folder.vhd(&["undo", "commit", &undo]).ends(0);
    let mounted = mounts.mount(&["disk.vhd", "mnt"]);
    assert_eq!(fs::read(mounts.file("kept")).unwrap(), b"kept");
    fs::write(mounts.file("discarded"), "x").unwrap();
    let unmounted = mounts.unmount(&["--discard", mounted["device"].as_str().unwrap()]);
    assert_eq!(unmounted[0]["changes"], "discarded");
    let mounted = mounts.mount(&["disk.vhd", "mnt"]);
    assert!(!mounts.file("discarded").exists());
    fs::write(mounts.file("committed"), "x").unwrap();
    let unmounted = mounts.unmount(&["--commit", mounted["id"].as_str().unwrap()]);
    assert_eq!(unmounted[0]["changes"], "committed");
    mounts.mount(&["--direct", "disk.vhd", "mnt"]);
    assert!(mounts.file("committed").exists());
    fs::remove_file(mounts.file("committed")).unwrap();
    assert_eq!(mounts.unmount(&["--all"])[0]["changes"], "direct");
    folder.vhd(&["check", "disk.vhd"]).ends(0);
    assert_eq!(folder.names(), ["disk.vhd", "mnt", "paddock"]);
}

#[test]
fn what_the_file_system_gives_back_becomes_holes() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    let data = || -> u64 {
        let runs = folder.json(&["map", "disk.vhd"]);
        let runs = runs.as_array().unwrap().iter();
        runs.filter(|run| run["data"] == true)
            .map(|run| run["length"].as_u64().unwrap())
            .sum()
    };
    let empty = data();
    mounts.mount(&["--direct", "disk.vhd", "mnt"]);
    fs::write(mounts.file("large"), vec![7; 16 << 20]).unwrap();
    mounts.unmount(&["mnt"]);
    assert!(data() >= empty + 16 * MIB);
    mounts.mount(&["--direct", "disk.vhd", "mnt"]);
    fs::remove_file(mounts.file("large")).unwrap();
    // Free for good, so that it may be trimmed.
    rustix::fs::syncfs(fs::File::open(folder.path("mnt")).unwrap()).unwrap();
    let trimmed = folder.other("fstrim", &["mnt"]);
    mounts.unmount(&["mnt"]);
    if let Some(said) = trimmed {
        said.ends(0);
        assert!(data() < empty + 8 * MIB, "{} of {empty}", data());
    }
    folder.vhd(&["check", "disk.vhd"]).ends(0);
}

#[test]
fn partitions_have_devices_of_their_own() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    let two = [(MIB, 15 * MIB), (16 * MIB, 16 * MIB)];
    mounts.partitioned("disk.vhd", 32 * MIB, &two);
    let mounted = mounts.mount(&["--direct", "disk.vhd"]);
    let volumes = mounted["volumes"].as_array().unwrap();
    let places: Vec<_> = volumes
        .iter()
        .map(|volume| {
            (
                volume["start"].as_u64().unwrap(),
                volume["length"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(places, two);
    let second = volumes[1]["device"].as_str().unwrap();
    assert_ne!(second, mounted["device"].as_str().unwrap());
    folder
        .other("mkfs.ext4", &["-q", "-F", second])
        .unwrap()
        .ends(0);
    // One that the user mounted is the user's to unmount.
    folder.other("mount", &[second, "mnt"]).unwrap().ends(0);
    let refused = folder.vhd(&["unmount", "disk.vhd"]);
    folder.other("umount", &["mnt"]).unwrap().ends(0);
    refused.fails(3, &[second, "is mounted, or otherwise in use"]);
    mounts.unmount(&["disk.vhd"]);
    folder.vhd(&["mount", "disk.vhd", "mnt"]).fails(
        1,
        &[
            "2 volumes",
            "--partition",
            "1: unknown, 15 MiB",
            "2: ext4, 16 MiB",
        ],
    );
    folder
        .vhd(&["mount", "--partition", "3", "disk.vhd", "mnt"])
        .fails(1, &["no such partition"]);
    // No file system.
    folder
        .vhd(&["mount", "--partition", "1", "disk.vhd", "mnt"])
        .fails(6, &["mount"]);
    // Nothing is left of those.
    assert_eq!(folder.json(&["mounts"]), json!([]));
    assert_eq!(folder.names(), ["disk.vhd", "mnt", "paddock"]);
    let mounted = mounts.mount(&["--partition", "2", "disk.vhd", "mnt"]);
    assert_eq!(mounted["volumes"][1]["folder"], json!(folder.path("mnt")));
    assert!(mounts.file("lost+found").exists());
    mounts.unmount(&["--discard", "mnt"]);
}

#[test]
fn a_dead_server_is_told_and_cleared_away() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    let mounted = mounts.mount(&["disk.vhd"]);
    kill_server(&mounts, &mounted);
    folder
        .vhd(&["--json", "unmount", "--keep", "disk.vhd"])
        .fails(
            6,
            &[
                "was killed",
                "the changes are in",
                mounted["undo"].as_str().unwrap(),
            ],
        );
    assert_eq!(folder.json(&["mounts"]), json!([]));
    // Neither the disk nor its undo disk is lost.
    folder.vhd(&["check", "disk.vhd"]).ends(0);
    folder
        .vhd(&["undo", "discard", mounted["undo"].as_str().unwrap()])
        .ends(0);
}

#[test]
fn what_was_synced_outlives_the_server() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    folder.vhd(&["create", "--size", "8M", "disk.vhd"]).ends(0);
    let mounted = mounts.mount(&["--direct", "disk.vhd"]);
    let device = mounted["device"].as_str().unwrap();
    let file = fs::File::options().write(true).open(device).unwrap();
    file.write_all_at(&[5; 4096], 3 * MIB).unwrap();
    file.sync_all().unwrap();
    drop(file);
    kill_server(&mounts, &mounted);
    folder
        .vhd(&["unmount", "disk.vhd"])
        .fails(6, &["was killed: what was not flushed is lost"]);
    folder.raw("expected.raw", 8 * MIB, &[(3 * MIB, 5)]);
    folder
        .vhd(&["compare", "--against", "raw", "disk.vhd", "expected.raw"])
        .ends(0);
    folder.vhd(&["check", "disk.vhd"]).ends(0);
}

/// Kills the process that serves what is mounted.
pub(crate) fn kill_server(mounts: &Mounts, mounted: &Value) {
    let image = Path::new(mounted["image"].as_str().unwrap());
    let server = server_of(image.parent().unwrap().parent().unwrap());
    rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    wait_for("the server's end", || {
        (mounts.folder.json(&["mounts"])[0]["served"] == false).then_some(())
    });
}

/// The process that serves the mount whose folder is `state`.
fn server_of(state: &Path) -> rustix::process::Pid {
    let mark = state.to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        line.split(|byte| *byte == 0)
            .any(|word| word == mark.as_bytes())
            .then_some(pid)
    });
    let pids: Vec<_> = pids.collect();
    assert_eq!(pids.len(), 1, "{pids:?}");
    rustix::process::Pid::from_raw(pids[0]).unwrap()
}

#[test]
fn ctrl_c_takes_a_mount_back() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    let before = folder.names();
    // It may be done before the signal comes: another round.
    for _ in 0..20 {
        let mut child = folder
            .command(&["mount", "disk.vhd", "mnt"])
            .spawn()
            .unwrap();
        wait_for("the undo disk", || (folder.names() != before).then_some(()));
        signal(&child, rustix::process::Signal::INT);
        let code = wait(&mut child).code();
        if code == Some(0) {
            mounts.unmount(&["--discard", "disk.vhd"]);
            continue;
        }
        assert_eq!(code, Some(130));
        assert_eq!(folder.json(&["mounts"]), json!([]));
        assert_eq!(folder.names(), before);
        assert_eq!(fs::read_dir(folder.path("mnt")).unwrap().count(), 0);
        folder.vhd(&["check", "disk.vhd"]).ends(0);
        return;
    }
    panic!("it was never cancelled");
}
