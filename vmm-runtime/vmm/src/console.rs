//! The serial console: what the guest writes goes to the log and to everybody attached; what anybody attached writes
//! goes to the guest.
//!
//! The guest is never held up by a reader. One that falls behind by [`BACKLOG`] pieces misses the oldest ones.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tracing::{debug, warn};

use crate::bounded_log::BoundedLog;

/// Readers and writers at a time.
const MAX_CLIENTS: usize = 16;
/// The size of a piece, in bytes.
const PIECE_BYTES: usize = 4096;
/// Pieces that are kept for a slow reader; 1 MiB at most.
const BACKLOG: usize = 256;
/// Pieces of input that wait for the guest.
const INPUT_BACKLOG: usize = 16;

type Piece = Arc<[u8]>;

/// Everybody's side of the console. Outlives QEMU's: there may be clients before it and after it.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    output: broadcast::Sender<Piece>,
    input: mpsc::Sender<Vec<u8>>,
}

/// QEMU's side of the console.
#[derive(Debug)]
pub(crate) struct ConsolePort {
    output: broadcast::Sender<Piece>,
    input: mpsc::Receiver<Vec<u8>>,
    log: BoundedLog,
}

/// A console whose output is kept in `log`.
pub(crate) fn console(log: BoundedLog) -> (Console, ConsolePort) {
    let (output, _) = broadcast::channel(BACKLOG);
    let (input_sender, input) = mpsc::channel(INPUT_BACKLOG);
    (
        Console {
            output: output.clone(),
            input: input_sender,
        },
        ConsolePort { output, input, log },
    )
}

impl ConsolePort {
    /// Passes bytes between the guest's serial port and everybody until the port is closed.
    pub async fn connect(self, port: impl AsyncRead + AsyncWrite) {
        let ConsolePort {
            output,
            mut input,
            mut log,
        } = self;
        let (mut reader, mut writer) = tokio::io::split(port);
        let from_guest = async {
            let mut buffer = vec![0; PIECE_BYTES];
            let mut log_works = true;
            while let Ok(read @ 1..) = reader.read(&mut buffer).await {
                let piece = buffer.get(..read).unwrap_or_default();
                match log.write(piece) {
                    Ok(()) => log_works = true,
                    Err(error) if log_works => {
                        warn!("the console's log cannot be written: {error}");
                        log_works = false;
                    }
                    Err(_) => {}
                }
                // Nobody may be attached.
                let _ = output.send(piece.into());
            }
        };
        let to_guest = async {
            while let Some(piece) = input.recv().await {
                if writer.write_all(&piece).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = from_guest => {}
            () = async { to_guest.await; std::future::pending().await } => {}
        }
    }
}

impl Console {
    /// Attaches whoever connects.
    pub async fn accept_all(self, listener: UnixListener) {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            match listener.accept().await {
                Ok((client, _)) => {
                    let Ok(place) = places.clone().try_acquire_owned() else {
                        warn!("a console client was refused: {MAX_CLIENTS} are attached");
                        continue;
                    };
                    let console = self.clone();
                    tokio::spawn(async move {
                        let result = console.attach(client).await;
                        debug!("a console client detached: {result:?}");
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!("console: accept: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn attach(self, client: UnixStream) -> io::Result<()> {
        let mut output = self.output.subscribe();
        let (mut reader, mut writer) = client.into_split();
        let to_client = async {
            loop {
                match output.recv().await {
                    Ok(piece) => writer.write_all(&piece).await?,
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        debug!("a console client missed {missed} pieces");
                    }
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                }
            }
        };
        let from_client = async {
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                let read = reader.read(&mut buffer).await?;
                if read == 0 {
                    // It may have shut down only its writing half, and still listen.
                    return std::future::pending().await;
                }
                let piece = buffer.get(..read).unwrap_or_default().to_vec();
                if self.input.send(piece).await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            result = to_client => result,
            result = from_client => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn expect(reader: &mut (impl AsyncRead + Unpin), text: &str) {
        let mut bytes = vec![0; text.len()];
        reader.read_exact(&mut bytes).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }

    #[tokio::test]
    async fn everybody_reads_and_writes() {
        let directory = tempfile::tempdir().unwrap();
        let log = BoundedLog::open(&directory.path().join("log"), 4096).unwrap();
        let (console, port) = console(log);
        let socket = directory.path().join("s");
        tokio::spawn(
            console
                .clone()
                .accept_all(UnixListener::bind(&socket).unwrap()),
        );
        let (ours, mut guest) = tokio::io::duplex(64);
        tokio::spawn(port.connect(ours));

        let mut first = UnixStream::connect(&socket).await.unwrap();
        let mut second = UnixStream::connect(&socket).await.unwrap();
        // What they send arrives only after they have been attached, so the guest's answer reaches both.
        first.write_all(b"ab").await.unwrap();
        expect(&mut guest, "ab").await;
        second.write_all(b"c").await.unwrap();
        expect(&mut guest, "c").await;
        guest.write_all(b"hello").await.unwrap();
        expect(&mut first, "hello").await;
        expect(&mut second, "hello").await;
        drop(first);
        second.shutdown().await.unwrap();
        guest.write_all(b" again").await.unwrap();
        expect(&mut second, " again").await;
        assert_eq!(
            std::fs::read(directory.path().join("log")).unwrap(),
            b"hello again"
        );
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let log = BoundedLog::open(&directory.path().join("log"), 64 << 20).unwrap();
        let (console, port) = console(log);
        let socket = directory.path().join("s");
        tokio::spawn(
            console
                .clone()
                .accept_all(UnixListener::bind(&socket).unwrap()),
        );
        let (ours, mut guest) = tokio::io::duplex(65536);
        tokio::spawn(port.connect(ours));
        let mut deaf = UnixStream::connect(&socket).await.unwrap();
        deaf.write_all(b"x").await.unwrap();
        expect(&mut guest, "x").await;
        let all = 4 << 20;
        for _ in 0..all / 65536 {
            guest.write_all(&[b'y'; 65536]).await.unwrap();
        }
        drop(guest);
        // The port has ended once its log's handle is gone with it; all bytes are there.
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        while std::fs::metadata(directory.path().join("log"))
            .unwrap()
            .len()
            < all
        {
            assert!(
                tokio::time::Instant::now() < deadline,
                "the guest was held up"
            );
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn clients_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let log = BoundedLog::open(&directory.path().join("log"), 4096).unwrap();
        let (console, _port) = console(log);
        let socket = directory.path().join("s");
        tokio::spawn(console.accept_all(UnixListener::bind(&socket).unwrap()));
        let mut clients = Vec::new();
        for _ in 0..MAX_CLIENTS {
            clients.push(UnixStream::connect(&socket).await.unwrap());
        }
        let mut refused = UnixStream::connect(&socket).await.unwrap();
        assert_eq!(refused.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
