//! A bench's result, as JSON and as a table.

use anyhow::{Context, Result};
use serde::Serialize;
use std::{fs, path::Path};

/// One figure with its goal and what others need for the same.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The value, in `unit`.
    pub value: f64,
    /// Unit: ms, writes, KB, ….
    pub unit: &'static str,
    /// The most it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<f64>,
    /// The same figure of KubeVirt as its project publishes it, on hardware of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubevirt: Option<&'static str>,
}

impl Figure {
    /// A figure without a goal.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            goal: None,
            kubevirt: None,
        }
    }

    /// The most it should be.
    pub fn goal(self, goal: f64) -> Self {
        Self {
            goal: Some(goal),
            ..self
        }
    }

    /// KubeVirt's published figure.
    pub fn kubevirt(self, text: &'static str) -> Self {
        Self {
            kubevirt: Some(text),
            ..self
        }
    }

    fn verdict(&self) -> &'static str {
        match self.goal {
            None => "",
            Some(goal) if self.value <= goal => "met",
            Some(_) => "missed",
        }
    }
}

/// A bench's result.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Name of the bench, and of its file.
    pub name: &'static str,
    /// When it ran (RFC 3339).
    pub time: String,
    /// Whether it ran with a tenth of the machines.
    pub quick: bool,
    /// Where it ran.
    pub machine: Machine,
    /// What was measured.
    pub figures: Vec<Figure>,
}

/// Where a bench ran.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    cores: usize,
    memory_mebibytes: u64,
    kernel: String,
}

impl Report {
    /// A result with the facts of this machine.
    pub fn new(name: &'static str, quick: bool, figures: Vec<Figure>) -> Self {
        let uname = rustix::system::uname();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = memory.lines().find_map(|l| {
            l.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        });
        Self {
            name,
            time: jiff::Timestamp::now().to_string(),
            quick,
            machine: Machine {
                cores: std::thread::available_parallelism().map_or(0, usize::from),
                memory_mebibytes: total.unwrap_or(0) / 1024,
                kernel: uname.release().to_string_lossy().into_owned(),
            },
            figures,
        }
    }

    /// Writes `<folder>/<name>.json`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(format!("{}.json", self.name));
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Prints the table.
    pub fn print(&self) {
        println!(
            "\n{}{}",
            self.name,
            if self.quick {
                " (quick: not for figures)"
            } else {
                ""
            }
        );
        println!(
            "  {:<52} {:>10} {:<7} {:>8} {:<7} KubeVirt",
            "figure", "value", "unit", "goal", ""
        );
        for f in &self.figures {
            let goal = f.goal.map(|g| format!("{g}")).unwrap_or_default();
            println!(
                "  {:<52} {:>10.1} {:<7} {:>8} {:<7} {}",
                f.name,
                f.value,
                f.unit,
                goal,
                f.verdict(),
                f.kubevirt.unwrap_or_default()
            );
        }
    }
}

/// The value below which `percent` of the sorted values lie (nearest rank); 0 for none.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 50), 50.0);
        assert_eq!(percentile(&values, 95), 95.0);
        assert_eq!(percentile(&values, 100), 100.0);
        assert_eq!(percentile(&[7.0], 50), 7.0);
        assert_eq!(percentile(&[], 50), 0.0);
    }
}
