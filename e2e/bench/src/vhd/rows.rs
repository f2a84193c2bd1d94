//! Samples, medians, goals.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::Scale;
use crate::files::Files;
use crate::programs::Programs;

/// One figure of one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// In the table's unit.
    pub value: f64,
    /// The server's processor time for each request: what a busy machine changes least.
    pub cpu_microseconds: Option<f64>,
}

impl From<f64> for Sample {
    fn from(value: f64) -> Self {
        Sample {
            value,
            cpu_microseconds: None,
        }
    }
}

/// The samples of one program.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Contender {
    /// Who: `vhd`, `vhd raw`, `qemu vpc`, ….
    pub name: &'static str,
    /// One per round.
    pub samples: Vec<f64>,
    /// Their median.
    pub median: f64,
    /// Median of the server's processor time for each request, for what is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_microseconds: Option<f64>,
}

/// What one table's first contender should reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At least this many times another contender's figure.
    AtLeast(f64, &'static str),
    /// More than another contender's figure.
    Past(&'static str),
    /// At most this many times another contender's figure.
    AtMost(f64, &'static str),
    /// At most this much, in the table's unit.
    Within(f64),
}

/// A goal with what was found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verdict {
    goal: String,
    found: f64,
    met: bool,
}

/// One thing that was measured.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Table {
    name: String,
    unit: &'static str,
    contenders: Vec<Contender>,
    goals: Vec<Verdict>,
}

/// The middle one; the mean of the two middle ones; 0 for none.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2);
    let lower = sorted.get(sorted.len().saturating_sub(1) / 2);
    match (lower, upper) {
        (Some(lower), Some(upper)) => (lower + upper) / 2.0,
        _ => 0.0,
    }
}

impl Table {
    /// Asks `measure` for a sample of each contender in turn, as many times as there are rounds. Each round begins with
    /// another one: who comes first finds other things in caches, and on the disk, than who comes last.
    pub fn measure(
        name: impl Into<String>,
        unit: &'static str,
        rounds: u32,
        contenders: &[&'static str],
        goals: &[Goal],
        mut measure: impl FnMut(&'static str) -> Result<Sample>,
    ) -> Result<Self> {
        let name = name.into();
        eprintln!("{name} ...");
        let mut found: Vec<Contender> = contenders
            .iter()
            .map(|&name| Contender {
                name,
                samples: Vec::new(),
                median: 0.0,
                cpu_microseconds: None,
            })
            .collect();
        let mut times = vec![Vec::new(); contenders.len()];
        for round in 0..rounds as usize {
            let mut turns: Vec<_> = found.iter_mut().zip(&mut times).collect();
            let first = round % turns.len().max(1);
            turns.rotate_left(first);
            for (contender, times) in turns {
                let sample = measure(contender.name)
                    .with_context(|| format!("{name}: measuring {}", contender.name))?;
                contender.samples.push(sample.value);
                times.extend(sample.cpu_microseconds);
            }
        }
        for (contender, times) in found.iter_mut().zip(&times) {
            contender.cpu_microseconds = (!times.is_empty()).then(|| median(times));
        }
        for contender in &mut found {
            contender.median = median(&contender.samples);
        }
        let goals = goals.iter().map(|goal| goal.judge(&found, unit)).collect();
        Ok(Table {
            name,
            unit,
            contenders: found,
            goals,
        })
    }
}

impl Goal {
    fn judge(self, contenders: &[Contender], unit: &str) -> Verdict {
        let ours = contenders.first().map_or(0.0, |first| first.median);
        let over = |name: &str| {
            let other = contenders.iter().find(|other| other.name == name);
            other.map_or(f64::NAN, |other| ours / other.median)
        };
        // Without the other's figure the ratio is no number, and no goal is met.
        let (goal, found, met) = match self {
            Goal::AtLeast(ratio, name) => (
                format!(">= {ratio} x {name}"),
                over(name),
                over(name) >= ratio,
            ),
            Goal::Past(name) => (format!("> {name}"), over(name), over(name) > 1.0),
            Goal::AtMost(ratio, name) => (
                format!("<= {ratio} x {name}"),
                over(name),
                over(name) <= ratio,
            ),
            Goal::Within(most) => (format!("<= {most} {unit}"), ours, ours <= most),
        };
        Verdict { goal, found, met }
    }
}

/// All tables, and where they come from.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    time: String,
    quick: bool,
    machine: Machine,
    rounds: u32,
    seconds: u32,
    disk_bytes: u64,
    convert_bytes: u64,
    tables: Vec<Table>,
}

/// Where a bench ran.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Machine {
    cores: usize,
    kernel: String,
    qemu: String,
    /// The magic number of the file system.
    file_system: String,
    /// Others' work at the end of the bench: much of it makes figures worthless.
    load_average: String,
}

impl Report {
    pub fn new(
        programs: &Programs,
        files: &Files,
        quick: bool,
        scale: Scale,
        tables: Vec<Table>,
    ) -> Self {
        let kernel = rustix::system::uname();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Report {
            time: jiff::Timestamp::now().to_string(),
            quick,
            machine: Machine {
                cores: std::thread::available_parallelism().map_or(0, usize::from),
                kernel: kernel.release().to_string_lossy().into_owned(),
                qemu: programs.qemu_version(),
                file_system: files.file_system(),
                load_average: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
            },
            rounds: scale.rounds,
            seconds: scale.seconds,
            disk_bytes: scale.size,
            convert_bytes: scale.convert_size,
            tables,
        }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let note = if self.quick {
            " (quick: not for figures)"
        } else {
            ""
        };
        writeln!(
            f,
            "\nvhd beside {}, {} rounds{note}",
            self.machine.qemu, self.rounds
        )?;
        for table in &self.tables {
            write!(f, "{table}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures: Vec<String> = self
            .contenders
            .iter()
            .map(|contender| format!("{} {}", contender.name, figure(contender.median)))
            .collect();
        writeln!(f, "  {} ({})", self.name, self.unit)?;
        writeln!(f, "    {}", figures.join("   "))?;
        let times: Vec<String> = self
            .contenders
            .iter()
            .filter_map(|contender| {
                let time = contender.cpu_microseconds?;
                Some(format!("{} {}", contender.name, figure(time)))
            })
            .collect();
        if !times.is_empty() {
            writeln!(f, "    server's CPU per request, us: {}", times.join("   "))?;
        }
        for goal in &self.goals {
            let met = if goal.met { "met" } else { "missed" };
            let found = format!("{:.2}", goal.found);
            writeln!(f, "    goal {:<24} {found:>9}  {met}", goal.goal)?;
        }
        Ok(())
    }
}

/// Three digits that matter.
fn figure(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn contenders_take_turns_and_goals_are_judged_by_medians() {
        let mut order = Vec::new();
        let goals = [
            Goal::AtLeast(3.0, "b"),
            Goal::AtLeast(3.1, "b"),
            Goal::Past("b"),
            Goal::AtMost(2.9, "b"),
            Goal::AtMost(3.0, "b"),
            Goal::Within(30.0),
            Goal::Within(29.0),
            Goal::AtLeast(0.0, "nobody"),
        ];
        let table = Table::measure("t", "s", 3, &["a", "b"], &goals, |name| {
            order.push(name);
            // a: 30, 28, 32; b: 10, 10, 10.
            let turn = order.len();
            Ok(match (name, turn) {
                ("a", 1) => 30.0.into(),
                ("a", 4) => 28.0.into(),
                ("a", _) => 32.0.into(),
                _ => Sample {
                    value: 10.0,
                    cpu_microseconds: Some(turn as f64),
                },
            })
        })
        .unwrap();
        assert_eq!(order, ["a", "b", "b", "a", "a", "b"]);
        let met: Vec<bool> = table.goals.iter().map(|goal| goal.met).collect();
        assert_eq!(met, [true, false, true, false, true, true, false, false]);
        assert_eq!(
            table.to_string(),
            "  t (s)\n    a 30.0   b 10.0\n    server's CPU per request, us: b 3.00\n\
             \x20   goal >= 3 x b                      3.00  met\n\
             \x20   goal >= 3.1 x b                    3.00  missed\n\
             \x20   goal > b                           3.00  met\n\
             \x20   goal <= 2.9 x b                    3.00  missed\n\
             \x20   goal <= 3 x b                      3.00  met\n\
             \x20   goal <= 30 s                      30.00  met\n\
             \x20   goal <= 29 s                      30.00  missed\n\
             \x20   goal >= 0 x nobody                  NaN  missed\n"
        );
    }
}
