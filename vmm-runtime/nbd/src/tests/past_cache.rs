//! A disk that is read and written past the page cache: by the kernel, without a thread that waits.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use paddock_vhd::{
    Access, Backend, BlockDevice, CreateOptions, DiskSize, DiskType, Extent, Intent, IoError,
    OpenError, OpenOptions, Place, Pool, Queue, QueueOptions, Vhd,
};

use super::{Client, FLUSH, FUA, READ, WRITE};
use crate::{Export, Server};

const SIZE: usize = 8 << 20;
/// More than the thread that reads requests works on itself.
const REQUEST: usize = 128 << 10;

/// Counts the calls that move bytes.
struct Watched {
    disk: Vhd,
    calls: AtomicU64,
}

impl BlockDevice for Watched {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read_only(&self) -> bool {
        self.disk.read_only()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.disk.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
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

/// A full dynamic disk in `pool`, or none where the kernel or the file system can't.
fn watched(pool: &Pool) -> Option<Arc<Watched>> {
    let size = DiskSize::from_bytes(SIZE as u64).unwrap();
    let disk = Vhd::create(
        pool,
        "disk.vhd",
        &CreateOptions::new(DiskType::Dynamic, size),
    )
    .unwrap();
    disk.write_at(&vec![1; SIZE], 0).unwrap();
    disk.close().unwrap();
    let options = OpenOptions::new(Access::ReadWrite).direct(true);
    let disk = match options.open(pool, "disk.vhd") {
        Ok(disk) => disk,
        Err(OpenError::Io { source, .. }) if source.kind() == std::io::ErrorKind::Unsupported => {
            skipped("the file system has no O_DIRECT");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let calls = AtomicU64::new(0);
    let disk = Arc::new(Watched { disk, calls });
    let options = QueueOptions {
        backend: Backend::IoUring,
        ..QueueOptions::default()
    };
    if let Err(error) = Queue::new(disk.clone(), options) {
        skipped(format_args!("no io_uring: {error}"));
        return None;
    }
    Some(disk)
}

/// Past the harness, which keeps what a test prints that passes.
fn skipped(why: impl std::fmt::Display) {
    let line = format!("skipped: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

#[test]
fn what_lies_in_one_piece_is_left_to_the_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = watched(&Pool::open(directory.path()).unwrap()) else {
        return;
    };
    let socket = directory.path().join("s");
    let server = Server::unix(&socket, vec![Export::new("root", disk.clone())]).unwrap();
    let mut client = Client::connect(&socket);
    client.go("root");
    // The first request to a block reads its bitmap.
    for block in 0..4 {
        client.send(0, READ, block, block << 21, 512);
        assert_eq!(client.simple_reply(block), 0);
        assert_eq!(client.vec(512), [1; 512]);
    }
    assert_eq!(disk.calls.swap(0, Ordering::SeqCst), 4);
    let count = (SIZE / REQUEST) as u64;
    let offset = |cookie: u64| cookie * REQUEST as u64;
    for cookie in 0..count {
        let flags = if cookie % 7 == 0 { FUA } else { 0 };
        client.send(flags, WRITE, cookie, offset(cookie), REQUEST as u32);
        let bytes = vec![cookie as u8 + 2; REQUEST];
        client.stream.write_all(&bytes).unwrap();
    }
    let mut seen: Vec<u64> = (0..count).map(|_| client.any_simple_reply()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..count).collect::<Vec<_>>());
    assert_eq!(client.call(0, FLUSH, 0, 0), 0);

    // One after the other: the replies would not fit in the socket.
    for cookie in (0..count).rev() {
        client.send(0, READ, cookie, offset(cookie), REQUEST as u32);
        assert_eq!(client.simple_reply(cookie), 0);
        assert!(client.vec(REQUEST) == vec![cookie as u8 + 2; REQUEST]);
    }
    assert_eq!(disk.calls.load(Ordering::SeqCst), 0);

    // What does not begin at a sector is not for the kernel.
    client.send(0, WRITE, 1, 100, REQUEST as u32);
    client.stream.write_all(&vec![99; REQUEST]).unwrap();
    assert_eq!(client.simple_reply(1), 0);
    client.send(0, READ, 2, 50, REQUEST as u32);
    assert_eq!(client.simple_reply(2), 0);
    let mut expected = vec![2; 50];
    expected.resize(REQUEST, 99);
    assert!(client.vec(REQUEST) == expected);
    assert_eq!(disk.calls.load(Ordering::SeqCst), 2);
    server.stop();
}
