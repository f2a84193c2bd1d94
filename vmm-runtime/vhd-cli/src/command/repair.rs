//! `vhd repair`

use std::path::PathBuf;

use clap::Args;
use paddock_vhd::{RepairReport, repair};
use serde::Serialize;

use crate::disk_path::DiskPath;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Meter;
use crate::size::human;
use crate::target::{Force, Target};

/// Save what is left of a damaged disk into a new one
///
/// The damaged disk stays as it is. The new one has the same type, size,
/// identity and parent. Blocks whose place is not known any more are lost:
/// they read as zeros, or as the parent.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd repair damaged.vhd saved.vhd")]
pub(crate) struct Arguments {
    /// The damaged disk
    file: PathBuf,
    /// The new disk, in the same folder
    new: PathBuf,
    #[command(flatten)]
    force: Force,
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
    let target = Target::new(
        &arguments.new,
        arguments.force,
        std::slice::from_ref(&arguments.file),
    )?;
    if target.making().path().parent() != disk.path().parent() {
        return Err(Failure::wrong_use(format!(
            "{}: a disk is repaired within its folder; name a file in {}",
            arguments.new.display(),
            disk.pool.path().display()
        )));
    }
    let meter = Meter::start("repair", out)?;
    let report = repair(&disk.pool, &disk.name, target.name(), &mut |step| {
        meter.step(step)
    })?;
    drop(meter);
    let made = target.finish()?;
    let answer = Answer {
        file: disk.path().to_owned(),
        target: made.path().to_owned(),
        report,
    };
    out.done(&answer, |answer| {
        let mut text = format!(
            "{}: {} saved into {}",
            answer.file.display(),
            human(answer.report.copied_bytes),
            answer.target.display()
        );
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
    });
    Ok(Exit::Good)
}
