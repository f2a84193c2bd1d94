//! Raw images and block devices as disks.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use paddock_vhd::{
    Access, BlockDevice, Extent, ExtentKind, ImportError, IoError, RawImage, check_raw,
};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::disk_path::DiskPath;
use crate::failure::{Exit, Failure};

/// A raw image, or a whole block device.
#[derive(Debug)]
pub(crate) struct RawDisk {
    held: Held,
    size: u64,
    read_only: bool,
    name: Arc<str>,
}

/// What is open, and excludes others.
#[derive(Debug)]
enum Held {
    /// Locked as QEMU and our disks are.
    Image(RawImage),
    /// Nobody has it mounted or otherwise for himself.
    Device(File),
}

impl RawDisk {
    /// Opens it; for writing only if nobody else has it open, for reading if
    /// nobody writes to it. Refuses what has a format of its own: a guest
    /// would find no disk in it, or destroy it.
    pub(crate) fn open(path: &Path, read_only: bool) -> Result<RawDisk, Failure> {
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
            Held::Device(open_device(path, read_only)?)
        } else {
            let access = match read_only {
                true => Access::ReadOnly,
                false => Access::ReadWrite,
            };
            let image = DiskPath::existing(path)?;
            Held::Image(RawImage::open(&image.pool, &image.name, access)?)
        };
        let mut disk = RawDisk {
            held,
            size: 0,
            read_only,
            name: path.to_string_lossy().into(),
        };
        disk.size = check_raw(disk.file()).map_err(|error| refused(path, error))?;
        Ok(disk)
    }

    /// The image or the device.
    pub(crate) fn file(&self) -> &File {
        match &self.held {
            Held::Image(image) => image.file(),
            Held::Device(file) => file,
        }
    }

    fn io(&self, operation: &'static str) -> impl Fn(io::Error) -> IoError {
        let disk = self.name.clone();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => IoError::NoSpace {
                disk: disk.clone(),
                operation,
                reason: source.to_string().into(),
            },
            _ => IoError::Io {
                disk: disk.clone(),
                operation,
                source: Arc::new(source),
            },
        }
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), IoError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(IoError::OutOfRange {
                offset,
                len,
                size: self.size,
            }),
        }
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<(), IoError> {
        if self.read_only {
            return Err(IoError::ReadOnly);
        }
        self.check(offset, len)
    }

    /// Makes zeros with one call if the file system can, else by writing.
    fn zero(&self, offset: u64, len: u64, flags: FallocateFlags) -> Result<(), IoError> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(self.file(), flags, offset, len) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {}
            Err(error) => return Err(self.io("make zeros")(error.into())),
        }
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let piece = (end - at).min(ZEROS.len() as u64);
            self.file()
                .write_all_at(&ZEROS[..piece as usize], at)
                .map_err(self.io("write zeros"))?;
            at += piece;
        }
        Ok(())
    }

    /// The end of the hole or the data that `offset` lies in, and which.
    fn run(&self, offset: u64) -> Result<(u64, ExtentKind), IoError> {
        let seek = |from| match rustix::fs::seek(self.file(), from) {
            Ok(at) => Ok(at.min(self.size)),
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => Ok(self.size),
            Err(error) => Err(error),
        };
        let look = || -> Result<(u64, ExtentKind), Errno> {
            let data = seek(SeekFrom::Data(offset))?;
            if data > offset {
                return Ok((data, ExtentKind::Hole));
            }
            let hole = seek(SeekFrom::Hole(offset))?;
            // The file may change meanwhile.
            Ok((hole.max(offset + 1), ExtentKind::Data))
        };
        match look() {
            Ok(run) => Ok(run),
            // A block device, or a file system without holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok((self.size, ExtentKind::Data)),
            Err(error) => Err(self.io("look for holes")(error.into())),
        }
    }
}

/// Opens a block device for nobody else.
fn open_device(path: &Path, read_only: bool) -> Result<File, Failure> {
    let opened = File::options()
        .read(true)
        .write(!read_only)
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

impl BlockDevice for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        self.check(offset, buf.len() as u64)?;
        self.file()
            .read_exact_at(buf, offset)
            .map_err(self.io("read"))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.check_write(offset, buf.len() as u64)?;
        self.file()
            .write_all_at(buf, offset)
            .map_err(self.io("write"))
    }

    fn flush(&self) -> Result<(), IoError> {
        if self.read_only {
            return Ok(());
        }
        self.file().sync_data().map_err(self.io("sync"))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.zero(offset, len, flags)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        self.zero(offset, len, flags)
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        self.check(offset, len)?;
        let end = offset + len;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < Extent::MAX_PER_CALL {
            let (run_end, kind) = self.run(at)?;
            let run_end = run_end.min(end);
            extents.push(Extent {
                offset: at,
                len: run_end - at,
                kind,
            });
            at = run_end;
        }
        Ok(extents)
    }
}

#[cfg(test)]
mod tests {
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
        let disk = RawDisk::open(&path, false).unwrap();
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
        let disk = RawDisk::open(&path, true).unwrap();
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
        let reader = RawDisk::open(&path, true).unwrap();
        let _another = RawDisk::open(&path, true).unwrap();
        let busy = RawDisk::open(&path, false).unwrap_err();
        assert_eq!(busy.exit, Exit::Busy);
        drop(reader);
    }

    #[test]
    fn what_has_a_format_of_its_own_is_refused() {
        let (_dir, path) = image(1 << 20);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"QFI\xfb\0\0\0\x03", 0).unwrap();
        for read_only in [true, false] {
            let refused = RawDisk::open(&path, read_only).unwrap_err();
            assert_eq!(refused.exit, Exit::WrongUse);
            let said = refused.to_string();
            assert!(said.contains("a qcow2 image"), "{said}");
        }
    }
}
