//! Where the bytes of a request lie in a file, and the right to them.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::gate::{Gate, HeldPass};
use crate::storage::{FilePlace, ReadAhead};

/// What a request located with [`BlockDevice::locate`] is to do.
///
/// [`BlockDevice::locate`]: crate::BlockDevice::locate
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Only reading.
    Read,
    /// Writing: the place then holds a pass of the disk's gate.
    Write,
}

/// A range of a disk as it lies in one file, in one piece. For as long as it
/// is held, those bytes belong to that range; a place to write holds the
/// gate's pass, too. Opaque: a [`Queue`](crate::Queue) knows what to do with
/// it.
#[derive(Debug)]
pub struct Place {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    /// What offset, length and address of a buffer must be multiples of; 1
    /// when the page cache takes everything.
    pub(super) alignment: usize,
    /// Told of reads.
    ahead: Option<Arc<ReadAhead>>,
    /// Told that the file has changed.
    unsynced: Option<Arc<AtomicBool>>,
    /// Given back in this order, after that.
    _block: Option<Hold>,
    _file: Option<Hold>,
    pass: Option<HeldPass>,
}

impl Place {
    /// A place to read from.
    pub(crate) fn to_read(place: FilePlace, offset: u64) -> Place {
        Place {
            file: place.file,
            offset,
            alignment: place.alignment,
            ahead: place.ahead,
            unsynced: None,
            _block: None,
            _file: place.hold,
            pass: None,
        }
    }

    /// A place to write to.
    pub(crate) fn to_write(
        place: FilePlace,
        offset: u64,
        unsynced: Arc<AtomicBool>,
        pass: HeldPass,
    ) -> Place {
        Place {
            file: place.file,
            offset,
            alignment: place.alignment,
            ahead: place.ahead,
            unsynced: Some(unsynced),
            _block: None,
            _file: place.hold,
            pass: Some(pass),
        }
    }

    /// The gate of a place to write to, to be asked once more before a request
    /// is submitted: it may have closed while others were waited for.
    pub(super) fn gate(&self) -> Option<Gate> {
        self.pass.as_ref().map(HeldPass::gate)
    }

    /// Begins to read what comes behind, when `len` bytes from here are read
    /// that follow others.
    pub(super) fn read_ahead(&self, len: usize) {
        if let Some(ahead) = &self.ahead {
            let end = self.offset.saturating_add(len as u64);
            ahead.read(&self.file, self.offset..end);
        }
    }

    /// The same place, with what keeps its block from changing hands.
    pub(crate) fn holding(mut self, hold: Hold) -> Place {
        self._block = Some(hold);
        self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whether it was written or not: part of it may be.
        if let Some(unsynced) = &self.unsynced {
            unsynced.store(true, Ordering::SeqCst);
        }
    }
}

/// Counts the places that are held, so that who wants to give the bytes to
/// someone else can wait for them.
#[derive(Debug, Default)]
pub(crate) struct Holds(Arc<Counter>);

#[derive(Debug, Default)]
struct Counter {
    held: Mutex<u32>,
    none: Condvar,
}

impl Counter {
    fn lock(&self) -> MutexGuard<'_, u32> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One place that is held.
#[derive(Debug)]
pub(crate) struct Hold(Arc<Counter>);

impl Holds {
    pub(crate) fn hold(&self) -> Hold {
        *self.0.lock() += 1;
        Hold(Arc::clone(&self.0))
    }

    /// Waits until no place is held. The caller sees to it that none is taken
    /// meanwhile.
    pub(crate) fn wait(&self) {
        let mut held = self.0.lock();
        while *held > 0 {
            held = self
                .0
                .none
                .wait(held)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.0.lock();
        *held -= 1;
        if *held == 0 {
            self.0.none.notify_all();
        }
    }
}
