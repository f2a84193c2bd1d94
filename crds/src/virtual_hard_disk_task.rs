//! VirtualHardDiskTask: one piece of work on a disk's file, done by an agent.

use crate::{
    quantity::ByteQuantity,
    reference::{Condition, LocalReference, PoolFile},
    virtual_hard_disk::{Defragment, DiskType, HttpSource, ImageFormat, LinkedDisk, Precompact},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One piece of work on a virtual hard disk.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "VirtualHardDiskTask",
    plural = "virtualharddisktasks",
    shortname = "vhdtask",
    category = "paddock",
    namespaced,
    status = "VirtualHardDiskTaskStatus",
    derive = "PartialEq",
    cel,
    selectable = ".status.host",
    doc = "One piece of work on a virtual hard disk: Compact, Merge, Resize, Check, Export, CommitUndo and DiscardUndo may be asked for once by making one; the others are the operator's own. It waits until nobody uses the disk, is done by the agent of the host in its status, and stays until it is deleted. Deleting one that is at work ends it, and leaves the disk as it was.",
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(
        name = "Disk",
        type_ = "string",
        json_path = ".spec.virtualHardDiskRef.name"
    ),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(
        name = "Progress",
        type_ = "integer",
        json_path = ".status.progressPercent",
        description = "Per cent done"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.reason",
        description = "What it waits for, or why it failed"
    ),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.host"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a task cannot be changed; delete it and make another"))]
#[x_kube(validation = Rule::new("(self.action == 'Resize') || !has(self.size) && !has(self.shrink)").message("size and shrink belong to the action Resize").field_path(".action"))]
#[x_kube(validation = Rule::new("self.action != 'Resize' || has(self.size)").message("the action Resize needs a size").field_path(".size"))]
#[x_kube(validation = Rule::new("self.action == 'Compact' || !has(self.precompact) && !has(self.defragment)").message("precompact and defragment belong to the action Compact").field_path(".action"))]
#[x_kube(validation = Rule::new("self.action == 'Export' || !has(self.target) && !has(self.format)").message("target and format belong to the action Export").field_path(".action"))]
#[x_kube(validation = Rule::new("self.action != 'Export' || has(self.target)").message("the action Export needs a target").field_path(".target"))]
pub struct VirtualHardDiskTaskSpec {
    /// What to do.
    pub action: TaskAction,
    /// The disk that it is done to, in the same namespace.
    pub virtual_hard_disk_ref: LocalReference,
    /// Resize: size as the guest will see it, in bytes as a quantity: 3Mi to 2040Gi, a multiple of 512. Not below the disk's `spec.size`: remove or lower that first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).isInteger() && quantity(string(self)).asInteger() >= 3145728 && quantity(string(self)).asInteger() <= 2190433320960 && quantity(string(self)).asInteger() % 512 == 0").message("size must be between 3Mi and 2040Gi, a multiple of 512 bytes, written without a decimal point, such as 10Gi"))]
    pub size: Option<ByteQuantity>,
    /// Resize: whether the disk may become smaller. Default: Refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrink: Option<Shrink>,
    /// Compact: whether space that the guest's file systems call free is given back too. Default: Disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precompact: Option<Precompact>,
    /// Compact: whether the blocks of the new file lie in the order of the disk, so that reading the disk reads the file from front to back, or keep the order that they have. Default: Enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defragment: Option<Defragment>,
    /// Export: the file to make, in a pool that holds Disks and in the folder that has the name of this object's namespace, such as default/out.img; one that is there is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PoolFile>,
    /// Export: the format of the file. Default: Raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ExportFormat>,
}

impl VirtualHardDiskTaskSpec {
    /// An action on a disk, without what only some actions have.
    #[must_use]
    pub fn new(action: TaskAction, disk: &str) -> Self {
        Self {
            action,
            virtual_hard_disk_ref: LocalReference {
                name: disk.to_owned(),
            },
            size: None,
            shrink: None,
            precompact: None,
            defragment: None,
            target: None,
            format: None,
        }
    }
}

/// What a task does. Create, Import, Clone, Adopt, Convert and Delete are made by the operator alone, from the disk's spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TaskAction {
    /// Make an empty disk, a differencing disk on its parent, or the descriptor of a physical disk; an existing file is refused.
    Create,
    /// Make a disk from an image in a pool or on the web, or from a physical disk; an existing file is refused.
    Import,
    /// Make a disk from the content of another; an existing file is refused.
    Clone,
    /// Look at an existing file, change nothing.
    Adopt,
    /// Make a new file of another type with the disk's content, that of its parents included.
    Convert,
    /// Remove a file.
    Delete,
    /// Make a new file without the space that is unused.
    Compact,
    /// Write what a differencing disk holds into its parent, and remove its file. The parent must have no other child; the disk is then Merged.
    Merge,
    /// Change the size.
    Resize,
    /// Read the whole structure of the file and tell what is wrong; change nothing.
    Check,
    /// Write the disk's content, that of its parents included, into a file of its own.
    Export,
    /// Write what the undo disk holds into the disk, and remove the undo disk.
    CommitUndo,
    /// Remove the undo disk and all that it holds.
    DiscardUndo,
}

/// Whether a Resize may make a disk smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Shrink {
    /// It may not.
    #[default]
    Refuse,
    /// Only if what would be cut off holds nothing but zeros.
    IfEmpty,
    /// It may: what is cut off is lost.
    Force,
}

/// The format of an exported file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ExportFormat {
    /// The bytes of the disk, one after another.
    #[default]
    Raw,
    /// A fixed VHD.
    FixedVhd,
    /// A dynamic VHD.
    DynamicVhd,
}

/// What the operator has resolved for a task's agent, in one write with the host: it does not change afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskOrder {
    /// UID of the VirtualHardDisk. The identity of a disk that is made follows from it.
    #[schemars(length(max = 36))]
    pub disk_uid: String,
    /// The disk epoch under which the file is opened. Delete of an obsolete file opens nothing and has the last epoch that was given.
    #[schemars(range(min = 1))]
    pub disk_epoch: i64,
    /// The file that it is done to: the new one with Create, Import and Clone, the one that is there with every other action.
    pub file: PoolFile,
    /// The parents of `file`, nearest first: with Create those of the new differencing disk (none: it has no parent), else those of the one that is there. Nothing writes them, but Merge the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 63))]
    pub parents: Vec<PoolFile>,
    /// Convert, Compact, Export: the file to make. One that was made for this very task counts as done, any other is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PoolFile>,
    /// Create, Import, Clone, Convert, Compact: the type of the disk that is made.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    pub disk_type: Option<DiskType>,
    /// Create, Import, Clone, Resize: size as the guest will see it, in bytes. Omitted: that of the source or parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 3145728, max = 2190433320960i64))]
    pub size_bytes: Option<i64>,
    /// Import: the image in a pool that the content comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<TaskSource>,
    /// Import: the image on the web that the content comes from, in place of `source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<HttpSource>,
    /// Import: the linked disk whose physical disk is copied, in place of `source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linked: Option<PoolFile>,
    /// Create: the physical disk that the new linked disk stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<LinkedDisk>,
    /// Clone: the disk to copy and its parents, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub clone: Vec<PoolFile>,
    /// CommitUndo, DiscardUndo, Check: the undo disk over `file`. One that is not there counts as discarded; as committed only where an earlier agent was at work on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<PoolFile>,
    /// Resize: whether the disk may become smaller.
    #[serde(default)]
    pub shrink: Shrink,
    /// Compact: whether free space of the guest's file systems is given back.
    #[serde(default)]
    pub precompact: Precompact,
    /// Compact: in what order the blocks lie in `target`.
    #[serde(default)]
    pub defragment: Defragment,
    /// Export: the format of `target`.
    #[serde(default)]
    pub format: ExportFormat,
}

/// Where an import reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskSource {
    /// The image.
    #[serde(flatten)]
    pub file: SourceFile,
    /// Its format.
    #[serde(default)]
    pub format: ImageFormat,
    /// Its SHA-256 in lower-case hexadecimal digits, if it is to be checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub sha256: Option<String>,
}

/// A file that is only read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceFile {
    /// Name of the pool.
    #[schemars(length(min = 1, max = 63))]
    pub pool: String,
    /// Path within the pool.
    #[schemars(length(min = 1, max = 512))]
    pub path: String,
}

/// How far a task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TaskState {
    /// Not started.
    #[default]
    Pending,
    /// At work.
    Running,
    /// Done.
    Succeeded,
    /// Could not be done; the reason says why.
    Failed,
}

/// What the operator assigned and the agent reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualHardDiskTaskStatus {
    /// The host that does it. Written by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub host: Option<String>,
    /// The epoch of that host. Written by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_epoch: Option<i64>,
    /// What exactly is to be done. Written by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<TaskOrder>,
    /// How far it is.
    #[serde(default)]
    pub state: TaskState,
    /// Per cent done, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub progress_percent: Option<i32>,
    /// What it waits for or why it failed, in one CamelCase word. Before there is a host, state, reason and message are the operator's; then the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// What it waits for or why it failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// What it made or found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<TaskResult>,
    /// Reserved for the operator's conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// What a task made or found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskResult {
    /// UUID in the VHD's footer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub uuid: Option<String>,
    /// Size as the guest sees it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Bytes that the file takes in its pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated_bytes: Option<i64>,
    /// Create, Import, Clone, Adopt, Convert, Compact: the type of the disk that was made or found.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    pub disk_type: Option<DiskType>,
    /// Create: serial number of the physical disk that the linked disk stands for; empty if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub serial: Option<String>,
    /// Check: what was found, in words, each beginning with `error:`, `warning:` or `note:`; empty when nothing was. At most 16, the gravest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(max = 256)))]
    pub findings: Option<Vec<String>>,
    /// Adopt: the highest disk epoch under which the file was opened before, as its lock file says. The disk's own epochs go on from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_epoch: Option<i64>,
    /// Merge and CommitUndo that failed, Check: whether a merge of the file (of the undo disk, if there is one) into what lies below was begun and not ended. Omitted: it could not be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<bool>,
}
