//! How many crashes the tests look at, and one way to do it for a change of a
//! file that must be there as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use crate::image::random::Random;
use crate::storage::fault::{Crashes, FaultStorage};

/// How many crash points all tests together look at. `PADDOCK_CRASH_POINTS`
/// asks for another number.
const USUAL: usize = 5000;

/// The tests that look at crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Reads, writes, discards and flushes, where some calls fail.
    Requests,
    /// The same, where each call in turn fails.
    Failures,
    /// The same of two threads.
    Threads,
    /// Resizing dynamic and differencing disks.
    ResizeSparse,
    /// Resizing fixed disks.
    ResizeFixed,
    /// What a merge writes to the parent.
    Merge,
    Reparent,
    Repair,
    /// What a compaction writes to the new file.
    Compact,
    /// Whole operations, with the names that they give and take.
    Folders,
}

/// How many thousandths of all crash points each of them looks at.
const SHARES: [(Part, usize); 10] = [
    (Part::Requests, 400),
    (Part::Failures, 150),
    (Part::Threads, 60),
    (Part::ResizeSparse, 120),
    (Part::ResizeFixed, 70),
    (Part::Merge, 60),
    (Part::Reparent, 30),
    (Part::Repair, 30),
    (Part::Compact, 30),
    (Part::Folders, 50),
];

/// How many crash points a part looks at.
pub(crate) fn crash_points(part: Part) -> usize {
    let asked = std::env::var("PADDOCK_CRASH_POINTS").ok();
    let all = asked.map_or(USUAL, |number| number.parse().expect("a number"));
    let share = SHARES.iter().find(|(of, _)| *of == part);
    (all * share.expect("a share").1).div_ceil(1000)
}

#[test]
fn the_shares_are_all_there_is() {
    assert_eq!(SHARES.iter().map(|(_, share)| share).sum::<usize>(), 1000);
    let parts = SHARES.map(|(part, _)| format!("{part:?}"));
    assert_eq!(BTreeSet::from(parts).len(), SHARES.len());
    let of_each: usize = SHARES.iter().map(|(part, _)| crash_points(*part)).sum();
    assert!(of_each >= USUAL || std::env::var("PADDOCK_CRASH_POINTS").is_ok());
}

/// Calls `run` with one seed after the other until together they have looked
/// at the part's crash points; returns their number.
pub(crate) fn survey_seeds(part: Part, mut run: impl FnMut(u64) -> usize) -> usize {
    let wanted = crash_points(part);
    let (mut points, mut seed) = (0, 0);
    while points < wanted {
        points += run(seed);
        seed += 1;
        assert!(
            seed < 100 + 10 * wanted as u64,
            "the seeds have no crash points"
        );
    }
    println!("{part:?}: {points} crash points of {seed} seeds");
    points
}

/// What a crash left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// All as it was before the change.
    Old,
    /// All as the change makes it.
    New,
}

/// Judges the bytes of a file.
pub(crate) type Look<'a> = dyn Fn(Vec<u8>, &mut Random) -> Result<Left, String> + 'a;

/// Does `change` to a file that holds `base`, and lets `look` judge what is
/// left: after a crash before each of its operations and behind the last,
/// with some of what was not synced; and where each of its calls in turn fails
/// with `EIO` and with `ENOSPC`, in the running system and after a crash.
/// `look` refuses whatever is neither the old nor the new.
///
/// Returns how many crashes there were. The change must be durable when it
/// returns, and must return an error when a call failed.
pub(crate) fn survey(
    seed: u64,
    base: &[u8],
    change: &dyn Fn(&FaultStorage) -> Result<(), String>,
    look: &Look<'_>,
) -> Result<usize, String> {
    let mut random = Random::new(seed ^ 0xc0ffee);
    let storage = FaultStorage::new(base.to_vec(), BTreeMap::new());
    change(&storage).map_err(|what| format!("seed {seed}: {what}"))?;
    let log = storage.log();
    let mut points = 0;
    let mut crashes = Crashes::new(base.to_vec(), &log);
    for point in (0..=log.len()).flat_map(|point| [point; 3]) {
        let at = |what| format!("seed {seed}, crash after {point} of {}: {what}", log.len());
        let left = look(crashes.at(point, &mut random), &mut random).map_err(at)?;
        if point == log.len() && left == Left::Old {
            return Err(at("it is not durable when it is over".to_owned()));
        }
        points += 1;
    }
    for (which, storage) in storage.each_failing(base) {
        let at = |what| format!("seed {seed}, {which}: {what}");
        if change(&storage).is_ok() {
            return Err(at("the failure was not told".to_owned()));
        }
        look(storage.bytes(), &mut random).map_err(at)?;
        let log = storage.log();
        let mut crashes = Crashes::new(base.to_vec(), &log);
        look(crashes.at(log.len(), &mut random), &mut random).map_err(at)?;
        points += 1;
    }
    Ok(points)
}

/// Each deliberate fault is tried by a test that must notice it.
#[test]
fn every_mutant_is_in_a_test() {
    let source = include_str!("image/mod.rs");
    let (_, list) = source.split_once("enum Mutant {").unwrap();
    let (list, _) = list.split_once("\n}").unwrap();
    let mutants: Vec<&str> = list
        .lines()
        .filter_map(|line| line.trim().strip_suffix(','))
        .filter(|line| !line.starts_with("//") && !line.starts_with('#'))
        .collect();
    assert!(mutants.len() >= 18, "{mutants:?}");
    let tests = [
        include_str!("image/crash_tests.rs"),
        include_str!("image/crash_tests/trim.rs"),
        include_str!("merge/tests.rs"),
        include_str!("reparent/tests.rs"),
        include_str!("repair/tests.rs"),
        include_str!("resize/tests.rs"),
    ];
    for mutant in mutants {
        let named = |test: &&&str| {
            test.split(&format!("Mutant::{mutant}"))
                .skip(1)
                .any(|behind| !behind.starts_with(|c: char| c.is_alphanumeric()))
        };
        assert!(
            tests.iter().any(|test| named(&test)),
            "no test notices {mutant}"
        );
    }
}

/// A change that is not of one piece is found out.
#[test]
fn a_survey_notices_what_is_torn() {
    use crate::storage::Storage;

    let look = |bytes: Vec<u8>, _: &mut Random| match bytes[..] {
        [1, .., 1] => Ok(Left::Old),
        [2, .., 2] => Ok(Left::New),
        _ => Err("torn".to_owned()),
    };
    let write = |disk: &FaultStorage, offset| disk.write_at(&[2; 512], offset);
    let run = |change: &dyn Fn(&FaultStorage) -> std::io::Result<()>| {
        let change = |disk: &FaultStorage| change(disk).map_err(|error| error.to_string());
        survey(1, &[1; 1024], &change, &look)
    };
    let torn = run(&|disk| {
        write(disk, 0)?;
        write(disk, 512)?;
        disk.sync_data()
    });
    assert!(torn.unwrap_err().contains("torn"));
    let look_at_first = |bytes: Vec<u8>, _: &mut Random| match bytes[0] {
        1 => Ok(Left::Old),
        _ => Ok(Left::New),
    };
    let unsynced = |disk: &FaultStorage| write(disk, 0).map_err(|error| error.to_string());
    let error = survey(1, &[1; 1024], &unsynced, &look_at_first).unwrap_err();
    assert!(error.contains("not durable"), "{error}");
    let untold = |disk: &FaultStorage| {
        let _ = write(disk, 0);
        disk.sync_data().map_err(|error| error.to_string())
    };
    let error = survey(1, &[1; 1024], &untold, &look_at_first).unwrap_err();
    assert!(error.contains("not told"), "{error}");
    let right = |disk: &FaultStorage| {
        let done = write(disk, 0).and_then(|()| disk.sync_data());
        done.map_err(|error| error.to_string())
    };
    assert_eq!(survey(1, &[1; 1024], &right, &look_at_first), Ok(9 + 4));
}
