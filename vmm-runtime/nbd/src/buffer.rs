//! Buffers that are used again.

use std::sync::{Mutex, PoisonError};

use paddock_vhd::Buffer;

/// Buffers that take up to this much memory are kept, in bytes; larger ones are given back at once. Room for 1 MiB and
/// its header.
const KEPT_BYTES: usize = (1 << 20) + 2 * Buffer::ALIGNMENT;
/// All that one connection keeps, in bytes.
const KEPT_TOTAL_BYTES: usize = 4 * KEPT_BYTES;

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
        kept.bytes -= buffer.capacity();
        buffer
    }

    pub fn give(&self, mut buffer: Buffer) {
        let size = buffer.capacity();
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
    fn spare_buffers_are_bounded() {
        let spare = Spare::default();
        let whole = (1 << 20) + Buffer::ALIGNMENT;
        for len in [0, 2 << 20, whole, whole, whole, whole, whole] {
            let mut buffer = Buffer::default();
            buffer.space(len);
            spare.give(buffer);
        }
        assert_eq!(spare.0.lock().unwrap().buffers.len(), 4);
        assert_eq!(spare.0.lock().unwrap().bytes, KEPT_TOTAL_BYTES);
        let buffer = spare.take();
        assert!(buffer.is_empty() && buffer.capacity() == KEPT_BYTES);
        assert_eq!(spare.0.lock().unwrap().bytes, 3 * KEPT_BYTES);
    }
}
