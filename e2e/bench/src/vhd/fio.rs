//! fio as a client.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::programs::Server;
use crate::rows::Sample;
use crate::signals;

/// What the client does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// randread, randwrite, read, write, randrw.
    pub pattern: &'static str,
    /// Of each request, in bytes.
    pub block: u64,
    /// Requests begin at multiples of this, in bytes.
    pub align: u64,
    /// Requests at a time.
    pub depth: u32,
    /// Bytes of the disk that are used, from its start.
    pub span: u64,
    /// After how many writes the disk is flushed; never, if `None`.
    pub flush_every: Option<u32>,
    /// When it ends.
    pub until: Until,
}

/// When a client ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Seconds(u32),
    Requests(u64),
}

impl Load {
    /// Requests of 4 KiB anywhere in the first `span` bytes.
    pub fn small(pattern: &'static str, depth: u32, span: u64, seconds: u32) -> Self {
        Load {
            pattern,
            block: 4096,
            align: 4096,
            depth,
            span,
            flush_every: None,
            until: Until::Seconds(seconds),
        }
    }
}

/// Requests per second, and what they took of the server.
pub(crate) fn run(server: &Server, load: Load, folder: &Path) -> Result<Sample> {
    let before = server.cpu_seconds()?;
    let output = folder.join("fio.json");
    let mut command = Command::new("fio");
    command
        .args(["--name=bench", "--ioengine=nbd", "--output-format=json"])
        .args(["--norandommap", "--randrepeat=0", "--group_reporting"])
        .arg(format!("--output={}", output.display()))
        .arg(format!("--uri={}", server.uri()))
        .arg(format!("--rw={}", load.pattern))
        .arg(format!("--bs={}", load.block))
        .arg(format!("--blockalign={}", load.align))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--size={}", load.span))
        .current_dir(folder);
    if let Some(writes) = load.flush_every {
        command.arg(format!("--fsync={writes}"));
    }
    match load.until {
        Until::Seconds(seconds) => {
            command.args(["--time_based".to_owned(), format!("--runtime={seconds}")])
        }
        Until::Requests(count) => command.arg(format!("--number_ios={count}")),
    };
    let ended = command.output().context("starting fio")?;
    signals::check()?;
    ensure!(
        ended.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
    let said = std::fs::read_to_string(&output)
        .with_context(|| format!("reading {}", output.display()))?;
    let (rate, requests) = figures(&said).with_context(|| format!("{command:?}"))?;
    Ok(Sample {
        value: rate,
        cpu_microseconds: Some((server.cpu_seconds()? - before) * 1e6 / requests),
    })
}

/// Reads and writes of the only job: per second, and all of them.
fn figures(said: &str) -> Result<(f64, f64)> {
    // A client may have something to say before fio begins.
    let start = said.find('{').context("no JSON in fio's report")?;
    let report: Value = serde_json::from_str(said.get(start..).unwrap_or_default())?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "fio found error {}", job["error"]);
    let both = |what: &str| -> Result<f64> {
        let of = |direction: &str| job[direction][what].as_f64().context("no figure from fio");
        Ok(of("read")? + of("write")?)
    };
    let (rate, requests) = (both("iops")?, both("total_ios")?);
    ensure!(rate > 0.0 && requests > 0.0, "fio did nothing");
    Ok((rate, requests))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_behind_what_else_is_said() {
        let said = r#"nbd: connected
            {"jobs": [{"error": 0,
                "read": {"iops": 10.5, "total_ios": 21},
                "write": {"iops": 2, "total_ios": 4}}]}"#;
        assert_eq!(figures(said).unwrap(), (12.5, 25.0));
        assert!(figures(&said.replace("\"error\": 0", "\"error\": 5")).is_err());
        assert!(figures("nothing").is_err());
        let none = said
            .replace("10.5", "0")
            .replace("\"iops\": 2", "\"iops\": 0");
        assert!(figures(&none).is_err());
    }
}
