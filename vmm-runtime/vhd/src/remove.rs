//! Deleting a disk.

use std::fs::File;
use std::path::Path;

use crate::error::OpenError;
use crate::image::Refusal;
use crate::linked;
use crate::lock::{self, Mode};
use crate::pool::Pool;
use crate::resize;
use crate::sidefile;
use crate::storage::Backing;

/// Why a disk was not deleted: as for opening it.
pub type RemoveError = OpenError;

/// Deletes the disk `rel`, its lock file and what operations have put beside it
/// for good, if nobody has it open.
/// What is neither a VHD nor a linked disk is refused; a damaged one is not.
/// Of a linked disk the descriptor goes, and the physical disk stays.
pub fn remove(pool: &Pool, rel: impl AsRef<Path>) -> Result<(), RemoveError> {
    let rel = rel.as_ref();
    let place = pool.place(rel)?;
    let (file, sidecar) = lock::open_locked(&place, Mode::Exclusive)
        .map_err(|error| OpenError::from_lock(rel, error))?;
    let backing = Backing::read_only(File::from(file), rel);
    match resize::fixed::recognise_at(&place, &backing) {
        Ok(_) | Err(Refusal::Corrupt(_)) => {}
        Err(Refusal::Unsupported(_)) if is_linked(&backing) => {}
        Err(refusal) => return Err(OpenError::from_refusal(rel, refusal)),
    }
    place.unlink()?;
    place.sync_folder()?;
    sidefile::forget_all(&place)?;
    sidecar.remove()?;
    Ok(())
}

fn is_linked(backing: &Backing) -> bool {
    let mut start = [0; linked::MAGIC.len()];
    backing.read(&mut start, 0).is_ok() && linked::is_descriptor(&start)
}
