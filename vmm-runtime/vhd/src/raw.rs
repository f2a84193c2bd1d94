//! Raw images, locked as disks are, and what is raw as a disk.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::block::{BlockDevice, Extent, IoError};
use crate::error::OpenError;
use crate::gate::Gate;
use crate::image::Fixed;
use crate::lock::{self, Mode, Sidecar};
use crate::pool::Pool;
use crate::queue::{Intent, Place};
use crate::storage::{Backing, DirectStorage, FileStorage, Storage};
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

/// A raw image or a block device as a disk: its bytes are the disk's.
pub struct RawDisk {
    disk: Fixed,
    /// Keeps others away until the disk is closed.
    _image: Option<RawImage>,
}

impl std::fmt::Debug for RawDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawDisk")
            .field("size", &self.disk.size())
            .field("read_only", &self.disk.read_only())
            .finish_non_exhaustive()
    }
}

impl RawDisk {
    /// The first `size` bytes of an image, which [`check_raw`] has found to be
    /// that long, opened for `access`. `name` is for messages. With `direct`
    /// they are read and written past the page cache.
    ///
    /// [`check_raw`]: crate::check_raw
    pub fn of_image(
        image: RawImage,
        size: u64,
        name: &str,
        access: Access,
        direct: bool,
    ) -> Result<RawDisk, IoError> {
        let failed = |operation| {
            let disk = Arc::from(name);
            move |source| IoError::Io {
                disk,
                operation,
                source: Arc::new(source),
            }
        };
        let file = image.file.try_clone();
        let file = file.map_err(failed("open the image again"))?;
        let gate = Gate::open();
        let storage: Box<dyn Storage> = if direct {
            let opened = DirectStorage::new(file, gate.clone());
            Box::new(opened.map_err(failed("open past the page cache"))?)
        } else {
            through_cache(file, access)
        };
        RawDisk::new(storage, gate, size, name, access, Some(image))
    }

    /// The same of a block device. To keep others away is the caller's
    /// business: it opens the device for itself alone (`O_EXCL`).
    pub fn of_device(
        device: File,
        size: u64,
        name: &str,
        access: Access,
    ) -> Result<RawDisk, IoError> {
        let storage = through_cache(device, access);
        RawDisk::new(storage, Gate::open(), size, name, access, None)
    }

    fn new(
        storage: Box<dyn Storage>,
        gate: Gate,
        size: u64,
        name: &str,
        access: Access,
        image: Option<RawImage>,
    ) -> Result<RawDisk, IoError> {
        let backing = Backing::new(storage, gate, name);
        if access == Access::ReadWrite {
            backing.read_afresh()?;
        }
        Ok(RawDisk {
            disk: Fixed::raw(backing, size, access == Access::ReadOnly),
            _image: image,
        })
    }
}

fn through_cache(file: File, access: Access) -> Box<dyn Storage> {
    Box::new(match access {
        Access::ReadOnly => FileStorage::new(file),
        Access::ReadWrite => FileStorage::of_guest(file),
    })
}

impl BlockDevice for RawDisk {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        self.disk.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.disk.write_at(buf, offset)
    }

    fn flush(&self) -> Result<(), IoError> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.disk.write_zeroes(offset, len)
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        self.disk.block_status(offset, len)
    }

    fn locate(&self, intent: Intent, offset: u64, len: u64) -> Option<Place> {
        self.disk.locate(intent, offset, len)
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
    use crate::image::random::Random;
    use crate::size::DiskSize;
    use crate::skipped::skipped;
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

    /// Of any length, and past the page cache as well.
    #[test]
    fn its_bytes_are_the_files() {
        const LEN: usize = 300_001;
        let mut random = Random::new(11);
        for direct in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let pool = Pool::open(dir.path()).unwrap();
            let mut content = random.bytes(LEN as u64);
            std::fs::write(dir.path().join("raw"), &content).unwrap();
            let image = RawImage::open(&pool, "raw", Access::ReadWrite).unwrap();
            let disk = RawDisk::of_image(image, LEN as u64, "raw", Access::ReadWrite, direct);
            let disk = match disk {
                Err(IoError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::Unsupported =>
                {
                    skipped("this file system has no direct access");
                    continue;
                }
                disk => disk.unwrap(),
            };
            assert_eq!((disk.size(), disk.read_only()), (LEN as u64, false));
            for _ in 0..300 {
                let range = random.range(LEN as u64, 9000);
                let (start, len) = (range.start, range.end - range.start);
                let span = range.start as usize..range.end as usize;
                match random.below(5) {
                    0 => {
                        disk.discard(start, len).unwrap();
                        content[span].fill(0);
                    }
                    1 => {
                        disk.write_zeroes(start, len).unwrap();
                        content[span].fill(0);
                    }
                    2 | 3 => {
                        let bytes = random.bytes(len);
                        disk.write_at(&bytes, start).unwrap();
                        content[span].copy_from_slice(&bytes);
                    }
                    _ => {
                        let mut found = vec![1; span.len()];
                        disk.read_at(&mut found, start).unwrap();
                        assert!(found == content[span], "{range:?}");
                    }
                }
            }
            disk.flush().unwrap();
            assert!(std::fs::read(dir.path().join("raw")).unwrap() == content);
            for (offset, len) in [(LEN as u64, 1), (u64::MAX, 2), (LEN as u64 - 1, 2)] {
                let past = disk.write_at(&vec![1; len], offset).unwrap_err();
                assert!(matches!(past, IoError::OutOfRange { .. }), "{past}");
            }
            drop(disk);
            let names = std::fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(names, 1, "the image alone");
        }
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
