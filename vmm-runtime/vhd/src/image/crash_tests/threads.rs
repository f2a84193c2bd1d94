//! The same where two threads use the disk.

use std::collections::BTreeMap;

use super::{BLOCK, Flush, History, SECTORS, SIZE, is_sound, open_disk, parent};
use crate::format::DiskType;
use crate::image::random::Random;
use crate::image::sample::{foreign_child, foreign_disk, new_disk};
use crate::image::{Image, Mutant};
use crate::storage::fault::{Crashes, FaultStorage};
use crate::survey::{Part, survey_seeds};

/// The threads of a concurrent workload, each of which has the sectors of its
/// number, remainders of a division by theirs, to itself.
const THREADS: u64 = 2;

/// Two threads that write, discard and flush, each in sectors of its own but in
/// the same blocks; then crashes at so many points. Neither may lose what it
/// had written before a flush of its own that was acknowledged.
fn crash_of_threads(seed: u64, points: usize, mutant: Option<Mutant>) -> Result<usize, String> {
    let mut random = Random::new(seed);
    let sample = match random.below(3) {
        0 => new_disk(DiskType::Dynamic, SIZE, BLOCK),
        1 => foreign_disk(SIZE, BLOCK, &mut random),
        _ => foreign_child(parent(&mut random), SIZE, BLOCK, &mut random),
    };
    let storage = FaultStorage::new(sample.file.clone(), BTreeMap::new());
    let disk = open_disk(storage.clone(), &sample.parents, mutant)?;
    let histories: Vec<History> = std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|thread| {
            let (storage, disk, content) = (&storage, &disk, sample.content.clone());
            scope.spawn(move || write_own_sectors(thread, seed, storage, &**disk, content))
        });
        let threads: Vec<_> = threads.collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap());
        ended.collect()
    });
    let log = storage.log();
    let mut chosen: Vec<usize> = (0..points)
        .map(|_| random.below(log.len() as u64 + 1) as usize)
        .collect();
    chosen.sort_unstable();
    let mut crashes = Crashes::new(sample.file, &log);
    for point in chosen {
        let left = FaultStorage::new(crashes.at(point, &mut random), BTreeMap::new());
        let at = |what| format!("seed {seed}, crash of threads after {point}: {what}");
        let disk = open_disk(left.clone(), &sample.parents, mutant).map_err(at)?;
        let mut content = vec![0; SIZE as usize];
        disk.read_at(&mut content, 0).unwrap();
        for (thread, history) in histories.iter().enumerate() {
            // Sectors of others are for their histories to judge.
            let own = |sector| sector % THREADS as usize == thread;
            history.check_sectors(&content, point, own).map_err(at)?;
        }
        disk.put_away().unwrap();
        is_sound(&left).map_err(at)?;
    }
    Ok(points)
}

fn write_own_sectors(
    thread: u64,
    seed: u64,
    storage: &FaultStorage,
    disk: &dyn Image,
    content: Vec<u8>,
) -> History {
    let mut history = History::new(content);
    let mut random = Random::new(seed.wrapping_mul(31) + thread);
    for _ in 0..60 {
        let begun = storage.position();
        let request = history.begin();
        if random.below(6) == 0 {
            disk.flush().unwrap();
            history.flushes.push(Flush {
                request,
                over: storage.position(),
            });
            continue;
        }
        let sector = random.below(SECTORS as u64 / THREADS) * THREADS + thread;
        let span = sector as usize * 512..sector as usize * 512 + 512;
        // Before it is written: another thread's flush may take it to disk.
        let bytes = match random.below(4) {
            0 => vec![0; 512],
            _ => random.bytes(512),
        };
        history.content[span].copy_from_slice(&bytes);
        history.note(request, begun);
        match bytes[0] {
            0 => disk.discard(sector * 512, 512).unwrap(),
            _ => disk.write_at(&bytes, sector * 512).unwrap(),
        }
    }
    history
}

#[test]
fn threads_lose_nothing_by_each_other() {
    survey_seeds(Part::Threads, |seed| {
        crash_of_threads(seed, 10, None).unwrap()
    });
}

#[test]
fn what_threads_lose_is_noticed() {
    for mutant in [Mutant::SkipDataSync, Mutant::SkipMetadataSync] {
        let caught = (0..100).find_map(|seed| crash_of_threads(seed, 10, Some(mutant)).err());
        let how = caught.unwrap_or_else(|| panic!("{mutant:?} was not caught"));
        println!("{mutant:?}: {how}");
    }
}
