//! What is left of a child that a crash hits while it is reconnected.

use std::collections::BTreeMap;

use super::write_parent;
use crate::chain::read_link;
use crate::gate::Gate;
use crate::image::random::Random;
use crate::image::sample::{Sample, foreign_child, foreign_disk, open_parents};
use crate::image::{Mutant, NewParent, Tuning, open, recognise};
use crate::storage::Backing;
use crate::storage::fault::{Crashes, FaultStorage};
use crate::survey::{crash_points, survey_seeds};

const SIZE: u64 = 16 * 4096;

fn backing(storage: FaultStorage) -> Backing {
    Backing::new(Box::new(storage), Gate::open(), "disk")
}

fn run(seed: u64, mutant: Option<Mutant>) -> Result<[u32; 2], String> {
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
    let storage = FaultStorage::new(file.clone(), BTreeMap::new());
    let disk = backing(storage.clone());
    let found = recognise(&disk, tuning).unwrap();
    let old = read_link(&disk, &found).unwrap().unwrap();
    let new = NewParent {
        unique_id: old.unique_id,
        modified: 77,
        name: "elsewhere.vhd".to_owned(),
        relative: (random.below(2) == 0).then(|| ".\\elsewhere.vhd".to_owned()),
        absolute: Some(format!("/{}", "x".repeat(random.below(400) as usize))),
    };
    write_parent(&disk, &found, &new, tuning).unwrap();
    let log = storage.log();
    let mut crashes = Crashes::new(file, &log);
    let mut seen = [0, 0];
    for point in (0..=log.len()).flat_map(|point| [point; 3]) {
        let left = FaultStorage::new(crashes.at(point, &mut random), BTreeMap::new());
        let disk = backing(left.clone());
        let found = recognise(&disk, tuning).map_err(|refusal| format!("{refusal:?}"))?;
        let link = read_link(&disk, &found).map_err(|refusal| format!("{refusal:?}"))?;
        let link = link.ok_or("no child any more")?;
        if link == old {
            seen[0] += 1;
        } else if link.modified == 77
            && link.name == "elsewhere.vhd"
            && link.relative == Vec::from_iter(new.relative.clone())
            && link.absolute == Vec::from_iter(new.absolute.clone())
        {
            seen[1] += 1;
        } else {
            return Err(format!(
                "seed {seed}: neither the old nor the new parent: {link:?}"
            ));
        }
        if point == log.len() && link == old {
            return Err("not durable when it is over".to_owned());
        }
        // It still works, and keeps the parent that it has.
        let mut expected = content.clone();
        for _ in 0..2 {
            let (disk, _) = open(backing(left.clone()), open_parents(&parents), false, tuning)
                .map_err(|refusal| format!("{refusal:?}"))?;
            let mut found = vec![0; expected.len()];
            disk.read_at(&mut found, 0).unwrap();
            if found != expected {
                return Err(format!("seed {seed}: it shows something else"));
            }
            let range = random.range(SIZE, 20_000);
            let bytes = random.bytes(range.end - range.start);
            disk.write_at(&bytes, range.start).unwrap();
            expected[range.start as usize..range.end as usize].copy_from_slice(&bytes);
            disk.put_away().unwrap();
        }
        let disk = backing(left);
        let found = recognise(&disk, tuning).map_err(|refusal| format!("{refusal:?}"))?;
        if read_link(&disk, &found).unwrap() != Some(link) {
            return Err(format!("seed {seed}: writing changed the parent"));
        }
    }
    Ok(seen)
}

#[test]
fn a_crash_leaves_the_old_parent_or_the_new_one() {
    let mut seen = [0, 0];
    survey_seeds(40, |seed| {
        let [old, new] = run(seed, None).unwrap();
        seen = [seen[0] + old, seen[1] + new];
        (old + new) as usize
    });
    let least = crash_points(10) as u32;
    assert!(seen.iter().all(|seen| *seen >= least), "{seen:?}");
}

#[test]
fn a_footer_that_names_the_header_too_early_is_caught() {
    let caught = (0..40).find_map(|seed| run(seed, Some(Mutant::HeadBeforeHeader)).err());
    println!("{}", caught.unwrap());
}
