//! `paddock-bench`: measures a whole lab from outside and writes JSON beside a table.
//!
//! Figures come from a watching client and from the API server's own metrics. Nothing is asserted about time: a goal that is
//! missed is said to be missed. It must not know how operator or agent work.

mod api_metrics;
mod apply;
mod guest;
mod objects;
mod report;
mod steady;
mod watching;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use report::Report;
use std::path::PathBuf;

/// Measures Paddock on a lab of its own.
#[derive(Parser)]
#[command(version, after_help = "Example: paddock-bench all --out target/bench")]
struct Arguments {
    /// What to measure
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
    /// Folder for the JSON files
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    /// A tenth of the machines and of the waits: to see that it works, not for figures
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Apply,
    Steady,
    Guest,
    All,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("creating {}", arguments.out.display()))?;
    let wanted = |what| arguments.what == What::All || arguments.what == what;
    let mut reports: Vec<Report> = Vec::new();
    if wanted(What::Apply) {
        reports.push(apply::measure(arguments.quick).await?);
    }
    if wanted(What::Steady) {
        reports.push(steady::measure(arguments.quick).await?);
    }
    if wanted(What::Guest) {
        reports.push(guest::measure(arguments.quick).await?);
    }
    for report in &reports {
        report.write(&arguments.out)?;
        report.print();
    }
    Ok(())
}
