//! Disks to read from, or to serve.

use std::path::Path;

use clap::ValueEnum;
use paddock_vhd::{Access, BlockDevice, OpenOptions, RawDisk, Vhd};

use crate::disk_path::{DiskPath, Search};
use crate::failure::Failure;
use crate::raw::RawSource;

/// What a file is. Never guessed: what a guest writes to its disk could make
/// it look like something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// A virtual hard disk in the VHD format
    #[default]
    Vhd,
    /// A raw image, or a block device
    Raw,
}

/// A disk that is open.
pub(crate) enum Source {
    Vhd(Vhd),
    Raw(RawDisk),
}

impl Source {
    pub(crate) fn open(
        path: &Path,
        format: Format,
        access: Access,
        search: &Search,
    ) -> Result<Source, Failure> {
        Source::open_past_cache(path, format, access, search, false)
    }

    /// As [`Source::open`]; `direct`: whether the disk's own file is read and
    /// written past the page cache.
    pub(crate) fn open_past_cache(
        path: &Path,
        format: Format,
        access: Access,
        search: &Search,
        direct: bool,
    ) -> Result<Source, Failure> {
        match format {
            Format::Raw => {
                let raw = RawSource::open(path, access)?;
                raw.into_disk(direct).map(Source::Raw)
            }
            Format::Vhd => {
                let disk = DiskPath::existing(path)?;
                let options = OpenOptions::new(access)
                    .search(search.resolve()?)
                    .direct(direct);
                let vhd = options.open(&disk.pool, &disk.name)?;
                Ok(Source::Vhd(vhd))
            }
        }
    }

    pub(crate) fn device(&self) -> &dyn BlockDevice {
        match self {
            Source::Vhd(vhd) => vhd,
            Source::Raw(raw) => raw,
        }
    }
}
