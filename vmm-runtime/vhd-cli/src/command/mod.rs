//! The subcommands, a file each.

pub(crate) mod check;
pub(crate) mod clone;
pub(crate) mod compact;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod generate;
pub(crate) mod info;
pub(crate) mod map;
pub(crate) mod merge;
pub(crate) mod mount;
pub(crate) mod mounts;
pub(crate) mod repair;
pub(crate) mod reparent;
pub(crate) mod resize;
pub(crate) mod serve;
pub(crate) mod undo;
pub(crate) mod unmount;

use std::path::PathBuf;

use paddock_vhd::{OpenError, ParentSearch, inspect_chain};

use crate::arguments::Command;
use crate::disk_path::DiskPath;
use crate::failure::{Exit, Failure};
use crate::mounting::server;
use crate::output::Output;

/// Does what was asked for.
pub(crate) fn run(command: &Command, out: &Output) -> Result<Exit, Failure> {
    match command {
        Command::Create(arguments) => create::run(arguments, out),
        Command::Info(arguments) => info::run(arguments, out),
        Command::Check(arguments) => check::run(arguments, out),
        Command::Repair(arguments) => repair::run(arguments, out),
        Command::Convert(arguments) => convert::run(arguments, out),
        Command::Merge(arguments) => merge::run(arguments, out),
        Command::Compact(arguments) => compact::run(arguments, out),
        Command::Resize(arguments) => resize::run(arguments, out),
        Command::Clone(arguments) => clone::run(arguments, out),
        Command::Mount(arguments) => mount::run(arguments, out),
        Command::Unmount(arguments) => unmount::run(arguments, out),
        Command::Mounts(_) => mounts::run(out),
        Command::MountServer(arguments) => server::run(arguments, out),
        Command::Reparent(arguments) => reparent::run(arguments, out),
        Command::Undo(arguments) => undo::run(arguments, out),
        Command::Serve(arguments) => serve::run(arguments, out),
        Command::Map(arguments) => map::run(arguments, out),
        Command::Compare(arguments) => compare::run(arguments, out),
        Command::Completions(arguments) => completions::run(arguments),
        Command::Generate(arguments) => generate::run(arguments),
    }
}

/// The files that a disk is made of, itself and its parents: none of them may
/// be replaced by what is made of it.
fn chain_paths(disk: &DiskPath, search: &ParentSearch) -> Result<Vec<PathBuf>, OpenError> {
    let chain = inspect_chain(&disk.pool, &disk.name, search)?;
    Ok(chain
        .into_iter()
        .map(|(pool, rel, _)| pool.path().join(rel))
        .collect())
}

/// Where the parent of a disk is, if it is found.
fn parent_path(disk: &DiskPath, search: &ParentSearch) -> Option<PathBuf> {
    chain_paths(disk, search).ok()?.into_iter().nth(1)
}
