//! `vhd compact`

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use clap::Args;
use paddock_free_space::{Disk, Outcome, free_space};
use paddock_vhd::{BlockDevice, Children, CompactOptions, Gate, OperationError, children, compact};
use serde::Serialize;

use crate::children::{known, names, note_skipped};
use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Meter;
use crate::size::human;
use crate::target::{Force, Target};

/// Make the file of a dynamic disk as small as its content allows
///
/// Blocks of nothing but zeros go. So does what the file systems on the disk
/// do not use: it reads as zeros afterwards. File systems that are not known,
/// or were not put away cleanly, are left as they are. Needs room for both
/// files, the old and the new; the new one takes the old one's place when it
/// is complete.
#[derive(Debug, Args)]
#[command(mut_arg("force", |force| force.requires("into")), after_help = "Examples:
  vhd compact disk.vhd
  vhd compact --keep-free disk.vhd
  vhd compact --defragment --into small.vhd disk.vhd")]
pub(crate) struct Arguments {
    /// The disk
    file: PathBuf,
    /// Keep what file systems do not use. A disk with children has to: they
    /// may use it
    #[arg(long)]
    keep_free: bool,
    /// Put the blocks of the file into the order of the disk
    #[arg(long)]
    defragment: bool,
    /// Make a new disk in the same folder, and keep the old one
    #[arg(long, value_name = "NEW")]
    into: Option<PathBuf>,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    search: Search,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    file: PathBuf,
    old_size: u64,
    new_size: u64,
    blocks_before: u32,
    blocks_after: u32,
    freed_bytes: u64,
    volumes: Vec<Volume>,
}

/// What became of a volume on the disk.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    start: u64,
    length: u64,
    kind: String,
    free_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    untouched: Option<String>,
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let disk = DiskPath::existing(&arguments.file)?;
    let target = match &arguments.into {
        Some(new) => Some(Target::new(
            new,
            arguments.force,
            std::slice::from_ref(&arguments.file),
        )?),
        None => None,
    };
    if let Some(target) = &target
        && target.making().path().parent() != disk.path().parent()
    {
        return Err(Failure::wrong_use(
            "a disk is compacted within its folder; name a file there, or move it afterwards",
        ));
    }
    let children = match arguments.keep_free {
        true => Children::default(),
        false => known(&disk, &arguments.search)?,
    };
    note_skipped(&children, out);
    let volumes = RefCell::new(Vec::new());
    let stopped = RefCell::new(None);
    // Under the lock: who wrote before may have used what was free.
    let look = |vhd: &dyn BlockDevice| {
        let looked = look_for_free_space(vhd, out)
            .and_then(|(free, found)| Ok((may_free(&disk, free, &children)?, found)));
        match looked {
            Ok((free, found)) => {
                volumes.replace(found);
                Ok(free)
            }
            Err(failure) => {
                stopped.replace(Some(failure));
                Err(io::ErrorKind::Interrupted.into())
            }
        }
    };
    let options = CompactOptions {
        free: match arguments.keep_free {
            true => None,
            false => Some(&look),
        },
        target: target.as_ref().map(|target| target.name().to_owned()),
        defragment: arguments.defragment,
    };
    let meter = Meter::start("compact", out)?;
    let gate = Gate::open();
    let report = compact(&disk.pool, &disk.name, gate, &options, &mut |step| {
        meter.step(step)
    })
    .map_err(|error| match stopped.take() {
        Some(failure) => failure,
        None => hinted(error, &disk, arguments.keep_free),
    })?;
    drop(meter);
    let made = match target {
        Some(target) => target.finish()?,
        None => disk,
    };
    let answer = Answer {
        file: made.path().to_owned(),
        old_size: report.old_len,
        new_size: report.new_len,
        blocks_before: report.blocks_before,
        blocks_after: report.blocks_after,
        freed_bytes: report.freed_bytes,
        volumes: volumes.into_inner(),
    };
    out.done(&answer, human_text);
    Ok(Exit::Good)
}

/// Refuses to give up what children may use, those elsewhere included. The
/// library looks for those in the disk's own folder once more.
fn may_free(
    disk: &DiskPath,
    free: Vec<Range<u64>>,
    children: &Children,
) -> Result<Vec<Range<u64>>, Failure> {
    if free.is_empty() || children.found.is_empty() {
        return Ok(free);
    }
    Err(Failure::wrong_use(format!(
        "{}: its free space can't be given up while it is the parent of {}: that would change what they show",
        disk.path().display(),
        names(&children.found)
    ))
    .hinting(KEEP_FREE))
}

const KEEP_FREE: &str = "`vhd compact --keep-free FILE` compacts a disk with children, too";

fn hinted(error: OperationError, disk: &DiskPath, keep_free: bool) -> Failure {
    let refused = matches!(error, OperationError::Refused { .. });
    let failure = Failure::from(error);
    if refused
        && !keep_free
        && children(&disk.pool, &disk.name).is_ok_and(|children| !children.is_empty())
    {
        return failure.hinting(KEEP_FREE);
    }
    failure
}

fn human_text(answer: &Answer) -> String {
    let mut text = String::new();
    for volume in &answer.volumes {
        let place = format!(
            "{} at byte {}, {}",
            volume.kind,
            volume.start,
            human(volume.length)
        );
        let _ = match (&volume.untouched, volume.free_bytes) {
            (Some(reason), _) => writeln!(text, "{place}: left as it is: {reason}"),
            (None, free) => writeln!(text, "{place}: {} not used", human(free.unwrap_or(0))),
        };
    }
    let _ = write!(
        text,
        "{}: {} blocks, were {}; {}, was {}; {} freed",
        answer.file.display(),
        answer.blocks_after,
        answer.blocks_before,
        human(answer.new_size),
        human(answer.old_size),
        human(answer.freed_bytes)
    );
    text
}

/// A disk as the walkers read it.
struct Bytes<'a> {
    disk: &'a dyn BlockDevice,
    meter: &'a Meter,
    read: Cell<u64>,
}

impl Disk for Bytes<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.set(self.read.get() + buf.len() as u64);
        if self.meter.tick(self.read.get()).is_break() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.disk.read_at(buf, offset).map_err(io::Error::other)
    }
}

/// What no file system on the disk uses. A table of partitions that can't be
/// right leaves everything as it is.
fn look_for_free_space(
    vhd: &dyn BlockDevice,
    out: &Output,
) -> Result<(Vec<Range<u64>>, Vec<Volume>), Failure> {
    let meter = Meter::walk("look for free space", out)?;
    let bytes = Bytes {
        disk: vhd,
        meter: &meter,
        read: Cell::new(0),
    };
    let report = match free_space(&bytes) {
        Err(_) if meter.is_cancelled() => return Err(Failure::cancelled()),
        Ok(report) => report,
        Err(error @ paddock_free_space::WalkError::Read { .. }) => {
            return Err(Failure::new(Exit::System, error.to_string()));
        }
        Err(error) => {
            let whole = Volume {
                start: 0,
                length: vhd.size(),
                kind: "disk".to_owned(),
                free_bytes: None,
                untouched: Some(error.to_string()),
            };
            return Ok((Vec::new(), vec![whole]));
        }
    };
    let volumes = report
        .volumes
        .iter()
        .map(|volume| {
            let (free_bytes, untouched) = match &volume.outcome {
                Outcome::Walked { free_bytes, .. } => (Some(*free_bytes), None),
                Outcome::Untouched { reason } => (None, Some(reason.clone())),
            };
            Volume {
                start: volume.start,
                length: volume.len,
                kind: volume.kind.to_string(),
                free_bytes,
                untouched,
            }
        })
        .collect();
    Ok((report.free_ranges(), volumes))
}
