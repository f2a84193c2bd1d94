//! Numbers within bytes that were read.

use crate::error::{Stop, doubt};

/// Bytes whose fields are read by their place. A place beyond the end is a
/// doubt, not a panic.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&self, at: usize, len: usize) -> Result<&'a [u8], Stop> {
        match at.checked_add(len).and_then(|end| self.0.get(at..end)) {
            Some(bytes) => Ok(bytes),
            None => doubt(format!(
                "a structure of {} bytes ends before its field at byte {at}",
                self.0.len()
            )),
        }
    }

    pub(crate) fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Stop> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(at, N)?);
        Ok(array)
    }

    pub(crate) fn u8(&self, at: usize) -> Result<u8, Stop> {
        Ok(u8::from_le_bytes(self.array(at)?))
    }

    pub(crate) fn le16(&self, at: usize) -> Result<u16, Stop> {
        Ok(u16::from_le_bytes(self.array(at)?))
    }

    pub(crate) fn le32(&self, at: usize) -> Result<u32, Stop> {
        Ok(u32::from_le_bytes(self.array(at)?))
    }

    pub(crate) fn le64(&self, at: usize) -> Result<u64, Stop> {
        Ok(u64::from_le_bytes(self.array(at)?))
    }

    pub(crate) fn be16(&self, at: usize) -> Result<u16, Stop> {
        Ok(u16::from_be_bytes(self.array(at)?))
    }

    pub(crate) fn be32(&self, at: usize) -> Result<u32, Stop> {
        Ok(u32::from_be_bytes(self.array(at)?))
    }

    pub(crate) fn be64(&self, at: usize) -> Result<u64, Stop> {
        Ok(u64::from_be_bytes(self.array(at)?))
    }
}
