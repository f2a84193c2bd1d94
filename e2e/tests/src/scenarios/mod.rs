//! What must hold, a file per part of the promise.

mod access;
mod bad_input;
mod conditions;
mod differencing;
mod disk_work;
mod disks;
mod faults;
mod guards;
mod labs;
mod networks;
mod placement;
mod power;
mod quickstart;
mod sources;
mod undo_disks;

use crate::runner::Scenario;

/// Every scenario, those that take longest first so that they run beside the others.
#[must_use]
pub fn all() -> Vec<Scenario> {
    [
        quickstart::SCENARIOS,
        differencing::SCENARIOS,
        undo_disks::SCENARIOS,
        power::SCENARIOS,
        disk_work::SCENARIOS,
        disks::SCENARIOS,
        sources::SCENARIOS,
        networks::SCENARIOS,
        conditions::SCENARIOS,
        bad_input::SCENARIOS,
        access::SCENARIOS,
        guards::SCENARIOS,
        placement::SCENARIOS,
        faults::SCENARIOS,
        labs::SCENARIOS,
    ]
    .concat()
}
