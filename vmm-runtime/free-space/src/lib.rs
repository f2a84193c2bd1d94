//! Which bytes of a disk no file system on it uses, so that a compacting copy
//! may leave them out.
//!
//! [`free_space`] reads the partition table and then the file systems' own
//! accounts: ext2, ext3, ext4, FAT12, FAT16, FAT32, exFAT, NTFS and XFS. It
//! reads only, and it is a pessimist: a file system that wasn't put away
//! cleanly, that has a feature this crate doesn't know, or whose accounts don't
//! agree with each other is left [`Outcome::Untouched`] with the reason. What
//! lies between partitions, in front of and behind a file system is never free:
//! boot loaders live there.
//!
//! [`contents`] tells what is on a disk without reading those accounts.
//!
//! It knows bytes. It must not know VHD, Kubernetes, or how to write.
//!
//! Nothing that is on the disk makes it panic, run in circles, or hold more than
//! [`MAX_MEMORY`] bytes.
//!
//! ```no_run
//! use std::os::unix::fs::FileExt;
//!
//! struct Raw(std::fs::File, u64);
//!
//! impl paddock_free_space::Disk for Raw {
//!     fn size(&self) -> u64 {
//!         self.1
//!     }
//!     fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
//!         self.0.read_exact_at(buf, offset)
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let file = std::fs::File::open("disk.raw")?;
//! let size = file.metadata()?.len();
//! for free in paddock_free_space::free_space(&Raw(file, size))?.free_ranges() {
//!     println!("{}..{}", free.start, free.end);
//! }
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod bitmap;
mod checksum;
mod contents;
mod disk;
mod error;
mod exfat;
mod ext;
mod fat;
mod fields;
mod free_list;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod identify;
mod ntfs;
mod report;
mod table;
mod walk;
mod xfs;

pub use contents::{Content, Contents, contents};
pub use disk::Disk;
pub use error::WalkError;
pub use free_list::{MAX_MEMORY, MAX_RANGES};
pub use report::{Kind, Outcome, PartitionTable, Report, Volume};
pub use walk::free_space;
