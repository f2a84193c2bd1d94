//! What the probe found, as it goes over the wire in JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::Accelerator;

/// What can run guests on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeReport {
    /// The host's KVM, tried with bare guests.
    pub kvm: KvmReport,
    /// QEMU, tried with a boot sector.
    pub qemu: QemuReport,
    /// What virtual machines should run with; `null` if nothing works.
    pub recommended: Option<Accelerator>,
    /// The CPU model that goes with it.
    pub cpu_model: Option<String>,
    /// How long the probe took, in milliseconds.
    pub elapsed_ms: u64,
}

/// The host's KVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KvmReport {
    /// What it is good for.
    pub verdict: KvmVerdict,
    /// Why, in a sentence.
    pub reason: String,
    /// How fast a loop in the guest's kernel mode ran.
    pub instructions_per_second: Option<u64>,
    /// The bare guests that were run, in that order.
    pub steps: Vec<StepReport>,
}

/// What a host's KVM is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KvmVerdict {
    /// Runs guests' kernel mode on the processor, completely: use it.
    Hardware,
    /// Runs guests, but emulates their kernel mode, or lacks instructions that kernels need.
    Emulated,
    /// Runs no guest.
    None,
}

/// One bare guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    /// What it executed.
    pub step: KvmStep,
    /// What came of it.
    pub outcome: StepOutcome,
}

/// What a bare guest executes, all of it in 64-bit kernel mode. In the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvmStep {
    /// `out` and `hlt`: without these there is no guest at all.
    PortIo,
    /// A loop, timed.
    Rate,
    /// An SSE2 sum and an aligned store.
    Sse,
    /// `lock cmpxchg16b`.
    Cmpxchg16b,
    /// `int3` into a handler, and back by `iretq`.
    Int3,
    /// `xsetbv`, `xgetbv`, `xsave`.
    Xsave,
    /// `popcnt`.
    Popcnt,
    /// `rdtscp`.
    Rdtscp,
    /// `stac` and `clac`.
    Stac,
}

impl KvmStep {
    /// All, in the order in which they run.
    pub const ALL: [KvmStep; 9] = [
        KvmStep::PortIo,
        KvmStep::Rate,
        KvmStep::Sse,
        KvmStep::Cmpxchg16b,
        KvmStep::Int3,
        KvmStep::Xsave,
        KvmStep::Popcnt,
        KvmStep::Rdtscp,
        KvmStep::Stac,
    ];
}

impl fmt::Display for KvmStep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            KvmStep::PortIo => "port I/O",
            KvmStep::Sse => "SSE",
            KvmStep::Cmpxchg16b => "cmpxchg16b",
            KvmStep::Int3 => "int3",
            KvmStep::Xsave => "xsave",
            KvmStep::Popcnt => "popcnt",
            KvmStep::Rdtscp => "rdtscp",
            KvmStep::Stac => "stac",
            KvmStep::Rate => "timed loop",
        })
    }
}

/// What came of a bare guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", content = "reason")]
pub enum StepOutcome {
    /// It reported exactly what a processor would.
    Passed,
    /// KVM does not offer the instruction to guests (CPUID): kernels do without.
    NotOffered,
    /// It did not; why.
    Failed(String),
}

/// QEMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QemuReport {
    /// Its version, such as `7.2.22`; `null` if it could not be run.
    pub version: Option<String>,
    /// With `-accel kvm`.
    pub kvm: Usability,
    /// With `-accel tcg`.
    pub tcg: Usability,
}

/// Whether a guest ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "reason")]
pub enum Usability {
    /// One ran.
    Usable,
    /// None did; why.
    Unusable(String),
}

impl Usability {
    /// Whether a guest ran.
    pub fn is_usable(&self) -> bool {
        matches!(self, Usability::Usable)
    }
}

impl fmt::Display for Usability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Usability::Usable => formatter.write_str("usable"),
            Usability::Unusable(reason) => write!(formatter, "unusable: {reason}"),
        }
    }
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "KVM:           {:?}: {}",
            self.kvm.verdict, self.kvm.reason
        )?;
        for StepReport { step, outcome } in &self.kvm.steps {
            match outcome {
                StepOutcome::Passed => writeln!(formatter, "  {step}: passed")?,
                StepOutcome::NotOffered => writeln!(formatter, "  {step}: not offered to guests")?,
                StepOutcome::Failed(reason) => writeln!(formatter, "  {step}: {reason}")?,
            }
        }
        writeln!(
            formatter,
            "QEMU:          {}",
            self.qemu.version.as_deref().unwrap_or("unusable")
        )?;
        writeln!(formatter, "  -accel kvm:  {}", self.qemu.kvm)?;
        writeln!(formatter, "  -accel tcg:  {}", self.qemu.tcg)?;
        let recommended = match self.recommended {
            Some(Accelerator::Kvm) => "kvm",
            Some(Accelerator::Tcg) => "tcg",
            None => "none",
        };
        write!(formatter, "Recommended:   {recommended}")?;
        if let Some(model) = &self.cpu_model {
            write!(formatter, ", CPU model {model}")?;
        }
        write!(formatter, " (probed in {} ms)", self.elapsed_ms)
    }
}
