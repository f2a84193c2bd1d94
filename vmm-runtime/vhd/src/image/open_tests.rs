//! Files that are damaged, hostile, or something else.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::random::Random;
use super::sample::{Sample, footer, foreign_child, foreign_disk, new_disk, open_parents};
use super::{Image, Refusal, Tuning, open};
use crate::block::BlockDevice;
use crate::format::DiskType;
use crate::format::bat::Layout;
use crate::format::footer::{Footer, Kind};
use crate::format::header::{Header, Parent};
use crate::gate::Gate;
use crate::storage::fault::{FaultStorage, Op};
use crate::storage::{Backing, Storage};

const SIZE: u64 = 16 * 4096;

fn dynamic() -> Sample {
    new_disk(DiskType::Dynamic, SIZE, 4096)
}

fn storage(file: &[u8]) -> FaultStorage {
    FaultStorage::new(file.to_vec(), BTreeMap::new())
}

fn open_storage(storage: &FaultStorage, read_only: bool) -> Result<Box<dyn Image>, Refusal> {
    open_child(storage, &[], read_only)
}

fn open_child(
    storage: &FaultStorage,
    parents: &[Vec<u8>],
    read_only: bool,
) -> Result<Box<dyn Image>, Refusal> {
    let backing = Backing::new(Box::new(storage.clone()), Gate::open(), "disk");
    open(
        backing,
        open_parents(parents),
        read_only,
        Tuning {
            growth: 4096,
            ..Tuning::default()
        },
    )
    .map(|(disk, _)| disk)
}

fn refusal(file: &[u8]) -> Refusal {
    match open_storage(&storage(file), true) {
        Ok(_) => panic!("opened"),
        Err(refusal) => refusal,
    }
}

#[track_caller]
fn corrupt(file: &[u8], expected: &str) {
    match refusal(file) {
        Refusal::Corrupt(found) => assert!(found.contains(expected), "{found}"),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn unsupported(file: &[u8], expected: &str) {
    match refusal(file) {
        Refusal::Unsupported(found) => assert!(found.contains(expected), "{found}"),
        other => panic!("{other:?}"),
    }
}

fn bytes_of(storage: &FaultStorage) -> Vec<u8> {
    let mut bytes = vec![0; storage.len().unwrap() as usize];
    storage.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[track_caller]
fn reads(disk: &dyn BlockDevice, content: &[u8]) {
    let mut found = vec![0; content.len()];
    disk.read_at(&mut found, 0).unwrap();
    assert!(found == content);
}

#[test]
fn other_formats_are_named() {
    unsupported(b"", "empty");
    unsupported(&[0; 100_000], "no VHD footer");
    unsupported(&[&b"vhdxfile"[..], &[0; 4096]].concat(), "a VHDX");
    unsupported(&[&b"QFI\xfb"[..], &[0; 4096]].concat(), "a qcow2 image");
    unsupported(b"KDMV", "a VMDK");
}

#[test]
fn a_differencing_disk_is_named_with_its_parent() {
    let mut file = dynamic().file;
    let parent = Parent {
        unique_id: Uuid::from_bytes([3; 16]),
        name: "base\u{7}.vhd".to_owned(),
        ..Parent::default()
    };
    let header = Header {
        bat_offset: 1536,
        bat_entries: 16,
        block_size: 4096,
        parent,
    };
    file[512..1536].copy_from_slice(&header.encode());
    let footer = Footer {
        kind: Kind::Differencing,
        ..footer(DiskType::Dynamic, SIZE)
    }
    .encode();
    let end = file.len() - 512;
    file[..512].copy_from_slice(&footer);
    file[end..].copy_from_slice(&footer);
    unsupported(
        &file,
        "a differencing VHD (child of 'base.vhd', 03030303-0303-0303-0303-030303030303) and can't",
    );
}

/// The beginning of a fixed disk belongs to the guest: it can't make another
/// kind of disk of it.
#[test]
fn a_fixed_disk_stays_one_whatever_the_guest_writes() {
    let Sample { mut file, .. } = new_disk(DiskType::Fixed, SIZE, 4096);
    let inner = dynamic().file;
    file[..inner.len()].copy_from_slice(&inner);
    let disk = open_storage(&storage(&file), false).unwrap();
    reads(&*disk, &file[..SIZE as usize]);
    file[..4].copy_from_slice(b"QFI\xfb");
    reads(
        &*open_storage(&storage(&file), false).unwrap(),
        &file[..SIZE as usize],
    );
}

/// Whether nothing was done to it but syncs.
fn is_unchanged(storage: &FaultStorage) -> bool {
    storage.log().iter().all(|op| matches!(op, Op::Sync))
}

#[test]
fn footers_of_511_bytes_are_read() {
    let mut random = Random::new(1);
    let Sample {
        mut file, content, ..
    } = foreign_disk(SIZE, 4096, &mut random);
    file.pop();
    let old = storage(&file);
    let disk = open_storage(&old, false).unwrap();
    reads(&*disk, &content);
    assert!(is_unchanged(&old), "opening changed it");
    disk.write_at(&[7; SIZE as usize], 0).unwrap();
    disk.put_away().unwrap();
    reads(&*open_storage(&old, false).unwrap(), &[7; SIZE as usize]);
    let Sample {
        mut file, content, ..
    } = new_disk(DiskType::Fixed, SIZE, 4096);
    file.pop();
    reads(&*open_storage(&storage(&file), false).unwrap(), &content);
}

#[test]
fn a_lost_tail_is_written_again_and_a_reader_leaves_it() {
    for seed in 0..20 {
        let Sample {
            mut file, content, ..
        } = foreign_disk(SIZE, 4096, &mut Random::new(seed));
        let footer = file[..512].to_vec();
        let end = file.len() - 512;
        match seed % 3 {
            0 => file.truncate(end),
            1 => file[end..].fill(0),
            _ => file[end + 100] ^= 1,
        }
        let damaged = storage(&file);
        reads(&*open_storage(&damaged, true).unwrap(), &content);
        assert_eq!(damaged.position(), 0);
        reads(&*open_storage(&damaged, false).unwrap(), &content);
        let repaired = bytes_of(&damaged);
        assert!(repaired.ends_with(&footer));
        let again = storage(&repaired);
        reads(&*open_storage(&again, false).unwrap(), &content);
        assert!(is_unchanged(&again), "repaired twice");
    }
}

#[test]
fn a_lost_head_copy_is_written_again() {
    let Sample {
        mut file, content, ..
    } = foreign_disk(SIZE, 4096, &mut Random::new(5));
    let whole = file.clone();
    file[70] ^= 0x10;
    let damaged = storage(&file);
    reads(&*open_storage(&damaged, false).unwrap(), &content);
    assert!(bytes_of(&damaged) == whole);
    // The end alone is enough, even for a reader; none at all is not.
    reads(&*open_storage(&storage(&file), true).unwrap(), &content);
    let end = file.len() - 512;
    file[end + 70] ^= 1;
    corrupt(&file, "checksum");
}

#[test]
fn damage_is_told() {
    let edit = |at: usize, bytes: &[u8]| {
        let mut file = dynamic().file;
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    corrupt(&edit(512, b"X"), "no dynamic header");
    corrupt(
        &edit(600, b"X"),
        "its dynamic header at byte 512: its checksum is",
    );
    corrupt(
        &edit(1536, &0u32.to_be_bytes()),
        "block 0 at sector 0 lies over the copy of the footer",
    );
    corrupt(
        &edit(1540, &3u32.to_be_bytes()),
        "block 1 at sector 3 lies over the table",
    );
    corrupt(&edit(1536, &4u32.to_be_bytes()), "past the end");
    let mut short = dynamic().file;
    short.truncate(1700);
    corrupt(&short, "its table is said to be at 1536, outside");
    short.truncate(1000);
    corrupt(&short, "outside of the file's 1000 bytes");
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for size in [0, 511, 1 << 41, u64::MAX, u64::MAX - 511] {
        for (kind, disk_type) in [
            (Kind::Fixed, DiskType::Fixed),
            (Kind::Dynamic, DiskType::Dynamic),
        ] {
            let footer = Footer {
                kind,
                current_size: size,
                ..footer(disk_type, 512)
            }
            .encode();
            corrupt(
                &[&footer[..], &[0; 4096], &footer].concat(),
                "its footer gives a size",
            );
        }
    }
    let fixed = footer(DiskType::Fixed, 8192).encode();
    corrupt(
        &[&[0; 8191][..], &fixed].concat(),
        "only 8191 bytes lie before its footer",
    );
    let header_offset = Some(u64::MAX - 100);
    let far = Footer {
        header_offset,
        ..footer(DiskType::Dynamic, 8192)
    }
    .encode();
    corrupt(
        &[&far[..], &[0; 4096], &far].concat(),
        "outside of the file",
    );
}

/// Blocks are placed by us where data starts on 4 KiB, behind those of others
/// that are not.
#[test]
fn new_blocks_are_aligned() {
    let block_size = crate::format::bat::BLOCK_SIZE;
    let Sample {
        mut file, layout, ..
    } = new_disk(DiskType::Dynamic, 8 << 20, block_size);
    // A block of another program at sector 4, its bitmap all set.
    file.truncate(layout.metadata_end() as usize);
    file.extend([0xff; 512]);
    file.extend(vec![5; block_size as usize]);
    file.extend(footer(DiskType::Dynamic, 8 << 20).encode());
    file[1536..1540].copy_from_slice(&4u32.to_be_bytes());
    let storage = storage(&file);
    let disk = open_storage(&storage, false).unwrap();
    disk.write_at(&[6], 3 << 20).unwrap();
    disk.write_at(&[6], 5 << 20).unwrap();
    disk.put_away().unwrap();
    let bytes = bytes_of(&storage);
    let entries: Vec<u32> = crate::format::bat::decode(&bytes[1536..1552]).collect();
    assert_eq!(entries, [4, 4103, 8207, u32::MAX]);
    assert_eq!(entries[1] % 8, 7);
    assert_eq!(
        bytes.len() as u64,
        layout.region(8207) + Layout::region_len(&layout) + 512
    );
    assert_eq!(bytes[4103 * 512..4104 * 512], [0xff; 512]);
}

/// No file makes opening or using it panic, or lets a write damage metadata.
#[test]
fn damaged_files_do_no_harm() {
    let (mut opened, mut children) = (0, 0);
    for seed in 0..3000 {
        let mut random = Random::new(seed);
        let disk = foreign_disk(SIZE, 4096, &mut random);
        let Sample {
            mut file,
            layout,
            parents,
            ..
        } = match seed % 3 {
            0 => foreign_child(disk, SIZE, 4096, &mut random),
            _ => disk,
        };
        for _ in 0..1 + random.below(4) {
            // Mostly where the metadata is.
            let end = if random.below(3) == 0 {
                file.len() as u64
            } else {
                layout.metadata_end()
            };
            let at = random.below(end) as usize;
            file[at] = random.next() as u8;
        }
        if random.below(4) == 0 {
            file.truncate(random.below(file.len() as u64 + 1) as usize);
        }
        let storage = storage(&file);
        let Ok(disk) = open_child(&storage, &parents, false) else {
            continue;
        };
        opened += 1;
        children += u32::from(seed % 3 == 0);
        let size = disk.size();
        let mut content = vec![0; size as usize];
        disk.read_at(&mut content, 0).unwrap();
        for _ in 0..5 {
            let range = random.range(size, 9000);
            let bytes = random.bytes(range.end - range.start);
            disk.write_at(&bytes, range.start).unwrap();
            content[range.start as usize..range.end as usize].copy_from_slice(&bytes);
        }
        disk.put_away().unwrap();
        let disk = open_child(&storage, &parents, false).unwrap();
        reads(&*disk, &content);
    }
    assert!(opened > 500 && children > 150, "{opened} {children}");
}
