//! The agent of one host: starts, adopts, stops and reaps the machines that are assigned to it, works on disks, renews
//! the host's lease, and says what the host has.
//!
//! Decisions are pure cores ([`lease::core`], [`instance::core`], [`task::core`], [`host::report`]) with
//! `step(now, event) -> actions`; effects lie behind traits ([`backend::Backend`], [`instance::actor::InstanceApi`],
//! [`lease::LeaseApi`], [`task::runner::DiskWorker`], [`clock::Clock`]).
//!
//! It must not know which machine fits where, who may use a disk, or any other host: it is told, and answers. Guests
//! never depend on it: it may be killed and started at any time.

pub mod arguments;
pub mod backend;
pub mod clock;
mod download;
pub mod host;
pub mod instance;
pub mod kubernetes;
pub mod lease;
pub mod metrics;
pub mod run;
pub mod serve;
pub mod session;
#[cfg(test)]
mod skipped;
pub mod task;
