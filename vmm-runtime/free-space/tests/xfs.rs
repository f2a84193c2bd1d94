//! XFS against xfsprogs, and against Linux where this runs as root.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::ops::Range;
use std::path::Path;

use paddock_free_space::Kind;
use support::*;

const CASES: [(u64, &[&str]); 9] = [
    (300 * MIB, &[]),
    (320 * MIB + 4096, &["-m", "rmapbt=1"]),
    (300 * MIB, &["-m", "crc=0", "-b", "size=4096"]),
    (300 * MIB, &["-m", "crc=0", "-b", "size=512"]),
    (300 * MIB, &["-b", "size=1024", "-d", "agcount=7"]),
    (330 * MIB, &["-b", "size=65536", "-i", "nrext64=1"]),
    (400 * MIB, &["-s", "size=4096", "-l", "su=65536"]),
    (
        300 * MIB,
        &[
            "-m",
            "finobt=0,reflink=0,bigtime=0",
            "-l",
            "version=2,su=32768",
        ],
    ),
    (8 * GIB, &["-d", "agcount=20"]),
];

fn db(image: &str, commands: &[&str]) -> Option<String> {
    let mut args = vec!["-r"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(image);
    must("xfs_db", &args)
}

fn field(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name} =")))
        .unwrap_or_else(|| panic!("{name} in {text}"));
    numbers(line.rsplit('=').next().unwrap())[0]
}

fn make(place: &Place, size: u64, options: &[&str]) -> Option<Vec<Sample>> {
    let image = place.text("disk");
    Raw::create(Path::new(&image), size);
    let mut samples = samples(3 * MIB);
    for sample in &mut samples {
        sample.removed = false;
    }
    write_samples(&place.path("tree"), &samples);
    let mut proto = String::from("/dev/null\n0 0\nd--755 0 0\n");
    for sample in &samples {
        let from = place.text("tree") + "/" + &sample.name;
        proto += &format!("{} ---644 0 0 {from}\n", sample.name);
    }
    proto += "$\n";
    fs::write(place.path("proto"), proto).unwrap();
    let proto = place.text("proto");
    // Small ones, and small logs, are for tests only.
    let mut args = vec!["--unsupported", "-q", "-f", "-p", &proto];
    args.extend(options);
    args.push(&image);
    must("mkfs.xfs", &args)?;
    Some(samples)
}

/// What xfs_db says is free. It counts the blocks kept for the trees, which it
/// lists first in each group; they aren't ours to give away.
fn oracle(image: &str) -> Option<Vec<Range<u64>>> {
    let text = db(image, &["sb 0", "p blocksize agblocks agcount"])?;
    let block = field(&text, "blocksize");
    let group_blocks = field(&text, "agblocks");
    let text_of_extents = db(image, &["freesp -d"])?;
    let extents: Vec<Vec<u64>> = text_of_extents
        .lines()
        .skip(1)
        .take_while(|line| !line.contains("from"))
        .map(numbers)
        .collect();
    let mut free = Vec::new();
    for group in 0..field(&text, "agcount") {
        let kept = field(
            &db(image, &[&format!("agf {group}"), "p flcount"])?,
            "flcount",
        );
        let of_group: Vec<_> = extents.iter().filter(|extent| extent[0] == group).collect();
        let (kept, extents) = of_group.split_at(kept as usize);
        assert!(kept.iter().all(|extent| extent[2] == 1));
        for extent in extents {
            let start = (group * group_blocks + extent[1]) * block;
            free.push(start..start + extent[2] * block);
        }
    }
    Some(merged(free))
}

/// Reads a file through the map that xfs_db prints.
fn cat(image: &str, name: &str) -> Vec<u8> {
    let text = db(
        image,
        &[
            "sb 0",
            "p blocksize agblocks",
            &format!("path /{name}"),
            "p core.size",
            "bmap",
        ],
    )
    .unwrap();
    let block = field(&text, "blocksize");
    let group_blocks = field(&text, "agblocks");
    let mut bytes = vec![0; field(&text, "core.size") as usize];
    let disk = Raw::open(Path::new(image));
    for line in text.lines().filter(|line| line.starts_with("data offset")) {
        let [offset, _, group, first, count, _] = numbers(line)[..] else {
            panic!("{line}");
        };
        let at = (offset * block) as usize;
        let len = ((count * block) as usize).min(bytes.len() - at);
        let found = disk.get((group * group_blocks + first) * block, len);
        bytes[at..at + len].copy_from_slice(&found);
    }
    bytes
}

#[test]
fn free_extents_are_those_of_xfs_db() {
    for (size, options) in CASES {
        let place = Place::new();
        let Some(samples) = make(&place, size, options) else {
            return;
        };
        let (path, image) = (place.path("disk"), place.text("disk"));
        let free = walked(&path, Kind::Xfs);
        let Some(expected) = oracle(&image) else {
            return;
        };
        same_ranges(&free, &expected, &format!("{options:?}"));

        trash(&path, &free);
        must("xfs_repair", &["-n", &image]).unwrap();
        same_samples(&samples, |name| cat(&image, name));
    }
}

#[test]
fn file_systems_that_linux_wrote_to() {
    // Many small changes go round a small log; files removed between others
    // leave holes.
    let changes = "seq 40000 | xargs touch; sync -f .; seq 1 2 40000 | xargs rm";
    let holes = "mkdir d; for i in $(seq 700); do echo $i >d/$i; done; sync -f .; \
                 for i in $(seq 1 2 700); do rm d/$i; done; sync -f .";
    let (mut levels, mut turns) = (0, 0);
    for (options, script) in [
        (&["-m", "reflink=0", "-l", "size=4m"][..], changes),
        (
            &["-m", "rmapbt=1", "-b", "size=1024", "-l", "su=4096"],
            holes,
        ),
    ] {
        let place = Place::new();
        if make(&place, 310 * MIB, options).is_none() {
            return;
        }
        let (path, image) = (place.path("disk"), place.text("disk"));
        let script = format!(
            "cd \"$2\"; rm f00[1-4]*; {script}; cp --sparse=always \"$1\" \"$1.mounted\"; cd /; umount \"$2\""
        );
        if !mounted(&place, "xfs", &script) {
            return;
        }
        let free = walked(&path, Kind::Xfs);
        same_ranges(&free, &oracle(&image).unwrap(), &format!("{options:?}"));
        levels = levels.max(
            (0..4)
                .map(|group| tree_levels(&image, group))
                .max()
                .unwrap(),
        );
        turns = turns.max(log_turn(&image));
        trash(&path, &free);
        must("xfs_repair", &["-n", &image]).unwrap();
        // As it was while it was mounted.
        fs::rename(place.path("disk.mounted"), &path).unwrap();
        let reason = untouched(&path);
        assert!(reason.contains("log"), "{reason}");
    }
    // It was worth it: a tree with branches, a log that began anew.
    assert!(levels > 1 && turns > 1, "{levels} {turns}");
}

fn tree_levels(image: &str, group: u32) -> u64 {
    field(
        &db(image, &[&format!("agf {group}"), "p bnolevel"]).unwrap(),
        "bnolevel",
    )
}

/// The turn in which the log's first block was written.
fn log_turn(image: &str) -> u32 {
    let text = db(
        image,
        &["sb 0", "p", "p logstart agblklog agblocks blocksize"],
    )
    .unwrap();
    let (start, bits) = (field(&text, "logstart"), field(&text, "agblklog"));
    let block = (start >> bits) * field(&text, "agblocks") + (start & ((1 << bits) - 1));
    let disk = Raw::open(Path::new(image));
    let head = disk.get(block * field(&text, "blocksize"), 8);
    let at = if head[0] == 0xfe { 4 } else { 0 };
    u32::from_be_bytes(head[at..at + 4].try_into().unwrap())
}

#[test]
fn what_leaves_doubts_is_untouched() {
    let place = Place::new();
    // Without checksums, so that fields can be changed.
    if make(&place, 300 * MIB, &["-m", "crc=0", "-b", "size=4096"]).is_none() {
        return;
    }
    let (path, image) = (place.path("disk"), place.text("disk"));
    let disk = Raw::open(&path);
    let clean = walked(&path, Kind::Xfs);
    let text = db(
        &image,
        &["sb 0", "p", "agf 0", "p bnoroot flfirst fllast flcount"],
    )
    .unwrap();
    let log = field(&text, "logstart");
    let group_blocks = field(&text, "agblocks");
    let bits = field(&text, "agblklog");
    let log = ((log >> bits) * group_blocks + (log & ((1 << bits) - 1))) * 4096;
    let tree = field(&text, "bnoroot") * 4096;
    // The last record of the tree, a long extent.
    let records = u64::from(disk.get(tree + 7, 1)[0]);
    let last = tree + 16 + (records - 1) * 8;
    for (at, bytes, expected) in [
        (101, &[0xb6][..], "version 6"),
        (126, &[1], "was never made"),
        (102, &[3], "sectors have"),
        (6, &[0x20], "expected them to agree"),
        (8, &[1], "expected them to agree"),
        (91, &[9], "expected them to agree"),
        (124, &[3], "expected them to agree"),
        (48, &[0; 8], "log is on another disk"),
        (96, &[1], "expected them within the group"),
        (log, &[0], "log was written in turn"),
        (log + 5, &[1], "log was written in turn"),
        (log + 3 * 512, &[0, 0, 0, 2], "log was written in turn"),
        (log + 43, &[2], "the record of an unmount"),
        (log + 14, &[4], "the record of an unmount"),
        (log + 512 + 9, &[0], "the record of an unmount"),
        (log + 512 + 8, &[0x69], "the record of an unmount"),
        (log + 303, &[2], "belongs to another"),
        (log + 305, &[0xfe], "belongs to another"),
        (log + 23, &[9], "belongs to another"),
        (512, &[0], "header of group 0"),
        (512 + 11, &[1], "header of group 0"),
        (512 + 15, &[0xee], "header of group 0"),
        (512 + 31, &[0], "tree of 0 levels"),
        (512 + 31, &[10], "tree of 10 levels"),
        (512 + 31, &[2], "should be of its tree"),
        (512 + 55, &[0xee], "group 0 says that"),
        (512 + 59, &[0xee], "group 0 says that"),
        (512 + 51, &[9], "group 0 keeps 9 blocks"),
        (512 + 16, &[0xff], "beyond its"),
        (
            1536 + 4 * field(&text, "flfirst"),
            &[0xfe],
            "group 0 keeps block",
        ),
        (tree, &[0], "should be of its tree"),
        (tree + 6, &[0xff], "should be of its tree"),
        (last + 4, &[0xff], "expected them within its"),
        (last, &[0; 4], "said to be free"),
        (last + 7, &[0x10], "group 0 says that"),
    ] {
        let before = disk.get(at, bytes.len());
        assert_ne!(before, bytes, "{expected}");
        disk.put(at, bytes);
        let reason = untouched(&path);
        assert!(reason.contains(expected), "{reason} / {expected}");
        disk.put(at, &before);
    }
    assert_eq!(walked(&path, Kind::Xfs), clean);
    // The last free extent of the log's group lies in the log instead.
    let start = field(&text, "logstart");
    let group = start >> bits;
    let root = db(&image, &[&format!("agf {group}"), "p bnoroot"]).unwrap();
    let tree = (group * group_blocks + field(&root, "bnoroot")) * 4096;
    let records = u64::from(disk.get(tree + 7, 1)[0]);
    let in_log = (start & ((1 << bits) - 1)) as u32 + 9;
    disk.put(tree + 16 + (records - 1) * 8, &in_log.to_be_bytes());
    let reason = untouched(&path);
    assert!(reason.contains("its own structures lie in"), "{reason}");
}

#[test]
fn wrong_checksums_and_unknown_features_are_seen() {
    let place = Place::new();
    if make(&place, 300 * MIB, &[]).is_none() {
        return;
    }
    let (path, image) = (place.path("disk"), place.text("disk"));
    let disk = Raw::open(&path);
    let text = db(&image, &["agf 1", "p bnoroot", "sb 0", "p agblocks"]).unwrap();
    let group = field(&text, "agblocks") * 4096;
    let tree = group + field(&text, "bnoroot") * 4096;
    for (at, expected) in [
        (300, "checksum of its superblock"),
        (group + 512 + 300, "UUID in group 1 is wrong"),
        (group + 1536 + 300, "UUID in group 1 is wrong"),
        (tree + 4000, "UUID in group 1 is wrong"),
    ] {
        let before = disk.get(at, 1);
        disk.put(at, &[before[0] ^ 1]);
        let reason = untouched(&path);
        assert!(reason.contains(expected), "{reason}");
        disk.put(at, &before);
    }
    for (at, bytes, expected) in [
        (
            217,
            &[1_u8][..],
            "incompatible features that are not known here: 0x10000",
        ),
        (219, &[0x13], "needing repair"),
        (
            215,
            &[0x1f],
            "read-only compatible features that are not known here: 0x10",
        ),
        (
            211,
            &[1],
            "compatible features that are not known here: 0x1",
        ),
        (223, &[1], "log features that are not known here: 0x1"),
    ] {
        let before = disk.get(0, 512);
        disk.put(at, bytes);
        disk.put(224, &[0; 4]);
        // CRC-32C, bit by bit.
        let sum = disk.get(0, 512).into_iter().fold(!0_u32, |mut crc, byte| {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
            }
            crc
        });
        disk.put(224, &(!sum).to_le_bytes());
        let reason = untouched(&path);
        assert!(reason.contains(expected), "{reason} / {expected}");
        disk.put(0, &before);
    }
    walked(&path, Kind::Xfs);
}
