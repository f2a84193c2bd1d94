//! Where clients come from: a unix socket that only this user may connect to, or a port of this machine.

use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, fstat, lstat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

/// Clients that wait to be accepted.
const BACKLOG: i32 = 128;

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// Whoever may open the socket's file.
    Unix(UnixListener),
    /// Whoever is on this machine.
    Tcp(TcpListener),
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Listener::Unix(listener)
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Listener::Tcp(listener)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Listener {
    /// The address, if it is a port.
    pub fn port(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Listener::Unix(_) => Ok(None),
            Listener::Tcp(listener) => listener.local_addr().map(Some),
        }
    }

    pub(crate) fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Unix(listener) => Ok(Stream::Unix(listener.accept()?.0)),
            Listener::Tcp(listener) => {
                let stream = listener.accept()?.0;
                // Replies leave in batches of our own making; none waits for an acknowledgement.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    /// Wakes `accept`, which fails from now on.
    pub(crate) fn stop(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(self, rustix::net::Shutdown::Both)?)
    }
}

/// The file of a unix socket, removed with this value if it is still the same one.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Held, so that its inode's number is not given to another.
    file: OwnedFd,
}

impl SocketFile {
    /// Listens at `path`, for this user alone. What a server left that was killed is replaced.
    pub fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let address = SocketAddrUnix::new(path)?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) if is_abandoned(path) => {
                fs::remove_file(path)?;
                bind(&socket, &address)?;
            }
            bound => bound?,
        }
        // Before it listens: nobody has connected in between.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = SocketFile {
            path: path.to_owned(),
            file: rustix::fs::open(path, flags, Mode::empty())?,
        };
        Ok((socket.into(), file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let (Ok(own), Ok(there)) = (fstat(&self.file), lstat(&self.path)) else {
            return;
        };
        if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket at which nobody listens.
fn is_abandoned(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub fn shutdown(&self, how: Shutdown) {
        // The other side may have gone already.
        let _ = match self {
            Stream::Unix(stream) => stream.shutdown(how),
            Stream::Tcp(stream) => stream.shutdown(how),
        };
    }

    /// For reading and writing; `None` waits for ever.
    pub fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Stream::Tcp(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).read(buf),
            Stream::Tcp(stream) => (&*stream).read(buf),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).write(buf),
            Stream::Tcp(stream) => (&*stream).write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).write_vectored(bufs),
            Stream::Tcp(stream) => (&*stream).write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection that fails once the time is over, however often a byte comes before that.
pub(crate) struct Until<'a> {
    pub stream: &'a Stream,
    pub end: Instant,
}

impl Until<'_> {
    /// The stream, for what is left of the time.
    fn left(&self) -> io::Result<&Stream> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_timeouts(Some(left))?;
        Ok(self.stream)
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.left()?.read(buf)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.left()?.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_socket_is_for_this_user_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (listener, file) = SocketFile::listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // One that listens stays; one whose server was killed is replaced.
        let taken = SocketFile::listen(&path).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        let (_listener, second) = SocketFile::listen(&path).unwrap();
        // The first one's file is not there any more: the second one's stays.
        drop(file);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
        // What is no socket is nobody's to remove.
        fs::write(&path, "precious").unwrap();
        SocketFile::listen(&path).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn time_is_over_though_there_is_something_to_read() {
        let (here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"abc").unwrap();
        let stream = Stream::Unix(here);
        let hour = Duration::from_secs(3600);
        let mut until = Until {
            stream: &stream,
            end: Instant::now() + hour,
        };
        let mut byte = [0];
        until.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"a");
        until.end = Instant::now();
        assert_eq!(
            until.read(&mut byte).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        assert_eq!(
            until.write(&byte).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
    }
}
