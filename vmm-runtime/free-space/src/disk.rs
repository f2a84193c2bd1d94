//! The disk as the walkers see it.

use std::io;

use crate::error::{Stop, WalkError, doubt};

/// What is walked: bytes that can be read at any place.
pub trait Disk {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from the bytes at `offset`, all of it or an error. Never
    /// asked for bytes beyond [`Disk::size`].
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

/// The longest piece that is read into memory at once, in bytes.
pub(crate) const MAX_PIECE: usize = 1 << 20;

/// A part of a disk: a partition, or all of it.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    disk: &'a dyn Disk,
    /// Its first byte on the disk.
    pub(crate) start: u64,
    /// How many bytes it has.
    pub(crate) len: u64,
}

impl<'a> Part<'a> {
    /// All of a disk.
    pub(crate) fn whole(disk: &'a dyn Disk) -> Part<'a> {
        Part {
            disk,
            start: 0,
            len: disk.size(),
        }
    }

    /// A partition, if it is within this part.
    pub(crate) fn part(&self, start: u64, len: u64) -> Option<Part<'a>> {
        let end = start.checked_add(len)?;
        (end <= self.len).then_some(Part {
            disk: self.disk,
            start: self.start.checked_add(start)?,
            len,
        })
    }

    /// Fills `buf` from `offset` of the part.
    pub(crate) fn fill(&self, buf: &mut [u8], offset: u64) -> Result<(), Stop> {
        let len = buf.len() as u64;
        let Some(part) = self.part(offset, len) else {
            return doubt(format!(
                "it names {len} bytes at byte {offset}, beyond the {} bytes it lies in",
                self.len
            ));
        };
        self.disk.read_at(buf, part.start).map_err(|source| {
            Stop::Failed(WalkError::Read {
                offset: part.start,
                len,
                source,
            })
        })
    }

    /// Reads `len` bytes, at most [`MAX_PIECE`].
    pub(crate) fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, Stop> {
        let piece = usize::try_from(len).ok().filter(|&len| len <= MAX_PIECE);
        let (Some(piece), Some(_)) = (piece, self.part(offset, len)) else {
            return doubt(format!(
                "it names {len} bytes at byte {offset}, expected at most {MAX_PIECE} within {}",
                self.len
            ));
        };
        let mut buf = vec![0; piece];
        self.fill(&mut buf, offset)?;
        Ok(buf)
    }
}
