//! The log: whether its last record is that of an unmount.
//!
//! The log is a ring. Every block of 512 bytes begins with the number of the
//! turn in which it was written, or, where a record begins, with a signature and
//! then that number. So the blocks of this turn come first, and those of the
//! turn before follow; the head is between them. Linux mounts without recovery
//! if the record that ends at the head has one operation, and that is an
//! unmount.

use super::superblock::Superblock;
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;

/// Bytes in a block of the log, whatever a block of the file system has.
const BLOCK: u64 = 512;

/// The longest log: what XFS allows, in bytes.
const MAX_LOG: u64 = 2 << 30;

/// How much is read at once, in bytes.
const CHUNK: u64 = 256 << 10;

/// What a record begins with.
const SIGNATURE: u32 = 0xfeed_babe;

const UNCLEAN: &str = "its log doesn't end with the record of an unmount; start the machine and shut it down, or mount and unmount it";

/// The places that matter, in blocks.
struct Ends {
    /// The turn of the first block.
    turn: u32,
    /// Where the turn before begins, or the log's length.
    head: u64,
    /// Where the last record in front of the head begins.
    record: u64,
}

/// Refuses a log that may have something to be recovered.
pub(super) fn clean(part: &Part<'_>, superblock: &Superblock) -> Result<(), Stop> {
    let (group, blocks) = &superblock.log;
    let start = (group * superblock.group_blocks + blocks.start) * superblock.block;
    let len = (blocks.end - blocks.start) * superblock.block;
    let Some(log) = part.part(start, len).filter(|log| log.len <= MAX_LOG) else {
        return doubt(format!(
            "its log has {len} bytes, expected at most {MAX_LOG}"
        ));
    };
    let ends = ends(&log)?;
    let record = log.read(ends.record * BLOCK, BLOCK)?;
    let fields = Fields(&record);
    let version = fields.be32(8)?;
    let data = u64::from(fields.be32(12)?).div_ceil(BLOCK);
    let size = u64::from(fields.be32(320)?);
    let header = if version & 2 != 0 {
        size.div_ceil(32 << 10).max(1)
    } else {
        1
    };
    let right = matches!(version, 1 | 2)
        && fields.be32(4)? == ends.turn
        && fields.be64(16)? == u64::from(ends.turn) << 32 | ends.record
        && fields.array::<16>(304)? == superblock.uuid
        && fields.be32(300)? == 1;
    if !right {
        return doubt("the last record of its log isn't made like one, or belongs to another");
    }
    if ends.record + header + data != ends.head || fields.be32(40)? != 1 {
        return doubt(UNCLEAN);
    }
    let operation = log.read((ends.record + header) * BLOCK, BLOCK)?;
    let operation = Fields(&operation);
    // Who wrote it is the log itself; what it did is an unmount.
    if operation.u8(8)? != 0xaa || operation.u8(9)? != 0x20 {
        return doubt(UNCLEAN);
    }
    Ok(())
}

/// Reads the turns of all blocks. Nothing but one step down is allowed.
fn ends(log: &Part<'_>) -> Result<Ends, Stop> {
    let mut first = None;
    let mut head = None;
    let mut record = None;
    let mut at = 0;
    while at < log.len {
        let chunk = log.read(at, CHUNK.min(log.len - at))?;
        for (index, block) in chunk.chunks_exact(BLOCK as usize).enumerate() {
            let number = at / BLOCK + index as u64;
            let fields = Fields(block);
            let signed = fields.be32(0)? == SIGNATURE;
            let turn = fields.be32(if signed { 4 } else { 0 })?;
            let first = *first.get_or_insert(turn);
            let right = match head {
                None if turn == first => true,
                None => {
                    head = Some(number);
                    turn.checked_add(1) == Some(first)
                }
                Some(_) => turn.checked_add(1) == Some(first),
            };
            if !right || first == 0 {
                return doubt(format!(
                    "block {number} of its log was written in turn {turn}, expected {first} or the one before: mount and unmount it"
                ));
            }
            if signed && head.is_none() {
                record = Some(number);
            }
        }
        at += CHUNK;
    }
    match (first, record) {
        (Some(turn), Some(record)) => Ok(Ends {
            turn,
            head: head.unwrap_or(log.len / BLOCK),
            record,
        }),
        // A record that began in the turn before ends at the head.
        _ => doubt("the last record of its log lies over the log's end: mount and unmount it"),
    }
}
