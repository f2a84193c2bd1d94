//! Giving a disk another size.
//!
//! A dynamic or differencing disk has a copy of its footer at the beginning,
//! one sector, that rules: whatever the new size needs is made durable first,
//! and that sector then tells it (`sparse`). A fixed disk has one footer, at
//! the end that moves, and its beginning is the guest's: a record beside the
//! file says what is under way (`fixed`).

pub(crate) mod fixed;
pub(crate) mod sparse;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;

use crate::block::{BlockDevice, ExtentKind, IoError};
use crate::chain::{self, ParentSearch};
use crate::children::children_of;
use crate::error::OpenError;
use crate::format::{DiskType, SECTOR};
use crate::gate::Gate;
use crate::image::{self, Recognised, Refusal, Tuning, recognise};
use crate::import::Progress;
use crate::lock::{self, Mode};
use crate::modified::Stamp;
use crate::operation::{OperationError, report};
use crate::pool::{Place, Pool};
use crate::repair;
use crate::sidefile::MERGING;
use crate::size::DiskSize;
use crate::storage::{Backing, FileStorage};
use crate::tidy::tidy;

/// How a disk is resized.
#[derive(Debug, Clone)]
pub struct ResizeOptions {
    /// The new size.
    pub size: DiskSize,
    /// Cut data off where that lies behind the new end, and leave children
    /// behind that don't fit any more.
    pub force: bool,
    /// Where the parents of a differencing disk are looked for.
    pub search: ParentSearch,
}

/// What a resize did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResizeReport {
    /// The size before, in bytes.
    pub old_size: u64,
    /// The size now, in bytes.
    pub new_size: u64,
}

/// Gives the disk `rel` another size. Nobody may have it open. Every change
/// passes `gate`. What is added reads as zeros.
///
/// Refused, unless forced: to cut off anything that is not zero (the refusal
/// says where the last byte of data is, and the smallest size that keeps it);
/// for a disk with children in its pool, which would not fit it any more; and to make a differencing disk longer where its parent has data
/// that would show. Always refused: a disk that belongs to a saved state. The
/// file system is asked for space before anything is touched; a fixed disk's
/// is reserved.
///
/// After an error, a cancellation or a crash the disk has the old or the new
/// size and all its data. Reading it as it is takes no repair; of a fixed
/// disk, the next one to open it for writing ends what was begun.
///
/// The partitions and file systems on the disk are the guest's to adapt.
pub fn resize(
    pool: &Pool,
    rel: impl AsRef<Path>,
    gate: Gate,
    options: &ResizeOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<ResizeReport, OperationError> {
    let rel = rel.as_ref();
    let place = pool.place(rel)?;
    let (file, _lock) = lock::open_owned(&place, Mode::Exclusive, &gate, None)
        .map_err(|error| OpenError::from_lock(rel, error))?;
    let disk = Disk {
        pool,
        rel,
        place,
        file: File::from(file),
        gate,
    };
    let bad = |refusal: Refusal| OpenError::from_refusal(rel, refusal);
    let backing = disk.backing()?;
    backing.read_afresh().map_err(OperationError::io(rel))?;
    fixed::settle(&disk.place, &backing).map_err(bad)?;
    let found = recognise(&backing, Tuning::default()).map_err(bad)?;
    let (old_size, new_size) = (found.footer.current_size, options.size.bytes());
    let done = ResizeReport { old_size, new_size };
    if found.footer.saved_state {
        return Err(disk.refused("it belongs to a saved state; discard or restore that first"));
    }
    repair::refuse_cut_off(&disk.place, &backing)?;
    if old_size == new_size {
        return Ok(done);
    }
    if !options.force {
        disk.refuse_children(&found)?;
        disk.refuse_loss(&found, new_size, &options.search, progress)?;
    }
    // Whoever goes on with a merge into it must know of this.
    MERGING.forget(&disk.place)?;
    let stamp = Stamp::take(&disk.file).map_err(|error| disk.system("look at the file", error))?;
    if found.disk_type == DiskType::Fixed {
        disk.resize_fixed(&found, new_size, progress)?;
    } else {
        disk.resize_sparse(found, new_size)?;
    }
    stamp
        .move_on(&disk.gate, &rel.to_string_lossy())
        .map_err(OperationError::io(rel))?;
    // Too late to cancel it.
    let _ = report(new_size, new_size, progress);
    Ok(done)
}

/// A disk that is locked to be resized.
struct Disk<'a> {
    pool: &'a Pool,
    rel: &'a Path,
    place: Place,
    file: File,
    gate: Gate,
}

impl Disk<'_> {
    fn refused(&self, reason: &str) -> OperationError {
        OperationError::Refused {
            path: self.rel.to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn system(&self, operation: &'static str, source: std::io::Error) -> OperationError {
        OperationError::Open(OpenError::Io {
            path: self.rel.to_owned(),
            operation,
            source,
        })
    }

    fn backing(&self) -> Result<Backing, OperationError> {
        let file = self.file.try_clone();
        let file = file.map_err(|source| self.system("open the file", source))?;
        Ok(Backing::new(
            Box::new(FileStorage::new(file)),
            self.gate.clone(),
            &self.rel.to_string_lossy(),
        ))
    }

    /// Refuses while there are children, which the disk would not fit.
    fn refuse_children(&self, found: &Recognised) -> Result<(), OperationError> {
        const MOST: usize = 16;
        let children = children_of(self.pool, self.rel, &[found.footer.unique_id])?;
        if children.is_empty() {
            return Ok(());
        }
        let named = children.iter().take(MOST);
        let names: Vec<String> = named.map(|path| path.display().to_string()).collect();
        let more = match children.len() - names.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(self.refused(&format!(
            "it has children, which would not fit it any more: {}{more}; merge or remove those first (searched: all of {})",
            names.join(", "),
            self.pool.path().display()
        )))
    }

    /// Refuses to cut off what the disk shows behind its new end, and to show
    /// what a parent has there.
    fn refuse_loss(
        &self,
        found: &Recognised,
        new_size: u64,
        search: &ParentSearch,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), OperationError> {
        let bad = |refusal: Refusal| OpenError::from_refusal(self.rel, refusal);
        let old_size = found.footer.current_size;
        let grows = new_size > old_size;
        let backing = self.backing()?;
        let link = chain::read_link(&backing, found).map_err(bad)?;
        if link.is_none() && grows {
            return Ok(());
        }
        let (identity, _) = chain::look_at(self.rel, &self.file)?;
        let mut parents = chain::open_parents(self.pool, self.rel, identity, link, search, true)?;
        let io = OperationError::io(self.rel);
        if grows {
            let Some(parent) = &parents.image else {
                return Ok(());
            };
            let end = new_size.min(parent.size());
            return match last_data(&**parent, old_size..end, &io, progress)? {
                None => Ok(()),
                Some(byte) => Err(self.refused(&format!(
                    "its parent has data behind the disk's end of {old_size} bytes, up to byte {byte}, \
                     that would show; merge or convert the disk first, or force it"
                ))),
            };
        }
        let tuning = Tuning::default();
        let image = image::assemble(backing, found, parents.image.take(), true, tuning);
        let image = image.map_err(bad)?;
        match last_data(&*image, new_size..old_size, &io, progress)? {
            None => Ok(()),
            Some(byte) => {
                let least = (byte + 1)
                    .next_multiple_of(SECTOR)
                    .max(DiskSize::MIN.bytes());
                Err(self.refused(&format!(
                    "{new_size} bytes would cut data off: the last byte that is not zero is byte {byte}, \
                     so the smallest size is {least} bytes; make the file systems on it smaller first, or force it"
                )))
            }
        }
    }

    fn refuse_without_space(&self, need: u64) -> Result<(), OperationError> {
        let have = self.place.space()?.available;
        if have < need {
            return Err(OperationError::NoSpace {
                path: self.rel.to_owned(),
                need,
                have,
            });
        }
        Ok(())
    }

    fn resize_fixed(
        &self,
        found: &Recognised,
        new_size: u64,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), OperationError> {
        let io = OperationError::io(self.rel);
        let backing = self.backing()?;
        let Some(record) = fixed::Record::plan(&backing, found, new_size).map_err(&io)? else {
            return Err(self.refused(
                "bytes that belong to nothing lie between its data and its footer; convert it first",
            ));
        };
        let grown = new_size.saturating_sub(found.footer.current_size);
        self.refuse_without_space(grown)?;
        self.gate.enter().map(drop).map_err(&io)?;
        let reserved = match fixed::reserve(&self.file, record.new_len(), &self.gate) {
            Ok(reserved) => reserved,
            Err(source) if source.kind() == std::io::ErrorKind::StorageFull => {
                let have = self.place.space()?.available;
                return Err(OperationError::NoSpace {
                    path: self.rel.to_owned(),
                    need: grown,
                    have,
                });
            }
            Err(source) => return Err(self.system("reserve the disk's space", source)),
        };
        record.write(&self.place)?;
        let tell = &mut |done| report(done, new_size, progress);
        let tell = (!reserved).then_some(tell as &mut dyn FnMut(u64) -> _);
        let result = record.apply(&backing, &io, tell);
        // An error leaves the old size or the new one; if that can't be
        // written either, whoever opens the disk next tries again.
        let settled = fixed::settle(&self.place, &backing);
        result?;
        settled.map_err(|refusal| OpenError::from_refusal(self.rel, refusal))?;
        Ok(())
    }

    fn resize_sparse(&self, found: Recognised, new_size: u64) -> Result<(), OperationError> {
        let bad = |refusal: Refusal| OpenError::from_refusal(self.rel, refusal);
        let io = OperationError::io(self.rel);
        if let Some(reason) = sparse::obstacle(&found, new_size) {
            return Err(self.refused(&reason));
        }
        self.refuse_without_space(sparse::need(&found, new_size))?;
        // What a crash left behind is mended first, and space reserved for
        // growth given back: what follows goes behind the end of the file.
        self.tidy(&found)?;
        let backing = self.backing()?;
        let found = recognise(&backing, Tuning::default()).map_err(bad)?;
        sparse::apply(&backing, &found, new_size, Tuning::default()).map_err(&io)?;
        let found = recognise(&backing, Tuning::default()).map_err(bad)?;
        self.tidy(&found)
    }

    fn tidy(&self, found: &Recognised) -> Result<(), OperationError> {
        tidy(self.backing()?, found).map_err(|refusal| match refusal {
            Refusal::Io(error) => OperationError::io(self.rel)(error),
            refusal => OpenError::from_refusal(self.rel, refusal).into(),
        })
    }
}

/// How much is asked for at once, going backwards.
const WINDOW: u64 = 64 << 20;
/// How much is read at once.
const PIECE: u64 = 1 << 20;

/// The last byte in the range that is not zero.
fn last_data(
    disk: &dyn BlockDevice,
    range: std::ops::Range<u64>,
    io: &impl Fn(IoError) -> OperationError,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Option<u64>, OperationError> {
    let total = range.end.saturating_sub(range.start);
    let mut buf = vec![0; PIECE as usize];
    let mut end = range.end;
    while end > range.start {
        let start = end.saturating_sub(WINDOW).max(range.start);
        let mut data = Vec::new();
        let mut at = start;
        while at < end {
            for extent in disk.block_status(at, end - at).map_err(io)? {
                at = extent.offset + extent.len;
                if extent.kind == ExtentKind::Data {
                    data.push(extent.offset..at);
                }
            }
        }
        for data in data.into_iter().rev() {
            let mut end = data.end;
            while end > data.start {
                let start = end.saturating_sub(PIECE).max(data.start);
                let piece = &mut buf[..(end - start) as usize];
                disk.read_at(piece, start).map_err(io)?;
                if let Some(last) = piece.iter().rposition(|byte| *byte != 0) {
                    return Ok(Some(start + last as u64));
                }
                end = start;
            }
        }
        end = start;
        report(range.end - end, total, progress)?;
    }
    Ok(None)
}
