//! A real file, through the page cache.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::{FilePlace, ReadAhead, Space, Storage};
#[cfg(test)]
use super::{fault::Op, trace};
use crate::queue::Intent;

/// A regular file.
#[derive(Debug)]
pub(crate) struct FileStorage {
    file: Arc<File>,
    ahead: Option<Arc<ReadAhead>>,
}

impl FileStorage {
    pub(crate) fn new(file: File) -> FileStorage {
        FileStorage {
            file: Arc::new(file),
            ahead: None,
        }
    }

    /// A file that is to be read and written by a guest, anywhere.
    pub(crate) fn of_guest(file: File) -> FileStorage {
        FileStorage {
            ahead: ReadAhead::of(&file).map(Arc::new),
            file: Arc::new(file),
        }
    }

    /// Reserves the space of the first `len` bytes, making the file that
    /// long. `Unsupported` where the file system can't.
    pub(crate) fn reserve(file: &File, len: u64) -> io::Result<()> {
        let reserve = || rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len);
        #[cfg(test)]
        let reserve = || {
            let set = || Op::SetLen(len.max(file.metadata().map_or(0, |data| data.len())));
            trace::change(file, set, reserve)
        };
        uninterrupted(reserve)
    }
}

/// The first run of bytes in `range` that the file system holds data for, as
/// far as it can tell. Moves the descriptor's position.
pub(crate) fn next_data(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(range.start)) {
        Ok(start) if start < range.end => start.max(range.start),
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        // A file system without holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Some(range)),
        Err(error) => return Err(error.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end.clamp(start, range.end),
        Err(Errno::INVAL | Errno::NXIO | Errno::OPNOTSUPP | Errno::NOSYS) => range.end,
        Err(error) => return Err(error.into()),
    };
    // A hole that appeared between the two calls: the caller gets on anyway.
    Ok(Some(start..if end > start { end } else { range.end }))
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(ahead) = &self.ahead {
            ahead.read(&self.file, offset..offset.saturating_add(buf.len() as u64));
        }
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn zero(&self, offset: u64, len: u64, space: Space) -> io::Result<()> {
        let flags = FallocateFlags::KEEP_SIZE
            | match space {
                Space::Release => FallocateFlags::PUNCH_HOLE,
                Space::Keep => FallocateFlags::ZERO_RANGE,
            };
        let zero = || rustix::fs::fallocate(&self.file, flags, offset, len);
        #[cfg(test)]
        let zero = || trace::change(&self.file, || Op::Zero { offset, len }, zero);
        match uninterrupted(zero) {
            // A block device, of less than one of its sectors.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Err(io::ErrorKind::Unsupported.into())
            }
            result => result,
        }
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        next_data(&self.file, range)
    }

    fn drop_cache(&self) -> io::Result<()> {
        let drop = || rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
        #[cfg(test)]
        let drop = || trace::drop_cache(&self.file, drop);
        match drop() {
            // A file system without a cache to drop.
            Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_behind(&self, range: Range<u64>) {
        let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) else {
            return;
        };
        // Dirty pages can't be dropped; Linux starts writing them instead,
        // and waits for nothing.
        let _ = rustix::fs::fadvise(&self.file, range.start, Some(len), Advice::DontNeed);
    }

    fn place(&self, _intent: Intent) -> Option<FilePlace> {
        Some(FilePlace {
            file: Arc::clone(&self.file),
            alignment: 1,
            hold: None,
            ahead: self.ahead.clone(),
        })
    }
}

fn uninterrupted(mut call: impl FnMut() -> rustix::io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Err(io::ErrorKind::Unsupported.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skipped::skipped;

    fn storage() -> FileStorage {
        FileStorage::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn data_and_holes_are_told_apart() {
        let storage = storage();
        storage.set_len(4 << 20).unwrap();
        storage.write_at(&[1; 4096], 1 << 20).unwrap();
        let found = storage.next_data(0..4 << 20).unwrap().unwrap();
        if found == (0..4 << 20) {
            skipped("this file system does not report holes");
            return;
        }
        assert_eq!(found, 1 << 20..(1 << 20) + 4096);
        assert_eq!(storage.next_data(found.end..4 << 20).unwrap(), None);
        assert_eq!(
            storage.next_data((1 << 20) + 5..(1 << 20) + 9).unwrap(),
            Some((1 << 20) + 5..(1 << 20) + 9)
        );
        assert_eq!(storage.next_data(7..7).unwrap(), None);
    }

    #[test]
    fn zeroed_bytes_read_as_zero_and_the_length_stays() {
        for space in [Space::Release, Space::Keep] {
            let storage = storage();
            storage.write_at(&[7; 20_000], 0).unwrap();
            match storage.zero(100, 15_000, space) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    skipped(format_args!("this file system can't zero with {space:?}"));
                    continue;
                }
                result => result.unwrap(),
            }
            let mut buf = vec![0; 20_000];
            storage.read_at(&mut buf, 0).unwrap();
            assert!(buf[..100].iter().all(|&byte| byte == 7));
            assert!(buf[100..15_100].iter().all(|&byte| byte == 0));
            assert!(buf[15_100..].iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn reading_past_the_end_is_an_error() {
        let storage = storage();
        storage.write_at(&[7; 10], 0).unwrap();
        let error = storage.read_at(&mut [0; 11], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
