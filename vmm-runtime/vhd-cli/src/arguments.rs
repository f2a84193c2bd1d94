//! The command line as a whole.

use clap::{Parser, Subcommand};

use crate::command::{
    check, clone, compact, compare, completions, convert, create, generate, info, map, merge,
    mount, mounts, repair, reparent, resize, serve, undo, unmount,
};
use crate::mounting::server;
use crate::output::Output;

/// Told in the help and in the manual.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    good
  1    wrong use: arguments, files that are not there or no VHDs, refusals
  2    damaged: a disk or its chain of parents
  3    busy: someone else uses a disk
  4    no room: a file system is too full
  5    `compare` found a difference
  6    the system refused: an error of input or output, or missing rights
  130  cancelled, by Ctrl-C or another signal

Sizes are bytes, or end with KiB, MiB, GiB, TiB, or shorter K, M, G, T (units of 1024).";

/// Makes, looks at, changes, serves and mounts virtual hard disks (VHD).
#[derive(Debug, Parser)]
#[command(name = "vhd", version, after_help = EXIT_CODES, subcommand_required = true, arg_required_else_help = false)]
pub(crate) struct Arguments {
    /// Write results and errors as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Say nothing but what was asked for, and errors
    #[arg(long, short, global = true)]
    quiet: bool,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    pub(crate) fn output(&self) -> Output {
        Output::new(self.json, self.quiet)
    }
}

/// The subcommands. Their arguments have the texts of the help.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Create(create::Arguments),
    Info(info::Arguments),
    Check(check::Arguments),
    Repair(repair::Arguments),
    Convert(convert::Arguments),
    Merge(merge::Arguments),
    Compact(compact::Arguments),
    Resize(resize::Arguments),
    Clone(clone::Arguments),
    Reparent(reparent::Arguments),
    Undo(undo::Arguments),
    Serve(serve::Arguments),
    Mount(mount::Arguments),
    Unmount(unmount::Arguments),
    Mounts(mounts::Arguments),
    Map(map::Arguments),
    Compare(compare::Arguments),
    Completions(completions::Arguments),
    #[command(hide = true)]
    MountServer(server::Arguments),
    #[command(hide = true)]
    Generate(generate::Arguments),
}
