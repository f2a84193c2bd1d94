//! VirtualMachine: what a user asks for.

use crate::{
    quantity::ByteQuantity,
    reference::{Condition, LocalReference, PoolFile},
    virtual_hard_disk::{BoundFile, UndoState},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A virtual machine: its power, processors, memory, disks and network adapters.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "VirtualMachine",
    plural = "virtualmachines",
    shortname = "vm",
    category = "paddock",
    namespaced,
    status = "VirtualMachineStatus",
    derive = "PartialEq",
    cel,
    doc = "A virtual machine. Apply it and it runs; change runPolicy to stop or pause it; delete it and its virtual hard disks stay.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name must be at most 63 characters: it becomes the guest's host name"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "What the machine is doing"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether it does what its spec asks for"),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.host", description = "The host that runs it"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.ipAddress", description = "Its first address"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Cores", type_ = "integer", json_path = ".spec.cpu.cores", priority = 1),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.memory", priority = 1),
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.runPolicy", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineSpec {
    /// The power state to keep: Running starts it, and again whenever it stops; Stopped shuts it down; Paused freezes its processors. Default: Running.
    #[serde(default)]
    pub run_policy: RunPolicy,
    /// The machine to emulate. PC has a BIOS, IDE, SCSI and PCI. Default: PC.
    #[serde(default)]
    pub machine: Machine,
    /// Hardware virtualization: Auto takes it where the host has it, Required waits for such a host, Disabled always emulates. Default: Auto.
    #[serde(default)]
    pub acceleration: Acceleration,
    /// Virtual processors. Default: one core.
    #[serde(default)]
    pub cpu: Cpu,
    /// The guest's memory, in bytes as a quantity, 16Mi to 4Ti in whole Mi. Never overcommitted; the host's overhead for the machine is counted apart.
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).isInteger() && quantity(string(self)).asInteger() >= 16777216 && quantity(string(self)).asInteger() <= 4398046511104 && quantity(string(self)).asInteger() % 1048576 == 0").message("memory must be a whole number of Mi between 16Mi and 4Ti, written without a decimal point, such as 512Mi"))]
    pub memory: ByteQuantity,
    /// How it starts. Default: the BIOS boots the first disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Box<Boot>>,
    /// Virtual hard disks, the first being the one that the BIOS boots. At most 32: 4 on IDE, 28 on SCSI, 16 on Virtio.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = Rule::new("self.filter(d, has(d.bus) && d.bus == 'IDE').size() <= 4").message("disks: an IDE bus holds at most 4 disks"))]
    #[x_kube(validation = Rule::new("self.filter(d, has(d.bus) && d.bus == 'SCSI').size() <= 28").message("disks: SCSI holds at most 28 disks (4 controllers of 7)"))]
    #[x_kube(validation = Rule::new("self.filter(d, has(d.bus) && d.bus == 'Virtio').size() <= 16").message("disks: Virtio holds at most 16 disks"))]
    pub disks: Vec<Disk>,
    /// Undo disks: what the guest writes goes into files of their own over its disks, to be kept, committed or discarded. Default: Disabled.
    #[serde(default)]
    pub undo_disks: UndoDisks,
    /// Network adapters, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = Rule::new("self.all(a, !has(a.macAddress) || self.filter(b, has(b.macAddress) && b.macAddress.lowerAscii() == a.macAddress.lowerAscii()).size() == 1)").message("networkAdapters: each macAddress may be used once in a machine"))]
    pub network_adapters: Vec<NetworkAdapter>,
    /// Only hosts whose labels match may run it. Default: any host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_selector: Option<Box<LabelSelector>>,
    /// Any text; when it changes, the guest is shut down and started once, as soon as its new disks are made. At most 64 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub restart_token: Option<String>,
    /// Seconds that a guest has to shut down after its power button is pressed, before it is turned off: 0 to 3600. Default: 60.
    #[serde(default = "default_stop_deadline")]
    #[schemars(range(min = 0, max = 3600))]
    pub stop_deadline_seconds: i32,
}

fn default_stop_deadline() -> i32 {
    60
}

/// The power state to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RunPolicy {
    /// Keep it running.
    #[default]
    Running,
    /// Keep it off.
    Stopped,
    /// Keep its processors frozen, its memory held.
    Paused,
}

/// The emulated machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Machine {
    /// A PC with a BIOS.
    #[default]
    #[serde(rename = "PC")]
    #[schemars(rename = "PC")]
    Pc,
}

/// Use of hardware virtualization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Acceleration {
    /// Hardware where the host has it, else emulation.
    #[default]
    Auto,
    /// Hardware only.
    Required,
    /// Emulation only.
    Disabled,
}

/// Virtual processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cpu {
    /// Number of virtual processors, 1 to 32; at most the host's cores. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 32))]
    pub cores: i32,
}

fn one() -> i32 {
    1
}

impl Default for Cpu {
    fn default() -> Self {
        Self { cores: 1 }
    }
}

/// How a machine starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Boot {
    /// Starts this Linux kernel directly, without BIOS and boot loader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelBoot>,
}

/// A Linux kernel started directly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KernelBoot {
    /// Pool that holds kernel and initrd, as in the Host's `spec.pools`. One that holds disks is refused.
    #[schemars(length(min = 1, max = 63))]
    pub pool: String,
    /// Path of the kernel (bzImage) within the pool.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(crate::reference::PATH_RULE).message(crate::reference::PATH_MESSAGE))]
    pub path: String,
    /// Path of the initial RAM disk within the same pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(crate::reference::PATH_RULE).message(crate::reference::PATH_MESSAGE))]
    pub initrd: Option<String>,
    /// Kernel command line, at most 2047 characters. Default: empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2047))]
    pub command_line: String,
}

/// A virtual hard disk in a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Name of the disk within the machine: lower-case letters, digits and '-', at most 32 characters.
    #[schemars(
        length(min = 1, max = 32),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The bus it is attached to. IDE holds disks up to 127 GiB. Default: IDE.
    #[serde(default)]
    pub bus: Bus,
    /// The VirtualHardDisk, in the same namespace.
    pub virtual_hard_disk_ref: LocalReference,
}

/// Undo disks of a machine: all of its disks have one, or none has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UndoDisks {
    /// Enabled: every start from off gives each disk an undo disk, or goes on with the one that was kept. Disabled, or taken away: undo disks that were kept are deleted at once, with all that they hold; those of an earlier machine of the same name wait for a request. A change waits until the machine is off. Default: Disabled.
    #[serde(default)]
    pub mode: UndoMode,
    /// What becomes of them when the machine is stopped or deleted. When the guest shuts down from inside they are always kept. Default: Keep.
    #[serde(default)]
    pub on_stop: OnStop,
    /// A command to commit or discard what was kept, carried out once while the machine is off. A disk with access ReadOnly is not committed, and UndoDisksPending says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<UndoRequest>,
}

/// Whether a machine has undo disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum UndoMode {
    /// What the guest writes goes into its disks.
    #[default]
    Disabled,
    /// What the guest writes goes into undo disks.
    Enabled,
}

/// What becomes of undo disks at a stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnStop {
    /// They wait for the next start.
    #[default]
    Keep,
    /// What they hold is written into the disks.
    Commit,
    /// They are removed with all that they hold.
    Discard,
}

/// A command to commit or discard undo disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UndoRequest {
    /// What to do.
    pub action: UndoAction,
    /// Any text, at most 64 characters; a change is the command.
    #[schemars(length(min = 1, max = 64))]
    pub token: String,
}

/// What to do with undo disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum UndoAction {
    /// Write what they hold into the disks.
    Commit,
    /// Remove them with all that they hold.
    Discard,
}

/// The bus of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Bus {
    /// Two channels of two disks, each up to 127 GiB.
    #[default]
    #[serde(rename = "IDE")]
    #[schemars(rename = "IDE")]
    Ide,
    /// Four controllers of seven disks.
    #[serde(rename = "SCSI")]
    #[schemars(rename = "SCSI")]
    Scsi,
    /// virtio-blk: the fastest, needs a driver in the guest.
    Virtio,
}

/// A network adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkAdapter {
    /// Name of the adapter within the machine: lower-case letters, digits and '-', at most 32 characters.
    #[schemars(
        length(min = 1, max = 32),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The emulated adapter. Auto chooses Virtio. Default: Auto.
    #[serde(default)]
    pub model: AdapterModel,
    /// The VirtualNetwork it is plugged into, in the same namespace. Omitted: unplugged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_network_ref: Option<LocalReference>,
    /// Its MAC address (unicast, `02:00:00:00:00:01`). Omitted: one is made from the machine's identity and kept in status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(equal = 17),
        regex(pattern = r"^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$")
    )]
    #[x_kube(validation = Rule::new("self != '00:00:00:00:00:00'").message("macAddress must not be all zeros"))]
    pub mac_address: Option<String>,
}

/// The emulated network adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AdapterModel {
    /// The best that the machine has: Virtio.
    #[default]
    Auto,
    /// virtio-net.
    Virtio,
    /// Intel 82540EM, for guests without virtio drivers.
    E1000,
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MachineState {
    /// Not seen yet.
    #[default]
    Unknown,
    /// Waits for something named in the conditions.
    Pending,
    /// A host is starting it.
    Starting,
    /// The guest's processors run.
    Running,
    /// The guest's processors are frozen.
    Paused,
    /// The guest was asked to shut down.
    Stopping,
    /// Off.
    Stopped,
    /// It ended by itself and starts again.
    Restarting,
    /// It cannot run; the conditions say why.
    Failed,
    /// It is being deleted.
    Terminating,
}

/// What the operator knows of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineStatus {
    /// The generation of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the machine is doing, in a word.
    #[serde(default)]
    pub state: MachineState,
    /// The host that runs it, or ran it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub host: Option<String>,
    /// The address of its first adapter that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub ip_address: Option<String>,
    /// SMBIOS UUID, derived from the object's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub uuid: Option<String>,
    /// Network adapters with what was assigned to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub network_adapters: Vec<AssignedAdapter>,
    /// When the guest that runs now was started (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub started_at: Option<String>,
    /// How often it was started again after it ended by itself, since it was placed on its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<i32>,
    /// How its last stop ended: PowerButton (the guest shut down when asked), Kill or Quit (it was turned off), GuestPowerOff (by itself).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub stop_step: Option<String>,
    /// Host memory set aside for it beyond the guest's own, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_overhead_bytes: Option<i64>,
    /// Its undo disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub undo_disks: Vec<UndoDiskStatus>,
    /// The token of `spec.undoDisks.request` that was acted upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub undo_request_token: Option<String>,
    /// Ready, Scheduled, RestartRequired, UndoDisksPending (a change of undoDisks waits until the machine is off), Deleting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The undo disk of one of a machine's disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UndoDiskStatus {
    /// Name of the disk within the machine.
    #[schemars(length(max = 32))]
    pub name: String,
    /// Its VirtualHardDisk.
    #[schemars(length(max = 253))]
    pub virtual_hard_disk: String,
    /// The undo disk's file.
    pub file: BoundFile,
    /// How far it is.
    pub state: UndoState,
}

/// What was assigned to a network adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AssignedAdapter {
    /// Name of the adapter.
    #[schemars(length(max = 32))]
    pub name: String,
    /// Its MAC address.
    #[schemars(length(max = 17))]
    pub mac_address: String,
    /// Name of the VirtualNetwork that the address below belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub virtual_network: Option<String>,
    /// The address that DHCP gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub ip_address: Option<String>,
}

/// A kernel and its initrd as files in a pool.
impl KernelBoot {
    /// The kernel's file.
    #[must_use]
    pub fn kernel_file(&self) -> PoolFile {
        PoolFile {
            pool: self.pool.clone(),
            path: self.path.clone(),
        }
    }

    /// The initial RAM disk's file.
    #[must_use]
    pub fn initrd_file(&self) -> Option<PoolFile> {
        self.initrd.as_ref().map(|path| PoolFile {
            pool: self.pool.clone(),
            path: path.clone(),
        })
    }
}
