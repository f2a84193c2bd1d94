//! NTFS: the file $Bitmap says which clusters are used. Before it is believed,
//! $Volume, $LogFile and the second copy of the table of files have to say that
//! nothing is outstanding.

mod boot;
mod log;
mod mft;
mod record;
mod runs;
mod shadow;

use std::ops::Range;

use crate::bitmap;
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::free_list::{FreeList, InUse};
use boot::Geometry;
use mft::{Mft, Stream};
use record::{BITMAP, DATA, LOG_FILE, MFT, VOLUME, VOLUME_INFORMATION};

/// How much of a file is read at once, in bytes.
const CHUNK: u64 = 64 << 10;

/// Adds the free bytes of a volume to `free`.
pub(crate) fn walk(part: &Part<'_>, free: &mut FreeList) -> Result<(), Stop> {
    let geometry = Geometry::read(part)?;
    let mft = Mft::open(part, &geometry)?;
    mft.compare_with_mirror()?;
    not_dirty(&mft)?;
    let log = mft.stream(LOG_FILE, DATA)?;
    log::clean(part, &geometry, &log)?;
    shadow::none(part)?;
    let bits = mft.stream(BITMAP, DATA)?;
    let needed = geometry.clusters.div_ceil(8);
    if bits.initialized < needed || bits.len < needed {
        return doubt(format!(
            "its bitmap has {} bytes, {} of them written, expected {needed}",
            bits.len, bits.initialized
        ));
    }
    let own = own(&geometry, &mft, [&log, &bits])?;
    let mut at = 0;
    while at < needed {
        let chunk = bits.read(part, &geometry, at, CHUNK.min(needed - at))?;
        let base = at * 8;
        for run in bitmap::zeros(&chunk, geometry.clusters - base) {
            let run = base + run.start..base + run.end;
            own.refuse(&run, "clusters")?;
            free.push(run.start * geometry.cluster..run.end * geometry.cluster)?;
        }
        at += chunk.len() as u64;
    }
    Ok(())
}

/// The flags in $Volume.
fn not_dirty(mft: &Mft<'_>) -> Result<(), Stop> {
    let record = mft.record(VOLUME)?;
    let Some(attribute) = record.find(VOLUME_INFORMATION, 0)? else {
        return doubt("its file $Volume doesn't tell its version and flags: run chkdsk");
    };
    let information = attribute.value()?;
    let version = (information.u8(8)?, information.u8(9)?);
    let flags = information.le16(10)?;
    if !matches!(version, (3, 0 | 1) | (1, 2)) {
        return doubt(format!(
            "it has version {}.{}, expected 1.2, 3.0 or 3.1",
            version.0, version.1
        ));
    }
    // Dirty, its log to be resized, to be upgraded, a journal being removed,
    // object ids to be repaired, chkdsk at work.
    if flags & 0x4037 != 0 {
        return doubt(format!(
            "it is marked dirty, with the flags {flags:#06x}: start Windows, let it check the volume, and shut it down"
        ));
    }
    Ok(())
}

/// The clusters that the file system itself needs.
fn own(geometry: &Geometry, mft: &Mft<'_>, streams: [&Stream; 2]) -> Result<InUse, Stop> {
    let mirror_len = (4 * geometry.record).div_ceil(geometry.cluster);
    let mut own: Vec<Range<u64>> = vec![0..1, geometry.mirror..geometry.mirror + mirror_len];
    for stream in streams.into_iter().chain([mft.table()]) {
        own.extend(stream.clusters());
    }
    InUse::new(own)
}
