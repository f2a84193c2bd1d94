//! An NBD server in front of [`paddock_vhd::BlockDevice`]s: how QEMU and other clients reach a disk whose file they may
//! not open, or whose format they would not understand.
//!
//! ```no_run
//! use std::{path::Path, sync::Arc};
//! use paddock_nbd::{Export, Server};
//! use paddock_vhd::{Access, Gate, Pool, Vhd};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = Pool::open("/var/lib/paddock/pools/default")?;
//! let disk = Arc::new(Vhd::open(&pool, "web/root.vhd", Access::ReadWrite, Gate::open())?);
//! let server = Server::unix(Path::new("/run/root.sock"), vec![Export::new("root", disk)])?;
//! // ...
//! server.stop();
//! # Ok(())
//! # }
//! ```
//!
//! Fixed newstyle handshake with names, descriptions and block sizes, structured replies with holes, `base:allocation`
//! block status, flush, FUA, trim, write zeroes, prefetch, and several connections per disk. The protocol is the one of
//! the NBD project's `doc/proto.md`.
//!
//! One thread accepts; one per connection reads requests. While the disk answers small requests from memory, that thread
//! works on them itself, and sends replies in batches. What has to be waited for goes to a [`paddock_vhd::Queue`]: to
//! io_uring what lies in the disk's file in one piece, to up to [`MAX_WORKERS`] threads all else. Everything a client can
//! ask for is bounded: the length of a request ([`MAX_REQUEST_BYTES`]), the requests and bytes that wait, the connections
//! ([`MAX_CONNECTIONS`]), and the time of a handshake.
//!
//! It knows block devices and sockets. It must not know QEMU, Kubernetes, or where a disk comes from.

mod buffer;
mod connection;
mod export;
#[cfg(fuzzing)]
#[doc(hidden)]
#[allow(clippy::expect_used)] // A panic is how a fuzz target tells.
pub mod fuzzing;
mod handshake;
mod incoming;
mod outbox;
mod pace;
mod protocol;
mod reply;
mod room;
mod server;
mod socket;
mod transmission;

pub use connection::MAX_WORKERS;
pub use export::{Export, ExportsError, MAX_EXPORTS};
pub use protocol::MAX_REQUEST_BYTES;
pub use server::{MAX_CONNECTIONS, ServeError, Server};
pub use socket::Listener;

#[cfg(test)]
pub(crate) mod memory_disk;
#[cfg(test)]
mod tests;
