//! One process per virtual machine.
//!
//! `paddock-vmm` supervises one QEMU child over QMP, serves the machine's disks to it itself (an NBD server on unix
//! sockets in front of `paddock_vhd`), keeps its serial console, and answers a small HTTP API on a unix socket. The
//! library part is what the agent on each host needs to write a configuration, start the process, talk to it, and
//! recognise it again after the agent's own restart.
//!
//! It must not know Kubernetes, leases or any other VM: it is told one configuration, runs it once, and ends with a
//! result. Whether and where a VM may run is decided before it is started.

pub mod accelerator;
pub mod api;
mod bounded_log;
pub mod client;
pub mod config;
mod console;
mod disks;
mod hold;
pub mod identity;
pub mod lifecycle;
mod qemu;
pub mod qmp;
mod resources;
pub mod run_directory;
mod server;
#[cfg(test)]
#[path = "../tests/skipped/mod.rs"]
mod skipped;
pub mod supervisor;
