//! The command line as a whole.

use clap::{Parser, Subcommand};

use crate::command::{
    check, clone, compact, compare, convert, create, generate, info, map, merge, mount, mounts,
    repair, reparent, resize, serve, undo, unmount,
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

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a new disk
    Create(create::Arguments),
    /// Tell what a disk says of itself
    Info(info::Arguments),
    /// Look for damage, without changing anything
    Check(check::Arguments),
    /// Save what is left of a damaged disk
    Repair(repair::Arguments),
    /// Copy what a disk shows into a new disk or a raw image
    Convert(convert::Arguments),
    /// Merge a differencing disk into its parent, or its chain into a new disk
    Merge(merge::Arguments),
    /// Make the file of a dynamic disk smaller
    Compact(compact::Arguments),
    /// Give a disk another size
    Resize(resize::Arguments),
    /// Make the same disk again, with an identity of its own
    Clone(clone::Arguments),
    /// Reconnect a differencing disk to its parent
    Reparent(reparent::Arguments),
    /// Start, commit or discard changes that go to an undo disk
    Undo(undo::Arguments),
    /// Serve a disk to NBD clients
    Serve(serve::Arguments),
    /// Make a disk a device of this machine, and mount a volume of it
    Mount(mount::Arguments),
    /// Unmount a disk and unplug it
    Unmount(unmount::Arguments),
    /// List the disks that are mounted
    Mounts(mounts::Arguments),
    /// List what is stored where on a disk
    Map(map::Arguments),
    /// Compare what two disks show
    Compare(compare::Arguments),
    /// Hold a disk that is mounted
    #[command(hide = true)]
    MountServer(server::Arguments),
    /// Write manual pages and shell completions
    #[command(hide = true)]
    Generate(generate::Arguments),
}
