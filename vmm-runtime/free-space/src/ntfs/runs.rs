//! Where the clusters of a file are: runs, each with its length and its
//! distance from the one before.

use std::ops::Range;

use super::boot::Geometry;
use super::record::Attribute;
use crate::error::{Stop, doubt};

/// How many runs a file may have here.
const MAX_RUNS: usize = 1 << 17;

/// Clusters of a file, from its first one on without a gap.
#[derive(Default)]
pub(super) struct Runs {
    /// The file's cluster that each begins with, and where it is on the disk.
    runs: Vec<(u64, Range<u64>)>,
    len: u64,
}

impl Runs {
    /// How many clusters there are.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Where on the volume they are.
    pub(super) fn clusters(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs.iter().map(|(_, clusters)| clusters.clone())
    }

    /// The bytes of the volume at a byte of the file, and how many follow
    /// without a gap.
    pub(super) fn place(&self, geometry: &Geometry, offset: u64) -> Option<(u64, u64)> {
        let cluster = offset / geometry.cluster;
        let after = self.runs.partition_point(|(first, _)| *first <= cluster);
        let (first, clusters) = self.runs.get(after.checked_sub(1)?)?;
        let skip = offset - first * geometry.cluster;
        let len = (clusters.end - clusters.start) * geometry.cluster;
        let rest = len.checked_sub(skip).filter(|&rest| rest > 0)?;
        Some((clusters.start * geometry.cluster + skip, rest))
    }

    /// Adds the runs of an attribute that goes on where these end.
    pub(super) fn extend(
        &mut self,
        geometry: &Geometry,
        attribute: &Attribute<'_>,
    ) -> Result<(), Stop> {
        let fields = &attribute.0;
        let (first, last) = (fields.le64(16)?, fields.le64(24)?);
        if first != self.len {
            return doubt(format!(
                "a file goes on with its cluster {first}, expected {}",
                self.len
            ));
        }
        let mut at = usize::from(fields.le16(32)?);
        let mut lcn = 0_i64;
        loop {
            let head = fields.u8(at)?;
            if head == 0 {
                break;
            }
            let (len_size, distance_size) = (usize::from(head & 15), usize::from(head >> 4));
            if !(1..=8).contains(&len_size) || !(1..=8).contains(&distance_size) {
                return doubt(
                    "a file that the file system needs has holes, or runs that aren't made like that",
                );
            }
            let len = signed(fields.bytes(at + 1, len_size)?);
            let distance = signed(fields.bytes(at + 1 + len_size, distance_size)?);
            at += 1 + len_size + distance_size;
            let range = || {
                let start = u64::try_from(lcn.checked_add(distance)?).ok()?;
                let end = start.checked_add(u64::try_from(len).ok()?)?;
                (len > 0 && end <= geometry.clusters).then_some(start..end)
            };
            let Some(range) = range() else {
                return doubt(format!(
                    "a run of {len} clusters, {distance} from {lcn}, isn't within its {} clusters: run chkdsk",
                    geometry.clusters
                ));
            };
            // Within the clusters, so it fits.
            lcn = range.start as i64;
            let before = self.len;
            self.len += range.end - range.start;
            if self.runs.len() >= MAX_RUNS || self.len > geometry.clusters {
                return doubt("a file that the file system needs has too many runs or clusters");
            }
            self.runs.push((before, range));
        }
        if last.checked_add(1) != Some(self.len) {
            return doubt(format!(
                "the runs of a file end with its cluster {}, expected {last}",
                self.len.wrapping_sub(1)
            ));
        }
        Ok(())
    }
}

/// A little-endian number of up to eight bytes.
fn signed(bytes: &[u8]) -> i64 {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = if negative { [0xff; 8] } else { [0; 8] };
    for (wide, byte) in wide.iter_mut().zip(bytes) {
        *wide = *byte;
    }
    i64::from_le_bytes(wide)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_length() {
        assert_eq!(signed(&[0x80]), -128);
        assert_eq!(signed(&[0x80, 0]), 128);
        assert_eq!(signed(&[0, 0, 0xff]), -65536);
        assert_eq!(signed(&[]), 0);
    }
}
