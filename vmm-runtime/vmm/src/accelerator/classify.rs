//! What the results of the bare guests mean.

use super::bounded_process::End;
use super::kvm::Event;
use super::report::{KvmReport, KvmStep, KvmVerdict, QemuReport, StepOutcome, StepReport};
use crate::config::Accelerator;

/// A processor runs the timed loop at more than 10^9 instructions a second, and so does a translating emulator within
/// a factor of ten; one that interprets stays near 10^6. Both are far from this line, a loaded machine included.
const HARDWARE_INSTRUCTIONS_PER_SECOND: u64 = 20_000_000;

const MILLIONS: u64 = HARDWARE_INSTRUCTIONS_PER_SECOND / 1_000_000;

/// Judges a KVM by what the process that ran the guests wrote, and how that process ended.
pub(super) fn kvm(events: &[Event], end: &End) -> KvmReport {
    let mut steps = Vec::new();
    let mut rate = None;
    let mut unfinished = None;
    let mut unavailable = None;
    let mut done = false;
    for event in events {
        match event {
            Event::Unavailable { reason } => unavailable = Some(reason.clone()),
            Event::StepStarted { step } => unfinished = Some(*step),
            Event::StepFinished { step, outcome } => {
                unfinished = None;
                steps.push(StepReport {
                    step: *step,
                    outcome: outcome.clone(),
                });
            }
            Event::Rate {
                instructions_per_second,
            } => rate = Some(*instructions_per_second),
            Event::Done => done = true,
        }
    }
    if let Some(step) = unfinished {
        steps.push(StepReport {
            step,
            outcome: StepOutcome::Failed(format!("no result; the process {end}")),
        });
    }
    let (verdict, reason) = if let Some(reason) = unavailable {
        (KvmVerdict::None, reason)
    } else if !done && unfinished.is_none() {
        (
            KvmVerdict::None,
            format!("the process that runs the guests {end} between two of them"),
        )
    } else {
        judge(&steps, rate)
    };
    KvmReport {
        verdict,
        reason,
        instructions_per_second: rate,
        steps,
    }
}

/// The verdict and its reason. The reason is the same from run to run on the same host: it ends up in a status, and
/// the measured speed differs every time.
fn judge(steps: &[StepReport], rate: Option<u64>) -> (KvmVerdict, String) {
    let outcome = |wanted| {
        steps
            .iter()
            .find(|report| report.step == wanted)
            .map(|report| &report.outcome)
    };
    match outcome(KvmStep::PortIo) {
        Some(StepOutcome::Passed) => {}
        Some(StepOutcome::Failed(reason)) => {
            return (KvmVerdict::None, format!("no guest runs: {reason}"));
        }
        Some(StepOutcome::NotOffered) | None => {
            return (KvmVerdict::None, "no guest was run".to_owned());
        }
    }
    let mut faults = Vec::new();
    match rate {
        Some(rate) if rate >= HARDWARE_INSTRUCTIONS_PER_SECOND => {}
        Some(_) => faults.push(format!(
            "the guest's kernel mode runs at less than {MILLIONS} million instructions a second"
        )),
        None => {
            faults.push("the speed of the guest's kernel mode could not be measured".to_owned())
        }
    }
    for step in KvmStep::ALL {
        match outcome(step) {
            Some(StepOutcome::Passed | StepOutcome::NotOffered) => {}
            Some(StepOutcome::Failed(reason)) => faults.push(format!("{step}: {reason}")),
            None => faults.push(format!("{step}: not run")),
        }
    }
    match rate {
        Some(_) if faults.is_empty() => (
            KvmVerdict::Hardware,
            format!("every instruction tried works, and fast: over {MILLIONS} million a second"),
        ),
        _ => (KvmVerdict::Emulated, faults.join("; ")),
    }
}

/// What virtual machines should run with.
pub(super) fn recommended(kvm: KvmVerdict, qemu: &QemuReport) -> Option<Accelerator> {
    if kvm == KvmVerdict::Hardware && qemu.kvm.is_usable() {
        Some(Accelerator::Kvm)
    } else if qemu.tcg.is_usable() {
        Some(Accelerator::Tcg)
    } else {
        None
    }
}

/// The CPU model for an accelerator: all that it can do.
pub(super) fn cpu_model(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Usability;
    use super::*;

    fn finished(step: KvmStep, outcome: StepOutcome) -> Event {
        Event::StepFinished { step, outcome }
    }

    /// The events of a run in which every step passes, save the ones given.
    fn events(rate: u64, others: &[(KvmStep, StepOutcome)]) -> Vec<Event> {
        let mut events = Vec::new();
        for step in KvmStep::ALL {
            let outcome = others
                .iter()
                .find(|(other, _)| *other == step)
                .map(|(_, outcome)| outcome.clone());
            events.push(Event::StepStarted { step });
            if step == KvmStep::Rate {
                events.push(Event::Rate {
                    instructions_per_second: rate,
                });
            }
            events.push(finished(step, outcome.unwrap_or(StepOutcome::Passed)));
        }
        events.push(Event::Done);
        events
    }

    #[test]
    fn a_complete_and_fast_kvm_is_hardware() {
        let report = kvm(&events(3_000_000_000, &[]), &End::Exited(0));
        assert_eq!(report.verdict, KvmVerdict::Hardware);
        assert_eq!(
            report.reason,
            "every instruction tried works, and fast: over 20 million a second"
        );
        assert_eq!(report.instructions_per_second, Some(3_000_000_000));
        assert_eq!(report.steps.len(), KvmStep::ALL.len());
    }

    #[test]
    fn an_instruction_that_is_not_offered_is_no_fault() {
        let report = kvm(
            &events(20_000_000, &[(KvmStep::Stac, StepOutcome::NotOffered)]),
            &End::Exited(0),
        );
        assert_eq!(report.verdict, KvmVerdict::Hardware);
    }

    #[test]
    fn a_slow_kvm_is_emulated() {
        let report = kvm(&events(19_999_999, &[]), &End::Exited(0));
        assert_eq!(report.verdict, KvmVerdict::Emulated);
        assert_eq!(
            report.reason,
            "the guest's kernel mode runs at less than 20 million instructions a second"
        );
    }

    #[test]
    fn a_fast_kvm_without_an_instruction_is_emulated_and_every_fault_is_named() {
        let failed = |reason: &str| StepOutcome::Failed(reason.to_owned());
        let faults = [
            (KvmStep::Sse, failed("KVM internal error")),
            (KvmStep::Int3, failed("reported 4")),
        ];
        let report = kvm(&events(1_000_000_000, &faults), &End::Exited(0));
        assert_eq!(report.verdict, KvmVerdict::Emulated);
        assert_eq!(report.reason, "SSE: KVM internal error; int3: reported 4");
    }

    #[test]
    fn a_guest_that_hangs_is_named() {
        let hung = [
            Event::StepStarted {
                step: KvmStep::PortIo,
            },
            finished(KvmStep::PortIo, StepOutcome::Passed),
            Event::StepStarted {
                step: KvmStep::Rate,
            },
            Event::Rate {
                instructions_per_second: 1_000_000_000,
            },
            finished(KvmStep::Rate, StepOutcome::Passed),
            Event::StepStarted { step: KvmStep::Sse },
        ];
        let report = kvm(&hung, &End::TimedOut);
        assert_eq!(report.verdict, KvmVerdict::Emulated);
        assert_eq!(
            report.steps[2],
            StepReport {
                step: KvmStep::Sse,
                outcome: StepOutcome::Failed(
                    "no result; the process was killed at its deadline".to_owned()
                ),
            }
        );
        assert!(report.reason.starts_with(
            "SSE: no result; the process was killed at its deadline; cmpxchg16b: not run; int3: not run"
        ));
    }

    #[test]
    fn a_kvm_that_runs_nothing_is_none() {
        let reason = |report: KvmReport| (report.verdict, report.reason);
        assert_eq!(
            reason(kvm(
                &[
                    Event::Unavailable {
                        reason: "/dev/kvm: no".to_owned()
                    },
                    Event::Done
                ],
                &End::Exited(0)
            )),
            (KvmVerdict::None, "/dev/kvm: no".to_owned())
        );
        assert_eq!(
            reason(kvm(
                &[Event::StepStarted {
                    step: KvmStep::PortIo
                }],
                &End::Signaled(6)
            )),
            (
                KvmVerdict::None,
                "no guest runs: no result; the process ended by signal 6".to_owned()
            )
        );
        assert_eq!(
            reason(kvm(&[], &End::Exited(101))),
            (
                KvmVerdict::None,
                "the process that runs the guests exited with status 101 between two of them"
                    .to_owned()
            )
        );
    }

    #[test]
    fn a_run_that_was_cut_short_between_steps_is_not_trusted() {
        let mut cut = events(1_000_000_000, &[]);
        cut.pop();
        assert_eq!(kvm(&cut, &End::Signaled(9)).verdict, KvmVerdict::None);
    }

    #[test]
    fn kvm_is_recommended_only_if_both_ways_agree() {
        let no = || Usability::Unusable("no".to_owned());
        let qemu = |kvm, tcg| QemuReport {
            version: Some("7.2".to_owned()),
            kvm,
            tcg,
        };
        let yes = Usability::Usable;
        assert_eq!(
            recommended(KvmVerdict::Hardware, &qemu(yes.clone(), yes.clone())),
            Some(Accelerator::Kvm)
        );
        assert_eq!(
            recommended(KvmVerdict::Hardware, &qemu(yes.clone(), no())),
            Some(Accelerator::Kvm)
        );
        assert_eq!(
            recommended(KvmVerdict::Emulated, &qemu(yes.clone(), yes.clone())),
            Some(Accelerator::Tcg)
        );
        assert_eq!(
            recommended(KvmVerdict::Hardware, &qemu(no(), yes)),
            Some(Accelerator::Tcg)
        );
        assert_eq!(recommended(KvmVerdict::Hardware, &qemu(no(), no())), None);
    }
}
