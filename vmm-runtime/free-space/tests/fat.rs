//! FAT12, FAT16 and FAT32 against dosfstools and mtools.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::ops::Range;
use std::path::Path;

use paddock_free_space::Kind;
use support::*;

struct Case {
    size: u64,
    kind: Kind,
    options: &'static [&'static str],
}

const CASES: [Case; 10] = [
    Case {
        size: 1440 * KIB,
        kind: Kind::Fat12,
        options: &["-F", "12"],
    },
    Case {
        size: 8 * MIB,
        kind: Kind::Fat12,
        options: &["-F", "12", "-s", "8"],
    },
    Case {
        size: 3 * MIB + 512,
        kind: Kind::Fat12,
        options: &["-F", "12", "-f", "1", "-S", "1024"],
    },
    Case {
        size: 16 * MIB,
        kind: Kind::Fat16,
        options: &["-F", "16", "-s", "1"],
    },
    Case {
        size: 130 * MIB,
        kind: Kind::Fat16,
        options: &[],
    },
    Case {
        size: 32 * MIB,
        kind: Kind::Fat16,
        options: &["-F", "16", "-a", "-r", "1024", "-S", "4096", "-s", "1"],
    },
    Case {
        size: 40 * MIB,
        kind: Kind::Fat32,
        options: &["-F", "32", "-s", "1"],
    },
    Case {
        size: 64 * MIB,
        kind: Kind::Fat32,
        options: &["-F", "32", "--mbr=y"],
    },
    Case {
        size: 600 * MIB,
        kind: Kind::Fat32,
        options: &[],
    },
    Case {
        size: 8 * GIB,
        kind: Kind::Fat32,
        options: &["-f", "1"],
    },
];

fn make(place: &Place, case: &Case) -> Option<Vec<Sample>> {
    let image = place.text("disk");
    Raw::create(Path::new(&image), case.size);
    let mut args = case.options.to_vec();
    args.push(&image);
    must("mkfs.fat", &args)?;
    let samples = samples((case.size / 4).min(3 * MIB));
    let tree = place.path("tree");
    write_samples(&tree, &samples);
    let files: Vec<String> = samples
        .iter()
        .map(|sample| tree.join(&sample.name).to_str().unwrap().to_owned())
        .collect();
    let mut args = vec!["-i", &image];
    args.extend(files.iter().map(String::as_str));
    args.push("::");
    must("mcopy", &args)?;
    for sample in samples.iter().filter(|sample| sample.removed) {
        must("mdel", &["-i", &image, &format!("::{}", sample.name)])?;
    }
    // A folder, and a file that fills the holes.
    must("mmd", &["-i", &image, "::sub"])?;
    let filler = samples
        .iter()
        .max_by_key(|sample| sample.bytes.len())
        .unwrap();
    let from = tree.join(&filler.name).to_str().unwrap().to_owned();
    must("mcopy", &["-i", &image, &from, "::sub/filler"])?;
    Some(samples)
}

/// The free clusters' bytes: all that mshowfat doesn't give to a file, from
/// where fsck.fat sees the data.
fn oracle(image: &str, samples: &[Sample], kind: Kind) -> Option<Vec<Range<u64>>> {
    let text = must("fsck.fat", &["-nv", image])?;
    let field = |what: &str| {
        let line = text.lines().find(|line| line.contains(what));
        numbers(line.unwrap_or_else(|| panic!("{what}: {text}")))[0]
    };
    let cluster = field("bytes per cluster");
    let count = field("data clusters");
    let data = field("Data area starts at byte");
    let mut used = vec![false; count as usize];
    let mut names: Vec<String> = samples
        .iter()
        .filter(|sample| !sample.removed)
        .map(|sample| format!("::{}", sample.name))
        .collect();
    names.extend(["::sub".into(), "::sub/filler".into()]);
    if kind == Kind::Fat32 {
        names.push("::".into());
    }
    let mut args = vec!["-i", image];
    args.extend(names.iter().map(String::as_str));
    for line in must("mshowfat", &args)?.lines() {
        for run in line.split('<').skip(1) {
            let run = numbers(run);
            for used in &mut used[run[0] as usize - 2..=run[run.len() - 1] as usize - 2] {
                *used = true;
            }
        }
    }
    let summary = text.lines().last().unwrap();
    let in_use = numbers(summary.rsplit(", ").next().unwrap())[0];
    assert_eq!(used.iter().filter(|used| **used).count() as u64, in_use);
    Some(merged(
        (0..count)
            .filter(|index| !used[*index as usize])
            .map(|index| data + index * cluster..data + (index + 1) * cluster)
            .collect(),
    ))
}

#[test]
fn free_clusters_are_those_that_mtools_gives_to_no_file() {
    for case in &CASES {
        let place = Place::new();
        let Some(samples) = make(&place, case) else {
            return;
        };
        let image = place.text("disk");
        let Some(expected) = oracle(&image, &samples, case.kind) else {
            return;
        };
        let free = walked(Path::new(&image), case.kind);
        same_ranges(&free, &expected, &format!("{:?}", case.options));

        trash(Path::new(&image), &free);
        let text = must("fsck.fat", &["-nv", &image]).unwrap();
        assert!(!text.contains("Leaving filesystem unchanged"), "{text}");
        let out = place.text("out");
        same_samples(&samples, |name| {
            must("mcopy", &["-n", "-i", &image, &format!("::{name}"), &out]).unwrap();
            let bytes = fs::read(&out).unwrap();
            fs::remove_file(&out).unwrap();
            bytes
        });
    }
}

#[test]
fn what_leaves_doubts_is_untouched() {
    // Byte offsets into the file system and what they are changed to. The FAT
    // begins in sector 4 (FAT16) or 32 (FAT32), and each copy has 128 sectors.
    let change =
        |size: u64, options: &'static [&'static str], kind, cases: &[(u64, &[u8], &str)]| {
            let place = Place::new();
            let case = Case {
                size,
                kind,
                options,
            };
            make(&place, &case)?;
            let path = place.path("disk");
            let disk = Raw::open(&path);
            walked(&path, kind);
            for (at, bytes, expected) in cases {
                let before = disk.get(*at, bytes.len());
                assert_ne!(before, *bytes, "{expected}");
                disk.put(*at, bytes);
                let reason = untouched(&path);
                assert!(reason.contains(expected), "{reason} / {expected}");
                disk.put(*at, &before);
            }
            walked(&path, kind);
            Some(())
        };
    let unclean = "not unmounted cleanly";
    let _ = change(
        64 * MIB,
        &["-F", "16"],
        Kind::Fat16,
        &[
            (37, &[1], unclean),
            (
                2048 + 2,
                &[0xff, 0x7f],
                "copies of its allocation table differ",
            ),
            (
                2048 + 65536 + 200,
                &[0xff, 0xef],
                "copies of its allocation table differ",
            ),
            (22, &[2, 0], "too few for"),
            (32, &[0, 0, 3, 0], "within the volume's"),
            (13, &[1], "less than 65525"),
            (2048, &[0xf0], "copies of its"),
        ],
    );
    // One copy of the table: what is in it counts by itself.
    let _ = change(
        64 * MIB,
        &["-F", "16", "-f", "1"],
        Kind::Fat16,
        &[
            (2048 + 3, &[0x7f], unclean),
            (2048 + 3, &[0xbf], unclean),
            (2048, &[0xf0], "begins with 0xfff0"),
            (2048 + 60_000, &[0x00, 0x60], "said to be free"),
            (2048 + 60_000, &[0xf0, 0xff], "goes on in cluster 65520"),
            (2048 + 60_000, &[1, 0], "goes on in cluster 1"),
        ],
    );
    let _ = change(
        40 * MIB,
        &["-F", "32", "-s", "1", "-f", "1"],
        Kind::Fat32,
        &[
            (65, &[1], unclean),
            (32 * 512 + 7, &[0x07], unclean),
            (32 * 512 + 7, &[0x0b], unclean),
            (40, &[0x80], "version that isn't known"),
            (43, &[1], "version that isn't known"),
            (44, &[0, 0, 1], "said to be free"),
            (44, &[0, 0, 0, 9], "goes on in cluster"),
        ],
    );
    // Two chains that lead to the same cluster.
    let place = Place::new();
    let case = Case {
        size: 16 * MIB,
        kind: Kind::Fat16,
        options: &["-F", "16", "-s", "1", "-f", "1"],
    };
    if make(&place, &case).is_some() {
        let disk = Raw::open(&place.path("disk"));
        let fat = disk.get(512, 2000);
        let links: Vec<usize> = (2..1000)
            .filter(|index| {
                matches!(fat[index * 2 + 1], 0..=0xfe) && fat[index * 2..][..2] != [0, 0]
            })
            .collect();
        disk.put(512 + links[0] as u64 * 2, &fat[links[1] * 2..][..2]);
        let reason = untouched(&place.path("disk"));
        assert!(reason.contains("two files go on in cluster"), "{reason}");
    }

    // FAT12 has no flags in its table, but in its boot sector.
    let _ = change(
        8 * MIB,
        &["-F", "12", "-s", "8"],
        Kind::Fat12,
        &[(37, &[1], unclean), (37, &[2], unclean)],
    );
}

#[test]
fn the_table_has_an_entry_for_every_cluster() {
    let place = Place::new();
    let path = place.path("disk");
    let case = Case {
        size: 16 * MIB,
        kind: Kind::Fat16,
        options: &["-F", "16", "-s", "1", "-f", "1"],
    };
    if make(&place, &case).is_none() {
        return;
    }
    let disk = Raw::open(&path);
    let le16 = |at: u64| u32::from(u16::from_le_bytes(disk.get(at, 2).try_into().unwrap()));
    let (reserved, table, root) = (le16(14), le16(22), le16(17) / 16);
    let entries = table * 256;
    disk.file.set_len(64 * MIB).unwrap();
    // Two entries stand for no cluster.
    for (clusters, fits) in [(entries - 2, true), (entries - 1, false)] {
        let total = reserved + table + root + clusters;
        disk.put(19, &[0, 0]);
        disk.put(32, &total.to_le_bytes());
        if fits {
            let free = walked(&path, Kind::Fat16);
            assert_eq!(free.last().unwrap().end, u64::from(total) * 512);
        } else {
            let reason = untouched(&path);
            assert!(reason.contains("too few for"), "{reason}");
        }
    }
}
