//! Putting a complete file in the place of another.

use std::path::Path;

use crate::error::OpenError;
use crate::lock::{self, Mode};
use crate::pool::Pool;
use crate::sidefile;

/// Gives the file `new` the name of the file `old` in the same folder, if
/// nobody has the old one open; that one is gone then. `new` is complete and
/// durable, and nobody else's. After an error or a crash the name stands for
/// one of the two, and nothing is lost but the old file, once the new one has
/// its name.
///
/// Either may be anything: a disk, a raw image. What is kept beside a disk
/// goes with the old one.
pub fn replace(pool: &Pool, new: impl AsRef<Path>, old: impl AsRef<Path>) -> Result<(), OpenError> {
    let old = old.as_ref();
    let (new, place) = (pool.place(new.as_ref())?, pool.place(old)?);
    // Held beyond the rename: nobody opens the new one before what is kept of
    // the old one is gone.
    let (_file, sidecar) = lock::open_locked(&place, Mode::Exclusive)
        .map_err(|error| OpenError::from_lock(old, error))?;
    new.replace(&place)?;
    place.sync_folder()?;
    sidefile::forget_all(&place)?;
    sidecar.remove()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::CreateOptions;
    use crate::error::OpenErrorKind;
    use crate::format::DiskType;
    use crate::size::DiskSize;
    use crate::vhd::Vhd;

    #[test]
    fn one_of_the_two_is_always_there() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let path = |name: &str| dir.path().join(name);
        let size = DiskSize::from_bytes(1 << 20).unwrap();
        let options = CreateOptions::new(DiskType::Dynamic, size);
        let disk = Vhd::create(&pool, "old.vhd", &options).unwrap();
        std::fs::write(path("new"), "new").unwrap();
        let error = replace(&pool, "new", "old.vhd").unwrap_err();
        assert_eq!(error.kind(), OpenErrorKind::InUse);
        disk.close().unwrap();
        let old = std::fs::read(path("old.vhd")).unwrap();
        // The rename fails: both are as they were.
        let error = replace(&pool, "none", "old.vhd").unwrap_err();
        assert_eq!(error.kind(), OpenErrorKind::NotFound);
        assert_eq!(std::fs::read(path("old.vhd")).unwrap(), old);
        assert_eq!(std::fs::read(path("new")).unwrap(), b"new");
        std::fs::write(path("old.vhd.merging"), "").unwrap();
        replace(&pool, "new", "old.vhd").unwrap();
        assert_eq!(std::fs::read(path("old.vhd")).unwrap(), b"new");
        assert!(!path("new").exists() && !path("old.vhd.lock").exists());
    }
}
