//! A disk with more free ranges than a report holds.

#![allow(clippy::unwrap_used)]

use std::io;

use paddock_free_space::{Disk, Kind, MAX_MEMORY, MAX_RANGES, Outcome, free_space};

/// A FAT32 with clusters of 512 bytes, of which every other is free, and of
/// every 4096 the first 100.
struct Holes;

const CLUSTERS: u64 = 5 << 20;
const RESERVED: u64 = 32;
const TABLE: u64 = (CLUSTERS + 2).div_ceil(128);
const DATA: u64 = (RESERVED + TABLE) * 512;

fn is_free(cluster: u64) -> bool {
    cluster > 2 && (cluster % 2 == 1 || cluster % 4096 < 100)
}

impl Disk for Holes {
    fn size(&self) -> u64 {
        DATA + CLUSTERS * 512
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        buf.fill(0);
        if offset == 0 {
            let mut boot = [0; 512];
            boot[0] = 0xeb;
            boot[11..17].copy_from_slice(&[0, 2, 1, RESERVED as u8, 0, 1]);
            boot[21] = 0xf8;
            boot[32..36].copy_from_slice(&((DATA / 512 + CLUSTERS) as u32).to_le_bytes());
            boot[36..40].copy_from_slice(&(TABLE as u32).to_le_bytes());
            boot[44] = 2;
            boot[510..].copy_from_slice(&[0x55, 0xaa]);
            buf[..512].copy_from_slice(&boot);
        }
        let Some(place) = offset.checked_sub(RESERVED * 512) else {
            return Ok(());
        };
        for (entry, cluster) in buf.chunks_exact_mut(4).zip(place / 4..) {
            let value = match cluster {
                0 => 0x0fff_fff8,
                _ if is_free(cluster) => 0,
                _ => 0x0fff_ffff_u32,
            };
            entry.copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }
}

/// The most memory that this process held, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[test]
fn the_shortest_ranges_go_and_memory_is_bounded() {
    let before = peak();
    let report = free_space(&Holes).unwrap();
    let held = peak() - before;
    assert!(held < MAX_MEMORY, "{held} bytes");
    let volume = &report.volumes[0];
    assert_eq!(volume.kind, Kind::Fat32);
    let Outcome::Walked { free, .. } = &volume.outcome else {
        panic!("{:?}", volume.outcome);
    };
    // There are some 2.5 million ranges, all but 1281 of one cluster. The odd
    // cluster in front of a hundred belongs to it; the last hundred is cut off.
    assert!(free.len() <= MAX_RANGES);
    let end = CLUSTERS + 2;
    let expected: Vec<_> = (0..=CLUSTERS / 4096)
        .map(|index| {
            let first = (index * 4096).max(4) - 1;
            let last = (index * 4096 + 100).min(end);
            DATA + (first - 2) * 512..DATA + (last - 2) * 512
        })
        .collect();
    assert_eq!(*free, expected);
}
