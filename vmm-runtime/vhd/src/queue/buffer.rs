//! Bytes that begin where a disk can take them.

use std::ops::{Deref, DerefMut};

/// A buffer for a request. Its bytes begin at a multiple of
/// [`Buffer::ALIGNMENT`], so that they need not be copied on their way past
/// the page cache; unless it was made of a vector, which stays as it is.
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
}
