//! Measures the crate in one process: requests of 4 KiB at random places,
//! and copies of whole disks.
//!
//! `block_bench FOLDER CASE...`, in an empty folder. The cases:
//!
//! - `raw`, `fixed`, `dynamic`, `chain1`, `chain10`: reads and overwrites of
//!   a disk that is full; `allocate`: writes to a new disk, each to a block of
//!   its own as far as there are any; `queue`: the dynamic disk through a
//!   queue of depth 32, with io_uring and with threads;
//! - `import`, `export`: a raw image of 4 GiB, every second MiB of it random,
//!   to a dynamic disk and back;
//! - `check`, `serve`: a dynamic disk of 2040 GiB all blocks of which are
//!   allocated, and the memory that this takes.
//!
//! Figures go to standard output, one per line, with the processor's time per
//! request: what other work there is on the machine changes that least.

#![allow(clippy::unwrap_used)] // What can't be measured ends the program.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use paddock_vhd::{
    Access, Backend, BlockDevice, Buffer, ChildOptions, CreateOptions, DiskSize, DiskType, Extent,
    Gate, ImportOptions, IoError, ParentSearch, Pool, Queue, QueueOptions, Request, Vhd, check,
    export_raw, import_raw,
};

const MIB: u64 = 1 << 20;
const DISK: u64 = 1024 * MIB;
const REQUEST: usize = 4096;

/// A file without any format, to compare with.
struct Raw(File);

fn ok<T>(result: std::io::Result<T>) -> Result<T, IoError> {
    Ok(result.unwrap())
}

impl BlockDevice for Raw {
    fn size(&self) -> u64 {
        DISK
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        ok(self.0.read_exact_at(buf, offset))
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        ok(self.0.write_all_at(buf, offset))
    }
    fn flush(&self) -> Result<(), IoError> {
        ok(self.0.sync_data())
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

/// Numbers that look random: xorshift.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, buf: &mut [u8]) {
        for word in buf.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Read,
    Overwrite,
    Allocate,
}

/// Requests per second of so many threads. The flush at the end counts.
fn requests(disk: &dyn BlockDevice, kind: Kind, threads: u64, time: Duration) -> f64 {
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (done, stop) = (&done, &stop);
            scope.spawn(move || {
                let mut numbers = Numbers(thread * 7919 + 88_172_645_463_325_252);
                let mut buf = vec![thread as u8 + 1; REQUEST];
                while !stop.load(Ordering::Relaxed) {
                    let slots = disk.size() / REQUEST as u64;
                    let offset = numbers.next() % slots * REQUEST as u64;
                    match kind {
                        Kind::Read => disk.read_at(&mut buf, offset).unwrap(),
                        Kind::Overwrite => disk.write_at(&buf, offset).unwrap(),
                        Kind::Allocate => {
                            let count = done.load(Ordering::Relaxed);
                            if count * 2 * MIB >= disk.size() {
                                break;
                            }
                            // Spread over the blocks, each once.
                            let blocks = disk.size() / (2 * MIB);
                            let block = count * 7919 % blocks;
                            disk.write_at(&buf, block * 2 * MIB + offset % MIB).unwrap();
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let end = started + time;
        while Instant::now() < end
            && (kind != Kind::Allocate || done.load(Ordering::Relaxed) * 2 * MIB < disk.size())
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
    });
    if kind != Kind::Read {
        disk.flush().unwrap();
    }
    done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}

/// Requests per second through a queue of depth 32.
fn queued(disk: &Arc<dyn BlockDevice>, kind: Kind, backend: Backend, time: Duration) -> f64 {
    let options = QueueOptions {
        depth: 32,
        threads: 8,
        backend,
    };
    let queue = Queue::new(disk.clone(), options).unwrap();
    let mut numbers = Numbers(88_172_645_463_325_252);
    let spare = Arc::new(Mutex::new(vec![Buffer::new(REQUEST); 33]));
    let mut done = 0;
    let started = Instant::now();
    while done % 64 != 0 || started.elapsed() < time {
        let offset = numbers.next() % (disk.size() / REQUEST as u64) * REQUEST as u64;
        let buf = spare.lock().unwrap().pop();
        let buf = buf.unwrap_or_else(|| Buffer::new(REQUEST));
        let request = match kind {
            Kind::Read => Request::Read { offset, buf },
            _ => Request::Write {
                offset,
                buf,
                fua: false,
            },
        };
        let spare = spare.clone();
        queue.submit(request, move |result| {
            spare.lock().unwrap().push(result.unwrap().buf);
        });
        done += 1;
    }
    drop(queue);
    disk.flush().unwrap();
    f64::from(done) / started.elapsed().as_secs_f64()
}

fn fill(disk: &dyn BlockDevice) {
    let mut buf = vec![0; 2 * MIB as usize];
    Numbers(1).fill(&mut buf);
    for at in (0..disk.size()).step_by(buf.len()) {
        disk.write_at(&buf, at).unwrap();
    }
    disk.flush().unwrap();
}

fn measure(name: &str, disk: &dyn BlockDevice, kinds: &[Kind]) {
    let time = Duration::from_secs(3);
    for &kind in kinds {
        let what = match kind {
            Kind::Read => "read",
            Kind::Overwrite => "overwrite",
            Kind::Allocate => "allocate",
        };
        for threads in [1, 32] {
            let before = processor();
            let started = Instant::now();
            let rate = requests(disk, kind, threads, time);
            let each = (processor() - before) / (rate * started.elapsed().as_secs_f64());
            println!(
                "{name} {what} x{threads}: {rate:.0} per second, {:.2} us of processor each",
                each * 1e6
            );
        }
    }
}

fn options(disk_type: DiskType, bytes: u64) -> CreateOptions {
    CreateOptions::new(disk_type, DiskSize::from_bytes(bytes).unwrap())
}

fn sync() {
    let done = std::process::Command::new("sync").status().unwrap();
    assert!(done.success());
}

/// Seconds of processor time that this process has used.
fn processor() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The most memory that the process had resident, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}

fn chain(pool: &Pool, folder: &Path, length: u32) -> Vhd {
    let name = |level: u32| format!("chain-{length}-{level}.vhd");
    let open = || Vhd::open(pool, name(length - 1), Access::ReadOnly, Gate::open());
    if folder.join(name(length - 1)).exists() {
        return open().unwrap();
    }
    let base = Vhd::create(pool, name(0), &options(DiskType::Dynamic, DISK)).unwrap();
    fill(&base);
    base.close().unwrap();
    for level in 1..length {
        let child = Vhd::create_child(
            pool,
            name(level),
            pool,
            name(level - 1),
            &ChildOptions::new(),
        );
        let child = child.unwrap();
        // A tenth of the sectors of every block at each level.
        let mut buf = vec![level as u8; 200 << 10];
        Numbers(level.into()).fill(&mut buf);
        for block in 0..DISK / (2 * MIB) {
            child
                .write_at(&buf, block * 2 * MIB + u64::from(level) * (200 << 10))
                .unwrap();
        }
        child.close().unwrap();
    }
    open().unwrap()
}

fn source(folder: &Path) -> File {
    let path = folder.join("source.raw");
    if let Ok(file) = File::open(&path) {
        return file;
    }
    let mut file = File::create(&path).unwrap();
    let (mut data, zeros) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    let mut numbers = Numbers(5);
    for mib in 0..4096 {
        if mib % 2 == 0 {
            numbers.fill(&mut data);
            file.write_all(&data).unwrap();
        } else {
            file.write_all(&zeros).unwrap();
        }
    }
    file.sync_all().unwrap();
    File::open(&path).unwrap()
}

/// A dynamic disk of the largest size, all blocks of which lie in a hole.
fn full(pool: &Pool, folder: &Path) {
    let path = folder.join("full.vhd");
    if path.exists() {
        return;
    }
    let disk = Vhd::create(pool, "full.vhd", &options(DiskType::Dynamic, 2040 << 30)).unwrap();
    disk.close().unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut footer = [0; 512];
    file.read_exact_at(&mut footer, 0).unwrap();
    let blocks: u32 = 2040 << 9;
    // Bitmaps end where the data begins, at a multiple of 4 KiB.
    let first = (1536 + u64::from(blocks) * 4).next_multiple_of(4096) / 512 + 7;
    let entry = |block: u32| first as u32 + block * 4104;
    let table: Vec<u8> = (0..blocks)
        .flat_map(|block| entry(block).to_be_bytes())
        .collect();
    file.write_all_at(&table, 1536).unwrap();
    let end = u64::from(entry(blocks - 1)) * 512 + 512 + 2 * MIB;
    file.set_len(end).unwrap();
    file.write_all_at(&footer, end).unwrap();
    file.sync_all().unwrap();
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap();
    let folder = Path::new(&folder);
    let pool = Pool::open(folder).unwrap();
    let all = &mut |_| ControlFlow::Continue(());
    for case in arguments {
        sync();
        let remove = |name: &str| {
            let _ = std::fs::remove_file(folder.join(name));
        };
        match &*case {
            "raw" => {
                remove("raw.img");
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(folder.join("raw.img"));
                let disk = Raw(file.unwrap());
                fill(&disk);
                measure("raw", &disk, &[Kind::Read, Kind::Overwrite]);
            }
            "fixed" | "dynamic" => {
                let disk_type = if case == "fixed" {
                    DiskType::Fixed
                } else {
                    DiskType::Dynamic
                };
                let name = format!("{case}.vhd");
                remove(&name);
                let disk = Vhd::create(&pool, &name, &options(disk_type, DISK)).unwrap();
                fill(&disk);
                measure(&case, &disk, &[Kind::Read, Kind::Overwrite]);
            }
            "queue" => {
                remove("queue.vhd");
                let options = options(DiskType::Dynamic, DISK);
                let disk = Vhd::create(&pool, "queue.vhd", &options).unwrap();
                fill(&disk);
                let disk: Arc<dyn BlockDevice> = Arc::new(disk);
                let time = Duration::from_secs(3);
                for (kind, what) in [(Kind::Read, "read"), (Kind::Overwrite, "overwrite")] {
                    for backend in [Backend::Auto, Backend::IoUring, Backend::Threads] {
                        let rate = queued(&disk, kind, backend, time);
                        println!("queue {what} {backend:?}: {rate:.0} per second");
                    }
                }
            }
            "allocate" => {
                for threads in [1, 32] {
                    remove("allocate.vhd");
                    let options = options(DiskType::Dynamic, 128 << 30);
                    let disk = Vhd::create(&pool, "allocate.vhd", &options).unwrap();
                    let rate = requests(&disk, Kind::Allocate, threads, Duration::from_secs(10));
                    println!("dynamic allocate x{threads}: {rate:.0} per second");
                }
            }
            "chain1" | "chain10" => {
                let length = case[5..].parse().unwrap();
                let disk = chain(&pool, folder, length);
                measure(&case, &disk, &[Kind::Read]);
            }
            "import" => {
                remove("imported.vhd");
                let source = source(folder);
                let started = Instant::now();
                let options = ImportOptions {
                    disk_type: DiskType::Dynamic,
                    size: None,
                    sha256: None,
                    unique_id: None,
                    gate: Gate::open(),
                };
                let report = import_raw(&source, &pool, "imported.vhd", &options, all).unwrap();
                let time = started.elapsed().as_secs_f64();
                println!(
                    "import: {time:.2} s, {} MiB written",
                    report.written_bytes / MIB
                );
            }
            "export" => {
                remove("exported.raw");
                let started = Instant::now();
                let search = ParentSearch::new();
                export_raw(
                    &pool,
                    "imported.vhd",
                    &pool,
                    "exported.raw",
                    Gate::open(),
                    &search,
                    all,
                )
                .unwrap();
                println!("export: {:.2} s", started.elapsed().as_secs_f64());
            }
            "check" => {
                full(&pool, folder);
                let started = Instant::now();
                let report = check(&pool, "full.vhd", &ParentSearch::new(), all).unwrap();
                println!(
                    "check: {:.2} s, {} blocks, worst {:?}, peak {} MiB",
                    started.elapsed().as_secs_f64(),
                    report.allocated_blocks,
                    report.worst(),
                    peak()
                );
            }
            "serve" => {
                full(&pool, folder);
                let disk = Vhd::open(&pool, "full.vhd", Access::ReadWrite, Gate::open()).unwrap();
                let disk: Arc<dyn BlockDevice> = Arc::new(disk);
                let rate = requests(&*disk, Kind::Read, 8, Duration::from_secs(10));
                println!("serve: {rate:.0} reads per second, peak {} MiB", peak());
            }
            other => panic!("there is no case '{other}'"),
        }
    }
}
