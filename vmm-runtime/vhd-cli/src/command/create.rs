//! `vhd create`

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use paddock_vhd::{ChildOptions, CreateOptions, DiskSize, DiskType, Vhd, link};

use crate::command::info::Description;
use crate::disk_path::{DiskPath, Pair, Search};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Meter;
use crate::size::Size;
use crate::target::{Force, Target};

/// Make a new disk
///
/// A disk has 1 MiB to 2040 GiB. A fixed disk takes all of its space at once,
/// a dynamic one grows as it is written to, a differencing one keeps what
/// differs from its parent, which nobody may change from then on. A linked one
/// stands for a whole physical disk, to be converted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd create --type dynamic --size 10GiB disk.vhd
  vhd create --type fixed --size 512M fixed.vhd
  vhd create --type differencing --parent disk.vhd child.vhd
  vhd create --type linked --device /dev/disk/by-id/ata-DISK disk.vhd")]
pub(crate) struct Arguments {
    /// How the disk keeps its data
    #[arg(long = "type", value_name = "TYPE", default_value = "dynamic")]
    kind: Kind,
    /// What the guest sees: 10GiB, 512M
    #[arg(long)]
    size: Option<Size>,
    /// The parent of a differencing disk
    #[arg(long)]
    parent: Option<PathBuf>,
    /// The physical disk of a linked disk, by its name in /dev/disk/by-id
    #[arg(long)]
    device: Option<PathBuf>,
    /// The new disk
    file: PathBuf,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    search: Search,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Fixed,
    Dynamic,
    Differencing,
    Linked,
}

/// What is to be made; nothing is missing or too much.
enum Wanted<'a> {
    Plain(DiskType, DiskSize),
    Child(&'a PathBuf),
    Linked(&'a PathBuf),
}

impl Arguments {
    fn wanted(&self) -> Result<Wanted<'_>, Failure> {
        if self.device.is_some() && self.kind != Kind::Linked {
            return Err(Failure::wrong_use(
                "only a linked disk stands for a device: leave out --device, or ask for --type linked",
            ));
        }
        let disk_type = match self.kind {
            Kind::Linked => {
                return match &self.device {
                    Some(device) if self.size.is_none() && self.parent.is_none() => {
                        Ok(Wanted::Linked(device))
                    }
                    Some(_) => Err(Failure::wrong_use(
                        "a linked disk has the size of its device and no parent: leave out --size and --parent",
                    )),
                    None => Err(Failure::wrong_use(
                        "a linked disk stands for a physical one: name it with --device",
                    )),
                };
            }
            Kind::Fixed => DiskType::Fixed,
            Kind::Dynamic => DiskType::Dynamic,
            Kind::Differencing => {
                return match (&self.parent, self.size) {
                    (Some(parent), None) => Ok(Wanted::Child(parent)),
                    (None, _) => Err(Failure::wrong_use(
                        "a differencing disk is made over a parent: name it with --parent",
                    )),
                    (Some(_), Some(_)) => Err(Failure::wrong_use(
                        "a differencing disk has the size of its parent: leave out --size",
                    )),
                };
            }
        };
        if self.parent.is_some() {
            return Err(Failure::wrong_use(format!(
                "a {disk_type} disk has no parent: leave out --parent, or ask for --type differencing"
            )));
        }
        let size = self.size.ok_or_else(|| {
            Failure::wrong_use("how large is the disk? Say so with --size, such as 10GiB")
        })?;
        Ok(Wanted::Plain(disk_type, disk_size(size)?))
    }
}

/// A size that a disk can have.
pub(crate) fn disk_size(size: Size) -> Result<DiskSize, Failure> {
    DiskSize::from_bytes(size.0).map_err(|error| Failure::wrong_use(error.to_string()))
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let made = match arguments.wanted()? {
        Wanted::Plain(disk_type, size) => {
            let target = Target::new(&arguments.file, arguments.force, &[])?;
            let options = CreateOptions::new(disk_type, size);
            let meter = Meter::start("create", out)?;
            let mut progress = |step| meter.step(step);
            let (pool, name) = (target.pool(), target.name());
            let disk = Vhd::create_with(pool, name, &options, &mut progress)?;
            drop(meter);
            close(disk, &arguments.file)?;
            target.finish()?
        }
        Wanted::Linked(device) => {
            let target = Target::new(&arguments.file, arguments.force, &[])?;
            link(target.pool(), target.name(), device)?;
            target.finish()?
        }
        Wanted::Child(parent) => {
            let parent_disk = DiskPath::existing(parent)?;
            let search = arguments.search.resolve()?;
            let chain = super::chain_paths(&parent_disk, &search)?;
            let target = Target::new(&arguments.file, arguments.force, &chain)?;
            let pair = Pair::new(target.making(), &parent_disk)?;
            let options = ChildOptions {
                search,
                ..ChildOptions::new()
            };
            let (pool, rel) = &pair.child;
            let (parent_pool, parent_rel) = &pair.parent;
            let disk = Vhd::create_child(pool, rel, parent_pool, parent_rel, &options)?;
            close(disk, &arguments.file)?;
            target.finish()?
        }
    };
    out.done(&Description::of(&made)?, Description::human);
    Ok(Exit::Good)
}

fn close(disk: Vhd, path: &std::path::Path) -> Result<(), Failure> {
    disk.close().map_err(|error| Failure::disk(path, &error))
}
