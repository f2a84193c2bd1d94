//! The operator of Paddock: it turns what users ask for into orders to the hosts' agents, and their answers into status.
//!
//! Every kind goes the same way: fetch a snapshot from the [`cache`], let `paddock-planner` decide, apply the steps
//! through the [`write::Writer`], write the status if it differs. All decisions are the planner's; this crate must not
//! hold any, nor know what a hypervisor, a disk's bytes or a bridge is.

pub mod cache;
pub mod clock;
pub mod controller;
pub mod disk;
pub mod events;
pub mod host;
pub mod leader;
pub mod lease_watch;
pub mod machine;
pub mod metrics;
pub mod network;
pub mod operator;
pub mod queue;
pub mod server;
pub mod settings;
mod shrink;
pub mod trim;
pub mod write;
