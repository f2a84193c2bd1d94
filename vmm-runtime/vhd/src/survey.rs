//! How many crashes the tests look at, and one way to do it for a change of a
//! file that must be there as a whole or not at all.

use std::collections::BTreeMap;

use crate::image::random::Random;
use crate::storage::fault::{Crashes, Fault, FaultStorage};

/// How many crash points all tests together look at. `PADDOCK_CRASH_POINTS`
/// asks for another number.
const USUAL: usize = 5000;

/// How many of them are a test's that has a share of so many thousandths. The
/// shares: reads, writes, discards and flushes 600, resizing 200, merging 80,
/// reconnecting, repairing and compacting 40 each.
pub(crate) fn crash_points(share: usize) -> usize {
    let asked = std::env::var("PADDOCK_CRASH_POINTS").ok();
    let all = asked.map_or(USUAL, |number| number.parse().expect("a number"));
    (all * share).div_ceil(1000)
}

/// Calls `run` with one seed after the other until together they have looked
/// at the share's crash points; returns their number.
pub(crate) fn survey_seeds(share: usize, mut run: impl FnMut(u64) -> usize) -> usize {
    let wanted = crash_points(share);
    let (mut points, mut seed) = (0, 0);
    while points < wanted {
        points += run(seed);
        seed += 1;
        assert!(
            seed < 100 + 10 * wanted as u64,
            "the seeds have no crash points"
        );
    }
    println!("{points} crash points of {seed} seeds");
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
    for call in 0..log.len() as u64 {
        for fault in [Fault::Io, Fault::NoSpace] {
            let at = |what| format!("seed {seed}, {fault:?} at call {call}: {what}");
            let storage = FaultStorage::new(base.to_vec(), BTreeMap::from([(call, fault)]));
            if change(&storage).is_ok() {
                return Err(at("the failure was not told".to_owned()));
            }
            look(storage.bytes(), &mut random).map_err(at)?;
            let log = storage.log();
            let mut crashes = Crashes::new(base.to_vec(), &log);
            look(crashes.at(log.len(), &mut random), &mut random).map_err(at)?;
            points += 1;
        }
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
