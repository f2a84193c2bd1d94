//! What is left of a child that a crash hits while it is reconnected.

use std::collections::BTreeMap;

use super::write_parent;
use crate::chain::read_link;
use crate::gate::Gate;
use crate::image::random::Random;
use crate::image::sample::{Sample, foreign_child, foreign_disk, open_parents};
use crate::image::{Mutant, NewParent, Tuning, open, recognise};
use crate::storage::Backing;
use crate::storage::fault::FaultStorage;
use crate::survey::{Left, Part, survey, survey_seeds};

const SIZE: u64 = 16 * 4096;

fn backing(storage: FaultStorage) -> Backing {
    Backing::new(Box::new(storage), Gate::open(), "disk")
}

fn run(seed: u64, mutant: Option<Mutant>) -> Result<usize, String> {
    let tuning = Tuning {
        growth: 4096,
        bitmap_cache: 1024,
        mutant,
    };
    let mut random = Random::new(seed);
    let below = foreign_disk(SIZE, 4096, &mut random);
    let Sample {
        mut file,
        content,
        parents,
        ..
    } = foreign_child(below, SIZE, 4096, &mut random);
    match random.below(6) {
        // An old footer of 511 bytes; a damaged copy; none but the copy.
        0 => drop(file.pop()),
        1 => file[100] ^= 1,
        2 => file.truncate(file.len() - 512),
        _ => {}
    }
    let tuning_of_look = Tuning {
        mutant: None,
        ..tuning
    };
    let whole = backing(FaultStorage::new(file.clone(), BTreeMap::new()));
    let found = recognise(&whole, tuning).unwrap();
    let old = read_link(&whole, &found).unwrap().unwrap();
    let new = NewParent {
        unique_id: old.unique_id,
        modified: 77,
        name: "elsewhere.vhd".to_owned(),
        relative: (random.below(2) == 0).then(|| ".\\elsewhere.vhd".to_owned()),
        absolute: Some(format!("/{}", "x".repeat(random.below(400) as usize))),
    };
    let reconnect = |storage: &FaultStorage| {
        let disk = backing(storage.clone());
        let found = recognise(&disk, tuning).map_err(|refusal| format!("{refusal:?}"))?;
        write_parent(&disk, &found, &new, tuning).map_err(|error| error.to_string())
    };
    let look = |bytes: Vec<u8>, random: &mut Random| {
        let left = FaultStorage::new(bytes, BTreeMap::new());
        let link_of = || {
            let disk = backing(left.clone());
            let found = recognise(&disk, tuning).map_err(|refusal| format!("{refusal:?}"))?;
            let link = read_link(&disk, &found).map_err(|refusal| format!("{refusal:?}"))?;
            link.ok_or("no child any more".to_owned())
        };
        let link = link_of()?;
        let seen = if link == old {
            Left::Old
        } else if link.modified == 77
            && link.name == "elsewhere.vhd"
            && link.relative == Vec::from_iter(new.relative.clone())
            && link.absolute == Vec::from_iter(new.absolute.clone())
        {
            Left::New
        } else {
            return Err(format!("neither the old nor the new parent: {link:?}"));
        };
        // It still works, and keeps the parent that it has.
        let mut expected = content.clone();
        for _ in 0..2 {
            let parents = open_parents(&parents);
            let (disk, _) = open(backing(left.clone()), parents, false, tuning_of_look)
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
        match link_of()? == link {
            true => Ok(seen),
            false => Err("writing changed the parent".to_owned()),
        }
    };
    survey(seed, &file, &reconnect, &look)
}

#[test]
fn a_crash_or_failure_leaves_the_old_parent_or_the_new_one() {
    survey_seeds(Part::Reparent, |seed| run(seed, None).unwrap());
}

#[test]
fn a_footer_that_names_the_header_too_early_is_caught() {
    let caught = (0..40).find_map(|seed| run(seed, Some(Mutant::HeadBeforeHeader)).err());
    println!("{}", caught.unwrap());
}
