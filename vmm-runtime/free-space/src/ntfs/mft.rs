//! The file table, and the files that it tells of. A file with many runs goes
//! on in further records, which a list in the first one names.

use std::ops::Range;

use super::MFT;
use super::boot::Geometry;
use super::record::{ATTRIBUTE_LIST, Attribute, DATA, Record, number};
use super::runs::Runs;
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;

/// How long a list of attributes may be, in bytes: what NTFS itself allows.
const MAX_LIST: u64 = 256 << 10;

/// How many records a file may go on in here.
const MAX_PIECES: usize = 4096;

/// Data of a file.
#[derive(Default)]
pub(super) struct Stream {
    /// Its length in bytes.
    pub(super) len: u64,
    /// How many of them were ever written; the rest reads as zeros.
    pub(super) initialized: u64,
    /// The data, if they lie in the record.
    resident: Option<Vec<u8>>,
    runs: Runs,
}

impl Stream {
    /// Where it is on the volume.
    pub(super) fn clusters(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs.clusters()
    }

    /// Up to `len` bytes from `offset` on: at least one, as many as lie
    /// together.
    pub(super) fn read(
        &self,
        part: &Part<'_>,
        geometry: &Geometry,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, Stop> {
        if let Some(bytes) = &self.resident {
            let fields = Fields(bytes);
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            return Ok(fields.bytes(at, len as usize)?.to_vec());
        }
        match self.runs.place(geometry, offset) {
            Some((place, there)) => part.read(place, len.min(there)),
            None => doubt(format!(
                "a file ends before its byte {offset}, expected {}",
                self.len
            )),
        }
    }

    /// Begins with an attribute, whose part is the first.
    fn begin(&mut self, geometry: &Geometry, attribute: &Attribute<'_>) -> Result<(), Stop> {
        if attribute.is_transformed()? {
            return doubt("a file that the file system needs is compressed, sparse or encrypted");
        }
        if attribute.is_resident()? {
            let value = attribute.value()?.0.to_vec();
            self.len = value.len() as u64;
            self.initialized = self.len;
            self.resident = Some(value);
            return Ok(());
        }
        self.len = attribute.0.le64(48)?;
        self.initialized = attribute.0.le64(56)?;
        self.runs.extend(geometry, attribute)
    }
}

/// The file table.
pub(super) struct Mft<'a> {
    part: &'a Part<'a>,
    geometry: &'a Geometry,
    /// Its own data: records.
    table: Stream,
}

impl<'a> Mft<'a> {
    pub(super) fn open(part: &'a Part<'a>, geometry: &'a Geometry) -> Result<Mft<'a>, Stop> {
        let mut mft = Mft {
            part,
            geometry,
            table: Stream::default(),
        };
        let bytes = part.read(geometry.mft * geometry.cluster, geometry.record)?;
        let first = Record::parse(bytes, MFT)?;
        match first.find(DATA, 0)? {
            Some(data) if !data.is_resident()? => mft.table.begin(geometry, &data)?,
            _ => {
                return doubt("the first record of its file table doesn't tell where the table is");
            }
        }
        if mft.table.clusters().next().map(|run| run.start) != Some(geometry.mft) {
            return doubt("its file table says that it begins elsewhere: run chkdsk");
        }
        // Each piece is found by those before it.
        for (at, reference) in mft.pieces(&first, DATA)?.into_iter().skip(1) {
            let record = mft.extension(reference, MFT, &first)?;
            let Some(more) = record.find(DATA, at)? else {
                return doubt("a record of its file table lacks the part that it should have");
            };
            mft.table.runs.extend(geometry, &more)?;
        }
        Ok(mft)
    }

    /// Its own data.
    pub(super) fn table(&self) -> &Stream {
        &self.table
    }

    /// Reads a record.
    pub(super) fn record(&self, number: u64) -> Result<Record, Stop> {
        let mut bytes = Vec::new();
        let len = self.geometry.record;
        let Some(offset) = number.checked_mul(len) else {
            return doubt(format!("there is no record {number} in its file table"));
        };
        // With clusters smaller than records, a record may lie in pieces.
        while (bytes.len() as u64) < len {
            let done = bytes.len() as u64;
            bytes.extend(
                self.table
                    .read(self.part, self.geometry, offset + done, len - done)?,
            );
        }
        Record::parse(bytes, number)
    }

    /// A record that another one goes on in.
    fn extension(&self, reference: u64, of: u64, base: &Record) -> Result<Record, Stop> {
        let record = self.record(number(reference))?;
        let right = number(record.base) == of
            && record.base >> 48 == u64::from(base.sequence)
            && reference >> 48 == u64::from(record.sequence);
        if !right {
            return doubt(format!(
                "record {} of its file table isn't a part of record {of}: run chkdsk",
                number(reference)
            ));
        }
        Ok(record)
    }

    /// The first copy of the records has to be as the second.
    pub(super) fn compare_with_mirror(&self) -> Result<(), Stop> {
        for number in 0..4 {
            let place =
                self.geometry.mirror * self.geometry.cluster + number * self.geometry.record;
            let mirror = Record::parse(self.part.read(place, self.geometry.record)?, number)?;
            if mirror.content()? != self.record(number)?.content()? {
                return doubt(format!(
                    "the two copies of record {number} of its file table differ: run chkdsk"
                ));
            }
        }
        Ok(())
    }

    /// The data of a file, without a name of their own.
    pub(super) fn stream(&self, of: u64, kind: u32) -> Result<Stream, Stop> {
        let base = self.record(of)?;
        if base.base != 0 {
            return doubt(format!("record {of} of its file table is part of another"));
        }
        let mut stream = Stream::default();
        let mut pieces = self.pieces(&base, kind)?;
        if pieces.is_empty() {
            pieces.push((0, own_reference(of, &base)));
        }
        for (at, reference) in pieces {
            let extension;
            let record = if number(reference) == of {
                &base
            } else {
                extension = self.extension(reference, of, &base)?;
                &extension
            };
            match record.find(kind, at)? {
                Some(attribute) if at == 0 => stream.begin(self.geometry, &attribute)?,
                Some(attribute) => stream.runs.extend(self.geometry, &attribute)?,
                None => {
                    return doubt(format!(
                        "record {of} of its file table lacks attribute {kind:#x} from cluster {at}: run chkdsk"
                    ));
                }
            }
        }
        let there = stream.runs.len().saturating_mul(self.geometry.cluster);
        if stream.resident.is_none() && (stream.len > there || stream.initialized > stream.len) {
            return doubt(format!(
                "record {of} of its file table tells of {} bytes in {there}: run chkdsk",
                stream.len
            ));
        }
        Ok(stream)
    }

    /// What the list of attributes says of one without a name: which cluster
    /// of the file each part begins with, and the record it is in. Nothing
    /// where there is no list.
    fn pieces(&self, base: &Record, kind: u32) -> Result<Vec<(u64, u64)>, Stop> {
        let Some(list) = base.find(ATTRIBUTE_LIST, 0)? else {
            return Ok(Vec::new());
        };
        let mut stream = Stream::default();
        stream.begin(self.geometry, &list)?;
        if stream.len > MAX_LIST || stream.initialized != stream.len {
            return doubt(format!(
                "a list of attributes has {} bytes, {} of them written, expected at most {MAX_LIST}",
                stream.len, stream.initialized
            ));
        }
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < stream.len {
            let done = bytes.len() as u64;
            bytes.extend(stream.read(self.part, self.geometry, done, stream.len - done)?);
        }
        let fields = Fields(&bytes);
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let len = usize::from(fields.le16(at + 4)?);
            if len < 26 {
                return doubt(format!("an entry of a list of attributes has {len} bytes"));
            }
            if fields.le32(at)? == kind && fields.u8(at + 6)? == 0 {
                pieces.push((fields.le64(at + 8)?, fields.le64(at + 16)?));
            }
            at += len;
        }
        let in_turn = pieces.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if pieces.len() > MAX_PIECES || !in_turn || pieces.first().is_none_or(|first| first.0 != 0)
        {
            return doubt("a list of attributes is too long, or out of turn: run chkdsk");
        }
        Ok(pieces)
    }
}

fn own_reference(of: u64, base: &Record) -> u64 {
    of | u64::from(base.sequence) << 48
}
