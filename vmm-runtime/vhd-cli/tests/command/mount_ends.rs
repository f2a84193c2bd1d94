//! How mounts end: by whom they are interrupted, what others have put in the
//! place of what was ours, and what is kept until it is settled.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::mount::{Mounts, can_mount, kill_server};
use crate::serve::{serve, stop};
use crate::support::{MIB, wait, wait_for};

/// Puts a shell script in the place of `mount`, for those who run with the
/// PATH that is returned.
fn fake_mount(mounts: &Mounts, script: &str) -> String {
    let programs = mounts.folder.path("programs");
    fs::create_dir(&programs).unwrap();
    let mount = programs.join("mount");
    fs::write(&mount, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&mount, fs::Permissions::from_mode(0o755)).unwrap();
    format!(
        "{}:{}",
        programs.display(),
        std::env::var("PATH").unwrap_or_default()
    )
}

/// The line of the kernel's list for what was mounted last on the folder.
fn listed(mounts: &Mounts) -> Option<String> {
    let dir = mounts.folder.path("mnt");
    let dir = format!(" {} ", dir.display());
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = all.lines().rev().find(|line| line.contains(&dir));
    line.map(str::to_owned)
}

#[test]
fn a_loop_device_that_is_anothers_by_now_stays() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    folder.disk("disk.vhd");
    folder.raw("other.raw", MIB, &[]);
    let mounted = mounts.mount(&["--direct", "disk.vhd"]);
    let arguments = ["--find", "--show", "other.raw"];
    let Some(said) = folder.other("losetup", &arguments) else {
        mounts.unmount(&["disk.vhd"]);
        return;
    };
    let other = said.ends(0).stdout.trim().to_owned();
    // As if ours had been detached, and its number given out again.
    let id = mounted["id"].as_str().unwrap();
    let record = folder.path(&format!("paddock/mounts/{id}/mounted.json"));
    let mut text: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    text["device"] = json!(other);
    text["volumes"][0]["device"] = json!(other);
    text["volumes"][0]["ownLoop"] = json!(true);
    fs::write(&record, text.to_string()).unwrap();
    let unmounted = folder.vhd(&["unmount", id]);
    let shown = folder.other(
        "losetup",
        &["--noheadings", "--output", "BACK-FILE", &other],
    );
    folder
        .other("losetup", &["--detach", &other])
        .unwrap()
        .ends(0);
    unmounted.ends(0);
    let shown = shown.unwrap().ends(0).stdout;
    assert_eq!(shown.trim(), folder.path("other.raw").to_str().unwrap());
    // Ours is gone all the same: the disk is closed.
    folder.vhd(&["check", "disk.vhd"]).ends(0);
    assert_eq!(folder.json(&["mounts"]), json!([]));
}

#[test]
fn what_another_mounted_over_it_stays() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    mounts.mount(&["disk.vhd", "mnt"]);
    folder
        .other("mount", &["-t", "tmpfs", "none", "mnt"])
        .unwrap()
        .ends(0);
    let refused = folder.vhd(&["unmount", "--discard", "mnt"]);
    let above = listed(&mounts).unwrap();
    folder.other("umount", &["mnt"]).unwrap().ends(0);
    assert!(above.contains(" - tmpfs "), "{above}");
    refused.fails(3, &["is mounted, or otherwise in use"]);
    // It is not forgotten where it is mounted.
    folder.other("umount", &["mnt"]);
    assert_eq!(listed(&mounts), None);
    mounts.unmount(&["--discard", "disk.vhd"]);
}

#[test]
fn a_mount_that_was_killed_is_listed_and_taken_away() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    let before = folder.names();
    let pid = folder.path("pid");
    let path = fake_mount(
        &mounts,
        "echo $$ > pid.new && mv pid.new pid && exec sleep 600",
    );
    let mut child = folder
        .command(&["mount", "disk.vhd", "mnt"])
        .env("PATH", path)
        .spawn()
        .unwrap();
    let pid = wait_for("mount", || fs::read_to_string(&pid).ok());
    child.kill().unwrap();
    wait(&mut child);
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // Whatever the user's own folder for such things is.
    let listed = folder
        .command(&["--json", "mounts"])
        .env("XDG_RUNTIME_DIR", folder.path("mnt"))
        .output()
        .unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["served"], true);
    assert_eq!(listed[0]["file"], json!(folder.path("disk.vhd")));
    let device = listed[0]["device"].as_str().unwrap().to_owned();
    assert!(Path::new(listed[0]["undo"].as_str().unwrap()).exists());
    let unmounted = mounts.unmount(&["--discard", &device]);
    assert_eq!(unmounted[0]["changes"], "discarded");
    assert_eq!(folder.json(&["mounts"]), json!([]));
    fs::remove_file(folder.path("pid")).unwrap();
    fs::remove_dir_all(folder.path("programs")).unwrap();
    assert_eq!(folder.names(), before);
    folder.vhd(&["check", "disk.vhd"]).ends(0);
}

#[test]
fn ctrl_c_that_ends_the_program_mount_is_a_cancellation() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    let before = folder.names();
    // A terminal tells both, and `mount` ends without a word.
    let path = fake_mount(&mounts, "kill -INT $PPID; kill -INT $$");
    let said = folder
        .command(&["mount", "disk.vhd", "mnt"])
        .env("PATH", path)
        .output()
        .unwrap();
    assert_eq!(said.status.code(), Some(130));
    assert_eq!(
        String::from_utf8_lossy(&said.stderr),
        "vhd: cancelled; nothing was changed\n"
    );
    assert_eq!(folder.json(&["mounts"]), json!([]));
    fs::remove_dir_all(folder.path("programs")).unwrap();
    assert_eq!(folder.names(), before);
}

#[test]
fn a_commit_that_fails_can_be_asked_for_again() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    let mounted = mounts.mount(&["disk.vhd", "mnt"]);
    fs::write(mounts.file("new"), "new").unwrap();
    let (server, _) = serve(folder, &["--read-only", "disk.vhd"]);
    folder.vhd(&["unmount", "--commit", "mnt"]).fails(
        3,
        &["the changes are in", mounted["undo"].as_str().unwrap()],
    );
    let listed = folder.json(&["mounts"]);
    assert_eq!(listed[0]["id"], mounted["id"]);
    assert_eq!(listed[0]["served"], false);
    assert_eq!(listed[0]["closed"], true);
    stop(server);
    let unmounted = mounts.unmount(&["--commit", "disk.vhd"]);
    assert_eq!(unmounted[0]["changes"], "committed");
    assert_eq!(folder.json(&["mounts"]), json!([]));
    mounts.mount(&["--read-only", "disk.vhd", "mnt"]);
    assert_eq!(fs::read(mounts.file("new")).unwrap(), b"new");
    mounts.unmount(&["mnt"]);
}

#[test]
fn a_mount_whose_undo_disk_is_gone_is_forgotten_when_asked_for() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    folder.disk("disk.vhd");
    let mounted = mounts.mount(&["disk.vhd"]);
    kill_server(&mounts, &mounted);
    fs::remove_file(mounted["undo"].as_str().unwrap()).unwrap();
    folder.vhd(&["unmount", "--commit", "disk.vhd"]).ends(6);
    folder
        .vhd(&["unmount", "--commit", "disk.vhd"])
        .fails(1, &["the undo disk is gone"]);
    mounts.unmount(&["--discard", "disk.vhd"]);
    assert_eq!(folder.json(&["mounts"]), json!([]));
}

#[test]
fn changes_of_a_server_that_died_are_committed_when_asked_for_again() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    folder.disk("disk.vhd");
    let mounted = mounts.mount(&["disk.vhd"]);
    kill_server(&mounts, &mounted);
    folder
        .vhd(&["unmount", "--commit", "disk.vhd"])
        .fails(6, &["was killed", "were not committed: ask again"]);
    let unmounted = mounts.unmount(&["--commit", "disk.vhd"]);
    assert_eq!(unmounted[0]["changes"], "committed");
    assert_eq!(folder.names(), ["disk.vhd", "mnt", "paddock"]);
}

#[test]
fn how_the_server_ended_is_the_exit_code() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    folder.disk("disk.vhd");
    let mounted = mounts.mount(&["--direct", "disk.vhd"]);
    kill_server(&mounts, &mounted);
    let id = mounted["id"].as_str().unwrap();
    let end = r#"{"error":"disk.vhd: it is full","kind":"noRoom","exitCode":4}"#;
    fs::write(folder.path(&format!("paddock/mounts/{id}/end")), end).unwrap();
    let said = folder.vhd(&["unmount", "disk.vhd"]).ends(4);
    assert_eq!(said.stderr, "vhd: disk.vhd: it is full\n");
}

#[test]
fn a_disk_that_is_mounted_twice_is_named_by_its_mount() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    folder.disk("disk.vhd");
    let one = mounts.mount(&["disk.vhd"]);
    let other = mounts.mount(&["disk.vhd"]);
    let (one, other) = (one["id"].as_str().unwrap(), other["id"].as_str().unwrap());
    folder
        .vhd(&["unmount", "--discard", "disk.vhd"])
        .fails(1, &["it is mounted 2 times", one, other]);
    assert_eq!(folder.json(&["mounts"]).as_array().unwrap().len(), 2);
    mounts.unmount(&["--discard", one]);
    mounts.unmount(&["--discard", "disk.vhd"]);
}

#[test]
fn a_strangers_file_system_gives_no_rights() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    mounts.mount(&["--direct", "--options", "noexec", "disk.vhd", "mnt"]);
    let line = listed(&mounts).unwrap();
    mounts.unmount(&["mnt"]);
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(line.contains(option), "{option}: {line}");
    }
    mounts.mount(&["--direct", "--options", "suid", "disk.vhd", "mnt"]);
    let line = listed(&mounts).unwrap();
    mounts.unmount(&["mnt"]);
    assert!(!line.contains("nosuid") && line.contains("nodev"), "{line}");
    folder
        .vhd(&["mount", "--options", "noexec", "disk.vhd"])
        .fails(1, &["<DIR>"]);
}

#[test]
fn a_dirty_file_system_is_shown_without_its_journal() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    let mounted = mounts.mount(&["--direct", "disk.vhd", "mnt"]);
    fs::write(mounts.file("new"), "new").unwrap();
    rustix::fs::syncfs(fs::File::open(folder.path("mnt")).unwrap()).unwrap();
    kill_server(&mounts, &mounted);
    folder.vhd(&["unmount", "disk.vhd"]).ends(6);
    let said = folder
        .vhd(&["mount", "--read-only", "disk.vhd", "mnt"])
        .ends(0);
    assert!(said.stderr.contains("not put away cleanly"), "{said:?}");
    assert!(mounts.file("lost+found").exists());
    mounts.unmount(&["mnt"]);
}

#[test]
fn a_table_that_contradicts_itself_is_told() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    let overlapping = [(MIB, 15 * MIB), (8 * MIB, 16 * MIB)];
    mounts.partitioned("disk.vhd", 32 * MIB, &overlapping);
    folder
        .vhd(&["mount", "disk.vhd", "mnt"])
        .fails(1, &["two partitions overlap"]);
    assert_eq!(folder.json(&["mounts"]), json!([]));
    // The kernel's own, where it makes nodes of them.
    let mounted = mounts.mount(&["disk.vhd"]);
    mounts.unmount(&["--discard", "disk.vhd"]);
    let device = mounted["device"].as_str().unwrap();
    for volume in mounted["volumes"].as_array().unwrap() {
        let number = &volume["number"];
        assert_eq!(volume["device"], json!(format!("{device}p{number}")));
        let at = usize::try_from(number.as_u64().unwrap() - 1).unwrap();
        assert_eq!(volume["start"], json!(overlapping[at].0));
    }
}
