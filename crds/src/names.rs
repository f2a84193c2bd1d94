//! Names that more than one part relies on: finalizers, labels, annotations, condition types, identities.

/// On a VirtualMachine: held until its instance is proved to have ended.
pub const MACHINE_FINALIZER: &str = "paddock.dev/machine";
/// On a VirtualMachineInstance: held until its host has reported `status.released`.
pub const INSTANCE_FINALIZER: &str = "paddock.dev/instance";
/// On a VirtualHardDisk: held while it is attached, and until its file is kept or removed.
pub const DISK_FINALIZER: &str = "paddock.dev/disk";
/// On a VirtualHardDiskTask: held while its host may still be at work on it.
pub const TASK_FINALIZER: &str = "paddock.dev/task";

/// Namespace of the operator, the agents' leases and their service accounts.
pub const SYSTEM_NAMESPACE: &str = "paddock-system";
/// Group of the agents' client certificates.
pub const AGENT_GROUP: &str = "paddock:hosts";

/// User name in the client certificate of the agent on `host`.
#[must_use]
pub fn agent_user(host: &str) -> String {
    format!("paddock:host:{host}")
}

/// Service account, in [`SYSTEM_NAMESPACE`], of the agent on `host`.
#[must_use]
pub fn agent_service_account(host: &str) -> String {
    format!("paddock-host-{host}")
}

/// Condition types. Each has one writer.
pub mod condition {
    /// Leaves (VM, VHD, network, host): it does what its spec asks for. Written by the operator.
    pub const READY: &str = "Ready";
    /// VM: a host has been chosen. `False` lists every host's refusal.
    pub const SCHEDULED: &str = "Scheduled";
    /// VM: the running guest differs from the spec until its next start.
    pub const RESTART_REQUIRED: &str = "RestartRequired";
    /// VM: a change of `undoDisks` waits until the machine is off.
    pub const UNDO_DISKS_PENDING: &str = "UndoDisksPending";
    /// VHD: a conversion or change of size is under way (`True`), or waits or failed (`False`).
    pub const PROGRESSING: &str = "Progressing";
    /// VHD: what the last Check found.
    pub const HEALTHY: &str = "Healthy";
    /// Network: whether guests on different hosts share one segment.
    pub const SPANS_HOSTS: &str = "SpansHosts";
    /// Host: every pool in its spec is usable. Written by the agent.
    pub const POOLS_AVAILABLE: &str = "PoolsAvailable";
    /// Host: every uplink in its spec exists. Written by the agent.
    pub const UPLINKS_AVAILABLE: &str = "UplinksAvailable";
    /// Host: guests run on hardware. Written by the agent.
    pub const ACCELERATED: &str = "Accelerated";
    /// Any object in deletion: what it waits for.
    pub const DELETING: &str = "Deleting";
}

/// Field managers of server-side apply, one per purpose.
pub mod manager {
    /// The operator's controllers.
    pub const OPERATOR: &str = "paddock-operator";
    /// The agents' reports.
    pub const AGENT: &str = "paddock-agent";
}
