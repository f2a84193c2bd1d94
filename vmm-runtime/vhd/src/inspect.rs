//! Looking at a disk without opening it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::chain::{self, ParentLink, ParentSearch};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::format::bat::{self, Layout, UNALLOCATED};
use crate::format::footer;
use crate::gate::Gate;
use crate::image::{Recognised, Refusal};
use crate::pool::Pool;
use crate::resize;
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
    /// Size of a block in bytes; not in fixed disks.
    pub block_size: Option<u32>,
    /// How many blocks the file holds; not in fixed disks.
    pub allocated_blocks: Option<u32>,
    /// Differencing disks only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentInfo>,
}

/// What a differencing disk says of its parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentInfo {
    /// The parent's identity.
    pub unique_id: Uuid,
    /// When the parent was modified last, to the second, as the child knows
    /// it.
    pub modified: SystemTime,
    /// The parent's name.
    pub name: String,
    /// The way to the parent from the child's folder, as it is written:
    /// `.\..\bases\base.vhd`.
    pub relative: Option<String>,
    /// The parent's absolute path, as it is written; on another system maybe.
    pub absolute: Option<String>,
}

/// Reads what the disk `rel` says of itself. Takes no lock, so it works while
/// the disk is in use; what it says of the blocks may then be a moment old.
/// The parent of a differencing disk is not looked for.
pub fn inspect(pool: &Pool, rel: impl AsRef<Path>) -> Result<VhdInfo, OpenError> {
    look(pool, rel.as_ref()).map(|(info, ..)| info)
}

/// As [`inspect`], for the disk and all of its parents, the disk first, each
/// with its path in its pool.
pub fn inspect_chain(
    pool: &Pool,
    rel: impl AsRef<Path>,
    search: &ParentSearch,
) -> Result<Vec<(Pool, PathBuf, VhdInfo)>, OpenError> {
    let rel = rel.as_ref();
    let (info, identity, link) = look(pool, rel)?;
    let parents = chain::open_parents(pool, rel, identity, link, search, false)?;
    let mut chain = vec![(pool.clone(), rel.to_owned(), info)];
    for (pool, rel) in parents.places {
        let info = inspect(&pool, &rel)?;
        chain.push((pool, rel, info));
    }
    Ok(chain)
}

type Look = (VhdInfo, (u64, u64), Option<ParentLink>);

fn look(pool: &Pool, rel: &Path) -> Result<Look, OpenError> {
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
    let read = || -> Result<Look, Refusal> {
        let found = resize::fixed::recognise_at(&place, &backing)?;
        let blocks = match found.layout() {
            Some(layout) => Some((layout.block_size, count_blocks(&backing, &found, &layout)?)),
            None => None,
        };
        let link = chain::read_link(&backing, &found)?;
        let parent = link.as_ref().map(|link| ParentInfo {
            unique_id: link.unique_id,
            modified: footer::time(link.modified),
            name: link.name.clone(),
            relative: link.relative.first().cloned(),
            absolute: link.absolute.first().cloned(),
        });
        let info = VhdInfo {
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
            parent,
        };
        Ok((info, (metadata.dev(), metadata.ino()), link))
    };
    read().map_err(|refusal| OpenError::from_refusal(rel, refusal))
}

/// Entries of the table that name a region. Entries are not checked against
/// each other: the disk may be growing.
fn count_blocks(backing: &Backing, found: &Recognised, layout: &Layout) -> Result<u32, Refusal> {
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
