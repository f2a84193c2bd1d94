//! `vhd compare`

use std::path::{Path, PathBuf};

use clap::Args;
use paddock_vhd::{Access, BlockDevice, ExtentKind, Progress};
use serde::Serialize;

use crate::disk_path::Search;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Meter;
use crate::source::{Format, Source};

/// Compare what two disks show
///
/// Ends with exit code 0 if they show the same, and with 5 if not. Where one
/// is longer, it must have zeros there; with --strict that is a difference.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd compare fixed.vhd dynamic.vhd
  vhd compare --against raw disk.vhd disk.img")]
pub(crate) struct Arguments {
    /// A disk
    first: PathBuf,
    /// Another disk
    second: PathBuf,
    /// What the first is; never guessed
    #[arg(long, value_name = "FORMAT", default_value = "vhd")]
    from: Format,
    /// What the second is; never guessed
    #[arg(long, value_name = "FORMAT", default_value = "vhd")]
    against: Format,
    /// Disks of different sizes differ
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    search: Search,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    equal: bool,
    /// The first byte that differs.
    offset: Option<u64>,
    first_size: u64,
    second_size: u64,
}

/// How much is compared at once.
const CHUNK: usize = 1 << 20;

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let open =
        |path: &Path, format| Source::open(path, format, Access::ReadOnly, &arguments.search);
    let first = open(&arguments.first, arguments.from)?;
    let second = open(&arguments.second, arguments.against)?;
    let (a, b) = (first.device(), second.device());
    let meter = Meter::start("compare", out)?;
    let longest = a.size().max(b.size());
    let shortest = a.size().min(b.size());
    let mut offset = None;
    if arguments.strict && a.size() != b.size() {
        offset = Some(shortest);
    }
    let mut sides = (
        Side::new(a, &arguments.first),
        Side::new(b, &arguments.second),
    );
    let mut at = 0;
    while at < longest && offset.is_none_or(|offset| at < offset) {
        let len = (longest - at).min(CHUNK as u64) as usize;
        let x = sides.0.read(at, len)?;
        let y = sides.1.read(at, len)?;
        let differs = match (x, y) {
            (None, None) => None,
            (Some(bytes), None) | (None, Some(bytes)) => bytes.iter().position(|&byte| byte != 0),
            (Some(x), Some(y)) if x == y => None,
            (Some(x), Some(y)) => x.iter().zip(y).position(|(x, y)| x != y),
        };
        if let Some(differs) = differs {
            offset = Some(at + differs as u64);
            break;
        }
        at += len as u64;
        let step = Progress {
            done: at,
            total: longest,
        };
        if meter.step(step).is_break() {
            return Err(Failure::cancelled());
        }
    }
    drop(meter);
    let answer = Answer {
        equal: offset.is_none(),
        offset,
        first_size: a.size(),
        second_size: b.size(),
    };
    out.done(&answer, human_text);
    Ok(if answer.equal {
        Exit::Good
    } else {
        Exit::Differ
    })
}

fn human_text(answer: &Answer) -> String {
    let sizes = if answer.first_size == answer.second_size {
        String::new()
    } else {
        format!(
            " (the first has {} bytes, the second {})",
            answer.first_size, answer.second_size
        )
    };
    match answer.offset {
        Some(offset) => format!("they differ at byte {offset}{sizes}"),
        None => format!("they show the same{sizes}"),
    }
}

/// One of the two, read from front to back.
struct Side<'a> {
    disk: &'a dyn BlockDevice,
    path: &'a Path,
    buf: Vec<u8>,
    /// Up to where there are only zeros, as far as that is known.
    zeros: u64,
    /// Up to where there is data, as far as that is known.
    data: u64,
}

impl<'a> Side<'a> {
    fn new(disk: &'a dyn BlockDevice, path: &'a Path) -> Side<'a> {
        Side {
            disk,
            path,
            buf: vec![0; CHUNK],
            zeros: 0,
            data: 0,
        }
    }

    /// `len` bytes from `at` on; `None` if they are zeros that need not be
    /// read. Zeros follow the end of the disk.
    fn read(&mut self, at: u64, len: usize) -> Result<Option<&[u8]>, Failure> {
        let failed = |error| Failure::disk(self.path, &error);
        let end = (at + len as u64).min(self.disk.size());
        if at >= end {
            return Ok(None);
        }
        if at >= self.zeros.max(self.data) {
            let status = self.disk.block_status(at, self.disk.size() - at);
            if let Some(extent) = status.map_err(failed)?.first() {
                let until = extent.offset + extent.len;
                match extent.kind {
                    ExtentKind::Data => self.data = until,
                    ExtentKind::Zero | ExtentKind::Hole => self.zeros = until,
                }
            }
        }
        if end <= self.zeros {
            return Ok(None);
        }
        let inside = (end - at) as usize;
        self.disk
            .read_at(&mut self.buf[..inside], at)
            .map_err(failed)?;
        self.buf[inside..len].fill(0);
        Ok(Some(&self.buf[..len]))
    }
}
