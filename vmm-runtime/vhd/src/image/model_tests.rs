//! Random requests to disks, compared with a vector of bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::random::Random;
use super::sample::{Sample, foreign_child, foreign_disk, new_child, new_disk, open_parents};
use super::{Image, Tuning, open};
use crate::block::{BlockDevice, Extent, ExtentKind, IoError, IoErrorKind};
use crate::format::DiskType;
use crate::gate::Gate;
use crate::storage::fault::{Fault, FaultStorage};
use crate::storage::{Backing, FileStorage, Storage};

pub(super) fn open_disk(
    storage: impl Storage + 'static,
    read_only: bool,
    growth: u64,
) -> Box<dyn Image> {
    open_over(storage, &[], read_only, growth)
}

fn open_over(
    storage: impl Storage + 'static,
    parents: &[Vec<u8>],
    read_only: bool,
    growth: u64,
) -> Box<dyn Image> {
    let tuning = Tuning {
        growth,
        bitmap_cache: 4096,
        mutant: None,
    };
    open(
        Backing::new(Box::new(storage), Gate::open(), "disk"),
        open_parents(parents),
        read_only,
        tuning,
    )
    .unwrap()
    .0
}

/// A sample of a random kind and shape.
fn sample(random: &mut Random) -> Sample {
    let block_size = 4096 << random.below(5);
    let size = 512 * (1 + random.below(1000));
    match random.below(6) {
        0 => new_disk(DiskType::Fixed, size, block_size),
        1 => new_disk(DiskType::Dynamic, size, block_size),
        2 => foreign_disk(size, block_size, random),
        _ => chain(random),
    }
}

/// A child over one to four others of any size and shape.
fn chain(random: &mut Random) -> Sample {
    let shape = |random: &mut Random| (512 * (1 + random.below(600)), 4096 << random.below(4));
    let (size, block_size) = shape(random);
    let mut disk = match random.below(4) {
        0 => {
            // A fixed disk full of data.
            let mut disk = new_disk(DiskType::Fixed, size, block_size);
            disk.content = random.bytes(size);
            disk.file[..size as usize].copy_from_slice(&disk.content);
            disk
        }
        _ => foreign_disk(size, block_size, random),
    };
    for _ in 0..1 + random.below(4) {
        let (size, block_size) = shape(random);
        disk = match random.below(3) {
            0 => new_child(disk, size, block_size),
            _ => foreign_child(disk, size, block_size, random),
        };
    }
    disk
}

/// Extents must follow on each other, cover the range, and not call zero what
/// isn't.
fn check_status(disk: &dyn BlockDevice, content: &[u8], offset: u64, len: u64) {
    let extents = disk.block_status(offset, len).unwrap();
    let mut at = offset;
    for (index, extent) in extents.iter().enumerate() {
        assert_eq!(extent.offset, at);
        assert!(extent.len > 0);
        assert!(index == 0 || extents[index - 1].kind != extent.kind);
        at += extent.len;
        if extent.kind != ExtentKind::Data {
            assert!(
                content[extent.offset as usize..at as usize]
                    .iter()
                    .all(|&byte| byte == 0)
            );
        }
    }
    assert_eq!(at, offset + len);
}

/// The hundredths of all steps that are done in memory, and in real files.
const IN_MEMORY: u64 = 88;
const IN_FILES: u64 = 12;
const _: () = assert!(IN_MEMORY + IN_FILES == 100);

/// How many seeds a test tries that has a share of so many hundredths of all
/// steps, each a request to a disk. `PADDOCK_MODEL_STEPS` asks for another
/// number of them than 40,000. (A hundredth as many steps, on top of these, drive
/// all operations on families of disks, in `tests/model.rs`.)
fn seeds(share: u64) -> u64 {
    let asked = std::env::var("PADDOCK_MODEL_STEPS").ok();
    let steps: u64 = asked.map_or(40_000, |steps| steps.parse().unwrap());
    (steps * share / 100).div_ceil(STEPS)
}

/// What is asked of the disk of a seed.
const STEPS: u64 = 80;

fn run(seed: u64, make: impl Fn(Vec<u8>) -> AnyStorage) {
    let mut random = Random::new(seed);
    let Sample {
        file,
        mut content,
        parents,
        ..
    } = sample(&mut random);
    let size = content.len() as u64;
    let growth = 512 * (1 + random.below(200));
    let storage = make(file);
    let mut disk = open_over(storage.clone(), &parents, false, growth);
    assert_eq!(disk.size(), size);
    let (mut reads, mut writes) = (0, 0);
    for _ in 0..STEPS {
        let range = random.range(size, 40_000);
        let span = range.start as usize..range.end as usize;
        let len = range.end - range.start;
        match random.below(20) {
            0..6 => {
                let mut found = vec![0xaa; span.len()];
                disk.read_at(&mut found, range.start).unwrap();
                assert!(found == content[span], "seed {seed}: {range:?} reads wrong");
                reads += 1;
            }
            6..12 => {
                let bytes = random.bytes(len);
                disk.write_at(&bytes, range.start).unwrap();
                content[span].copy_from_slice(&bytes);
                writes += 1;
            }
            12..14 => {
                disk.discard(range.start, len).unwrap();
                content[span].fill(0);
            }
            14 => {
                disk.write_zeroes(range.start, len).unwrap();
                content[span].fill(0);
            }
            15 | 16 => check_status(&*disk, &content, range.start, len),
            17 | 18 => disk.flush().unwrap(),
            _ => {
                disk.put_away().unwrap();
                let read_only = random.below(2) == 0;
                drop(disk);
                if read_only {
                    let reader = open_over(storage.clone(), &parents, true, growth);
                    let mut found = vec![0; size as usize];
                    reader.read_at(&mut found, 0).unwrap();
                    assert!(
                        found == content,
                        "seed {seed}: a reader sees something else"
                    );
                    assert_eq!(
                        reader.write_at(&[1], 0).unwrap_err().kind(),
                        IoErrorKind::ReadOnly
                    );
                    assert_eq!(
                        reader.discard(0, 1).unwrap_err().kind(),
                        IoErrorKind::ReadOnly
                    );
                }
                disk = open_over(storage.clone(), &parents, false, growth);
            }
        }
    }
    assert!(reads > 0 && writes > 0);
    disk.put_away().unwrap();
    let mut found = vec![0; size as usize];
    open_over(storage, &parents, false, growth)
        .read_at(&mut found, 0)
        .unwrap();
    assert!(found == content, "seed {seed}: the disk was put away wrong");
}

/// Either kind of file, behind a handle that can be cloned.
type AnyStorage = Arc<dyn Storage>;

#[test]
fn disks_do_what_a_vector_does() {
    for seed in 0..seeds(IN_MEMORY) {
        run(seed, |file| {
            Arc::new(FaultStorage::new(file, BTreeMap::new()))
        });
    }
}

#[test]
fn so_do_disks_in_real_files() {
    for seed in 1_000_000..1_000_000 + seeds(IN_FILES) {
        run(seed, |bytes| {
            let storage = FileStorage::new(tempfile::tempfile().unwrap());
            storage.write_at(&bytes, 0).unwrap();
            Arc::new(storage)
        });
    }
}

/// Threads that write to bytes of their own, flush and discard, all in the
/// same few blocks.
#[test]
fn threads_do_not_disturb_each_other() {
    const THREADS: u64 = 4;
    for seed in 0..9 {
        let mut random = Random::new(seed);
        let size = 40 * 4096 + 512;
        let Sample {
            file,
            content,
            parents,
            ..
        } = match seed % 3 {
            0 => new_disk(DiskType::Dynamic, size, 4096),
            1 => foreign_disk(size, 4096, &mut random),
            _ => {
                let parent = foreign_disk(size, 8192, &mut random);
                foreign_child(parent, size, 4096, &mut random)
            }
        };
        let storage = FaultStorage::new(file, BTreeMap::new());
        let disk = open_over(storage.clone(), &parents, false, 3 * 4096);
        let content = Mutex::new(content);
        let disk_ref: &dyn Image = &*disk;
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let content = &content;
                scope.spawn(move || {
                    let mut random = Random::new(seed * 100 + thread);
                    for _ in 0..150 {
                        // Sectors number `thread` modulo THREADS are ours.
                        let sector = random.below(size / 512 / THREADS) * THREADS + thread;
                        let at = sector * 512 + random.below(100);
                        let span = at as usize..at as usize + 400;
                        match random.below(8) {
                            0 => disk_ref.flush().unwrap(),
                            1 => {
                                disk_ref.discard(at, 400).unwrap();
                                content.lock().unwrap()[span].fill(0);
                            }
                            2..5 => {
                                let mut found = vec![0; 400];
                                disk_ref.read_at(&mut found, at).unwrap();
                                assert!(
                                    found == content.lock().unwrap()[span],
                                    "seed {seed} thread {thread}"
                                );
                            }
                            _ => {
                                let bytes = random.bytes(400);
                                disk_ref.write_at(&bytes, at).unwrap();
                                content.lock().unwrap()[span].copy_from_slice(&bytes);
                            }
                        }
                    }
                });
            }
        });
        disk.put_away().unwrap();
        let mut found = vec![0; size as usize];
        open_over(storage, &parents, true, 0)
            .read_at(&mut found, 0)
            .unwrap();
        assert!(found == *content.lock().unwrap(), "seed {seed}");
    }
}

/// As above, but threads discard whole blocks under each other: a block holds
/// zeros or what one of its writers wrote, never another block's bytes.
#[test]
fn regions_that_change_hands_take_nothing_along() {
    const BLOCK: u64 = 4096;
    const BLOCKS: u64 = 12;
    let Sample { file, .. } = new_disk(DiskType::Dynamic, BLOCKS * BLOCK, BLOCK as u32);
    let disk = open_disk(FaultStorage::new(file, BTreeMap::new()), false, 3 * BLOCK);
    let disk: &dyn Image = &*disk;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut random = Random::new(thread);
                for _ in 0..400 {
                    let block = random.below(BLOCKS);
                    match random.below(6) {
                        0 => disk.discard(block * BLOCK, BLOCK).unwrap(),
                        1 => disk.flush().unwrap(),
                        2 | 3 => disk
                            .write_at(&[block as u8 + 1; 700], block * BLOCK + random.below(3000))
                            .unwrap(),
                        _ => {
                            let mut found = vec![0; BLOCK as usize];
                            disk.read_at(&mut found, block * BLOCK).unwrap();
                            assert!(
                                found
                                    .iter()
                                    .all(|&byte| byte == 0 || u64::from(byte) == block + 1)
                            );
                        }
                    }
                }
            });
        }
    });
    disk.put_away().unwrap();
}

#[test]
fn requests_outside_of_the_disk_are_refused() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        let Sample { file, .. } = new_disk(disk_type, 10 * 512, 4096);
        let disk = open_disk(FaultStorage::new(file, BTreeMap::new()), false, 0);
        for (offset, len) in [
            (5120, 1),
            (5119, 2),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
            (0, 5121),
        ] {
            let outside = |result: Result<(), IoError>| {
                assert_eq!(
                    result.unwrap_err().kind(),
                    IoErrorKind::OutOfRange,
                    "{disk_type} {offset} {len}"
                );
            };
            let mut buf = vec![0; len.min(6000) as usize];
            outside(disk.read_at(&mut buf, offset));
            outside(disk.write_at(&buf, offset));
            outside(disk.discard(offset, len));
            outside(disk.write_zeroes(offset, len));
            outside(disk.block_status(offset, len).map(drop));
        }
        disk.write_at(&[], 5120).unwrap();
        disk.read_at(&mut [], 5120).unwrap();
        disk.discard(5120, 0).unwrap();
        assert_eq!(disk.block_status(5120, 0).unwrap(), []);
    }
}

#[test]
fn a_discarded_block_is_a_hole_and_its_region_is_used_again() {
    const BLOCK: u64 = 4096;
    let Sample { file, .. } = new_disk(DiskType::Dynamic, 8 * BLOCK, BLOCK as u32);
    let storage = FaultStorage::new(file, BTreeMap::new());
    let disk = open_disk(storage.clone(), false, BLOCK);
    disk.write_at(&vec![1; 2 * BLOCK as usize], 0).unwrap();
    disk.flush().unwrap();
    disk.discard(0, BLOCK).unwrap();
    let hole = Extent {
        offset: 0,
        len: BLOCK,
        kind: ExtentKind::Hole,
    };
    let data = Extent {
        offset: BLOCK,
        len: BLOCK,
        kind: ExtentKind::Data,
    };
    let rest = Extent {
        offset: 2 * BLOCK,
        len: 6 * BLOCK,
        kind: ExtentKind::Hole,
    };
    assert_eq!(disk.block_status(0, 8 * BLOCK).unwrap(), [hole, data, rest]);
    disk.flush().unwrap();
    let len = storage.len().unwrap();
    disk.write_at(&[2; 10], 5 * BLOCK).unwrap();
    assert_eq!(storage.len().unwrap(), len);
    let mut found = vec![9; BLOCK as usize];
    disk.read_at(&mut found, 5 * BLOCK).unwrap();
    assert!(found[..10] == [2; 10] && found[10..].iter().all(|&byte| byte == 0));
    // Writing zeros keeps the region.
    disk.write_zeroes(BLOCK, BLOCK).unwrap();
    disk.read_at(&mut found, BLOCK).unwrap();
    assert!(found.iter().all(|&byte| byte == 0));
    assert!(disk.block_status(BLOCK, BLOCK).unwrap()[0].kind != ExtentKind::Hole);
    // Nothing is left of a disk all of which is discarded.
    disk.discard(0, 8 * BLOCK).unwrap();
    disk.put_away().unwrap();
    assert_eq!(storage.len().unwrap(), 512 + 1024 + 512 + 512);
}

#[test]
fn a_full_file_system_loses_nothing_and_the_disk_goes_on() {
    const BLOCK: u64 = 4096;
    // Whichever call of the second write finds the file system full.
    let mut refused = 0;
    for call in 4..12 {
        let Sample { file, .. } = new_disk(DiskType::Dynamic, 8 * BLOCK, BLOCK as u32);
        let storage = FaultStorage::new(file, BTreeMap::from([(call, Fault::NoSpace)]));
        let disk = open_disk(storage.clone(), false, BLOCK);
        let mut done = Vec::new();
        for block in 0..3 {
            let write = || disk.write_at(&[block as u8 + 1; 100], block * BLOCK);
            if let Err(error) = write() {
                if error.kind() == IoErrorKind::SyncFailed {
                    // Nothing can be known after that.
                    break;
                }
                assert_eq!(error.kind(), IoErrorKind::NoSpace, "call {call}");
                refused += 1;
                write().unwrap();
            }
            done.push(block);
        }
        let _ = disk.flush();
        let mut found = [0; 100];
        for block in done {
            disk.read_at(&mut found, block * BLOCK).unwrap();
            assert_eq!(found, [block as u8 + 1; 100], "call {call}");
        }
    }
    assert!(refused >= 3, "{refused}");
}

#[test]
fn after_a_failed_sync_nothing_is_written_or_acknowledged() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        let Sample { file, .. } = new_disk(disk_type, 8 * 4096, 4096);
        let first_sync = match disk_type {
            // Opening: a sync. The data.
            DiskType::Fixed => 2,
            // Opening; growth: footer, sync, zeros; the data; the bitmap.
            _ => 6,
        };
        let storage = FaultStorage::new(file, BTreeMap::from([(first_sync, Fault::Io)]));
        let disk = open_disk(storage.clone(), false, 4096);
        disk.write_at(&[1; 512], 0).unwrap();
        assert_eq!(
            disk.flush().unwrap_err().kind(),
            IoErrorKind::SyncFailed,
            "{disk_type}"
        );
        let before = storage.position();
        assert_eq!(disk.flush().unwrap_err().kind(), IoErrorKind::SyncFailed);
        assert_eq!(
            disk.write_at(&[1; 512], 0).unwrap_err().kind(),
            IoErrorKind::SyncFailed
        );
        assert_eq!(
            disk.discard(0, 4096).unwrap_err().kind(),
            IoErrorKind::SyncFailed
        );
        assert_eq!(storage.position(), before);
        disk.read_at(&mut [0; 512], 0).unwrap();
    }
}

#[test]
fn a_closed_gate_stops_every_change_and_no_read() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        let Sample { file, .. } = new_disk(disk_type, 8 * 4096, 4096);
        let storage = FaultStorage::new(file, BTreeMap::new());
        let gate = Gate::open();
        let backing = Backing::new(Box::new(storage.clone()), gate.clone(), "disk");
        let (disk, _) = open(backing, None, false, Tuning::default()).unwrap();
        disk.write_at(&[1; 512], 0).unwrap();
        gate.close();
        let before = storage.position();
        let closed = |result: Result<(), IoError>| {
            assert_eq!(result.unwrap_err().kind(), IoErrorKind::GateClosed)
        };
        closed(disk.write_at(&[2; 512], 0));
        closed(disk.flush());
        closed(disk.discard(0, 4096));
        closed(disk.write_zeroes(0, 512));
        closed(disk.put_away());
        assert_eq!(storage.position(), before);
        let mut found = [0; 512];
        disk.read_at(&mut found, 0).unwrap();
        assert_eq!(found, [1; 512]);
    }
}

/// What a child holds and what it may give up, over a parent with data in its
/// first half.
#[test]
fn zeros_and_discards_do_not_uncover_the_parent() {
    const BLOCK: u64 = 4096;
    let mut parent = new_disk(DiskType::Dynamic, 8 * BLOCK, 4096);
    parent.content[..4 * BLOCK as usize].fill(0x55);
    let storage = FaultStorage::new(parent.file, BTreeMap::new());
    let disk = open_disk(storage.clone(), false, BLOCK);
    disk.write_at(&parent.content[..4 * BLOCK as usize], 0)
        .unwrap();
    disk.put_away().unwrap();
    parent.file = vec![0; storage.len().unwrap() as usize];
    storage.read_at(&mut parent.file, 0).unwrap();
    let Sample {
        file,
        mut content,
        parents,
        layout,
    } = new_child(parent, 8 * BLOCK, 4096);
    let storage = FaultStorage::new(file, BTreeMap::new());
    let disk = open_over(storage.clone(), &parents, false, BLOCK);
    let kinds = |disk: &dyn Image| -> Vec<(u64, ExtentKind)> {
        let list = disk.block_status(0, 8 * BLOCK).unwrap();
        list.iter()
            .map(|extent| (extent.len, extent.kind))
            .collect()
    };
    let (data, hole) = (ExtentKind::Data, ExtentKind::Hole);
    assert_eq!(kinds(&*disk), [(4 * BLOCK, data), (4 * BLOCK, hole)]);
    // Zeros over nothing take nothing.
    disk.write_zeroes(4 * BLOCK, 4 * BLOCK).unwrap();
    disk.discard(5 * BLOCK + 7, 100).unwrap();
    disk.flush().unwrap();
    assert_eq!(storage.len().unwrap(), layout.metadata_end() + 512);
    // Over data they take a block, a whole one and a part of one.
    disk.discard(0, BLOCK).unwrap();
    disk.write_zeroes(2 * BLOCK - 100, 200).unwrap();
    content[..BLOCK as usize].fill(0);
    content[2 * BLOCK as usize - 100..][..200].fill(0);
    let check = |disk: &dyn Image| {
        let mut found = vec![0; content.len()];
        disk.read_at(&mut found, 0).unwrap();
        assert!(found == content);
    };
    check(&*disk);
    disk.put_away().unwrap();
    drop(disk);
    let disk = open_over(storage.clone(), &parents, false, BLOCK);
    check(&*disk);
    let entries = |storage: &FaultStorage| -> Vec<bool> {
        let mut bytes = vec![0; 8 * 4];
        storage.read_at(&mut bytes, layout.bat_offset).unwrap();
        crate::format::bat::decode(&bytes)
            .map(|entry| entry != u32::MAX)
            .collect()
    };
    let held = [true, true, true, false, false, false, false, false];
    assert_eq!(entries(&storage), held);
    // Only a block over nothing is given back by a discard.
    disk.write_at(&[1; 10], 6 * BLOCK).unwrap();
    disk.flush().unwrap();
    assert!(entries(&storage)[6]);
    disk.discard(6 * BLOCK, BLOCK).unwrap();
    disk.discard(0, 4 * BLOCK).unwrap();
    disk.put_away().unwrap();
    assert_eq!(
        entries(&storage),
        [true, true, true, true, false, false, false, false]
    );
    let mut found = vec![1; content.len()];
    disk.read_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|&byte| byte == 0));
}

/// Reads that lie anywhere in chains whose disks hold a little each, again
/// when it is known where they hold nothing.
#[test]
fn disks_of_a_chain_are_skipped_only_where_they_hold_nothing() {
    for seed in 0..20 {
        let mut random = Random::new(seed);
        const SIZE: u64 = 40 * 65_536;
        let mut disk = foreign_disk(SIZE, 65_536, &mut random);
        for _ in 0..3 {
            disk = new_child(disk, SIZE, 65_536);
            let storage = FaultStorage::new(disk.file.clone(), BTreeMap::new());
            let child = open_over(storage.clone(), &disk.parents, false, 1 << 20);
            for _ in 0..60 {
                let range = random.range(SIZE, 6000);
                let bytes = random.bytes(range.end - range.start);
                child.write_at(&bytes, range.start).unwrap();
                disk.content[range.start as usize..range.end as usize].copy_from_slice(&bytes);
            }
            child.put_away().unwrap();
            disk.file = storage.bytes();
        }
        let storage = FaultStorage::new(disk.file.clone(), BTreeMap::new());
        let reader = open_over(storage, &disk.parents, true, 1 << 20);
        for _ in 0..600 {
            let range = random.range(SIZE, 9000);
            let mut found = vec![0xaa; (range.end - range.start) as usize];
            reader.read_at(&mut found, range.start).unwrap();
            assert!(
                found == disk.content[range.start as usize..range.end as usize],
                "seed {seed}: {range:?} reads wrong"
            );
        }
    }
}

/// What waits for a flush is bounded: a writer that never flushes has it
/// committed on the way.
#[test]
fn what_waits_for_a_flush_is_bounded() {
    use crate::storage::fault::Op;

    let parent = new_disk(DiskType::Dynamic, 64 * 4096, 4096);
    let Sample { file, parents, .. } = new_child(parent, 64 * 4096, 4096);
    let storage = FaultStorage::new(file, BTreeMap::new());
    // Room for eight bitmaps.
    let disk = open_over(storage.clone(), &parents, false, 64 * 8192);
    disk.write_at(&[1; 512], 0).unwrap();
    let grown = storage.position();
    let mut most = 0;
    let mut since_sync = 0;
    for block in 1..64 {
        disk.write_at(&[1; 512], block * 4096).unwrap();
    }
    for op in &storage.log()[grown..] {
        since_sync = if matches!(op, Op::Sync) {
            0
        } else {
            since_sync + 1
        };
        most = most.max(since_sync);
    }
    // Four or five blocks, with their bitmaps and the table.
    assert!((4..16).contains(&most), "{most} changes without a sync");
    let mut found = vec![0; 64 * 4096];
    disk.read_at(&mut found, 0).unwrap();
    assert!(found.chunks(4096).all(|block| block[..512] == [1; 512]));
}
