//! compact, of a disk with several file systems.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use crate::support::{Folder, MIB};

/// Whether all of these programs are there; a word about the first that isn't.
fn have(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    programs.iter().all(|program| {
        let there = std::env::split_paths(&path).any(|folder| folder.join(program).exists());
        if !there {
            println!("skipped: needs {program}");
        }
        there
    })
}

/// What a disk is full of whose files were deleted.
fn noise(name: &std::path::Path, len: u64) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = vec![0; len as usize];
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    fs::write(name, bytes).unwrap();
}

fn partition(folder: &Folder, name: &str, script: &str) {
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--wipe", "never"])
        .arg(folder.path(name))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = sfdisk.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    assert!(sfdisk.wait().unwrap().success());
}

#[test]
fn partitions_give_up_what_their_file_systems_do_not_use() {
    if !have(&[
        "sfdisk",
        "mkfs.ext4",
        "mkfs.ntfs",
        "mkfs.vfat",
        "e2fsck",
        "fsck.vfat",
    ]) {
        return;
    }
    let folder = Folder::new();
    let disk = folder.path("disk.raw");
    noise(&disk, 128 * MIB);
    // Nothing of a table or of a file system is left at the beginning.
    let image = File::options().write(true).open(&disk).unwrap();
    image.write_all_at(&vec![0; MIB as usize], 0).unwrap();
    let script = "label: gpt\n\
        start=1MiB, size=32MiB\nstart=33MiB, size=32MiB\nstart=65MiB, size=32MiB\n\
        start=97MiB, size=16MiB\n";
    partition(&folder, "disk.raw", script);
    let makers: [(&str, u64, &str, &[&str]); 3] = [
        ("ext4", 1, "mkfs.ext4", &["-q", "-F", "-E", "nodiscard"]),
        ("ntfs", 33, "mkfs.ntfs", &["-q", "-F", "-Q"]),
        ("fat", 65, "mkfs.vfat", &["-F", "16"]),
    ];
    for (name, start, program, arguments) in makers {
        noise(&folder.path(name), 32 * MIB);
        folder
            .other(program, &[arguments, &[name]].concat())
            .unwrap()
            .ends(0);
        let made = fs::read(folder.path(name)).unwrap();
        assert_eq!(made.len() as u64, 32 * MIB);
        image.write_all_at(&made, start * MIB).unwrap();
    }
    let convert = ["convert", "--from", "raw", "--to", "dynamic"];
    folder
        .vhd(&[&convert[..], &["disk.raw", "disk.vhd"]].concat())
        .ends(0);
    let said = folder
        .vhd(&["compact", "--into", "told.vhd", "disk.vhd"])
        .ends(0);
    for part in [
        "ext4 at byte 1048576, 32 MiB: ",
        "NTFS at byte 34603008, 32 MiB: ",
        "FAT16 at byte 68157440, 32 MiB: ",
        "unknown at byte 101711872, 16 MiB: left as it is: ",
    ] {
        assert!(said.stdout.contains(part), "{part}: {said:?}");
    }
    assert_eq!(said.stdout.matches(" not used\n").count(), 3, "{said:?}");
    assert_eq!(said.stderr, "");
    let told = folder.json(&["compact", "disk.vhd"]);
    let volumes = told["volumes"].as_array().unwrap();
    let kinds: Vec<_> = volumes
        .iter()
        .map(|volume| volume["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["ext4", "NTFS", "FAT16", "unknown"]);
    let mut free = 0;
    for volume in &volumes[..3] {
        assert!(volume.get("untouched").is_none(), "{volume}");
        let bytes = volume["freeBytes"].as_u64().unwrap();
        assert!(bytes > 16 * MIB, "{volume}");
        free += bytes;
    }
    assert!(volumes[3]["untouched"].is_string() && volumes[3]["freeBytes"].is_null());
    let number = |name: &str| told[name].as_u64().unwrap();
    // Whole blocks go, and what is free in the others becomes holes.
    assert!(
        number("oldSize") - number("newSize") > free / 2,
        "{free}: {told}"
    );
    assert!(number("freedBytes") > free * 7 / 8, "{free}: {told}");
    folder.vhd(&["check", "disk.vhd"]).ends(0);
    // What nobody accounts for is there, byte for byte, and so are the file systems.
    folder
        .vhd(&["convert", "--to", "raw", "disk.vhd", "after.raw"])
        .ends(0);
    let read = |name: &str, at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        File::open(folder.path(name))
            .unwrap()
            .read_exact_at(&mut bytes, at * MIB)
            .unwrap();
        bytes
    };
    for (at, len) in [(0, 1), (97, 31)] {
        assert!(
            read("disk.raw", at, len * MIB) == read("after.raw", at, len * MIB),
            "{at}"
        );
    }
    fs::write(folder.path("ext4"), read("after.raw", 1, 32 * MIB)).unwrap();
    folder
        .other("e2fsck", &["-f", "-n", "ext4"])
        .unwrap()
        .ends(0);
    fs::write(folder.path("fat"), read("after.raw", 65, 32 * MIB)).unwrap();
    folder.other("fsck.vfat", &["-n", "fat"]).unwrap().ends(0);
}
