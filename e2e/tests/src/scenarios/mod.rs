//! What must hold, a file per part of the promise.

mod access;
mod bad_input;
mod conditions;
mod disks;
mod faults;
mod labs;
mod networks;
mod placement;
mod power;
mod quickstart;

use crate::runner::Scenario;

/// Every scenario, those that take longest first so that they run beside the others.
#[must_use]
pub fn all() -> Vec<Scenario> {
    [
        quickstart::SCENARIOS,
        power::SCENARIOS,
        disks::SCENARIOS,
        networks::SCENARIOS,
        conditions::SCENARIOS,
        bad_input::SCENARIOS,
        access::SCENARIOS,
        placement::SCENARIOS,
        faults::SCENARIOS,
        labs::SCENARIOS,
    ]
    .concat()
}
