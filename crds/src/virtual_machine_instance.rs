//! VirtualMachineInstance: the operator's order to one agent, and the agent's answer.

use crate::{
    network::NetworkType,
    reference::{Condition, PoolFile},
    virtual_hard_disk::UndoState,
    virtual_machine::{Acceleration, AdapterModel, Bus, Machine},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A machine on its host: exists while the machine is powered or being stopped.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "VirtualMachineInstance",
    plural = "virtualmachineinstances",
    shortname = "vmi",
    category = "paddock",
    namespaced,
    status = "VirtualMachineInstanceStatus",
    derive = "PartialEq",
    cel,
    selectable = ".spec.host",
    doc = "Internal: a powered machine on its host. Written by the operator, answered by the agent of that host; change the VirtualMachine instead.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.host"),
    printcolumn(name = "Power", type_ = "string", json_path = ".spec.power"),
    printcolumn(name = "PID", type_ = "integer", json_path = ".status.processId"),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Epoch",
        type_ = "integer",
        json_path = ".spec.hostEpoch",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.reason",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceSpec {
    /// The host that runs it.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("an instance stays on its host; a move is a new instance"))]
    pub host: String,
    /// The host's epoch; the agent starts it only while it holds this one.
    #[schemars(range(min = 1))]
    pub host_epoch: i64,
    /// The power state to reach.
    pub power: Power,
    /// A change restarts the guest once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub restart_token: Option<String>,
    /// Changes when `config` changes in a way that a running guest does not have.
    #[schemars(length(max = 64))]
    pub config_revision: String,
    /// The machine, fully resolved; applied at the next start.
    pub config: InstanceConfig,
}

/// The power state to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Power {
    /// Processors run.
    Running,
    /// Processors are frozen.
    Paused,
    /// Off, gracefully within the deadline.
    Stopped,
}

/// A machine with every reference resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceConfig {
    /// SMBIOS UUID.
    #[schemars(length(max = 36))]
    pub uuid: String,
    /// Host name that DHCP tells the guest.
    #[schemars(length(max = 63))]
    pub hostname: String,
    /// The emulated machine.
    pub machine: Machine,
    /// Use of hardware virtualization.
    pub acceleration: Acceleration,
    /// Virtual processors.
    #[schemars(range(min = 1, max = 32))]
    pub cores: i32,
    /// Guest memory, in MiB.
    #[schemars(range(min = 16, max = 4194304))]
    pub memory_mebibytes: i64,
    /// Kernel started directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Box<InstanceKernel>>,
    /// Disks in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub disks: Vec<InstanceDisk>,
    /// Adapters in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub network_adapters: Vec<InstanceAdapter>,
    /// Seconds from the power button to turning off.
    #[schemars(range(min = 0, max = 3600))]
    pub stop_deadline_seconds: i32,
}

/// A kernel started directly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceKernel {
    /// The kernel.
    pub kernel: PoolFile,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PoolFile>,
    /// The command line.
    #[serde(default)]
    #[schemars(length(max = 2047))]
    pub command_line: String,
}

/// A disk of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceDisk {
    /// Name of the disk within the machine.
    #[schemars(length(max = 32))]
    pub name: String,
    /// Its VirtualHardDisk.
    #[schemars(length(max = 253))]
    pub virtual_hard_disk: String,
    /// Its file.
    pub file: PoolFile,
    /// The parents of `file`, nearest first: only read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 63))]
    pub parents: Vec<PoolFile>,
    /// The undo disk that takes what the guest writes; `file` is then only read. Absent: the guest writes into `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<InstanceUndo>,
    /// The attachment's epoch.
    #[schemars(range(min = 1))]
    pub disk_epoch: i64,
    /// The bus.
    pub bus: Bus,
    /// Controller on the bus, from 0 (IDE: the channel).
    #[schemars(range(min = 0, max = 3))]
    pub controller: i32,
    /// Place on the controller, from 0.
    #[schemars(range(min = 0, max = 15))]
    pub unit: i32,
}

/// The undo disk of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceUndo {
    /// Its file.
    pub file: PoolFile,
    /// New: made at the start if it is not there yet. Kept: it must be there, and a start without it fails with the reason UndoDiskNotFound.
    pub state: UndoState,
}

/// An adapter of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceAdapter {
    /// Name of the adapter within the machine.
    #[schemars(length(max = 32))]
    pub name: String,
    /// The emulated adapter, never Auto.
    pub model: AdapterModel,
    /// Its MAC address.
    #[schemars(length(max = 17))]
    pub mac_address: String,
    /// The address that DHCP gives it, and the only one it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub ip_address: Option<String>,
    /// The network; absent: unplugged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<InstanceNetwork>,
}

/// A network as its host builds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceNetwork {
    /// UID of the VirtualNetwork.
    #[schemars(length(max = 36))]
    pub uid: String,
    /// Its namespace and name, for messages.
    #[schemars(length(max = 317))]
    pub name: String,
    /// Its kind.
    #[serde(rename = "type")]
    pub network_type: NetworkType,
    /// External: name of the uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub uplink: Option<String>,
    /// Its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    pub subnet: Option<String>,
    /// Internal: the host's address. Otherwise the DHCP server's identifier, on the wire only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub host_address: Option<String>,
    /// Present: a DHCP server answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<InstanceDhcp>,
}

/// What the DHCP server of a network tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceDhcp {
    /// Seconds for which an address is given.
    pub lease_seconds: i32,
    /// The router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub gateway: Option<String>,
    /// DNS servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3), inner(length(max = 15)))]
    pub dns: Vec<String>,
}

/// What an instance is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum InstancePhase {
    /// The agent has not answered yet.
    #[default]
    Pending,
    /// It is being prepared and started.
    Starting,
    /// The guest's processors run.
    Running,
    /// The guest's processors are frozen: as `spec.power` asks, or, with the reason PoolFull, until there is room for what it writes.
    Paused,
    /// The guest was asked to shut down.
    Stopping,
    /// It ended by itself and starts again, after a wait that grows.
    Restarting,
    /// It ended as it was asked to, and nothing of it is left.
    Stopped,
    /// It cannot start; the reason says why. Tried again after a wait that grows.
    Failed,
}

/// The agent's answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceStatus {
    /// What it is doing.
    #[serde(default)]
    pub phase: InstancePhase,
    /// The generation of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The generation that the running guest was started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_generation: Option<i64>,
    /// The config revision that the running guest was started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub started_config_revision: Option<String>,
    /// The restart token that the last start carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub restart_token: Option<String>,
    /// When the guest was started (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub started_at: Option<String>,
    /// Process id of the machine's monitor on its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_id: Option<i64>,
    /// Times it was started again after it had ended by itself.
    #[serde(default)]
    pub restarts: i32,
    /// What runs its instructions: KVM or Emulation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<crate::host::Accelerator>,
    /// Why it is in this phase, in one CamelCase word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// Why it is in this phase, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// How the last stop ended: PowerButton, Kill, Quit or GuestPowerOff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub stop_step: Option<String>,
    /// While it runs: what its disks take, written again when that has changed by 64 MiB or a twentieth of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub disks: Vec<InstanceDiskStatus>,
    /// The agent's proof that nothing of the instance runs or holds a disk any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Released>,
    /// Reserved for the agent's conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// What a disk of a running instance takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceDiskStatus {
    /// Name of the disk within the machine.
    #[schemars(length(max = 32))]
    pub name: String,
    /// The file that the guest writes (the undo disk, if there is one), relative to its pool.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub path: String,
    /// Bytes that the file takes in its pool.
    pub allocated_bytes: i64,
}

/// Proof that an instance has ended: its processes are gone, its cgroup is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Released {
    /// The host epoch that the agent held when it wrote this.
    pub host_epoch: i64,
    /// When it was proved (RFC 3339).
    #[schemars(length(max = 40))]
    pub time: String,
}
