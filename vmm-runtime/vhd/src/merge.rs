//! Merging a child into its parent.
//!
//! The child shows the same during all of it, whatever part of its sectors
//! the parent has already: those are the child's own. So a merge that was cut
//! off is begun again. But a parent that was written to is not as its child
//! knows it any more; a record beside the child, durable before the parent is
//! touched, tells that this is the doing of a merge. The child goes when the
//! parent is durable, and the record after it.

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use uuid::Uuid;

use crate::block::{BlockDevice, ExtentKind, IoError};
use crate::chain::{self, ParentSearch};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::gate::Gate;
#[cfg(test)]
use crate::image::Mutant;
use crate::image::{Absent, Dynamic, Image, Refusal, Tuning, recognise};
use crate::import::{Progress, is_zero};
use crate::lock::{self, Mode};
use crate::operation::{OperationError, report};
use crate::pool::{Place, Pool, PoolError};
use crate::storage::{Backing, FileStorage};
use crate::vhd::{Access, Opened};

/// How a disk is merged into its parent.
#[derive(Debug, Clone, Default)]
pub struct MergeOptions {
    /// Where the parents are looked for.
    pub search: ParentSearch,
    /// Other children of the parent, and children of the disk itself, as far
    /// as the caller knows: a merge makes all of them useless.
    pub dependents: Vec<PathBuf>,
    /// Merge all the same.
    pub force: bool,
}

/// What a merge did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeReport {
    /// The parent, in its pool. `None` if an earlier merge had come to its
    /// end but for its record.
    pub parent: Option<PathBuf>,
    /// Bytes of the child that the parent has now.
    pub merged_bytes: u64,
    /// Whether an earlier merge was cut off.
    pub resumed: bool,
}

/// Merges the disk `rel` into its parent and removes it. Nobody may have
/// either of them open. Every change of the parent passes `gate`.
///
/// Refused while there are `dependents`, unless forced; when the two differ
/// in size; and for lack of space, before anything is touched.
///
/// After an error, a cancellation or a crash the parent has a part of it. The
/// child shows what it did before, but for reading only; merging it again
/// brings it to its end.
pub fn merge(
    pool: &Pool,
    rel: impl AsRef<Path>,
    gate: Gate,
    options: &MergeOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<MergeReport, OperationError> {
    let rel = rel.as_ref();
    let refused = |reason: String| OperationError::Refused {
        path: rel.to_owned(),
        reason,
    };
    if !options.force && !options.dependents.is_empty() {
        let names: Vec<_> = options
            .dependents
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(refused(format!(
            "merging it would make other disks useless: {}; merge or remove those first",
            names.join(", ")
        )));
    }
    let place = pool.place(rel)?;
    let record = place.with_suffix(".merge")?;
    if !place.exists()? && read_record(&record)?.is_some() {
        record.unlink()?;
        record.sync_folder()?;
        return Ok(MergeReport {
            parent: None,
            merged_bytes: 0,
            resumed: true,
        });
    }
    let (file, lock) = lock::open_locked(&place, Mode::Exclusive)
        .map_err(|error| OpenError::from_lock(rel, error))?;
    let file = File::from(file);
    let (identity, _) = chain::look_at(rel, &file)?;
    let closed = Gate::open();
    closed.close();
    let name = rel.to_string_lossy();
    let backing = Backing::new(Box::new(FileStorage::new(file)), closed, &name);
    let bad = |refusal: Refusal| OpenError::from_refusal(rel, refusal);
    let found = recognise(&backing, Tuning::default()).map_err(bad)?;
    let Some(link) = chain::read_link(&backing, &found).map_err(bad)? else {
        return Err(refused(format!(
            "it is a {} disk and has no parent to be merged into",
            found.disk_type
        )));
    };
    debug_assert_eq!(found.disk_type, DiskType::Differencing);
    let child_id = found.footer.unique_id;
    let size = found.footer.current_size;
    let absent = Box::new(Absent::new(size));
    let child =
        Dynamic::load(backing, &found, Some(absent), true, Tuning::default()).map_err(bad)?;
    let resumed = read_record(&record)? == Some((child_id, link.unique_id));
    let at = chain::find(pool, rel, &link, &options.search, &[identity], false)?;
    let (parent_pool, parent_rel) = (at.pool, at.rel);
    let parent = Opened::open(
        &parent_pool,
        &parent_rel,
        Access::ReadWrite,
        gate.clone(),
        &options.search,
    )?;
    if parent.unique_id != link.unique_id {
        return Err(OpenError::ParentMismatch {
            path: rel.to_owned(),
            parent: parent_rel,
            expected: link.unique_id,
            found: parent.unique_id,
        }
        .into());
    }
    if parent.modified != link.modified && !resumed {
        return Err(OpenError::ParentChanged {
            path: rel.to_owned(),
            parent: parent_rel,
            expected: link.modified,
            found: parent.modified,
        }
        .into());
    }
    if parent.image.size() != size {
        return Err(refused(format!(
            "it has {size} bytes and its parent {}; resize the parent first",
            parent.image.size()
        )));
    }
    let to_parent = OperationError::io(&parent_rel);
    let need = growth(&child, &*parent.image).map_err(&to_parent)?;
    let have = parent_pool.place(&parent_rel)?.space()?.available;
    if have < need {
        return Err(OperationError::NoSpace {
            path: parent_rel,
            need,
            have,
        });
    }
    // A record without a merge would hide a later change of the parent.
    gate.enter().map(drop).map_err(&to_parent)?;
    if !resumed {
        write_record(&record, child_id, link.unique_id)?;
    }
    let merged_bytes = merge_images(&child, rel, &*parent.image, &parent_rel, progress)?;
    parent.image.put_away().map_err(&to_parent)?;
    drop(parent);
    drop(child);
    place.unlink()?;
    place.sync_folder()?;
    record.unlink()?;
    record.sync_folder()?;
    lock.remove()?;
    Ok(MergeReport {
        parent: Some(parent_rel),
        merged_bytes,
        resumed,
    })
}

/// How many bytes of the child the parent has no place for.
fn growth(child: &Dynamic, parent: &dyn Image) -> Result<u64, IoError> {
    let mut need = 0;
    for block in 0..child.blocks() {
        for range in child.held_ranges(block)? {
            let mut at = range.start;
            while at < range.end {
                for extent in parent.block_status(at, range.end - at)? {
                    at = extent.offset + extent.len;
                    if extent.kind == ExtentKind::Hole {
                        need += extent.len;
                    }
                }
            }
        }
    }
    Ok(need)
}

/// How much is copied at once.
const PIECE: u64 = 256 << 10;

/// Writes all that the child holds to the parent, and makes it durable.
fn merge_images(
    child: &Dynamic,
    rel: &Path,
    parent: &dyn Image,
    parent_rel: &Path,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<u64, OperationError> {
    let size = child.size();
    let to_parent = OperationError::io(parent_rel);
    let mut buf = vec![0; PIECE as usize];
    let mut merged = 0;
    for block in 0..child.blocks() {
        let mut block_end = 0;
        for range in child.held_ranges(block).map_err(OperationError::io(rel))? {
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(PIECE);
                let piece = &mut buf[..len as usize];
                child.read_at(piece, at).map_err(OperationError::io(rel))?;
                if is_zero(piece) {
                    #[cfg(test)]
                    if child.is_mutant(Mutant::MergeWithoutZeros) {
                        at += len;
                        continue;
                    }
                    parent.write_zeroes(at, len).map_err(&to_parent)?;
                } else {
                    parent.write_at(piece, at).map_err(&to_parent)?;
                }
                at += len;
                merged += len;
            }
            block_end = range.end;
        }
        if block_end > 0 {
            report(block_end, size, progress)?;
        }
    }
    #[cfg(test)]
    if child.is_mutant(Mutant::MergeUnsynced) {
        return Ok(merged);
    }
    parent.flush().map_err(&to_parent)?;
    report(size, size, progress)?;
    Ok(merged)
}

const MARK: &str = "merge of a differencing VHD into its parent, version 1";

/// The child and the parent that a record names. `None` if there is none, or
/// if it was never complete: then the parent was not touched.
fn read_record(place: &Place) -> Result<Option<(Uuid, Uuid)>, PoolError> {
    let file = match place.open(OFlags::RDONLY) {
        Ok(file) => File::from(file),
        Err(PoolError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    // Bounded: the file may be anyone's.
    if file.take(256).read_to_string(&mut text).is_err() {
        return Ok(None);
    }
    let ids = || -> Option<(Uuid, Uuid)> {
        let ids = text.strip_prefix(MARK)?.strip_prefix("\nchild ")?;
        let (child, parent) = ids.strip_suffix("\nend\n")?.split_once("\nparent ")?;
        Some((child.parse().ok()?, parent.parse().ok()?))
    };
    Ok(ids())
}

fn write_record(place: &Place, child: Uuid, parent: Uuid) -> Result<(), OperationError> {
    match place.unlink() {
        Ok(()) | Err(PoolError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let file = File::from(place.open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?);
    let text = format!("{MARK}\nchild {child}\nparent {parent}\nend\n");
    file.write_all_at(text.as_bytes(), 0)
        .and_then(|()| file.sync_all())
        .map_err(|source| PoolError::Io {
            path: place.rel().to_owned(),
            operation: "write the record of the merge",
            source,
        })?;
    place.sync_folder()?;
    Ok(())
}

#[cfg(test)]
mod tests;
