//! A disk as the one file of a FUSE file system.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, WriteFlags,
};
use paddock_vhd::{BlockDevice, IoError};
use rustix::fs::FallocateFlags;

/// The file's name.
pub(crate) const NAME: &str = "disk";

const FILE: INodeNo = INodeNo(2);
/// Nothing but us changes anything.
const TTL: Duration = Duration::from_secs(3600);
/// The most that the kernel sends or asks for at once.
const MAX_REQUEST: u32 = 1 << 20;

/// The file system with the disk in it.
pub(crate) struct DiskFile {
    disk: Arc<dyn BlockDevice>,
    since: SystemTime,
}

impl DiskFile {
    pub(crate) fn new(disk: Arc<dyn BlockDevice>) -> DiskFile {
        DiskFile {
            disk,
            since: SystemTime::now(),
        }
    }

    fn attributes(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o500, 0),
            FILE if self.disk.read_only() => (FileType::RegularFile, 0o400, self.disk.size()),
            FILE => (FileType::RegularFile, 0o600, self.disk.size()),
            _ => return None,
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

/// A broken disk fails every request; the log hears of the first ones.
const MOST_LOGGED: u32 = 1000;
static LOGGED: AtomicU32 = AtomicU32::new(0);

/// What the kernel is told; the server's log has the rest.
fn errno(operation: &str, error: &IoError) -> Errno {
    if LOGGED.fetch_add(1, Ordering::Relaxed).min(MOST_LOGGED) < MOST_LOGGED {
        eprintln!("{operation}: {error}");
    }
    match error {
        IoError::NoSpace { .. } => Errno::ENOSPC,
        IoError::ReadOnly => Errno::EROFS,
        IoError::OutOfRange { .. } => Errno::EINVAL,
        _ => Errno::EIO,
    }
}

fn reply(result: Result<(), IoError>, operation: &str, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(operation, &error)),
    }
}

impl Filesystem for DiskFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Otherwise the kernel's own limits are good enough.
        let _ = config.set_max_write(MAX_REQUEST);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(attributes) if parent == INodeNo::ROOT && name == NAME => {
                reply.entry(&TTL, &attributes, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if ino == FILE {
            // The loop device has a cache of its own.
            reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        } else {
            reply.error(Errno::EISDIR);
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.disk.size().saturating_sub(offset);
        let len = u64::from(size.min(MAX_REQUEST)).min(left);
        let mut buf = vec![0; len as usize];
        match self.disk.read_at(&mut buf, offset) {
            Ok(()) => reply.data(&buf),
            // At the end, or behind it.
            Err(IoError::OutOfRange { .. }) => reply.data(&[]),
            Err(error) => reply.error(errno("read", &error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disk.write_at(data, offset) {
            // A request has at most 1 MiB.
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(errno("write", &error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing a file promises nothing; `fsync` does.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, empty: ReplyEmpty) {
        reply(self.disk.flush(), "flush", empty);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        empty: ReplyEmpty,
    ) {
        let flags = FallocateFlags::from_bits_retain(mode as u32) - FallocateFlags::KEEP_SIZE;
        if flags == FallocateFlags::PUNCH_HOLE {
            reply(self.disk.discard(offset, length), "discard", empty);
        } else if flags == FallocateFlags::ZERO_RANGE {
            reply(
                self.disk.write_zeroes(offset, length),
                "write zeroes",
                empty,
            );
        } else {
            empty.error(Errno::EOPNOTSUPP);
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, NAME),
        ];
        for (next, (ino, kind, name)) in (1u64..).zip(entries) {
            if next > offset && reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // The loop device takes the size of a block for that of a discard.
        reply.statfs(self.disk.size() / 4096, 0, 0, 1, 0, 4096, 255, 4096);
    }
}
