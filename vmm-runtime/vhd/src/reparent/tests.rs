//! What is left of a child that a crash or an error hits while it is
//! reconnected.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::change_parent;
use crate::chain::{ParentLink, read_link};
use crate::gate::Gate;
use crate::image::random::Random;
use crate::image::sample::{Sample, foreign_child, foreign_disk, open_parents};
use crate::image::{Mutant, NewParent, Tuning, open, recognise};
use crate::storage::Backing;
use crate::storage::fault::{Fault, FaultStorage};
use crate::survey::{Left, Part, crash_points, survey, survey_seeds};

const SIZE: u64 = 16 * 4096;

fn backing(storage: &FaultStorage) -> Backing {
    Backing::new(Box::new(storage.clone()), Gate::open(), "disk")
}

fn tuning(mutant: Option<Mutant>) -> Tuning {
    Tuning {
        growth: 4096,
        bitmap_cache: 1024,
        mutant,
    }
}

fn link_of(storage: &FaultStorage) -> Result<ParentLink, String> {
    let disk = backing(storage);
    let found = recognise(&disk, tuning(None)).map_err(|refusal| format!("{refusal:?}"))?;
    let link = read_link(&disk, &found).map_err(|refusal| format!("{refusal:?}"))?;
    link.ok_or_else(|| "no child any more".to_owned())
}

/// A child, and another parent for it.
fn child(random: &mut Random) -> (Sample, NewParent) {
    let below = foreign_disk(SIZE, 4096, random);
    let sample = foreign_child(below, SIZE, 4096, random);
    let storage = FaultStorage::new(sample.file.clone(), BTreeMap::new());
    let new = NewParent {
        unique_id: link_of(&storage).unwrap().unique_id,
        modified: 77,
        name: "elsewhere.vhd".to_owned(),
        relative: (random.below(2) == 0).then(|| ".\\elsewhere.vhd".to_owned()),
        absolute: Some(format!("/{}", "x".repeat(random.below(400) as usize))),
    };
    (sample, new)
}

fn change(storage: &FaultStorage, new: &NewParent, mutant: Option<Mutant>) -> Result<(), String> {
    change_parent(&backing(storage), new, tuning(mutant)).map_err(|refusal| format!("{refusal:?}"))
}

/// The number of crashes, and how many of them left the old parent and the new
/// one.
fn run(seed: u64, mutant: Option<Mutant>) -> Result<(usize, [u32; 2]), String> {
    let mut random = Random::new(seed);
    let (sample, new) = child(&mut random);
    let Sample {
        mut file,
        content,
        parents,
        ..
    } = sample;
    match random.below(6) {
        // An old footer of 511 bytes; a damaged copy; none but the copy.
        0 => drop(file.pop()),
        1 => file[100] ^= 1,
        2 => file.truncate(file.len() - 512),
        _ => {}
    }
    let old = link_of(&FaultStorage::new(file.clone(), BTreeMap::new()))?;
    let seen = [Cell::new(0), Cell::new(0)];
    let look = |bytes: Vec<u8>, random: &mut Random| {
        let left = FaultStorage::new(bytes, BTreeMap::new());
        let link = link_of(&left)?;
        let is_new = link.modified == 77
            && link.name == "elsewhere.vhd"
            && link.relative == Vec::from_iter(new.relative.clone())
            && link.absolute == Vec::from_iter(new.absolute.clone());
        if !is_new && link != old {
            return Err(format!("neither the old nor the new parent: {link:?}"));
        }
        // It still works, and keeps the parent that it has.
        let mut expected = content.clone();
        for _ in 0..2 {
            let below = open_parents(&parents);
            let (disk, _) = open(backing(&left), below, false, tuning(None))
                .map_err(|refusal| format!("{refusal:?}"))?;
            let mut found = vec![0; expected.len()];
            disk.read_at(&mut found, 0).unwrap();
            if found != expected {
                return Err("it shows something else".to_owned());
            }
            let range = random.range(SIZE, 20_000);
            let bytes = random.bytes(range.end - range.start);
            disk.write_at(&bytes, range.start).unwrap();
            expected[range.start as usize..range.end as usize].copy_from_slice(&bytes);
            disk.put_away().unwrap();
        }
        if link_of(&left)? != link {
            return Err("writing changed the parent".to_owned());
        }
        let seen = &seen[usize::from(is_new)];
        seen.set(seen.get() + 1);
        Ok(if is_new { Left::New } else { Left::Old })
    };
    let points = survey(seed, &file, &|disk| change(disk, &new, mutant), &look)?;
    Ok((points, seen.map(|seen| seen.get())))
}

#[test]
fn a_crash_leaves_the_old_parent_or_the_new_one() {
    let mut seen = [0, 0];
    survey_seeds(Part::Reparent, |seed| {
        let (points, [old, new]) = run(seed, None).unwrap();
        seen = [seen[0] + old, seen[1] + new];
        points
    });
    let least = (crash_points(Part::Reparent) / 4) as u32;
    assert!(seen.iter().all(|seen| *seen >= least), "{seen:?}");
}

#[test]
fn a_footer_that_names_the_header_too_early_is_caught() {
    let caught = (0..40).find_map(|seed| run(seed, Some(Mutant::HeadBeforeHeader)).err());
    println!("{}", caught.unwrap());
}

#[test]
fn what_could_not_be_written_as_a_whole_is_taken_away() {
    for seed in 0..20 {
        let (Sample { file, .. }, new) = child(&mut Random::new(seed));
        // The paths, the header, and a footer behind them.
        let writes = 2 + u64::from(new.relative.is_some()) + 1;
        for (call, fault) in
            (0..writes).flat_map(|call| [(call, Fault::Io), (call, Fault::NoSpace)])
        {
            let storage = FaultStorage::new(file.clone(), BTreeMap::from([(call, fault)]));
            change(&storage, &new, None).unwrap_err();
            assert!(storage.bytes() == file, "seed {seed}, call {call}");
        }
    }
}
