//! The file of a disk behind its gate, with what an image must remember of
//! it: whether anything is unsynced, and whether a sync ever failed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{FileStorage, Space, Storage};
use crate::block::IoError;
use crate::gate::{Gate, GatePass};
use crate::queue::{Intent, Place};

/// Zeros are written in pieces of this size where they must be written.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A storage through which every change passes the gate.
pub(crate) struct Backing {
    storage: Box<dyn Storage>,
    gate: Gate,
    /// For messages.
    name: Arc<str>,
    /// Set once a change has completed, cleared when a sync begins.
    unsynced: Arc<AtomicBool>,
    /// Held during a sync: who finds `unsynced` clear under it knows that
    /// the sync that cleared it is over.
    syncing: Mutex<()>,
    /// Why the first failed sync failed. The kernel may have dropped the
    /// pages and would report the next sync as good, so nothing is written
    /// after it.
    failed: OnceLock<Arc<io::Error>>,
    /// A fault of the tests: failed syncs are forgotten.
    #[cfg(test)]
    forget_failed_syncs: bool,
}

impl Backing {
    pub(crate) fn new(storage: Box<dyn Storage>, gate: Gate, name: &str) -> Backing {
        Backing {
            storage,
            gate,
            name: name.into(),
            // Someone may have written before us and died before the sync.
            unsynced: Arc::new(AtomicBool::new(true)),
            syncing: Mutex::new(()),
            failed: OnceLock::new(),
            #[cfg(test)]
            forget_failed_syncs: false,
        }
    }

    #[cfg(test)]
    pub(crate) fn forgetting_failed_syncs(self, forget_failed_syncs: bool) -> Backing {
        Backing {
            forget_failed_syncs,
            ..self
        }
    }

    pub(crate) fn len(&self) -> Result<u64, IoError> {
        self.storage
            .len()
            .map_err(|error| self.error("ask for the length", error))
    }

    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        self.storage
            .read_at(buf, offset)
            .map_err(|error| self.error("read", error))
    }

    pub(crate) fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>, IoError> {
        self.storage
            .next_data(range)
            .map_err(|error| self.error("look for data", error))
    }

    /// Begins to bring to disk what was written in the range. For speed
    /// alone, and no change: what the gate let through comes to the disk
    /// sooner.
    pub(crate) fn write_behind(&self, range: Range<u64>) {
        self.storage.write_behind(range);
    }

    /// Refuses when nothing may be written: the gate is closed, or a sync
    /// failed. Hold the pass while a change is submitted.
    pub(crate) fn may_write(&self) -> Result<GatePass<'_>, IoError> {
        let pass = self.gate.enter()?;
        #[cfg(test)]
        if self.forget_failed_syncs {
            return Ok(pass);
        }
        match self.failed.get() {
            None => Ok(pass),
            Some(source) => Err(IoError::SyncFailed {
                disk: self.name.clone(),
                source: source.clone(),
            }),
        }
    }

    /// Where bytes of the file are, for who reads them without our calls.
    pub(crate) fn place_to_read(&self, offset: u64) -> Option<Place> {
        let place = self.storage.place(Intent::Read)?;
        Some(Place::to_read(place, offset))
    }

    /// The same for writing, past the gate. `None` also when nothing may be
    /// written.
    pub(crate) fn place_to_write(&self, offset: u64) -> Option<Place> {
        let pass = self.gate.enter_held().ok()?;
        if self.failed.get().is_some() {
            return None;
        }
        let place = self.storage.place(Intent::Write)?;
        let unsynced = Arc::clone(&self.unsynced);
        Some(Place::to_write(place, offset, unsynced, pass))
    }

    pub(crate) fn write(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        let _pass = self.may_write()?;
        let result = self.storage.write_at(buf, offset);
        // After an error too: part of it may be there.
        self.unsynced.store(true, Ordering::SeqCst);
        result.map_err(|error| self.error("write", error))
    }

    pub(crate) fn set_len(&self, len: u64) -> Result<(), IoError> {
        let _pass = self.may_write()?;
        let result = self.storage.set_len(len);
        self.unsynced.store(true, Ordering::SeqCst);
        result.map_err(|error| self.error("set the length", error))
    }

    /// Makes a range within the file read as zeros, by writing them where
    /// nothing better works.
    pub(crate) fn zero(&self, offset: u64, len: u64, space: Space) -> Result<(), IoError> {
        if len == 0 {
            return Ok(());
        }
        {
            let _pass = self.may_write()?;
            let result = self.storage.zero(offset, len, space);
            self.unsynced.store(true, Ordering::SeqCst);
            match result {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                result => return result.map_err(|error| self.error("write zeros", error)),
            }
        }
        self.write_zeros(offset, len)
    }

    /// Writes zeros, whatever that costs: afterwards there is space for the
    /// range.
    pub(crate) fn write_zeros(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let piece = (end - at).min(ZEROS.len() as u64);
            self.write(&ZEROS[..piece as usize], at)?;
            at += piece;
        }
        Ok(())
    }

    /// Makes every change durable that completed before the call.
    pub(crate) fn sync(&self) -> Result<(), IoError> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let _pass = self.may_write()?;
        if !self.unsynced.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        self.storage.sync_data().map_err(|error| {
            let source = Arc::clone(self.failed.get_or_init(|| Arc::new(error)));
            IoError::SyncFailed {
                disk: self.name.clone(),
                source,
            }
        })
    }

    /// Call before anything is read from a file that is to be written to.
    ///
    /// After a sync that failed the kernel keeps the pages as clean ones, so
    /// the page cache may show what the disk does not hold: an entry of the
    /// table, say, that nobody would write again because it is there. What can
    /// be synced is, and the rest is forgotten.
    pub(crate) fn read_afresh(&self) -> Result<(), IoError> {
        if !self.gate.is_open() {
            // It stays closed: nothing will be written.
            return Ok(());
        }
        self.sync()?;
        self.storage
            .drop_cache()
            .map_err(|error| self.error("drop the page cache", error))
    }

    fn error(&self, operation: &'static str, error: io::Error) -> IoError {
        if let Some(IoError::GateClosed) = error
            .get_ref()
            .and_then(|error| error.downcast_ref::<IoError>())
        {
            return IoError::GateClosed;
        }
        let disk = self.name.clone();
        match error.kind() {
            io::ErrorKind::StorageFull => IoError::NoSpace {
                disk,
                operation,
                reason: "the file system is full".into(),
            },
            io::ErrorKind::QuotaExceeded => IoError::NoSpace {
                disk,
                operation,
                reason: "the quota is used up".into(),
            },
            io::ErrorKind::FileTooLarge => IoError::NoSpace {
                disk,
                operation,
                reason: "the file system does not allow a larger file".into(),
            },
            _ => IoError::Io {
                disk,
                operation,
                source: Arc::new(error),
            },
        }
    }

    /// The error of a file that can't grow within the format.
    pub(crate) fn format_is_full(&self) -> IoError {
        IoError::NoSpace {
            disk: self.name.clone(),
            operation: "allocate a block",
            reason: "the file has reached the 2 TiB that a VHD can address; compact it".into(),
        }
    }
}

impl Backing {
    /// The file `rel` of a pool, of which nothing is to be changed: its gate
    /// is closed.
    pub(crate) fn read_only(file: File, rel: &Path) -> Backing {
        let gate = Gate::open();
        gate.close();
        let name = rel.to_string_lossy();
        Backing::new(Box::new(FileStorage::new(file)), gate, &name)
    }
}
