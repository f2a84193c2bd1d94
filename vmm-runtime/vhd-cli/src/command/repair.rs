//! `vhd repair`

use std::path::{Path, PathBuf};

use clap::Args;
use paddock_vhd::{
    Gate, RepairReport, discard_repair_journal, repair, repair_in_place, undo_repair,
};
use serde::Serialize;

use crate::command::info::Description;
use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Meter;
use crate::size::human;
use crate::target::{Force, Target};

/// Save what is left of a damaged disk
///
/// Into a new disk, of the same type, size, identity and parent; the damaged
/// one stays as it is. Or in place: then what is overwritten is kept in
/// FILE.repair, and --undo puts it back until --forget.
///
/// Blocks whose place is not known any more are lost: they read as zeros, or
/// as the parent.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd repair damaged.vhd saved.vhd
  vhd repair --in-place damaged.vhd
  vhd repair --undo damaged.vhd
  vhd repair --forget damaged.vhd")]
#[group(skip)]
pub(crate) struct Arguments {
    /// The damaged disk
    file: PathBuf,
    /// The new disk, in the same folder
    #[arg(required_unless_present_any = ["in_place", "undo", "forget"])]
    new: Option<PathBuf>,
    /// Repair the disk where it is
    #[arg(long, conflicts_with_all = ["new", "undo", "forget", "force"])]
    in_place: bool,
    /// Put back what a repair in place overwrote
    #[arg(long, conflicts_with_all = ["new", "forget", "force"])]
    undo: bool,
    /// Remove what a repair in place kept: it can't be undone any more
    #[arg(long, conflicts_with_all = ["new", "force"])]
    forget: bool,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    search: Search,
}

#[derive(Serialize)]
struct Answer {
    file: PathBuf,
    target: PathBuf,
    #[serde(flatten)]
    report: RepairReport,
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let disk = DiskPath::existing(&arguments.file)?;
    if arguments.undo || arguments.forget {
        if arguments.undo {
            undo_repair(&disk.pool, &disk.name, Gate::open())?;
        } else {
            discard_repair_journal(&disk.pool, &disk.name)?;
        }
        // What was put back may be damaged: then there is nothing to tell.
        if let Ok(description) = Description::of(&disk) {
            out.done(&description, Description::human);
        }
        return Ok(Exit::Good);
    }
    let (target, report) = match &arguments.new {
        Some(new) => to_new(&disk, arguments, new, out)?,
        None => {
            let meter = Meter::start("repair", out)?;
            let gate = Gate::open();
            let report =
                repair_in_place(&disk.pool, &disk.name, gate, &mut |step| meter.step(step));
            drop(meter);
            (disk.path().to_owned(), report.map_err(cut_off)?)
        }
    };
    let answer = Answer {
        file: disk.path().to_owned(),
        target,
        report,
    };
    out.done(&answer, human_text);
    Ok(Exit::Good)
}

/// A repair in place that is cancelled has begun.
fn cut_off(error: paddock_vhd::OperationError) -> Failure {
    match error {
        paddock_vhd::OperationError::Cancelled => Failure::new(
            Exit::Cancelled,
            "cancelled; if it had begun to write, repair the disk again, or put it back with --undo",
        ),
        error => error.into(),
    }
}

fn to_new(
    disk: &DiskPath,
    arguments: &Arguments,
    new: &Path,
    out: &Output,
) -> Result<(PathBuf, RepairReport), Failure> {
    let sources = std::slice::from_ref(&arguments.file);
    let target = Target::new(new, arguments.force, sources)?;
    if target.making().path().parent() != disk.path().parent() {
        return Err(Failure::wrong_use(format!(
            "{}: a disk is repaired within its folder; name a file in {}",
            new.display(),
            disk.pool.path().display()
        )));
    }
    let meter = Meter::start("repair", out)?;
    let search = arguments.search.resolve()?;
    let (pool, name) = (&disk.pool, &disk.name);
    let report = repair(
        pool,
        name,
        target.name(),
        Gate::open(),
        &search,
        &mut |step| meter.step(step),
    )?;
    drop(meter);
    Ok((target.finish()?.path().to_owned(), report))
}

fn human_text(answer: &Answer) -> String {
    let mut text = if answer.file == answer.target {
        format!(
            "{}: repaired, {} moved; `vhd repair --undo` puts back how it was, `--forget` removes what that takes",
            answer.file.display(),
            human(answer.report.copied_bytes)
        )
    } else {
        format!(
            "{}: {} saved into {}",
            answer.file.display(),
            human(answer.report.copied_bytes),
            answer.target.display()
        )
    };
    for (what, blocks) in [
        ("lost", &answer.report.lost_blocks),
        ("doubtful", &answer.report.doubtful_blocks),
    ] {
        if !blocks.is_empty() {
            let list: Vec<_> = blocks.iter().take(20).map(u32::to_string).collect();
            let more = if blocks.len() > list.len() {
                ", ..."
            } else {
                ""
            };
            text.push_str(&format!(
                "\n{} blocks {what}: {}{more}",
                blocks.len(),
                list.join(", ")
            ));
        }
    }
    text
}
