//! exFAT against exfatprogs. No tool writes files without mounting, so that is
//! done here; fsck.exfat says whether it was done right.

#![allow(clippy::unwrap_used)]

mod support;

use std::ops::Range;
use std::path::Path;

use paddock_free_space::Kind;
use support::*;

/// A file system that mkfs.exfat made.
struct ExFat {
    disk: Raw,
    fat: u64,
    heap: u64,
    cluster: u64,
    clusters: u64,
    root: u64,
    bitmap: u64,
    used: Vec<bool>,
    /// Where the next folder entry goes.
    end: u64,
}

impl ExFat {
    fn make(path: &Path, size: u64, options: &[&str]) -> Option<ExFat> {
        let disk = Raw::create(path, size);
        let mut args = options.to_vec();
        args.push(path.to_str().unwrap());
        must("mkfs.exfat", &args)?;
        let boot = disk.get(0, 512);
        let le32 = |at: usize| u64::from(u32::from_le_bytes(boot[at..at + 4].try_into().unwrap()));
        let sector = 1_u64 << boot[108];
        let cluster = sector << boot[109];
        let (heap, clusters) = (le32(88) * sector, le32(92));
        let root = heap + (le32(96) - 2) * cluster;
        let mut end = root;
        let mut bitmap = 0;
        loop {
            let entry = disk.get(end, 32);
            match entry[0] {
                0 => break,
                0x81 => bitmap = u64::from(u32::from_le_bytes(entry[20..24].try_into().unwrap())),
                _ => {}
            }
            end += 32;
        }
        let bitmap = heap + (bitmap - 2) * cluster;
        let bits = disk.get(bitmap, clusters.div_ceil(8) as usize);
        let used = (0..clusters as usize)
            .map(|at| bits[at / 8] >> (at % 8) & 1 == 1)
            .collect();
        let fat = le32(80) * sector;
        Some(ExFat {
            disk,
            fat,
            heap,
            cluster,
            clusters,
            root,
            bitmap,
            used,
            end,
        })
    }

    fn place(&self, index: u64) -> u64 {
        self.heap + index * self.cluster
    }

    /// Adds a file whose clusters are these, counted from 0.
    fn add(&mut self, name: &str, clusters: &[u64], bytes: &[u8]) {
        let contiguous = clusters.windows(2).all(|pair| pair[1] == pair[0] + 1);
        for (at, &index) in clusters.iter().enumerate() {
            assert!(!std::mem::replace(&mut self.used[index as usize], true));
            let byte = self.disk.get(self.bitmap + index / 8, 1)[0] | 1 << (index % 8);
            self.disk.put(self.bitmap + index / 8, &[byte]);
            let piece = bytes.chunks(self.cluster as usize).nth(at).unwrap();
            self.disk.put(self.place(index), piece);
            if !contiguous {
                let next = clusters
                    .get(at + 1)
                    .map_or(u32::MAX, |next| *next as u32 + 2);
                self.disk
                    .put(self.fat + (index + 2) * 4, &next.to_le_bytes());
            }
        }
        let mut entries = vec![0; 96];
        entries[..2].copy_from_slice(&[0x85, 2]);
        entries[4] = 0x20;
        for stamp in [8, 12, 16] {
            entries[stamp..stamp + 4].copy_from_slice(&0x5000_0000_u32.to_le_bytes());
        }
        entries[32] = 0xc0;
        entries[33] = if contiguous { 3 } else { 1 };
        entries[35] = name.len() as u8;
        let hash = name
            .bytes()
            .flat_map(|byte| [byte, 0])
            .fold(0_u16, |hash, byte| {
                hash.rotate_right(1).wrapping_add(byte.into())
            });
        entries[36..38].copy_from_slice(&hash.to_le_bytes());
        entries[40..48].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        entries[52..56].copy_from_slice(&(clusters[0] as u32 + 2).to_le_bytes());
        entries[56..64].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        entries[64] = 0xc1;
        for (at, byte) in name.bytes().enumerate() {
            entries[66 + at * 2] = byte;
        }
        let sum = entries
            .iter()
            .enumerate()
            .filter(|(at, _)| !matches!(at, 2 | 3))
            .fold(0_u16, |sum, (_, &byte)| {
                sum.rotate_right(1).wrapping_add(byte.into())
            });
        entries[2..4].copy_from_slice(&sum.to_le_bytes());
        self.disk.put(self.end, &entries);
        self.end += 96;
    }

    fn free(&self) -> Vec<Range<u64>> {
        merged(
            (0..self.clusters)
                .filter(|index| !self.used[*index as usize])
                .map(|index| self.place(index)..self.place(index + 1))
                .collect(),
        )
    }
}

const CASES: [(u64, &[&str]); 5] = [
    (8 * MIB, &[]),
    (64 * MIB, &["-c", "512"]),
    (100 * MIB + 512, &["-c", "4096"]),
    (700 * MIB, &["-c", "131072"]),
    (8 * GIB, &["-b", "4194304"]),
];

#[test]
fn free_clusters_are_those_that_no_file_was_given() {
    for (size, options) in CASES {
        let place = Place::new();
        let path = place.path("disk");
        let Some(mut made) = ExFat::make(&path, size, options) else {
            return;
        };
        let last = made.clusters - 1;
        let files: [(&str, Vec<u64>); 4] = [
            ("A.BIN", (320..329).collect()),
            ("B.BIN", vec![333, 331, 340, 339]),
            ("C.BIN", vec![last]),
            (
                "D.BIN",
                vec![last / 2, last / 2 + 1, last / 2 + 5, last / 3],
            ),
        ];
        let bytes = |name: &str, clusters: &[u64]| {
            let len = clusters.len() as u64 * made.cluster - 100;
            noise(name.as_bytes()[0].into(), len as usize)
        };
        let files: Vec<_> = files
            .iter()
            .map(|(name, clusters)| (*name, clusters.clone(), bytes(name, clusters)))
            .collect();
        for (name, clusters, bytes) in &files {
            made.add(name, clusters, bytes);
        }
        let image = place.text("disk");
        must("fsck.exfat", &["-n", &image]).unwrap();
        let free = walked(&path, Kind::ExFat);
        same_ranges(&free, &made.free(), &format!("{options:?}"));
        let text = must("dump.exfat", &[&image]).unwrap();
        let counted = text
            .lines()
            .find_map(|line| line.strip_prefix("Free Clusters:"))
            .map(|rest| numbers(rest)[0])
            .unwrap();
        let found: u64 = free.iter().map(|range| range.end - range.start).sum();
        assert_eq!(found, counted * made.cluster);

        trash(&path, &free);
        must("fsck.exfat", &["-n", &image]).unwrap();
        for (name, clusters, bytes) in &files {
            for (piece, index) in bytes.chunks(made.cluster as usize).zip(clusters) {
                assert!(
                    made.disk.get(made.place(*index), piece.len()) == piece,
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn what_leaves_doubts_is_untouched() {
    let place = Place::new();
    let path = place.path("disk");
    let Some(made) = ExFat::make(&path, 64 * MIB, &["-c", "512"]) else {
        return;
    };
    let disk = &made.disk;
    let clean = walked(&path, Kind::ExFat);
    let entry_of_bitmap = (made.root..)
        .step_by(32)
        .find(|at| disk.get(*at, 1) == [0x81])
        .unwrap();
    let chain = made.fat + (made.bitmap - made.heap) / made.cluster * 4 + 8;
    for (at, bytes, expected) in [
        (106, &[2][..], "not unmounted cleanly"),
        (106, &[4], "failures of its medium"),
        (106, &[1], "expected 0x100 and one"),
        (110, &[2], "expected 0x100 and one"),
        (105, &[2], "expected 0x100 and one"),
        (20, &[1], "bytes where exFAT has none"),
        (108, &[8], "sectors have 2^8"),
        (92, &[0, 0, 0x10], "expected them apart"),
        (120, &[7], "checksum of its boot region"),
        (11 * 512 + 508, &[7], "checksum of its boot region"),
        (
            entry_of_bitmap,
            &[0x82],
            "doesn't name its allocation bitmap",
        ),
        (entry_of_bitmap + 1, &[1], "as TexFAT has"),
        (entry_of_bitmap + 32, &[0x81], "two allocation bitmaps"),
        (entry_of_bitmap + 24, &[1], "allocation bitmap has"),
        (chain, &[0xff; 4], "bitmap is too short"),
        (chain, &[1, 0, 0, 0], "leads to 1,"),
        (chain, &[2, 0, 0, 0], "clusters: run fsck.exfat"),
        (made.bitmap, &[0xfe], "are said to be free"),
    ] {
        let before = disk.get(at, bytes.len());
        assert_ne!(before, bytes, "{expected}");
        disk.put(at, bytes);
        let reason = untouched(&path);
        assert!(reason.contains(expected), "{reason} / {expected}");
        disk.put(at, &before);
    }
    assert_eq!(walked(&path, Kind::ExFat), clean);
}
