//! VirtualHardDisk: a VHD file in a pool.

pub use crate::virtual_hard_disk_source::{
    DiskSource, HttpSource, ImageFormat, ImageSource, LinkedDisk,
};
use crate::{
    quantity::ByteQuantity,
    reference::{Condition, LocalReference, PATH_MESSAGE, PATH_RULE},
    virtual_hard_disk_task::TaskAction,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A virtual hard disk: a file in the VHD format, in a pool of a host or of all hosts.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "VirtualHardDisk",
    plural = "virtualharddisks",
    shortname = "vhd",
    category = "paddock",
    namespaced,
    status = "VirtualHardDiskStatus",
    derive = "PartialEq",
    cel,
    doc = "A virtual hard disk, kept as a file in the VHD format. It outlives the machines that use it.",
    validation = Rule::new("has(self.spec.size) || has(self.spec.source) || has(self.spec.parentRef) || has(self.spec.linked) || (has(self.spec.file) && has(self.spec.file.mode) && self.spec.file.mode == 'Adopt') || (has(self.status) && has(self.status.sizeBytes))").message("size is required unless there is a source or a parent, file.mode is Adopt, or the disk is made").field_path(".spec.size"),
    validation = Rule::new("!has(self.spec.size) || !has(oldSelf.spec.size) || quantity(string(self.spec.size)).compareTo(quantity(string(oldSelf.spec.size))) >= 0 || (has(self.status) && has(self.status.sizeBytes) && quantity(string(self.spec.size)).asInteger() >= self.status.sizeBytes)").message("size can be raised, but not lowered below what the disk has (status.size): shrink it with a VirtualHardDiskTask Resize").field_path(".spec.size"),
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.state",
        description = "What the disk is doing"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether its file exists and may be used"
    ),
    printcolumn(
        name = "Host",
        type_ = "string",
        json_path = ".status.host",
        description = "The host that holds it; empty in a shared pool"
    ),
    printcolumn(
        name = "Size",
        type_ = "string",
        json_path = ".status.size",
        description = "Size as the guest sees it"
    ),
    printcolumn(
        name = "Attached",
        type_ = "string",
        json_path = ".status.attachment.owner.name",
        description = "Who uses it"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Type",
        type_ = "string",
        json_path = ".status.type",
        description = "What its file is; spec.type is what it is to be",
        priority = 1
    ),
    printcolumn(
        name = "Allocated",
        type_ = "string",
        json_path = ".status.allocated",
        description = "Bytes its file takes in the pool, when last measured",
        priority = 1
    ),
    printcolumn(
        name = "Pool",
        type_ = "string",
        json_path = ".spec.file.pool",
        priority = 1
    ),
    printcolumn(
        name = "Path",
        type_ = "string",
        json_path = ".status.file.path",
        priority = 1
    ),
    printcolumn(
        name = "Lineage",
        type_ = "string",
        json_path = ".status.lineage",
        description = "Its parent, that one's parent, and so on down to the base",
        priority = 1
    ),
    printcolumn(
        name = "Children",
        type_ = "integer",
        json_path = ".status.children.count",
        description = "Differencing disks that have it as their parent",
        priority = 1
    ),
    printcolumn(
        name = "Healthy",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Healthy\")].status",
        description = "What the last Check found",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.type) && self.type == 'Differencing') == has(self.parentRef)").message("parentRef is required with type Differencing, and belongs to no other").field_path(".parentRef"))]
#[x_kube(validation = Rule::new("(has(self.type) && self.type == 'Linked') == has(self.linked)").message("linked is required with type Linked, and belongs to no other").field_path(".linked"))]
#[x_kube(validation = Rule::new("!has(self.linked) || !has(self.size) && !has(self.source)").message("a linked disk has the size and the content of its physical disk: remove size and source").field_path(".linked"))]
#[x_kube(validation = Rule::new("!has(self.linked) || !has(self.file) || !has(self.file.mode) || self.file.mode == 'Create'").message("a linked disk is made, not adopted: remove file.mode").field_path(".file.mode"))]
#[x_kube(validation = Rule::new("(has(self.type) && self.type == 'Linked') == (has(oldSelf.type) && oldSelf.type == 'Linked')").message("a linked disk cannot become another, nor another a linked one: make a disk of it with source.linkedRef").field_path(".type"))]
#[x_kube(validation = Rule::new("!has(self.type) || self.type != 'Differencing' || !has(self.size)").message("a differencing disk has the size of its parent: remove size").field_path(".size"))]
#[x_kube(validation = Rule::new("!has(self.type) || self.type != 'Differencing' || !has(self.source)").message("a differencing disk starts with what its parent holds: remove source").field_path(".source"))]
#[x_kube(validation = Rule::new("!has(self.type) || self.type != 'Differencing' || !has(self.file) || !has(self.file.mode) || self.file.mode == 'Create'").message("a differencing disk is made, not adopted: remove file.mode").field_path(".file.mode"))]
#[x_kube(validation = Rule::new("!has(self.type) || self.type != 'Differencing' || (has(oldSelf.type) && oldSelf.type == 'Differencing')").message("a disk cannot become a differencing disk: make another with parentRef").field_path(".type"))]
#[x_kube(validation = Rule::new("!has(self.parentRef) || !has(oldSelf.parentRef) || self.parentRef.name == oldSelf.parentRef.name").message("parentRef cannot be changed once the disk is made").field_path(".parentRef"))]
#[x_kube(validation = Rule::new("has(self.source) == has(oldSelf.source)").message("source cannot be added or removed once the disk is made").field_path(".source"))]
#[x_kube(validation = Rule::new("!has(self.source) || !has(self.file) || !has(self.file.mode) || self.file.mode == 'Create'").message("file.mode Adopt takes the file as it is: remove source").field_path(".source"))]
#[x_kube(validation = Rule::new("!has(self.file) || !has(self.file.mode) || self.file.mode == 'Create' || has(self.file.path)").message("file.path is required with file.mode Adopt").field_path(".file.path"))]
pub struct VirtualHardDiskSpec {
    /// Fixed takes its whole size at once; Dynamic grows in 2 MiB blocks as the guest writes; Differencing holds what differs from its parent. A disk of another type is converted, while no machine uses it: between Fixed and Dynamic, and from Differencing to either (with parentRef removed) to a disk of its own. Linked is a small file that stands for a physical disk of a host: other disks are made of it by source.linkedRef, and no machine may use it. Default: Dynamic; with file.mode Adopt the type that the file has.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    #[schemars(with = "DiskType")]
    pub disk_type: Option<DiskType>,
    /// Size as the guest sees it, in bytes as a quantity: 3Mi to 2040Gi, a multiple of 512. Omitted: the size of the source, of the parent, or what the disk has. Raised: the disk grows while no machine uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).isInteger() && quantity(string(self)).asInteger() >= 3145728 && quantity(string(self)).asInteger() <= 2190433320960 && quantity(string(self)).asInteger() % 512 == 0").message("size must be between 3Mi and 2040Gi, a multiple of 512 bytes, written without a decimal point, such as 10Gi"))]
    pub size: Option<ByteQuantity>,
    /// Differencing: the disk that it differs from, in the same namespace. Machines cannot use that one, and it is not changed, while it has children.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_ref: Option<LocalReference>,
    /// Linked: the physical disk. It is only read, and only while a disk is made of it. Whoever makes this object must be allowed to update that Host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("linked cannot be changed once the disk is made"))]
    pub linked: Option<LinkedDisk>,
    /// Where the file lies. Default: a new file in the pool `default`.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self.pool == oldSelf.pool && has(self.path) == has(oldSelf.path) && (!has(self.path) || self.path == oldSelf.path) && self.mode == oldSelf.mode").message("file cannot be changed once the disk is made"))]
    pub file: DiskFile,
    /// What the disk starts with. Omitted: zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("source cannot be changed once the disk is made"))]
    pub source: Option<DiskSource>,
    /// ReadOnly: nothing writes the file. It serves as a parent, as a source, and to machines with undo disks; any other machine that names it is refused. Default: ReadWrite.
    #[serde(default)]
    pub access: Access,
    /// What becomes of the file when this object is deleted. Default: Retain.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
    /// When unused space in the file is given back to the pool. Default: never.
    #[serde(default)]
    pub compaction: Compaction,
}

impl VirtualHardDiskSpec {
    /// The type that the disk is to have; none where an adopted file keeps the type that it has.
    #[must_use]
    pub fn wanted_type(&self) -> Option<DiskType> {
        match (self.disk_type, self.file.mode) {
            (None, FileMode::Adopt) => None,
            (given, _) => Some(given.unwrap_or_default()),
        }
    }
}

/// Whether a disk may be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Access {
    /// It may.
    #[default]
    ReadWrite,
    /// It may not.
    ReadOnly,
}

/// When unused space in a disk's file is given back, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Compaction {
    /// WhenStopped: each time after machines have used it, once none that names it is to run. For Dynamic disks without children. Default: Never.
    #[serde(default)]
    pub policy: CompactionPolicy,
    /// Enabled: the blocks of the new file lie in the order of the disk, so that reading the disk reads the file from front to back. Disabled: they keep the order in which they were written. Default: Enabled.
    #[serde(default)]
    pub defragment: Defragment,
    /// Enabled: space that the guest's file systems call free is given back too, where they can be read. Default: Disabled.
    #[serde(default)]
    pub precompact: Precompact,
}

/// When a disk is compacted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum CompactionPolicy {
    /// Only by a task.
    #[default]
    Never,
    /// After its machines have stopped.
    WhenStopped,
}

/// In what order a compaction writes the blocks of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Defragment {
    /// In the order in which they follow on the disk.
    #[default]
    Enabled,
    /// In the order that they have in the old file.
    Disabled,
}

/// Whether a compaction looks for free space in the guest's file systems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Precompact {
    /// It does not: only what holds zeros is given back.
    #[default]
    Disabled,
    /// It does; a file system that is unknown or not clean is left as it is.
    Enabled,
}

/// The type of a virtual hard disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DiskType {
    /// The whole size is taken at once.
    Fixed,
    /// Grows in 2 MiB blocks.
    #[default]
    Dynamic,
    /// Holds what differs from its parent.
    Differencing,
    /// Stands for a physical disk.
    Linked,
}

/// Where a disk's file lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct DiskFile {
    /// Name of the pool, as in the Host's `spec.pools`. Default: default.
    #[serde(default = "default_pool")]
    #[schemars(length(min = 1, max = 63))]
    pub pool: String,
    /// Path within the pool, in the folder that has the name of this object's namespace, such as default/web-1.vhd. Omitted: made from namespace, name and identity, and told in status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(PATH_RULE).message(PATH_MESSAGE))]
    pub path: Option<String>,
    /// Create makes a new file and refuses one that exists; Adopt takes an existing VHD at path as it is, unless another VirtualHardDisk has it; it is converted only if type is given. Default: Create.
    #[serde(default)]
    pub mode: FileMode,
}

impl Default for DiskFile {
    fn default() -> Self {
        Self {
            pool: default_pool(),
            path: None,
            mode: FileMode::Create,
        }
    }
}

fn default_pool() -> String {
    "default".to_owned()
}

/// Whether a file is made or taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum FileMode {
    /// Make a new file.
    #[default]
    Create,
    /// Take an existing VHD.
    Adopt,
}

/// What becomes of a file whose object is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ReclaimPolicy {
    /// The file stays in its pool.
    #[default]
    Retain,
    /// The file is removed.
    Delete,
}

/// What a disk is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DiskState {
    /// Not seen yet.
    #[default]
    Unknown,
    /// Waits for something named in the conditions.
    Pending,
    /// Its file is being made.
    Creating,
    /// Its file is there and nobody uses it.
    Ready,
    /// A machine uses it.
    Attached,
    /// A task works on it; the condition Progressing says which.
    Working,
    /// Its content was merged into its parent, and it has no file any more. Nothing can be done with it but delete it.
    Merged,
    /// It cannot be used; the conditions say why.
    Failed,
    /// It is being deleted.
    Terminating,
}

/// What the operator knows of a disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualHardDiskStatus {
    /// The generation of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the disk is doing, in a word.
    #[serde(default)]
    pub state: DiskState,
    /// The host whose pool holds the file; absent in a shared pool and before the disk is bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub host: Option<String>,
    /// The file, once made. A conversion or compaction makes a new file under another name, to which this switches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<BoundFile>,
    /// Files that it had before, to be removed. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub obsolete_files: Vec<BoundFile>,
    /// What the file is. Differs from `spec.type` until the disk is converted.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    pub disk_type: Option<DiskType>,
    /// A differencing disk's parent, then that one's parent, and so on down to the base: names of VirtualHardDisks, at most 63.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 63), inner(length(max = 253)))]
    pub lineage: Vec<String>,
    /// The files of `lineage`, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 63))]
    pub parent_files: Vec<BoundFile>,
    /// Differencing disks that have it as their parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub children: Option<Children>,
    /// Name of the VirtualHardDisk that its content was merged into: then it has no file any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub merged_into: Option<String>,
    /// A Merge or CommitUndo from its assignment on, until it is done or proved to have changed nothing. Omitted: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Unfinished>,
    /// The undo disk over it: changes that a machine has made and that are not in its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<UndoDisk>,
    /// UUID in the VHD's footer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub uuid: Option<String>,
    /// Serial number of a linked disk's physical disk; empty if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub serial: Option<String>,
    /// Size as the guest sees it, as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub size: Option<String>,
    /// Size as the guest sees it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Bytes that the file took in its pool when it was last measured, as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub allocated: Option<String>,
    /// Who may open the file. Set by compare-and-swap before anything opens it, cleared only on proof that its user has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// The highest disk epoch given out. Each attachment takes the next one.
    #[serde(default)]
    pub disk_epoch: i64,
    /// The disk epoch of the last machine that used it, or under which a child was merged into it, until it is compacted after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_epoch: Option<i64>,
    /// Ready; Progressing (a conversion or a change of size: under way, or what it waits for); Healthy (what the last Check found, of which file and when: False only for errors; gone with the file); Deleting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A change of the disk below that is not done: that one may have a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unfinished {
    /// Merge or CommitUndo. Once interrupted, nothing but the same again brings it to its end; Check may prove that it never began.
    pub action: TaskAction,
    /// Whether a task ended that has begun it, or may have. Default: false.
    #[serde(default)]
    pub interrupted: bool,
}

/// The differencing disks that have a disk as their parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Children {
    /// How many.
    pub count: i32,
    /// Names of the first 5, in alphabetical order.
    #[schemars(length(max = 5), inner(length(max = 253)))]
    pub names: Vec<String>,
}

/// An undo disk: a differencing VHD with the ending `.vud` over a disk, which takes all that its machine writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UndoDisk {
    /// Its file, in the pool of the disk.
    pub file: BoundFile,
    /// The VirtualMachine whose changes it holds, in the same namespace. No other may use the disk.
    #[schemars(length(max = 253))]
    pub machine: String,
    /// UID of that VirtualMachine. One of the same name that was made later uses the undo disk, but has to say what becomes of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub machine_uid: Option<String>,
    /// Whether a guest has run with it: then its file must be there. Default: false.
    #[serde(default)]
    pub ran: bool,
    /// How far it is.
    pub state: UndoState,
}

/// How far an undo disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum UndoState {
    /// The host makes it when the machine starts, if it is not there yet.
    New,
    /// A guest has run with it: its file must be there.
    Kept,
    /// What it holds is to be written into the disk, and then it is removed.
    Committing,
    /// It is to be removed with all that it holds.
    Discarding,
}

/// A disk's file in its pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BoundFile {
    /// Name of the pool.
    #[schemars(length(max = 63))]
    pub pool: String,
    /// Path within the pool.
    #[schemars(length(max = 512))]
    pub path: String,
}

/// The right to open a disk's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Who holds it.
    pub owner: AttachmentOwner,
    /// The host that may open the file.
    #[schemars(length(max = 253))]
    pub host: String,
    /// The host's epoch when it was given.
    pub host_epoch: i64,
    /// The disk's epoch of this attachment; higher than every one before.
    pub disk_epoch: i64,
}

/// Who holds an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttachmentOwner {
    /// VirtualMachine or VirtualHardDiskTask.
    pub kind: OwnerKind,
    /// Name of the object, in the same namespace.
    #[schemars(length(max = 253))]
    pub name: String,
    /// UID of the object.
    #[schemars(length(max = 36))]
    pub uid: String,
}

/// The kind of an attachment's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OwnerKind {
    /// A machine.
    VirtualMachine,
    /// A task on the disk itself.
    VirtualHardDiskTask,
}
