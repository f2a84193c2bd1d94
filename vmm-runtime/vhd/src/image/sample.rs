//! Small disks for tests: new ones, and such as other programs leave behind.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use uuid::Uuid;

use super::random::Random;
use super::{Image, NewParent, Tuning, format_new, open};
use crate::format::DiskType;
use crate::format::bat::{Layout, UNALLOCATED};
use crate::format::bitmap::Bitmap;
use crate::format::footer::Footer;
use crate::gate::Gate;
use crate::storage::fault::FaultStorage;
use crate::storage::{Backing, Storage};

/// A disk's file, and what a guest reads from it.
pub(crate) struct Sample {
    pub(crate) file: Vec<u8>,
    pub(crate) content: Vec<u8>,
    pub(crate) layout: Layout,
    /// The files of its parents, the base first.
    pub(crate) parents: Vec<Vec<u8>>,
}

pub(crate) fn footer(disk_type: DiskType, size: u64) -> Footer {
    Footer::new(disk_type, size, Uuid::from_bytes([1; 16]), UNIX_EPOCH)
}

/// A new disk, as `Vhd::create` makes it.
pub(crate) fn new_disk(disk_type: DiskType, size: u64, block_size: u32) -> Sample {
    let storage = FaultStorage::default();
    let backing = Backing::new(Box::new(storage.clone()), Gate::open(), "sample");
    format_new(
        &backing,
        disk_type,
        &footer(disk_type, size),
        block_size,
        None,
    )
    .unwrap();
    let mut file = vec![0; storage.len().unwrap() as usize];
    storage.read_at(&mut file, 0).unwrap();
    Sample {
        file,
        content: vec![0; size as usize],
        layout: Layout::new(size, block_size),
        parents: Vec::new(),
    }
}

/// A new child over a sample, as `Vhd::create_child` makes it.
pub(crate) fn new_child(parent: Sample, size: u64, block_size: u32) -> Sample {
    let storage = FaultStorage::default();
    let backing = Backing::new(Box::new(storage.clone()), Gate::open(), "sample");
    let link = NewParent {
        unique_id: Uuid::from_bytes([1; 16]),
        modified: 0,
        name: "parent.vhd".to_owned(),
        relative: Some(".\\parent.vhd".to_owned()),
        absolute: Some("/pool/parent.vhd".to_owned()),
    };
    let differencing = DiskType::Differencing;
    format_new(
        &backing,
        differencing,
        &footer(differencing, size),
        block_size,
        Some(&link),
    )
    .unwrap();
    let mut file = vec![0; storage.len().unwrap() as usize];
    storage.read_at(&mut file, 0).unwrap();
    let mut layout = Layout::new(size, block_size);
    let end = layout.metadata_end();
    layout.locators[0] = (end, end + 24);
    layout.locators[1] = (end + 512, end + 512 + 32);
    let Sample {
        file: below,
        mut content,
        mut parents,
        ..
    } = parent;
    content.resize(size as usize, 0);
    parents.push(below);
    Sample {
        file,
        content,
        layout,
        parents,
    }
}

/// Opens the disks of a chain for reading, the base first.
pub(crate) fn open_parents(parents: &[Vec<u8>]) -> Option<Box<dyn Image>> {
    let mut image = None;
    for file in parents {
        let storage = FaultStorage::new(file.clone(), BTreeMap::new());
        let backing = Backing::new(Box::new(storage), Gate::open(), "parent");
        image = Some(open(backing, image, true, Tuning::default()).unwrap().0);
    }
    image
}

/// A dynamic disk of another program: blocks anywhere in any order, gaps
/// between them, bitmaps with holes over sectors that hold rubbish, and
/// rubbish behind the last block.
pub(crate) fn foreign_disk(size: u64, block_size: u32, random: &mut Random) -> Sample {
    fill(new_disk(DiskType::Dynamic, size, block_size), random)
}

/// The same as a child.
pub(crate) fn foreign_child(
    parent: Sample,
    size: u64,
    block_size: u32,
    random: &mut Random,
) -> Sample {
    fill(new_child(parent, size, block_size), random)
}

fn fill(disk: Sample, random: &mut Random) -> Sample {
    let Sample {
        mut file,
        mut content,
        layout,
        parents,
    } = disk;
    let block_size = layout.block_size;
    let footer = file[..512].to_vec();
    file.truncate(layout.metadata_end() as usize);
    let mut table = vec![UNALLOCATED; layout.bat_entries as usize];
    let mut blocks: Vec<u32> = (0..layout.bat_entries)
        .filter(|_| random.below(2) == 0)
        .collect();
    for index in (1..blocks.len()).rev() {
        blocks.swap(index, random.below(index as u64 + 1) as usize);
    }
    for block in blocks {
        file.extend(vec![0xee; 512 * random.below(4) as usize]);
        table[block as usize] = (file.len() / 512) as u32;
        let mut bitmap = Bitmap::new(
            vec![0; layout.bitmap_len() as usize],
            layout.block_sectors(),
        );
        for sector in 0..layout.block_sectors() {
            if random.below(3) > 0 {
                bitmap.set(sector..sector + 1);
            }
        }
        if random.below(3) == 0 {
            bitmap.set(0..layout.block_sectors());
        }
        file.extend_from_slice(bitmap.bytes());
        let data = random.bytes(block_size.into());
        let start = block as usize * block_size as usize;
        for sector in (0..layout.block_sectors()).filter(|sector| bitmap.is_set(*sector)) {
            let from = sector as usize * 512;
            if let Some(to) = content.get_mut(start + from..start + from + 512) {
                to.copy_from_slice(&data[from..from + 512]);
            }
        }
        file.extend(data);
    }
    file.extend(vec![0xee; 512 * random.below(200) as usize]);
    file.extend(footer);
    for (block, entry) in table.iter().enumerate() {
        let at = layout.bat_offset as usize + block * 4;
        file[at..at + 4].copy_from_slice(&entry.to_be_bytes());
    }
    Sample {
        file,
        content,
        layout,
        parents,
    }
}
