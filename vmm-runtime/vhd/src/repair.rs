//! Repairing a disk: into a new one, the damaged file stays as it is; or in
//! place, with a journal from which that can be undone.

pub(crate) mod in_place;
pub(crate) mod journal;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::block::BlockDevice;
use crate::chain::{self, ParentLink, ParentSearch};
use crate::check::{Verdict, examine, rescue_table};
use crate::create::{Blueprint, NewDisk};
use crate::error::OpenError;
use crate::format::bat::Layout;
use crate::gate::Gate;
use crate::image::{Absent, Dynamic, Image, NewParent, Recognised};
use crate::import::Progress;
use crate::lock::{self, Mode};
use crate::operation::{OperationError, report};
use crate::pool::{Place, Pool};
use crate::room::block_overhead;
use crate::storage::Backing;

pub use in_place::{discard_repair_journal, repair_in_place, undo_repair};

/// What a repair saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepairReport {
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// Blocks whose place is not known any more: they read as zeros, or as
    /// the parent.
    pub lost_blocks: Vec<u32>,
    /// Blocks that shared their place with another one. They were copied as
    /// they read, but at most one of each place is right.
    pub doubtful_blocks: Vec<u32>,
}

/// Makes the disk `target` out of what is left of the disk `rel`, which stays
/// as it is. The new disk has the same type, size, identity and parent. (Put
/// in the old one's place it is a parent that changed: see
/// [`OpenError::ParentChanged`].) The way to the parent is the one to where it
/// is found now, by `search` too; where it is not found it stays as written.
///
/// Needs one of the two footers and the dynamic header: what is worse is
/// refused. So is a disk that names a place behind the end of its file for
/// the way to its parent: [`reparent`](crate::reparent) it, nothing else may be wrong. A fixed disk has nothing that could be repaired. The file system
/// needs room for all blocks that are left, and is asked first. All that is
/// written passes `gate`, and so does the naming of the new disk.
pub fn repair(
    pool: &Pool,
    rel: impl AsRef<Path>,
    target: impl AsRef<Path>,
    gate: Gate,
    search: &ParentSearch,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<RepairReport, OperationError> {
    let (rel, target) = (rel.as_ref(), target.as_ref());
    let place = pool.place(rel).map_err(OpenError::from)?;
    // Nobody may write to it meanwhile.
    let (file, _lock) = lock::open_locked(&place, Mode::Shared)
        .map_err(|error| OpenError::from_lock(rel, error))?;
    let file = File::from(file);
    let (identity, _) = chain::look_at(rel, &file)?;
    let backing = Backing::read_only(file, rel);
    let verdict = examine(&backing, rel, &mut |_| still(progress))?;
    let (found, layout) = repairable(rel, verdict)?;
    let io = OperationError::io(rel);
    let rescued = rescue_table(&backing, &layout, found.data_end).map_err(&io)?;
    let link = chain::read_link(&backing, &found)
        .map_err(|refusal| OpenError::from_refusal(rel, refusal))?;
    let size = layout.size;
    let parent = link.map(|link| way_to_parent(pool, rel, target, link, search, identity));
    let blueprint = Blueprint {
        disk_type: found.disk_type,
        size,
        geometry: Some(found.footer.geometry),
        unique_id: found.footer.unique_id,
        created: found.footer.created(),
        block_size: layout.block_size,
        parent,
        gate,
    };
    let absent = || -> Option<Box<dyn Image>> { Some(Box::new(Absent::new(size))) };
    let source = Dynamic::with_rescued_table(backing, layout, &found, absent(), rescued.table);
    let held = u64::from(source.held_blocks());
    let new = NewDisk::begin_over(
        pool,
        target,
        &blueprint,
        Some(held * (u64::from(layout.block_size) + block_overhead(layout.block_size))),
        absent(),
        Vec::new(),
        &mut |_| ControlFlow::Continue(()),
    )?;
    let to_target = OperationError::io(target);
    let mut copied = 0;
    let mut buf = vec![0; (layout.block_size as usize).min(2 << 20)];
    for block in 0..source.blocks() {
        for range in source.held_ranges(block).map_err(&io)? {
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(buf.len() as u64);
                let piece = &mut buf[..len as usize];
                source.read_at(piece, at).map_err(&io)?;
                new.device().write_at(piece, at).map_err(&to_target)?;
                at += len;
                copied += len;
            }
        }
        let done = (u64::from(block) + 1) * u64::from(layout.block_size);
        report(done.min(size), size, progress)?;
    }
    drop(new.finish()?);
    Ok(RepairReport {
        copied_bytes: copied,
        lost_blocks: rescued.lost,
        doubtful_blocks: rescued.doubtful,
    })
}

/// Says that nothing is done yet; the caller may cancel.
fn still(progress: &mut dyn FnMut(Progress) -> ControlFlow<()>) -> ControlFlow<()> {
    progress(Progress { done: 0, total: 1 })
}

/// What the new disk is told of its parent: the way to where that is found
/// now. Where it is not, as the damaged disk says it: its data is worth saving
/// all the same.
fn way_to_parent(
    pool: &Pool,
    rel: &Path,
    target: &Path,
    link: ParentLink,
    search: &ParentSearch,
    identity: (u64, u64),
) -> NewParent {
    let found = chain::find(pool, rel, &link, search, &[identity], false);
    let knows = (link.unique_id, link.modified);
    let located =
        found.and_then(|parent| NewParent::locate(pool, target, &parent.pool, &parent.rel, knows));
    located.unwrap_or_else(|_| NewParent {
        unique_id: link.unique_id,
        modified: link.modified,
        name: link.name,
        relative: link
            .relative
            .iter()
            .find_map(|path| chain::moved_path(rel, target, path)),
        absolute: link.absolute.into_iter().next(),
    })
}

/// Refuses a disk that a repair has left half-way.
pub(crate) fn refuse_cut_off(place: &Place, backing: &Backing) -> Result<(), OpenError> {
    if !journal::is_cut_off(place, backing)? {
        return Ok(());
    }
    Err(OpenError::Corrupt {
        path: place.rel().to_owned(),
        found: "a repair of it was cut off: repair it again, or undo that".to_owned(),
    })
}

/// What a damaged disk is, if enough is left of it.
fn repairable(rel: &Path, verdict: Verdict) -> Result<(Recognised, Layout), OperationError> {
    let refused = |reason: String| OperationError::Refused {
        path: rel.to_owned(),
        reason,
    };
    let Some(found) = verdict.found else {
        let findings = &verdict.report.findings;
        let why = findings.first().map(|finding| finding.message.as_str());
        return Err(refused(format!(
            "it can't be repaired: {}",
            why.unwrap_or_default()
        )));
    };
    match found.layout() {
        Some(layout) => Ok((found, layout)),
        None => Err(refused(
            "a fixed disk that opens has nothing to repair".to_owned(),
        )),
    }
}
