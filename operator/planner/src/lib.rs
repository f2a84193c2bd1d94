//! The operator's decisions, as pure functions over snapshots of the API's objects.
//!
//! Each core answers with a plan that leaves nothing to choose and says why it waits: [`machine`] for
//! VirtualMachines (with [`resolve`], [`placement`] and [`address`]), [`disk`] for VirtualHardDisks,
//! [`network`], [`host`], and [`lease`] for the watch over the hosts' leases.
//!
//! This crate must not know a Kubernetes client, a runtime, a clock, a file or a random number: times come
//! in as arguments, and the same snapshot always gives the same plan.

pub mod address;
pub mod conditions;
pub mod disk;
pub mod host;
pub mod identity;
pub mod lease;
pub mod machine;
mod machine_status;
pub mod memory;
pub mod network;
pub mod placement;
pub mod refusal;
pub mod resolve;
pub mod subnet;

pub use identity::ObjectKey;
