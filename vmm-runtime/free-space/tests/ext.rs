//! ext2, ext3, ext4 against e2fsprogs.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::ops::Range;
use std::path::Path;

use paddock_free_space::Kind;
use support::*;

/// What dumpe2fs says is free, in bytes.
fn dumpe2fs(image: &str) -> Option<Vec<Range<u64>>> {
    let text = must("dumpe2fs", &[image])?;
    let header = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(numbers(rest)[0])
    };
    let block = header("Block size:").unwrap();
    let end = header("Block count:").unwrap() * block;
    // Of a run of clusters, it names the first block of the first and of the
    // last one.
    let cluster = header("Cluster size:").unwrap_or(block);
    let bytes = |first: u64, last: u64| {
        let start = first * block;
        start..(start + ((last - first) * block / cluster + 1) * cluster).min(end)
    };
    let mut free = Vec::new();
    for line in text.lines() {
        let Some(list) = line.strip_prefix("  Free blocks: ") else {
            continue;
        };
        for run in list.split(", ").filter(|run| !run.trim().is_empty()) {
            match numbers(run).as_slice() {
                [one] => free.push(bytes(*one, *one)),
                [first, last] => free.push(bytes(*first, *last)),
                other => panic!("{other:?}"),
            }
        }
    }
    Some(merged(free))
}

struct Case {
    size: u64,
    options: &'static [&'static str],
    kind: Kind,
}

fn case(size: u64, kind: Kind, options: &'static [&'static str]) -> Case {
    Case {
        size,
        options,
        kind,
    }
}

fn cases() -> Vec<Case> {
    use Kind::{Ext2, Ext3, Ext4};
    vec![
        case(8 * MIB, Ext2, &["-t", "ext2", "-b", "1024"]),
        case(
            8 * MIB,
            Ext2,
            &[
                "-t",
                "ext2",
                "-b",
                "1024",
                "-O",
                "^sparse_super,^resize_inode",
            ],
        ),
        case(
            33 * MIB + 3 * KIB,
            Ext2,
            &["-t", "ext2", "-b", "4096", "-I", "128"],
        ),
        case(8 * MIB, Ext2, &["-t", "ext2", "-r", "0", "-b", "1024"]),
        case(70 * MIB, Ext3, &["-t", "ext3", "-b", "1024"]),
        case(70 * MIB, Ext3, &["-t", "ext3", "-b", "2048", "-g", "4096"]),
        case(64 * MIB, Ext4, &["-t", "ext4", "-b", "1024"]),
        case(300 * MIB + 7 * KIB, Ext4, &["-t", "ext4", "-b", "4096"]),
        case(
            40 * MIB,
            Ext4,
            &["-t", "ext4", "-b", "1024", "-O", "^has_journal"],
        ),
        case(
            60 * MIB,
            Ext4,
            &["-t", "ext4", "-b", "1024", "-O", "^64bit"],
        ),
        case(
            60 * MIB,
            Ext4,
            &["-t", "ext4", "-b", "1024", "-O", "^flex_bg"],
        ),
        case(
            60 * MIB,
            Ext4,
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "^flex_bg,^64bit,^metadata_csum,uninit_bg",
            ],
        ),
        case(
            60 * MIB,
            Ext4,
            &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg"],
        ),
        case(
            60 * MIB,
            Ext4,
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "^metadata_csum,^uninit_bg",
            ],
        ),
        case(
            90 * MIB,
            Ext4,
            &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"],
        ),
        case(
            90 * MIB,
            Ext4,
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "meta_bg,^resize_inode,^flex_bg,^metadata_csum,uninit_bg,^64bit",
                "-g",
                "1024",
            ],
        ),
        case(
            80 * MIB,
            Ext4,
            &["-t", "ext4", "-b", "1024", "-O", "sparse_super2"],
        ),
        case(
            80 * MIB,
            Ext4,
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "sparse_super2,^resize_inode",
                "-E",
                "num_backup_sb=1,lazy_journal_init=1",
            ],
        ),
        case(
            120 * MIB,
            Ext4,
            &["-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "16384"],
        ),
        case(
            50 * MIB + 5 * KIB,
            Ext4,
            &["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "4096"],
        ),
        case(
            600 * MIB,
            Ext4,
            &["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "16384"],
        ),
        case(
            64 * MIB,
            Ext4,
            &["-t", "ext4", "-b", "4096", "-G", "4", "-g", "2048"],
        ),
        case(
            64 * MIB,
            Ext4,
            &[
                "-t",
                "ext4",
                "-b",
                "2048",
                "-O",
                "metadata_csum_seed,casefold,mmp",
            ],
        ),
        case(
            64 * MIB,
            Ext4,
            &[
                "-t",
                "ext4",
                "-O",
                "orphan_file,fast_commit,project",
                "-b",
                "1024",
            ],
        ),
    ]
}

/// Makes a populated file system; some files are removed again.
fn make(place: &Place, image: &str, case: &Case) -> Option<Vec<Sample>> {
    let samples = samples((case.size / 6).min(3 * MIB));
    write_samples(&place.path("tree"), &samples);
    Raw::create(Path::new(image), case.size);
    let tree = place.text("tree");
    let mut args = vec!["-q", "-F", "-d", &tree, "-E", "lazy_journal_init=1"];
    args.extend(case.options);
    args.push(image);
    must("mke2fs", &args)?;
    let commands: String = samples
        .iter()
        .filter(|sample| sample.removed)
        .map(|sample| format!("rm {}\n", sample.name))
        .collect();
    fs::write(place.path("commands"), commands).unwrap();
    must("debugfs", &["-w", "-f", &place.text("commands"), image])?;
    Some(samples)
}

#[test]
fn free_blocks_are_those_of_dumpe2fs() {
    for case in cases() {
        let place = Place::new();
        let image = place.text("disk");
        let Some(samples) = make(&place, &image, &case) else {
            return;
        };
        let what = format!("{:?}", case.options);
        let free = walked(Path::new(&image), case.kind);
        let Some(expected) = dumpe2fs(&image) else {
            return;
        };
        same_ranges(&free, &expected, &what);

        trash(Path::new(&image), &free);
        must("e2fsck", &["-fn", &image]).unwrap();
        fs::create_dir(place.path("out")).unwrap();
        let dump = format!("rdump / {}", place.text("out"));
        must("debugfs", &["-R", &dump, &image]).unwrap();
        same_samples(&samples, |name| {
            fs::read(place.path("out").join(name)).unwrap()
        });
    }
}

#[test]
fn large_and_mostly_never_used() {
    let large: [(u64, &[&str]); 4] = [
        (8 * GIB, &["-t", "ext4"]),
        (
            8 * GIB,
            &[
                "-t",
                "ext4",
                "-O",
                "^metadata_csum,uninit_bg,^resize_inode,meta_bg",
            ],
        ),
        (3 * GIB + MIB, &["-t", "ext4", "-b", "1024"]),
        (40 * GIB, &["-t", "ext4", "-O", "bigalloc", "-C", "65536"]),
    ];
    for (size, options) in large {
        let place = Place::new();
        let image = place.text("disk");
        let case = Case {
            size,
            options,
            kind: Kind::Ext4,
        };
        if make(&place, &image, &case).is_none() {
            return;
        }
        let Some(expected) = dumpe2fs(&image) else {
            return;
        };
        let free = walked(Path::new(&image), Kind::Ext4);
        same_ranges(&free, &expected, &format!("{options:?}"));
        trash(Path::new(&image), &free);
        must("e2fsck", &["-fn", &image]).unwrap();
    }
}

#[test]
fn file_systems_that_linux_wrote_to() {
    for (kind, name, options) in [
        (Kind::Ext2, "ext2", &["-t", "ext2", "-b", "1024"][..]),
        (Kind::Ext3, "ext3", &["-t", "ext3"]),
        (Kind::Ext4, "ext4", &["-t", "ext4", "-O", "orphan_file"]),
    ] {
        let place = Place::new();
        let case = case(90 * MIB, kind, options);
        let image = place.text("disk");
        if make(&place, &image, &case).is_none() {
            return;
        }
        let script = "cd \"$2\"; rm f00[1-4]*; mkdir d; for i in $(seq 300); do echo $i >d/$i; done; \
                      sync -f .; for i in $(seq 1 2 300); do rm d/$i; done; \
                      cp --sparse=always \"$1\" \"$1.mounted\"; cd /; umount \"$2\"";
        if !mounted(&place, name, script) {
            continue;
        }
        let free = walked(Path::new(&image), kind);
        same_ranges(&free, &dumpe2fs(&image).unwrap(), name);
        trash(Path::new(&image), &free);
        must("e2fsck", &["-fn", &image]).unwrap();
        let reason = untouched(&place.path("disk.mounted"));
        assert!(reason.contains("was not unmounted"), "{reason}");
    }
}

/// A clean file system, without checksums so that fields can be changed.
fn plain(place: &Place) -> Option<Raw> {
    let image = place.text("disk");
    let case = case(
        16 * MIB,
        Kind::Ext4,
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "^metadata_csum,^uninit_bg,^has_journal",
        ],
    );
    make(place, &image, &case)?;
    walked(Path::new(&image), Kind::Ext4);
    Some(Raw::open(Path::new(&image)))
}

#[test]
fn what_leaves_doubts_is_untouched() {
    let place = Place::new();
    let Some(disk) = plain(&place) else { return };
    let path = place.path("disk");
    for (field, bytes, expected) in [
        (58, &[0][..], "not unmounted cleanly"),
        (58, &[3], "recorded errors"),
        (404, &[1], "recorded errors"),
        (232, &[12], "not unmounted cleanly"),
        (96, &[0x46, 2], "journal has not been replayed"),
        (96, &[0x4a, 2], "the journal of another file system"),
        (
            98,
            &[4],
            "incompatible features that are not known here: 0x40000",
        ),
        (
            92,
            &[0, 0x80],
            "compatible features that are not known here: 0x8000",
        ),
        (
            101,
            &[0x40],
            "read-only compatible features that are not known here: 0x4",
        ),
        (24, &[7], "2^7 KiB"),
        (
            4,
            &[1, 0x40],
            "expected them within the volume's 16777216 bytes",
        ),
        (32, &[4, 0x20], "groups have"),
        (20, &[0], "first data block is 0"),
    ] {
        let before = disk.get(1024 + field, bytes.len());
        assert_ne!(before, bytes, "{expected}");
        disk.put(1024 + field, bytes);
        println!("{expected}");
        let reason = untouched(&path);
        assert!(reason.contains(expected), "{reason}");
        disk.put(1024 + field, &before);
    }
    walked(&path, Kind::Ext4);
}

#[test]
fn bitmaps_are_compared_with_their_groups() {
    let place = Place::new();
    let Some(disk) = plain(&place) else { return };
    let path = place.path("disk");
    // The descriptors are in block 2.
    let bitmap = u64::from(u32::from_le_bytes(disk.get(2048, 4).try_into().unwrap()));
    let place_of = bitmap * 1024;
    let before = disk.get(place_of, 1024);
    // A used block, far from the file system's own.
    let used = (1200..8000)
        .find(|bit| before[bit / 8] >> (bit % 8) & 1 == 1)
        .unwrap();
    let mut changed = before.clone();
    changed[used / 8] &= !(1 << (used % 8));
    disk.put(place_of, &changed);
    let reason = untouched(&path);
    assert!(reason.contains("group 0 says that"), "{reason}");
    // The superblock itself said to be free.
    disk.put(place_of, &[before[0] & !1]);
    let reason = untouched(&path);
    assert!(reason.contains("its own structures lie in"), "{reason}");
}

#[test]
fn wrong_checksums_are_seen() {
    let place = Place::new();
    let image = place.text("disk");
    let case = case(16 * MIB, Kind::Ext4, &["-t", "ext4", "-b", "1024"]);
    if make(&place, &image, &case).is_none() {
        return;
    }
    let disk = Raw::open(Path::new(&image));
    let bitmap = u64::from(u32::from_le_bytes(disk.get(2048, 4).try_into().unwrap()));
    for (at, expected) in [
        (1024 + 120, "checksum of its superblock"),
        (2048 + 16, "checksum of the descriptor of group 0"),
        (bitmap * 1024 + 900, "checksum of the bitmap of group 0"),
    ] {
        let before = disk.get(at, 1);
        disk.put(at, &[before[0] ^ 1]);
        let reason = untouched(Path::new(&image));
        assert!(reason.contains(expected), "{reason}");
        disk.put(at, &before);
    }
    walked(Path::new(&image), Kind::Ext4);
}

#[test]
fn a_last_cluster_that_is_cut_off() {
    let place = Place::new();
    let image = place.text("disk");
    const OPTIONS: [&str; 8] = [
        "-t",
        "ext4",
        "-b",
        "1024",
        "-C",
        "8192",
        "-O",
        "bigalloc,^metadata_csum,^uninit_bg,^has_journal",
    ];
    let case = case(16 * MIB, Kind::Ext4, &OPTIONS);
    if make(&place, &image, &case).is_none() {
        return;
    }
    let whole = walked(Path::new(&image), Kind::Ext4);
    assert_eq!(whole.last().unwrap().end, 16 * MIB);
    Raw::open(Path::new(&image)).put(1024 + 4, &(16 * 1024_u32 - 3).to_le_bytes());
    let cut = walked(Path::new(&image), Kind::Ext4);
    assert_eq!(cut.last().unwrap().end, 16 * MIB - 3 * KIB);
    assert_eq!(cut[..cut.len() - 1], whole[..whole.len() - 1]);
}
