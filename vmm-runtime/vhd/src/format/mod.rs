//! The structures of a VHD file, one module each. All numbers on disk are
//! big-endian. Source: Microsoft's Virtual Hard Disk Image Format
//! Specification, version 1.0.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a disk keeps its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DiskType {
    /// All space is reserved when the disk is made.
    Fixed,
    /// The file grows as blocks are written for the first time.
    Dynamic,
}

impl fmt::Display for DiskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskType::Fixed => "fixed",
            DiskType::Dynamic => "dynamic",
        })
    }
}
