//! What a new disk consists of before anything is written to it.

use uuid::Uuid;

use crate::block::IoError;
use crate::format::DiskType;
use crate::format::bat::Layout;
use crate::format::footer::{self, Footer};
use crate::format::header::{Header, Locator, Parent};
use crate::format::{SECTOR, locator};
use crate::storage::Backing;

/// What a new differencing disk is told of its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewParent {
    pub(crate) unique_id: Uuid,
    /// Seconds since 2000-01-01 UTC.
    pub(crate) modified: u32,
    pub(crate) name: String,
    /// Begins with `.\`, relative to the child's folder.
    pub(crate) relative: Option<String>,
    pub(crate) absolute: Option<String>,
}

impl NewParent {
    /// The header's fields, and the locators' bytes and where they belong:
    /// one behind the other from `offset` on, which is at a sector.
    pub(crate) fn place(&self, offset: u64) -> (Parent, Vec<(u64, Vec<u8>)>) {
        let mut parent = Parent {
            unique_id: self.unique_id,
            modified: self.modified,
            name: self.name.clone(),
            ..Parent::default()
        };
        let mut texts = Vec::new();
        let mut at = offset;
        let relative = self.relative.iter().map(|path| (locator::RELATIVE, path));
        let absolute = self.absolute.iter().map(|path| (locator::ABSOLUTE, path));
        for (slot, (platform, path)) in parent.locators.iter_mut().zip(relative.chain(absolute)) {
            let mut bytes = locator::encode(path);
            // Paths are far shorter than what 32 bits count.
            let length = bytes.len() as u32;
            let space = length.next_multiple_of(SECTOR as u32);
            *slot = Locator {
                platform,
                space,
                length,
                offset: at,
            };
            bytes.resize(space as usize, 0);
            texts.push((at, bytes));
            at += u64::from(space);
        }
        (parent, texts)
    }

    /// Bytes that the locators take.
    pub(crate) fn len(&self) -> u64 {
        let (_, texts) = self.place(0);
        texts.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }
}

/// Writes a new disk into an empty storage and syncs it. A fixed disk's space
/// is the caller's to reserve. `parent`: of a differencing disk.
pub(crate) fn format_new(
    backing: &Backing,
    disk_type: DiskType,
    footer: &Footer,
    block_size: u32,
    parent: Option<&NewParent>,
) -> Result<(), IoError> {
    let footer_bytes = footer.encode();
    match disk_type {
        DiskType::Fixed => backing.write(&footer_bytes, footer.current_size)?,
        DiskType::Dynamic | DiskType::Differencing => {
            let layout = Layout::new(footer.current_size, block_size);
            let end = layout.metadata_end();
            let (parent, texts) = parent.map(|parent| parent.place(end)).unwrap_or_default();
            let end = texts
                .last()
                .map_or(end, |(offset, bytes)| offset + bytes.len() as u64);
            let header = Header {
                bat_offset: layout.bat_offset,
                bat_entries: layout.bat_entries,
                block_size,
                parent,
            };
            backing.write(&footer_bytes, end)?;
            for (offset, bytes) in &texts {
                backing.write(bytes, *offset)?;
            }
            // The padding of the table is unallocated as well.
            let table = vec![0xff; layout.bat_len() as usize];
            backing.write(&table, layout.bat_offset)?;
            backing.write(&header.encode(), layout.header_offset)?;
            backing.write(&footer_bytes, 0)?;
        }
    }
    backing.sync()
}

/// How long the file of a new disk is, in bytes, but for a parent's locators.
pub(crate) fn formatted_len(disk_type: DiskType, size: u64, block_size: u32) -> u64 {
    footer::LEN as u64
        + match disk_type {
            DiskType::Fixed => size,
            DiskType::Dynamic | DiskType::Differencing => {
                Layout::new(size, block_size).metadata_end()
            }
        }
}
