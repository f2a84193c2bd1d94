//! A file in memory, for tests and fuzzing.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::{Space, Storage};

/// A file that is a vector.
#[derive(Debug, Default)]
pub(crate) struct MemoryStorage(Mutex<Vec<u8>>);

impl MemoryStorage {
    pub(crate) fn new(bytes: Vec<u8>) -> MemoryStorage {
        MemoryStorage(Mutex::new(bytes))
    }

    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longest file in memory: larger ones are refused, as a full disk would.
const LIMIT: u64 = 256 << 20;

fn span(offset: u64, len: u64) -> io::Result<Range<usize>> {
    match offset.checked_add(len) {
        Some(end) if end <= LIMIT => Ok(offset as usize..end as usize),
        _ => Err(io::ErrorKind::StorageFull.into()),
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.bytes();
        let found = span(offset, buf.len() as u64)
            .ok()
            .and_then(|span| bytes.get(span));
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let span = span(offset, buf.len() as u64)?;
        let mut bytes = self.bytes();
        if bytes.len() < span.end {
            bytes.resize(span.end, 0);
        }
        bytes[span].copy_from_slice(buf);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let span = span(0, len)?;
        self.bytes().resize(span.end, 0);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, _space: Space) -> io::Result<()> {
        let span = span(offset, len)?;
        let mut bytes = self.bytes();
        let end = span.end.min(bytes.len());
        if span.start < end {
            bytes[span.start..end].fill(0);
        }
        Ok(())
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        Ok((!range.is_empty()).then_some(range))
    }
}
