//! `vhd serve`

use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use paddock_nbd::NbdServer;
use paddock_vhd::{Access, BlockDevice};
use rustix::fs::Mode;
use serde::Serialize;
use signal_hook::iterator::Signals;

use crate::disk_path::Search;
use crate::failure::{Exit, Failure};
use crate::interrupt::{ENDING, no_handler};
use crate::output::Output;
use crate::size::human;
use crate::source::{Format, Source};

/// Serve a disk to NBD clients
///
/// Serves until Ctrl-C or SIGTERM, then flushes the disk and closes it. Only
/// the user may connect to the socket. Several connections at once see the
/// same disk.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd serve --socket /run/disk.sock disk.vhd
  vhd serve --socket /run/disk.sock --read-only disk.vhd
  qemu-system-x86_64 -drive file=nbd+unix:///?socket=/run/disk.sock,format=raw")]
pub(crate) struct Arguments {
    /// The unix socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Refuse writes; other readers may use the disk, too
    #[arg(long)]
    read_only: bool,
    /// What the file is; never guessed
    #[arg(long, value_name = "FORMAT", default_value = "vhd")]
    from: Format,
    /// The disk
    file: PathBuf,
    #[command(flatten)]
    search: Search,
}

/// That it serves, in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Serving {
    file: PathBuf,
    uri: String,
    size: u64,
    read_only: bool,
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let access = if arguments.read_only {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let source = Source::open(&arguments.file, arguments.from, access, &arguments.search)?;
    // From here on: a signal that comes while it starts ends it, too.
    let mut signals = Signals::new(ENDING).map_err(|error| no_handler(&error))?;
    let listener = listen(&arguments.socket)?;
    let socket = Socket(&arguments.socket);
    let disk: Arc<dyn BlockDevice> = match source {
        Source::Vhd(vhd) => Arc::new(vhd),
        Source::Raw(raw) => Arc::new(raw),
    };
    let server = NbdServer::start(listener, "disk", disk.clone())
        .map_err(|error| Failure::io(&arguments.socket, "serve", &error))?;
    let serving = Serving {
        file: arguments.file.clone(),
        uri: uri(&arguments.socket),
        size: disk.size(),
        read_only: arguments.read_only,
    };
    out.done(&serving, |serving| {
        format!(
            "{}: serving {} at {}",
            serving.file.display(),
            human(serving.size),
            serving.uri
        )
    });
    signals.forever().next();
    server.stop();
    drop(socket);
    if !arguments.read_only {
        disk.flush()
            .map_err(|error| Failure::disk(&arguments.file, &error))?;
    }
    Ok(Exit::Good)
}

/// Removes the socket's name.
struct Socket<'a>(&'a Path);

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

/// Listens on a socket that only the user may connect to. One that a server
/// left behind is replaced, one that is served is not.
fn listen(path: &Path) -> Result<UnixListener, Failure> {
    let failed = |error: io::Error| Failure::io(path, "listen on the socket", &error);
    match UnixStream::connect(path) {
        Ok(_) => {
            return Err(Failure::new(
                Exit::Busy,
                format!("{}: another server listens there", path.display()),
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            use std::os::unix::fs::FileTypeExt;
            let metadata = path.symlink_metadata().map_err(failed)?;
            if !metadata.file_type().is_socket() {
                return Err(Failure::wrong_use(format!(
                    "{}: there is a file of that name already; choose another name",
                    path.display()
                )));
            }
            fs::remove_file(path).map_err(failed)?;
        }
        Err(_) => {}
    }
    // No other thread runs yet that makes files.
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener.map_err(failed)
}

/// How NBD clients name it: the path with what a URI has other uses for
/// written in hexadecimal.
fn uri(socket: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let path = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    let mut uri = "nbd+unix:///disk?socket=".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                uri.push(byte.into());
            }
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_the_socket() {
        assert_eq!(
            uri(Path::new("/run/my disk?.sock")),
            "nbd+unix:///disk?socket=/run/my%20disk%3F.sock"
        );
    }
}
