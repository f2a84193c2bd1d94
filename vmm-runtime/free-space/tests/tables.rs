//! Partition tables, made by sfdisk and by hand.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use paddock_free_space::{Kind, Outcome, PartitionTable, Report, WalkError, contents, free_space};
use support::*;

/// Partitions a file as a script for sfdisk says.
fn sfdisk(path: &Path, script: &str) -> Option<()> {
    run("sfdisk", &["--version"])?;
    let program = ["/usr/sbin/sfdisk", "/sbin/sfdisk"]
        .into_iter()
        .find(|program| Path::new(program).exists())
        .unwrap_or("sfdisk");
    let mut child = Command::new(program)
        .args(["-q", "--no-reread", path.to_str().unwrap()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "{script}");
    Some(())
}

/// Puts an ext2 file system into a partition, and returns its free bytes by
/// themselves.
fn format(disk: &Raw, place: &Place, start: u64, len: u64) -> Option<Vec<std::ops::Range<u64>>> {
    let image = place.path("part");
    Raw::create(&image, len);
    must(
        "mke2fs",
        &["-q", "-F", "-t", "ext2", "-b", "1024", image.to_str()?],
    )?;
    disk.put(start, &std::fs::read(&image).unwrap());
    Some(
        walked(&image, Kind::Ext2)
            .into_iter()
            .map(|range| range.start + start..range.end + start)
            .collect(),
    )
}

fn places(report: &Report) -> Vec<(u64, u64)> {
    report
        .volumes
        .iter()
        .map(|volume| (volume.start / MIB, volume.len / MIB))
        .collect()
}

#[track_caller]
fn refused(path: &Path) -> String {
    match free_space(&Raw::open(path)) {
        Err(WalkError::Table { found }) => found,
        other => panic!("{other:?}"),
    }
}

#[test]
fn primary_and_logical_partitions_of_an_mbr() {
    let place = Place::new();
    let path = place.path("disk");
    let disk = Raw::create(&path, 64 * MIB);
    let script = "label: dos\nstart=1MiB, size=8MiB, type=83\nstart=10MiB, size=50MiB, type=5\n\
                  start=11MiB, size=8MiB, type=83\nstart=21MiB, size=4MiB, type=82\n\
                  start=30MiB, size=8MiB, type=7\nstart=40MiB, size=4MiB, type=42\n";
    let Some(()) = sfdisk(&path, script) else {
        return;
    };
    let mut expected = Vec::new();
    for start in [1, 11, 30] {
        let Some(free) = format(&disk, &place, start * MIB, 8 * MIB) else {
            return;
        };
        expected.extend(free);
    }
    // A file system in a partition that says it is something else.
    for start in [21, 40] {
        format(&disk, &place, start * MIB, 4 * MIB);
    }
    let report = free_space(&disk).unwrap();
    assert_eq!(report.table, PartitionTable::Mbr);
    assert_eq!(
        places(&report),
        [(1, 8), (11, 8), (21, 4), (30, 8), (40, 4)]
    );
    assert_eq!(report.free_ranges(), expected);
    let reasons: Vec<_> = report
        .volumes
        .iter()
        .filter_map(|volume| match &volume.outcome {
            Outcome::Untouched { reason } => Some(reason.as_str()),
            Outcome::Walked { .. } => None,
        })
        .collect();
    assert_eq!(
        reasons,
        [
            "its partition type, 0x82, says that it is swap space",
            "its partition type, 0x42, says that it is part of a Windows dynamic disk",
        ]
    );
}

/// An entry of an MBR: type, first sector, count.
fn entry(disk: &Raw, sector: u64, index: u64, entry: (u8, u32, u32)) {
    let mut bytes = [0; 16];
    bytes[4] = entry.0;
    bytes[8..12].copy_from_slice(&entry.1.to_le_bytes());
    bytes[12..].copy_from_slice(&entry.2.to_le_bytes());
    disk.put(sector * 512 + 446 + index * 16, &bytes);
    disk.put(sector * 512 + 510, &[0x55, 0xaa]);
}

#[test]
fn an_mbr_that_contradicts_itself_is_refused() {
    let place = Place::new();
    let path = place.path("disk");
    let fresh = || {
        let disk = Raw::create(&path, 0);
        disk.file.set_len(8 * MIB).unwrap();
        entry(&disk, 0, 0, (0x83, 64, 1000));
        disk
    };
    let good = free_space(&Raw {
        size: 8 * MIB,
        ..fresh()
    })
    .unwrap();
    assert_eq!(good.table, PartitionTable::Mbr);
    assert_eq!(
        (good.volumes[0].start, good.volumes[0].len),
        (32768, 512_000)
    );

    type Change<'a> = &'a dyn Fn(&Raw);
    let cases: [(&str, Change<'_>); 11] = [
        ("overlap", &|disk| entry(disk, 0, 1, (0x83, 1063, 10))),
        ("overlap", &|disk| entry(disk, 0, 1, (0x83, 0, 10))),
        ("beyond the disk", &|disk| {
            entry(disk, 0, 1, (0x83, 16000, 385))
        }),
        ("two extended", &|disk| {
            entry(disk, 0, 1, (0x05, 2000, 100));
            entry(disk, 0, 2, (0x0f, 3000, 100));
        }),
        ("overlaps the extended", &|disk| {
            entry(disk, 0, 1, (0x05, 1000, 100));
            entry(disk, 1000, 0, (0x83, 66, 10));
        }),
        ("isn't made like that", &|disk| {
            entry(disk, 0, 1, (0x05, 2000, 100))
        }),
        ("comes back to sector 2000", &|disk| {
            entry(disk, 0, 1, (0x05, 2000, 1000));
            entry(disk, 2000, 0, (0x83, 1, 10));
            entry(disk, 2000, 1, (0x05, 100, 100));
            entry(disk, 2100, 0, (0x83, 1, 10));
            entry(disk, 2100, 1, (0x05, 0, 100));
        }),
        ("isn't within the extended", &|disk| {
            entry(disk, 0, 1, (0x05, 2000, 1000));
            entry(disk, 2000, 0, (0x83, 1, 1000));
        }),
        ("links to sector 3000", &|disk| {
            entry(disk, 0, 1, (0x05, 2000, 1000));
            entry(disk, 2000, 1, (0x05, 1000, 10));
        }),
        ("more than 256", &|disk| {
            entry(disk, 0, 1, (0x05, 2000, 10_000));
            for index in 0..300 {
                entry(disk, 2000 + index * 10, 0, (0x83, 1, 5));
                entry(
                    disk,
                    2000 + index * 10,
                    1,
                    (0x05, (index as u32 + 1) * 10, 10),
                );
            }
        }),
        // A partition over the sector that describes another one.
        ("overlap", &|disk| {
            entry(disk, 0, 1, (0x05, 2000, 1000));
            entry(disk, 2000, 0, (0x83, 1, 200));
            entry(disk, 2000, 1, (0x05, 100, 100));
            entry(disk, 2100, 0, (0x83, 200, 10));
        }),
    ];
    for (expected, change) in cases {
        change(&fresh());
        let found = refused(&path);
        assert!(found.contains(expected), "{found} / {expected}");
    }
}

#[test]
fn a_disk_with_both_a_table_and_a_file_system_is_refused() {
    let place = Place::new();
    let path = place.path("disk");
    let disk = Raw::create(&path, 8 * MIB);
    if format(&disk, &place, 0, 8 * MIB).is_none() {
        return;
    }
    walked(&path, Kind::Ext2);
    entry(&disk, 0, 0, (0x83, 2048, 1000));
    assert!(refused(&path).contains("a file system over the whole disk"));
}

/// CRC-32, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |mut crc, &byte| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
        }
        crc
    })
}

const LINUX: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

/// Writes one copy of a GPT with sectors of `sector` bytes.
fn gpt_copy(disk: &Raw, sector: u64, backup: bool, parts: &[(u64, u64)]) {
    let sectors = disk.size / sector;
    let array_sectors = (128 * 128_u64).div_ceil(sector);
    let (own, other, array) = if backup {
        (sectors - 1, 1, sectors - 1 - array_sectors)
    } else {
        (1, sectors - 1, 2)
    };
    let mut entries = vec![0; 128 * 128];
    for (index, (first, last)) in parts.iter().enumerate() {
        let entry = &mut entries[index * 128..];
        entry[..16].copy_from_slice(&LINUX);
        entry[16] = index as u8 + 1;
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
    }
    let mut header = vec![0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..12].copy_from_slice(&[0, 0, 1, 0]);
    header[12..16].copy_from_slice(&92_u32.to_le_bytes());
    for (at, value) in [
        (24, own),
        (32, other),
        (40, 2 + array_sectors),
        (48, sectors - 2 - array_sectors),
        (72, array),
    ] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    header[80..84].copy_from_slice(&128_u32.to_le_bytes());
    header[84..88].copy_from_slice(&128_u32.to_le_bytes());
    header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk.put(own * sector, &header);
    disk.put(array * sector, &entries);
}

fn gpt(disk: &Raw, sector: u64, parts: &[(u64, u64)]) {
    entry(disk, 0, 0, (0xee, 1, u32::MAX));
    gpt_copy(disk, sector, false, parts);
    gpt_copy(disk, sector, true, parts);
}

#[test]
fn a_gpt_as_sfdisk_makes_it() {
    let place = Place::new();
    let path = place.path("disk");
    let disk = Raw::create(&path, 48 * MIB);
    let script = "label: gpt\nstart=1MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649\n\
                  start=2MiB, size=8MiB, type=linux\nstart=20MiB, size=10MiB, type=raid\n\
                  start=30MiB, size=9MiB, type=uefi\n";
    let Some(()) = sfdisk(&path, script) else {
        return;
    };
    let (Some(mut expected), Some(efi)) = (
        format(&disk, &place, 2 * MIB, 8 * MIB),
        format(&disk, &place, 30 * MIB, 9 * MIB),
    ) else {
        return;
    };
    expected.extend(efi);
    format(&disk, &place, 20 * MIB, 10 * MIB);
    let report = free_space(&disk).unwrap();
    assert_eq!(report.table, PartitionTable::Gpt);
    assert_eq!(places(&report), [(1, 1), (2, 8), (20, 10), (30, 9)]);
    assert_eq!(report.free_ranges(), expected);

    // The backup holds when the first copy is gone; without both nothing does.
    disk.put(512 + 40, &[1]);
    let again = free_space(&disk).unwrap();
    assert_eq!(again, report);
    disk.put(48 * MIB - 512, &[0]);
    let found = refused(&path);
    assert!(found.contains("neither copy is good"), "{found}");
}

#[test]
fn both_copies_and_both_sizes_of_a_sector() {
    for sector in [512, 4096] {
        let place = Place::new();
        let path = place.path("disk");
        let disk = Raw::create(&path, 16 * MIB);
        let first = MIB / sector;
        let parts = [(first, first + 8 * MIB / sector - 1)];
        gpt(&disk, sector, &parts);
        let Some(expected) = format(&disk, &place, MIB, 8 * MIB) else {
            return;
        };
        let array = 2 * sector + 130;
        // The entries, the header, and both of the first copy.
        for damage in [&[][..], &[array], &[sector + 56], &[sector, array]] {
            for &at in damage {
                let before = disk.get(at, 1);
                disk.put(at, &[before[0] ^ 0x40]);
            }
            let report = free_space(&disk).unwrap();
            assert_eq!(report.table, PartitionTable::Gpt);
            assert_eq!(report.free_ranges(), expected, "{sector} {damage:?}");
            gpt(&disk, sector, &parts);
        }
    }
}

#[test]
fn a_gpt_that_contradicts_itself_is_refused() {
    let place = Place::new();
    let path = place.path("disk");
    let fresh = || Raw::create(&path, 16 * MIB);
    let disk = fresh();
    for (parts, expected) in [
        (&[(2048, 4095), (4095, 5000)][..], "overlap"),
        (&[(33, 4095)], "expected them within 34.."),
        (&[(2048, 32735)], "expected them within 34..32735"),
        (&[(4000, 3999)], "expected them within"),
        (&[(2048, u64::MAX)], "expected them within"),
    ] {
        gpt(&disk, 512, parts);
        let found = refused(&path);
        assert!(found.contains(expected), "{found} / {expected}");
    }
    gpt(&disk, 512, &[(2048, 4095)]);
    assert_eq!(free_space(&disk).unwrap().volumes.len(), 1);
    // The backup's header in the first one's place.
    let (first, backup) = (disk.get(512, 512), disk.get(16 * MIB - 512, 512));
    disk.put(512, &backup);
    disk.put(16 * MIB - 512, &[0; 512]);
    let found = refused(&path);
    assert!(found.contains("belongs into another sector"), "{found}");
    disk.put(512, &first);
    entry(&disk, 0, 1, (0x83, 2048, 2048));
    assert!(refused(&path).contains("hybrid"));
    entry(&disk, 0, 0, (0, 0, 0));
    assert!(refused(&path).contains("partitions of its own"));
    disk.put(446, &[0; 66]);
    assert!(refused(&path).contains("the MBR that protects it"));
}

#[test]
fn nothing_and_what_is_not_looked_into() {
    let place = Place::new();
    let path = place.path("disk");
    for size in [0, 1, 511, 512, 1500, 5000, MIB] {
        Raw::create(&path, size);
        assert!(untouched(&path).contains("nothing was recognized"));
    }
    for (at, magic, kind, expected) in [
        (0, &b"LUKS\xba\xbe"[..], Kind::Luks, "a LUKS volume"),
        (512, b"LABELONE", Kind::Lvm, "an LVM physical volume"),
        (4086, b"SWAPSPACE2", Kind::Swap, "swap space"),
        (4086, b"S1SUSPEND", Kind::Swap, "a suspended machine"),
        (65600, b"_BHRfS_M", Kind::Unknown, "btrfs"),
        (3, b"-FVE-FS-", Kind::Unknown, "BitLocker"),
        (
            MIB - 65536,
            b"\xfc\x4e\x2b\xa9",
            Kind::Unknown,
            "Linux RAID",
        ),
        (MIB - 8192, b"\xfc\x4e\x2b\xa9", Kind::Unknown, "Linux RAID"),
    ] {
        Raw::create(&path, MIB).put(at, magic);
        assert_eq!(bare(&path).kind, kind);
        let reason = untouched(&path);
        assert!(reason.contains(expected), "{reason}");
    }
    let disk = Raw::create(&path, MIB);
    disk.put(0, b"LUKS\xba\xbe");
    disk.put(4086, b"SWAPSPACE2");
    let reason = untouched(&path);
    assert!(reason.contains("a LUKS volume, swap space"), "{reason}");
    if must("mkswap", &["-q", path.to_str().unwrap()]).is_some() {
        Raw::create(&path, MIB);
        must("mkswap", &["-q", path.to_str().unwrap()]).unwrap();
        assert_eq!(bare(&path).kind, Kind::Swap);
    }
}

#[test]
fn a_disk_that_cannot_be_read_is_an_error() {
    struct Broken;
    impl paddock_free_space::Disk for Broken {
        fn size(&self) -> u64 {
            MIB
        }
        fn read_at(&self, _: &mut [u8], _: u64) -> std::io::Result<()> {
            Err(std::io::Error::other("no answer"))
        }
    }
    let error = free_space(&Broken).unwrap_err().to_string();
    assert_eq!(error, "read 512 bytes at byte 0 of the disk: no answer");
}

/// A disk that counts what is read of it.
struct Counted<'a>(&'a Raw, std::cell::Cell<u64>);

impl paddock_free_space::Disk for Counted<'_> {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.1.set(self.1.get() + buf.len() as u64);
        self.0.read_at(buf, offset)
    }
}

#[test]
fn contents_are_told_without_a_walk() {
    let place = Place::new();
    let path = place.path("disk");
    let disk = Raw::create(&path, 4 * GIB);
    let script = "label: dos\nstart=1MiB, size=8MiB, type=83\nstart=10MiB, type=83\n";
    let Some(()) = sfdisk(&path, script) else {
        return;
    };
    if format(&disk, &place, MIB, 8 * MIB).is_none() {
        return;
    }
    let counted = Counted(&disk, std::cell::Cell::new(0));
    let found = contents(&counted).unwrap();
    assert_eq!(found.table, PartitionTable::Mbr);
    let volumes: Vec<_> = found
        .volumes
        .iter()
        .map(|volume| (volume.start / MIB, volume.len / MIB, volume.kind))
        .collect();
    assert_eq!(volumes, [(1, 8, Kind::Ext2), (10, 4086, Kind::Unknown)]);
    assert!(counted.1.get() < 512 * KIB, "{}", counted.1.get());
    let report = free_space(&disk).unwrap();
    let walked = report.volumes.iter().map(|volume| volume.kind);
    assert!(walked.eq(found.volumes.iter().map(|volume| volume.kind)));
}
