//! `vhd check`

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use paddock_vhd::{CheckReport, Severity, check};
use serde::Serialize;

use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Meter;
use crate::size::human;

/// Look for damage, without changing anything
///
/// Reads the metadata of the disk, and looks whether its parents are there
/// and as it knows them. Ends with exit code 2 if there are errors; warnings
/// and notes are told, and end with 0: the disk works.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd check disk.vhd
  vhd --quiet check disk.vhd || echo damaged
  vhd --json check disk.vhd | jq '.findings[].message'")]
pub(crate) struct Arguments {
    /// The disk
    file: PathBuf,
    #[command(flatten)]
    search: Search,
}

#[derive(Serialize)]
struct Answer {
    file: PathBuf,
    worst: Option<Severity>,
    #[serde(flatten)]
    report: CheckReport,
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let disk = DiskPath::existing(&arguments.file)?;
    let search = arguments.search.resolve()?;
    let meter = Meter::start("check", out)?;
    let report = check(&disk.pool, &disk.name, &search, &mut |step| {
        meter.step(step)
    })?;
    drop(meter);
    let worst = report.worst();
    let answer = Answer {
        file: disk.path().to_owned(),
        worst,
        report,
    };
    out.done(&answer, human_text);
    Ok(match worst {
        Some(Severity::Error) => Exit::Damaged,
        _ => Exit::Good,
    })
}

fn human_text(answer: &Answer) -> String {
    let Answer { file, report, .. } = answer;
    let mut text = String::new();
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        let mut place = String::new();
        if let Some(block) = finding.block {
            let _ = write!(place, "block {block}: ");
        }
        if let Some(offset) = finding.offset {
            let _ = write!(place, "at byte {offset}: ");
        }
        let _ = writeln!(text, "{severity}: {place}{}", finding.message);
    }
    let all: u64 = report.counts.values().sum();
    let listed = report.findings.len() as u64;
    if all > listed {
        let _ = writeln!(text, "... and {} more", all - listed);
    }
    let verdict = match answer.worst {
        None => "no flaw",
        Some(Severity::Note) => "works",
        Some(Severity::Warning) => "works, with warnings",
        Some(Severity::Error) => {
            "damaged: `vhd repair FILE NEW` saves what is left into a new disk"
        }
    };
    let kind = match report.disk_type {
        Some(kind) => kind.to_string(),
        None => "type unknown".to_owned(),
    };
    let _ = write!(
        text,
        "{}: {kind}, {} blocks, {} leaked: {verdict}",
        file.display(),
        report.allocated_blocks,
        human(report.leaked_bytes)
    );
    text
}
