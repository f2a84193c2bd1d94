//! How large a disk may be.

use std::fmt;

/// The size of a virtual hard disk in bytes: a multiple of 512 from 1 MiB to
/// 2040 GiB, the most that the format's 32-bit sector numbers leave room for
/// (the figure is that of Virtual Server and Hyper-V).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskSize(u64);

impl DiskSize {
    /// The smallest size, 1 MiB.
    pub const MIN: DiskSize = DiskSize(1 << 20);
    /// The largest size, 2040 GiB.
    pub const MAX: DiskSize = DiskSize(2040 << 30);

    /// Checks a size in bytes.
    pub fn from_bytes(bytes: u64) -> Result<DiskSize, DiskSizeError> {
        if !bytes.is_multiple_of(512) {
            Err(DiskSizeError::NotSectors { bytes })
        } else if bytes < DiskSize::MIN.0 {
            Err(DiskSizeError::TooSmall { bytes })
        } else if bytes > DiskSize::MAX.0 {
            Err(DiskSizeError::TooLarge { bytes })
        } else {
            Ok(DiskSize(bytes))
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for DiskSize {
    type Error = DiskSizeError;

    fn try_from(bytes: u64) -> Result<DiskSize, DiskSizeError> {
        DiskSize::from_bytes(bytes)
    }
}

impl fmt::Display for DiskSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

/// Why a number of bytes is not the size of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskSizeError {
    /// Not a multiple of 512.
    #[error("a disk of {bytes} bytes: the size must be a multiple of 512")]
    NotSectors {
        /// What was asked for.
        bytes: u64,
    },
    /// Less than 1 MiB.
    #[error("a disk of {bytes} bytes: the smallest disk has 1 MiB")]
    TooSmall {
        /// What was asked for.
        bytes: u64,
    },
    /// More than 2040 GiB.
    #[error("a disk of {bytes} bytes: the largest VHD has 2040 GiB")]
    TooLarge {
        /// What was asked for.
        bytes: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_those_documented() {
        assert_eq!(
            DiskSize::from_bytes(1 << 20).map(DiskSize::bytes),
            Ok(1_048_576)
        );
        assert_eq!(
            DiskSize::from_bytes(2040 << 30).map(DiskSize::bytes),
            Ok(2_190_433_320_960)
        );
        assert_eq!(
            DiskSize::from_bytes((1 << 20) - 512),
            Err(DiskSizeError::TooSmall { bytes: 1_048_064 })
        );
        assert_eq!(
            DiskSize::from_bytes((2040 << 30) + 512),
            Err(DiskSizeError::TooLarge {
                bytes: 2_190_433_321_472
            })
        );
        assert_eq!(
            DiskSize::from_bytes((1 << 20) + 1),
            Err(DiskSizeError::NotSectors { bytes: 1_048_577 })
        );
    }
}
