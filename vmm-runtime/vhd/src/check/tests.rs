//! One damage after the other, and whatever damage, compared with what
//! opening says.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use super::{CheckReport, FindingKind, Severity, Verdict, examine};
use crate::format::DiskType;
use crate::format::bat::{BLOCK_SIZE, Layout, MAX_ENTRIES};
use crate::format::footer::{Footer, Kind};
use crate::gate::Gate;
use crate::image::random::Random;
use crate::image::sample::{
    Sample, footer, foreign_child, foreign_disk, new_child, new_disk, open_parents,
};
use crate::image::{self, Refusal, Tuning, format_new};
use crate::import::Progress;
use crate::operation::OperationError;
use crate::skipped::skipped;
use crate::storage::fault::FaultStorage;
use crate::storage::{Backing, FileStorage, Storage};

const SIZE: u64 = 16 * 4096;

fn backing(storage: impl Storage + 'static) -> Backing {
    Backing::new(Box::new(storage), Gate::open(), "disk")
}

fn storage(file: &[u8]) -> FaultStorage {
    FaultStorage::new(file.to_vec(), BTreeMap::new())
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn report(file: &[u8]) -> CheckReport {
    let storage = storage(file);
    let verdict = examine(&backing(storage.clone()), Path::new("disk"), &mut go_on).unwrap();
    assert_eq!(storage.position(), 0, "a check wrote");
    verdict.report
}

fn kinds(report: &CheckReport) -> Vec<(FindingKind, Option<u32>)> {
    let list = report.findings.iter();
    list.map(|finding| (finding.kind, finding.block)).collect()
}

/// A disk that was used: blocks 0 to 3, in the order of their numbers.
fn used() -> (Vec<u8>, Layout) {
    let Sample { file, layout, .. } = new_disk(DiskType::Dynamic, SIZE, 4096);
    let storage = storage(&file);
    let tuning = Tuning {
        growth: 4096,
        ..Tuning::default()
    };
    let (disk, _) = image::open(backing(storage.clone()), None, false, tuning).unwrap();
    for block in 0..4 {
        disk.write_at(&[1; 512], block * 4096).unwrap();
    }
    disk.put_away().unwrap();
    let mut bytes = vec![0; storage.len().unwrap() as usize];
    storage.read_at(&mut bytes, 0).unwrap();
    (bytes, layout)
}

fn entry(file: &mut [u8], block: usize) -> &mut [u8] {
    &mut file[1536 + block * 4..1540 + block * 4]
}

#[test]
fn disks_of_our_own_have_no_flaw() {
    let clean = |file: &[u8], disk_type| {
        let report = report(file);
        assert_eq!(kinds(&report), []);
        assert_eq!(report.worst(), None);
        assert_eq!(
            (report.disk_type, report.leaked_bytes),
            (Some(disk_type), 0)
        );
        report.allocated_blocks
    };
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        assert_eq!(clean(&new_disk(disk_type, SIZE, 4096).file, disk_type), 0);
    }
    let parent = new_disk(DiskType::Dynamic, SIZE, 4096);
    let child = new_child(parent, SIZE, 4096);
    assert_eq!(clean(&child.file, DiskType::Differencing), 0);
    assert_eq!(clean(&used().0, DiskType::Dynamic), 4);
}

#[test]
fn each_damage_has_its_name() {
    use FindingKind as K;
    let (good, layout) = used();
    let region = layout.region_len() as usize;
    // Blocks of 4 KiB and a bitmap: data at 4096, then every 8 KiB.
    let first = 7 * 512;
    assert_eq!(entry(&mut good.clone(), 0), 7u32.to_be_bytes());
    let end = good.len() - 512;
    type Edit<'a> = &'a dyn Fn(&mut Vec<u8>);
    type Expected = &'static [(K, Option<u32>)];
    let cases: [(Edit<'_>, Expected); 13] = [
        (&|file| file[70] ^= 1, &[(K::FooterCopyDamaged, None)]),
        (&|file| file[end + 70] ^= 1, &[(K::FooterDamaged, None)]),
        (
            &|file| (file[70], file[end + 70]) = (!file[70], !file[end + 70]),
            &[(K::FootersDamaged, None)],
        ),
        (&|file| file[600] ^= 1, &[(K::HeaderDamaged, None)]),
        (
            &|file| entry(file, 2).copy_from_slice(&3u32.to_be_bytes()),
            &[
                (K::BlockOverMetadata, Some(2)),
                (K::BlocksOverlap, Some(0)),
                (K::SpaceLeaked, None),
            ],
        ),
        (
            &|file| entry(file, 2).copy_from_slice(&0u32.to_be_bytes()),
            &[
                (K::BlockOverMetadata, Some(2)),
                (K::BlockOverMetadata, Some(2)),
                (K::BlockOverMetadata, Some(2)),
                (K::BlocksOverlap, Some(0)),
                (K::SpaceLeaked, None),
            ],
        ),
        (
            &|file| entry(file, 2).copy_from_slice(&7u32.to_be_bytes()),
            &[(K::BlocksOverlap, Some(2)), (K::SpaceLeaked, None)],
        ),
        (
            &|file| entry(file, 9).copy_from_slice(&8u32.to_be_bytes()),
            &[(K::BlocksOverlap, Some(9))],
        ),
        (
            &|file| entry(file, 3).copy_from_slice(&1000u32.to_be_bytes()),
            &[(K::BlockPastEnd, Some(3)), (K::SpaceLeaked, None)],
        ),
        (&|file| entry(file, 1).fill(0xff), &[(K::SpaceLeaked, None)]),
        // A bitmap of eight bits with one more.
        (
            &|file| file[first + 1] = 0x80,
            &[(K::BitmapPadding, Some(0))],
        ),
        (
            &|file| {
                let mut footer = Footer::parse(&file[..512]).unwrap();
                footer.saved_state = true;
                footer.geometry.cylinders += 1;
                let bytes = footer.encode();
                file[..512].copy_from_slice(&bytes);
                file[end..].copy_from_slice(&bytes);
            },
            &[(K::GeometryDiffers, None), (K::SavedState, None)],
        ),
        (
            &|file| {
                let mut footer = Footer::parse(&file[..512]).unwrap();
                footer.current_size = SIZE / 2 - 4096;
                footer.geometry = footer_of(SIZE / 2 - 4096);
                let bytes = footer.encode();
                file[..512].copy_from_slice(&bytes);
                file[end..].copy_from_slice(&bytes);
                entry(file, 12).copy_from_slice(&(7 + 4 * 16u32).to_be_bytes());
                file.truncate(end);
                file.resize(end + 7 * 512 + region, 0);
                file.extend(bytes);
            },
            &[(K::BlockUnused, Some(12))],
        ),
    ];
    for (index, (edit, expected)) in cases.iter().enumerate() {
        let mut file = good.clone();
        edit(&mut file);
        let report = report(&file);
        assert_eq!(kinds(&report), *expected, "case {index}: {report:?}");
        assert!(
            report
                .findings
                .iter()
                .all(|finding| !finding.message.is_empty())
        );
        let total: u64 = report.counts.values().sum();
        assert_eq!(total, expected.len() as u64);
        let worst = expected.iter().map(|(kind, _)| kind.severity()).max();
        assert_eq!(report.worst(), worst);
    }
}

fn footer_of(size: u64) -> crate::format::geometry::Geometry {
    footer(DiskType::Dynamic, size).geometry
}

#[test]
fn sizes_and_layouts_that_cannot_be_are_named() {
    let bad_size = Footer {
        kind: Kind::Fixed,
        current_size: 1 << 42,
        ..footer(DiskType::Fixed, 512)
    };
    let file = [&[0; 4096][..], &bad_size.encode()].concat();
    assert_eq!(kinds(&report(&file)), [(FindingKind::SizeImpossible, None)]);
    let (mut file, _) = used();
    file.truncate(1600);
    assert_eq!(
        kinds(&report(&file)),
        [
            (FindingKind::FooterDamaged, None),
            (FindingKind::LayoutImpossible, None)
        ]
    );
    let parent = new_disk(DiskType::Dynamic, SIZE, 4096);
    let Sample {
        mut file, layout, ..
    } = new_child(parent, SIZE, 4096);
    // A lone surrogate.
    file[layout.locators[0].0 as usize + 1] = 0xd8;
    assert_eq!(kinds(&report(&file)), [(FindingKind::LocatorDamaged, None)]);
}

#[test]
fn what_is_no_disk_is_an_error_and_a_check_can_be_cancelled() {
    let path = Path::new("disk");
    let result = examine(&backing(storage(&[0; 4096])), path, &mut go_on);
    assert!(matches!(result, Err(OperationError::Open(_))));
    let result = examine(&backing(storage(&used().0)), path, &mut |_| {
        ControlFlow::Break(())
    });
    assert!(matches!(result, Err(OperationError::Cancelled)));
}

/// A disk opens if and only if a check finds no error in it.
#[test]
fn a_check_agrees_with_opening() {
    let (mut good, mut bad, mut foreign) = (0, 0, 0);
    for seed in 0..2000 {
        let mut random = Random::new(seed);
        let disk = foreign_disk(SIZE, 4096, &mut random);
        let Sample {
            mut file,
            layout,
            parents,
            ..
        } = match seed % 3 {
            0 => foreign_child(disk, SIZE, 4096, &mut random),
            _ => disk,
        };
        for _ in 0..random.below(4) {
            let at = random.below(layout.metadata_end()) as usize;
            file[at] = random.next() as u8;
        }
        if random.below(4) == 0 {
            file.truncate(random.below(file.len() as u64 + 1) as usize);
        }
        let opened = image::open(
            backing(storage(&file)),
            open_parents(&parents),
            true,
            Tuning::default(),
        );
        let checked = examine(&backing(storage(&file)), Path::new("disk"), &mut go_on);
        match (opened, checked) {
            (Ok(_), Ok(Verdict { report, .. })) => {
                good += 1;
                assert_ne!(
                    report.worst(),
                    Some(Severity::Error),
                    "seed {seed}: {report:?}"
                );
            }
            (Err(Refusal::Corrupt(what)), Ok(Verdict { report, .. })) => {
                bad += 1;
                assert_eq!(report.worst(), Some(Severity::Error), "seed {seed}: {what}");
            }
            (Err(Refusal::Unsupported(_)), Err(_)) => foreign += 1,
            (opened, checked) => panic!(
                "seed {seed}: {:?} but {:?}",
                opened.err(),
                checked.map(|verdict| verdict.report)
            ),
        }
    }
    assert!(
        good > 300 && bad > 300 && foreign > 2,
        "{good} {bad} {foreign}"
    );
}

#[test]
fn a_full_disk_of_the_largest_size_is_checked_by_its_table_alone() {
    let file = FileStorage::new(tempfile::tempfile().unwrap());
    let size = 2040 << 30;
    let mut layout = Layout::new(size, BLOCK_SIZE);
    let end = layout.metadata_end() + u64::from(layout.bat_entries) * 4104 * 512;
    if let Err(error) = file.set_len(end) {
        skipped(format_args!(
            "this file system has no file of 2 TiB: {error}"
        ));
        return;
    }
    let backing = backing(file);
    format_new(
        &backing,
        DiskType::Dynamic,
        &footer(DiskType::Dynamic, size),
        BLOCK_SIZE,
        None,
    )
    .unwrap();
    let first = layout.aligned_entry(layout.metadata_end()).unwrap();
    let table: Vec<u8> = (0..layout.bat_entries)
        .flat_map(|block| (first + (layout.bat_entries - 1 - block) * 4104).to_be_bytes())
        .collect();
    backing.write(&table, layout.bat_offset).unwrap();
    backing
        .write(&footer(DiskType::Dynamic, size).encode(), end)
        .unwrap();
    let mut calls = Vec::new();
    let verdict = examine(&backing, Path::new("disk"), &mut |progress| {
        calls.push((progress.done, progress.total));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(verdict.report.allocated_blocks, 1_044_480);
    assert_eq!(kinds(&verdict.report), []);
    assert_eq!(calls, [(4_177_920, 4_177_920)]);
    // All entries the same: the list stays short, the count is right.
    layout.bat_entries = layout.bat_entries.min(MAX_ENTRIES);
    let same: Vec<u8> = first.to_be_bytes().repeat(layout.bat_entries as usize);
    backing.write(&same, layout.bat_offset).unwrap();
    let Verdict { report, .. } = examine(&backing, Path::new("disk"), &mut go_on).unwrap();
    assert_eq!(report.findings.len(), CheckReport::MAX_FINDINGS);
    assert_eq!(report.counts[&FindingKind::BlocksOverlap], 1_044_479);
}

#[test]
fn kinds_keep_their_names() {
    let json = serde_json::to_value(report(&used().0[..1600])).unwrap();
    assert_eq!(json["findings"][0]["kind"], "FooterDamaged");
    assert_eq!(json["findings"][0]["severity"], "Warning");
    assert_eq!(json["counts"]["LayoutImpossible"], 1);
}
