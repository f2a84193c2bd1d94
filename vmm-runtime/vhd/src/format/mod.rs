//! The structures of a VHD file, one module each. All numbers on disk are
//! big-endian. Source: Microsoft's Virtual Hard Disk Image Format
//! Specification, version 1.0.

pub(crate) mod bat;
pub(crate) mod bitmap;
pub(crate) mod footer;
pub(crate) mod foreign;
pub(crate) mod geometry;
pub(crate) mod header;
pub(crate) mod locator;

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in a sector, the unit of the format.
pub(crate) const SECTOR: u64 = 512;

/// How a disk keeps its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DiskType {
    /// All space is reserved when the disk is made.
    Fixed,
    /// The file grows as blocks are written for the first time.
    Dynamic,
    /// As dynamic, and what was never written is looked for in a parent.
    Differencing,
}

impl fmt::Display for DiskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskType::Fixed => "fixed",
            DiskType::Dynamic => "dynamic",
            DiskType::Differencing => "differencing",
        })
    }
}

/// The ones' complement of the sum of all bytes but those of the field itself.
fn checksum(bytes: &[u8], field: usize) -> u32 {
    let sum = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()))
    };
    let (before, after) = bytes.split_at(field.min(bytes.len()));
    !sum(before).wrapping_add(sum(after.get(4..).unwrap_or_default()))
}

/// The `N` bytes at `offset`; zeros behind the end of `bytes`.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(found) = bytes.get(offset..offset + N) {
        out.copy_from_slice(found);
    }
    out
}

fn be16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes(array(bytes, offset))
}

fn be32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(array(bytes, offset))
}

fn be64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(array(bytes, offset))
}
