//! Raw images, locked as disks are.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::OFlags;

use crate::error::OpenError;
use crate::lock::{self, Mode, Sidecar};
use crate::pool::Pool;
use crate::vhd::Access;

/// A raw image that is open. One writer has it, or any number of readers, and
/// QEMU is counted among them; a disk that is opened as an image is locked as
/// a disk.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    sidecar: Option<Sidecar>,
    /// Whether the lock file was not there before.
    made: bool,
}

impl RawImage {
    /// Opens the regular file `rel`. A writer makes a lock file beside it,
    /// which goes with this value; a reader respects one that is there.
    pub fn open(pool: &Pool, rel: impl AsRef<Path>, access: Access) -> Result<RawImage, OpenError> {
        let rel = rel.as_ref();
        let held = |error| OpenError::from_lock(rel, error);
        let place = pool.place(rel)?;
        let made = !place.with_suffix(".lock")?.exists()?;
        let mode = match access {
            Access::ReadOnly => Mode::Shared,
            Access::ReadWrite => Mode::Exclusive,
        };
        if made && mode == Mode::Shared {
            let file = place.open(OFlags::RDONLY)?;
            lock::lock_for_qemu(file.as_fd(), mode).map_err(held)?;
            return Ok(RawImage {
                file: file.into(),
                sidecar: None,
                made: false,
            });
        }
        let (file, sidecar) = lock::open_locked(&place, mode).map_err(|error| {
            if made && let Ok(sidecar) = Sidecar::acquire(&place, Mode::Exclusive) {
                // A lock file that stays does no harm.
                let _ = sidecar.remove();
            }
            held(error)
        })?;
        Ok(RawImage {
            file: file.into(),
            sidecar: Some(sidecar),
            made: made && mode == Mode::Exclusive,
        })
    }

    /// The image.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for RawImage {
    fn drop(&mut self) {
        if let Some(sidecar) = self.sidecar.take()
            && self.made
        {
            // A lock file that stays does no harm.
            let _ = sidecar.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::CreateOptions;
    use crate::error::OpenErrorKind;
    use crate::format::DiskType;
    use crate::gate::Gate;
    use crate::size::DiskSize;
    use crate::vhd::Vhd;

    #[test]
    fn one_writer_or_many_readers_and_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("image"), [0; 1000]).unwrap();
        let open = |access| RawImage::open(&pool, "image", access);
        let busy = |access| match open(access) {
            Err(error) => error.kind() == OpenErrorKind::InUse,
            Ok(_) => false,
        };
        let reader = open(Access::ReadOnly).unwrap();
        let another = open(Access::ReadOnly).unwrap();
        assert!(busy(Access::ReadWrite));
        drop((reader, another));
        let writer = open(Access::ReadWrite).unwrap();
        assert!(busy(Access::ReadOnly) && busy(Access::ReadWrite));
        drop(writer);
        open(Access::ReadOnly).unwrap();
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 1, "the image alone");
    }

    #[test]
    fn a_disk_is_locked_as_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let size = DiskSize::from_bytes(1 << 20).unwrap();
        let options = CreateOptions::new(DiskType::Fixed, size);
        let disk = Vhd::create(&pool, "disk.vhd", &options).unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let error = RawImage::open(&pool, "disk.vhd", access).unwrap_err();
            assert_eq!(error.kind(), OpenErrorKind::InUse);
        }
        disk.close().unwrap();
        let image = RawImage::open(&pool, "disk.vhd", Access::ReadWrite).unwrap();
        let error = Vhd::open(&pool, "disk.vhd", Access::ReadOnly, Gate::open()).unwrap_err();
        assert_eq!(error.kind(), OpenErrorKind::InUse);
        drop(image);
        Vhd::open(&pool, "disk.vhd", Access::ReadOnly, Gate::open()).unwrap();
    }
}
