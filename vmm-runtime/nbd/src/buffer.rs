//! Buffers that are used again.

use std::sync::{Mutex, PoisonError};

/// Buffers up to this size are kept, in bytes; larger ones are given back at once.
const KEPT_BYTES: usize = (1 << 20) + 4096;
/// All that one connection keeps, in bytes.
const KEPT_TOTAL_BYTES: usize = 4 << 20;

/// Bytes that grow at the end. Growing does not zero what an earlier use has left: whoever takes space fills it.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    used: usize,
}

impl Buffer {
    pub fn len(&self) -> usize {
        self.used
    }

    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }

    /// Forgets what was put after the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.used = self.used.min(len);
    }

    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    /// Appends `len` bytes of any content, for the caller to fill.
    pub fn space(&mut self, len: usize) -> &mut [u8] {
        let start = self.used;
        self.used += len;
        if self.bytes.len() < self.used {
            self.bytes.resize(self.used, 0);
        }
        self.bytes.get_mut(start..self.used).unwrap_or_default()
    }
}

/// Buffers of one connection that are not in use, bounded in bytes.
#[derive(Debug, Default)]
pub(crate) struct Spare(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    buffers: Vec<Buffer>,
    bytes: usize,
}

impl Spare {
    pub fn take(&self) -> Buffer {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = kept.buffers.pop().unwrap_or_default();
        kept.bytes -= buffer.bytes.capacity();
        buffer
    }

    pub fn give(&self, mut buffer: Buffer) {
        let size = buffer.bytes.capacity();
        buffer.truncate(0);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if size > 0 && size <= KEPT_BYTES && kept.bytes + size <= KEPT_TOTAL_BYTES {
            kept.bytes += size;
            kept.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_back_is_not_there() {
        let mut buffer = Buffer::default();
        buffer.put(b"header");
        let start = buffer.len();
        buffer.space(3).fill(7);
        assert_eq!(buffer.as_slice(), b"header\x07\x07\x07");
        buffer.truncate(start);
        buffer.put(b"x");
        assert_eq!(buffer.as_slice(), b"headerx");
    }

    #[test]
    fn spare_buffers_are_bounded() {
        let spare = Spare::default();
        for len in [0, 2 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20] {
            let mut buffer = Buffer::default();
            buffer.space(len);
            spare.give(buffer);
        }
        assert_eq!(spare.0.lock().unwrap().buffers.len(), 4);
        assert_eq!(spare.0.lock().unwrap().bytes, 4 << 20);
        let buffer = spare.take();
        assert!(buffer.len() == 0 && buffer.bytes.len() == 1 << 20);
        assert_eq!(spare.0.lock().unwrap().bytes, 3 << 20);
    }
}
