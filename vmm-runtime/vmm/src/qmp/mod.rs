//! QEMU's control protocol, as much of it as one machine's supervisor needs.
//!
//! A line of JSON per message. QEMU greets, the client leaves negotiation mode with `qmp_capabilities`, then commands
//! are answered in order and events come in between. See QEMU's `docs/interop/qmp-spec`.
//!
//! [`converse`] works over any stream, so a test plays QEMU on the other end of a pipe.

mod client;
mod message;

pub use client::{QmpError, converse};
pub use message::{MAX_LINE_BYTES, Message, MessageError};

#[cfg(test)]
mod tests;
