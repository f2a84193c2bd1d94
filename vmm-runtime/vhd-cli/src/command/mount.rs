//! `vhd mount`

use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use paddock_vhd::{ChildOptions, discard_undo, inspect};
use uuid::Uuid;

use crate::children::refuse_writes;
use crate::command::undo;
use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::mounting::loop_device::{self, Backing, Part};
use crate::mounting::server::READY;
use crate::mounting::state::{Mounted, StateFolder, Volume};
use crate::mounting::teardown::{self, MountOptions};
use crate::mounting::volumes;
use crate::output::Output;
use crate::size::human;

/// Make a disk a device of this machine, and mount a volume of it
///
/// Without DIR the disk is plugged in alone: a device for the disk, and one
/// for each of its partitions. With DIR, its only volume, or the one that is
/// named, is mounted there as well.
///
/// Changes go to an undo disk, beside the disk or in another folder, until
/// `vhd unmount` commits, discards or keeps them; with --direct they go
/// straight to the disk. Where the machine stopped in between, `vhd undo`
/// commits or discards the undo disk. Needs root.
///
/// A disk for reading whose file system was not put away cleanly is mounted
/// without what its journal has yet to bring in order, and that is told.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd mount disk.vhd
  vhd mount disk.vhd /mnt
  vhd mount --direct --partition 2 disk.vhd /mnt
  vhd mount --options uid=1000 disk.vhd /mnt
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
    /// Write to a disk that is the parent of others, which makes them useless
    #[arg(long, requires = "direct")]
    abandon_children: bool,
    /// Refuse changes; other readers may use the disk, too
    #[arg(long)]
    read_only: bool,
    /// Further options of mount(8). Without any: nosuid,nodev, since what the
    /// disk holds is a stranger's
    #[arg(long, value_name = "LIST", requires = "dir")]
    options: Option<String>,
    /// Where the undo disk is made, if not beside the disk
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
    if arguments.direct {
        refuse_writes(&disk, &arguments.search, arguments.abandon_children, out)?;
    }
    // From here on an end by a signal has to wait for what is half done.
    let interrupt = Interrupt::listen()?;
    let size = inspect(&disk.pool, &disk.name)?.virtual_size;
    let mut id = Uuid::new_v4().simple().to_string();
    id.truncate(8);
    let undo = if arguments.direct || arguments.read_only {
        None
    } else {
        Some(undo_of(arguments, &disk, &id)?)
    };
    let folder = StateFolder::make(&id)?;
    let _claim = folder.claim()?;
    let mut mounted = Mounted {
        id,
        file: disk.path().to_owned(),
        undo: undo.as_ref().map(|undo| undo.path().to_owned()),
        read_only: arguments.read_only,
        size,
        image: folder.image(),
        backing: None,
        device: PathBuf::new(),
        volumes: Vec::new(),
    };
    // Before anything is made that would have to be taken back.
    let made = folder.save(&mounted).and_then(|()| match &undo {
        Some(undo) => make_undo(arguments, &disk, undo),
        None => Ok(()),
    });
    let plugged = made.and_then(|()| plug(arguments, &folder, &mut mounted, dir.as_deref(), out));
    // Ctrl-C goes to `mount` and to the server as well: what they then say is
    // of no interest.
    let failure = match plugged {
        _ if interrupt.came() => Failure::cancelled(),
        Ok(()) => {
            out.done(&mounted, human_text);
            return Ok(Exit::Good);
        }
        Err(failure) => failure,
    };
    Err(take_back(&folder, &mut mounted, failure))
}

/// What the undo disk of a new mount will be. Beside the disk, so that who
/// looks for the disk's children finds it.
fn undo_of(arguments: &Arguments, disk: &DiskPath, id: &str) -> Result<DiskPath, Failure> {
    let stem = disk.name.file_stem().unwrap_or_default().to_string_lossy();
    let name = format!("{stem}-{id}.vud");
    match &arguments.undo_dir {
        Some(folder) => DiskPath::any(&folder.join(name)),
        None => Ok(disk.sibling(name)),
    }
}

fn make_undo(arguments: &Arguments, disk: &DiskPath, undo: &DiskPath) -> Result<(), Failure> {
    let options = ChildOptions {
        search: arguments.search.resolve()?,
        ..ChildOptions::new()
    };
    undo::make(undo, disk, &options).map_err(|failure| match failure.exit {
        Exit::System | Exit::NoRoom if arguments.undo_dir.is_none() => failure.hinting(
            "`--undo-dir DIR` names another folder for the undo disk, `--direct` writes straight to the disk",
        ),
        _ => failure,
    })
}

/// Starts the server, makes the devices, mounts. Each step is kept before the
/// next, for whoever has to take it back.
fn plug(
    arguments: &Arguments,
    folder: &StateFolder,
    mounted: &mut Mounted,
    dir: Option<&Path>,
    out: &Output,
) -> Result<(), Failure> {
    let held = mounted.undo.as_ref().unwrap_or(&mounted.file);
    start_server(arguments, folder, held)?;
    mounted.backing = Some(Backing::of(&mounted.image)?);
    folder.save(mounted)?;
    let whole = Part {
        offset: 0,
        len: 0,
        read_only: mounted.read_only,
        partitions: true,
    };
    mounted.device = loop_device::attach(mounted.owner(), whole)?;
    folder.save(mounted)?;
    let doubt = volumes::attach(folder, mounted)?;
    if let Some(doubt) = &doubt {
        out.note(&format!(
            "the partition table: {doubt}; the volumes are those that the kernel finds"
        ));
    }
    let Some(dir) = dir else {
        return Ok(());
    };
    let at = chosen(arguments.partition, &mounted.volumes, doubt.as_deref())?;
    if let Some(volume) = mounted.volumes.get_mut(at) {
        volume.folder = Some(dir.to_owned());
    }
    folder.save(mounted)?;
    let options = MountOptions {
        read_only: mounted.read_only,
        others: arguments.options.as_deref(),
    };
    if let Some(volume) = mounted.volumes.get_mut(at) {
        if teardown::mount(volume, dir, options)? {
            out.note(&format!(
                "the {} file system was not put away cleanly: it is shown without what its journal has yet to bring in order",
                volume.kind
            ));
        }
        volume.mounted_as = teardown::mounted_on(dir);
    }
    folder.save(mounted)
}

/// Which of the volumes is to be mounted, counted from 0. `doubt`: what is
/// wrong with the partition table.
fn chosen(
    partition: Option<usize>,
    volumes: &[Volume],
    doubt: Option<&str>,
) -> Result<usize, Failure> {
    let at = match partition {
        Some(number) => volumes.iter().position(|volume| volume.number == number),
        None if volumes.len() == 1 => Some(0),
        None => None,
    };
    if let Some(at) = at {
        return Ok(at);
    }
    let mut text = match (partition, volumes.len()) {
        (_, 0) => "there is no volume on the disk that could be mounted".to_owned(),
        (Some(number), count) => {
            format!("there is no such partition: {number}; the disk has {count}")
        }
        (None, count) => {
            format!("the disk has {count} volumes: say with --partition which one is to be mounted")
        }
    };
    if let Some(doubt) = doubt {
        let _ = write!(text, "; the partition table: {doubt}");
    }
    for volume in volumes {
        let size = human(volume.length);
        let _ = write!(text, "\n     {}: {}, {size}", volume.number, volume.kind);
    }
    Err(Failure::wrong_use(text))
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
    let text = match text.trim().trim_start_matches("vhd: ") {
        "" => format!("the server of the disk ended with {status}"),
        text => text.to_owned(),
    };
    Err(Failure::new(Exit::from_code(status.code()), text))
}

/// After an error: as if nothing had been done. Where that fails, the record
/// stays, and with it `vhd unmount` can try it again.
fn take_back(folder: &StateFolder, mounted: &mut Mounted, failure: Failure) -> Failure {
    let taken = teardown::take_down(folder, mounted, None)
        .and_then(|()| match &mounted.undo {
            // Its lock file goes with it, and not before.
            Some(path) if path.exists() => {
                let undo = DiskPath::existing(path)?;
                Ok(discard_undo(&undo.pool, &undo.name)?)
            }
            _ => Ok(()),
        })
        .and_then(|()| folder.remove());
    match taken {
        Ok(()) => failure,
        Err(left) => failure.noting(&format!(
            "it could not be taken back ({}): `vhd unmount --discard {}` tries that again",
            left.message(),
            mounted.id
        )),
    }
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
