//! The boot sector.

use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;

/// Where things are.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    /// Bytes in a cluster.
    pub(super) cluster: u64,
    /// How many clusters there are.
    pub(super) clusters: u64,
    /// The first cluster of $MFT.
    pub(super) mft: u64,
    /// The first cluster of its copy.
    pub(super) mirror: u64,
    /// Bytes in a record of $MFT.
    pub(super) record: u64,
}

impl Geometry {
    pub(super) fn read(part: &Part<'_>) -> Result<Geometry, Stop> {
        let sector = part.read(0, 512)?;
        let fields = Fields(&sector);
        let sector = u64::from(fields.le16(11)?);
        let per_cluster = match fields.u8(13)? {
            // Beyond 64 KiB, a negative power of two.
            power @ 0xe0.. => 1_u64 << (256 - u32::from(power)),
            count => count.into(),
        };
        let cluster = sector * per_cluster;
        let total = fields.le64(40)?;
        if !matches!(sector, 512 | 1024 | 2048 | 4096)
            || !per_cluster.is_power_of_two()
            || cluster > 2 << 20
            || fields.bytes(510, 2)? != [0x55, 0xaa]
        {
            return doubt(format!(
                "its boot sector tells of sectors of {sector} bytes, {per_cluster} to a cluster"
            ));
        }
        let record = match fields.u8(64)? {
            power @ 0xe0.. => 1_u64 << (256 - u32::from(power)),
            count => u64::from(count) * cluster,
        };
        if !(512..=64 << 10).contains(&record) || !record.is_power_of_two() {
            return doubt(format!("the records of its file table have {record} bytes"));
        }
        let geometry = Geometry {
            cluster,
            clusters: total / per_cluster,
            mft: fields.le64(48)?,
            mirror: fields.le64(56)?,
            record,
        };
        let fits = total.checked_mul(sector).is_some_and(|len| len <= part.len);
        if !fits || geometry.mft >= geometry.clusters || geometry.mirror >= geometry.clusters {
            return doubt(format!(
                "it has {total} sectors of {sector} bytes and its file table at the clusters {} and {}, expected them within the volume's {} bytes",
                geometry.mft, geometry.mirror, part.len
            ));
        }
        Ok(geometry)
    }
}
