//! What the new file holds, and what a crash leaves of it.

#![allow(clippy::single_range_in_vec_init)] // Ranges are what is meant.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::ops::Range;
use std::path::Path;

use super::{Copy, check_free, runs, without};
use crate::format::DiskType;
use crate::gate::Gate;
use crate::image::random::Random;
use crate::image::sample::{Sample, footer, foreign_disk};
use crate::image::{Dynamic, Image, Tuning, format_new, open, recognise};
use crate::storage::Backing;
use crate::storage::fault::{Crashes, FaultStorage};
use crate::survey::{Part, survey_seeds};

const BLOCK: u32 = 16 << 10;
const SIZE: u64 = 16 * BLOCK as u64 - 3 * 512;

fn tuning() -> Tuning {
    Tuning {
        growth: 3 * u64::from(BLOCK),
        bitmap_cache: 1024,
        mutant: None,
    }
}

fn backing(storage: &FaultStorage) -> Backing {
    Backing::new(Box::new(storage.clone()), Gate::open(), "disk")
}

/// A disk of another program, with zeros in it here and there.
fn sample(random: &mut Random) -> Sample {
    let mut sample = foreign_disk(SIZE, BLOCK, random);
    let storage = FaultStorage::new(sample.file.clone(), BTreeMap::new());
    let (disk, _) = open(backing(&storage), None, false, tuning()).unwrap();
    for _ in 0..6 {
        let range = random.range(SIZE, 30_000);
        let zeros = vec![0; (range.end - range.start) as usize];
        disk.write_at(&zeros, range.start).unwrap();
    }
    disk.put_away().unwrap();
    disk.read_at(&mut sample.content, 0).unwrap();
    sample.file = storage.bytes();
    sample
}

fn free_ranges(random: &mut Random) -> Vec<Range<u64>> {
    let mut free = Vec::new();
    let mut at = 0;
    for _ in 0..random.below(6) {
        let start = at + random.below(SIZE / 6);
        let end = start + 1 + random.below(SIZE / 6);
        if end > SIZE {
            break;
        }
        free.push(start..end);
        at = end;
    }
    free
}

struct Run {
    new: FaultStorage,
    blocks: u32,
    expected: Vec<u8>,
    /// What the tables of the two files say.
    entries: [Vec<u32>; 2],
}

fn entries(disk: &Dynamic) -> Vec<u32> {
    disk.blocks_in_file_order()
}

/// Makes the new file and copies everything there; how many blocks it has.
fn fill(new: &FaultStorage, copy: &Copy<'_>, seal: bool) -> Result<(Dynamic, u32), String> {
    let disk = backing(new);
    let footer = footer(DiskType::Dynamic, SIZE);
    let formatted = format_new(&disk, DiskType::Dynamic, &footer, BLOCK, None);
    formatted.map_err(|error| error.to_string())?;
    let bad = |refusal| format!("{refusal:?}");
    let found = recognise(&disk, tuning()).map_err(bad)?;
    let target = Dynamic::load(disk, &found, None, false, tuning()).map_err(bad)?;
    let go_on = &mut |_| ControlFlow::Continue(());
    let blocks = copy.to(&target, Path::new("new"), go_on);
    let blocks = blocks.map_err(|error| error.to_string())?;
    if seal {
        target.put_away().map_err(|error| error.to_string())?;
    }
    Ok((target, blocks))
}

/// `each_failure`: lets each call fail in turn as well.
fn run(random: &mut Random, defragment: bool, seal: bool, each_failure: bool) -> Run {
    let sample = sample(random);
    let free = free_ranges(random);
    let mut expected = sample.content.clone();
    for range in &free {
        expected[range.start as usize..range.end as usize].fill(0);
    }
    let old = FaultStorage::new(sample.file.clone(), BTreeMap::new());
    let disk = backing(&old);
    let found = recognise(&disk, tuning()).unwrap();
    let source = Dynamic::load(disk, &found, None, true, tuning()).unwrap();
    let mut order = entries(&source);
    if defragment {
        order.sort_unstable();
    }
    let copy = Copy {
        source: &source,
        rel: Path::new("disk"),
        block_size: BLOCK,
        order: &order,
        free: &free,
    };
    let new = FaultStorage::default();
    let go_on = &mut |_| ControlFlow::Continue(());
    let most = copy.most().unwrap();
    let count = copy.count(go_on).unwrap();
    assert!(count <= most, "{count} of {most}");
    let (target, blocks) = fill(&new, &copy, seal).unwrap();
    if each_failure {
        for (which, failing) in new.each_failing(&[]) {
            // What is not told did no harm.
            if fill(&failing, &copy, true).is_ok() {
                let log = failing.log();
                let left = Crashes::new(Vec::new(), &log).at(log.len(), random);
                assert!(shown(left) == expected, "{which}");
            }
        }
    }
    if seal {
        let len = new.bytes().len() as u64;
        let metadata = 4096 + u64::from(BLOCK);
        assert!(len <= u64::from(blocks) * (u64::from(BLOCK) + 4096) + metadata);
    }
    assert_eq!(old.log().len(), 0, "the old file was written to");
    assert!(old.bytes() == sample.file);
    let kept = order
        .iter()
        .copied()
        .filter(|&block| {
            let start = block as usize * BLOCK as usize;
            let end = (start + BLOCK as usize).min(expected.len());
            expected[start..end].iter().any(|&byte| byte != 0)
        })
        .collect();
    Run {
        entries: [kept, entries(&target)],
        new,
        blocks,
        expected,
    }
}

fn shown(file: Vec<u8>) -> Vec<u8> {
    let left = FaultStorage::new(file, BTreeMap::new());
    let (disk, _) = open(backing(&left), None, false, tuning()).unwrap();
    let mut content = vec![0; SIZE as usize];
    disk.read_at(&mut content, 0).unwrap();
    content
}

#[test]
fn it_shows_the_same_but_for_what_is_free_and_holds_no_zero_blocks() {
    let mut dropped = 0;
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let run = run(&mut random, seed % 2 == 0, true, seed < 4);
        let [kept, found] = &run.entries;
        assert_eq!(found, kept, "seed {seed}: which blocks, and in which order");
        assert_eq!(run.blocks as usize, kept.len());
        let (disk, _) = open(backing(&run.new), None, true, tuning()).unwrap();
        let mut content = vec![0; SIZE as usize];
        disk.read_at(&mut content, 0).unwrap();
        assert!(content == run.expected, "seed {seed}");
        dropped += usize::from(kept.len() < 8);
    }
    assert!(dropped > 20, "{dropped}");
}

/// So many crashes of each run are looked at.
const LOOKS: usize = 8;

/// Whether a crash after the rename, which follows on the last operation,
/// leaves the whole new file.
fn survives(seed: u64, seal: bool) -> bool {
    let mut random = Random::new(seed);
    let run = run(&mut random, true, seal, false);
    let log = run.new.log();
    let mut crashes = Crashes::new(Vec::new(), &log);
    (0..LOOKS).all(|_| {
        let left = FaultStorage::new(crashes.at(log.len(), &mut random), BTreeMap::new());
        let Ok((disk, _)) = open(backing(&left), None, false, tuning()) else {
            return false;
        };
        let mut content = vec![0; SIZE as usize];
        disk.read_at(&mut content, 0).is_ok() && content == run.expected
    })
}

#[test]
fn what_is_given_the_name_is_durable() {
    survey_seeds(Part::Compact, |seed| {
        assert!(survives(seed, true), "seed {seed}");
        LOOKS
    });
    // The test sees it where it isn't.
    assert!((0..20).any(|seed| !survives(seed, false)));
}

#[test]
fn free_ranges_are_cut_out() {
    let cut = |range: Range<u64>, free: &[Range<u64>]| {
        let mut left = Vec::new();
        without(range, free, &mut left);
        left
    };
    assert_eq!(cut(10..20, &[]), [10..20]);
    assert_eq!(cut(10..20, &[0..10, 20..30]), [10..20]);
    assert_eq!(cut(10..20, &[0..12, 14..15, 19..40]), [12..14, 15..19]);
    assert_eq!(cut(10..20, &[5..25]), []);
    assert_eq!(cut(10..20, &[10..20]), []);
    assert_eq!(cut(10..20, &[11..12, 12..13]), [10..11, 13..20]);
}

#[test]
fn free_ranges_that_cannot_be_are_refused() {
    let refused = |free: &[Range<u64>]| check_free(free, 100).is_err();
    assert!(!refused(&[]));
    assert!(!refused(&[0..10, 10..20, 99..100]));
    assert!(refused(&[0..10, 9..20]));
    assert!(refused(&[50..60, 0..10]));
    assert!(refused(&[Range { start: 7, end: 7 }]));
    assert!(refused(&[Range { start: 9, end: 7 }]));
    assert!(refused(&[90..101]));
}

#[test]
fn zeros_are_left_out_by_pieces_of_the_disk() {
    let mut bytes = vec![0; 5 * 4096];
    assert_eq!(runs(&bytes, 4096), []);
    bytes[0] = 1;
    bytes[2 * 4096 - 1] = 1;
    bytes[4 * 4096] = 1;
    assert_eq!(runs(&bytes, 8192), [0..8192, 4 * 4096..5 * 4096]);
    // 96 bytes before a multiple: the pieces begin at 96, 4192 and so on.
    assert_eq!(
        runs(&bytes, 4000),
        [
            0..96,
            96 + 4096..96 + 2 * 4096,
            96 + 3 * 4096..96 + 4 * 4096
        ]
    );
    assert_eq!(runs(&[], 5), []);
}
