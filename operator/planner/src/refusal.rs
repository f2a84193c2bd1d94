//! Why a machine does not run now.

/// Whether a refusal may pass by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Something is still to come: the machine is Pending.
    Waits,
    /// Somebody has to change something: the machine is Failed until then.
    Wrong,
}

/// One reason why a machine does not run now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Reason of the condition, in one CamelCase word.
    pub reason: &'static str,
    /// What was expected, what was found, what to do.
    pub message: String,
    /// Whether it may pass by itself.
    pub class: Class,
}

impl Refusal {
    /// A refusal that waits.
    #[must_use]
    pub fn waits(reason: &'static str, message: String) -> Self {
        Self {
            reason,
            message,
            class: Class::Waits,
        }
    }

    /// A refusal that somebody has to mend.
    #[must_use]
    pub fn wrong(reason: &'static str, message: String) -> Self {
        Self {
            reason,
            message,
            class: Class::Wrong,
        }
    }
}

/// Reasons of a machine's conditions.
pub mod reason {
    /// A disk names a VirtualHardDisk that does not exist.
    pub const VIRTUAL_HARD_DISK_NOT_FOUND: &str = "VirtualHardDiskNotFound";
    /// A VirtualHardDisk has no usable file yet.
    pub const VIRTUAL_HARD_DISK_NOT_READY: &str = "VirtualHardDiskNotReady";
    /// An adapter names a VirtualNetwork that does not exist.
    pub const VIRTUAL_NETWORK_NOT_FOUND: &str = "VirtualNetworkNotFound";
    /// A VirtualNetwork cannot be used.
    pub const VIRTUAL_NETWORK_NOT_READY: &str = "VirtualNetworkNotReady";
    /// An IDE disk of more than 127 GiB.
    pub const DISK_TOO_LARGE_FOR_BUS: &str = "DiskTooLargeForBus";
    /// More disks than the bus holds.
    pub const TOO_MANY_DISKS: &str = "TooManyDisks";
    /// The MAC address belongs to another machine.
    pub const MAC_ADDRESS_IN_USE: &str = "MacAddressInUse";
    /// The VirtualHardDisk is attached to another owner.
    pub const DISK_IN_USE: &str = "DiskInUse";
    /// The VirtualHardDisk stands for a physical disk.
    pub const DISK_LINKED: &str = "DiskLinked";
    /// The VirtualHardDisk may not be written.
    pub const DISK_READ_ONLY: &str = "DiskReadOnly";
    /// The VirtualHardDisk is the parent of others.
    pub const DISK_HAS_CHILDREN: &str = "DiskHasChildren";
    /// Two disks of one machine name one VirtualHardDisk.
    pub const DUPLICATE_DISK: &str = "DuplicateDisk";
    /// A network has no free address.
    pub const ADDRESSES_EXHAUSTED: &str = "AddressesExhausted";
    /// No host can run it.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// The spec holds a value that the API should have refused.
    pub const INVALID_SPEC: &str = "InvalidSpec";
}
