//! The typed API of Paddock, `paddock.dev/v1alpha1`: the custom resources, their validation rules and
//! the names that the parts of the system agree upon.
//!
//! This crate describes and validates; it decides nothing. It must not know a Kubernetes client,
//! a controller, a hypervisor or a file system.

#![allow(
    clippy::duplicated_attributes,
    reason = "kube's derive takes several printer columns, each with a type and a priority"
)]

pub mod host;
pub mod lease;
pub mod names;
pub mod network;
pub mod quantity;
pub mod reference;
pub mod virtual_hard_disk;
pub mod virtual_hard_disk_source;
pub mod virtual_hard_disk_task;
pub mod virtual_machine;
pub mod virtual_machine_instance;

mod generate;

pub use generate::{GeneratedFile, crds, generated_files};
pub use host::{Host, HostSpec, HostStatus};
pub use network::{VirtualNetwork, VirtualNetworkSpec, VirtualNetworkStatus};
pub use quantity::ByteQuantity;
pub use reference::{Condition, HostReference, LocalReference};
pub use virtual_hard_disk::{VirtualHardDisk, VirtualHardDiskSpec, VirtualHardDiskStatus};
pub use virtual_hard_disk_task::{
    VirtualHardDiskTask, VirtualHardDiskTaskSpec, VirtualHardDiskTaskStatus,
};
pub use virtual_machine::{VirtualMachine, VirtualMachineSpec, VirtualMachineStatus};
pub use virtual_machine_instance::{
    VirtualMachineInstance, VirtualMachineInstanceSpec, VirtualMachineInstanceStatus,
};

/// The API group of every kind.
pub const GROUP: &str = "paddock.dev";
/// The served and stored version.
pub const VERSION: &str = "v1alpha1";
