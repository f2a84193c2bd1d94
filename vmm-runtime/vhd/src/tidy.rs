//! Tidying a disk before something is put behind the end of its file.

use crate::format::DiskType;
use crate::image::{Absent, Dynamic, Image, Recognised, Refusal, Tuning};
use crate::storage::Backing;

/// Mends what a crash left of the dynamic or differencing disk in `backing`,
/// and gives back the space that was reserved for its growth.
pub(crate) fn tidy(backing: Backing, found: &Recognised) -> Result<(), Refusal> {
    let absent: Option<Box<dyn Image>> = match found.disk_type {
        DiskType::Differencing => Some(Box::new(Absent::new(found.footer.current_size))),
        _ => None,
    };
    let disk = Dynamic::load(backing, found, absent, false, Tuning::default())?;
    Ok(disk.put_away()?)
}
