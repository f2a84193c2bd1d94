//! The process that holds a mounted disk.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use fuser::{Config, MountOption, Session};
use paddock_vhd::{Access, BlockDevice, OpenError, OpenOptions, Vhd};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::interrupt::no_handler;
use crate::mounting::disk_file::DiskFile;
use crate::mounting::state::StateFolder;
use crate::output::Output;

/// Hold a disk that is mounted
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The folder of the mount
    #[arg(long)]
    state: PathBuf,
    #[arg(long)]
    read_only: bool,
    /// The disk, or its undo disk
    file: PathBuf,
    #[command(flatten)]
    search: Search,
}

/// What the server says when it serves.
pub(crate) const READY: &str = "ready";
/// What it leaves when the disk is closed and everything durable.
pub(crate) const CLOSED: &str = "closed";

/// Threads that work on requests.
const THREADS: usize = 4;

/// Serves until the FUSE file system is unmounted.
pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let folder = StateFolder::at(&arguments.state);
    // Until it is said how it ended.
    let _lock = folder
        .take_lock()
        .map_err(|error| Failure::io(folder.path(), "lock", &error))?;
    let result = serve(arguments, &folder);
    let end = match &result {
        Ok(()) => CLOSED.to_owned(),
        Err(failure) => {
            out.failure(failure);
            failure.to_json()
        }
    };
    let _ = fs::write(folder.end(), end);
    match result {
        Ok(()) => Ok(Exit::Good),
        Err(failure) => Ok(failure.exit),
    }
}

fn serve(arguments: &Arguments, folder: &StateFolder) -> Result<(), Failure> {
    let failed = |operation: &'static str| {
        move |error: std::io::Error| Failure::io(Path::new("the mount's server"), operation, &error)
    };
    // The terminal of whoever mounts may go.
    rustix::process::setsid().map_err(|error| failed("leave the session")(error.into()))?;
    never_wait_for_itself();
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|error| no_handler(&error))?;
    let access = if arguments.read_only {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let file = &arguments.file;
    let vhd = open(file, access, &arguments.search)?;
    let disk = Arc::new(vhd);
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("vhd".to_owned()),
        MountOption::Subtype("vhd".to_owned()),
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
    ];
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let session = Session::new(DiskFile::new(disk.clone()), folder.fuse(), &config)
        .map_err(|error| Failure::io(&folder.fuse(), "mount the disk's file", &error))?;
    // A machine that stops asks everyone to end. What is mounted above needs
    // the disk longer than that, but should find nothing left to write.
    let again = Arc::downgrade(&disk);
    let _ = std::thread::Builder::new().spawn(move || {
        for _ in signals.forever() {
            if let Some(disk) = again.upgrade() {
                let _ = disk.flush();
            }
        }
    });
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{READY}")
        .and_then(|()| stdout.flush())
        .map_err(failed("say that it serves"))?;
    session.run().map_err(failed("serve"))?;
    let closed = match Arc::try_unwrap(disk) {
        Ok(vhd) => vhd.close(),
        // A signal came just now.
        Err(disk) => disk.flush(),
    };
    closed.map_err(|error| Failure::disk(file, &error))
}

/// Opens the disk past the page cache: the loop device has one of its own.
/// Through it on a file system that can't do without.
fn open(file: &Path, access: Access, search: &Search) -> Result<Vhd, Failure> {
    let disk = DiskPath::existing(file)?;
    let options = OpenOptions::new(access).search(search.resolve()?);
    match options.clone().direct(true).open(&disk.pool, &disk.name) {
        Err(OpenError::Io { source, .. }) if source.kind() == ErrorKind::Unsupported => {
            Ok(options.open(&disk.pool, &disk.name)?)
        }
        opened => Ok(opened?),
    }
}

/// The kernel writes what is cached for the loop device when it needs memory;
/// if this process then waited for memory, it would wait for itself.
fn never_wait_for_itself() {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    let (yes, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: PR_SET_IO_FLUSHER takes numbers and changes a flag of this
    // thread, which those that it starts inherit. Kernels that don't know it
    // refuse: then it is as it was.
    let _ = unsafe { libc::prctl(PR_SET_IO_FLUSHER, yes, unused, unused, unused) };
}
