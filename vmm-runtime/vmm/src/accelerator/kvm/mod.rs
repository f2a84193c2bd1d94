//! KVM, tried with bare guests: the process that runs them, and the one that reads what it wrote.

mod guest;
mod machine;

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::guest::{Guest, GuestResult};
use self::machine::Kvm;
use super::ProbeOptions;
use super::bounded_process;
use super::classify;
use super::report::{KvmReport, KvmStep, KvmVerdict, StepOutcome};

/// A line of the process that runs the guests. Written as it happens, so that a hang leaves behind what hung.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub(super) enum Event {
    /// There is no KVM to run guests in.
    Unavailable { reason: String },
    /// The step's guest is about to run.
    StepStarted { step: KvmStep },
    /// The step's guest has run, or not.
    StepFinished { step: KvmStep, outcome: StepOutcome },
    /// The speed of the timed loop.
    Rate {
        #[serde(rename = "instructionsPerSecond")]
        instructions_per_second: u64,
    },
    /// No more follows.
    Done,
}

/// Runs the bare guests in a process of their own, until `deadline`, and judges.
pub(super) fn probe(options: &ProbeOptions, deadline: Instant) -> KvmReport {
    let mut command = Command::new(&options.kvm_program);
    command.args(&options.kvm_arguments).stdin(Stdio::null());
    match bounded_process::run(&mut command, deadline) {
        Ok(outcome) => classify::kvm(&parse(&outcome.stdout), &outcome.end),
        Err(error) => KvmReport {
            verdict: KvmVerdict::None,
            reason: format!("{} cannot be run: {error}", options.kvm_program.display()),
            instructions_per_second: None,
            steps: Vec::new(),
        },
    }
}

/// The events of an output, up to the first line that is none: the last one may be cut short.
fn parse(output: &[u8]) -> Vec<Event> {
    output
        .split(|byte| *byte == b'\n')
        .map_while(|line| serde_json::from_slice(line).ok())
        .collect()
}

/// Runs every guest, here and now, without a deadline, and writes an event a line.
pub(super) fn run_guests(output: &mut dyn Write) -> io::Result<()> {
    match Kvm::open() {
        Err(reason) => emit(output, &Event::Unavailable { reason })?,
        Ok(kvm) => {
            for step in KvmStep::ALL {
                emit(output, &Event::StepStarted { step })?;
                let outcome = if step == KvmStep::Rate {
                    match measure_rate(&kvm) {
                        Ok(instructions_per_second) => {
                            emit(
                                output,
                                &Event::Rate {
                                    instructions_per_second,
                                },
                            )?;
                            StepOutcome::Passed
                        }
                        Err(reason) => StepOutcome::Failed(reason),
                    }
                } else {
                    outcome(&kvm, guest::of(step))
                };
                emit(output, &Event::StepFinished { step, outcome })?;
            }
        }
    }
    emit(output, &Event::Done)
}

fn emit(output: &mut dyn Write, event: &Event) -> io::Result<()> {
    serde_json::to_writer(&mut *output, event)?;
    output.write_all(b"\n")?;
    output.flush()
}

fn outcome(kvm: &Kvm, guest: Guest) -> StepOutcome {
    if !kvm.offers(guest.needs) {
        return StepOutcome::NotOffered;
    }
    match kvm.run(&guest, 0) {
        Ok(result) => judge(guest.expected, &result),
        Err(reason) => StepOutcome::Failed(reason),
    }
}

fn judge(expected: &[u32], result: &GuestResult) -> StepOutcome {
    if result.reported() == expected {
        StepOutcome::Passed
    } else if let Some(exception) = result.exception() {
        StepOutcome::Failed(format!("raised {exception}"))
    } else {
        StepOutcome::Failed(format!(
            "reported {:?}, a processor reports {expected:?}",
            result.reported()
        ))
    }
}

/// Instructions a second of the timed loop. Short loops first, so that neither a slow KVM takes long nor a fast one
/// is judged by the cost of its exits.
fn measure_rate(kvm: &Kvm) -> Result<u64, String> {
    const SHORTEST: Duration = Duration::from_millis(20);
    let mut iterations: u64 = 50_000;
    loop {
        let guest = guest::of(KvmStep::Rate);
        let result = kvm.run(&guest, iterations)?;
        if let StepOutcome::Failed(reason) = judge(guest.expected, &result) {
            return Err(reason);
        }
        let elapsed = result.between_first_and_last();
        if elapsed >= SHORTEST || iterations >= 500_000_000 {
            let instructions = u128::from(iterations * guest::INSTRUCTIONS_PER_ITERATION);
            let rate = instructions * 1_000_000_000 / elapsed.as_nanos().max(1);
            return Ok(u64::try_from(rate).unwrap_or(u64::MAX));
        }
        iterations *= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_parsed_up_to_a_cut_line() {
        let mut output = Vec::new();
        let events = [
            Event::StepStarted {
                step: KvmStep::PortIo,
            },
            Event::StepFinished {
                step: KvmStep::PortIo,
                outcome: StepOutcome::Passed,
            },
            Event::Rate {
                instructions_per_second: 7,
            },
            Event::StepFinished {
                step: KvmStep::Sse,
                outcome: StepOutcome::Failed("no".to_owned()),
            },
            Event::Unavailable {
                reason: "none".to_owned(),
            },
            Event::Done,
        ];
        for event in &events {
            emit(&mut output, event).unwrap();
        }
        assert_eq!(parse(&output), events);
        output.truncate(output.len() - 3);
        assert_eq!(parse(&output), events[..5]);
        assert_eq!(parse(b"noise\n{\"event\":\"done\"}\n"), []);
        assert_eq!(parse(b""), []);
    }

    #[test]
    fn a_result_must_be_exact() {
        let result = |values: &[u32]| {
            GuestResult::new(
                values
                    .iter()
                    .map(|value| (*value, Instant::now()))
                    .collect(),
            )
        };
        let failed = |reason: &str| StepOutcome::Failed(reason.to_owned());
        assert_eq!(judge(&[3, 7], &result(&[3, 7])), StepOutcome::Passed);
        assert_eq!(
            judge(&[3, 7], &result(&[3])),
            failed("reported [3], a processor reports [3, 7]")
        );
        assert_eq!(
            judge(&[3], &result(&[3, 7])),
            failed("reported [3, 7], a processor reports [3]")
        );
        assert_eq!(
            judge(&[3], &result(&[0xfa17_0006])),
            failed("raised exception 6 (#UD)")
        );
    }

    /// Runs the guests for real, if this host has a KVM. What it can do is the host's affair; that every step gets a
    /// result is ours.
    #[test]
    fn every_step_gets_a_result() {
        if let Err(reason) = Kvm::open() {
            crate::skipped::skipped(reason);
            return;
        }
        let mut output = Vec::new();
        run_guests(&mut output).unwrap();
        let events = parse(&output);
        assert_eq!(events.last(), Some(&Event::Done));
        let finished: Vec<KvmStep> = events
            .iter()
            .filter_map(|event| match event {
                Event::StepFinished { step, .. } => Some(*step),
                _ => None,
            })
            .collect();
        assert_eq!(finished, KvmStep::ALL);
        let report = classify::kvm(&events, &bounded_process::End::Exited(0));
        println!("{report:#?}");
        // Every KVM there is runs the first one.
        assert_eq!(report.steps[0].outcome, StepOutcome::Passed);
        assert_ne!(report.verdict, KvmVerdict::None);
    }
}
