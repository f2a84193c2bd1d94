//! What a merge leaves behind when it is cut off.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use super::record::State;
use super::{Child, ENDED, MergeOptions, Record, merge, merge_images};
use crate::block::BlockDevice;
use crate::gate::Gate;
use crate::image::random::Random;
use crate::image::sample::{Sample, foreign_child, foreign_disk, open_parents};
use crate::image::{Absent, Dynamic, Image, Mutant, Tuning, open, recognise};
use crate::pool::Pool;
use crate::storage::Backing;
use crate::storage::fault::{Crashes, Fault, FaultStorage};
use crate::survey::{Part, survey_seeds};
use crate::{Access, ChildOptions, CreateOptions, DiskSize, DiskType, Vhd};

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

/// What a crash leaves just before the child is removed.
#[test]
fn the_record_says_that_the_parent_has_all_before_the_child_goes() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::open(dir.path()).unwrap();
    let size = DiskSize::from_bytes(4 << 20).unwrap();
    let create = CreateOptions::new(DiskType::Dynamic, size);
    let base = Vhd::create(&pool, "base.vhd", &create).unwrap();
    base.close().unwrap();
    let options = ChildOptions::new();
    let child = Vhd::create_child(&pool, "child.vhd", &pool, "base.vhd", &options).unwrap();
    child.write_at(&[7; 5000], 77).unwrap();
    child.close().unwrap();
    let rel = Path::new("child.vhd");
    let place = || pool.place(rel).unwrap();
    let child = Child::lock(&pool, rel, place()).unwrap();
    let id = child.id;
    let (gate, options) = (Gate::open(), MergeOptions::default());
    let mut parent = child.find_parent(gate.clone(), &options).unwrap();
    let mut begun = 0;
    let mut look = |_| {
        let record = Record::read(&place()).unwrap().unwrap();
        assert!(record.child == id && record.state == State::Begun);
        begun += 1;
        ControlFlow::Continue(())
    };
    let merged = child.run(&mut parent, &gate, false, &mut look).unwrap();
    assert!(begun > 0 && merged == 5120);
    assert!(Record::read(&place()).unwrap().unwrap().is_done_of(id));
    drop((child, parent));
    let mut go_on = |_| ControlFlow::Continue(());
    let report = merge(&pool, rel, gate, &options, &mut go_on).unwrap();
    assert_eq!(report, ENDED);
    let base = Vhd::open(&pool, "base.vhd", Access::ReadOnly, Gate::open()).unwrap();
    let mut found = [0; 5000];
    base.read_at(&mut found, 77).unwrap();
    assert_eq!(found, [7; 5000]);
    assert!(!dir.path().join("child.vhd").exists());
}
