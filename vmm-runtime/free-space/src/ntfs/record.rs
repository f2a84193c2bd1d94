//! Records of the file table, and the attributes in them.

use crate::error::{Stop, doubt};
use crate::fields::Fields;

/// Records with fixed numbers.
pub(super) const MFT: u64 = 0;
pub(super) const LOG_FILE: u64 = 2;
pub(super) const VOLUME: u64 = 3;
pub(super) const BITMAP: u64 = 6;

/// Types of attributes.
pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
pub(super) const VOLUME_INFORMATION: u32 = 0x70;
pub(super) const DATA: u32 = 0x80;

/// How many bytes a word of the update sequence guards.
const STRIDE: usize = 512;

/// Puts back the words that an update sequence replaced: each must have been
/// written together with the rest.
pub(super) fn fix_up(bytes: &mut [u8], what: &str) -> Result<(), Stop> {
    let fields = Fields(bytes);
    let (at, count) = (usize::from(fields.le16(4)?), usize::from(fields.le16(6)?));
    if count != bytes.len() / STRIDE + 1 || at + count * 2 > STRIDE - 2 {
        return doubt(format!(
            "{what} has {count} words of update sequence at byte {at}, expected one for each {STRIDE} bytes and one more"
        ));
    }
    let sequence = fields.bytes(at, count * 2)?.to_vec();
    let (guard, words) = sequence.split_at(2);
    for (block, word) in bytes.chunks_exact_mut(STRIDE).zip(words.chunks_exact(2)) {
        let (_, tail) = block.split_at_mut(STRIDE - 2);
        if tail != guard {
            return doubt(format!("{what} was not written as a whole: run chkdsk"));
        }
        tail.copy_from_slice(word);
    }
    Ok(())
}

/// A record in use.
pub(super) struct Record {
    bytes: Vec<u8>,
    attributes: usize,
    /// The record that it goes on from, if it does.
    pub(super) base: u64,
    pub(super) sequence: u16,
}

/// The number of a record, without how often it was used before.
pub(super) fn number(reference: u64) -> u64 {
    reference & 0xffff_ffff_ffff
}

impl Record {
    /// Checks a record as it is on the disk.
    pub(super) fn parse(mut bytes: Vec<u8>, number: u64) -> Result<Record, Stop> {
        let what = format!("record {number} of its file table");
        if Fields(&bytes).bytes(0, 4)? != b"FILE" {
            return doubt(format!("{what} has no signature: run chkdsk"));
        }
        fix_up(&mut bytes, &what)?;
        let fields = Fields(&bytes);
        let in_use = fields.le32(24)? as usize;
        if fields.le16(22)? & 1 == 0 || in_use > bytes.len() {
            return doubt(format!(
                "{what} isn't in use, or uses {in_use} bytes: run chkdsk"
            ));
        }
        let (attributes, base) = (usize::from(fields.le16(20)?), fields.le64(32)?);
        let sequence = fields.le16(16)?;
        bytes.truncate(in_use);
        Ok(Record {
            bytes,
            attributes,
            base,
            sequence,
        })
    }

    /// The bytes in use, but for the update sequence, which differs between
    /// copies.
    pub(super) fn content(&self) -> Result<Vec<u8>, Stop> {
        let fields = Fields(&self.bytes);
        let (at, count) = (usize::from(fields.le16(4)?), usize::from(fields.le16(6)?));
        let mut content = self.bytes.clone();
        if let Some(sequence) = content.get_mut(at..at + count * 2) {
            sequence.fill(0);
        }
        Ok(content)
    }

    /// The attribute of a type without a name whose part begins at a cluster of
    /// the file.
    pub(super) fn find(&self, kind: u32, first: u64) -> Result<Option<Attribute<'_>>, Stop> {
        let mut at = self.attributes;
        let fields = Fields(&self.bytes);
        loop {
            let this = fields.le32(at)?;
            if this == u32::MAX {
                return Ok(None);
            }
            let len = fields.le32(at + 4)? as usize;
            if len < 24 || !len.is_multiple_of(8) {
                return doubt(format!("an attribute of its file table has {len} bytes"));
            }
            let attribute = Attribute(Fields(fields.bytes(at, len)?));
            if this == kind && attribute.0.u8(9)? == 0 && attribute.first()? == first {
                return Ok(Some(attribute));
            }
            at += len;
        }
    }
}

/// An attribute: data of a file, or about it.
pub(super) struct Attribute<'a>(pub(super) Fields<'a>);

impl<'a> Attribute<'a> {
    pub(super) fn is_resident(&self) -> Result<bool, Stop> {
        Ok(self.0.u8(8)? == 0)
    }

    /// The first of the file's clusters that it describes.
    fn first(&self) -> Result<u64, Stop> {
        if self.is_resident()? {
            return Ok(0);
        }
        self.0.le64(16)
    }

    /// Whether it is compressed, encrypted or sparse.
    pub(super) fn is_transformed(&self) -> Result<bool, Stop> {
        Ok(self.0.le16(12)? != 0)
    }

    /// What it holds, if that lies in the record.
    pub(super) fn value(&self) -> Result<Fields<'a>, Stop> {
        if !self.is_resident()? {
            return doubt("an attribute that is short lies outside of its record");
        }
        let (len, at) = (self.0.le32(16)?, self.0.le16(20)?);
        Ok(Fields(self.0.bytes(at.into(), len as usize)?))
    }
}
