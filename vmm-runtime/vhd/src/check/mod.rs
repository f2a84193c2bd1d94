//! Checking a disk without changing it.

mod examine;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::chain::{self, ParentSearch};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::image::Refusal;
use crate::import::Progress;
use crate::lock::{self, Mode};
use crate::operation::OperationError;
use crate::pool::Pool;
use crate::repair;
use crate::resize;
use crate::storage::Backing;

pub(crate) use examine::{Verdict, examine, rescue_table};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// The type of the disk; `None` if its metadata doesn't say any more.
    pub disk_type: Option<DiskType>,
    /// How many blocks the table names.
    pub allocated_blocks: u64,
    /// Bytes of the file that nothing uses; `compact` gives them back.
    pub leaked_bytes: u64,
    /// What was found: metadata in the order of the file, then the parents.
    /// At most [`CheckReport::MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// How many findings of each kind there are, those that are not listed
    /// included.
    pub counts: BTreeMap<FindingKind, u64>,
}

impl CheckReport {
    /// The most findings that are listed.
    pub const MAX_FINDINGS: usize = 1000;

    fn new() -> CheckReport {
        CheckReport {
            disk_type: None,
            allocated_blocks: 0,
            leaked_bytes: 0,
            findings: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// The worst that was found; `None` for a disk without a flaw.
    pub fn worst(&self) -> Option<Severity> {
        self.counts.keys().map(|kind| kind.severity()).max()
    }

    fn add(&mut self, kind: FindingKind, offset: Option<u64>, block: Option<u32>, message: String) {
        *self.counts.entry(kind).or_default() += 1;
        if self.findings.len() < CheckReport::MAX_FINDINGS {
            self.findings.push(Finding {
                kind,
                severity: kind.severity(),
                offset,
                block,
                message,
            });
        }
    }
}

/// One flaw of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// How bad that is.
    pub severity: Severity,
    /// Where in the file, in bytes.
    pub offset: Option<u64>,
    /// Which block, counted from 0.
    pub block: Option<u32>,
    /// What was expected and what was found.
    pub message: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Severity {
    /// Harmless.
    Note,
    /// The disk works; what is wrong is mended by opening it for writing, or
    /// costs space.
    Warning,
    /// The disk can't be opened, or not for writing.
    Error,
}

/// The kinds of findings. Their names in JSON stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FindingKind {
    /// Neither the footer nor its copy can be read.
    FootersDamaged,
    /// The footer's copy at the beginning is damaged. Opening the disk for
    /// writing restores it.
    FooterCopyDamaged,
    /// The footer at the end is missing, damaged, or differs from its copy.
    /// Opening the disk for writing restores it.
    FooterDamaged,
    /// The size that the footer gives can't be.
    SizeImpossible,
    /// The geometry is not the one of the size: old programs may see less.
    GeometryDiffers,
    /// The disk belongs to a saved state.
    SavedState,
    /// A resize of a fixed disk was cut off. Opening the disk for writing
    /// ends it or takes it back.
    ResizeUnfinished,
    /// A repair in place was cut off: the disk does not open for writing until
    /// it is repaired again, or that is undone.
    RepairUnfinished,
    /// The dynamic header can't be read.
    HeaderDamaged,
    /// What the header describes can't be.
    LayoutImpossible,
    /// A block lies over the footer's copy, the header, the table, or a
    /// locator.
    BlockOverMetadata,
    /// Two blocks share bytes of the file.
    BlocksOverlap,
    /// A block reaches past the end of the file.
    BlockPastEnd,
    /// A block behind the end of the disk.
    BlockUnused,
    /// Bytes between blocks, or behind the last, that nothing uses.
    SpaceLeaked,
    /// Bits are set behind the last sector of a block.
    BitmapPadding,
    /// The place of the parent can't be read.
    LocatorDamaged,
    /// The parent was not found, or can't be opened.
    ParentMissing,
    /// The disk in the parent's place has another identity.
    ParentMismatch,
    /// A parent was modified after its child was made.
    ParentChanged,
}

impl FindingKind {
    /// How bad findings of this kind are.
    pub fn severity(self) -> Severity {
        match self {
            FindingKind::GeometryDiffers
            | FindingKind::SavedState
            | FindingKind::BlockUnused
            | FindingKind::BitmapPadding => Severity::Note,
            FindingKind::FooterCopyDamaged
            | FindingKind::FooterDamaged
            | FindingKind::ResizeUnfinished
            | FindingKind::SpaceLeaked
            | FindingKind::LocatorDamaged => Severity::Warning,
            FindingKind::FootersDamaged
            | FindingKind::SizeImpossible
            | FindingKind::RepairUnfinished
            | FindingKind::HeaderDamaged
            | FindingKind::LayoutImpossible
            | FindingKind::BlockOverMetadata
            | FindingKind::BlocksOverlap
            | FindingKind::BlockPastEnd
            | FindingKind::ParentMissing
            | FindingKind::ParentMismatch
            | FindingKind::ParentChanged => Severity::Error,
        }
    }
}

/// Checks the disk `rel` and the way to its parents; the parents' own
/// metadata is not checked. Reads metadata alone and changes nothing. The
/// disk must not be open for writing.
///
/// Takes twelve bytes of memory for each entry of the table: 12 MiB for the
/// largest disk with blocks of 2 MiB, at most 48 MiB. A damaged disk is not
/// an error but a report.
pub fn check(
    pool: &Pool,
    rel: impl AsRef<Path>,
    search: &ParentSearch,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<CheckReport, OperationError> {
    let rel = rel.as_ref();
    let place = pool.place(rel).map_err(OpenError::from)?;
    let (file, _lock) = lock::open_locked(&place, Mode::Shared)
        .map_err(|error| OpenError::from_lock(rel, error))?;
    let file = File::from(file);
    let (identity, _) = chain::look_at(rel, &file)?;
    let backing = Backing::read_only(file, rel);
    let pending = resize::fixed::pending(&place, &backing)
        .map_err(|refusal| OpenError::from_refusal(rel, refusal))?;
    if pending.is_some() {
        let mut report = CheckReport::new();
        report.disk_type = Some(DiskType::Fixed);
        let what = "a resize of the disk was cut off";
        report.add(FindingKind::ResizeUnfinished, None, None, what.to_owned());
        return Ok(report);
    }
    let Verdict { mut report, found } = examine(&backing, rel, progress)?;
    if repair::journal::is_cut_off(&place, &backing)? {
        let what = "a repair of the disk was cut off: repair it again, or undo that";
        report.add(FindingKind::RepairUnfinished, None, None, what.to_owned());
    }
    let Some(found) = found else {
        return Ok(report);
    };
    let link = chain::read_link(&backing, &found)
        .map_err(|refusal| OpenError::from_refusal(rel, refusal))?;
    if link.is_none() {
        return Ok(report);
    }
    let kind = match chain::open_parents(pool, rel, identity, link, search, true) {
        Ok(parents) => parents
            .changed
            .map(|changed| (FindingKind::ParentChanged, changed)),
        Err(error @ OpenError::ParentMismatch { .. }) => Some((FindingKind::ParentMismatch, error)),
        // Nothing is known of a parent that is in use.
        Err(error @ (OpenError::InUse { .. } | OpenError::Io { .. })) => return Err(error.into()),
        Err(error) => Some((FindingKind::ParentMissing, error)),
    };
    if let Some((kind, error)) = kind {
        report.add(kind, None, None, error.to_string());
    }
    Ok(report)
}

/// The error of a file that isn't a VHD at all.
fn not_a_disk(rel: &Path, refusal: Refusal) -> OperationError {
    OpenError::from_refusal(rel, refusal).into()
}
