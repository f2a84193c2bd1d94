//! `vhd serve`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use paddock_nbd::{Export, Server};
use paddock_vhd::{Access, BlockDevice};
use serde::Serialize;
use signal_hook::iterator::Signals;

use crate::children::refuse_writes;
use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::interrupt::{ENDING, no_handler};
use crate::output::Output;
use crate::size::human;
use crate::source::{Format, Source};

/// Serve a disk to NBD clients
///
/// Serves until Ctrl-C or SIGTERM, then flushes the disk and closes it.
/// Several connections at once see the same disk.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd serve --socket /run/disk.sock disk.vhd
  vhd serve --socket /run/disk.sock --read-only disk.vhd
  vhd serve --listen 127.0.0.1:10809 disk.vhd
  qemu-system-x86_64 -drive file=nbd+unix:///?socket=/run/disk.sock,format=raw")]
pub(crate) struct Arguments {
    /// Serve at this unix socket, which only the user may connect to
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    socket: Option<PathBuf>,
    /// Serve at this port of the loopback device, which every user of the
    /// machine may connect to; port 0 for any
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Refuse writes; other readers may use the disk, too
    #[arg(long)]
    read_only: bool,
    /// Read and write the file past this machine's page cache: for clients that
    /// have a cache of their own
    #[arg(long)]
    uncached: bool,
    /// What the file is; never guessed
    #[arg(long, value_name = "FORMAT", default_value = "vhd")]
    from: Format,
    /// Write to a disk that is the parent of others, which makes them useless
    #[arg(long, conflicts_with = "read_only")]
    abandon_children: bool,
    /// The disk
    file: PathBuf,
    #[command(flatten)]
    search: Search,
}

/// What clients may ask for; they may as well ask for nothing.
const EXPORT: &str = "disk";

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
    let file = &arguments.file;
    let search = &arguments.search;
    let direct = arguments.uncached;
    out.log();
    if arguments.from == Format::Vhd && access == Access::ReadWrite {
        let disk = DiskPath::existing(file)?;
        refuse_writes(&disk, search, arguments.abandon_children, out)?;
    }
    let source = Source::open_past_cache(file, arguments.from, access, search, direct)?;
    // From here on: a signal that comes while it starts ends it, too.
    let mut signals = Signals::new(ENDING).map_err(|error| no_handler(&error))?;
    let disk: Arc<dyn BlockDevice> = match source {
        Source::Vhd(vhd) => Arc::new(vhd),
        Source::Raw(raw) => Arc::new(raw),
    };
    let exports = vec![Export::new(EXPORT, disk.clone())];
    let (server, uri) = match (&arguments.socket, arguments.listen) {
        (Some(socket), _) => (Server::unix(socket, exports)?, unix_uri(socket)),
        (None, Some(address)) => {
            let server = Server::tcp(address, exports)?;
            let address = server.address().unwrap_or(address);
            (server, format!("nbd://{address}/{EXPORT}"))
        }
        (None, None) => {
            return Err(Failure::wrong_use(
                "where is the disk to be served? Say so with --socket or --listen",
            ));
        }
    };
    let serving = Serving {
        file: file.clone(),
        uri,
        size: disk.size(),
        read_only: arguments.read_only,
    };
    let human_text = |serving: &Serving| {
        format!(
            "{}: serving {} at {}",
            serving.file.display(),
            human(serving.size),
            serving.uri
        )
    };
    // A port that we chose nobody else knows.
    match arguments.listen {
        Some(address) if address.port() == 0 => out.answer(&serving, human_text),
        _ => out.done(&serving, human_text),
    }
    signals.forever().next();
    server.stop();
    if !arguments.read_only {
        disk.flush().map_err(|error| Failure::disk(file, &error))?;
    }
    Ok(Exit::Good)
}

/// How NBD clients name it: the path with what a URI has other uses for
/// written in hexadecimal.
fn unix_uri(socket: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let path = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    let mut uri = format!("nbd+unix:///{EXPORT}?socket=");
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
            unix_uri(Path::new("/run/my disk?.sock")),
            "nbd+unix:///disk?socket=/run/my%20disk%3F.sock"
        );
    }
}
