//! Queues with either backend, compared with a vector of bytes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::*;
use crate::block::{ExtentKind, IoErrorKind};
use crate::image::random::Random;
use crate::skipped::skipped;
use crate::storage::FilePlace;
use crate::{
    Access, ChildOptions, CreateOptions, DiskSize, DiskType, Gate, OpenError, OpenOptions,
    Pool as Folder, Vhd,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

fn options(backend: Backend) -> QueueOptions {
    QueueOptions {
        depth: 16,
        threads: 3,
        backend,
    }
}

/// A queue over `disk`; `None`, and says so, if this machine has no io_uring.
fn queue(disk: &Arc<dyn BlockDevice>, backend: Backend) -> Option<Queue> {
    match Queue::new(Arc::clone(disk), options(backend)) {
        Ok(queue) => Some(queue),
        Err(error) => {
            assert_eq!(backend, Backend::IoUring, "{error}");
            skipped(format_args!("no io_uring here: {error}"));
            None
        }
    }
}

/// How many requests a queue has given to the kernel.
fn submitted(queue: &Queue) -> u64 {
    queue.ring.as_ref().map_or(0, Ring::submitted)
}

/// Submits a request and waits for its end.
fn ask(queue: &Queue, request: Request) -> Result<Reply, IoError> {
    let (sender, receiver) = channel();
    queue.submit(request, move |result| sender.send(result).unwrap());
    receiver.recv_timeout(Duration::from_secs(60)).unwrap()
}

fn write(offset: u64, buf: Vec<u8>) -> Request {
    Request::Write {
        offset,
        buf: buf.into(),
        fua: false,
    }
}

struct TestDisk {
    dir: tempfile::TempDir,
    name: &'static str,
    content: Vec<u8>,
}

impl TestDisk {
    /// A disk of a kind (`fixed`, `dynamic`, `child`), some of it written.
    fn new(kind: &'static str, random: &mut Random) -> TestDisk {
        let dir = tempfile::tempdir().unwrap();
        let pool = Folder::open(dir.path()).unwrap();
        let disk_type = match kind {
            "fixed" => DiskType::Fixed,
            _ => DiskType::Dynamic,
        };
        let size = DiskSize::from_bytes(SIZE).unwrap();
        let mut content = vec![0; SIZE as usize];
        let mut scribble = |disk: &Vhd| {
            for _ in 0..20 {
                let range = random.range(SIZE, 300_000);
                let bytes = random.bytes(range.end - range.start);
                disk.write_at(&bytes, range.start).unwrap();
                content[range.start as usize..range.end as usize].copy_from_slice(&bytes);
            }
        };
        let base = Vhd::create(&pool, "base.vhd", &CreateOptions::new(disk_type, size)).unwrap();
        scribble(&base);
        base.close().unwrap();
        let mut name = "base.vhd";
        if kind == "child" {
            for child in ["middle.vhd", "top.vhd"] {
                let options = ChildOptions::new();
                let disk = Vhd::create_child(&pool, child, &pool, name, &options).unwrap();
                scribble(&disk);
                disk.close().unwrap();
                name = child;
            }
        }
        TestDisk { dir, name, content }
    }

    fn open(&self, gate: Gate) -> Arc<dyn BlockDevice> {
        let pool = Folder::open(self.dir.path()).unwrap();
        Arc::new(Vhd::open(&pool, self.name, Access::ReadWrite, gate).unwrap())
    }

    /// `None`, and says so, where the file system can't.
    fn open_direct(&self) -> Option<Arc<dyn BlockDevice>> {
        let pool = Folder::open(self.dir.path()).unwrap();
        let options = OpenOptions::new(Access::ReadWrite).direct(true);
        match options.open(&pool, self.name) {
            Ok(disk) => Some(Arc::new(disk)),
            Err(OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::Unsupported => {
                skipped("this file system has no direct access");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Sixteen requests at a time, each within a part of the disk of its own.
fn run(seed: u64, kind: &'static str, backend: Backend, direct: bool) {
    let mut random = Random::new(seed);
    let mut disk = TestDisk::new(kind, &mut random);
    let device = if direct {
        disk.open_direct()
    } else {
        Some(disk.open(Gate::open()))
    };
    let Some(device) = device else { return };
    let Some(queue) = queue(&device, backend) else {
        return;
    };
    let told = Arc::new(AtomicUsize::new(0));
    let rounds = 40;
    for _ in 0..rounds {
        let (sender, receiver) = channel();
        for lane in 0..16 {
            let part = SIZE / 16;
            let mut range = random.range(part, 70_000);
            if random.below(2) == 0 {
                // As a file system does.
                range = range.start / 4096 * 4096..range.end / 4096 * 4096;
            }
            let offset = lane * part + range.start;
            let len = range.end - range.start;
            let span = offset as usize..(offset + len) as usize;
            let mut expected = Reply::default();
            let request = match random.below(12) {
                0..4 => {
                    expected.buf = disk.content[span].to_vec().into();
                    let mut buf = Buffer::new(len as usize);
                    buf.fill(0xaa);
                    Request::Read { offset, buf }
                }
                4..8 => {
                    let mut buf = Buffer::new(len as usize);
                    buf.copy_from_slice(&random.bytes(len));
                    disk.content[span].copy_from_slice(&buf);
                    expected.buf = buf.clone();
                    let fua = random.below(8) == 0;
                    Request::Write { offset, buf, fua }
                }
                8 => {
                    disk.content[span].fill(0);
                    let fua = random.below(2) == 0;
                    Request::WriteZeroes { offset, len, fua }
                }
                9 => {
                    disk.content[span].fill(0);
                    Request::Discard { offset, len }
                }
                10 => Request::BlockStatus { offset, len },
                _ => Request::Flush,
            };
            let (sender, told) = (sender.clone(), Arc::clone(&told));
            let status = matches!(request, Request::BlockStatus { .. });
            queue.submit(request, move |result| {
                told.fetch_add(1, Ordering::SeqCst);
                sender.send((expected, status, result)).unwrap();
            });
        }
        drop(sender);
        for _ in 0..16 {
            let (expected, status, result) =
                receiver.recv_timeout(Duration::from_secs(60)).unwrap();
            let mut reply = result.unwrap();
            reply.took = Duration::ZERO;
            if status {
                for extent in reply.extents {
                    let end = extent.offset + extent.len;
                    let bytes = &disk.content[extent.offset as usize..end as usize];
                    assert!(extent.kind == ExtentKind::Data || bytes.iter().all(|b| *b == 0));
                }
            } else {
                assert!(reply == expected, "seed {seed}: a wrong reply");
            }
        }
    }
    let cached_writes = backend == Backend::IoUring && !direct;
    if cached_writes || (direct && queue.ring.is_some()) {
        assert_eq!(queue.backend(), Backend::IoUring);
        assert!(submitted(&queue) > 50, "{} submitted", submitted(&queue));
    }
    drop(queue);
    assert_eq!(told.load(Ordering::SeqCst), 16 * rounds);
    device.flush().unwrap();
    drop(device);
    let mut found = vec![0; SIZE as usize];
    disk.open(Gate::open()).read_at(&mut found, 0).unwrap();
    assert!(found == disk.content, "seed {seed}: the disk differs");
}

#[test]
fn queues_do_what_a_vector_does() {
    for (seed, kind) in ["fixed", "dynamic", "child"].into_iter().enumerate() {
        for backend in [Backend::Threads, Backend::IoUring, Backend::Auto] {
            run(seed as u64, kind, backend, false);
        }
    }
}

#[test]
fn so_do_they_past_the_page_cache() {
    for (seed, kind) in ["fixed", "dynamic", "child"].into_iter().enumerate() {
        for backend in [Backend::Threads, Backend::Auto] {
            run(seed as u64, kind, backend, true);
        }
    }
}

#[test]
fn a_closed_gate_lets_nothing_be_submitted() {
    for kind in ["fixed", "dynamic", "child"] {
        for backend in [Backend::Threads, Backend::IoUring, Backend::Auto] {
            let disk = TestDisk::new(kind, &mut Random::new(7));
            let gate = Gate::open();
            let device = disk.open(gate.clone());
            let Some(queue) = queue(&device, backend) else {
                continue;
            };
            ask(&queue, write(4096, vec![1; 4096])).unwrap();
            let before = submitted(&queue);
            let file = || std::fs::read(disk.dir.path().join(disk.name)).unwrap();
            let content = file();
            gate.close();
            assert!(device.locate(Intent::Write, 4096, 4096).is_none());
            for request in [
                write(4096, vec![2; 4096]),
                Request::Write {
                    offset: 0,
                    buf: vec![2; 100].into(),
                    fua: true,
                },
                Request::Discard {
                    offset: 0,
                    len: SIZE,
                },
                Request::WriteZeroes {
                    offset: 0,
                    len: 8192,
                    fua: false,
                },
                Request::Flush,
            ] {
                let error = ask(&queue, request).unwrap_err();
                assert_eq!(error.kind(), IoErrorKind::GateClosed, "{kind}, {backend:?}");
            }
            assert_eq!(submitted(&queue), before);
            assert!(file() == content, "{kind}, {backend:?}");
            assert!(gate.drain(Duration::ZERO));
        }
    }
}

/// A disk that is the end of a pipe: what is written stays in flight until
/// somebody reads.
struct Pipe {
    file: Arc<File>,
    gate: Gate,
    unsynced: Arc<std::sync::atomic::AtomicBool>,
    flushes: AtomicU64,
    located: AtomicU64,
}

impl BlockDevice for Pipe {
    fn size(&self) -> u64 {
        SIZE
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&self, _: &mut [u8], _: u64) -> Result<(), IoError> {
        Ok(())
    }
    fn write_at(&self, _: &[u8], _: u64) -> Result<(), IoError> {
        self.gate.enter()?;
        panic!("not by this way");
    }
    fn flush(&self) -> Result<(), IoError> {
        assert!(
            self.unsynced.load(Ordering::SeqCst),
            "told before the flush"
        );
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), IoError> {
        Ok(())
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), IoError> {
        Ok(())
    }
    fn block_status(&self, _: u64, _: u64) -> Result<Vec<Extent>, IoError> {
        Ok(Vec::new())
    }
    fn locate(&self, _: Intent, _: u64, _: u64) -> Option<Place> {
        let pass = self.gate.enter_held().ok()?;
        self.located.fetch_add(1, Ordering::SeqCst);
        let place = FilePlace {
            file: Arc::clone(&self.file),
            alignment: 1,
            hold: None,
            ahead: None,
        };
        Some(Place::to_write(place, 0, Arc::clone(&self.unsynced), pass))
    }
}

fn pipe() -> (File, Arc<Pipe>) {
    let (read, write): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();
    let pipe = Pipe {
        file: Arc::new(write.into()),
        gate: Gate::open(),
        unsynced: Arc::default(),
        flushes: AtomicU64::new(0),
        located: AtomicU64::new(0),
    };
    (read.into(), Arc::new(pipe))
}

#[test]
fn a_drain_waits_for_what_the_kernel_has() {
    let (mut reader, pipe) = pipe();
    let device: Arc<dyn BlockDevice> = pipe.clone();
    let Some(queue) = queue(&device, Backend::IoUring) else {
        return;
    };
    // As much as the pipe takes, and a bit.
    let full = rustix::pipe::fcntl_getpipe_size(&pipe.file).unwrap();
    (&*pipe.file).write_all(&vec![5; full]).unwrap();
    let (sender, receiver) = channel();
    queue.submit(write(0, vec![6; 512]), move |result| {
        sender.send(result.is_ok()).unwrap();
    });
    pipe.gate.close();
    assert!(!pipe.gate.drain(Duration::from_millis(20)));
    assert!(receiver.try_recv().is_err());
    let mut found = vec![0; full + 512];
    reader.read_exact(&mut found).unwrap();
    assert!(pipe.gate.drain(Duration::from_secs(60)));
    assert!(pipe.unsynced.load(Ordering::SeqCst));
    assert!(receiver.recv_timeout(Duration::from_secs(60)).unwrap());
    assert!(found[..full].iter().all(|&byte| byte == 5));
    assert_eq!(found[full..], [6; 512]);
}

/// A deadline that passes while a writer that has a pass waits for its turn.
#[test]
fn a_deadline_that_passes_meanwhile_lets_nothing_be_submitted() {
    let (_reader, pipe) = pipe();
    let device: Arc<dyn BlockDevice> = pipe.clone();
    let Some(queue) = queue(&device, Backend::IoUring) else {
        return;
    };
    let turn = queue.ring.as_ref().unwrap().hold_up();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&queue, write(0, vec![6; 512])));
        while pipe.located.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        assert!(!pipe.gate.until(Duration::from_nanos(1)));
        drop(turn);
        let error = asked.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), IoErrorKind::GateClosed);
    });
    assert_eq!(submitted(&queue), 0);
    assert!(pipe.gate.drain(Duration::from_secs(60)));
}

#[test]
fn what_is_to_be_durable_is_flushed_before_it_is_told() {
    let (_reader, pipe) = pipe();
    let device: Arc<dyn BlockDevice> = pipe.clone();
    let Some(queue) = queue(&device, Backend::IoUring) else {
        return;
    };
    ask(&queue, write(0, vec![1; 512])).unwrap();
    assert_eq!(pipe.flushes.load(Ordering::SeqCst), 0);
    let request = Request::Write {
        offset: 0,
        buf: vec![2; 512].into(),
        fua: true,
    };
    let reply = ask(&queue, request).unwrap();
    assert_eq!(*reply.buf, [2; 512]);
    assert_eq!(pipe.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn a_region_does_not_change_hands_while_the_kernel_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Folder::open(dir.path()).unwrap();
    let size = DiskSize::from_bytes(SIZE).unwrap();
    let disk = Vhd::create(&pool, "a.vhd", &CreateOptions::new(DiskType::Dynamic, size)).unwrap();
    disk.write_at(&[1; 4096], 0).unwrap();
    let place = disk.locate(Intent::Write, 0, 4096).unwrap();
    let released = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            disk.discard(0, 2 * MIB).unwrap();
            assert!(released.load(Ordering::SeqCst), "the block was taken away");
        });
        // Until the other thread waits for the place, or is past it.
        let deadline = Instant::now() + Duration::from_secs(60);
        while disk.locate(Intent::Write, 0, 4096).is_some() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        released.store(true, Ordering::SeqCst);
        drop(place);
    });
    assert!(disk.locate(Intent::Write, 0, 4096).is_none());
}

#[test]
fn small_writes_to_the_page_cache_are_over_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Folder::open(dir.path()).unwrap();
    let size = DiskSize::from_bytes(SIZE).unwrap();
    let gate = Gate::open();
    let mut options = CreateOptions::new(DiskType::Dynamic, size);
    options.gate = gate.clone();
    let disk = Arc::new(Vhd::create(&pool, "a.vhd", &options).unwrap());
    disk.write_at(&[1; 200_000], 0).unwrap();
    let queue = Queue::new(disk.clone(), self::options(Backend::Auto)).unwrap();
    let here = std::thread::current().id();
    let is_done_here = |len, fua| {
        let (sender, receiver) = channel();
        let request = Request::Write {
            offset: 7,
            buf: vec![2; len].into(),
            fua,
        };
        queue.submit(request, move |result| {
            let there = std::thread::current().id();
            sender.send((there, result.unwrap().buf.len())).unwrap();
        });
        let (there, written) = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(written, len);
        there == here
    };
    assert!(is_done_here(65_536, false));
    assert!(!is_done_here(65_537, false));
    assert!(!is_done_here(512, true));
    let mut found = vec![0; 65_545];
    disk.read_at(&mut found, 0).unwrap();
    let parts = [vec![1; 7], vec![2; 65_537], vec![1]];
    assert!(found == parts.concat());
    gate.close();
    let error = ask(&queue, write(7, vec![3; 512])).unwrap_err();
    assert_eq!(error.kind(), IoErrorKind::GateClosed);
    disk.read_at(&mut found, 0).unwrap();
    assert!(found == parts.concat());
}

/// Counts how many reads are under way at once.
#[derive(Default)]
struct Counting {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl BlockDevice for Counting {
    fn size(&self) -> u64 {
        SIZE
    }
    fn read_only(&self) -> bool {
        true
    }
    fn read_at(&self, buf: &mut [u8], _: u64) -> Result<(), IoError> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        std::thread::yield_now();
        buf.fill(9);
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
    fn write_at(&self, _: &[u8], _: u64) -> Result<(), IoError> {
        Err(IoError::ReadOnly)
    }
    fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), IoError> {
        Err(IoError::ReadOnly)
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), IoError> {
        Err(IoError::ReadOnly)
    }
    fn block_status(&self, _: u64, _: u64) -> Result<Vec<Extent>, IoError> {
        Ok(Vec::new())
    }
}

/// A disk whose flushes wait to be let through.
struct Slow {
    flushes: AtomicU64,
    go_on: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl BlockDevice for Slow {
    fn size(&self) -> u64 {
        SIZE
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&self, _: &mut [u8], _: u64) -> Result<(), IoError> {
        Ok(())
    }
    fn write_at(&self, _: &[u8], _: u64) -> Result<(), IoError> {
        Ok(())
    }
    fn flush(&self) -> Result<(), IoError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.go_on.lock().unwrap().recv().unwrap();
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), IoError> {
        Ok(())
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), IoError> {
        Ok(())
    }
    fn block_status(&self, _: u64, _: u64) -> Result<Vec<Extent>, IoError> {
        Ok(Vec::new())
    }
}

#[test]
fn flushes_that_wait_keep_no_thread_from_others() {
    let (let_through, go_on) = channel();
    let device = Arc::new(Slow {
        flushes: AtomicU64::new(0),
        go_on: Mutex::new(go_on),
    });
    let options = QueueOptions {
        depth: 16,
        threads: 2,
        backend: Backend::Threads,
    };
    let queue = Queue::new(device.clone(), options).unwrap();
    let (sender, receiver) = channel();
    let flush = || {
        let sender = sender.clone();
        queue.submit(Request::Flush, move |result| {
            sender.send(result.is_ok()).unwrap();
        });
    };
    flush();
    while device.flushes.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    for _ in 0..5 {
        flush();
    }
    // The other thread is free.
    let buf = Buffer::new(3);
    ask(&queue, Request::Read { offset: 0, buf }).unwrap();
    assert!(receiver.try_recv().is_err());
    let_through.send(()).unwrap();
    assert!(receiver.recv_timeout(Duration::from_secs(60)).unwrap());
    // Those that came during the first share the second.
    let_through.send(()).unwrap();
    for _ in 0..5 {
        assert!(receiver.recv_timeout(Duration::from_secs(60)).unwrap());
    }
    drop(queue);
    assert_eq!(device.flushes.load(Ordering::SeqCst), 2);
}

#[test]
fn the_number_in_flight_is_bounded_and_dropping_waits_for_it() {
    let device = Arc::new(Counting::default());
    let options = QueueOptions {
        depth: 2,
        threads: 8,
        backend: Backend::Threads,
    };
    let queue = Queue::new(device.clone(), options).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    for _ in 0..500 {
        let told = Arc::clone(&told);
        let request = Request::Read {
            offset: 0,
            buf: vec![0; 10].into(),
        };
        queue.submit(request, move |result| {
            assert_eq!(*result.unwrap().buf, [9; 10]);
            told.fetch_add(1, Ordering::SeqCst);
        });
    }
    drop(queue);
    assert_eq!(told.load(Ordering::SeqCst), 500);
    let most = device.most.load(Ordering::SeqCst);
    assert!((1..=2).contains(&most), "{most} at once");
}

#[test]
fn work_of_several_calls_counts_as_one_request() {
    let device = Arc::new(Counting::default());
    let options = QueueOptions {
        depth: 2,
        threads: 8,
        backend: Backend::Threads,
    };
    let queue = Queue::new(device.clone(), options).unwrap();
    let (sender, receiver) = channel();
    for len in 1..=100 {
        let sender = sender.clone();
        queue.run(move |disk| {
            let mut bytes = vec![0; len];
            let done = disk.read_at(&mut bytes, 0);
            let again = disk.write_at(&bytes, 0).unwrap_err();
            sender.send((bytes, done.is_ok(), again.kind())).unwrap();
        });
    }
    queue.run(|_| panic!("on purpose"));
    drop(queue);
    let mut seen: Vec<_> = receiver.try_iter().collect();
    seen.sort_by_key(|(bytes, ..)| bytes.len());
    let expected = |len| (vec![9; len], true, IoErrorKind::ReadOnly);
    assert_eq!(seen, (1..=100).map(expected).collect::<Vec<_>>());
    assert!(device.most.load(Ordering::SeqCst) <= 2);
}

/// A disk that is broken in itself.
struct Panicking;

impl BlockDevice for Panicking {
    fn size(&self) -> u64 {
        SIZE
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&self, _: &mut [u8], _: u64) -> Result<(), IoError> {
        panic!("on purpose")
    }
    fn write_at(&self, _: &[u8], _: u64) -> Result<(), IoError> {
        Ok(())
    }
    fn flush(&self) -> Result<(), IoError> {
        panic!("on purpose")
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), IoError> {
        panic!("on purpose")
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), IoError> {
        panic!("on purpose")
    }
    fn block_status(&self, _: u64, _: u64) -> Result<Vec<Extent>, IoError> {
        panic!("on purpose")
    }
}

#[test]
fn every_request_is_answered_even_if_the_disk_panics() {
    let device: Arc<dyn BlockDevice> = Arc::new(Panicking);
    let queue = Queue::new(device, options(Backend::Threads)).unwrap();
    let (offset, len, fua) = (0, 3, true);
    let requests = [
        Request::Read {
            offset,
            buf: Buffer::new(3),
        },
        Request::Write {
            offset,
            buf: Buffer::new(3),
            fua,
        },
        Request::Flush,
        Request::Flush,
        Request::Discard { offset, len },
        Request::WriteZeroes { offset, len, fua },
        Request::BlockStatus { offset, len },
    ];
    for request in requests {
        let said = ask(&queue, request.clone()).unwrap_err().to_string();
        assert!(said.contains("panicked"), "{request:?}: {said}");
    }
    drop(queue);
}

#[test]
fn threads_take_over_where_the_kernel_refuses() {
    let device: Arc<dyn BlockDevice> = Arc::new(Counting::default());
    let refuse = |_: usize, _: &Arc<Shared>, _: &Arc<Pool>| {
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    };
    let with = |backend| Queue::with_parts(device.clone(), options(backend), pool::spawn, refuse);
    assert_eq!(
        with(Backend::IoUring).unwrap_err().kind(),
        io::ErrorKind::PermissionDenied
    );
    let queue = with(Backend::Auto).unwrap();
    assert_eq!(queue.backend(), Backend::Threads);
    let why = queue.why_no_ring().map(io::Error::kind);
    assert_eq!(why, Some(io::ErrorKind::PermissionDenied));
    let buf = Buffer::new(3);
    let reply = ask(&queue, Request::Read { offset: 0, buf }).unwrap();
    assert_eq!(*reply.buf, [9; 3]);
    assert!(with(Backend::Threads).unwrap().why_no_ring().is_none());
}

/// A ring's thread would otherwise carry out what waits for the ring.
#[test]
fn there_is_no_ring_without_a_thread_beside_it() {
    let device: Arc<dyn BlockDevice> = Arc::new(Counting::default());
    let with = |backend| {
        let refuse: Spawn = |_| Err(io::ErrorKind::OutOfMemory.into());
        Queue::with_parts(device.clone(), options(backend), refuse, Ring::new)
    };
    let error = with(Backend::IoUring).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    let queue = with(Backend::Auto).unwrap();
    assert_eq!(queue.backend(), Backend::Threads);
    let why = queue.why_no_ring().map(io::Error::kind);
    assert_eq!(why, Some(io::ErrorKind::OutOfMemory));
    // This thread does it then.
    let buf = Buffer::new(3);
    let reply = ask(&queue, Request::Read { offset: 0, buf }).unwrap();
    assert_eq!(*reply.buf, [9; 3]);
}

#[test]
fn options_out_of_range_are_refused() {
    let device: Arc<dyn BlockDevice> = Arc::new(Counting::default());
    for (depth, threads) in [(0, 1), (1, 0), (4097, 1), (1, 65)] {
        let options = QueueOptions {
            depth,
            threads,
            backend: Backend::Auto,
        };
        let error = Queue::new(device.clone(), options).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
