//! A real file, past the page cache.
//!
//! Whole pages go to the disk directly, through a buffer of ours if the
//! caller's isn't aligned. What is no whole pages is written through the page
//! cache, by another descriptor: odd sectors of foreign disks, and on disks
//! with sectors of 4 KiB all metadata. The kernel keeps the two apart only
//! one after the other: a write through the cache holds up the direct ones.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::{FilePlace, FileStorage, Space, Storage};
use crate::gate::{Gate, GatePass};
use crate::queue::{Buffer, Holds, Intent};

/// What is copied goes through a buffer of this size, a multiple of every
/// alignment.
const BOUNCE: usize = 1 << 20;

/// So many of those are kept for the next who needs one.
const SPARES: usize = 4;

/// A regular file and its twin that bypasses the page cache.
pub(crate) struct DirectStorage {
    cached: FileStorage,
    direct: Arc<File>,
    /// What offset, length and address of a direct request must be multiples
    /// of: a power of two, up to [`Buffer::ALIGNMENT`].
    alignment: usize,
    /// Held shared during a direct write, alone during one through the cache.
    pages: RwLock<()>,
    /// Direct writes under way without the lock. Begun only under it.
    placed: Holds,
    /// Passed once more by each call of the kernel's: the caller's pass may be
    /// older than the wait for a lock, or than the calls before.
    gate: Gate,
    spares: Mutex<Vec<Buffer>>,
}

impl DirectStorage {
    /// [`io::ErrorKind::Unsupported`] where the file system can't.
    pub(crate) fn new(file: File, gate: Gate) -> io::Result<DirectStorage> {
        let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
        let access = rustix::fs::fcntl_getfl(&file)? & OFlags::RWMODE;
        // The same file, whatever its name is by now.
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = access | OFlags::DIRECT | OFlags::CLOEXEC;
        let direct = match rustix::fs::open(own, flags, Mode::empty()) {
            Ok(direct) => direct,
            Err(rustix::io::Errno::INVAL) => return Err(unsupported()),
            Err(error) => return Err(error.into()),
        };
        let alignment = alignment(direct.as_fd()).unwrap_or(Buffer::ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > Buffer::ALIGNMENT {
            return Err(unsupported());
        }
        Ok(DirectStorage {
            cached: FileStorage::new(file),
            direct: Arc::new(File::from(direct)),
            alignment,
            pages: RwLock::new(()),
            placed: Holds::default(),
            gate,
            spares: Mutex::default(),
        })
    }

    fn enter(&self) -> io::Result<GatePass<'_>> {
        self.gate.enter().map_err(io::Error::other)
    }

    /// Has something done with a buffer of [`BOUNCE`] bytes, which hold
    /// anything.
    fn with_bounce<T>(&self, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let spares = || self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = spares().pop();
        let mut bounce = spare.unwrap_or_else(|| Buffer::new(BOUNCE));
        let done = work(&mut bounce);
        let mut spares = spares();
        if spares.len() < SPARES {
            spares.push(bounce);
        }
        done
    }

    fn write_pages(&self, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            let pass = self.enter()?;
            let written = self.direct.write_at(buf, offset);
            drop(pass);
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    buf = buf.get(written..).unwrap_or_default();
                    offset += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_aligned(&self, offset: u64, len: usize) -> bool {
        offset.is_multiple_of(self.alignment as u64) && len.is_multiple_of(self.alignment)
    }

    fn fits(&self, buf: &[u8]) -> bool {
        (buf.as_ptr() as usize).is_multiple_of(self.alignment)
    }

    /// Reads whole pages up to the end of the file; returns how many bytes.
    fn read_pages(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.direct.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => {
                    done += read;
                    // What is no whole page ends the file.
                    if !read.is_multiple_of(self.alignment) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

/// What the kernel says of a file; `None` if it says nothing.
fn alignment(file: impl AsFd) -> Option<usize> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let most = stat.stx_dio_mem_align.max(stat.stx_dio_offset_align);
    (stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && most > 0).then_some(most as usize)
}

impl Storage for DirectStorage {
    fn len(&self) -> io::Result<u64> {
        self.cached.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.is_aligned(offset, buf.len()) && self.fits(buf) {
            let done = self.read_pages(buf, offset)?;
            return match done == buf.len() {
                true => Ok(()),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        let alignment = self.alignment as u64;
        let end = offset + buf.len() as u64;
        self.with_bounce(|bounce| {
            let mut at = offset;
            while at < end {
                let start = at / alignment * alignment;
                let skip = (at - start) as usize;
                let want = ((end - at) as usize).min(bounce.len() - skip);
                let pages = (skip + want).next_multiple_of(self.alignment);
                if self.read_pages(&mut bounce[..pages], start)? < skip + want {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let to = (at - offset) as usize;
                buf[to..to + want].copy_from_slice(&bounce[skip..skip + want]);
                at += want as u64;
            }
            Ok(())
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if !self.is_aligned(offset, buf.len()) {
            let _alone = self.pages.write().unwrap_or_else(PoisonError::into_inner);
            self.placed.wait();
            let _pass = self.enter()?;
            return self.cached.write_at(buf, offset);
        }
        let _shared = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        if self.fits(buf) {
            return self.write_pages(buf, offset);
        }
        self.with_bounce(|bounce| {
            let mut at = offset;
            for piece in buf.chunks(BOUNCE) {
                bounce[..piece.len()].copy_from_slice(piece);
                self.write_pages(&bounce[..piece.len()], at)?;
                at += piece.len() as u64;
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        // One file: both ways of writing, and the disk's own cache.
        self.cached.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.cached.set_len(len)
    }

    fn zero(&self, offset: u64, len: u64, space: Space) -> io::Result<()> {
        // The edges are zeroed in the page cache.
        let _alone = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        self.placed.wait();
        let _pass = self.enter()?;
        self.cached.zero(offset, len, space)
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.cached.next_data(range)
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.cached.drop_cache()
    }

    fn place(&self, intent: Intent) -> Option<FilePlace> {
        let place = FilePlace {
            file: Arc::clone(&self.direct),
            alignment: self.alignment,
            hold: None,
            ahead: None,
        };
        if intent == Intent::Read {
            return Some(place);
        }
        let _shared = match self.pages.try_read() {
            Ok(shared) => shared,
            Err(TryLockError::Poisoned(shared)) => shared.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let hold = Some(self.placed.hold());
        Some(FilePlace { hold, ..place })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::image::random::Random;
    use crate::skipped::skipped;

    /// A file past the page cache; `None`, and says so, where there is none.
    fn storage() -> Option<DirectStorage> {
        let file = tempfile::tempfile().unwrap();
        match DirectStorage::new(file, Gate::open()) {
            Ok(storage) => Some(storage),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                skipped("this file system has no direct access");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn it_does_what_a_vector_does_whatever_the_alignment() {
        for alignment in [512, 4096] {
            let Some(mut storage) = storage() else {
                return;
            };
            // As a disk with larger sectors has it.
            storage.alignment = storage.alignment.max(alignment);
            let mut random = Random::new(3);
            // Not whole pages: a footer ends it.
            let len = 200_000 / 512 * 512 + 512;
            let mut content = vec![0; len];
            storage.set_len(len as u64).unwrap();
            for _ in 0..300 {
                let mut range = random.range(len as u64, 20_000);
                match random.below(3) {
                    0 => range = range.start / 512 * 512..range.end / 512 * 512,
                    1 => range = range.start / 4096 * 4096..range.end / 4096 * 4096,
                    _ => {}
                }
                let span = range.start as usize..range.end as usize;
                let size = span.len();
                match random.below(5) {
                    0 | 1 => {
                        let mut found = vec![1; size];
                        storage.read_at(&mut found, range.start).unwrap();
                        assert!(found == content[span], "{range:?}");
                    }
                    2 => {
                        let mut found = Buffer::new(size);
                        storage.read_at(&mut found, range.start).unwrap();
                        assert!(*found == content[span], "{range:?}");
                    }
                    3 => {
                        let bytes = random.bytes(size as u64);
                        storage.write_at(&bytes, range.start).unwrap();
                        content[span].copy_from_slice(&bytes);
                    }
                    _ => {
                        let mut bytes = Buffer::new(size);
                        bytes.copy_from_slice(&random.bytes(size as u64));
                        storage.write_at(&bytes, range.start).unwrap();
                        content[span].copy_from_slice(&bytes);
                    }
                }
            }
            assert_eq!(storage.len().unwrap(), len as u64);
            storage.sync_data().unwrap();
            let mut found = vec![0; len];
            storage.read_at(&mut found, 0).unwrap();
            assert!(found == content);
            let past = storage
                .read_at(&mut [0; 513], len as u64 - 512)
                .unwrap_err();
            assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    /// A deadline that passes while writers wait for each other.
    #[test]
    fn nothing_is_submitted_once_the_gate_has_closed_meanwhile() {
        for offset in [0, 512] {
            let Some(mut storage) = storage() else {
                return;
            };
            storage.alignment = 4096;
            storage.set_len(8192).unwrap();
            let (storage, started) = (&storage, AtomicBool::new(false));
            std::thread::scope(|scope| {
                let alone = storage.pages.write().unwrap();
                let writer = scope.spawn(|| {
                    let _pass = storage.gate.enter().unwrap();
                    started.store(true, Ordering::SeqCst);
                    let mut page = Buffer::new(4096);
                    page.fill(1);
                    storage.write_at(&page, offset)
                });
                while !started.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                assert!(!storage.gate.until(std::time::Duration::from_nanos(1)));
                drop(alone);
                assert!(writer.join().unwrap().is_err());
            });
            assert!(storage.write_at(&[1; 8192], 0).is_err());
            assert!(storage.zero(0, 4096, Space::Keep).is_err());
            let mut found = Buffer::new(8192);
            storage.read_at(&mut found, 0).unwrap();
            assert!(found.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn what_is_copied_goes_through_the_same_buffer_again() {
        let Some(storage) = storage() else {
            return;
        };
        for page in 0..20 {
            storage.write_at(&[9; 4097][1..], page * 4096).unwrap();
            storage.read_at(&mut [0; 100], page * 4096 + 7).unwrap();
        }
        assert_eq!(storage.spares.lock().unwrap().len(), 1);
    }

    /// One thread writes whole pages, another one sectors within them: what
    /// the first wrote around those must stay.
    #[test]
    fn a_write_through_the_cache_takes_nothing_from_a_direct_one() {
        let Some(mut storage) = storage() else {
            return;
        };
        storage.alignment = 4096;
        let storage = &storage;
        let pages = 4;
        storage.set_len(pages * 4096).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut page = 0;
                while !done.load(Ordering::SeqCst) {
                    storage.write_at(&[0xff; 512], page * 4096 + 512).unwrap();
                    page = (page + 1) % pages;
                }
            });
            for round in 1..100_u8 {
                for page in 0..pages {
                    let mut whole = Buffer::new(4096);
                    whole.fill(round);
                    storage.write_at(&whole, page * 4096).unwrap();
                    let mut found = Buffer::new(4096);
                    storage.read_at(&mut found, page * 4096).unwrap();
                    let around = found[..512].iter().chain(&found[1024..]);
                    assert_eq!(around.filter(|byte| **byte != round).count(), 0);
                }
            }
            done.store(true, Ordering::SeqCst);
        });
    }
}
