//! Looking at a disk without opening it.

use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::chain::{self, ParentLink, ParentSearch};
use crate::error::OpenError;
use crate::format::bat::{self, Layout, UNALLOCATED};
use crate::format::footer;
use crate::format::geometry::Geometry;
use crate::format::{DiskType, SECTOR};
use crate::image::{Recognised, Refusal};
use crate::linked::{self, LinkedInfo};
use crate::lock::{self, LockInfo};
use crate::pool::Pool;
use crate::resize;
use crate::storage::Backing;

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
    /// The version of that application, as it wrote it: `10.0`.
    pub creator_version: String,
    /// What the guest saw when the disk was made, in bytes.
    pub original_size: u64,
    /// What guests are told that address the disk by cylinders. Rounded down:
    /// the size counts.
    pub geometry: DiskGeometry,
    /// Whether the disk belongs to a saved state.
    pub saved_state: bool,
    /// The footer at the end of the file, that of a fixed disk.
    pub tail_footer: FooterState,
    /// Its copy at the beginning; not in fixed disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_footer: Option<FooterState>,
    /// Size of a block in bytes; not in fixed disks.
    pub block_size: Option<u32>,
    /// How many blocks the file holds; not in fixed disks.
    pub allocated_blocks: Option<u32>,
    /// In how many runs these lie in the file: 1 if each follows on the one
    /// before it on the disk, as after a compaction that defragments. Not in
    /// fixed disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fragments: Option<u32>,
    /// Who has the disk.
    pub lock: LockInfo,
    /// The physical disk that it stands for: then nothing else is known but
    /// sizes, and the type is what it would be as a virtual one: fixed. Such
    /// a disk does not open, see [`Linked`](crate::Linked).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linked: Option<LinkedInfo>,
    /// Differencing disks only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentInfo>,
}

/// Cylinders, heads and sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskGeometry {
    /// At most 65535.
    pub cylinders: u16,
    /// For each cylinder, at most 16.
    pub heads: u8,
    /// For each head, at most 255, of 512 bytes.
    pub sectors: u8,
}

impl From<Geometry> for DiskGeometry {
    fn from(geometry: Geometry) -> DiskGeometry {
        DiskGeometry {
            cylinders: geometry.cylinders,
            heads: geometry.heads,
            sectors: geometry.sectors,
        }
    }
}

/// Whether one of a disk's footers can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FooterState {
    /// It is there.
    Good,
    /// It is missing, damaged, or not the same as the other one. Opening the
    /// disk for writing restores it.
    Lost,
}

impl FooterState {
    fn new(is_lost: bool) -> FooterState {
        if is_lost {
            FooterState::Lost
        } else {
            FooterState::Good
        }
    }
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
    let lock = lock::look(&place, file.as_fd());
    if let Some(linked) = linked::recognise(rel, &file)? {
        let info = of_linked(linked, &metadata, lock);
        return Ok((info, (metadata.dev(), metadata.ino()), None));
    }
    let backing = Backing::read_only(file, rel);
    let read = || -> Result<Look, Refusal> {
        let found = resize::fixed::recognise_at(&place, &backing)?;
        let blocks = match found.layout() {
            Some(layout) => Some(Blocks::count(&backing, &found, &layout)?),
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
            creator_version: found.footer.creator_version_name(),
            original_size: found.footer.original_size,
            geometry: found.footer.geometry.into(),
            saved_state: found.footer.saved_state,
            tail_footer: FooterState::new(found.tail_is_lost),
            head_footer: blocks
                .as_ref()
                .map(|_| FooterState::new(found.head_is_lost)),
            block_size: blocks.as_ref().map(|blocks| blocks.size),
            allocated_blocks: blocks.as_ref().map(|blocks| blocks.count),
            fragments: blocks.as_ref().map(|blocks| blocks.fragments),
            lock: lock.clone(),
            linked: None,
            parent,
        };
        Ok((info, (metadata.dev(), metadata.ino()), link))
    };
    read().map_err(|refusal| OpenError::from_refusal(rel, refusal))
}

/// What is known of a physical disk.
fn of_linked(linked: LinkedInfo, metadata: &Metadata, lock: LockInfo) -> VhdInfo {
    VhdInfo {
        disk_type: DiskType::Fixed,
        virtual_size: linked.size,
        file_size: metadata.len(),
        allocated: metadata.blocks().saturating_mul(512),
        unique_id: Uuid::nil(),
        creator: String::new(),
        created: metadata.modified().unwrap_or(UNIX_EPOCH),
        creator_version: String::new(),
        original_size: linked.size,
        geometry: Geometry::of(linked.size / SECTOR).into(),
        saved_state: false,
        tail_footer: FooterState::Good,
        head_footer: None,
        block_size: None,
        allocated_blocks: None,
        fragments: None,
        lock,
        linked: Some(linked),
        parent: None,
    }
}

/// The blocks of a dynamic or differencing disk.
struct Blocks {
    size: u32,
    count: u32,
    fragments: u32,
}

impl Blocks {
    /// Entries of the table that name a region. Entries are not checked
    /// against each other: the disk may be growing.
    fn count(backing: &Backing, found: &Recognised, layout: &Layout) -> Result<Blocks, Refusal> {
        layout.check(found.data_end).map_err(Refusal::Corrupt)?;
        let mut blocks = Blocks {
            size: layout.block_size,
            count: 0,
            fragments: 0,
        };
        // Where a block lies that follows on the last one, which may be
        // aligned: behind it, and no other one fits between the two.
        let mut next = 0..0;
        let mut buf = vec![0; 64 << 10];
        let (mut at, end) = (
            layout.bat_offset,
            layout.bat_offset + u64::from(layout.bat_entries) * 4,
        );
        while at < end {
            let piece = (end - at).min(buf.len() as u64) as usize;
            backing.read(&mut buf[..piece], at)?;
            for entry in bat::decode(&buf[..piece]).filter(|entry| *entry != UNALLOCATED) {
                let place = layout.region(entry);
                // No more than the 32-bit number of entries.
                blocks.count += 1;
                blocks.fragments += u32::from(!next.contains(&place));
                let behind = place + layout.region_len();
                next = behind..behind + layout.region_len();
            }
            at += piece as u64;
        }
        Ok(blocks)
    }
}
