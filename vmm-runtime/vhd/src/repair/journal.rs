//! What a repair in place keeps of the bytes it overwrites: a file beside the
//! disk, `NAME.repair`, durable before the disk is touched.
//!
//! Its first sector says how far the repair is and is the only one that is
//! ever rewritten; the bytes, old and new, follow on it.

use sha2::{Digest, Sha256};

use super::RepairReport;
use crate::block::IoError;
use crate::error::OpenError;
use crate::format::SECTOR;
use crate::pool::{Place, PoolError};
use crate::sidefile::REPAIR;
use crate::storage::Backing;

const MARK: &[u8; 32] = b"repair of a VHD in place, ver. 1";
const HEAD: usize = 512;
/// Where in the first sector things are.
const STATE: usize = 32;
const OLD_LEN: usize = 40;
const NEW_LEN: usize = 48;
const BODY_LEN: usize = 56;
const BODY_SUM: usize = 64;
const TAIL_SUM: usize = 96;
const HEAD_SUM: usize = 480;

/// The most bytes behind the first sector: twice the longest table with what
/// is kept of each of its sectors and blocks, and more.
const LONGEST: u64 = 96 << 20;

/// Bytes of the file that the repair overwrites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Patch {
    pub(super) offset: u64,
    pub(super) old: Vec<u8>,
    /// As long as the old ones.
    pub(super) new: Vec<u8>,
}

/// How far a repair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing, all, or some of it is done.
    Begun,
    /// All of it, durably. The sum is that of what was put behind the end of
    /// the file.
    Done([u8; 32]),
}

/// A journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Journal {
    pub(super) state: State,
    /// The length of the file before and after.
    pub(super) old_len: u64,
    pub(super) new_len: u64,
    pub(super) patches: Vec<Patch>,
    pub(super) report: RepairReport,
}

/// Takes the bytes of a journal apart.
struct Parser<'a>(&'a [u8]);

impl<'a> Parser<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A list, as long as it says in front of it. What memory it takes is
    /// bounded by the bytes that there are.
    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u32()?;
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(item(self)?);
        }
        Some(list)
    }
}

impl Journal {
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        // Lengths are those of a table or shorter.
        body.extend((self.patches.len() as u32).to_be_bytes());
        for Patch { offset, old, new } in &self.patches {
            body.extend(offset.to_be_bytes());
            body.extend((old.len() as u32).to_be_bytes());
            body.extend(old);
            body.extend(new);
        }
        for blocks in [&self.report.lost_blocks, &self.report.doubtful_blocks] {
            body.extend((blocks.len() as u32).to_be_bytes());
            body.extend(blocks.iter().flat_map(|block| block.to_be_bytes()));
        }
        body.extend(self.report.copied_bytes.to_be_bytes());
        body
    }

    fn head(&self, body: &[u8]) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MARK);
        if let State::Done(sum) = &self.state {
            put(STATE, &[1]);
            put(TAIL_SUM, sum);
        }
        put(OLD_LEN, &self.old_len.to_be_bytes());
        put(NEW_LEN, &self.new_len.to_be_bytes());
        put(BODY_LEN, &(body.len() as u64).to_be_bytes());
        put(BODY_SUM, &Sha256::digest(body));
        let sum = Sha256::digest(&head[..HEAD_SUM]);
        head[HEAD_SUM..].copy_from_slice(&sum);
        head
    }

    /// All bytes of the journal.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = self.body();
        [&self.head(&body)[..], &body].concat()
    }

    /// Reads a journal. `None` for what is none, or was never complete.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Journal> {
        let (head, body) = bytes.split_at_checked(HEAD)?;
        if !is_head(head) {
            return None;
        }
        let field = |at: usize, len| Parser(&head[at..at + len]);
        let body_sum: [u8; 32] = Sha256::digest(body).into();
        if field(BODY_LEN, 8).u64()? != body.len() as u64
            || head[BODY_SUM..BODY_SUM + 32] != body_sum
        {
            return None;
        }
        let mut body = Parser(body);
        let patches = body.list(|body| {
            let offset = body.u64()?;
            let len = body.u32()? as usize;
            // What a patch takes in memory is bounded by its bytes.
            if len < SECTOR as usize {
                return None;
            }
            let old = body.take(len)?.to_vec();
            let new = body.take(len)?.to_vec();
            offset.checked_add(len as u64)?;
            Some(Patch { offset, old, new })
        })?;
        let lost_blocks = body.list(Parser::u32)?;
        let doubtful_blocks = body.list(Parser::u32)?;
        let copied_bytes = body.u64()?;
        let journal = Journal {
            state: match head[STATE] {
                0 => State::Begun,
                _ => State::Done(head[TAIL_SUM..TAIL_SUM + 32].try_into().ok()?),
            },
            old_len: field(OLD_LEN, 8).u64()?,
            new_len: field(NEW_LEN, 8).u64()?,
            patches,
            report: RepairReport {
                copied_bytes,
                lost_blocks,
                doubtful_blocks,
            },
        };
        // They lie within what the file was.
        let end = |patch: &Patch| patch.offset + patch.old.len() as u64;
        let within = journal
            .patches
            .iter()
            .all(|patch| end(patch) <= journal.old_len);
        (within && journal.new_len >= journal.old_len && body.0.is_empty()).then_some(journal)
    }

    /// The journal beside the disk `disk`, if there is one.
    pub(super) fn read(disk: &Place) -> Result<Option<Journal>, PoolError> {
        // Bounded: the file may be anyone's.
        let bytes = REPAIR.read(disk, HEAD as u64 + LONGEST)?;
        Ok(bytes.and_then(|bytes| Journal::decode(&bytes)))
    }

    /// Puts the journal beside the disk, durably.
    pub(super) fn write(&self, disk: &Place) -> Result<(), PoolError> {
        REPAIR.create(disk, &self.encode()).map(drop)
    }

    /// Says in the journal beside the disk that the repair is over.
    pub(super) fn write_state(&self, disk: &Place) -> Result<(), PoolError> {
        REPAIR.rewrite(disk, &self.head(&self.body()))
    }

    /// Whether the file is as the journal has it, so that the old bytes can be
    /// put back: as it became, if the repair is over; any part of that, if
    /// not.
    pub(crate) fn fits(&self, backing: &Backing) -> Result<bool, IoError> {
        let len = backing.len()?;
        if !(self.old_len..=self.new_len).contains(&len) {
            return Ok(false);
        }
        for Patch { offset, old, new } in &self.patches {
            let mut found = vec![0; old.len()];
            backing.read(&mut found, *offset)?;
            let fits = match self.state {
                State::Done(_) => found == *new,
                State::Begun => sectors(*offset, old.len()).all(|sector| {
                    found[sector.clone()] == old[sector.clone()]
                        || found[sector.clone()] == new[sector]
                }),
            };
            if !fits {
                return Ok(false);
            }
        }
        match self.state {
            State::Begun => Ok(true),
            State::Done(sum) => Ok(len == self.new_len && self.tail_sum(backing)? == sum),
        }
    }

    /// The sum of what lies behind the old end of the file.
    pub(super) fn tail_sum(&self, backing: &Backing) -> Result<[u8; 32], IoError> {
        let mut sum = Sha256::new();
        let mut buf = vec![0; 1 << 20];
        let mut at = self.old_len;
        while at < self.new_len {
            let len = (self.new_len - at).min(buf.len() as u64) as usize;
            backing.read(&mut buf[..len], at)?;
            sum.update(&buf[..len]);
            at += len as u64;
        }
        Ok(sum.finalize().into())
    }

    /// Makes the file what it was, durably.
    pub(crate) fn put_back(&self, backing: &Backing) -> Result<(), IoError> {
        for Patch { offset, old, .. } in &self.patches {
            backing.write(old, *offset)?;
        }
        // Of two footers at least one is there all the time.
        backing.sync()?;
        if backing.len()? != self.old_len {
            backing.set_len(self.old_len)?;
        }
        backing.sync()
    }
}

/// The parts of a range that lie in one sector of the file each, from the
/// beginning of the range.
fn sectors(offset: u64, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let first = (SECTOR - offset % SECTOR) as usize;
    let mut at = 0;
    std::iter::from_fn(move || {
        let end = if at == 0 { first } else { at + SECTOR as usize }.min(len);
        let range = at..end;
        at = end;
        (!range.is_empty()).then_some(range)
    })
}

/// Whether a repair of the disk at `disk`, in `backing`, was begun and not
/// ended. What was begun with another file of this name counts for nothing.
pub(crate) fn is_cut_off(disk: &Place, backing: &Backing) -> Result<bool, OpenError> {
    // The rest is long, and almost never needed.
    let head = REPAIR.read(disk, HEAD as u64)?;
    if !head.is_some_and(|head| is_head(&head) && head[STATE] == 0) {
        return Ok(false);
    }
    let Some(journal) = Journal::read(disk)? else {
        return Ok(false);
    };
    let fits = journal.fits(backing);
    fits.map_err(|error| OpenError::from_refusal(disk.rel(), error.into()))
}

/// Whether a journal begins like that.
fn is_head(bytes: &[u8]) -> bool {
    bytes.len() == HEAD
        && bytes.starts_with(MARK)
        && Sha256::digest(&bytes[..HEAD_SUM]).as_slice() == &bytes[HEAD_SUM..]
}
