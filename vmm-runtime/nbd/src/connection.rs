//! One client: the thread that reads its requests, and the queue of those that the disk is waited for.

use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use paddock_vhd::{self as vhd, Backend, Buffer, IoError, Queue, QueueOptions};
use tracing::warn;

use crate::buffer::Spare;
use crate::handshake::Session;
use crate::incoming::{Incoming, Next};
use crate::outbox::{Outbox, Outgoing};
use crate::pace::Pace;
use crate::protocol::{Command, MAX_REQUEST_BYTES, Request, command_flag};
use crate::room::{Room, Taken};
use crate::socket::Stream;
use crate::transmission::{execute, reply_to_call, single_call};

/// How a disk is waited for: what lies in its file in one piece is left to the kernel where that has io_uring, all else
/// to up to this many threads per connection.
const WAITING: QueueOptions = QueueOptions {
    depth: 128,
    threads: MAX_WORKERS,
    backend: Backend::Auto,
};
/// Threads that work for one connection at most, beside the one that reads its requests and the one that hears of what
/// the kernel has done.
pub const MAX_WORKERS: usize = 16;
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
    outbox: Outbox,
    spare: Spare,
    room: Arc<Room>,
    pace: Pace,
    last_warning: Mutex<Option<Instant>>,
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
            outbox: Outbox::default(),
            spare: Spare::default(),
            room: Arc::default(),
            pace: Pace::default(),
            last_warning: Mutex::default(),
        })
    }

    /// Answers requests until the client goes or `stopping` says so. All that was read has been answered when this
    /// returns, unless the client is gone.
    pub fn run(self: &Arc<Self>, stopping: impl Fn() -> bool) -> io::Result<()> {
        // What is still in it when it is dropped is waited for.
        let mut queue = Waiting {
            connection: self,
            queue: None,
        };
        let ended = self.read_requests(&mut queue, stopping);
        drop(queue);
        self.stream.shutdown(Shutdown::Both);
        ended
    }

    fn read_requests(
        self: &Arc<Self>,
        queue: &mut Waiting<'_>,
        stopping: impl Fn() -> bool,
    ) -> io::Result<()> {
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
                    self.execute(&request, payload, &mut batch.replies, None);
                    batch.added();
                }
                Next::Whole(request, bytes) => {
                    // There may be no room yet, and the client may wait for what it has not got yet.
                    batch.send();
                    let mut payload = self.spare.take();
                    payload.put(bytes);
                    queue.push(request, payload)?;
                }
                Next::Large(request) => {
                    batch.send();
                    let mut payload = self.spare.take();
                    incoming.take(request.payload_bytes(), &mut payload, &*self.stream)?;
                    queue.push(request, payload)?;
                }
            }
        }
        Ok(())
    }

    fn execute(
        &self,
        request: &Request,
        payload: &[u8],
        reply: &mut Buffer,
        apart: Option<&mut Buffer>,
    ) {
        let started = Instant::now();
        if let Err(error) = execute(&self.session, request, payload, reply, apart) {
            self.warn(request, &error);
        }
        if is_small(request) {
            self.pace.note(started.elapsed());
        }
    }

    fn send(&self, reply: Outgoing) {
        let sent = self
            .outbox
            .send(reply, &*self.stream as &Stream, &self.spare);
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

/// The queue to the disk, from the first request on that it is waited for.
struct Waiting<'a> {
    connection: &'a Arc<Connection>,
    queue: Option<Queue>,
}

impl Waiting<'_> {
    /// Has a request answered, once there is room for it. An error if there is no thread to do so.
    fn push(&mut self, request: Request, payload: Buffer) -> io::Result<()> {
        let connection = self.connection;
        let disk = || connection.session.export.disk.clone();
        let queue = match &mut self.queue {
            Some(queue) => queue,
            none => none.insert(Queue::new(disk(), WAITING)?),
        };
        let pending = Pending {
            _taken: connection.room.take(weight(&request)),
            connection: connection.clone(),
            request,
            answered: false,
        };
        match single_call(&connection.session, &request, payload) {
            Ok(call) => queue.submit(call, move |result| pending.finish(result)),
            Err(payload) => queue.run(move |_| pending.work(payload)),
        }
        Ok(())
    }
}

/// A request that has not been answered yet.
struct Pending {
    connection: Arc<Connection>,
    request: Request,
    answered: bool,
    _taken: Taken,
}

impl Pending {
    fn work(self, payload: Buffer) {
        let connection = self.connection.clone();
        let mut reply = Outgoing {
            head: connection.spare.take(),
            body: connection.spare.take(),
        };
        let apart = Some(&mut reply.body);
        connection.execute(&self.request, &payload, &mut reply.head, apart);
        connection.spare.give(payload);
        self.answer(reply);
    }

    fn finish(self, result: Result<vhd::Reply, IoError>) {
        let connection = self.connection.clone();
        match &result {
            Ok(reply) if is_small(&self.request) => connection.pace.note(reply.took),
            Ok(_) => {}
            Err(error) => connection.warn(&self.request, error),
        }
        let done = result.map(|reply| reply.buf);
        let head = connection.spare.take();
        let reply = reply_to_call(&connection.session, &self.request, done, head);
        self.answer(reply);
    }

    fn answer(mut self, reply: Outgoing) {
        self.answered = true;
        self.connection.send(reply);
    }
}

impl Drop for Pending {
    /// A client that waits for an answer for ever would be worse off.
    fn drop(&mut self) {
        if !self.answered {
            warn!(
                export = self.connection.session.export.name,
                command = ?self.request.command,
                offset = self.request.offset,
                length = self.request.length,
                "the disk has broken off a request: the connection is closed"
            );
            self.connection.stream.shutdown(Shutdown::Both);
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
            self.connection.send(replies.into());
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.send();
    }
}
