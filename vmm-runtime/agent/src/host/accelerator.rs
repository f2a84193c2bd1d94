//! What runs guests on this host, found out by `paddock-vmm probe`, which runs some.

use paddock_crds::host::Accelerator;

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What runs guests' instructions.
    pub accelerator: Accelerator,
    /// QEMU's CPU model to use with it.
    pub cpu_model: Option<String>,
    /// Why, for people.
    pub message: String,
}

impl Verdict {
    /// What a pretending host says.
    #[must_use]
    pub fn hollow() -> Self {
        Self {
            accelerator: Accelerator::Emulation,
            cpu_model: None,
            message: "guests are pretended".to_owned(),
        }
    }
}
