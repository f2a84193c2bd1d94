//! XFS: every allocation group has a tree of its free extents, by their blocks.
//! It is believed after the log was seen to end with the record of an unmount.

mod group;
mod log;
mod superblock;

use crate::disk::Part;
use crate::error::Stop;
use crate::free_list::FreeList;
use superblock::Superblock;

/// Adds the free bytes of a volume to `free`.
pub(crate) fn walk(part: &Part<'_>, free: &mut FreeList) -> Result<(), Stop> {
    let superblock = Superblock::read(part)?;
    log::clean(part, &superblock)?;
    for number in 0..superblock.groups {
        group::walk(part, &superblock, number, free)?;
    }
    Ok(())
}
