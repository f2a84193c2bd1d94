//! One client: the thread that reads its requests, and the workers that wait for the disk.

use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use paddock_vhd::IoError;
use tracing::warn;

use crate::buffer::{Buffer, Spare};
use crate::handshake::Session;
use crate::incoming::{Incoming, Next};
use crate::outbox::Outbox;
use crate::pace::Pace;
use crate::protocol::{Command, MAX_REQUEST_BYTES, Request, command_flag};
use crate::queue::{Pushed, Queue};
use crate::socket::Stream;
use crate::transmission::execute;

/// Threads that work for one connection at most, beside the one that reads its requests.
pub const MAX_WORKERS: usize = 16;
const MAX_WAITING_JOBS: usize = 128;
/// Of one connection's requests and replies that workers have or will have, in bytes. A single one may be larger.
const MAX_WAITING_BYTES: usize = 16 << 20;
/// Requests up to this many bytes are worked on by the thread that reads them, while the disk is quick.
const SMALL_BYTES: u32 = 64 << 10;
/// Replies are sent when there are this many, or this many bytes: a client that gets some can go on while the next are
/// made.
const BATCH_REPLIES: usize = 8;
const BATCH_BYTES: usize = 64 << 10;
/// Of the threads; none recurses or has large locals.
pub(crate) const STACK_BYTES: usize = 256 << 10;
/// A broken disk fails every request; the log hears of it once per interval.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// A client that has chosen an export.
pub(crate) struct Connection {
    stream: Arc<Stream>,
    session: Session,
    queue: Queue<Job>,
    outbox: Outbox,
    spare: Spare,
    pace: Pace,
    workers: Mutex<Vec<JoinHandle<()>>>,
    last_warning: Mutex<Option<Instant>>,
}

/// A request for a worker.
struct Job {
    request: Request,
    payload: Buffer,
}

/// The memory that a request takes while it is worked on, in bytes.
fn weight(request: &Request) -> usize {
    match request.command {
        Command::Read | Command::Cache => request.length.min(MAX_REQUEST_BYTES) as usize,
        _ => request.payload_bytes(),
    }
}

/// Whether it takes no longer than the page cache does, if that is what answers.
fn is_small(request: &Request) -> bool {
    matches!(request.command, Command::Read | Command::Write)
        && request.length <= SMALL_BYTES
        && request.flags & command_flag::FUA == 0
}

impl Connection {
    pub fn new(stream: Arc<Stream>, session: Session) -> Arc<Self> {
        Arc::new(Connection {
            stream,
            session,
            queue: Queue::new(MAX_WAITING_JOBS, MAX_WAITING_BYTES),
            outbox: Outbox::default(),
            spare: Spare::default(),
            pace: Pace::default(),
            workers: Mutex::default(),
            last_warning: Mutex::default(),
        })
    }

    /// Answers requests until the client goes or `stopping` says so. All that was read has been answered when this
    /// returns, unless the client is gone.
    pub fn run(self: &Arc<Self>, stopping: impl Fn() -> bool) -> io::Result<()> {
        let ended = self.read_requests(stopping);
        self.queue.close();
        let workers = std::mem::take(&mut *self.lock_workers());
        for worker in workers {
            if worker.join().is_err() {
                warn!(
                    export = self.session.export.name,
                    "a thread of the disk server had panicked"
                );
            }
        }
        self.stream.shutdown(Shutdown::Both);
        ended
    }

    fn lock_workers(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_requests(self: &Arc<Self>, stopping: impl Fn() -> bool) -> io::Result<()> {
        let mut incoming = Incoming::new();
        let mut batch = Batch {
            connection: self,
            replies: self.spare.take(),
            count: 0,
        };
        while !stopping() {
            match incoming.next().map_err(io::Error::other)? {
                Next::Partial => {
                    batch.send();
                    if incoming.fill(&*self.stream)? == 0 {
                        if incoming.is_empty() {
                            return Ok(());
                        }
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Next::Whole(request, _) if request.command == Command::Disconnect => return Ok(()),
                Next::Whole(request, payload) if is_small(&request) && self.pace.is_quick() => {
                    self.execute(&request, payload, &mut batch.replies);
                    batch.added();
                }
                Next::Whole(request, bytes) => {
                    // The queue may have to wait for room, and the client for what it has not got yet.
                    batch.send();
                    let mut payload = self.spare.take();
                    payload.put(bytes);
                    self.hand_over(Job { request, payload })?;
                }
                Next::Large(request) => {
                    batch.send();
                    let mut payload = self.spare.take();
                    incoming.take(request.payload_bytes(), &mut payload, &*self.stream)?;
                    self.hand_over(Job { request, payload })?;
                }
            }
        }
        Ok(())
    }

    fn hand_over(self: &Arc<Self>, job: Job) -> io::Result<()> {
        let weight = weight(&job.request);
        match self.queue.push(job, weight) {
            Pushed::Yes | Pushed::Closed => Ok(()),
            Pushed::AllWorkersBusy => self.start_worker(),
        }
    }

    /// One more worker, if there may be. An error if there is none at all.
    fn start_worker(self: &Arc<Self>) -> io::Result<()> {
        if !self.queue.add_worker(MAX_WORKERS) {
            return Ok(());
        }
        let connection = self.clone();
        let started = thread::Builder::new()
            .name(format!("disk-{}", self.session.export.name))
            .stack_size(STACK_BYTES)
            .spawn(move || connection.work());
        match started {
            Ok(thread) => {
                self.lock_workers().push(thread);
                Ok(())
            }
            Err(_) if self.queue.remove_worker() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn work(&self) {
        let mut finished = 0;
        while let Some((job, weight)) = self.queue.pop(finished) {
            finished = weight;
            let mut reply = self.spare.take();
            self.execute(&job.request, job.payload.as_slice(), &mut reply);
            self.spare.give(job.payload);
            self.send(reply);
        }
    }

    fn execute(&self, request: &Request, payload: &[u8], reply: &mut Buffer) {
        let started = Instant::now();
        if let Err(error) = execute(&self.session, request, payload, reply) {
            self.warn(request, &error);
        }
        if is_small(request) {
            self.pace.note(started.elapsed());
        }
    }

    fn send(&self, replies: Buffer) {
        let sent = self
            .outbox
            .send(replies, &*self.stream as &Stream, &self.spare);
        if sent.is_err() {
            // The thread that reads notices.
            self.stream.shutdown(Shutdown::Both);
        }
    }

    fn warn(&self, request: &Request, error: &IoError) {
        let mut last = self
            .last_warning
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
            *last = Some(Instant::now());
            warn!(
                export = self.session.export.name,
                command = ?request.command,
                offset = request.offset,
                length = request.length,
                "{error}"
            );
        }
    }
}

/// Replies of the thread that reads, sent together; the last ones when it ends, for whatever reason.
struct Batch<'a> {
    connection: &'a Connection,
    replies: Buffer,
    count: usize,
}

impl Batch<'_> {
    fn added(&mut self) {
        self.count += 1;
        if self.count >= BATCH_REPLIES || self.replies.len() >= BATCH_BYTES {
            self.send();
        }
    }

    fn send(&mut self) {
        if self.count > 0 {
            self.count = 0;
            let next = self.connection.spare.take();
            let replies = std::mem::replace(&mut self.replies, next);
            self.connection.send(replies);
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.send();
    }
}
