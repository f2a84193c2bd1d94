//! Accepting clients, and stopping.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::connection::{Connection, STACK_BYTES};
use crate::export::{Export, Exports, ExportsError};
use crate::handshake::{HandshakeError, negotiate};
use crate::socket::{Listener, SocketFile, Stream, Until};

/// Connections to one server at most; QEMU needs one per disk.
pub const MAX_CONNECTIONS: usize = 16;
/// How long all of a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to fetch its last answers when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The exports cannot be offered.
    #[error(transparent)]
    Exports(#[from] ExportsError),
    /// The socket's file cannot be made.
    #[error("cannot listen at {path}: {source}", path = path.display())]
    Path {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The port cannot be had.
    #[error("cannot listen at {address}: {source}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The protocol has neither passwords nor encryption here.
    #[error(
        "a disk is served to this machine alone: expected an address such as 127.0.0.1, found {0}"
    )]
    NotLoopback(SocketAddr),
    /// No thread can be started, or the listening socket is none.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}

/// Serves disks until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    /// Where clients connect to, if it is a port.
    address: Option<SocketAddr>,
    /// Removed after the last client is gone.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
struct Shared {
    exports: Exports,
    listener: Listener,
    stopping: AtomicBool,
    connections: Mutex<Vec<(Arc<Stream>, JoinHandle<()>)>>,
    /// Connections that have not ended, for `ended` to tell.
    open: Mutex<usize>,
    ended: Condvar,
}

impl Server {
    /// Serves at a unix socket that only this user may connect to (mode 0600). The file goes when the server stops; one
    /// that a killed server left is replaced, anything else is not.
    pub fn unix(path: &Path, exports: Vec<Export>) -> Result<Self, ServeError> {
        let exports = Exports::new(exports)?;
        let (listener, file) = SocketFile::listen(path).map_err(|source| ServeError::Path {
            path: path.to_owned(),
            source,
        })?;
        Self::start(listener.into(), exports, Some(file))
    }

    /// Serves at a port of the loopback device; port 0 for any, see [`Server::address`]. Every user of this machine may
    /// connect: prefer [`Server::unix`].
    pub fn tcp(address: SocketAddr, exports: Vec<Export>) -> Result<Self, ServeError> {
        if !address.ip().is_loopback() {
            return Err(ServeError::NotLoopback(address));
        }
        let exports = Exports::new(exports)?;
        let listener =
            TcpListener::bind(address).map_err(|source| ServeError::Address { address, source })?;
        Self::start(listener.into(), exports, None)
    }

    /// Serves to whoever connects to `listener`, a unix socket or a port of the loopback device.
    pub fn on(listener: impl Into<Listener>, exports: Vec<Export>) -> Result<Self, ServeError> {
        Self::start(listener.into(), Exports::new(exports)?, None)
    }

    fn start(
        listener: Listener,
        exports: Exports,
        file: Option<SocketFile>,
    ) -> Result<Self, ServeError> {
        let address = listener.port().map_err(ServeError::Start)?;
        if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
            return Err(ServeError::NotLoopback(address));
        }
        let shared = Arc::new(Shared {
            exports,
            listener,
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            open: Mutex::default(),
            ended: Condvar::new(),
        });
        let acceptor = spawn("nbd".to_owned(), {
            let shared = shared.clone();
            move || shared.accept_all()
        })
        .map_err(ServeError::Start)?;
        Ok(Server {
            shared,
            acceptor: Some(acceptor),
            address,
            _file: file,
        })
    }

    /// Where clients connect to, for a server at a port.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Stops: takes no further connections and requests, answers those it has, and lets go of the disks. Does not flush
    /// them. Waits as long as the disks take; a client that does not fetch its answers is left after 5 s.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        if let Err(error) = shared.listener.stop() {
            warn!("cannot stop listening: {error}");
        }
        if let Some(acceptor) = self.acceptor.take() {
            join(acceptor);
        }
        let connections = std::mem::take(&mut *lock(&shared.connections));
        for (stream, _) in &connections {
            stream.shutdown(Shutdown::Read);
        }
        let open = lock(&shared.open);
        let drained = shared
            .ended
            .wait_timeout_while(open, DRAIN_TIMEOUT, |open| *open > 0);
        drop(drained);
        for (stream, _) in &connections {
            // Both halves: a thread may hang in writing to a client that reads no more.
            stream.shutdown(Shutdown::Both);
        }
        for (_, thread) in connections {
            join(thread);
        }
    }
}

impl Shared {
    fn accept_all(self: Arc<Self>) {
        loop {
            match self.listener.accept() {
                Ok(stream) => {
                    if let Err(error) = self.clone().attach(stream) {
                        warn!("a connection was dropped: {error}");
                    }
                }
                Err(_) if self.stopping.load(Ordering::SeqCst) => return,
                Err(error) => {
                    warn!("accept: {error}");
                    // Out of descriptors or memory: that passes, and must not spin.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn attach(self: Arc<Self>, stream: Stream) -> io::Result<()> {
        let mut connections = lock(&self.connections);
        connections.retain(|(_, thread)| !thread.is_finished());
        if connections.len() >= MAX_CONNECTIONS {
            return Err(io::Error::other(format!(
                "there are {MAX_CONNECTIONS} already"
            )));
        }
        let stream = Arc::new(stream);
        *lock(&self.open) += 1;
        let open = Open(self.clone());
        let thread = spawn("nbd-client".to_owned(), {
            let stream = stream.clone();
            move || open.0.serve(&stream)
        })?;
        connections.push((stream, thread));
        Ok(())
    }

    fn serve(&self, stream: &Arc<Stream>) {
        match self.serve_requests(stream) {
            Ok(()) => debug!("a client disconnected"),
            Err(HandshakeError::Aborted) => debug!("a client gave up the handshake"),
            Err(_) if self.stopping.load(Ordering::SeqCst) => {}
            Err(error) => warn!("a connection ended: {error}"),
        }
        stream.shutdown(Shutdown::Both);
    }

    fn serve_requests(&self, stream: &Arc<Stream>) -> Result<(), HandshakeError> {
        let mut until = Until {
            stream,
            end: Instant::now() + HANDSHAKE_TIMEOUT,
        };
        let session = negotiate(&mut until, &self.exports)?;
        stream.set_timeouts(None)?;
        debug!(export = session.export.name, "a client connected");
        let connection = Connection::new(stream.clone(), session);
        connection.run(|| self.stopping.load(Ordering::Relaxed))?;
        Ok(())
    }
}

/// Counts a connection until it has ended.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        *lock(&self.0.open) -= 1;
        self.0.ended.notify_all();
    }
}

/// Nothing that can panic runs under these locks, so a poisoned one is still consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
