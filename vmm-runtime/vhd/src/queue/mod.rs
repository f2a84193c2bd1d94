//! Requests to a disk without waiting for them: many in flight, each with
//! something to do when it is over.
//!
//! What lies in one file in one piece is submitted to the kernel (`ring`),
//! where that has io_uring; everything else, such as a write that allocates,
//! is done by a few threads over the disk's own calls (`pool`). Reads of what
//! is in the page cache, and small writes to it, take neither way: whoever
//! submits them does them. Large writes to the page cache are done by the
//! threads, since the kernel would do no other than have a thread of its own
//! do them.

mod buffer;
mod place;
mod pool;
mod ring;
#[cfg(test)]
mod tests;

use std::io::{self, IoSliceMut};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::ReadWriteFlags;

use crate::block::{BlockDevice, Extent, IoError};

pub use buffer::Buffer;
pub(crate) use place::{Hold, Holds};
pub use place::{Intent, Place};
use pool::{Pool, Spawn};
use ring::{Flight, Ring};

/// What a disk is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Fills the buffer with the bytes from `offset` on.
    Read {
        /// First byte.
        offset: u64,
        /// As long as what is to be read. Comes back with the reply.
        buf: Buffer,
    },
    /// Writes bytes.
    Write {
        /// First byte.
        offset: u64,
        /// Comes back with the reply.
        buf: Buffer,
        /// Whether it is durable when it is over.
        fua: bool,
    },
    /// See [`BlockDevice::flush`].
    Flush,
    /// See [`BlockDevice::discard`].
    Discard {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// See [`BlockDevice::write_zeroes`].
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Whether it is durable when it is over.
        fua: bool,
    },
    /// See [`BlockDevice::block_status`].
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// What comes of a [`Request`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// The buffer of a read or a write; empty for others.
    pub buf: Buffer,
    /// The answer to a block status request; empty for others.
    pub extents: Vec<Extent>,
    /// How long the disk took for it, without the time that it waited for a
    /// thread.
    pub took: Duration,
}

/// By which means requests are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where the kernel has it and lets us use it, and where it is
    /// faster: for reads, and for writes past the page cache. Else threads.
    Auto,
    /// io_uring for every request that can be located; an error where there
    /// is none.
    IoUring,
    /// Threads alone.
    Threads,
}

/// How a [`Queue`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueOptions {
    /// How many requests may be in flight, 1 to [`QueueOptions::MAX_DEPTH`].
    pub depth: usize,
    /// How many threads there may be for what the kernel can't do by itself, 1
    /// to [`QueueOptions::MAX_THREADS`]. They are started as they are needed.
    pub threads: usize,
    /// By which means.
    pub backend: Backend,
}

impl QueueOptions {
    /// The most requests in flight.
    pub const MAX_DEPTH: usize = 4096;
    /// The most threads.
    pub const MAX_THREADS: usize = 64;
}

impl Default for QueueOptions {
    /// 128 requests, 8 threads, whatever backend there is.
    fn default() -> QueueOptions {
        QueueOptions {
            depth: 128,
            threads: 8,
            backend: Backend::Auto,
        }
    }
}

/// The most bytes that are written by the thread that submits them.
const SMALL: usize = 64 << 10;

/// What is done when a request is over. Must not submit to the same queue.
type Completion = Box<dyn FnOnce(Result<Reply, IoError>) + Send>;

/// Carries out requests to a disk. Requests in flight at the same time are in
/// no order; a flush covers those that were over before it was submitted.
///
/// Dropping the queue waits until everything in flight is over.
pub struct Queue {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    ring: Option<Ring>,
    why_no_ring: Option<io::Error>,
    backend: Backend,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("backend", &self.backend())
            .field("in_flight", &self.shared.in_flight.count())
            .finish_non_exhaustive()
    }
}

/// What the threads of a queue share.
struct Shared {
    disk: Arc<dyn BlockDevice>,
    in_flight: InFlight,
    flushes: Mutex<Flushes>,
}

/// The flushes of a queue: one thread at most is busy with them, however many
/// there are.
#[derive(Default)]
struct Flushes {
    /// Those that the next call of the disk's will answer.
    waiting: Vec<Completion>,
    /// Whether a thread sees to them.
    attended: bool,
}

impl Queue {
    /// A queue of requests to `disk`. An error if an option is out of its
    /// range, or if io_uring is asked for and can't be had.
    pub fn new(disk: Arc<dyn BlockDevice>, options: QueueOptions) -> io::Result<Queue> {
        Queue::with_parts(disk, options, pool::spawn, Ring::new)
    }

    /// `spawn` starts a thread, `ring` makes a ring for so many requests; or
    /// they say why they can't.
    fn with_parts(
        disk: Arc<dyn BlockDevice>,
        options: QueueOptions,
        spawn: Spawn,
        ring: impl FnOnce(usize, &Arc<Shared>, &Arc<Pool>) -> io::Result<Ring>,
    ) -> io::Result<Queue> {
        let QueueOptions {
            depth,
            threads,
            backend,
        } = options;
        let (Some(limit), Some(threads)) = (NonZeroUsize::new(depth), NonZeroUsize::new(threads))
        else {
            return Err(bad_options(options));
        };
        if depth > QueueOptions::MAX_DEPTH || threads.get() > QueueOptions::MAX_THREADS {
            return Err(bad_options(options));
        }
        let shared = Arc::new(Shared {
            disk,
            in_flight: InFlight::new(limit),
            flushes: Mutex::default(),
        });
        let pool = Arc::new(Pool::new(threads, spawn));
        let ring = match backend {
            Backend::Threads => None,
            Backend::Auto | Backend::IoUring => {
                Some(pool.start().and_then(|()| ring(depth, &shared, &pool)))
            }
        };
        let (ring, why_no_ring) = match ring {
            None => (None, None),
            Some(Ok(ring)) => (Some(ring), None),
            Some(Err(error)) if backend == Backend::IoUring => {
                pool.end();
                return Err(error);
            }
            Some(Err(error)) => (None, Some(error)),
        };
        Ok(Queue {
            shared,
            pool,
            ring,
            why_no_ring,
            backend,
        })
    }

    /// What is in use: io_uring or threads.
    pub fn backend(&self) -> Backend {
        match self.ring {
            Some(_) => Backend::IoUring,
            None => Backend::Threads,
        }
    }

    /// Why io_uring is not in use although [`Backend::Auto`] would have it.
    pub fn why_no_ring(&self) -> Option<&io::Error> {
        self.why_no_ring.as_ref()
    }

    /// Submits a request, once fewer than [`QueueOptions::depth`] are in
    /// flight. `completion` is called when it is over, by any thread, this
    /// one included, maybe before this call returns. It must not submit to
    /// this queue, and for as long as it waits for something, other requests
    /// of this queue may wait for it.
    pub fn submit(
        &self,
        request: Request,
        completion: impl FnOnce(Result<Reply, IoError>) + Send + 'static,
    ) {
        self.shared.in_flight.enter();
        let job = Job {
            request,
            completion: Box::new(completion),
        };
        let Some(job) = self.try_located(job) else {
            return;
        };
        self.shared.carry_out(&self.pool, job);
    }

    /// Has a thread do something with the disk that takes several of its
    /// calls, once fewer than [`QueueOptions::depth`] requests are in flight:
    /// it counts as one. What holds for completions holds for `work`.
    pub fn run(&self, work: impl FnOnce(&dyn BlockDevice) + Send + 'static) {
        self.shared.in_flight.enter();
        self.pool.push(&self.shared, Task::Work(Box::new(work)));
    }

    /// Does or submits what lies in one piece in one file. Returns the rest.
    fn try_located(&self, job: Job) -> Option<Job> {
        let (intent, offset, len) = match &job.request {
            Request::Read { offset, buf } => (Intent::Read, *offset, buf.len()),
            Request::Write { offset, buf, .. } => (Intent::Write, *offset, buf.len()),
            _ => return Some(job),
        };
        let writes = intent == Intent::Write;
        let Some(place) = self.shared.disk.locate(intent, offset, len as u64) else {
            return Some(job);
        };
        if writes && self.backend == Backend::Auto && place.alignment == 1 {
            return self.try_to_cache(place, job);
        }
        let job = match job {
            Job {
                request: Request::Read { offset, mut buf },
                completion,
            } => {
                let try_cache = place.alignment == 1 && self.backend != Backend::IoUring;
                let started = Instant::now();
                let cached = try_cache && is_cached(&place, &mut buf);
                place.read_ahead(buf.len());
                if cached {
                    drop(place);
                    let reply = Reply {
                        buf,
                        took: started.elapsed(),
                        ..Reply::default()
                    };
                    self.shared.finish(completion, Ok(reply));
                    return None;
                }
                Job {
                    request: Request::Read { offset, buf },
                    completion,
                }
            }
            job => job,
        };
        match (&self.ring, Flight::new(place, job)) {
            (Some(ring), Ok(flight)) => ring.start(flight),
            (None, Ok(flight)) => Some(flight.into_job()),
            (_, Err(job)) => Some(job),
        }
    }
}

impl Queue {
    /// Writes a little to the page cache, in this thread: to a file the kernel
    /// lets one write at a time, so that threads would only wait for each
    /// other. Returns what is more than that, or was not done completely.
    fn try_to_cache(&self, place: Place, job: Job) -> Option<Job> {
        let Job {
            request:
                Request::Write {
                    offset,
                    buf,
                    fua: false,
                },
            completion,
        } = job
        else {
            return Some(job);
        };
        let started = Instant::now();
        let written = match buf.len() {
            0..=SMALL => rustix::io::pwrite(&place.file, &buf, place.offset).unwrap_or(0),
            _ => 0,
        };
        // What was written counts as unsynced before anyone hears of it.
        drop(place);
        if written < buf.len() {
            let fua = false;
            return Some(Job {
                request: Request::Write { offset, buf, fua },
                completion,
            });
        }
        let reply = Reply {
            buf,
            took: started.elapsed(),
            ..Reply::default()
        };
        self.shared.finish(completion, Ok(reply));
        None
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.in_flight.wait_for_none();
        // The ring's thread may still hand something to the pool, so it ends
        // first.
        self.ring = None;
        self.pool.end();
    }
}

/// Reads what the page cache holds all of. False if it doesn't; then the
/// buffer holds anything.
fn is_cached(place: &Place, buf: &mut [u8]) -> bool {
    let len = buf.len();
    let mut parts = [IoSliceMut::new(buf)];
    let read = rustix::io::preadv2(
        &place.file,
        &mut parts,
        place.offset,
        ReadWriteFlags::NOWAIT,
    );
    read.is_ok_and(|read| read == len)
}

fn bad_options(options: QueueOptions) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "a queue has a depth of 1 to {} and 1 to {} threads, not {} and {}",
            QueueOptions::MAX_DEPTH,
            QueueOptions::MAX_THREADS,
            options.depth,
            options.threads
        ),
    )
}

/// A request and what is to be done when it is over.
struct Job {
    request: Request,
    completion: Completion,
}

/// Several calls of a disk's.
type Work = Box<dyn FnOnce(&dyn BlockDevice) + Send>;

/// What a thread of the pool does.
enum Task {
    Request(Job),
    Work(Work),
}

impl Shared {
    /// Has a request carried out by the pool.
    fn carry_out(self: &Arc<Shared>, pool: &Arc<Pool>, mut job: Job) {
        if job.request == Request::Flush {
            let mut flushes = self.flushes();
            flushes.waiting.push(job.completion);
            if std::mem::replace(&mut flushes.attended, true) {
                return;
            }
            // It is among those that wait.
            job.completion = Box::new(|_| {});
        }
        pool.push(self, Task::Request(job));
    }

    fn flushes(&self) -> MutexGuard<'_, Flushes> {
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flushes until nobody waits for it any more. A call of the disk's answers
    /// those that came before it.
    fn flush_all(&self) {
        loop {
            let waiting = {
                let mut flushes = self.flushes();
                if flushes.waiting.is_empty() {
                    flushes.attended = false;
                    return;
                }
                std::mem::take(&mut flushes.waiting)
            };
            let started = Instant::now();
            let result = unless_it_panics(|| self.disk.flush());
            let took = started.elapsed();
            for completion in waiting {
                let result = result.clone().map(|()| Reply {
                    took,
                    ..Reply::default()
                });
                let finish = || self.finish(completion, result);
                // See the pool: a panic is its owner's business.
                let _ = catch_unwind(AssertUnwindSafe(finish));
            }
        }
    }

    fn execute(&self, task: Task) {
        match task {
            Task::Request(job) => self.answer(job),
            Task::Work(work) => {
                let leaving = Leaving(&self.in_flight);
                work(&*self.disk);
                drop(leaving);
            }
        }
    }

    /// Carries a request out with the disk's own calls.
    fn answer(&self, job: Job) {
        let Job {
            request,
            completion,
        } = job;
        if request == Request::Flush {
            self.flush_all();
            return;
        }
        // Whatever happens to it.
        let leaving = Leaving(&self.in_flight);
        let disk = &*self.disk;
        let started = Instant::now();
        let result = unless_it_panics(move || {
            let mut reply = Reply::default();
            let mut durable = false;
            match request {
                Request::Read { offset, mut buf } => {
                    disk.read_at(&mut buf, offset)?;
                    reply.buf = buf;
                }
                Request::Write { offset, buf, fua } => {
                    disk.write_at(&buf, offset)?;
                    reply.buf = buf;
                    durable = fua;
                }
                Request::Flush => durable = true,
                Request::Discard { offset, len } => disk.discard(offset, len)?,
                Request::WriteZeroes { offset, len, fua } => {
                    disk.write_zeroes(offset, len)?;
                    durable = fua;
                }
                Request::BlockStatus { offset, len } => {
                    reply.extents = disk.block_status(offset, len)?;
                }
            }
            if durable {
                disk.flush()?;
            }
            Ok(reply)
        });
        let took = started.elapsed();
        completion(result.map(|reply| Reply { took, ..reply }));
        drop(leaving);
    }

    /// Tells that a request is over.
    fn finish(&self, completion: Completion, result: Result<Reply, IoError>) {
        let _leaving = Leaving(&self.in_flight);
        completion(result);
    }
}

/// What a disk says, or an error in its stead: whoever has asked waits for an
/// answer.
fn unless_it_panics<T>(call: impl FnOnce() -> Result<T, IoError>) -> Result<T, IoError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        Err(IoError::Io {
            disk: "a disk".into(),
            operation: "carry out a request",
            source: Arc::new(io::Error::other("it panicked, see the log")),
        })
    })
}

/// Counts requests.
struct InFlight {
    limit: NonZeroUsize,
    count: Mutex<usize>,
    fewer: Condvar,
}

impl InFlight {
    fn new(limit: NonZeroUsize) -> InFlight {
        InFlight {
            limit,
            count: Mutex::new(0),
            fewer: Condvar::new(),
        }
    }

    fn count(&self) -> usize {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_below(&self, limit: usize) -> MutexGuard<'_, usize> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count >= limit {
            count = self
                .fewer
                .wait(count)
                .unwrap_or_else(PoisonError::into_inner);
        }
        count
    }

    fn enter(&self) {
        *self.wait_below(self.limit.get()) += 1;
    }

    fn wait_for_none(&self) {
        drop(self.wait_below(1));
    }
}

/// Counts a request as over when it is dropped: once that has been told, so
/// that who waits for the end of the queue has heard of everything.
struct Leaving<'a>(&'a InFlight);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut count = self.0.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 || *count + 1 == self.0.limit.get() {
            self.0.fewer.notify_all();
        }
    }
}
