//! How many bitmaps a chain keeps in memory, and that it reads them once.

use std::collections::BTreeMap;
use std::path::Path;

use super::random::Random;
use super::sample::{Sample, foreign_child, foreign_disk};
use super::{DISK_BITMAPS, Image, PARENT_BITMAPS, Tuning, open};
use crate::chain::{MAX_CHAIN, ParentSearch};
use crate::gate::Gate;
use crate::pool::Pool;
use crate::storage::Backing;
use crate::storage::fault::FaultStorage;
use crate::vhd::Opened;
use crate::{Access, ChildOptions, CreateOptions, DiskSize, DiskType, Vhd};

const SIZE: u64 = 40 * 16384 - 512;
const DISKS: usize = 4;

/// A chain whose disks have blocks that are written here and there.
fn chain(random: &mut Random) -> Sample {
    let mut disk = foreign_disk(SIZE, 16384, random);
    for _ in 1..DISKS {
        disk = foreign_child(disk, SIZE, 16384, random);
    }
    disk
}

/// Opens a chain for reading; its files, and itself.
fn open_chain(
    sample: &Sample,
    of_parent: Tuning,
    of_disk: Tuning,
) -> (Vec<FaultStorage>, Box<dyn Image>) {
    let files = sample.parents.iter().chain([&sample.file]);
    let files: Vec<_> = files
        .map(|file| FaultStorage::new(file.clone(), BTreeMap::new()))
        .collect();
    let (disk, parents) = files.split_last().unwrap();
    let backing = |file: &FaultStorage| Backing::new(Box::new(file.clone()), Gate::open(), "disk");
    let mut image = None;
    for file in parents {
        image = Some(open(backing(file), image, true, of_parent).unwrap().0);
    }
    let (image, _) = open(backing(disk), image, true, of_disk).unwrap();
    (files, image)
}

/// Reads each sector, and tells how often the files were looked at for it.
fn looks_for_sectors(sample: &Sample, files: &[FaultStorage], image: &dyn Image) -> Vec<u64> {
    let looks = || files.iter().map(FaultStorage::looks).sum::<u64>();
    let sectors = sample.content.chunks_exact(512).enumerate();
    sectors
        .map(|(sector, expected)| {
            let before = looks();
            let mut found = [0; 512];
            image.read_at(&mut found, sector as u64 * 512).unwrap();
            assert!(found == expected, "sector {sector}");
            looks() - before
        })
        .collect()
}

#[test]
fn a_chain_reads_each_bitmap_once() {
    let sample = chain(&mut Random::new(1));
    let (disk, parent) = (Tuning::default(), Tuning::for_parent(MAX_CHAIN - 1));
    let (files, image) = open_chain(&sample, parent, disk);
    let first = looks_for_sectors(&sample, &files, &*image);
    // Bitmaps on the way down, and then the data.
    assert!(first.iter().max() > Some(&2), "{first:?}");
    for _ in 0..2 {
        let again = looks_for_sectors(&sample, &files, &*image);
        // The data alone, or nothing where nobody has any.
        assert_eq!(again.iter().max(), Some(&1));
        assert_eq!(again.iter().min(), Some(&0));
    }
}

#[test]
fn a_chain_keeps_no_more_than_it_may() {
    let mut random = Random::new(2);
    let sample = chain(&mut random);
    let keeping = |bitmap_cache| Tuning {
        bitmap_cache,
        ..Tuning::default()
    };
    let (files, image) = open_chain(&sample, keeping(3 * 512), keeping(5 * 512));
    let limits = [5, 3, 3, 3].map(|count| count * 512);
    for _ in 0..2000 {
        let mut found = [0; 512];
        let sector = random.below(SIZE / 512);
        image.read_at(&mut found, sector * 512).unwrap();
        let kept = image.bitmap_bytes();
        assert_eq!(kept.iter().map(|kept| kept.1).collect::<Vec<_>>(), limits);
        assert!(kept.iter().all(|(bytes, limit)| bytes <= limit), "{kept:?}");
    }
    // Each had to let go of some, and has to read those again.
    let again = looks_for_sectors(&sample, &files, &*image);
    assert!(again.iter().max() > Some(&1), "{again:?}");
}

#[test]
fn the_longest_chain_may_keep_32_mib() {
    assert_eq!(Tuning::default().bitmap_cache, 8 << 20);
    for parents in 1..MAX_CHAIN {
        let share = Tuning::for_parent(parents).bitmap_cache;
        assert_eq!(share, (8 << 20).min((24 << 20) / parents), "{parents}");
    }
    assert_eq!(DISK_BITMAPS + PARENT_BITMAPS, 32 << 20);
    // The largest bitmap, of a block of 256 MiB, fits in.
    let least = Tuning::for_parent(MAX_CHAIN - 1).bitmap_cache;
    assert!(least >= (256 << 20) / 512 / 8);
}

#[test]
fn the_parents_of_an_open_disk_share() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::open(dir.path()).unwrap();
    let size = DiskSize::from_bytes(4 << 20).unwrap();
    let options = CreateOptions::new(DiskType::Dynamic, size);
    Vhd::create(&pool, "0.vhd", &options)
        .unwrap()
        .close()
        .unwrap();
    let limits = |disk: usize| -> Vec<usize> {
        let rel = format!("{disk}.vhd");
        let (gate, search) = (Gate::open(), ParentSearch::new());
        let opened = Opened::open(&pool, Path::new(&rel), Access::ReadWrite, gate, &search);
        let kept = opened.unwrap().image.bitmap_bytes();
        kept.iter().map(|kept| kept.1).collect()
    };
    for disk in 1..=6 {
        let (rel, parent) = (format!("{disk}.vhd"), format!("{}.vhd", disk - 1));
        let options = ChildOptions::new();
        let child = Vhd::create_child(&pool, &rel, &pool, &parent, &options).unwrap();
        child.close().unwrap();
    }
    assert_eq!(limits(0), [8 << 20]);
    assert_eq!(limits(2), [8 << 20; 3]);
    let mut longest = vec![8 << 20];
    longest.extend([4 << 20; 6]);
    assert_eq!(limits(6), longest);
}
