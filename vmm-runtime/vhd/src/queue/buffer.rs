//! Bytes that begin where a disk can take them.

use std::ops::{Deref, DerefMut};

/// A buffer for a request. Its bytes begin at a multiple of
/// [`Buffer::ALIGNMENT`], so that they need not be copied on their way past
/// the page cache; unless it was made of a vector, which stays as it is until
/// it grows. May be used again: what is forgotten leaves its room.
#[derive(Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// What the address of the first byte is a multiple of.
    pub const ALIGNMENT: usize = 4096;

    /// A buffer of `len` zeros.
    pub fn new(len: usize) -> Buffer {
        let bytes = vec![0; len.saturating_add(Buffer::ALIGNMENT)];
        // The vector is never made longer, so its bytes stay where they are.
        let start = bytes.as_ptr().align_offset(Buffer::ALIGNMENT);
        // An address that can't be told leaves the buffer unaligned.
        let start = if start < Buffer::ALIGNMENT { start } else { 0 };
        Buffer { bytes, start, len }
    }

    /// The memory it takes, in bytes.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Forgets what is behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Appends `len` bytes for the caller to fill: zeros, or what an earlier
    /// use has left.
    pub fn space(&mut self, len: usize) -> &mut [u8] {
        let used = self.len;
        let needed = used.saturating_add(len);
        if self.bytes.len() - self.start < needed {
            let mut larger = Buffer::new(needed.max(used.saturating_mul(2)));
            larger.truncate(used);
            larger.copy_from_slice(self);
            *self = larger;
        }
        self.len = needed;
        &mut self[used..]
    }

    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Buffer {
        Buffer {
            len: bytes.len(),
            bytes,
            start: 0,
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // In bounds since it was made.
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        let mut clone = Buffer::new(self.len);
        clone.copy_from_slice(self);
        clone
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Buffer) -> bool {
        **self == **other
    }
}

impl Eq for Buffer {}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_a_page_wherever_they_go() {
        for len in [0, 1, 511, 4096, 100_000] {
            let mut buffer = Buffer::new(len);
            assert_eq!(buffer.len(), len);
            buffer.fill(7);
            let moved = Box::new(buffer.clone());
            assert_eq!(*moved, buffer);
            assert_eq!(moved.as_ptr() as usize % 4096, 0);
        }
        assert_eq!(*Buffer::from(vec![1, 2, 3]), [1, 2, 3]);
    }

    #[test]
    fn buffers_grow_and_are_used_again() {
        let mut buffer = Buffer::from(b"header".to_vec());
        buffer.space(3).fill(7);
        assert_eq!(*buffer, *b"header\x07\x07\x07");
        assert_eq!(buffer.as_ptr() as usize % 4096, 0);
        buffer.truncate(100);
        buffer.truncate(6);
        buffer.put(b"x");
        assert_eq!(*buffer, *b"headerx");
        let room = buffer.capacity();
        for byte in 0..100_000_u32 {
            buffer.put(&[byte as u8]);
        }
        assert_eq!(buffer.len(), 100_007);
        assert_eq!(buffer[..8], *b"headerx\0");
        assert_eq!(buffer[100_006], (99_999_u32 % 256) as u8);
        assert_eq!(buffer.as_ptr() as usize % 4096, 0);
        assert!(buffer.capacity() > room && buffer.capacity() < 300_000);
        buffer.truncate(0);
        let at = buffer.as_ptr();
        assert_eq!(buffer.space(100_000).len(), 100_000);
        assert_eq!(buffer.as_ptr(), at, "the room was there");
    }
}
