//! An NBD server on a unix socket in front of a [`paddock_vhd::BlockDevice`]: how QEMU reaches a disk whose file it may
//! not open.
//!
//! Fixed newstyle handshake with `NBD_OPT_GO`, structured replies, `base:allocation` block status, flush, FUA, trim,
//! write zeroes and several connections per disk. The protocol is the one of the NBD project's `doc/proto.md`.
//!
//! Plain threads: one that accepts, one per connection that reads requests, and up to [`MAX_WORKERS`] per disk, started
//! when there is work for them. Everything a client can ask for is bounded: the length of a request
//! ([`MAX_REQUEST_BYTES`]), the requests and bytes that wait, the connections, and the time of a handshake.

mod handshake;
mod protocol;
mod queue;
mod server;
mod transmission;

pub use handshake::{Export, HandshakeError, Negotiated, negotiate};
pub use protocol::{Command, MAX_REQUEST_BYTES, ProtocolError, REQUEST_HEADER_BYTES, Request};
pub use server::{MAX_CONNECTIONS, MAX_WORKERS, NbdServer};
pub use transmission::{Job, execute, read_job};

#[cfg(test)]
pub(crate) mod memory_disk;
#[cfg(test)]
mod tests;
