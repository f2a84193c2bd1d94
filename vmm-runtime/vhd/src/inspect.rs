//! Looking at a disk without opening it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::OpenError;
use crate::format::DiskType;
use crate::format::bat::{self, Layout, UNALLOCATED};
use crate::format::header::Header;
use crate::gate::Gate;
use crate::image::{Recognised, Refusal, Tuning, recognise};
use crate::pool::Pool;
use crate::storage::{Backing, FileStorage};

/// What a VHD says of itself, and what it takes on its file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VhdInfo {
    /// The type of the disk.
    pub disk_type: DiskType,
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// The length of the file, in bytes.
    pub file_size: u64,
    /// What the file takes on the file system, in bytes.
    pub allocated: u64,
    /// The identity that children refer to.
    pub unique_id: Uuid,
    /// The application that made it, four characters, spaces trimmed:
    /// `win`, `vpc`, `qemu`, `tap`.
    pub creator: String,
    /// When it was made, to the second.
    pub created: SystemTime,
    /// Whether the disk belongs to a saved state.
    pub saved_state: bool,
    /// Size of a block in bytes; dynamic disks only.
    pub block_size: Option<u32>,
    /// How many blocks the file holds; dynamic disks only.
    pub allocated_blocks: Option<u32>,
}

/// Reads what the disk `rel` says of itself. Takes no lock, so it works while
/// the disk is in use; what it says of the blocks may then be a moment old.
pub fn inspect(pool: &Pool, rel: impl AsRef<Path>) -> Result<VhdInfo, OpenError> {
    let rel = rel.as_ref();
    let place = pool.place(rel)?;
    let file = File::from(place.open(OFlags::RDONLY)?);
    let metadata = file.metadata().map_err(|source| OpenError::Io {
        path: rel.to_owned(),
        operation: "look at the file",
        source,
    })?;
    let gate = Gate::open();
    gate.close();
    let backing = Backing::new(
        Box::new(FileStorage::new(file)),
        gate,
        &rel.to_string_lossy(),
    );
    let read = || -> Result<VhdInfo, Refusal> {
        let found = recognise(&backing, Tuning::default())?;
        let blocks = match &found.header {
            Some((offset, header)) => Some((
                header.block_size,
                count_blocks(&backing, &found, *offset, header)?,
            )),
            None => None,
        };
        Ok(VhdInfo {
            disk_type: found.disk_type,
            virtual_size: found.footer.current_size,
            file_size: metadata.len(),
            // stat counts in 512 bytes, whatever the file system's blocks.
            allocated: metadata.blocks().saturating_mul(512),
            unique_id: found.footer.unique_id,
            creator: found.footer.creator_name(),
            created: found.footer.created(),
            saved_state: found.footer.saved_state,
            block_size: blocks.map(|(size, _)| size),
            allocated_blocks: blocks.map(|(_, count)| count),
        })
    };
    read().map_err(|refusal| OpenError::from_refusal(rel, refusal))
}

/// Entries of the table that name a region. Entries are not checked against
/// each other: the disk may be growing.
fn count_blocks(
    backing: &Backing,
    found: &Recognised,
    header_offset: u64,
    header: &Header,
) -> Result<u32, Refusal> {
    let layout = Layout::of(found.footer.current_size, header_offset, header);
    layout.check(found.data_end).map_err(Refusal::Corrupt)?;
    let mut count = 0;
    let mut buf = vec![0; 64 << 10];
    let (mut at, end) = (
        layout.bat_offset,
        layout.bat_offset + u64::from(layout.bat_entries) * 4,
    );
    while at < end {
        let piece = (end - at).min(buf.len() as u64) as usize;
        backing.read(&mut buf[..piece], at)?;
        count += bat::decode(&buf[..piece])
            .filter(|entry| *entry != UNALLOCATED)
            .count();
        at += piece as u64;
    }
    // No more than the 32-bit number of entries.
    Ok(count as u32)
}
