//! `vhd compact`

use std::cell::Cell;
use std::fmt::Write;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use paddock_free_space::{Disk, Outcome, free_space};
use paddock_vhd::{
    Access, BlockDevice, CompactOptions, CompactReport, Gate, OperationError, ParentSearch,
    Progress, Vhd, children, compact,
};
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
    let before = Unchanged::look(&disk)?;
    let (free, volumes) = if arguments.keep_free {
        (Vec::new(), Vec::new())
    } else {
        look_for_free_space(&disk, out)?
    };
    if !free.is_empty() {
        refuse_children(&disk, &arguments.search, out)?;
    }
    let options = CompactOptions {
        free,
        target: target.as_ref().map(|target| target.name().to_owned()),
        defragment: arguments.defragment,
        search: ParentSearch::new(),
    };
    let meter = Meter::start("compact", out)?;
    let report = compact_unchanged(&disk, &before, &options, &mut |step| meter.step(step))?;
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
        volumes,
    };
    out.done(&answer, human_text);
    Ok(Exit::Good)
}

/// What is free on a disk may be in use by its children. The library finds
/// those in the disk's own folder once more, under the disk's lock.
fn refuse_children(disk: &DiskPath, search: &Search, out: &Output) -> Result<(), Failure> {
    let children = known(disk, search)?;
    note_skipped(&children, out);
    if children.found.is_empty() {
        return Ok(());
    }
    Err(Failure::wrong_use(format!(
        "{}: its free space can't be given up while it is the parent of {}: that would change what they show",
        disk.path().display(),
        names(&children.found)
    ))
    .hinting(KEEP_FREE))
}

const KEEP_FREE: &str = "`vhd compact --keep-free FILE` compacts a disk with children, too";

/// Compacts a disk if nobody wrote to it since `before`: who wrote between the
/// search for free space and the lock may have used that.
fn compact_unchanged(
    disk: &DiskPath,
    before: &Unchanged,
    options: &CompactOptions,
    step: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<CompactReport, Failure> {
    let mut looked = None;
    let report = compact(&disk.pool, &disk.name, options, &mut |progress| {
        // The disk is locked by now, and nothing is published yet.
        let look = || Unchanged::look(disk).is_ok_and(|now| now == *before);
        if *looked.get_or_insert_with(look) {
            step(progress)
        } else {
            ControlFlow::Break(())
        }
    });
    match report {
        Err(OperationError::Cancelled) if looked == Some(false) => Err(Failure::new(
            Exit::Busy,
            format!(
                "{}: someone wrote to the disk meanwhile; nothing was changed, compact it when nobody uses it",
                disk.path().display()
            ),
        )),
        Err(error @ OperationError::Refused { .. })
            if !options.free.is_empty()
                && children(&disk.pool, &disk.name).is_ok_and(|children| !children.is_empty()) =>
        {
            Err(Failure::from(error).hinting(KEEP_FREE))
        }
        report => Ok(report?),
    }
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

/// What tells that nobody wrote to a file.
#[derive(Debug, PartialEq, Eq)]
struct Unchanged {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Unchanged {
    fn look(disk: &DiskPath) -> Result<Unchanged, Failure> {
        let metadata = disk
            .path()
            .metadata()
            .map_err(|error| Failure::io(disk.path(), "look at the file", &error))?;
        Ok(Unchanged {
            file: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
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
    disk: &DiskPath,
    out: &Output,
) -> Result<(Vec<Range<u64>>, Vec<Volume>), Failure> {
    let vhd = Vhd::open(&disk.pool, &disk.name, Access::ReadOnly, Gate::open())?;
    let meter = Meter::walk("look for free space", out)?;
    let bytes = Bytes {
        disk: &vhd,
        meter: &meter,
        read: Cell::new(0),
    };
    let report = match free_space(&bytes) {
        Err(_) if meter.is_cancelled() => return Err(Failure::cancelled()),
        Ok(report) => report,
        Err(error @ paddock_free_space::WalkError::Read { .. }) => {
            return Err(read_error(disk.path(), &error));
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

fn read_error(path: &Path, error: &paddock_free_space::WalkError) -> Failure {
    Failure::new(Exit::System, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use paddock_vhd::{CreateOptions, DiskSize, DiskType, Pool};

    use super::*;

    #[test]
    fn what_was_free_is_kept_if_someone_wrote_since() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let size = DiskSize::from_bytes(8 << 20).unwrap();
        let create = CreateOptions::new(DiskType::Dynamic, size);
        let vhd = Vhd::create(&pool, "disk.vhd", &create).unwrap();
        vhd.write_at(&[1; 4096], 0).unwrap();
        vhd.close().unwrap();
        let disk = DiskPath::existing(&dir.path().join("disk.vhd")).unwrap();
        let options = CompactOptions {
            free: std::iter::once(0..4096).collect(),
            ..CompactOptions::default()
        };
        let compact = |before: &Unchanged| {
            compact_unchanged(&disk, before, &options, &mut |_| ControlFlow::Continue(()))
        };
        let first_byte = || {
            let vhd = Vhd::open(&pool, "disk.vhd", Access::ReadOnly, Gate::open()).unwrap();
            let mut byte = [0];
            vhd.read_at(&mut byte, 0).unwrap();
            byte[0]
        };
        let before = Unchanged::look(&disk).unwrap();
        let vhd = Vhd::open(&pool, "disk.vhd", Access::ReadWrite, Gate::open()).unwrap();
        vhd.write_at(&[2; 4096], 0).unwrap();
        vhd.close().unwrap();
        let failure = compact(&before).unwrap_err();
        assert_eq!(failure.exit, Exit::Busy, "{failure}");
        assert_eq!(first_byte(), 2);
        let report = compact(&Unchanged::look(&disk).unwrap()).unwrap();
        assert_eq!((report.blocks_before, report.blocks_after), (1, 0));
        assert_eq!(first_byte(), 0);
    }
}
