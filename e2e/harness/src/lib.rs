//! A cluster of hosts on one machine, for people to try Paddock and for tests to drive it.
//!
//! A lab is one supervisor process in namespaces of its own: a control plane (or the way to somebody else's), the operator, and
//! hosts that are namespaces themselves, each with its own network, processes, mounts and control groups, running an agent with
//! production defaults. Faults are injected from outside: the parts under test do not know that they are in a lab.
//!
//! It must not know how operator, agent or monitor work: it starts programs, applies YAML, and reads what the contracts between
//! those parts name (the lease's state, the files in a VM's run folder).
//!
//! Tests use [`Lab`]; people use the command `paddock-lab`, which does the same.

pub mod backoff;
pub mod certificates;
pub mod cgroup;
pub mod client;
pub mod cluster;
pub mod console;
pub mod doctor;
pub mod fault;
pub mod folder;
pub mod host_init;
pub mod kubeconfig;
mod lab;
pub mod logs;
pub mod namespaces;
pub mod network;
pub mod programs;
pub mod protocol;
pub mod start;
pub mod supervisor;

pub use fault::Fault;
pub use lab::{Lab, LabOptions};
pub use network::cuts::Direction;
pub use protocol::{Backend, HostState, HostStatus, LabStatus, ServiceState, ServiceStatus};
