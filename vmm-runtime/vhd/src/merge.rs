//! Merging a child into its parent.
//!
//! The child shows the same during all of it, whatever part of its sectors
//! the parent has already: those are the child's own. So a merge that was cut
//! off is begun again. But a parent that was written to is not as its child
//! knows it any more; a record beside the child, durable before the parent is
//! touched, tells that this is the doing of a merge, and a `marker` beside the
//! parent that it is the doing of nobody else. When the parent is durable, the
//! record says so, and then the child goes, marker and record after it: while
//! a record of a merge that was only begun is there without its child, the
//! parent has a part of it, and nobody takes that for the whole.

mod dependents;
pub(crate) mod marker;
mod record;

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::block::{BlockDevice, IoError};
use crate::chain::{self, ParentLink, ParentSearch};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::gate::Gate;
#[cfg(test)]
use crate::image::Mutant;
use crate::image::{Absent, Dynamic, Image, Refusal, Tuning, recognise};
use crate::import::{Progress, is_zero};
use crate::lock::{self, LockOwner, Mode, Sidecar};
use crate::operation::{OperationError, report};
use crate::pool::{Place, Pool};
use crate::repair;
use crate::sidefile::{self, MERGING};
use crate::storage::Backing;
use crate::vhd::Opened;

use marker::Marker;
pub(crate) use record::Record;
use record::State;

/// How a disk is merged into its parent.
#[derive(Debug, Clone, Default)]
pub struct MergeOptions {
    /// Where the parents are looked for.
    pub search: ParentSearch,
    /// Other children of the parent, and children of the disk itself, as far
    /// as the caller knows: a merge makes all of them useless. Those in the
    /// pools of the two are found without that.
    pub dependents: Vec<PathBuf>,
    /// Merge all the same; and into a parent that was modified since its
    /// child was made, or since an earlier merge was cut off.
    pub force: bool,
    /// As whom the parent is opened, in an epoch of the parent's own; see
    /// [`OpenOptions::owner`](crate::OpenOptions::owner), for what is refused
    /// as well. The parent's lock file names the owner from before the first
    /// change of the parent until the parent is durable, and keeps the epoch.
    ///
    /// The child has epochs of its own: who gives them out notes the one of
    /// the merge with [`claim`](crate::claim) before.
    pub owner: Option<LockOwner>,
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
/// Refused, unless forced, while there are dependents, in any folder of the
/// two disks' pools, and when the parent was modified by anything else; when
/// the two differ in size; while a repair of either is cut off; and for lack of
/// space, before anything is touched. Refused also for a child that is gone
/// while the parent has only a part of it.
///
/// After an error, a cancellation or a crash the parent has a part of it. The
/// child shows what it did before, but for reading only; merging it again
/// brings it to its end. That is refused if the parent was opened for writing
/// in between, or modified by another program (later than a minute after a
/// crash: until then its time of modification may be the merge's). After a
/// crash the parent is still the owner's, if there was one.
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
    let place = pool.place(rel)?;
    let record = Record::read(&place)?;
    if let Some(record) = record
        && !place.exists()?
    {
        return end_without_child(&place, record);
    }
    let child = Child::lock(pool, rel, place)?;
    let mine = record.filter(|record| record.is_of(&child));
    if mine.is_some_and(|record| record.state == State::Done) {
        child.remove(&gate)?;
        return Ok(ENDED);
    }
    let mut parent = child.find_parent(gate.clone(), options)?;
    let resumed = mine.is_some();
    let merged = child
        .admit(&parent, resumed, options.force)
        .and_then(|()| child.run(&mut parent, &gate, resumed, progress));
    if merged.is_err() {
        parent.disk.give_up();
    }
    let merged_bytes = merged?;
    let Parent { rel, place, .. } = parent;
    child.remove(&gate)?;
    MERGING.forget(&place)?;
    Ok(MergeReport {
        parent: Some(rel),
        merged_bytes,
        resumed,
    })
}

/// The report on a merge that had come to its end.
const ENDED: MergeReport = MergeReport {
    parent: None,
    merged_bytes: 0,
    resumed: true,
};

/// Ends a merge whose child is gone, if the parent has all of it.
fn end_without_child(place: &Place, record: Record) -> Result<MergeReport, OperationError> {
    if record.state == State::Done {
        sidefile::forget_all(place)?;
        return Ok(ENDED);
    }
    let record_rel = sidefile::MERGE.place(place)?.rel().display().to_string();
    Err(OperationError::Refused {
        path: place.rel().to_owned(),
        reason: format!(
            "merging it into the disk {} was begun and not ended, and it is gone: the parent has a part of it. \
             Put the child {} back and merge it again, or restore the parent; then remove {record_rel}",
            record.parent, record.child
        ),
    })
}

impl Record {
    fn is_of(&self, child: &Child<'_>) -> bool {
        (self.child, self.parent) == (child.id, child.link.unique_id)
    }
}

/// A child that is to be merged. Nobody else has it open.
struct Child<'a> {
    pool: &'a Pool,
    rel: &'a Path,
    place: Place,
    identity: (u64, u64),
    id: Uuid,
    link: ParentLink,
    /// What it holds itself.
    image: Dynamic,
    lock: Sidecar,
}

/// The parent, open for writing.
struct Parent {
    rel: PathBuf,
    place: Place,
    disk: Opened,
}

impl<'a> Child<'a> {
    fn lock(pool: &'a Pool, rel: &'a Path, place: Place) -> Result<Child<'a>, OperationError> {
        let (file, lock) = lock::open_locked(&place, Mode::Exclusive)
            .map_err(|error| OpenError::from_lock(rel, error))?;
        let file = File::from(file);
        let (identity, _) = chain::look_at(rel, &file)?;
        let backing = Backing::read_only(file, rel);
        let bad = |refusal: Refusal| OpenError::from_refusal(rel, refusal);
        repair::refuse_cut_off(&place, &backing)?;
        let found = recognise(&backing, Tuning::default()).map_err(bad)?;
        let Some(link) = chain::read_link(&backing, &found).map_err(bad)? else {
            return Err(OperationError::Refused {
                path: rel.to_owned(),
                reason: format!(
                    "it is a {} disk and has no parent to be merged into",
                    found.disk_type
                ),
            });
        };
        let absent = Box::new(Absent::new(found.footer.current_size));
        let image =
            Dynamic::load(backing, &found, Some(absent), true, Tuning::default()).map_err(bad)?;
        Ok(Child {
            pool,
            rel,
            place,
            identity,
            id: found.footer.unique_id,
            link,
            image,
            lock,
        })
    }

    fn refused(&self, reason: String) -> OperationError {
        OperationError::Refused {
            path: self.rel.to_owned(),
            reason,
        }
    }

    /// Finds the parent, and opens it for writing if nothing depends on it.
    fn find_parent(&self, gate: Gate, options: &MergeOptions) -> Result<Parent, OperationError> {
        let search = &options.search;
        let seen = [self.identity];
        let found = chain::find(self.pool, self.rel, &self.link, search, &seen, false)?;
        let (pool, rel) = (found.pool, found.rel);
        if !options.force {
            self.refuse_dependents(&pool, &options.dependents)?;
        }
        Ok(Parent {
            place: pool.place(&rel)?,
            disk: Opened::open_to_merge(&pool, &rel, gate, search, options.owner.as_ref())?,
            rel,
        })
    }

    /// Refuses a parent that the child can't be merged into. `resumed`:
    /// whether an earlier merge has begun.
    fn admit(&self, parent: &Parent, resumed: bool, force: bool) -> Result<(), OperationError> {
        self.refuse_another(parent)?;
        if !force {
            self.refuse_changes(parent, resumed)?;
        }
        let size = parent.disk.image.size();
        if size != self.image.size() {
            return Err(self.refused(format!(
                "it has {} bytes and its parent {size}; resize the parent first",
                self.image.size()
            )));
        }
        self.refuse_without_space(parent)
    }

    /// Refuses a parent that took the place of the one that was found.
    fn refuse_another(&self, parent: &Parent) -> Result<(), OpenError> {
        if parent.disk.unique_id == self.link.unique_id {
            return Ok(());
        }
        Err(OpenError::ParentMismatch {
            path: self.rel.to_owned(),
            parent: parent.rel.clone(),
            expected: self.link.unique_id,
            found: parent.disk.unique_id,
        })
    }

    /// Refuses a parent that anything but this merge has modified. `resumed`:
    /// whether the merge may have.
    fn refuse_changes(&self, parent: &Parent, resumed: bool) -> Result<(), OperationError> {
        if parent.disk.modified == self.link.modified {
            return Ok(());
        }
        if !resumed {
            return Err(OpenError::ParentChanged {
                path: self.rel.to_owned(),
                parent: parent.rel.clone(),
                expected: self.link.modified,
                found: parent.disk.modified,
            }
            .into());
        }
        let modified = marker::modified(&parent.place)?;
        let why = match marker::read(&parent.place, self.id)? {
            Some(span) if (span.from..=span.until).contains(&modified) => return Ok(()),
            Some(_) => "modified since by something else".to_owned(),
            None => format!(
                "opened for writing since ({} is gone)",
                MERGING.place(&parent.place)?.rel().display()
            ),
        };
        Err(self.refused(format!(
            "merging it into {} was cut off, and that was {why}; compare the two, then reconnect the child \
             to the parent as it is if what it shows is right, or force the merge",
            parent.rel.display()
        )))
    }

    fn refuse_without_space(&self, parent: &Parent) -> Result<(), OperationError> {
        let growth = growth(&self.image, &*parent.disk.image);
        let mut need = growth.map_err(OperationError::io(&parent.rel))?;
        if parent.disk.disk_type == DiskType::Fixed {
            // What was reserved and never written looks like a hole.
            need = need.min(parent.place.missing()?);
        }
        let have = parent.place.space()?.available;
        if have < need {
            return Err(OperationError::NoSpace {
                path: parent.rel.clone(),
                need,
                have,
            });
        }
        Ok(())
    }

    /// Merges it, and says so in its record when the parent is durable.
    fn run(
        &self,
        parent: &mut Parent,
        gate: &Gate,
        resumed: bool,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<u64, OperationError> {
        let to_parent = OperationError::io(&parent.rel);
        // A record without a merge would hide a later change of the parent.
        gate.enter().map(drop).map_err(&to_parent)?;
        let record = Record {
            state: State::Begun,
            child: self.id,
            parent: self.link.unique_id,
        };
        if resumed {
            record.confirm(&self.place)?;
        } else {
            record.write(&self.place)?;
        }
        let mut marker = Marker::set(&parent.place, self.id, resumed)?;
        let merged = merge_images(
            &self.image,
            self.rel,
            &*parent.disk.image,
            &parent.rel,
            &mut || Ok(marker.before_write()?),
            progress,
        );
        let ended = merged.and_then(|merged| {
            parent.disk.image.put_away().map_err(&to_parent)?;
            parent.disk.move_on().map_err(&to_parent)?;
            // Once the record says that it is over, nobody opens the parent
            // for it again.
            parent.disk.release().map_err(&to_parent)?;
            record.end(&self.place)?;
            Ok(merged)
        });
        if ended.is_err() && parent.disk.image.flush().is_ok() {
            // From now on nobody modifies it but others. If that can't be
            // noted, some of their writes will be taken for ours.
            let _ = parent.disk.move_on();
            let _ = marker.stop(&parent.place);
        }
        ended
    }

    /// Removes it and what lies beside it: the parent has all of it.
    fn remove(self, gate: &Gate) -> Result<(), OperationError> {
        let _pass = gate.enter().map_err(OperationError::io(self.rel))?;
        drop(self.image);
        self.place.unlink()?;
        self.place.sync_folder()?;
        sidefile::forget_all(&self.place)?;
        self.lock.remove()?;
        Ok(())
    }
}

/// How many bytes the parent's file system needs for what the child holds.
fn growth(child: &Dynamic, parent: &dyn Image) -> Result<u64, IoError> {
    let (mut need, mut after) = (0, 0);
    for block in 0..child.blocks() {
        for range in child.held_ranges(block)? {
            need += parent.growth(range.clone(), after)?;
            after = range.end;
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

#[cfg(test)]
mod tests;
