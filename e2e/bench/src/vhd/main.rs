//! `paddock-bench-vhd`: what the `vhd` command serves, converts and checks, beside QEMU with the same files.
//!
//! Ours and QEMU's programs run in turn, in the same folder, for several rounds; medians are compared. Nothing is asserted
//! about time: a goal that is missed is said to be missed. It must not know how `vhd` works: it starts programs.

mod files;
mod fio;
mod full_disk;
mod programs;
mod rows;
mod signals;
mod tables;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

use crate::files::Files;
use crate::programs::Programs;

/// Measures `vhd` beside QEMU.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example: paddock-bench-vhd --vhd target/release/vhd --out target/bench"
)]
struct Arguments {
    /// The `vhd` program to measure, a release build
    #[arg(long, value_name = "FILE")]
    vhd: PathBuf,
    /// Folder for vhd.json
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    /// Folder for the disks, removed at the end, by Ctrl-C as well; put it on the file system to measure on
    #[arg(long, default_value = "target/bench/vhd-disks", value_name = "DIR")]
    folder: PathBuf,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// How long one client runs, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// The disks that are read and overwritten, in MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=65536))]
    size: u64,
    /// The image that is converted, in MiB, half of it random bytes
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(64..=65536))]
    convert_size: u64,
    /// Only the tables whose name contains this
    #[arg(long, default_value = "", value_name = "TEXT")]
    only: String,
    /// One short round with small disks: to see that it works, not for figures
    #[arg(long)]
    quick: bool,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Rounds of each table.
    pub rounds: u32,
    /// Seconds of each client.
    pub seconds: u32,
    /// Bytes of the disks that are read and overwritten.
    pub size: u64,
    /// Bytes of the image that is converted.
    pub convert_size: u64,
    /// Seconds of each client whose writes allocate: at least as long as it takes to see files grow, and be written back.
    pub allocation_seconds: u32,
}

impl Arguments {
    fn scale(&self) -> Scale {
        if self.quick {
            return Scale {
                rounds: 1,
                seconds: 1,
                size: 128 << 20,
                convert_size: 256 << 20,
                allocation_seconds: 1,
            };
        }
        Scale {
            rounds: self.rounds,
            seconds: self.seconds,
            size: self.size << 20,
            convert_size: self.convert_size << 20,
            allocation_seconds: self.seconds.max(5),
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let scale = arguments.scale();
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("creating {}", arguments.out.display()))?;
    let programs = Programs::new(&arguments.vhd)?;
    signals::listen()?;
    let files = Files::new(&arguments.folder)?;
    let tables = tables::measure(&programs, &files, scale, &arguments.only)?;
    let report = rows::Report::new(&programs, &files, arguments.quick, scale, tables);
    report.write(&arguments.out.join("vhd.json"))?;
    print!("{report}");
    Ok(())
}
