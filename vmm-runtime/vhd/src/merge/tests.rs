//! What a merge leaves behind when it is cut off.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use super::{merge_images, read_record, write_record};
use crate::block::BlockDevice;
use crate::gate::Gate;
use crate::image::random::Random;
use crate::image::sample::{Sample, foreign_child, foreign_disk, open_parents};
use crate::image::{Absent, Dynamic, Image, Mutant, Tuning, open, recognise};
use crate::pool::Pool;
use crate::storage::Backing;
use crate::storage::fault::{Crashes, Fault, FaultStorage};
use crate::survey::{Part, survey_seeds};

const SIZE: u64 = 16 * 8192 - 3 * 512;

fn tuning(mutant: Option<Mutant>) -> Tuning {
    Tuning {
        growth: 3 * 8192,
        bitmap_cache: 1024,
        mutant,
    }
}

fn backing(storage: FaultStorage) -> Backing {
    Backing::new(Box::new(storage), Gate::open(), "disk")
}

fn content(disk: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// A chain of two or three disks of the same size; the files below the
/// parent, the parent's, the child's.
fn chain(random: &mut Random) -> (Vec<Vec<u8>>, Vec<u8>, Sample) {
    let mut parent = foreign_disk(SIZE, 8192, random);
    if random.below(2) == 0 {
        parent = foreign_child(parent, SIZE, 4096, random);
    }
    let mut child = foreign_child(parent, SIZE, 16384, random);
    // Some of the child's zeros lie over data of the parent.
    let storage = FaultStorage::new(child.file.clone(), BTreeMap::new());
    let parents = open_parents(&child.parents);
    let (disk, _) = open(backing(storage.clone()), parents, false, tuning(None)).unwrap();
    for _ in 0..3 {
        let range = random.range(SIZE, 9000);
        disk.discard(range.start, range.end - range.start).unwrap();
    }
    disk.put_away().unwrap();
    child.content = content(&*disk);
    child.file = storage.bytes();
    let mut below = child.parents.clone();
    let parent = below.pop().unwrap();
    (below, parent, child)
}

fn merge_into(
    child: &Sample,
    below: &[Vec<u8>],
    parent: FaultStorage,
    mutant: Option<Mutant>,
) -> Result<(), String> {
    let storage = FaultStorage::new(child.file.clone(), BTreeMap::new());
    let source = backing(storage);
    let found = recognise(&source, tuning(None)).unwrap();
    let absent: Box<dyn Image> = Box::new(Absent::new(SIZE));
    let disk = Dynamic::load(source, &found, Some(absent), true, tuning(mutant)).unwrap();
    let (parent, _) = open(backing(parent), open_parents(below), false, tuning(None))
        .map_err(|refusal| format!("{refusal:?}"))?;
    let path = Path::new("disk");
    let mut go_on = |_| ControlFlow::Continue(());
    merge_images(&disk, path, &*parent, path, &mut || Ok(()), &mut go_on)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// The child over a parent, as it opens for reading.
fn over(child: &Sample, below: &[Vec<u8>], parent: Vec<u8>) -> Vec<u8> {
    let chain = [below, &[parent]].concat();
    let storage = FaultStorage::new(child.file.clone(), BTreeMap::new());
    let disk = open(backing(storage), open_parents(&chain), true, tuning(None));
    content(&*disk.unwrap().0)
}

fn alone(below: &[Vec<u8>], parent: Vec<u8>) -> Vec<u8> {
    content(&*open_parents(&[below, &[parent]].concat()).unwrap())
}

/// Cuts a merge off at some points. The error says what was wrong.
fn cut_off(seed: u64, mutant: Option<Mutant>) -> Result<usize, String> {
    let mut random = Random::new(seed);
    let (below, parent, child) = chain(&mut random);
    let mut faults = BTreeMap::new();
    if random.below(2) == 0 {
        let fault = match random.below(2) {
            0 => Fault::Io,
            _ => Fault::NoSpace,
        };
        faults.insert(random.below(40), fault);
    }
    let storage = FaultStorage::new(parent.clone(), faults);
    let result = merge_into(&child, &below, storage.clone(), mutant);
    let log = storage.log();
    let mut points: Vec<usize> = (0..8)
        .map(|_| random.below(log.len() as u64 + 1) as usize)
        .collect();
    points.push(log.len());
    points.sort_unstable();
    let mut crashes = Crashes::new(parent, &log);
    for &point in &points {
        let left = crashes.at(point, &mut random);
        if result.is_ok() && point == log.len() && alone(&below, left.clone()) != child.content {
            return Err("the parent is not durable when the merge is over".to_owned());
        }
        if over(&child, &below, left.clone()) != child.content {
            return Err(format!("seed {seed}: the child shows something else"));
        }
        let again = FaultStorage::new(left, BTreeMap::new());
        merge_into(&child, &below, again.clone(), mutant)?;
        if alone(&below, again.bytes()) != child.content {
            return Err(format!("seed {seed}: merging again is not enough"));
        }
    }
    Ok(points.len())
}

#[test]
fn a_merge_that_is_cut_off_loses_nothing_and_goes_on() {
    survey_seeds(Part::Merge, |seed| cut_off(seed, None).unwrap());
}

#[test]
fn a_merge_loses_nothing_by_the_failure_of_any_call() {
    for seed in 0..4 {
        let mut random = Random::new(seed);
        let (below, parent, child) = chain(&mut random);
        let whole = FaultStorage::new(parent.clone(), BTreeMap::new());
        merge_into(&child, &below, whole.clone(), None).unwrap();
        for (which, storage) in whole.each_failing(&parent) {
            let result = merge_into(&child, &below, storage.clone(), None);
            let log = storage.log();
            let left = Crashes::new(parent.clone(), &log).at(log.len(), &mut random);
            for left in [left, storage.bytes()] {
                assert!(
                    over(&child, &below, left.clone()) == child.content,
                    "{which}"
                );
                if result.is_ok() {
                    assert!(alone(&below, left) == child.content, "{which}");
                    continue;
                }
                let again = FaultStorage::new(left, BTreeMap::new());
                merge_into(&child, &below, again.clone(), None).unwrap();
                assert!(alone(&below, again.bytes()) == child.content, "{which}");
            }
        }
    }
}

#[test]
fn mutants_of_the_merge_are_caught() {
    for mutant in [Mutant::MergeUnsynced, Mutant::MergeWithoutZeros] {
        let caught = (0..60).find_map(|seed| cut_off(seed, Some(mutant)).err());
        let how = caught.unwrap_or_else(|| panic!("{mutant:?} was not caught"));
        println!("{mutant:?}: {how}");
    }
}

#[test]
fn a_record_counts_only_if_it_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::open(dir.path()).unwrap();
    let place = pool.place(Path::new("a.merge")).unwrap();
    assert_eq!(read_record(&place).unwrap(), None);
    let (child, parent) = (
        uuid::Uuid::from_bytes([1; 16]),
        uuid::Uuid::from_bytes([2; 16]),
    );
    write_record(&place, child, parent, false).unwrap();
    assert_eq!(read_record(&place).unwrap(), Some((child, parent)));
    let bytes = std::fs::read(dir.path().join("a.merge")).unwrap();
    for len in 0..bytes.len() {
        std::fs::write(dir.path().join("a.merge"), &bytes[..len]).unwrap();
        assert_eq!(read_record(&place).unwrap(), None, "{len}");
    }
    std::fs::write(dir.path().join("a.merge"), [0xff; 4096]).unwrap();
    assert_eq!(read_record(&place).unwrap(), None);
    write_record(&place, child, parent, false).unwrap();
    assert_eq!(read_record(&place).unwrap(), Some((child, parent)));
    write_record(&place, child, parent, true).unwrap();
    assert_eq!(read_record(&place).unwrap(), Some((child, parent)));
}
