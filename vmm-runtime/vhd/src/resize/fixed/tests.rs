//! What is left of a fixed disk that a crash hits while it is resized, and
//! while that is mended.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Record, There};
use crate::block::BlockDevice;
use crate::chain::ParentSearch;
use crate::check::{FindingKind, check};
use crate::format::DiskType;
use crate::format::footer::Footer;
use crate::gate::Gate;
use crate::image::random::Random;
use crate::image::sample::new_disk;
use crate::image::{Recognised, Tuning, recognise};
use crate::inspect::inspect;
use crate::operation::OperationError;
use crate::pool::Pool;
use crate::storage::fault::{Crashes, FaultStorage};
use crate::storage::{Backing, Storage};
use crate::survey::{Part, crash_points, survey_seeds};
use crate::vhd::{Access, Vhd};

fn storage(file: Vec<u8>) -> FaultStorage {
    FaultStorage::new(file, BTreeMap::new())
}

fn backing(storage: &FaultStorage) -> Backing {
    Backing::new(Box::new(storage.clone()), Gate::open(), "disk")
}

/// A disk full of data but for its last 8 sectors, perhaps with an old footer
/// of 511 bytes.
fn disk(random: &mut Random) -> Vec<u8> {
    let size = 512 * (16 + random.below(40));
    let mut file = new_disk(DiskType::Fixed, size, 4096).file;
    let data = random.bytes(size - 8 * 512);
    file[..data.len()].copy_from_slice(&data);
    if random.below(3) == 0 {
        file.pop();
    }
    file
}

fn plan(file: &[u8], new_size: u64) -> Record {
    let disk = backing(&storage(file.to_vec()));
    let found = recognise(&disk, Tuning::default()).unwrap();
    Record::plan(&disk, &found, new_size).unwrap().unwrap()
}

fn apply(record: &Record, storage: &FaultStorage, reserved: bool) -> Result<(), OperationError> {
    let io = OperationError::io(Path::new("disk"));
    let tell = &mut |_| Ok(());
    let tell = (!reserved).then_some(tell as &mut dyn FnMut(u64) -> _);
    record.apply(&backing(storage), &io, tell)
}

fn shown(storage: &FaultStorage, found: &Recognised) -> Vec<u8> {
    let size = found.footer.current_size;
    assert_eq!(found.data_end, size);
    let mut bytes = vec![0; size as usize];
    storage.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// What a writer finds: the record is settled and gone.
fn settled(record: &Record, storage: &FaultStorage) -> Result<Vec<u8>, String> {
    let disk = backing(storage);
    record.settle(&disk).map_err(|error| error.to_string())?;
    let found = recognise(&disk, Tuning::default());
    let found = found.map_err(|refusal| format!("{refusal:?}"))?;
    Ok(shown(storage, &found))
}

/// What a reader finds.
fn viewed(record: &Record, storage: &FaultStorage) -> Result<Vec<u8>, String> {
    let disk = backing(storage);
    let found = match record.view(&disk).unwrap() {
        Some(found) => found,
        None => recognise(&disk, Tuning::default()).map_err(|refusal| format!("{refusal:?}"))?,
    };
    Ok(shown(storage, &found))
}

/// Resizes a disk, and looks at what crashes leave. Returns how many times it
/// was the old disk, and the new one.
fn run(seed: u64) -> Result<[u32; 2], String> {
    let file = disk(&mut Random::new(seed));
    run_on(&storage(file), seed)
}

/// The same for the file as `storage_of_run` has it, some of whose calls may
/// fail.
fn run_on(storage_of_run: &FaultStorage, seed: u64) -> Result<[u32; 2], String> {
    let mut random = Random::new(seed);
    let file = disk(&mut random);
    let old_size = (file.len() as u64 - 1) / 512 * 512;
    let new_size = match random.below(2) {
        0 => old_size + 512 * (1 + random.below(40)),
        _ => old_size - 512 * (1 + random.below(8)),
    };
    let record = plan(&file, new_size);
    assert_eq!(Record::decode(&record.encode()).as_ref(), Some(&record));
    let old = file[..old_size as usize].to_vec();
    let mut new = old.clone();
    new.resize(new_size as usize, 0);
    let result = apply(&record, storage_of_run, random.below(2) == 0);
    let log = storage_of_run.log();
    let mut seen = [0, 0];
    let mut crashes = Crashes::new(file, &log);
    for point in (0..=log.len()).flat_map(|point| [point; 3]) {
        let left = storage(crashes.at(point, &mut random));
        let view = viewed(&record, &left)?;
        if view != old && view != new {
            return Err(format!("seed {seed}: a reader sees neither disk"));
        }
        // Mending it may be cut off as well.
        let base = left.bytes();
        let first = settled(&record, &left)?;
        let log_of_settling = left.log();
        let mut again = Crashes::new(base, &log_of_settling);
        for point in 0..=log_of_settling.len() {
            let left = storage(again.at(point, &mut random));
            let view = viewed(&record, &left)?;
            let content = settled(&record, &left)?;
            if ![&old, &new].contains(&&view) || ![&old, &new].contains(&&content) {
                return Err(format!("seed {seed}: mending it twice loses it"));
            }
        }
        if first == new {
            seen[1] += 1;
        } else if first == old {
            seen[0] += 1;
        } else {
            return Err(format!("seed {seed}: neither the old disk nor the new one"));
        }
        if point == log.len() && result.is_ok() && first != new {
            return Err(format!("seed {seed}: not durable when it is over"));
        }
    }
    if result.is_err() != (storage_of_run.failures() > 0) {
        return Err(format!("seed {seed}: {result:?}"));
    }
    Ok(seen)
}

#[test]
fn a_crash_leaves_the_old_disk_or_the_new_one() {
    let mut seen = [0, 0];
    survey_seeds(Part::ResizeFixed, |seed| {
        let [old, new] = run(seed).unwrap();
        seen = [seen[0] + old, seen[1] + new];
        (old + new) as usize
    });
    let least = (crash_points(Part::ResizeFixed) / 10) as u32;
    assert!(seen.iter().all(|seen| *seen >= least), "{seen:?}");
}

#[test]
fn so_does_a_failure_of_any_call() {
    for seed in 0..20 {
        let file = disk(&mut Random::new(seed));
        let whole = storage(file.clone());
        run_on(&whole, seed).unwrap();
        for (which, failing) in whole.each_failing(&file) {
            run_on(&failing, seed).unwrap_or_else(|what| panic!("{which}: {what}"));
        }
    }
}

#[test]
fn no_space_is_reserved_past_a_closed_gate() {
    let file = tempfile::tempfile().unwrap();
    let gate = Gate::open();
    gate.close();
    assert!(super::reserve(&file, 1 << 20, &gate).is_err());
    assert_eq!(file.metadata().unwrap().blocks(), 0);
    super::reserve(&file, 1 << 20, &Gate::open()).unwrap();
}

#[test]
fn a_record_is_of_one_file_and_complete() {
    let mut random = Random::new(1);
    let file = disk(&mut random);
    let record = plan(&file, 512 * 100);
    let bytes = record.encode();
    for len in 0..bytes.len() {
        assert_eq!(Record::decode(&bytes[..len]), None, "{len}");
        let mut flipped = bytes;
        flipped[len] ^= 0x10;
        assert_eq!(Record::decode(&flipped), None, "{len}");
    }
    let look = |bytes: Vec<u8>| record.look(&backing(&storage(bytes))).unwrap();
    let is_old = |there| {
        matches!(
            there,
            Some(There {
                old: true,
                new: false
            })
        )
    };
    assert!(is_old(look(file.clone())));
    let mut other = file.clone();
    let footer = Footer::parse(&file[record.old_size as usize..]).unwrap();
    let footer = Footer {
        unique_id: uuid::Uuid::from_bytes([7; 16]),
        ..footer
    };
    let len = file.len() - record.old_size as usize;
    other[record.old_size as usize..].copy_from_slice(&footer.encode()[..len]);
    assert!(look(other.clone()).is_none() && look(Vec::new()).is_none());
    let disk = storage(other.clone());
    record.settle(&backing(&disk)).unwrap();
    assert!(disk.bytes() == other);
}

/// Every state that a crash leaves in a folder, and what looks at it.
#[test]
fn whoever_opens_the_disk_finds_it_whole() {
    const MIB: u64 = 1 << 20;
    for (new_size, applied) in [
        (2 * MIB, 0),
        (2 * MIB, 1),
        (2 * MIB, 2),
        (MIB / 2, 0),
        (MIB / 2, 1),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let mut file = new_disk(DiskType::Fixed, MIB, 4096).file;
        file[..1000].fill(5);
        let record = plan(&file, new_size);
        // The file's new length without its footer; or the new footer, while
        // the old one is still there.
        match applied {
            0 => {}
            1 if new_size > MIB => file.resize(record.new_len() as usize, 0),
            _ => {
                file.resize((record.new_len()).max(file.len() as u64) as usize, 0);
                file[new_size as usize..][..512].copy_from_slice(&record.new);
            }
        }
        std::fs::write(dir.path().join("disk.vhd"), &file).unwrap();
        record
            .write(&pool.place(Path::new("disk.vhd")).unwrap())
            .unwrap();
        let smaller = new_size.min(MIB);
        let open = |access| Vhd::open(&pool, "disk.vhd", access, Gate::open()).unwrap();
        let mut bytes = vec![9; 1001];
        let mut shows = |disk: Vhd, size: u64| {
            disk.read_at(&mut bytes, 0).unwrap();
            assert!(bytes[..1000] == [5; 1000] && bytes[1000] == 0);
            assert_eq!(disk.size(), size);
        };
        shows(open(Access::ReadOnly), smaller);
        assert_eq!(inspect(&pool, "disk.vhd").unwrap().virtual_size, smaller);
        let kinds = || {
            let report = check(&pool, "disk.vhd", &ParentSearch::new(), &mut |_| {
                ControlFlow::Continue(())
            });
            let findings = report.unwrap().findings;
            findings
                .iter()
                .map(|finding| finding.kind)
                .collect::<Vec<_>>()
        };
        assert_eq!(kinds(), [FindingKind::ResizeUnfinished]);
        assert!(
            std::fs::read(dir.path().join("disk.vhd")).unwrap() == file,
            "a reader wrote"
        );
        let child = crate::ChildOptions::new();
        let child = Vhd::create_child(&pool, "child.vhd", &pool, "disk.vhd", &child).unwrap();
        shows(child, smaller);
        // Taken back, or ended.
        let size = if applied == 2 || new_size < MIB {
            new_size
        } else {
            MIB
        };
        shows(open(Access::ReadWrite), size);
        assert_eq!(kinds(), []);
        assert!(!dir.path().join("disk.vhd.resize").exists());
        assert_eq!(
            dir.path().join("disk.vhd").metadata().unwrap().len(),
            size + 512
        );
        // A record goes with its disk.
        record
            .write(&pool.place(Path::new("disk.vhd")).unwrap())
            .unwrap();
        crate::remove(&pool, "disk.vhd").unwrap();
        assert!(!dir.path().join("disk.vhd.resize").exists());
    }
}
