//! $LogFile: whether Windows left it such that nothing has to be redone.

use super::boot::Geometry;
use super::mft::Stream;
use super::record::fix_up;
use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;

/// How long a log without restart pages may be, in bytes: it has to be read
/// whole, to see that nothing is in it.
const MAX_EMPTY: u64 = 128 << 20;

/// The longest restart page, in bytes.
const MAX_PAGE: u64 = 64 << 10;

const UNCLEAN: &str = "its log has entries that are not carried out: Windows was not shut down, or is hibernated or shut down for a fast start; start it and shut it down with 'shutdown /s /t 0'";

/// Refuses a log that isn't clean.
pub(super) fn clean(part: &Part<'_>, geometry: &Geometry, log: &Stream) -> Result<(), Stop> {
    let head = whole(part, geometry, log, 0, 512)?;
    let fields = Fields(&head);
    if fields.bytes(0, 4)? == [0xff; 4] {
        return empty(part, geometry, log);
    }
    if fields.bytes(0, 4)? != b"RSTR" {
        return doubt("its log doesn't begin with a restart page: run chkdsk");
    }
    let page = u64::from(fields.le32(16)?);
    if !(512..=MAX_PAGE).contains(&page) || !page.is_power_of_two() {
        return doubt(format!("the pages of its log have {page} bytes"));
    }
    let first = restart(whole(part, geometry, log, 0, page)?)?;
    let second = restart(whole(part, geometry, log, page, page)?)?;
    // They are written in turn; the later one holds.
    let latest = if second.lsn > first.lsn {
        second
    } else {
        first
    };
    if latest.major != 1 || !latest.clean {
        return doubt(UNCLEAN);
    }
    Ok(())
}

/// A log that was never used, or was reset: every byte is 0xff.
fn empty(part: &Part<'_>, geometry: &Geometry, log: &Stream) -> Result<(), Stop> {
    if log.len > MAX_EMPTY || log.initialized != log.len {
        return doubt(format!(
            "its log begins like an empty one, and has {} bytes: too many to see that it is",
            log.len
        ));
    }
    let mut at = 0;
    while at < log.len {
        let chunk = log.read(part, geometry, at, super::CHUNK.min(log.len - at))?;
        if chunk.iter().any(|&byte| byte != 0xff) {
            return doubt("its log begins like an empty one, but isn't: run chkdsk");
        }
        at += chunk.len() as u64;
    }
    Ok(())
}

/// Bytes of the log that may lie in pieces.
fn whole(
    part: &Part<'_>,
    geometry: &Geometry,
    log: &Stream,
    at: u64,
    len: u64,
) -> Result<Vec<u8>, Stop> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < len {
        let done = bytes.len() as u64;
        bytes.extend(log.read(part, geometry, at + done, len - done)?);
    }
    Ok(bytes)
}

/// What a restart page says.
struct Restart {
    lsn: u64,
    major: u16,
    clean: bool,
}

fn restart(mut page: Vec<u8>) -> Result<Restart, Stop> {
    if Fields(&page).bytes(0, 4)? != b"RSTR" {
        return doubt("its log lacks one of its two restart pages: run chkdsk");
    }
    fix_up(&mut page, "a restart page of its log")?;
    let fields = Fields(&page);
    let area = usize::from(fields.le16(24)?);
    // No client has it open, or the one that has said that all is done.
    let clean = fields.le16(area + 12)? == u16::MAX || fields.le16(area + 14)? & 2 != 0;
    Ok(Restart {
        lsn: fields.le64(area)?,
        major: fields.le16(28)?,
        clean,
    })
}
