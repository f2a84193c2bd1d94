//! Repairs in place that are cut off, and that are undone.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use super::in_place::Plan;
use super::journal::{Journal, Patch, State};
use crate::block::BlockDevice;
use crate::check::{Severity, examine, rescue_table};
use crate::gate::Gate;
use crate::image::random::Random;
use crate::image::sample::{Sample, foreign_child, foreign_disk, open_parents};
use crate::image::{Dynamic, Mutant, Tuning, open};
use crate::operation::OperationError;
use crate::storage::Backing;
use crate::storage::fault::{Crashes, FaultStorage};
use crate::survey::{Part, survey_seeds};

const BLOCK: u32 = 4096;

fn storage(file: Vec<u8>) -> FaultStorage {
    FaultStorage::new(file, BTreeMap::new())
}

fn backing(storage: &FaultStorage) -> Backing {
    Backing::new(Box::new(storage.clone()), Gate::open(), "disk")
}

/// A disk with damage that can be repaired, and what it shows then.
fn damaged(random: &mut Random) -> (Vec<u8>, Vec<u8>, Vec<Vec<u8>>) {
    let size = 16 * u64::from(BLOCK) - 512 * random.below(9);
    let disk = foreign_disk(size, BLOCK, random);
    let Sample {
        mut file,
        layout,
        parents,
        ..
    } = match random.below(3) {
        0 => foreign_child(disk, size, BLOCK, random),
        _ => disk,
    };
    let entry = |block: u64| layout.bat_offset as usize + block as usize * 4;
    for _ in 0..random.below(4) {
        let block = random.below(u64::from(layout.bat_entries));
        let other = entry(random.below(u64::from(layout.bat_entries)));
        let new: [u8; 4] = match random.below(4) {
            0 => (random.below(6) as u32).to_be_bytes(),
            1 => (random.next() as u32).to_be_bytes(),
            // The place of another block, or one within it.
            2 => file[other..other + 4].try_into().unwrap(),
            _ => {
                let place = u32::from_be_bytes(file[other..other + 4].try_into().unwrap());
                place.saturating_sub(random.below(9) as u32).to_be_bytes()
            }
        };
        file[entry(block)..entry(block) + 4].copy_from_slice(&new);
    }
    match random.below(6) {
        0 => file[100] ^= 1,
        1 => file.truncate(file.len() - 512 + random.below(500) as usize),
        kind @ (2 | 3) => {
            if kind == 3 {
                // Not at a sector.
                file.insert(file.len() - 512, 7);
            }
            // Another footer, and a whole one.
            let at = file.len() - 512;
            let stamp = &mut file[at + 24..at + 28];
            let before: u32 = stamp.iter().map(|byte| u32::from(*byte)).sum();
            stamp.copy_from_slice(&[1, 2, 3, 4]);
            let sum = u32::from_be_bytes(file[at + 64..at + 68].try_into().unwrap());
            file[at + 64..at + 68].copy_from_slice(&(sum + before - 10).to_be_bytes());
        }
        _ => {}
    }
    let disk = storage(file.clone());
    let verdict = examine(&backing(&disk), Path::new("disk"), &mut |_| {
        ControlFlow::Continue(())
    });
    let found = verdict.unwrap().found.unwrap();
    let layout = found.layout().unwrap();
    let rescued = rescue_table(&backing(&disk), &layout, found.data_end).unwrap();
    let rescued = Dynamic::with_rescued_table(
        backing(&disk),
        layout,
        &found,
        open_parents(&parents),
        rescued.table,
    );
    let mut content = vec![0; size as usize];
    rescued.read_at(&mut content, 0).unwrap();
    (file, content, parents)
}

fn plan(storage: &FaultStorage) -> Option<Plan> {
    let disk = backing(storage);
    let verdict = examine(&disk, Path::new("disk"), &mut |_| ControlFlow::Continue(()));
    let found = verdict.unwrap().found.unwrap();
    let layout = found.layout().unwrap();
    Plan::of(&disk, &found, &layout).unwrap()
}

fn apply(plan: &Plan, storage: &FaultStorage, mutant: Option<Mutant>) -> Result<(), String> {
    let io = OperationError::io(Path::new("disk"));
    let tuning = Tuning {
        mutant,
        ..Tuning::default()
    };
    plan.apply(&backing(storage), tuning, &io, &mut |_| Ok(()))
        .map_err(|error| error.to_string())
}

const STILL_DAMAGED: &str = "it is still damaged";

/// The disk opens, and shows what is left.
fn shows(storage: &FaultStorage, parents: &[Vec<u8>], content: &[u8]) -> Result<(), String> {
    let tuning = Tuning {
        growth: u64::from(BLOCK),
        ..Tuning::default()
    };
    let report = examine(&backing(storage), Path::new("disk"), &mut |_| {
        ControlFlow::Continue(())
    });
    let worst = report.unwrap().report.worst();
    if worst == Some(Severity::Error) {
        return Err(STILL_DAMAGED.to_owned());
    }
    let (disk, _) = open(backing(storage), open_parents(parents), true, tuning)
        .map_err(|refusal| format!("{refusal:?}"))?;
    let mut found = vec![0; content.len()];
    disk.read_at(&mut found, 0).unwrap();
    match found == content {
        true => Ok(()),
        false => Err("it shows something else".to_owned()),
    }
}

/// Repairs a disk, and looks at what crashes leave. Returns how many there
/// were.
fn run(seed: u64, mutant: Option<Mutant>) -> Result<usize, String> {
    let (file, ..) = damaged(&mut Random::new(seed));
    run_on(&storage(file), seed, mutant)
}

/// The same for the file as `disk` has it, some of whose calls may fail.
fn run_on(disk: &FaultStorage, seed: u64, mutant: Option<Mutant>) -> Result<usize, String> {
    let mut random = Random::new(seed);
    let (file, content, parents) = damaged(&mut random);
    let whole = storage(file.clone());
    let Some(mut plan_of_run) = plan(&whole) else {
        shows(&whole, &parents, &content)?;
        return Ok(0);
    };
    let journal = plan_of_run.journal.clone();
    assert_eq!(Journal::decode(&journal.encode()).as_ref(), Some(&journal));
    let result = apply(&plan_of_run, disk, mutant);
    let log = disk.log();
    let mut crashes = Crashes::new(file.clone(), &log);
    let mut points = 0;
    for point in (0..=log.len()).flat_map(|point| [point; 2]) {
        let bytes = crashes.at(point, &mut random);
        if point == log.len() && result.is_ok() {
            shows(&storage(bytes.clone()), &parents, &content)
                .map_err(|what| format!("seed {seed}: when it is over: {what}"))?;
        }
        let left = storage(bytes);
        // A reader may open it meanwhile.
        match shows(&left, &parents, &content) {
            Err(what) if what != STILL_DAMAGED => {
                return Err(format!("seed {seed}: a reader finds that {what}"));
            }
            _ => {}
        }
        if !journal.fits(&backing(&left)).unwrap() {
            return Err(format!("seed {seed}: the journal does not know it"));
        }
        // Putting the bytes back may be cut off as well.
        let base = left.bytes();
        journal.put_back(&backing(&left)).unwrap();
        let log_of_undo = left.log();
        let mut half = Crashes::new(base, &log_of_undo);
        for point in 0..=log_of_undo.len() {
            let left = storage(half.at(point, &mut random));
            if !journal.fits(&backing(&left)).unwrap() {
                return Err(format!(
                    "seed {seed}: cut off twice, the journal does not know it"
                ));
            }
            journal.put_back(&backing(&left)).unwrap();
            if left.bytes() != file {
                return Err(format!("seed {seed}: it is not as before"));
            }
        }
        if left.bytes() != file {
            return Err(format!("seed {seed}: it is not as before"));
        }
        let second = plan(&left).ok_or("nothing to repair any more")?;
        assert_eq!(second.journal, journal);
        apply(&second, &left, None)?;
        shows(&left, &parents, &content).map_err(|what| format!("seed {seed}: {what}"))?;
        points += 1;
    }
    if result.is_err() {
        return Ok(points);
    }
    let disk = storage(disk.bytes());
    // Over, it is undone as long as nobody else changed what it changed.
    plan_of_run.journal.state = State::Done(journal.tail_sum(&backing(&disk)).unwrap());
    let done = &plan_of_run.journal;
    assert_eq!(Journal::decode(&done.encode()).as_ref(), Some(done));
    assert!(done.fits(&backing(&disk)).unwrap());
    for patch in &done.patches {
        let other = storage(disk.bytes());
        backing(&other).write(&[0xa5; 3], patch.offset + 1).unwrap();
        assert!(!done.fits(&backing(&other)).unwrap());
    }
    if done.new_len > done.old_len {
        let other = storage(disk.bytes());
        backing(&other).write(&[0xa5; 3], done.new_len - 3).unwrap();
        assert!(!done.fits(&backing(&other)).unwrap());
    }
    done.put_back(&backing(&disk)).unwrap();
    assert!(disk.bytes() == file);
    Ok(points)
}

#[test]
fn a_repair_that_is_cut_off_can_be_undone_and_begun_again() {
    survey_seeds(Part::Repair, |seed| run(seed, None).unwrap());
}

#[test]
fn so_can_one_that_fails_at_any_call() {
    for seed in 0..8 {
        let (file, ..) = damaged(&mut Random::new(seed));
        let whole = storage(file.clone());
        run_on(&whole, seed, None).unwrap();
        for (which, failing) in whole.each_failing(&file) {
            run_on(&failing, seed, None).unwrap_or_else(|what| panic!("{which}: {what}"));
        }
    }
}

#[test]
fn a_table_that_names_copies_before_they_are_durable_is_caught() {
    let early = Some(Mutant::TableBeforeData);
    let caught = (0..120).find_map(|seed| run(seed, early).err());
    println!("{}", caught.unwrap());
}

#[test]
fn a_journal_counts_only_if_it_is_complete() {
    let mut random = Random::new(3);
    let bytes = loop {
        let (file, ..) = damaged(&mut random);
        if let Some(plan) = plan(&storage(file)) {
            break plan.journal.encode();
        }
    };
    for len in 0..bytes.len() {
        assert_eq!(Journal::decode(&bytes[..len]), None, "{len}");
        let mut flipped = bytes.clone();
        flipped[len] ^= 0x10;
        assert_eq!(Journal::decode(&flipped), None, "{len}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(Journal::decode(&longer), None);
    // Patches of no bytes, which would take more memory than they are long.
    let mut journal = Journal::decode(&bytes).unwrap();
    for (len, counts) in [(512, true), (511, false), (0, false)] {
        journal.patches = vec![Patch {
            offset: 0,
            old: vec![1; len],
            new: vec![2; len],
        }];
        let decoded = Journal::decode(&journal.encode());
        assert_eq!(decoded.is_some(), counts, "{len}");
    }
}
