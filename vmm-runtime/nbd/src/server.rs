//! The threads of one disk's server.

use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use paddock_vhd::{BlockDevice, IoError};
use tracing::{debug, warn};

use crate::handshake::{Export, HandshakeError, Negotiated, negotiate};
use crate::queue::{Pushed, Queue};
use crate::transmission::{Job, execute, read_job};

/// Threads that work on one disk at most.
pub const MAX_WORKERS: usize = 8;
/// Connections to one disk at most; QEMU needs one.
pub const MAX_CONNECTIONS: usize = 16;
const MAX_WAITING_JOBS: usize = 128;
/// Of requests and replies in memory. One request of the largest size fits.
const MAX_WAITING_BYTES: usize = 64 << 20;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A worker keeps its reply buffer up to this size, in bytes; larger ones are given back.
const KEPT_BUFFER_BYTES: usize = 256 << 10;
/// Of the threads; none recurses or has large locals.
const STACK_BYTES: usize = 256 << 10;
/// A broken disk fails every request; the log hears of it once per interval.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Serves one disk until it is stopped.
pub struct NbdServer {
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

struct Shared {
    export: Export,
    device: Arc<dyn BlockDevice>,
    listener: UnixListener,
    queue: Queue<Work>,
    stopping: AtomicBool,
    threads: Mutex<Threads>,
    last_warning: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Threads {
    workers: Vec<JoinHandle<()>>,
    connections: Vec<(Arc<Connection>, JoinHandle<()>)>,
}

struct Connection {
    stream: UnixStream,
    /// Held while a reply is written.
    writing: Mutex<()>,
    /// Requests in work, and one for the thread that reads more. The last one closes the connection: a client that
    /// disconnects still gets the answers to what it has asked.
    users: AtomicUsize,
}

impl Connection {
    fn release(&self) {
        if self.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

struct Work {
    job: Job,
    agreed: Negotiated,
    connection: Arc<Connection>,
}

impl Work {
    fn new(job: Job, agreed: Negotiated, connection: &Arc<Connection>) -> Self {
        connection.users.fetch_add(1, Ordering::SeqCst);
        Work {
            job,
            agreed,
            connection: connection.clone(),
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.connection.release();
    }
}

impl NbdServer {
    /// Serves `device` under `name` to whoever connects to `listener`.
    pub fn start(
        listener: UnixListener,
        name: &str,
        device: Arc<dyn BlockDevice>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            export: Export {
                name: name.to_owned(),
                size: device.size(),
                read_only: device.read_only(),
            },
            device,
            listener,
            queue: Queue::new(MAX_WAITING_JOBS, MAX_WAITING_BYTES),
            stopping: AtomicBool::new(false),
            threads: Mutex::default(),
            last_warning: Mutex::default(),
        });
        let acceptor = spawn(format!("nbd-{name}"), {
            let shared = shared.clone();
            move || shared.accept_all()
        })?;
        Ok(NbdServer { shared, acceptor })
    }

    /// Stops: closes the connections, finishes the requests that were read, though nobody hears of it, and lets go of
    /// the disk. Does not flush it. Waits as long as the disk takes.
    pub fn stop(self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes `accept`, which then fails with EINVAL.
        if let Err(error) =
            rustix::net::shutdown(&self.shared.listener, rustix::net::Shutdown::Both)
        {
            warn!(
                export = self.shared.export.name,
                "cannot stop listening: {error}"
            );
        }
        join(self.acceptor);
        let connections = std::mem::take(&mut self.shared.lock_threads().connections);
        for (connection, _) in &connections {
            // Both halves: a worker may hang in writing to a client that reads no more.
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
        for (_, thread) in connections {
            join(thread);
        }
        self.shared.queue.close();
        let workers = std::mem::take(&mut self.shared.lock_threads().workers);
        workers.into_iter().for_each(join);
    }
}

impl Shared {
    fn lock_threads(&self) -> std::sync::MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_all(self: Arc<Self>) {
        let name = &self.export.name;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = self.clone().attach(stream) {
                        warn!(export = name, "a connection was dropped: {error}");
                    }
                }
                Err(_) if self.stopping.load(Ordering::SeqCst) => return,
                Err(error) => {
                    warn!(export = name, "accept: {error}");
                    // Out of descriptors or memory: that passes, and must not spin.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn attach(self: Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let mut threads = self.lock_threads();
        threads
            .connections
            .retain(|(_, thread)| !thread.is_finished());
        if threads.connections.len() >= MAX_CONNECTIONS {
            return Err(io::Error::other(format!(
                "there are {MAX_CONNECTIONS} already"
            )));
        }
        let connection = Arc::new(Connection {
            stream,
            writing: Mutex::new(()),
            users: AtomicUsize::new(1),
        });
        let thread = spawn(format!("nbd-{}", self.export.name), {
            let (shared, connection) = (self.clone(), connection.clone());
            move || shared.serve(connection)
        })?;
        threads.connections.push((connection, thread));
        Ok(())
    }

    fn serve(self: Arc<Self>, connection: Arc<Connection>) {
        let name = &self.export.name;
        match self.read_requests(&connection) {
            Ok(()) => debug!(export = name, "a client disconnected"),
            Err(HandshakeError::Aborted) => debug!(export = name, "a client gave up the handshake"),
            Err(_) if self.stopping.load(Ordering::SeqCst) => {}
            Err(error) => warn!(export = name, "a connection ended: {error}"),
        }
        connection.release();
    }

    fn read_requests(self: &Arc<Self>, connection: &Arc<Connection>) -> Result<(), HandshakeError> {
        let mut stream = &connection.stream;
        stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
        stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
        let agreed = negotiate(&mut stream, &self.export)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        let mut reader = BufReader::with_capacity(16 << 10, stream);
        while let Some(job) = read_job(&mut reader)? {
            let weight = job.weight();
            match self.queue.push(Work::new(job, agreed, connection), weight) {
                Pushed::Yes => {}
                Pushed::AllWorkersBusy => self.start_worker()?,
                Pushed::Closed => return Ok(()),
            }
        }
        Ok(())
    }

    /// One more worker, if there may be. An error if there is none at all.
    fn start_worker(self: &Arc<Self>) -> io::Result<()> {
        if !self.queue.add_worker(MAX_WORKERS) {
            return Ok(());
        }
        let shared = self.clone();
        match spawn(format!("disk-{}", self.export.name), move || shared.work()) {
            Ok(thread) => {
                self.lock_threads().workers.push(thread);
                Ok(())
            }
            Err(_) if self.queue.remove_worker() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn work(&self) {
        let mut reply = Vec::new();
        let mut finished = 0;
        while let Some((work, weight)) = self.queue.pop(finished) {
            finished = weight;
            if let Err(error) = execute(&*self.device, work.agreed, &work.job, &mut reply) {
                self.warn(&work.job, &error);
            }
            let writing = work
                .connection
                .writing
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // The client may be gone; its reader notices.
            let _ = (&work.connection.stream).write_all(&reply);
            drop(writing);
            if reply.capacity() > KEPT_BUFFER_BYTES {
                reply = Vec::new();
            }
        }
    }

    fn warn(&self, job: &Job, error: &IoError) {
        let mut last = self
            .last_warning
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
            *last = Some(Instant::now());
            let request = &job.request;
            warn!(
                disk = self.export.name,
                command = ?request.command,
                offset = request.offset,
                length = request.length,
                "{error}"
            );
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(name)
        .stack_size(STACK_BYTES)
        .spawn(body)
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        warn!("a thread of the disk server had panicked");
    }
}
