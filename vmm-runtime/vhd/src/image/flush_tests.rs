//! What flushes cost, in syncs of the file.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::model_tests::open_disk;
use super::sample::{Sample, new_child, new_disk, open_parents};
use super::{Image, Tuning, open};
use crate::format::DiskType;
use crate::gate::Gate;
use crate::storage::fault::{FaultStorage, Op};
use crate::storage::{Backing, Space, Storage};

/// Two syncs however many blocks are allocated, one when none is, none when
/// nothing was written.
#[test]
fn a_flush_costs_two_syncs_at_most() {
    let Sample { file, .. } = new_disk(DiskType::Dynamic, 64 * 4096, 4096);
    let storage = FaultStorage::new(file, BTreeMap::new());
    let disk = open_disk(storage.clone(), false, 1 << 20);
    let syncs = || {
        storage
            .log()
            .iter()
            .filter(|op| matches!(op, Op::Sync))
            .count()
    };
    disk.write_at(&[1; 10], 0).unwrap();
    disk.flush().unwrap();
    let mut before = syncs();
    let mut cost = || {
        disk.flush().unwrap();
        let now = syncs();
        let cost = now - before;
        before = now;
        cost
    };
    for block in 1..40 {
        disk.write_at(&[1; 10], block * 4096).unwrap();
    }
    assert_eq!(cost(), 2);
    disk.write_at(&[2; 10], 4096).unwrap();
    assert_eq!(cost(), 1);
    assert_eq!(cost(), 0);
}

/// Two syncs, however many sectors of however many blocks a child gets.
#[test]
fn a_flush_of_a_child_costs_two_syncs() {
    let parent = new_disk(DiskType::Dynamic, 64 * 4096, 4096);
    let Sample { file, parents, .. } = new_child(parent, 64 * 4096, 4096);
    let storage = FaultStorage::new(file, BTreeMap::new());
    let backing = Backing::new(Box::new(storage.clone()), Gate::open(), "disk");
    let (disk, _) = open(backing, open_parents(&parents), false, Tuning::default()).unwrap();
    disk.write_at(&[1; 10], 0).unwrap();
    disk.flush().unwrap();
    for round in 1..4 {
        let before = storage.position();
        for block in 0..40 {
            disk.write_at(&[round; 512], block * 4096 + u64::from(round) * 512)
                .unwrap();
        }
        disk.flush().unwrap();
        let syncs = storage.log()[before..]
            .iter()
            .filter(|op| matches!(op, Op::Sync))
            .count();
        assert_eq!(syncs, 2, "round {round}");
    }
}

/// Writes to a disk each time that its file is synced.
#[derive(Clone)]
struct Busy {
    file: FaultStorage,
    disk: Arc<OnceLock<Box<dyn Image>>>,
}

impl Storage for Busy {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()?;
        if let Some(disk) = self.disk.get() {
            disk.write_at(&[3; 512], 0).unwrap();
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn zero(&self, offset: u64, len: u64, space: Space) -> io::Result<()> {
        self.file.zero(offset, len, space)
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(range)
    }
}

/// What others write meanwhile is not waited for.
#[test]
fn a_flush_of_overwrites_costs_one_sync_while_others_write() {
    let Sample { file, .. } = new_disk(DiskType::Dynamic, 8 * 4096, 4096);
    let file = FaultStorage::new(file, BTreeMap::new());
    let busy = Busy {
        file: file.clone(),
        disk: Arc::default(),
    };
    let backing = Backing::new(Box::new(busy.clone()), Gate::open(), "disk");
    let (disk, _) = open(backing, None, false, Tuning::default()).unwrap();
    disk.write_at(&[1; 512], 0).unwrap();
    disk.flush().unwrap();
    let disk = busy.disk.get_or_init(|| disk);
    disk.write_at(&[2; 512], 0).unwrap();
    let before = file.position();
    disk.flush().unwrap();
    let cost = file.log()[before..].to_vec();
    assert!(matches!(cost[..], [Op::Sync, Op::Write { .. }]), "{cost:?}");
}
