//! Raw images and block devices as disks.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use paddock_vhd::{Access, ImportError, RawDisk, RawImage, check_raw};

use crate::disk_path::DiskPath;
use crate::failure::{Exit, Failure};

/// A raw image, or a whole block device, that nobody else may write to.
#[derive(Debug)]
pub(crate) struct RawSource {
    held: Held,
    size: u64,
    access: Access,
    path: PathBuf,
}

/// What is open, and excludes others.
#[derive(Debug)]
enum Held {
    /// Locked as QEMU and our disks are.
    Image(RawImage),
    /// Nobody has it mounted or otherwise for himself.
    Device(File),
}

impl RawSource {
    /// Opens it; for writing only if nobody else has it open, for reading if
    /// nobody writes to it. Refuses what has a format of its own: a guest
    /// would find no disk in it, or destroy it.
    pub(crate) fn open(path: &Path, access: Access) -> Result<RawSource, Failure> {
        let metadata = path
            .metadata()
            .map_err(|error| Failure::io(path, "open the image", &error))?;
        if metadata.is_dir() {
            return Err(Failure::wrong_use(format!(
                "{}: it is a folder, not an image",
                path.display()
            )));
        }
        let held = if metadata.file_type().is_block_device() {
            Held::Device(open_device(path, access)?)
        } else {
            let image = DiskPath::existing(path)?;
            Held::Image(RawImage::open(&image.pool, &image.name, access)?)
        };
        let mut source = RawSource {
            held,
            size: 0,
            access,
            path: path.to_owned(),
        };
        source.size = check_raw(source.file()).map_err(|error| refused(path, error))?;
        Ok(source)
    }

    /// The image or the device.
    pub(crate) fn file(&self) -> &File {
        match &self.held {
            Held::Image(image) => image.file(),
            Held::Device(file) => file,
        }
    }

    /// As a disk; `direct`: past the page cache.
    pub(crate) fn into_disk(self, direct: bool) -> Result<RawDisk, Failure> {
        let RawSource {
            held,
            size,
            access,
            path,
        } = self;
        let name = path.to_string_lossy();
        let disk = match held {
            Held::Image(image) => RawDisk::of_image(image, size, &name, access, direct),
            Held::Device(_) if direct => {
                return Err(Failure::wrong_use(
                    "devices are served through the page cache: leave out --uncached",
                ));
            }
            Held::Device(file) => RawDisk::of_device(file, size, &name, access),
        };
        disk.map_err(|error| Failure::disk(&path, &error))
    }
}

/// Opens a block device for nobody else.
fn open_device(path: &Path, access: Access) -> Result<File, Failure> {
    let opened = File::options()
        .read(true)
        .write(access == Access::ReadWrite)
        .custom_flags(libc::O_EXCL)
        .open(path);
    match opened {
        Ok(file) => Ok(file),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(Failure::new(
            Exit::Busy,
            format!(
                "{}: the device is in use (mounted, or part of a volume or an array); stop that first",
                path.display()
            ),
        )),
        Err(error) => Err(Failure::io(path, "open the device", &error)),
    }
}

fn refused(path: &Path, error: ImportError) -> Failure {
    let is_disk = matches!(error, ImportError::NotRaw { format: "a VHD" });
    let failure = Failure::from(error).of(path);
    if is_disk {
        failure.hinting("without `--from raw` and its like it is taken for what it is")
    } else {
        failure
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use paddock_vhd::{BlockDevice, ExtentKind, IoError};

    use super::*;

    fn image(len: u64) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        File::create(&path).unwrap().set_len(len).unwrap();
        (dir, path)
    }

    #[test]
    fn what_is_written_is_read_and_holes_are_seen() {
        let (_dir, path) = image(1 << 20);
        let disk = RawSource::open(&path, Access::ReadWrite).unwrap();
        let disk = disk.into_disk(false).unwrap();
        disk.write_at(&[7; 4096], 256 << 10).unwrap();
        disk.flush().unwrap();
        let mut buf = [0; 4096];
        disk.read_at(&mut buf, 256 << 10).unwrap();
        assert_eq!(buf, [7; 4096]);
        let extents = disk.block_status(0, 1 << 20).unwrap();
        let end = extents.iter().fold(0, |at, extent| {
            assert_eq!(extent.offset, at);
            at + extent.len
        });
        assert_eq!(end, 1 << 20);
        assert!(extents.iter().any(|extent| extent.kind == ExtentKind::Data
            && extent.offset <= 256 << 10
            && extent.offset + extent.len >= 260 << 10));
        disk.discard(256 << 10, 4096).unwrap();
        disk.read_at(&mut buf, 256 << 10).unwrap();
        assert_eq!(buf, [0; 4096]);
    }

    #[test]
    fn nothing_passes_the_end_or_writes_to_what_is_read_only() {
        let (_dir, path) = image(1000);
        let disk = RawSource::open(&path, Access::ReadOnly).unwrap();
        let disk = disk.into_disk(false).unwrap();
        assert_eq!(disk.size(), 1000);
        assert!(matches!(
            disk.read_at(&mut [0; 2], 999),
            Err(IoError::OutOfRange { .. })
        ));
        assert!(matches!(
            disk.read_at(&mut [0; 2], u64::MAX),
            Err(IoError::OutOfRange { .. })
        ));
        assert!(matches!(disk.write_at(&[1], 0), Err(IoError::ReadOnly)));
        assert!(matches!(disk.discard(0, 1), Err(IoError::ReadOnly)));
    }

    #[test]
    fn one_writer_or_many_readers() {
        let (_dir, path) = image(1000);
        let reader = RawSource::open(&path, Access::ReadOnly).unwrap();
        let _another = RawSource::open(&path, Access::ReadOnly).unwrap();
        let busy = RawSource::open(&path, Access::ReadWrite).unwrap_err();
        assert_eq!(busy.exit, Exit::Busy);
        drop(reader);
    }

    #[test]
    fn what_has_a_format_of_its_own_is_refused() {
        let (_dir, path) = image(1 << 20);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"QFI\xfb\0\0\0\x03", 0).unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let refused = RawSource::open(&path, access).unwrap_err();
            assert_eq!(refused.exit, Exit::WrongUse);
            let said = refused.to_string();
            assert!(said.contains("a qcow2 image"), "{said}");
        }
    }
}
