//! What the fuzz targets call. Not part of the library proper: compiled only
//! with `--cfg fuzzing`.
//!
//! An input is a sparse disk: a byte of flags (1: checksums are forgiven), the
//! disk's size in sectors of 512 bytes, and records. A record is the number of
//! a sector and a length. That many bytes follow, which lie there; where the
//! length's highest bit is set, the rest of it counts sectors, and one byte
//! follows that fills them. Numbers are little-endian, of four and two bytes.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use crate::disk::{Disk, Part};
use crate::error::Stop;
use crate::free_list::FreeList;
use crate::report::{Kind, Outcome};

/// The largest disk, in sectors: 64 MiB.
const MAX_SECTORS: u64 = 128 << 10;

/// How many sectors an input may fill.
const MAX_FILLED: usize = 4 << 10;

/// How many bytes a walk may read of each byte of a disk, and how many beside.
const MAX_READ: (u64, u64) = (4, 64 << 20);

thread_local! {
    static FORGIVING: Cell<bool> = const { Cell::new(false) };
}

/// Whether wrong checksums count as right.
pub(crate) fn forgiving() -> bool {
    FORGIVING.get()
}

struct Sparse {
    size: u64,
    sectors: BTreeMap<u64, [u8; 512]>,
    read: Cell<u64>,
}

impl Sparse {
    fn unpack(data: &[u8]) -> Option<Sparse> {
        let (flags, mut rest) = data.split_first()?;
        FORGIVING.set(flags & 1 != 0);
        let size = u64::from(number(&mut rest, 4)?).min(MAX_SECTORS) * 512;
        let mut sectors = BTreeMap::new();
        while let (Some(first), Some(len)) = (number(&mut rest, 4), number(&mut rest, 2)) {
            let first = u64::from(first);
            let fill = len & 0x8000 != 0;
            let (count, pieces): (usize, Vec<&[u8]>) = if fill {
                let byte = rest.get(..1)?;
                rest = &rest[1..];
                ((len & 0x7fff) as usize, vec![byte; (len & 0x7fff) as usize])
            } else {
                let (bytes, after) = rest.split_at(rest.len().min(len as usize));
                rest = after;
                (bytes.len().div_ceil(512), bytes.chunks(512).collect())
            };
            if sectors.len() + count > MAX_FILLED {
                break;
            }
            for (number, piece) in (first..).zip(pieces) {
                let mut sector = [if fill { piece[0] } else { 0 }; 512];
                if !fill {
                    sector[..piece.len()].copy_from_slice(piece);
                }
                sectors.insert(number, sector);
            }
        }
        Some(Sparse {
            size,
            sectors,
            read: Cell::new(0),
        })
    }
}

fn number(rest: &mut &[u8], len: usize) -> Option<u32> {
    let (bytes, after) = rest.split_at_checked(len)?;
    *rest = after;
    let mut wide = [0; 4];
    wide[..len].copy_from_slice(bytes);
    Some(u32::from_le_bytes(wide))
}

impl Disk for Sparse {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        assert!(end <= self.size, "nothing beyond the end is read");
        let read = self.read.get() + buf.len() as u64;
        self.read.set(read);
        assert!(read <= self.size * MAX_READ.0 + MAX_READ.1, "{read} bytes");
        buf.fill(0);
        for (number, sector) in self.sectors.range(offset / 512..end.div_ceil(512)) {
            let start = number * 512;
            let (from, to) = (start.max(offset), (start + 512).min(end));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&sector[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }
}

fn check(free: &[Range<u64>], volume: Range<u64>) {
    for pair in free.windows(2) {
        assert!(pair[0].end < pair[1].start, "sorted, with gaps: {pair:?}");
    }
    for range in free {
        assert!(range.start < range.end, "{range:?}");
        assert!(volume.start <= range.start && range.end <= volume.end);
    }
}

/// Walks a disk, from its partition table on.
pub fn tables(data: &[u8]) {
    let Some(disk) = Sparse::unpack(data) else {
        return;
    };
    let Ok(report) = crate::free_space(&disk) else {
        return;
    };
    for volume in &report.volumes {
        assert!(volume.start + volume.len <= disk.size);
        if let Outcome::Walked { free, free_bytes } = &volume.outcome {
            check(free, volume.start..volume.start + volume.len);
            let sum: u64 = free.iter().map(|range| range.end - range.start).sum();
            assert_eq!(*free_bytes, sum);
        }
    }
    check(&report.free_ranges(), 0..disk.size);
}

/// Walks a disk as one file system of this kind.
pub fn file_system(kind: Kind, data: &[u8]) {
    let Some(disk) = Sparse::unpack(data) else {
        return;
    };
    let part = Part::whole(&disk);
    let mut free = FreeList::new(0..disk.size, 1 << 16);
    let mut found = kind;
    let walked: Result<(), Stop> = match kind {
        Kind::Ext4 => crate::ext::walk(&part, &mut found, &mut free),
        Kind::Fat32 => crate::fat::walk(&part, &mut found, &mut free),
        Kind::ExFat => crate::exfat::walk(&part, &mut free),
        Kind::Ntfs => crate::ntfs::walk(&part, &mut free),
        _ => crate::xfs::walk(&part, &mut free),
    };
    match walked {
        Ok(()) => check(&free.finish(), 0..disk.size),
        Err(Stop::Doubt(reason)) => assert!(!reason.is_empty()),
        Err(Stop::Failed(error)) => panic!("{error}"),
    }
}
