//! What a new disk consists of before anything is written to it.

use crate::block::IoError;
use crate::format::DiskType;
use crate::format::bat::Layout;
use crate::format::footer::{self, Footer};
use crate::format::header::{Header, Parent};
use crate::storage::Backing;

/// Writes a new disk into an empty storage and syncs it. A fixed disk's space
/// is the caller's to reserve.
pub(crate) fn format_new(
    backing: &Backing,
    disk_type: DiskType,
    footer: &Footer,
    block_size: u32,
) -> Result<(), IoError> {
    let footer_bytes = footer.encode();
    match disk_type {
        DiskType::Fixed => backing.write(&footer_bytes, footer.current_size)?,
        DiskType::Dynamic => {
            let layout = Layout::new(footer.current_size, block_size);
            let header = Header {
                bat_offset: layout.bat_offset,
                bat_entries: layout.bat_entries,
                block_size,
                parent: Parent::default(),
            };
            backing.write(&footer_bytes, layout.metadata_end())?;
            // The padding of the table is unallocated as well.
            let table = vec![0xff; layout.bat_len() as usize];
            backing.write(&table, layout.bat_offset)?;
            backing.write(&header.encode(), layout.header_offset)?;
            backing.write(&footer_bytes, 0)?;
        }
    }
    backing.sync()
}

/// How long the file of a new disk is, in bytes.
pub(crate) fn formatted_len(disk_type: DiskType, size: u64, block_size: u32) -> u64 {
    footer::LEN as u64
        + match disk_type {
            DiskType::Fixed => size,
            DiskType::Dynamic => Layout::new(size, block_size).metadata_end(),
        }
}
