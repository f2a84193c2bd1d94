//! What is left of a dynamic or differencing disk that a crash hits while it
//! is resized.

use std::collections::BTreeMap;

use super::sparse::{apply, obstacle};
use crate::block::BlockDevice;
use crate::format::DiskType;
use crate::gate::Gate;
use crate::image::random::Random;
use crate::image::sample::{Sample, foreign_child, foreign_disk, new_disk, open_parents};
use crate::image::{Image, Mutant, Tuning, open, recognise};
use crate::storage::Backing;
use crate::storage::fault::FaultStorage;
use crate::survey::{Left, Part, survey, survey_seeds};

const BLOCK: u64 = 4096;

fn tuning(mutant: Option<Mutant>) -> Tuning {
    Tuning {
        growth: 2 * BLOCK,
        bitmap_cache: 1024,
        mutant,
    }
}

fn backing(storage: &FaultStorage) -> Backing {
    Backing::new(Box::new(storage.clone()), Gate::open(), "disk")
}

fn content(disk: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn open_disk(storage: &FaultStorage, parents: &[Vec<u8>]) -> Result<Box<dyn Image>, String> {
    open(backing(storage), open_parents(parents), false, tuning(None))
        .map(|(disk, _)| disk)
        .map_err(|refusal| format!("{refusal:?}"))
}

fn resize(storage: &FaultStorage, size: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let disk = backing(storage);
    let found = recognise(&disk, tuning(None)).map_err(|refusal| format!("{refusal:?}"))?;
    assert_eq!(obstacle(&found, size), None);
    apply(&disk, &found, size, tuning(mutant)).map_err(|error| error.to_string())
}

/// A disk whose table has room for more blocks, or none.
fn sample(random: &mut Random) -> Sample {
    let size = 512 * (1 + random.below(300));
    let mut sample = match random.below(3) {
        0 => {
            let parent = foreign_disk(size, BLOCK as u32, random);
            foreign_child(parent, size, BLOCK as u32, random)
        }
        _ => foreign_disk(size, BLOCK as u32, random),
    };
    match random.below(4) {
        // A footer of 511 bytes; none; a damaged copy.
        0 => drop(sample.file.pop()),
        1 => sample.file.truncate(sample.file.len() - 512),
        2 => sample.file[100] ^= 1,
        _ => {}
    }
    if random.below(2) == 0 && sample.parents.is_empty() {
        // Smaller than it was, by another program that left the blocks.
        let disk = FaultStorage::new(sample.file.clone(), BTreeMap::new());
        let found = recognise(&backing(&disk), tuning(None)).unwrap();
        let smaller = size - 512 * random.below(size / 512);
        let mut bytes = found.footer_bytes;
        found.footer.resized(smaller).encode_size(&mut bytes);
        backing(&disk).write(&bytes, 0).unwrap();
        backing(&disk).write(&bytes, found.data_end).unwrap();
        sample.file = disk.bytes();
        sample.content.truncate(smaller as usize);
    }
    sample
}

/// Resizes a disk, and looks at what crashes and failures leave. Returns how
/// many there were.
fn run(seed: u64, mutant: Option<Mutant>) -> Result<usize, String> {
    let mut random = Random::new(seed);
    let Sample {
        file,
        content: old,
        parents,
        ..
    } = sample(&mut random);
    let most = if random.below(3) == 0 { 3000 } else { 300 };
    let size = 512 * (1 + random.below(most));
    let mut new = old.clone();
    new.resize(size as usize, 0);
    let look = |bytes: Vec<u8>, random: &mut Random| {
        let left = FaultStorage::new(bytes, BTreeMap::new());
        let disk = open_disk(&left, &parents)?;
        let mut expected = content(&*disk);
        let seen = if expected == new {
            Left::New
        } else if expected == old {
            Left::Old
        } else {
            return Err("neither the old disk nor the new one".to_owned());
        };
        // It works, and goes on to the size that was asked for.
        for _ in 0..2 {
            let range = random.range(expected.len() as u64, 9000);
            let bytes = random.bytes(range.end - range.start);
            disk.write_at(&bytes, range.start).unwrap();
            expected[range.start as usize..range.end as usize].copy_from_slice(&bytes);
        }
        disk.put_away().unwrap();
        drop(disk);
        expected.resize(size as usize, 0);
        if seen == Left::Old {
            resize(&left, size, None)?;
        }
        let disk = open_disk(&left, &parents)?;
        match content(&*disk) == expected {
            true => Ok(seen),
            false => Err("it shows something else later".to_owned()),
        }
    };
    survey(seed, &file, &|disk| resize(disk, size, mutant), &look)
}

#[test]
fn a_crash_or_failure_leaves_the_old_disk_or_the_new_one() {
    survey_seeds(Part::ResizeSparse, |seed| run(seed, None).unwrap());
}

#[test]
fn a_footer_that_names_the_table_too_early_is_caught() {
    let early = Some(Mutant::HeadBeforeHeader);
    let caught = (0..60).find_map(|seed| run(seed, early).err());
    println!("{}", caught.unwrap());
}

/// A table with room stays where it is; one without is replaced, behind the
/// end of the file.
#[test]
fn a_table_moves_only_when_it_is_too_short() {
    let Sample { file, .. } = new_disk(DiskType::Dynamic, 16 * BLOCK, BLOCK as u32);
    let disk = FaultStorage::new(file.clone(), BTreeMap::new());
    let place = |disk: &FaultStorage| {
        let found = recognise(&backing(disk), tuning(None)).unwrap();
        let layout = found.layout().unwrap();
        (
            layout.header_offset,
            layout.bat_offset,
            layout.bat_entries,
            layout.size,
        )
    };
    for (size, expected) in [
        (3 * BLOCK, (512, 1536, 16, 3 * BLOCK)),
        (16 * BLOCK, (512, 1536, 16, 16 * BLOCK)),
        (17 * BLOCK, (2560, 3584, 17, 17 * BLOCK)),
        (15 * BLOCK - 512, (2560, 3584, 17, 15 * BLOCK - 512)),
    ] {
        resize(&disk, size, None).unwrap();
        assert_eq!(place(&disk), expected);
    }
    assert_eq!(disk.bytes().len(), 4096 + 512);
}

#[test]
fn blocks_that_are_too_small_are_told() {
    let Sample { file, .. } = new_disk(DiskType::Dynamic, 16 * BLOCK, BLOCK as u32);
    let disk = FaultStorage::new(file, BTreeMap::new());
    let found = recognise(&backing(&disk), tuning(None)).unwrap();
    assert_eq!(obstacle(&found, 4 * 1_044_480 * 4096), None);
    let reason = obstacle(&found, 4 * 1_044_480 * 4096 + 512).unwrap();
    assert!(reason.contains("4177920 is the most"), "{reason}");
}
