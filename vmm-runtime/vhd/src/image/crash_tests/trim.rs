//! The same behind a trim that failed: it may leave a footer where a region
//! comes to lie. Only a child is harmed by that, since the bitmap of a new block
//! is taken for zero until it is written; and only where another program put the
//! block before it, since regions of ours begin further behind.

use std::collections::BTreeMap;

use super::{BLOCK, SIZE, Workload, open_disk, parent};
use crate::format::bat::UNALLOCATED;
use crate::image::Mutant;
use crate::image::random::Random;
use crate::image::sample::{Sample, foreign_child};
use crate::storage::fault::{Crashes, Fault, FaultStorage};

/// The first block that the child does not hold and that is zero, or is not.
fn absent(sample: &Sample, zero: bool) -> Option<u64> {
    let table = sample.layout.bat_offset as usize;
    (0..15).find(|&block| {
        let entry = table + block as usize * 4;
        let shown = &sample.content[block as usize * BLOCK as usize..][..BLOCK as usize];
        sample.file[entry..entry + 4] == UNALLOCATED.to_be_bytes()
            && shown.iter().all(|&byte| byte == 0) == zero
    })
}

fn crash(seed: u64, mutant: Option<Mutant>) -> Result<usize, String> {
    let mut random = Random::new(seed);
    let sample = foreign_child(parent(&mut random), SIZE, BLOCK, &mut random);
    let (Some(blank), Some(other)) = (absent(&sample, true), absent(&sample, false)) else {
        return Ok(0);
    };
    let (blank, other) = (blank * u64::from(BLOCK), other * u64::from(BLOCK));
    let mut failed = 0;
    for call in 0..32 {
        let faults = BTreeMap::from([(call, Fault::Io)]);
        let storage = FaultStorage::new(sample.file.clone(), faults);
        let content = sample.content.clone();
        let mut workload = Workload::open(storage, &sample.parents, content, seed, mutant)?;
        // The file grows, and then holds no more than before.
        let grown = workload
            .change(blank..blank + 512, Some(&[1; 512]))
            .and_then(|()| workload.flush())
            .and_then(|()| workload.change(blank..blank + u64::from(BLOCK), None))
            .and_then(|()| workload.flush());
        if grown.is_err() || workload.disk.put_away().is_ok() {
            continue;
        }
        let wrote = workload.change(other..other + 512, Some(&[7; 512]));
        if wrote.and_then(|()| workload.flush()).is_err() {
            continue;
        }
        failed += 1;
        let log = workload.storage.log();
        let mut crashes = Crashes::new(sample.file.clone(), &log);
        for point in (0..=log.len()).flat_map(|point| [point; 8]) {
            let left = FaultStorage::new(crashes.at(point, &mut random), BTreeMap::new());
            let disk = open_disk(left, &sample.parents, mutant)?;
            let mut found = vec![0; SIZE as usize];
            disk.read_at(&mut found, 0).unwrap();
            let checked = workload.history.check(&found, point);
            checked.map_err(|what| format!("seed {seed}, call {call}: {what}"))?;
        }
    }
    Ok(failed)
}

#[test]
fn what_a_failed_trim_leaves_is_not_taken_for_zeros() {
    let failed: usize = (0..40).map(|seed| crash(seed, None).unwrap()).sum();
    assert!(failed > 0);
    let trusting = Some(Mutant::TrustFailedTrim);
    let caught = (0..400).find_map(|seed| crash(seed, trusting).err());
    println!("{}", caught.unwrap());
}
