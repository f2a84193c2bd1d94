//! Beginning a new epoch of a disk without opening it.

use std::path::Path;

use crate::error::OpenError;
use crate::gate::Gate;
use crate::lock::{self, LockOwner, Mode};
use crate::pool::Pool;

/// Notes in the lock file of the disk `rel`, durably, that the epoch of
/// `owner` has begun, and that nobody has the disk open: for work on the file
/// that names no owner itself. Owners of lower epochs are refused from then
/// on.
///
/// Refused with [`OpenError::InUse`] as for opening the disk for writing as
/// `owner`, see [`OpenOptions::owner`](crate::OpenOptions::owner). The disk
/// itself is not looked at: it may be damaged.
pub fn claim(pool: &Pool, rel: impl AsRef<Path>, owner: &LockOwner) -> Result<(), OpenError> {
    let rel = rel.as_ref();
    let place = pool.place(rel)?;
    let (_file, mut lock) = lock::open_owned(&place, Mode::Exclusive, &Gate::open(), Some(owner))
        .map_err(|error| OpenError::from_lock(rel, error))?;
    lock.release().map_err(|error| OpenError::Io {
        path: rel.to_owned(),
        operation: "write who has the disk",
        source: std::io::Error::other(error),
    })
}
