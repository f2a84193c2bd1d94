//! A folder whose files and names are watched: what is done to them is logged,
//! fails when told to, and the folder can be shown as it may be after a crash
//! at any point of the log.
//!
//! What the operations do stays as it is. The calls of the C library by which
//! [`std::fs::File`] changes a file are ours in the crate's own tests; the pool
//! tells of names, and [`FileStorage`](super::FileStorage) of what the C
//! library is not asked for. What comes by another way yet, such as a copy in
//! the kernel, is found when the file is synced. Lock files are left out: what
//! a crash leaves of them is told by `lock`'s own tests.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::fault::{Content, Crashes, Fault, Op, SECTOR, apply, whole_sectors};
use super::sparse::Sparse;
use crate::image::random::Random;
use crate::pool::Step;

/// The files of a folder by name, with their times of modification.
pub(crate) type Folder = BTreeMap<OsString, (Sparse, SystemTime)>;

/// A sync that is left out, as if the operation had forgotten it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skip {
    /// Those of the folder.
    FolderSync,
    /// Those of the files whose names end like this.
    Sync(&'static str),
    /// The page cache is not dropped.
    DropCache,
}

enum Event {
    /// An operation on the file of this number.
    File(usize),
    /// Names that stand for other files, or for none, from now on.
    Names(Vec<(OsString, Option<usize>)>),
    NamesSynced,
}

/// A file that has, or had, a name.
struct Watched {
    base: Sparse,
    current: Sparse,
    log: Vec<Op>,
    /// The time of modification at the beginning and after each operation.
    times: Vec<SystemTime>,
}

struct State {
    files: Vec<Watched>,
    inodes: BTreeMap<u64, usize>,
    names: BTreeMap<OsString, usize>,
    base_names: BTreeMap<OsString, usize>,
    events: Vec<Event>,
    calls: u64,
    /// The number of the call that fails, how, and by which seed if it is a
    /// sync.
    fault: Option<(u64, Fault, u64)>,
    failures: usize,
    skip: Option<Skip>,
}

struct Watch {
    device: u64,
    folder: u64,
    state: Mutex<State>,
}

static WATCHES: Mutex<Vec<Arc<Watch>>> = Mutex::new(Vec::new());
/// How many there are: without any, files need not be looked up.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn watches() -> MutexGuard<'static, Vec<Arc<Watch>>> {
    WATCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches a folder until it is dropped.
pub(crate) struct Trace(Arc<Watch>);

impl Trace {
    /// Everything that is in `dir` now is durable. `skip`: what is left out.
    pub(crate) fn of(dir: &Path, skip: Option<Skip>) -> Trace {
        let folder = rustix::fs::stat(dir).unwrap();
        let mut state = State {
            files: Vec::new(),
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            base_names: BTreeMap::new(),
            events: Vec::new(),
            calls: 0,
            fault: None,
            failures: 0,
            skip,
        };
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if !is_lock(&entry.file_name()) {
                let opened = File::open(entry.path()).unwrap();
                let stat = rustix::fs::fstat(&opened).unwrap();
                let file = state.add(&stat, Sparse::of(&opened));
                state.names.insert(entry.file_name(), file);
            }
        }
        state.base_names = state.names.clone();
        let watch = Arc::new(Watch {
            device: folder.st_dev,
            folder: folder.st_ino,
            state: Mutex::new(state),
        });
        watches().push(Arc::clone(&watch));
        COUNT.fetch_add(1, Ordering::SeqCst);
        Trace(watch)
    }

    /// From now on the call of this number fails. `seed`: of what gets to disk
    /// all the same if it is a sync.
    pub(crate) fn fail(&self, call: u64, fault: Fault, seed: u64) {
        self.0.state().fault = Some((call, fault, seed));
    }

    /// How many calls there were that change something, and how many failed.
    pub(crate) fn calls(&self) -> (u64, usize) {
        let state = self.0.state();
        (state.calls, state.failures)
    }

    /// How many operations were logged.
    pub(crate) fn len(&self) -> usize {
        self.0.state().events.len()
    }

    /// The folder after a crash when `point` operations had been issued.
    pub(crate) fn crash(&self, point: usize, random: &mut Random) -> Folder {
        let state = self.0.state();
        let mut names = state.base_names.clone();
        let mut pending = Vec::new();
        let mut done = vec![0; state.files.len()];
        for event in &state.events[..point] {
            match event {
                Event::File(file) => done[*file] += 1,
                Event::Names(changes) => pending.push(changes),
                Event::NamesSynced => pending
                    .drain(..)
                    .for_each(|changes| rename(&mut names, changes)),
            }
        }
        // All, none, any, all but one, one alone.
        let mode = random.below(5);
        let chosen = random.below(pending.len().max(1) as u64) as usize;
        for (index, changes) in pending.into_iter().enumerate() {
            let there = match mode {
                0 => true,
                1 => false,
                2 => random.below(2) == 0,
                3 => index != chosen,
                _ => index == chosen,
            };
            if there {
                rename(&mut names, changes);
            }
        }
        let left = names.into_iter().map(|(name, file)| {
            let (watched, done) = (&state.files[file], done[file]);
            let bytes = Crashes::new(watched.base.clone(), &watched.log).at(done, random);
            let synced = watched.log[..done]
                .iter()
                .rposition(|op| matches!(op, Op::Sync));
            let time = match random.below(2) {
                0 => synced.map_or(0, |sync| sync + 1),
                _ => done,
            };
            (name, (bytes, watched.times[time]))
        });
        left.collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        watches().retain(|watch| !Arc::ptr_eq(watch, &self.0));
        COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

fn rename(names: &mut BTreeMap<OsString, usize>, changes: &[(OsString, Option<usize>)]) {
    for (name, file) in changes {
        match file {
            Some(file) => names.insert(name.clone(), *file),
            None => names.remove(name),
        };
    }
}

/// The files of a folder, but for lock files.
pub(crate) fn read_folder(dir: &Path) -> Folder {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| !is_lock(&entry.file_name()));
    let read = files.map(|entry| {
        let file = File::open(entry.path()).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        (entry.file_name(), (Sparse::of(&file), modified))
    });
    read.collect()
}

/// Puts files into an empty folder.
pub(crate) fn write_folder(folder: &Folder, dir: &Path) {
    for (name, (content, modified)) in folder {
        let file = File::create_new(dir.join(name)).unwrap();
        content.write_to(&file);
        file.set_modified(*modified).unwrap();
    }
}

fn is_lock(name: &OsStr) -> bool {
    Path::new(name).extension() == Some(OsStr::new("lock"))
}

fn modified(stat: &Stat) -> SystemTime {
    let since = Duration::new(stat.st_mtime as u64, stat.st_mtime_nsec as u32);
    SystemTime::UNIX_EPOCH + since
}

impl Watch {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, stat: &Stat, content: Sparse) -> usize {
        self.files.push(Watched {
            current: content.clone(),
            base: content,
            log: Vec::new(),
            times: vec![modified(stat)],
        });
        let file = self.files.len() - 1;
        // Numbers of inodes are used again.
        self.inodes.insert(stat.st_ino, file);
        file
    }

    /// Counts a call; whether and how it fails.
    fn call(&mut self) -> Option<(Fault, u64)> {
        let call = self.calls;
        self.calls += 1;
        let fault = self.fault.filter(|(at, ..)| *at == call);
        self.failures += usize::from(fault.is_some());
        fault.map(|(_, fault, seed)| (fault, seed))
    }

    fn log(&mut self, file: usize, fd: BorrowedFd<'_>, op: Op) {
        let watched = &mut self.files[file];
        apply(&mut watched.current, &op);
        let current = &watched.current;
        let whole = whole_sectors(current.len(), |range| current.read(range).into(), op);
        watched.log.push(whole);
        watched
            .times
            .push(modified(&rustix::fs::fstat(fd).unwrap()));
        self.events.push(Event::File(file));
    }

    /// Logs what became of a file by ways that are not watched.
    fn catch_up(&mut self, file: usize, fd: BorrowedFd<'_>) {
        // A search for data moves the position.
        let position = rustix::fs::tell(fd).unwrap();
        let found = Sparse::of(&File::from(fd.try_clone_to_owned().unwrap()));
        rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(position)).unwrap();
        if found.len() != self.files[file].current.len() {
            self.log(file, fd, Op::SetLen(found.len() as u64));
        }
        for range in self.files[file].current.differences(&found) {
            let offset = range.start as u64;
            let bytes = found.read(range).into();
            self.log(file, fd, Op::Write { offset, bytes });
        }
    }

    fn skips_sync(&self, file: usize) -> bool {
        let Some(Skip::Sync(end)) = self.skip else {
            return false;
        };
        let mut names = self.names.iter().filter(|(_, of)| **of == file);
        names.any(|(name, _)| name.as_encoded_bytes().ends_with(end.as_bytes()))
    }
}

fn errno(fault: Fault) -> Errno {
    match fault {
        Fault::Io => Errno::IO,
        Fault::NoSpace => Errno::NOSPC,
    }
}

/// Who watches a file, if anybody does.
fn watch_of(fd: BorrowedFd<'_>) -> Option<(Arc<Watch>, usize)> {
    if COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    let stat = rustix::fs::fstat(fd).ok()?;
    let of = |watch: &Arc<Watch>| {
        let file = watch.state().inodes.get(&stat.st_ino).copied();
        (watch.device == stat.st_dev).then_some(file).flatten()
    };
    let all = watches();
    all.iter()
        .find_map(|watch| Some((Arc::clone(watch), of(watch)?)))
}

/// Does something to a file, past its watch.
pub(crate) fn change(
    file: impl AsFd,
    op: impl FnOnce() -> Op,
    call: impl FnOnce() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let fd = file.as_fd();
    let Some((watch, file)) = watch_of(fd) else {
        return call();
    };
    let mut state = watch.state();
    let op = op();
    if matches!(op, Op::Sync) {
        if state.skips_sync(file) {
            return Ok(());
        }
        state.catch_up(file, fd);
        // To disk with it, or not: no need to wait for a real one.
        return match state.call() {
            None => {
                state.log(file, fd, Op::Sync);
                Ok(())
            }
            Some((fault, seed)) => {
                state.log(file, fd, Op::FailedSync(seed));
                Err(errno(fault))
            }
        };
    }
    match state.call() {
        None => {
            call()?;
            state.log(file, fd, op);
            Ok(())
        }
        Some((fault, _)) => {
            // The first half of a write gets there, to the end of a sector.
            if let Op::Write { offset, bytes } = op {
                let half = (offset as usize + bytes.len() / 2).next_multiple_of(SECTOR);
                let half = &bytes[..bytes.len().min(half - offset as usize)];
                if !half.is_empty() {
                    rustix::io::pwrite(fd, half, offset)?;
                    let bytes = half.into();
                    state.log(file, fd, Op::Write { offset, bytes });
                }
            }
            Err(errno(fault))
        }
    }
}

/// Makes a file what reading it past the page cache shows.
pub(crate) fn drop_cache(
    file: impl AsFd,
    call: impl FnOnce() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let fd = file.as_fd();
    let Some((watch, file)) = watch_of(fd) else {
        return call();
    };
    let mut state = watch.state();
    if state.skip == Some(Skip::DropCache) {
        return Ok(());
    }
    let watched = &mut state.files[file];
    let found = Crashes::new(watched.base.clone(), &watched.log).uncached(watched.log.len());
    let len = watched.current.len();
    watched.current.set_len(found.len());
    let differences = watched.current.differences(&found);
    if len == found.len() && differences.is_empty() {
        return Ok(());
    }
    let stat = rustix::fs::fstat(fd)?;
    rustix::fs::ftruncate(fd, found.len() as u64)?;
    for range in differences {
        rustix::io::pwrite(fd, &found.read(range.clone()), range.start as u64)?;
    }
    watched.current = found;
    let time = Timespec {
        tv_sec: stat.st_mtime as _,
        tv_nsec: stat.st_mtime_nsec as _,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::futimens(fd, &times)
}

/// Does something to the names of a folder, past its watch.
pub(crate) fn step<T>(
    folder: impl AsFd,
    step: Step<'_>,
    call: impl FnOnce() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    let ignored = match &step {
        Step::Create(name) | Step::Remove(name) => is_lock(name),
        Step::Move(from, to) => is_lock(from) || is_lock(to),
        Step::Sync => false,
    };
    let watch = if ignored || COUNT.load(Ordering::SeqCst) == 0 {
        None
    } else {
        let stat = rustix::fs::fstat(&folder)?;
        let of = |watch: &&Arc<Watch>| (watch.device, watch.folder) == (stat.st_dev, stat.st_ino);
        watches().iter().find(of).map(Arc::clone)
    };
    let Some(watch) = watch else {
        return call();
    };
    let mut state = watch.state();
    if let Step::Sync = step
        && state.skip == Some(Skip::FolderSync)
    {
        return call();
    }
    if let Some((fault, _)) = state.call() {
        return Err(errno(fault));
    }
    let done = call()?;
    let changes = match step {
        Step::Create(name) => {
            let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            vec![(name.to_owned(), Some(state.add(&stat, Sparse::default())))]
        }
        Step::Remove(name) => vec![(name.to_owned(), None)],
        Step::Move(from, to) => {
            let file = state.names.get(from).copied();
            vec![(from.to_owned(), None), (to.to_owned(), file)]
        }
        Step::Sync => {
            state.events.push(Event::NamesSynced);
            return Ok(done);
        }
    };
    rename(&mut state.names, &changes);
    state.events.push(Event::Names(changes));
    Ok(done)
}

/// The calls of the C library by which the standard library changes files.
mod calls {
    use std::os::fd::{BorrowedFd, RawFd};

    use rustix::io::Errno;

    use super::{Op, change};

    /// As the C library returns it.
    fn told<T: From<i8>>(result: rustix::io::Result<T>) -> T {
        result.unwrap_or_else(|error: Errno| {
            // SAFETY: the address of this thread's own errno is always valid.
            unsafe { *libc::__errno_location() = error.raw_os_error() };
            T::from(-1)
        })
    }

    /// # Safety
    ///
    /// As of the C library's.
    unsafe fn borrowed<'a>(fd: RawFd) -> BorrowedFd<'a> {
        // SAFETY: the caller has it open during the call.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// # Safety
    ///
    /// As of the C library's.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn pwrite64(
        fd: RawFd,
        buf: *const u8,
        len: usize,
        offset: i64,
    ) -> libc::ssize_t {
        // SAFETY: as the caller promises, and the buffer has so many bytes.
        let (fd, bytes) = unsafe { (borrowed(fd), std::slice::from_raw_parts(buf, len)) };
        let mut written = 0;
        let op = || Op::Write {
            offset: offset as u64,
            bytes: bytes.into(),
        };
        let result = change(fd, op, || {
            written = rustix::io::pwrite(fd, bytes, offset as u64)?;
            Ok(())
        });
        told(result.map(|()| written as libc::ssize_t))
    }

    /// # Safety
    ///
    /// As of the C library's.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn ftruncate64(fd: RawFd, len: i64) -> libc::c_int {
        // SAFETY: as the caller promises.
        let fd = unsafe { borrowed(fd) };
        let set = || rustix::fs::ftruncate(fd, len as u64);
        told(change(fd, || Op::SetLen(len as u64), set).map(|()| 0))
    }

    /// # Safety
    ///
    /// As of the C library's.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn fsync(fd: RawFd) -> libc::c_int {
        // SAFETY: as the caller promises.
        let fd = unsafe { borrowed(fd) };
        told(change(fd, || Op::Sync, || rustix::fs::fsync(fd)).map(|()| 0))
    }

    /// # Safety
    ///
    /// As of the C library's.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn fdatasync(fd: RawFd) -> libc::c_int {
        // SAFETY: as the caller promises.
        let fd = unsafe { borrowed(fd) };
        told(change(fd, || Op::Sync, || rustix::fs::fdatasync(fd)).map(|()| 0))
    }
}
