//! Host: a machine that runs guests.

use crate::{quantity::ByteQuantity, reference::Condition};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A host.
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "Host",
    plural = "hosts",
    category = "paddock",
    status = "HostStatus",
    derive = "PartialEq",
    cel,
    doc = "A host that runs machines. Its agent makes a bare one when there is none; pools and uplinks are the administrator's to name.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name must be at most 63 characters: it is part of the agent's identity"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "What the host is doing"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether it takes machines"),
    printcolumn(name = "Cores", type_ = "integer", json_path = ".status.capacity.cores", description = "Processor cores, threads not counted"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.memory", description = "Memory for machines"),
    printcolumn(name = "Accelerator", type_ = "string", json_path = ".status.accelerator", description = "What runs the guests' instructions"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.hostEpoch", description = "Rises each time the host was fenced", priority = 1),
    printcolumn(name = "Backend", type_ = "string", json_path = ".status.backend", description = "Hollow: its guests are only pretended", priority = 1),
    printcolumn(name = "Committed", type_ = "string", json_path = ".status.storage", description = "For each pool the sum of its disks' sizes, and its capacity", priority = 1),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agentVersion", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct HostSpec {
    /// Folders that hold disks, images and boot files, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pools: Vec<Pool>,
    /// Network interfaces that External networks may use, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub uplinks: Vec<Uplink>,
    /// What is kept from machines for the host itself.
    #[serde(default)]
    pub reserve: Reserve,
    /// Your word that this host is off: its machines and disks are released without its agent's own proof. Give a new token each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_service: Option<OutOfService>,
}

/// A folder on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct Pool {
    /// Name of the pool; the same name on several hosts with scope Shared is one storage.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Absolute path of the folder on the host.
    #[schemars(length(min = 2, max = 512), regex(pattern = r"^/[^\x00]+$"))]
    #[x_kube(validation = Rule::new("!self.matches('(^|/)[.]{1,2}(/|$)')").message("path must be absolute and without '.' or '..' parts"))]
    pub path: String,
    /// Local: only this host sees the folder. Shared: every host that names the pool sees the same files. Default: Local.
    #[serde(default)]
    pub scope: PoolScope,
    /// What may be kept in it: disks or images, never both, since whoever may name an image could else read the disks of any namespace as one. Default: Disks.
    #[serde(default = "disks_alone")]
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new("self.size() == 1 || !self.exists(kind, kind == 'Disks')").message("a pool holds Disks or Images, not both: give images a pool of their own, with a folder of its own"))]
    pub kinds: Vec<PoolKind>,
}

fn disks_alone() -> Vec<PoolKind> {
    vec![PoolKind::Disks]
}

/// Who sees a pool's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PoolScope {
    /// This host only.
    #[default]
    Local,
    /// Every host that names the pool.
    Shared,
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PoolKind {
    /// Virtual hard disks, and what is exported from them. Each namespace has the folder of its name in it.
    Disks,
    /// Images, kernels and initial RAM disks; only read, and by any namespace.
    Images,
}

/// A network interface for External networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Uplink {
    /// Name of the uplink, the same on every host that reaches the same segment.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The interface on this host, given to guests alone: it must carry no address of the host.
    #[schemars(length(min = 1, max = 15))]
    pub interface: String,
}

/// What is kept for the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct Reserve {
    /// Memory kept from machines, in bytes as a quantity. Default: 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).isInteger() && quantity(string(self)).asInteger() >= 0").message("memory must be a quantity of whole bytes, such as 1Gi"))]
    pub memory: Option<ByteQuantity>,
}

/// A person's word that a host is off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutOfService {
    /// Any text; a change is the command.
    #[schemars(length(min = 1, max = 64))]
    pub token: String,
}

/// What a host is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum HostState {
    /// Not seen yet.
    #[default]
    Unknown,
    /// It renews its lease and takes machines.
    Ready,
    /// Its lease is silent; its machines may still run.
    Silent,
    /// It cannot take machines; the conditions say why.
    NotReady,
}

/// What agent and operator know of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// The generation of the spec that the agent's part answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the host is doing, in a word. Written by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<HostState>,
    /// The epoch in its lease. Written by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_epoch: Option<i64>,
    /// The token of `spec.outOfService` that was acted upon. Written by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub out_of_service_token: Option<String>,
    /// The host epoch below which that token ended every machine and attachment of this host. Written by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_service_epoch: Option<i64>,
    /// What the machine has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// Memory for machines (capacity less the reserve), as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub memory: Option<String>,
    /// What runs the guests' instructions: `KVM`, `Emulation` or `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// How guests are run: Qemu, or Hollow when they are only pretended, for tests of scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
    /// The pools of the spec as the agent finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pools: Vec<PoolStatus>,
    /// The uplinks of the spec that exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub uplinks: Vec<UplinkStatus>,
    /// Identity of the running boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot_id: Option<String>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,
    /// What the VirtualHardDisks in its pools are committed to. Written by the operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pool".into()]))]
    pub committed: Vec<Committed>,
    /// For each pool its committed size and its capacity, such as `default 120 GiB/500 GiB`. Written by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub storage: Option<String>,
    /// Ready (operator); PoolsAvailable, UplinksAvailable, Accelerated (agent).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// What a host's machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Processor cores; hyper-threads are not capacity.
    pub cores: i32,
    /// Memory, in bytes.
    pub memory_bytes: i64,
}

/// What runs the guests' instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Accelerator {
    /// KVM on hardware, proved by a guest.
    #[serde(rename = "KVM")]
    #[schemars(rename = "KVM")]
    Kvm,
    /// Translation in software.
    Emulation,
    /// Nothing: no guest can run.
    None,
}

/// How an agent runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Backend {
    /// Real guests.
    Qemu,
    /// Pretended guests, for tests of scale.
    Hollow,
}

/// A pool as the agent finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Name of the pool.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Size of its file system, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<i64>,
    /// Free space, in bytes; reported when it changed by 5 % of the capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<i64>,
    /// Whether it can be used.
    pub state: PoolState,
    /// Why it cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}

/// What the VirtualHardDisks in a pool may grow to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Committed {
    /// Name of the pool.
    #[schemars(length(max = 63))]
    pub pool: String,
    /// Sum of the sizes, as guests see them, of the VirtualHardDisks in it, in bytes; more than its capacity when it is oversubscribed. In a Shared pool those of all hosts.
    pub bytes: i64,
    /// How many they are.
    pub disks: i32,
}

/// Whether a pool can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PoolState {
    /// It can.
    Available,
    /// It is missing or cannot be read.
    Unavailable,
}

/// An uplink as the agent finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UplinkStatus {
    /// Name of the uplink.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Whether its interface exists and may be given to guests.
    pub state: PoolState,
    /// Why it cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}
