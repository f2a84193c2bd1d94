//! Repairing a disk where it is, so that it can be undone.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;

use super::RepairReport;
use super::journal::{Journal, Patch, State};
use crate::block::IoError;
use crate::check::{Severity, examine, rescue_table};
use crate::error::OpenError;
use crate::format::SECTOR;
use crate::format::bat::{Layout, UNALLOCATED};
use crate::format::footer;
use crate::gate::Gate;
use crate::image::{Mutant, Recognised, Tuning};
use crate::import::Progress;
use crate::lock::{self, Mode, Sidecar};
use crate::modified::Stamp;
use crate::operation::{OperationError, report as tell};
use crate::pool::{Place, Pool};
use crate::sidefile::{MERGING, REPAIR};
use crate::storage::{Backing, FileStorage};

/// Repairs the disk `rel` where it is. Nobody may have it open.
///
/// Restores a footer, or its copy, that is lost; takes blocks out of the
/// table whose place can't be right (they read as zeros, or as the parent);
/// and gives blocks that share their place a copy of their own, as they read,
/// behind the end of the file, for which the file system is asked for room
/// first. What is worse is refused, as by [`repair`](crate::repair).
///
/// Every byte that is overwritten is first kept in the file `NAME.repair`
/// beside the disk. From there [`undo_repair`] puts them back until
/// [`discard_repair_journal`]. Every change passes `gate`. A repair that was cut off keeps the disk from
/// being opened for writing, and is begun again by another one, or undone.
pub fn repair_in_place(
    pool: &Pool,
    rel: impl AsRef<Path>,
    gate: Gate,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<RepairReport, OperationError> {
    let rel = rel.as_ref();
    let disk = Disk::lock(pool, rel, gate)?;
    let report = disk.repair(rel, progress);
    // A part of it may be done after an error, too.
    let moved = disk.move_on();
    let report = report?;
    moved?;
    Ok(report)
}
/// Puts back what [`repair_in_place`] overwrote, and removes its journal.
/// Refused once the disk's metadata, or a block that was copied, was changed
/// by anything else.
pub fn undo_repair(pool: &Pool, rel: impl AsRef<Path>, gate: Gate) -> Result<(), OperationError> {
    let rel = rel.as_ref();
    let disk = Disk::lock(pool, rel, gate)?;
    let refused = |reason: &str| OperationError::Refused {
        path: rel.to_owned(),
        reason: reason.to_owned(),
    };
    let io = OperationError::io(rel);
    let Some(journal) = Journal::read(&disk.place)? else {
        return Err(refused("there is no journal of a repair beside it"));
    };
    if !journal.fits(&disk.backing).map_err(&io)? {
        return Err(refused(
            "it was changed since it was repaired, so the repair can't be undone any more",
        ));
    }
    // Cut off half-way, it is undone again.
    let begun = Journal {
        state: State::Begun,
        ..journal
    };
    let pass = disk.gate.enter().map_err(&io)?;
    begun.write_state(&disk.place)?;
    drop(pass);
    disk.changed.set(true);
    let put_back = begun.put_back(&disk.backing).map_err(&io);
    let moved = disk.move_on();
    put_back?;
    moved?;
    Ok(REPAIR.forget(&disk.place)?)
}

/// Removes the journal of [`repair_in_place`], after which the repair can't
/// be undone any more.
pub fn discard_repair_journal(pool: &Pool, rel: impl AsRef<Path>) -> Result<(), OperationError> {
    let disk = Disk::lock(pool, rel.as_ref(), Gate::open())?;
    Ok(REPAIR.forget(&disk.place)?)
}

/// A disk that nobody else has open.
struct Disk {
    place: Place,
    backing: Backing,
    gate: Gate,
    stamp: Stamp,
    /// Whether it was written to.
    changed: Cell<bool>,
    _lock: Sidecar,
}

impl Disk {
    fn lock(pool: &Pool, rel: &Path, gate: Gate) -> Result<Disk, OperationError> {
        let place = pool.place(rel)?;
        let (file, lock) = lock::open_locked(&place, Mode::Exclusive)
            .map_err(|error| OpenError::from_lock(rel, error))?;
        let file = File::from(file);
        let stamp = Stamp::take(&file).map_err(|source| OpenError::Io {
            path: rel.to_owned(),
            operation: "look at the file",
            source,
        })?;
        let storage = Box::new(FileStorage::new(file));
        let backing = Backing::new(storage, gate.clone(), &rel.to_string_lossy());
        backing.read_afresh().map_err(OperationError::io(rel))?;
        Ok(Disk {
            place,
            backing,
            gate,
            stamp,
            changed: Cell::new(false),
            _lock: lock,
        })
    }

    /// Shows the children of the disk that it was changed, if it was.
    fn move_on(&self) -> Result<(), OperationError> {
        if !self.changed.get() {
            return Ok(());
        }
        let rel = self.place.rel();
        self.stamp
            .move_on(&self.gate, &rel.to_string_lossy())
            .map_err(OperationError::io(rel))
    }

    fn repair(
        &self,
        rel: &Path,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<RepairReport, OperationError> {
        let refused = |reason: String| OperationError::Refused {
            path: rel.to_owned(),
            reason,
        };
        let io = OperationError::io(rel);
        let earlier = Journal::read(&self.place)?;
        match &earlier {
            Some(journal) if journal.state == State::Begun => {
                if !journal.fits(&self.backing).map_err(&io)? {
                    return Err(refused(
                        "an earlier repair was cut off, and the disk was changed since; discard the journal of that first".to_owned(),
                    ));
                }
                self.changed.set(true);
                journal.put_back(&self.backing).map_err(&io)?;
            }
            _ => {}
        }
        let verdict = examine(&self.backing, rel, &mut |_| super::still(progress))?;
        let worst = verdict.report.worst();
        let (found, layout) = super::repairable(rel, verdict)?;
        let plan = Plan::of(&self.backing, &found, &layout).map_err(&io)?;
        match earlier {
            Some(journal) if matches!(journal.state, State::Done(_)) => {
                if plan.is_none() && worst != Some(Severity::Error) {
                    return Ok(journal.report);
                }
                return Err(refused(
                    "it was repaired before, and is damaged again; undo that, or discard its journal, first".to_owned(),
                ));
            }
            _ => {}
        }
        let Some(mut plan) = plan else {
            REPAIR.forget(&self.place)?;
            return Ok(RepairReport {
                copied_bytes: 0,
                lost_blocks: Vec::new(),
                doubtful_blocks: Vec::new(),
            });
        };
        let need = plan.journal.new_len - plan.journal.old_len + plan.journal.encode().len() as u64;
        let have = self.place.space()?.available;
        if have < need {
            return Err(OperationError::NoSpace {
                path: rel.to_owned(),
                need,
                have,
            });
        }
        let gate = self.gate.enter().map_err(&io)?;
        MERGING.forget(&self.place)?;
        plan.journal.write(&self.place)?;
        drop(gate);
        self.changed.set(true);
        let total = plan.journal.report.copied_bytes;
        plan.apply(&self.backing, Tuning::default(), &io, &mut |done| {
            tell(done, total, progress)
        })?;
        let sum = plan.journal.tail_sum(&self.backing).map_err(&io)?;
        plan.journal.state = State::Done(sum);
        plan.journal.write_state(&self.place)?;
        Ok(plan.journal.report)
    }
}

/// What a repair is going to do.
pub(crate) struct Plan {
    pub(crate) journal: Journal,
    /// Regions to be copied behind the end: from, to.
    copies: Vec<(u64, u64)>,
    region_len: u64,
    footer: [u8; footer::LEN],
    /// Where that goes behind the end, if it does.
    tail: Option<u64>,
}

impl Plan {
    /// `None` if there is nothing to be repaired.
    pub(crate) fn of(
        backing: &Backing,
        found: &Recognised,
        layout: &Layout,
    ) -> Result<Option<Plan>, IoError> {
        let rescued = rescue_table(backing, layout, found.data_end)?;
        let old_len = backing.len()?;
        let mut table: BTreeMap<u32, u32> = BTreeMap::new();
        table.extend(rescued.lost.iter().map(|block| (*block, UNALLOCATED)));
        let mut copies = Vec::new();
        let mut end = old_len.next_multiple_of(SECTOR);
        for block in relocated(&rescued.table, layout) {
            let to = layout
                .aligned_entry(end)
                .ok_or_else(|| backing.format_is_full())?;
            let from = rescued
                .table
                .get(block as usize)
                .copied()
                .unwrap_or(UNALLOCATED);
            copies.push((layout.region(from), layout.region(to)));
            table.insert(block, to);
            end = layout.region(to) + layout.region_len();
        }
        let mut patches = Vec::new();
        let mut patch = |offset: u64, new: &[u8]| -> Result<(), IoError> {
            let mut old = vec![0; new.len()];
            backing.read(&mut old, offset)?;
            patches.push(Patch {
                offset,
                old,
                new: new.to_vec(),
            });
            Ok(())
        };
        if found.head_is_lost {
            patch(0, &found.footer_bytes)?;
        }
        let mut tail_offset = found.data_end.next_multiple_of(SECTOR);
        if !copies.is_empty() || tail_offset + footer::LEN as u64 > old_len {
            // Wholly behind the end, and not over bytes that are not kept.
            tail_offset = end;
        }
        let mut tail = None;
        if found.tail_is_lost || !copies.is_empty() {
            if tail_offset < old_len {
                patch(tail_offset, &found.footer_bytes)?;
            } else {
                tail = Some(tail_offset);
            }
        }
        for (offset, entries) in table_sectors(layout, &table) {
            let mut new = vec![0; SECTOR as usize];
            backing.read(&mut new, offset)?;
            for (at, entry) in entries {
                new[at..at + 4].copy_from_slice(&entry.to_be_bytes());
            }
            patch(offset, &new)?;
        }
        if patches.is_empty() && tail.is_none() {
            return Ok(None);
        }
        let new_len = tail.map_or(old_len, |tail| tail + footer::LEN as u64);
        Ok(Some(Plan {
            journal: Journal {
                state: State::Begun,
                old_len,
                new_len,
                patches,
                report: RepairReport {
                    copied_bytes: copies.len() as u64 * u64::from(layout.block_size),
                    lost_blocks: rescued.lost,
                    doubtful_blocks: rescued.doubtful,
                },
            },
            copies,
            region_len: layout.region_len(),
            footer: found.footer_bytes,
            tail,
        }))
    }

    /// Does it. The journal is durable.
    pub(crate) fn apply(
        &self,
        backing: &Backing,
        tuning: Tuning,
        io: &impl Fn(IoError) -> OperationError,
        tell: &mut dyn FnMut(u64) -> Result<(), OperationError>,
    ) -> Result<(), OperationError> {
        const PIECE: u64 = 1 << 20;
        let mut buf = vec![0; PIECE.min(self.region_len) as usize];
        let mut done = 0;
        for (from, to) in &self.copies {
            let mut at = 0;
            while at < self.region_len {
                let len = (self.region_len - at).min(buf.len() as u64) as usize;
                backing.read(&mut buf[..len], from + at).map_err(io)?;
                backing.write(&buf[..len], to + at).map_err(io)?;
                at += len as u64;
            }
            done += self.region_len;
            tell(done.min(self.journal.report.copied_bytes))?;
        }
        if let Some(tail) = self.tail {
            backing.write(&self.footer, tail).map_err(io)?;
        }
        if !tuning.is(Mutant::TableBeforeData) {
            backing.sync().map_err(io)?;
        }
        for Patch { offset, new, .. } in &self.journal.patches {
            backing.write(new, *offset).map_err(io)?;
        }
        backing.sync().map_err(io)
    }
}

/// The blocks that lie over one before them, by their place in the file: all
/// but the first of those that share bytes.
fn relocated(table: &[u32], layout: &Layout) -> Vec<u32> {
    let mut sorted: Vec<(u32, u32)> = (0u32..)
        .zip(table)
        .filter(|(_, entry)| **entry != UNALLOCATED)
        .map(|(block, entry)| (*entry, block))
        .collect();
    sorted.sort_unstable();
    let mut blocks = Vec::new();
    let mut free_from = 0;
    for (entry, block) in sorted {
        if layout.region(entry) < free_from {
            blocks.push(block);
        } else {
            free_from = layout.region(entry) + layout.region_len();
        }
    }
    blocks
}

/// The sectors of the table that change: where they are, and what changes in
/// them.
fn table_sectors(layout: &Layout, table: &BTreeMap<u32, u32>) -> BTreeMap<u64, Vec<(usize, u32)>> {
    let mut sectors: BTreeMap<u64, Vec<(usize, u32)>> = BTreeMap::new();
    for (block, entry) in table {
        let at = u64::from(*block) * 4;
        let sector = layout.bat_offset + at / SECTOR * SECTOR;
        let within = (at % SECTOR) as usize;
        sectors.entry(sector).or_default().push((within, *entry));
    }
    sectors
}
