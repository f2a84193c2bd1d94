//! The host's Lease: what lets this host start machines.
//!
//! [`core`] decides, [`renew`] carries out. See `failover.md` of the design for the rules; the ones kept here:
//! `t_send` is noted before each attempt and the deadline counts from it; a conflict is answered by reading; a rebooted
//! host keeps silent until it was fenced.

pub mod core;
pub mod renew;

#[cfg(test)]
mod model_tests;

pub use self::core::{Held, LeaseView, Timing};
pub use renew::{Holding, LeaseApi};
