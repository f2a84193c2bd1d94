//! Fixed disks of another size. Their one footer lies at the end of the file,
//! which moves, and length and content of a file become durable each for
//! itself. So a record beside the file, `NAME.resize`, durable before the file
//! is touched, keeps both footers and where they belong.
//!
//! Growing writes the new footer and then clears the old one; shrinking writes
//! the new footer within the old data and then cuts the file. At any moment
//! one of the two footers is in its place, by which the record is known to be
//! of this file. While there is a record, a reader sees the smaller of the two
//! disks, which is whole all the time; a writer first ends what was begun, or
//! takes it back where the new footer of a grown disk isn't there yet.

use std::fs::File;
use std::io;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::block::IoError;
use crate::format::footer::{self, Footer};
use crate::format::{DiskType, SECTOR};
use crate::gate::Gate;
use crate::image::{Recognised, Refusal, Tuning, recognise};
use crate::operation::OperationError;
use crate::pool::{Place, PoolError};
use crate::sidefile::RESIZE;
use crate::storage::{Backing, Space};

const MARK: &[u8; 32] = b"resize of a fixed VHD, version 1";
const NUMBERS: usize = MARK.len();
const FOOTERS: usize = NUMBERS + 24;
const SUM: usize = FOOTERS + 2 * footer::LEN;
const LEN: usize = SUM + 32;

/// What a resize is about to do, or has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    old_size: u64,
    /// The file's length before: the old footer may have 511 bytes.
    old_len: u64,
    old: [u8; footer::LEN],
    new_size: u64,
    new: [u8; footer::LEN],
}

/// What there is of the two footers.
#[derive(Debug, Clone, Copy)]
struct There {
    old: bool,
    /// At the end of the file.
    new: bool,
}

impl Record {
    /// `None` if the footer does not follow on the data.
    pub(super) fn plan(
        backing: &Backing,
        found: &Recognised,
        new_size: u64,
    ) -> Result<Option<Record>, IoError> {
        let old_size = found.footer.current_size;
        if found.data_end != old_size {
            return Ok(None);
        }
        let mut new = found.footer_bytes;
        found.footer.resized(new_size).encode_size(&mut new);
        Ok(Some(Record {
            old_size,
            old_len: backing.len()?,
            old: found.footer_bytes,
            new_size,
            new,
        }))
    }

    /// How long the file will be.
    pub(super) fn new_len(&self) -> u64 {
        self.new_size + footer::LEN as u64
    }

    fn grows(&self) -> bool {
        self.new_size > self.old_size
    }

    pub(crate) fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MARK);
        put(NUMBERS, &self.old_size.to_be_bytes());
        put(NUMBERS + 8, &self.old_len.to_be_bytes());
        put(NUMBERS + 16, &self.new_size.to_be_bytes());
        put(FOOTERS, &self.old);
        put(FOOTERS + footer::LEN, &self.new);
        let sum = Sha256::digest(&out[..SUM]);
        out[SUM..].copy_from_slice(&sum);
        out
    }

    /// Reads a record. `None` for what is none, or was never complete.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Record> {
        let number = |at: usize| {
            let bytes = bytes.get(NUMBERS + at..NUMBERS + at + 8)?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        };
        let footer = |at: usize| bytes.get(at..at + footer::LEN)?.try_into().ok();
        if bytes.len() != LEN
            || !bytes.starts_with(MARK)
            || Sha256::digest(bytes.get(..SUM)?).as_slice() != bytes.get(SUM..)?
        {
            return None;
        }
        let record = Record {
            old_size: number(0)?,
            old_len: number(8)?,
            old: footer(FOOTERS)?,
            new_size: number(16)?,
            new: footer(FOOTERS + footer::LEN)?,
        };
        // What a footer says of itself rules.
        let old_footer = Footer::parse(&record.old[..record.old_footer_len()?]).ok()?;
        let new_footer = Footer::parse(&record.new).ok()?;
        let fits = old_footer.header_offset.is_none()
            && new_footer.header_offset.is_none()
            && old_footer.current_size == record.old_size
            && new_footer.current_size == record.new_size
            && record.old_size.is_multiple_of(SECTOR)
            && record.new_size.is_multiple_of(SECTOR)
            && record.old_size != record.new_size
            && record.new_size.checked_add(footer::LEN as u64).is_some();
        fits.then_some(record)
    }

    fn old_footer_len(&self) -> Option<usize> {
        let len = usize::try_from(self.old_len.checked_sub(self.old_size)?).ok()?;
        (len == footer::LEN || len == footer::OLD_LEN).then_some(len)
    }

    /// The record beside the disk `disk`, if there is one.
    fn read(disk: &Place) -> Result<Option<Record>, PoolError> {
        // Bounded: the file may be anyone's.
        let bytes = RESIZE.read(disk, LEN as u64 + 1)?;
        Ok(bytes.and_then(|bytes| Record::decode(&bytes)))
    }

    /// Puts the record beside the disk, durably.
    pub(super) fn write(&self, disk: &Place) -> Result<(), PoolError> {
        RESIZE.create(disk, &self.encode()).map(drop)
    }

    /// `None` if it is of another file.
    fn look(&self, backing: &Backing) -> Result<Option<There>, IoError> {
        let len = backing.len()?;
        let is_at = |offset: u64, bytes: &[u8]| -> Result<bool, IoError> {
            let end = offset.checked_add(bytes.len() as u64);
            if end.is_none_or(|end| end > len) {
                return Ok(false);
            }
            let mut found = vec![0; bytes.len()];
            backing.read(&mut found, offset)?;
            Ok(found == bytes)
        };
        let old_len = self.old_footer_len().unwrap_or_default();
        let there = There {
            old: is_at(self.old_size, &self.old[..old_len])?,
            new: len == self.new_len() && is_at(self.new_size, &self.new)?,
        };
        Ok((there.old || there.new).then_some(there))
    }

    /// Gives the file its new size. `tell`: where the space could not be
    /// reserved, so that zeros have to be written; told how far that is.
    pub(super) fn apply(
        &self,
        backing: &Backing,
        io: &impl Fn(IoError) -> OperationError,
        tell: Option<&mut dyn FnMut(u64) -> Result<(), OperationError>>,
    ) -> Result<(), OperationError> {
        if let Some(tell) = tell
            && self.grows()
        {
            const STEP: u64 = 64 << 20;
            let mut at = self.old_len;
            while at < self.new_size {
                let len = STEP.min(self.new_size - at);
                backing.write_zeros(at, len).map_err(io)?;
                at += len;
                tell(at)?;
            }
        }
        backing.write(&self.new, self.new_size).map_err(io)?;
        backing.sync().map_err(io)?;
        self.finish(backing).map_err(io)
    }

    /// The new footer is durable: takes the old one away.
    fn finish(&self, backing: &Backing) -> Result<(), IoError> {
        if self.grows() {
            backing.zero(self.old_size, footer::LEN as u64, Space::Keep)?;
        } else {
            backing.set_len(self.new_len())?;
        }
        backing.sync()
    }

    /// Makes the file one of the two disks.
    pub(crate) fn settle(&self, backing: &Backing) -> Result<(), IoError> {
        match self.look(backing)? {
            Some(There { new: false, .. }) if self.grows() => {
                backing.set_len(self.old_len)?;
                backing.sync()
            }
            Some(There { old: true, .. }) => {
                // Durable before, or not: it was read from the cache.
                backing.write(&self.new, self.new_size)?;
                backing.sync()?;
                self.finish(backing)
            }
            Some(_) => backing.sync(),
            None => Ok(()),
        }
    }

    /// The disk as a reader sees it; `None` if the record is of another file.
    pub(crate) fn view(&self, backing: &Backing) -> Result<Option<Recognised>, IoError> {
        let Some(there) = self.look(backing)? else {
            return Ok(None);
        };
        let (footer_bytes, data_end) = match (self.grows(), there.old) {
            (true, true) => (self.old, self.old_size),
            (true, false) => return Ok(None),
            (false, _) => (self.new, self.new_size),
        };
        // Checked when the record was read.
        let Ok(footer) = Footer::parse(&footer_bytes) else {
            return Ok(None);
        };
        Ok(Some(Recognised {
            disk_type: DiskType::Fixed,
            footer,
            footer_bytes,
            data_end,
            head_is_lost: false,
            tail_is_lost: false,
            header: None,
        }))
    }
}

/// Reserves space up to `len` without making the file longer. False where the
/// file system can't.
pub(super) fn reserve(file: &File, len: u64, gate: &Gate) -> io::Result<bool> {
    let have = file.metadata()?.len();
    if have >= len {
        return Ok(true);
    }
    let _pass = gate.enter().map_err(io::Error::other)?;
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, have, len - have) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => {
            // What was reserved of it goes back.
            file.set_len(have)?;
            Err(error.into())
        }
    }
}

/// What a resize that is not over makes of the disk at `place`, to be read;
/// `None` if none is under way.
pub(crate) fn pending(place: &Place, backing: &Backing) -> Result<Option<Recognised>, Refusal> {
    match Record::read(place).map_err(refusal)? {
        Some(record) => Ok(record.view(backing)?),
        None => Ok(None),
    }
}

/// As [`recognise`], for the file at `place` and for reading.
pub(crate) fn recognise_at(place: &Place, backing: &Backing) -> Result<Recognised, Refusal> {
    match pending(place, backing)? {
        Some(found) => Ok(found),
        None => recognise(backing, Tuning::default()),
    }
}

/// Ends a resize of the disk at `place` that was cut off, or takes it back.
/// Hold its lock exclusively.
pub(crate) fn settle(place: &Place, backing: &Backing) -> Result<(), Refusal> {
    let Some(record) = Record::read(place).map_err(refusal)? else {
        return Ok(());
    };
    if record.look(backing)?.is_none() {
        // Of another file that had this name. It says nothing of this one.
        return Ok(());
    }
    record.settle(backing)?;
    RESIZE.forget(place).map_err(refusal)
}

fn refusal(error: PoolError) -> Refusal {
    let disk = match &error {
        PoolError::Io { path, .. }
        | PoolError::NotFound { path }
        | PoolError::NotAFile { path, .. }
        | PoolError::PathEscapes { path } => path.to_string_lossy().as_ref().into(),
    };
    Refusal::Io(IoError::Io {
        disk,
        operation: "look after the record of a resize",
        source: io::Error::other(error).into(),
    })
}

#[cfg(test)]
mod tests;
