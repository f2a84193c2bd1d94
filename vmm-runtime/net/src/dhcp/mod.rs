//! DHCP, one small server per tap.
//!
//! A server listens on the host's end of one adapter's tap, not on the
//! bridge: it hears nobody but that guest, answers nobody else, and works
//! alike whether the host takes part in the network or not. The packet filter
//! keeps the requests from going any further.
//!
//! [`core`] decides, [`message`] and [`frame`] read and write bytes; all three
//! are pure. The server itself only moves the bytes.

pub mod core;
mod event;
pub mod frame;
pub mod message;
pub(crate) mod server;
mod socket;

pub use event::{LeaseEvent, LeaseEventKind};
