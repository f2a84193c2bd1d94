//! `vhd mount`

use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use paddock_vhd::{ChildOptions, discard_undo, inspect};
use uuid::Uuid;

use crate::command::undo;
use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::mounting::loop_device::{self, Part};
use crate::mounting::server::READY;
use crate::mounting::state::{Mounted, StateFolder};
use crate::mounting::{teardown, volumes};
use crate::output::Output;
use crate::size::human;

/// Make a disk a device of this machine, and mount a volume of it
///
/// Without DIR the disk is plugged in alone: a device for the disk, and one
/// for each of its partitions. With DIR, its only volume, or the one that is
/// named, is mounted there as well.
///
/// Changes go to an undo disk, in the folder that TMPDIR names or in
/// /var/tmp, until `vhd unmount` commits, discards or keeps them; with
/// --direct they go straight to the disk. Where the machine stopped in between,
/// `vhd undo` commits or discards the undo disk. Needs root.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd mount disk.vhd
  vhd mount disk.vhd /mnt
  vhd mount --direct --partition 2 disk.vhd /mnt
  vhd mount --read-only disk.vhd /mnt
  vhd unmount --commit /mnt")]
pub(crate) struct Arguments {
    /// The disk
    file: PathBuf,
    /// Where a volume is mounted
    dir: Option<PathBuf>,
    /// Which partition is mounted, counted from 1 in the order of the disk
    #[arg(long, value_name = "NUMBER", requires = "dir")]
    partition: Option<usize>,
    /// Write changes straight to the disk
    #[arg(long, conflicts_with = "read_only")]
    direct: bool,
    /// Refuse changes; other readers may use the disk, too
    #[arg(long)]
    read_only: bool,
    /// Where the undo disk is made
    #[arg(long, value_name = "DIR", conflicts_with_all = ["direct", "read_only"])]
    undo_dir: Option<PathBuf>,
    #[command(flatten)]
    search: Search,
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(
            Exit::System,
            "loop devices and mounts need root: run it with sudo, or use `vhd serve` with an NBD client",
        ));
    }
    let disk = DiskPath::existing(&arguments.file)?;
    let dir = match &arguments.dir {
        Some(dir) if !dir.is_dir() => {
            return Err(Failure::wrong_use(format!(
                "{}: there is no such folder",
                dir.display()
            )));
        }
        Some(dir) => Some(
            dir.canonicalize()
                .map_err(|error| Failure::io(dir, "look at the folder", &error))?,
        ),
        None => None,
    };
    // From here on an end by a signal has to wait for what is half done.
    let interrupt = Interrupt::listen()?;
    let size = inspect(&disk.pool, &disk.name)?.virtual_size;
    let mut id = Uuid::new_v4().simple().to_string();
    id.truncate(8);
    let undo = if arguments.direct || arguments.read_only {
        None
    } else {
        Some(make_undo(arguments, &disk, &id)?)
    };
    let folder = StateFolder::make(&id).inspect_err(|_| drop_undo(undo.as_ref()))?;
    let mut mounted = Mounted {
        id,
        file: disk.path().to_owned(),
        undo: undo.as_ref().map(|undo| undo.path().to_owned()),
        read_only: arguments.read_only,
        size,
        image: folder.image(),
        device: PathBuf::new(),
        volumes: Vec::new(),
    };
    let plugged = plug(arguments, &folder, &mut mounted, dir.as_deref());
    let plugged = plugged.and_then(|()| match interrupt.came() {
        true => Err(Failure::cancelled()),
        false => Ok(()),
    });
    if let Err(failure) = plugged {
        take_back(&folder, &mut mounted, undo.as_ref());
        return Err(failure);
    }
    out.done(&mounted, human_text);
    Ok(Exit::Good)
}

/// The undo disk of a new mount.
fn make_undo(arguments: &Arguments, disk: &DiskPath, id: &str) -> Result<DiskPath, Failure> {
    let folder = match (&arguments.undo_dir, std::env::var_os("TMPDIR")) {
        (Some(folder), _) => folder.clone(),
        (None, Some(folder)) if !folder.is_empty() => folder.into(),
        // Not /tmp: that may be memory, and is emptied.
        (None, _) => PathBuf::from("/var/tmp"),
    };
    let stem = disk.name.file_stem().unwrap_or_default().to_string_lossy();
    let undo = DiskPath::any(&folder.join(format!("{stem}-{id}.vud")))?;
    let options = ChildOptions {
        search: arguments.search.resolve()?,
        ..ChildOptions::new()
    };
    undo::make(&undo, disk, &options)?;
    Ok(undo)
}

fn drop_undo(undo: Option<&DiskPath>) {
    if let Some(undo) = undo {
        let _ = discard_undo(&undo.pool, &undo.name);
        let mut lock = undo.path().as_os_str().to_owned();
        lock.push(".lock");
        let _ = std::fs::remove_file(lock);
    }
}

/// Starts the server, makes the devices, mounts.
fn plug(
    arguments: &Arguments,
    folder: &StateFolder,
    mounted: &mut Mounted,
    dir: Option<&Path>,
) -> Result<(), Failure> {
    let held = mounted.undo.as_ref().unwrap_or(&mounted.file);
    start_server(arguments, folder, held)?;
    let whole = Part {
        offset: 0,
        len: 0,
        read_only: mounted.read_only,
        partitions: true,
    };
    mounted.device = loop_device::attach(&mounted.image, whole)?;
    volumes::attach(
        &mounted.image,
        &mounted.device,
        mounted.size,
        mounted.read_only,
        &mut mounted.volumes,
    )?;
    if let Some(dir) = dir {
        let count = mounted.volumes.len();
        let at = match arguments.partition {
            Some(number) => number.checked_sub(1),
            None if count == 1 => Some(0),
            None => {
                return Err(Failure::wrong_use(format!(
                    "the disk has {count} volumes: say with --partition which one is to be mounted"
                )));
            }
        };
        let volume = at.and_then(|at| mounted.volumes.get_mut(at));
        let volume = volume.ok_or_else(|| {
            Failure::wrong_use(format!("there is no such partition: the disk has {count}"))
        })?;
        teardown::mount(&volume.device, dir, mounted.read_only)?;
        volume.folder = Some(dir.to_owned());
    }
    folder.save(mounted)
}

fn start_server(arguments: &Arguments, folder: &StateFolder, held: &Path) -> Result<(), Failure> {
    let log_path = folder.log();
    let failed = |error: &std::io::Error| Failure::io(&log_path, "start the server", error);
    let log = File::create(&log_path).map_err(|error| failed(&error))?;
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let mut command = Command::new(program);
    command
        .arg("mount-server")
        .arg("--state")
        .arg(folder.path());
    if arguments.read_only {
        command.arg("--read-only");
    }
    for search in arguments.search.absolute() {
        command.arg("--search").arg(search);
    }
    let mut server = command
        .arg("--")
        .arg(held)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| failed(&error))?;
    let mut line = String::new();
    if let Some(stdout) = server.stdout.take() {
        // It says one line, or ends.
        let _ = BufReader::new(stdout).read_line(&mut line);
    }
    if line.trim_end() == READY {
        return Ok(());
    }
    let status = server.wait().map_err(|error| failed(&error))?;
    let text = std::fs::read_to_string(&log_path).unwrap_or_default();
    let text = text.trim().trim_start_matches("vhd: ");
    Err(Failure::new(
        Exit::from_code(status.code()),
        text.to_owned(),
    ))
}

/// After an error: as if nothing had been done.
fn take_back(folder: &StateFolder, mounted: &mut Mounted, undo: Option<&DiskPath>) {
    if mounted.device.as_os_str().is_empty() {
        let _ = teardown::close(folder);
    } else {
        let _ = teardown::take_down(folder, mounted);
    }
    let _ = folder.remove();
    drop_undo(undo);
}

/// A mounted disk for people.
pub(crate) fn human_text(mounted: &Mounted) -> String {
    let mut text = format!(
        "{}: {} at {}{}\n",
        mounted.file.display(),
        human(mounted.size),
        mounted.device.display(),
        if mounted.read_only { ", read-only" } else { "" }
    );
    for volume in &mounted.volumes {
        let _ = write!(
            text,
            "  {}: {}, {} at {}",
            volume.number,
            volume.kind,
            human(volume.length),
            volume.device.display()
        );
        if let Some(folder) = &volume.folder {
            let _ = write!(text, ", mounted on {}", folder.display());
        }
        text.push('\n');
    }
    let _ = match &mounted.undo {
        Some(undo) => write!(text, "  changes go to {}", undo.display()),
        None if mounted.read_only => Ok(()),
        None => write!(text, "  changes go to the disk"),
    };
    text
}
