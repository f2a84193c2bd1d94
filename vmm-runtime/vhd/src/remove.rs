//! Deleting a disk.

use std::fs::File;
use std::path::Path;

use crate::error::OpenError;
use crate::gate::Gate;
use crate::image::Refusal;
use crate::linked;
use crate::lock::{self, Mode};
use crate::merge;
use crate::pool::Pool;
use crate::repair;
use crate::resize;
use crate::storage::{Backing, FileStorage};

/// Why a disk was not deleted: as for opening it.
pub type RemoveError = OpenError;

/// Deletes the disk `rel` and its lock file for good, if nobody has it open.
/// What is neither a VHD nor a linked disk is refused; a damaged one is not.
/// Of a linked disk the descriptor goes, and the physical disk stays.
pub fn remove(pool: &Pool, rel: impl AsRef<Path>) -> Result<(), RemoveError> {
    let rel = rel.as_ref();
    let place = pool.place(rel)?;
    let (file, sidecar) = lock::open_locked(&place, Mode::Exclusive)
        .map_err(|error| OpenError::from_lock(rel, error))?;
    let gate = Gate::open();
    gate.close();
    let backing = Backing::new(
        Box::new(FileStorage::new(File::from(file))),
        gate,
        &rel.to_string_lossy(),
    );
    match resize::fixed::recognise_at(&place, &backing) {
        Ok(_) | Err(Refusal::Corrupt(_)) => {}
        Err(Refusal::Unsupported(_)) if is_linked(&backing) => {}
        Err(refusal) => return Err(OpenError::from_refusal(rel, refusal)),
    }
    place.unlink()?;
    place.sync_folder()?;
    resize::fixed::forget(&place)?;
    repair::journal::forget(&place)?;
    merge::marker::forget(&place)?;
    sidecar.remove()?;
    Ok(())
}

fn is_linked(backing: &Backing) -> bool {
    let mut start = [0; linked::MAGIC.len()];
    backing.read(&mut start, 0).is_ok() && linked::is_descriptor(&start)
}
