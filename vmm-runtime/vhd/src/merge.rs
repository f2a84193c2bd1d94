//! Merging a child into its parent.
//!
//! The child shows the same during all of it, whatever part of its sectors
//! the parent has already: those are the child's own. So a merge that was cut
//! off is begun again. But a parent that was written to is not as its child
//! knows it any more; a record beside the child, durable before the parent is
//! touched, tells that this is the doing of a merge, and a `marker` beside the
//! parent that it is the doing of nobody else. The child goes when the parent
//! is durable, marker and record after it.

pub(crate) mod marker;

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use uuid::Uuid;

use crate::block::{BlockDevice, ExtentKind, IoError};
use crate::chain::{self, ParentSearch};
use crate::dependents;
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
use crate::vhd::Opened;

use marker::Marker;

/// How a disk is merged into its parent.
#[derive(Debug, Clone, Default)]
pub struct MergeOptions {
    /// Where the parents are looked for.
    pub search: ParentSearch,
    /// Other children of the parent, and children of the disk itself, as far
    /// as the caller knows: a merge makes all of them useless. Those in the
    /// folders of the two are found without that.
    pub dependents: Vec<PathBuf>,
    /// Merge all the same; and into a parent that was modified since its
    /// child was made, or since an earlier merge was cut off.
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
/// Refused, unless forced, while there are dependents, and when the parent
/// was modified by anything else; when the two differ in size; and for lack
/// of space, before anything is touched.
///
/// After an error, a cancellation or a crash the parent has a part of it. The
/// child shows what it did before, but for reading only; merging it again
/// brings it to its end. That is refused if the parent was opened for writing
/// in between, or modified by another program (later than a minute after a
/// crash: until then its time of modification may be the merge's).
///
/// To merge a chain into a new disk instead, and keep all of it, use
/// [`convert`](crate::convert).
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
    let mut dependents: Vec<String> = options
        .dependents
        .iter()
        .map(|path| path.display().to_string())
        .collect();
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
    let parent_place = parent_pool.place(&parent_rel)?;
    if !options.force {
        dependents.extend(dependents::children(&place, child_id)?);
        for folder in [&place, &parent_place] {
            for name in dependents::children(folder, link.unique_id)? {
                let sibling =
                    folder.sibling(Path::new(&name).file_name().unwrap_or_default().to_owned())?;
                if sibling.identity()? != identity && !dependents.contains(&name) {
                    dependents.push(name);
                }
            }
        }
        if !dependents.is_empty() {
            return Err(refused(format!(
                "merging it would make other disks useless: {}; merge or remove those first",
                dependents.join(", ")
            )));
        }
    }
    let parent = Opened::open_to_merge(&parent_pool, &parent_rel, gate.clone(), &options.search)?;
    if parent.unique_id != link.unique_id {
        return Err(OpenError::ParentMismatch {
            path: rel.to_owned(),
            parent: parent_rel,
            expected: link.unique_id,
            found: parent.unique_id,
        }
        .into());
    }
    if resumed && !options.force && parent.modified != link.modified {
        let modified = marker::modified(&parent_place)?;
        match marker::read(&parent_place, child_id)? {
            Some(span) if (span.from..=span.until).contains(&modified) => {}
            Some(_) => {
                return Err(refused(format!(
                    "merging it into {} was cut off, and that was modified since by something else; \
                     compare the two, then convert the child to keep it, or force the merge",
                    parent_rel.display()
                )));
            }
            None => {
                return Err(refused(format!(
                    "merging it into {} was cut off, and that was opened for writing since ({} is gone); \
                     compare the two, then convert the child to keep it, or force the merge",
                    parent_rel.display(),
                    marker::name(&parent_rel)
                )));
            }
        }
    }
    if parent.modified != link.modified && !resumed && !options.force {
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
    let have = parent_place.space()?.available;
    if have < need {
        return Err(OperationError::NoSpace {
            path: parent_rel,
            need,
            have,
        });
    }
    // A record without a merge would hide a later change of the parent.
    gate.enter().map(drop).map_err(&to_parent)?;
    write_record(&record, child_id, link.unique_id, resumed)?;
    let mut marker = Marker::set(&parent_place, child_id)?;
    let merged = merge_images(
        &child,
        rel,
        &*parent.image,
        &parent_rel,
        &mut || Ok(marker.before_write()?),
        progress,
    )
    .and_then(|merged| parent.image.put_away().map(|()| merged).map_err(&to_parent));
    let merged_bytes = match merged {
        Ok(merged) => merged,
        Err(error) => {
            // From now on nobody modifies it but others. If that can't be
            // noted, some of their writes will be taken for ours.
            if parent.image.flush().is_ok() {
                let _ = marker.stop(&parent_place);
            }
            return Err(error);
        }
    };
    drop(parent);
    drop(child);
    place.unlink()?;
    place.sync_folder()?;
    marker::forget(&parent_place)?;
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
/// After how much the parent is flushed: a single flush of all of it might
/// take longer than the marker reaches.
const STEP: u64 = 256 << 20;

/// Writes all that the child holds to the parent, and makes it durable.
fn merge_images(
    child: &Dynamic,
    rel: &Path,
    parent: &dyn Image,
    parent_rel: &Path,
    before_write: &mut dyn FnMut() -> Result<(), OperationError>,
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
                before_write()?;
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
                if merged / STEP != (merged - len) / STEP {
                    before_write()?;
                    parent.flush().map_err(&to_parent)?;
                }
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
    before_write()?;
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

/// Puts a record there, durably. `again`: it is there already, perhaps in the
/// page cache alone, if its sync failed. So it is written once more, and not
/// taken away in between: the parent may have been written to.
fn write_record(
    place: &Place,
    child: Uuid,
    parent: Uuid,
    again: bool,
) -> Result<(), OperationError> {
    let mut flags = OFlags::RDWR;
    if !again {
        match place.unlink() {
            Ok(()) | Err(PoolError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        flags |= OFlags::CREATE | OFlags::EXCL;
    }
    let file = File::from(place.open(flags)?);
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
