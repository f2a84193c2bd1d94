//! `vhd convert`

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use paddock_vhd::{
    Access, ConvertOptions, DiskType, Gate, ImportOptions, convert, export_raw, import_linked,
    import_raw,
};
use serde::Serialize;

use crate::command::create::disk_size;
use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Meter;
use crate::raw::RawSource;
use crate::size::{Size, exact, human};
use crate::target::{Force, Target};

/// Copy what a disk shows into a new disk or a raw image
///
/// Zeros are left out. The source stays as it is. A differencing source is
/// copied together with what its parents show. The target gets its name when
/// it is complete: after an error or Ctrl-C nothing is left of it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd convert --to dynamic fixed.vhd dynamic.vhd
  vhd convert --to raw disk.vhd disk.img
  vhd convert --from raw --to dynamic disk.img disk.vhd
  vhd convert --from linked --to dynamic linked.vhd disk.vhd
  vhd convert --from raw --to fixed --size 20GiB /dev/sdb disk.vhd")]
pub(crate) struct Arguments {
    /// What the target is to be
    #[arg(long, value_name = "TYPE")]
    to: To,
    /// What the source is; never guessed
    #[arg(long, value_name = "FORMAT", default_value = "vhd")]
    from: From,
    /// The size of the new disk, of a raw source only: zeros follow its end.
    /// Otherwise it is that of the source
    #[arg(long)]
    size: Option<Size>,
    /// What is copied
    source: PathBuf,
    /// The new disk or image
    target: PathBuf,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    search: Search,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum From {
    /// A virtual hard disk in the VHD format
    Vhd,
    /// A raw image, or a block device
    Raw,
    /// A linked disk, which stands for a physical one
    Linked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    Dynamic,
    Fixed,
    Raw,
}

/// What was copied, as it is told in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Copied {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) size: u64,
    pub(crate) written_bytes: u64,
}

impl Copied {
    pub(crate) fn human(&self) -> String {
        format!(
            "{}: {}, {} of them data",
            self.target.display(),
            exact(self.size),
            human(self.written_bytes)
        )
    }
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let disk_type = match arguments.to {
        To::Dynamic => Some(DiskType::Dynamic),
        To::Fixed => Some(DiskType::Fixed),
        To::Raw => None,
    };
    let copied = match (arguments.from, disk_type) {
        (From::Raw | From::Linked, None) => {
            return Err(Failure::wrong_use(
                "a raw image or a linked disk is converted to a disk: ask for --to dynamic or --to fixed",
            ));
        }
        (From::Raw, Some(disk_type)) => from_raw(arguments, disk_type, out)?,
        (From::Vhd | From::Linked, _) if arguments.size.is_some() => {
            return Err(Failure::wrong_use(
                "a converted disk has the size of its source: leave out --size, or use `vhd resize` afterwards",
            ));
        }
        (From::Linked, Some(disk_type)) => from_linked(arguments, disk_type, out)?,
        (From::Vhd, disk_type) => copy_disk(
            &arguments.source,
            &arguments.target,
            disk_type,
            arguments.force,
            &arguments.search,
            "convert",
            out,
        )?,
    };
    out.done(&copied, Copied::human);
    Ok(Exit::Good)
}

/// Copies a disk and what its parents show. `disk_type`: `None` for a raw
/// image.
pub(crate) fn copy_disk(
    source: &Path,
    target: &Path,
    disk_type: Option<DiskType>,
    force: Force,
    search: &Search,
    what: &'static str,
    out: &Output,
) -> Result<Copied, Failure> {
    let disk = DiskPath::existing(source)?;
    let search = search.resolve()?;
    let chain = super::chain_paths(&disk, &search)?;
    let target = Target::new(target, force, &chain)?;
    let meter = Meter::start(what, out)?;
    let mut progress = |step| meter.step(step);
    let (pool, name) = (&disk.pool, &disk.name);
    let report = match disk_type {
        Some(disk_type) => {
            let options = ConvertOptions {
                search,
                ..ConvertOptions::new(disk_type)
            };
            convert(
                pool,
                name,
                target.pool(),
                target.name(),
                Gate::open(),
                &options,
                &mut progress,
            )?
        }
        None => export_raw(
            pool,
            name,
            target.pool(),
            target.name(),
            Gate::open(),
            &search,
            &mut progress,
        )?,
    };
    drop(meter);
    Ok(Copied {
        source: disk.path().to_owned(),
        target: target.finish()?.path().to_owned(),
        size: report.size,
        written_bytes: report.written_bytes,
    })
}

fn from_linked(
    arguments: &Arguments,
    disk_type: DiskType,
    out: &Output,
) -> Result<Copied, Failure> {
    let disk = DiskPath::existing(&arguments.source)?;
    let sources = std::slice::from_ref(&arguments.source);
    let target = Target::new(&arguments.target, arguments.force, sources)?;
    let meter = Meter::start("convert", out)?;
    let report = import_linked(
        &disk.pool,
        &disk.name,
        target.pool(),
        target.name(),
        Gate::open(),
        &ConvertOptions::new(disk_type),
        &mut |step| meter.step(step),
    )?;
    drop(meter);
    Ok(Copied {
        source: disk.path().to_owned(),
        target: target.finish()?.path().to_owned(),
        size: report.size,
        written_bytes: report.written_bytes,
    })
}

fn from_raw(arguments: &Arguments, disk_type: DiskType, out: &Output) -> Result<Copied, Failure> {
    let source = DiskPath::existing(&arguments.source)?;
    let image = RawSource::open(source.path(), Access::ReadOnly)?;
    let options = ImportOptions {
        disk_type,
        size: arguments.size.map(disk_size).transpose()?,
        sha256: None,
        unique_id: None,
        gate: Gate::open(),
    };
    let target = Target::new(
        &arguments.target,
        arguments.force,
        std::slice::from_ref(&arguments.source),
    )?;
    let meter = Meter::start("convert", out)?;
    let report = import_raw(
        image.file(),
        target.pool(),
        target.name(),
        &options,
        &mut |step| meter.step(step),
    )?;
    drop(meter);
    Ok(Copied {
        source: source.path().to_owned(),
        target: target.finish()?.path().to_owned(),
        size: report.size.bytes(),
        written_bytes: report.written_bytes,
    })
}
