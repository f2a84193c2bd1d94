//! NTFS against ntfs-3g's tools.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::ops::Range;
use std::path::Path;

use paddock_free_space::Kind;
use support::*;

const CASES: [(u64, &[&str]); 6] = [
    (8 * MIB, &["-c", "512"]),
    (33 * MIB + 512, &["-c", "1024"]),
    (64 * MIB, &["-c", "4096"]),
    (40 * MIB, &["-c", "4096", "-s", "4096"]),
    (300 * MIB, &["-c", "65536"]),
    (8 * GIB, &[]),
];

fn make(place: &Place, size: u64, options: &[&str]) -> Option<Vec<Sample>> {
    let image = place.text("disk");
    Raw::create(Path::new(&image), size);
    let mut args = vec!["-F", "-Q", "-q"];
    args.extend(options);
    args.push(&image);
    must("mkntfs", &args)?;
    let samples = samples((size / 5).min(3 * MIB));
    write_samples(&place.path("tree"), &samples);
    for sample in &samples {
        let from = place.text("tree") + "/" + &sample.name;
        must("ntfscp", &["-q", &image, &from, &sample.name])?;
    }
    let inodes = must("ntfsls", &["-i", &image])?;
    for sample in samples.iter().filter(|sample| sample.removed) {
        let line = inodes
            .lines()
            .find(|line| line.ends_with(&sample.name))
            .unwrap();
        let inode = numbers(line)[0].to_string();
        must("ntfstruncate", &["-q", &image, &inode, "0x80", "1"]).unwrap();
    }
    Some(samples)
}

fn cat(image: &str, args: &[&str]) -> Option<Vec<u8>> {
    let mut all = vec!["-f", image];
    all.extend(args);
    let output = run("ntfscat", &all)?;
    assert!(output.status.success(), "{}", said(&output));
    Some(output.stdout)
}

fn info(image: &str, what: &str) -> Option<u64> {
    let text = must("ntfsinfo", &["-f", "-m", image])?;
    let line = text.lines().find(|line| line.contains(what)).unwrap();
    Some(numbers(line.rsplit(':').next().unwrap())[0])
}

/// What ntfscat reads of $Bitmap, bit by bit.
fn oracle(image: &str) -> Option<Vec<Range<u64>>> {
    let bits = cat(image, &["-i", "6"])?;
    let cluster = info(image, "Cluster Size")?;
    let count = info(image, "Volume Size in Clusters")?;
    Some(merged(
        (0..count)
            .filter(|at| bits[(at / 8) as usize] >> (at % 8) & 1 == 0)
            .map(|at| at * cluster..(at + 1) * cluster)
            .collect(),
    ))
}

#[test]
fn free_clusters_are_those_that_ntfscat_reads_of_the_bitmap() {
    for (size, options) in CASES {
        let place = Place::new();
        let Some(samples) = make(&place, size, options) else {
            return;
        };
        let image = place.text("disk");
        let free = walked(Path::new(&image), Kind::Ntfs);
        let Some(expected) = oracle(&image) else {
            return;
        };
        same_ranges(&free, &expected, &format!("{options:?}"));

        trash(Path::new(&image), &free);
        must("ntfsfix", &["-n", &image]).unwrap();
        // It compares all files' clusters with the bitmap.
        let text = must("ntfsresize", &["-f", "-i", &image]).unwrap();
        assert!(text.contains("You might resize"), "{text}");
        same_samples(&samples, |name| cat(&image, &[name]).unwrap());
    }
}

/// Where record 0 of the file table is.
fn table(disk: &Raw) -> (u64, u64) {
    let boot = disk.get(0, 512);
    let cluster = 512 * u64::from(boot[13]);
    let lcn = |at: usize| u64::from_le_bytes(boot[at..at + 8].try_into().unwrap());
    (lcn(48) * cluster, lcn(56) * cluster)
}

/// Reads a record of 1 KiB, its update sequence undone.
fn record(disk: &Raw, number: u64) -> Vec<u8> {
    let mut bytes = disk.get(table(disk).0 + number * 1024, 1024);
    let at = usize::from(bytes[4]);
    for (index, tail) in [510, 1022].into_iter().enumerate() {
        let word = [bytes[at + 2 + index * 2], bytes[at + 3 + index * 2]];
        bytes[tail..tail + 2].copy_from_slice(&word);
    }
    bytes
}

/// Writes it, with an update sequence.
fn put_record(disk: &Raw, number: u64, mut bytes: Vec<u8>) {
    let at = usize::from(bytes[4]);
    for (index, tail) in [510, 1022].into_iter().enumerate() {
        let word = [bytes[tail], bytes[tail + 1]];
        bytes[at + 2 + index * 2..at + 4 + index * 2].copy_from_slice(&word);
        let guard = [bytes[at], bytes[at + 1]];
        bytes[tail..tail + 2].copy_from_slice(&guard);
    }
    let (first, mirror) = table(disk);
    disk.put(first + number * 1024, &bytes);
    if number < 4 {
        disk.put(mirror + number * 1024, &bytes);
    }
}

/// Attributes of a record: where each begins, and its type.
fn attributes(record: &[u8]) -> Vec<(usize, u32)> {
    let le32 = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().unwrap());
    let mut at = usize::from(record[20]);
    let mut found = Vec::new();
    while le32(at) != u32::MAX {
        found.push((at, le32(at)));
        at += le32(at + 4) as usize;
    }
    found
}

fn attribute(record: &[u8], kind: u32) -> usize {
    attributes(record)
        .iter()
        .find(|(_, this)| *this == kind)
        .unwrap()
        .0
}

#[test]
fn what_leaves_doubts_is_untouched() {
    let place = Place::new();
    if make(&place, 24 * MIB, &["-c", "4096"]).is_none() {
        return;
    }
    let path = place.path("disk");
    let disk = Raw::open(&path);
    let clean = walked(&path, Kind::Ntfs);
    let check = |expected: &str| {
        let reason = untouched(&path);
        assert!(reason.contains(expected), "{reason} / {expected}");
    };
    let (first, mirror) = table(&disk);
    for (at, bytes, expected) in [
        (13, &[3][..], "3 to a cluster"),
        (64, &[0xf0], "expected one for each 512 bytes"),
        (64, &[0xee], "records of its file table have 262144 bytes"),
        (44, &[1], "expected them within the volume's"),
        (first, b"BAAD", "has no signature"),
        (first + 510, &[0xee, 0xee], "was not written as a whole"),
        (first + 6, &[4], "words of update sequence"),
        (first + 22, &[0], "isn't in use"),
        (
            first + 6 * 1024,
            b"BAAD",
            "record 6 of its file table has no signature",
        ),
        (mirror + 1024 + 8, &[0xfe], "two copies of record 1"),
    ] {
        let before = disk.get(at, bytes.len());
        assert_ne!(before, bytes, "{expected}");
        disk.put(at, bytes);
        check(expected);
        disk.put(at, &before);
    }
    // Fields within attributes: record, attribute, place in it, value.
    for (number, kind, field, bytes, expected) in [
        (
            3,
            0x70,
            24 + 10,
            &[1][..],
            "marked dirty, with the flags 0x0001",
        ),
        (
            3,
            0x70,
            24 + 10,
            &[0, 0x40],
            "marked dirty, with the flags 0x4000",
        ),
        (3, 0x70, 24 + 8, &[4], "version 4.1"),
        (3, 0x70, 0, &[0x71], "doesn't tell its version"),
        (6, 0x80, 12, &[0, 0x80], "compressed, sparse or encrypted"),
        (6, 0x80, 49, &[2], "tells of 512 bytes"),
        (6, 0x80, 57, &[1], "256 of them written"),
        (6, 0x80, 49, &[0xff; 7], "in 4096: run chkdsk"),
        (6, 0x80, 24, &[7], "end with its cluster 0, expected 7"),
        (
            6,
            0x80,
            64,
            &[0x11, 0x01, 0x00, 0],
            "two of its own structures",
        ),
        (6, 0x80, 64, &[0x11, 0x01, 0xf0, 0], "isn't within its"),
        (6, 0x80, 64, &[0x01, 0x01, 0, 0], "holes"),
        (
            6,
            0x80,
            64,
            &[0x11, 0x7f, 0x10, 0x11, 0x7f, 0x10, 0],
            "expected 0",
        ),
        (6, 0x80, 4, &[9], "attribute of its file table has 9 bytes"),
        (0, 0x80, 66, &[0x01], "begins elsewhere"),
    ] {
        let before = record(&disk, number);
        let at = attribute(&before, kind) + field;
        let mut changed = before.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        assert_ne!(before, changed, "{expected}");
        put_record(&disk, number, changed);
        check(expected);
        put_record(&disk, number, before);
    }
    // The file table's first cluster is said to be free.
    let bits = attribute(&record(&disk, 6), 0x80);
    let run = &record(&disk, 6)[bits + 64..][..4];
    let lcn = match run[0] >> 4 {
        1 => u64::from(run[2]),
        _ => u64::from(run[2]) | u64::from(run[3]) << 8,
    };
    let before = disk.get(lcn * 4096, 1);
    disk.put(lcn * 4096, &[before[0] & !(1 << (first / 4096))]);
    check("its own structures lie in");
    disk.put(lcn * 4096, &before);
    assert_eq!(walked(&path, Kind::Ntfs), clean);
}

/// A restart page of a log.
fn restart(lsn: u64, major: u16, client: u16, flags: u16) -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[..4].copy_from_slice(b"RSTR");
    page[4..8].copy_from_slice(&[0x1e, 0, 9, 0]);
    page[16..20].copy_from_slice(&4096_u32.to_le_bytes());
    page[20..24].copy_from_slice(&4096_u32.to_le_bytes());
    page[24..26].copy_from_slice(&0x30_u16.to_le_bytes());
    page[26..28].copy_from_slice(&1_u16.to_le_bytes());
    page[28..30].copy_from_slice(&major.to_le_bytes());
    page[0x30..0x38].copy_from_slice(&lsn.to_le_bytes());
    page[0x3c..0x3e].copy_from_slice(&client.to_le_bytes());
    page[0x3e..0x40].copy_from_slice(&flags.to_le_bytes());
    page[0x1e] = 7;
    for block in 1..9 {
        page[block * 512 - 2] = 7;
    }
    page
}

#[test]
fn the_log_has_to_be_clean() {
    let place = Place::new();
    if make(&place, 24 * MIB, &["-c", "4096"]).is_none() {
        return;
    }
    let (path, image) = (place.path("disk"), place.text("disk"));
    let free = walked(&path, Kind::Ntfs);
    let write = |pages: [Vec<u8>; 2]| {
        fs::write(place.path("log"), pages.concat()).unwrap();
        must(
            "ntfscp",
            &["-q", "-f", "-i", &image, &place.text("log"), "2"],
        )
        .unwrap();
    };
    let log = cat(&image, &["-i", "2"]).unwrap();
    let with = |pages: [Vec<u8>; 2]| {
        let mut log = log.clone();
        log[..8192].copy_from_slice(&pages.concat());
        let halves = log.split_at(4096);
        [halves.0.to_vec(), halves.1.to_vec()]
    };
    let torn = |mut page: Vec<u8>| {
        page[1022] = 8;
        page
    };
    for (pages, expected) in [
        ([restart(5, 1, 0xffff, 2), restart(6, 1, 0xffff, 2)], None),
        ([restart(5, 1, 0, 0), restart(6, 1, 0xffff, 0)], None),
        ([restart(5, 1, 0, 2), restart(4, 1, 0, 0)], None),
        (
            [restart(5, 1, 0, 0), restart(6, 1, 0, 0)],
            Some("not carried out"),
        ),
        (
            [restart(5, 1, 0xffff, 2), restart(6, 1, 0, 0)],
            Some("not carried out"),
        ),
        (
            [restart(5, 2, 0xffff, 2), restart(4, 2, 0xffff, 2)],
            Some("not carried out"),
        ),
        (
            [torn(restart(5, 1, 0xffff, 2)), restart(6, 1, 0xffff, 2)],
            Some("written as a whole"),
        ),
        (
            [restart(5, 1, 0xffff, 2), vec![0xff; 4096]],
            Some("lacks one of its two"),
        ),
        (
            [vec![0; 4096], restart(5, 1, 0xffff, 2)],
            Some("doesn't begin with a restart page"),
        ),
        (
            [vec![0xff; 4096], restart(5, 1, 0xffff, 2)],
            Some("begins like an empty one, but isn't"),
        ),
    ] {
        write(with(pages));
        match expected {
            None => assert_eq!(walked(&path, Kind::Ntfs), free),
            Some(expected) => {
                let reason = untouched(&path);
                assert!(reason.contains(expected), "{reason} / {expected}");
            }
        }
    }
}

#[test]
fn shadow_copies_keep_clusters_that_are_free() {
    let place = Place::new();
    if make(&place, 24 * MIB, &["-c", "4096"]).is_none() {
        return;
    }
    let path = place.path("disk");
    let free = walked(&path, Kind::Ntfs);
    let disk = Raw::open(&path);
    let identifier = [
        0x6b, 0x87, 0x08, 0x38, 0x76, 0xc1, 0x48, 0x4e, 0xb7, 0xae, 0x04, 0x04, 0x6e, 0x6c, 0xc7,
        0x52_u8,
    ];
    let header = |kind: u8, link_at: usize, link: u64| {
        let mut bytes = vec![0; 128];
        bytes[..16].copy_from_slice(&identifier);
        bytes[16] = 1;
        bytes[20] = kind;
        bytes[link_at..link_at + 8].copy_from_slice(&link.to_le_bytes());
        bytes
    };
    disk.put(0x1e00, &header(1, 48, 0));
    assert_eq!(walked(&path, Kind::Ntfs), free);
    // A catalogue of two blocks, in places that don't matter here.
    let (one, two) = (20 * MIB, 21 * MIB);
    disk.put(0x1e00, &header(1, 48, one));
    disk.put(one, &header(2, 40, two));
    disk.put(two, &header(2, 40, 0));
    disk.put(two + 256, &[1]);
    assert_eq!(walked(&path, Kind::Ntfs), free);
    disk.put(two + 256, &[2]);
    let reason = untouched(&path);
    assert!(reason.contains("it has shadow copies"), "{reason}");
    disk.put(two, &header(2, 40, one));
    disk.put(two + 256, &[1]);
    assert!(untouched(&path).contains("leads back"));
    disk.put(one, &[0]);
    assert!(untouched(&path).contains("isn't made like one"));
}

#[test]
fn a_bitmap_that_goes_on_in_other_records() {
    let place = Place::new();
    if make(&place, 16 * MIB, &["-c", "512"]).is_none() {
        return;
    }
    let (path, image) = (place.path("disk"), place.text("disk"));
    let free = walked(&path, Kind::Ntfs);
    let disk = Raw::open(&path);
    let base = record(&disk, 6);
    let data = attribute(&base, 0x80);
    let data_len = usize::from(base[data + 4]);
    // One run, of fewer than 128 clusters.
    let run = &base[data + 64..][..4];
    assert_eq!(run[0] & 15, 1);
    let count = run[1];
    let lcn =
        (0..usize::from(run[0] >> 4)).fold(0, |lcn, at| lcn | u32::from(run[2 + at]) << (8 * at));

    // Records 24 and 25 take half of it each.
    let part = |number: u64, first: u8, len: u8| {
        let mut bytes = vec![0; 1024];
        bytes[..0x38].copy_from_slice(&base[..0x38]);
        bytes[4] = 0x30;
        bytes[16] = number as u8;
        bytes[18] = 0;
        bytes[20] = 0x38;
        bytes[32..38].copy_from_slice(&[6, 0, 0, 0, 0, 0]);
        bytes[38..40].copy_from_slice(&base[16..18]);
        bytes[44..48].copy_from_slice(&(number as u32).to_le_bytes());
        let mut attribute = base[data..data + data_len].to_vec();
        attribute[16] = first;
        attribute[24] = first + len - 1;
        let place = (lcn + u32::from(first)).to_le_bytes();
        attribute[64..72].copy_from_slice(&[0x31, len, place[0], place[1], place[2], 0, 0, 0]);
        bytes[0x38..0x38 + data_len].copy_from_slice(&attribute);
        let end = 0x38 + data_len;
        bytes[end..end + 4].fill(0xff);
        bytes[24..28].copy_from_slice(&(end as u32 + 8).to_le_bytes());
        put_record(&disk, number, bytes);
    };
    let half = count / 2;
    let entry = |kind: u32, first: u8, reference: u64, instance: u8| {
        let mut entry = vec![0; 32];
        entry[..4].copy_from_slice(&kind.to_le_bytes());
        entry[4] = 32;
        entry[7] = 26;
        entry[8] = first;
        entry[16..24].copy_from_slice(&reference.to_le_bytes());
        entry[24] = instance;
        entry
    };
    let own = 6 | u64::from(base[16]) << 48;
    let others: Vec<_> = attributes(&base)
        .into_iter()
        .filter(|(_, kind)| *kind != 0x80)
        .collect();
    let list = |second: u64| {
        let mut entries = Vec::new();
        for (at, kind) in &others {
            entries.extend(entry(*kind, 0, own, base[at + 14]));
        }
        entries.extend(entry(0x80, 0, 24 | 24 << 48, base[data + 14]));
        entries.extend(entry(0x80, half, second, base[data + 14]));
        let mut list = vec![0; 24];
        list[0] = 0x20;
        list[4..8].copy_from_slice(&(24 + entries.len() as u32).to_le_bytes());
        list[14] = 9;
        list[16..20].copy_from_slice(&(entries.len() as u32).to_le_bytes());
        list[20] = 24;
        list.extend(entries);
        let start = usize::from(base[20]);
        let mut bytes = base[..start].to_vec();
        for (at, kind) in &others {
            if *kind == 0x30 {
                bytes.extend(&list);
            }
            let len = usize::from(base[at + 4]) | usize::from(base[at + 5]) << 8;
            bytes.extend(&base[*at..at + len]);
        }
        bytes.extend([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        let len = bytes.len() as u32;
        bytes[24..28].copy_from_slice(&len.to_le_bytes());
        bytes.resize(1024, 0);
        put_record(&disk, 6, bytes);
    };
    part(24, 0, half);
    part(25, half, count - half);
    list(25 | 25 << 48);
    assert_eq!(walked(&path, Kind::Ntfs), free);
    if let Some(expected) = oracle(&image) {
        same_ranges(&free, &expected, "what ntfscat puts together");
    }
    // The wrong generation of a record; one that isn't there; a gap.
    list(25 | 26 << 48);
    assert!(untouched(&path).contains("isn't a part of record 6"));
    list(24 | 24 << 48);
    assert!(untouched(&path).contains("lacks attribute 0x80"));
    list(25 | 25 << 48);
    part(24, 0, half - 1);
    assert!(untouched(&path).contains("a file goes on with its cluster"));
}
