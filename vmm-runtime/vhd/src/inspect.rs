//! Looking at a disk without opening it.

use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::OpenError;
use crate::format::DiskType;
use crate::pool::Pool;

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
/// the disk is in use.
pub fn inspect(pool: &Pool, rel: impl AsRef<Path>) -> Result<VhdInfo, OpenError> {
    let place = pool.place(rel.as_ref());
    Err(OpenError::Unsupported {
        path: rel.as_ref().to_owned(),
        what: format!("{place:?}"),
    })
}
