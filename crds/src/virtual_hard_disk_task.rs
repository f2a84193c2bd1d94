//! VirtualHardDiskTask: one piece of work on a disk's file, done by an agent.

use crate::{
    reference::{Condition, LocalReference, PoolFile},
    virtual_hard_disk::{DiskType, ImageFormat},
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
    doc = "One piece of work on a virtual hard disk's file: made by the operator, done by the agent of the host in its status.",
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
pub struct VirtualHardDiskTaskSpec {
    /// What to do.
    pub action: TaskAction,
    /// The disk that it is done to, in the same namespace.
    pub virtual_hard_disk_ref: LocalReference,
    /// The file that it is done to.
    pub file: PoolFile,
    /// Create, Import: the type of the new disk.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    pub disk_type: Option<DiskType>,
    /// Create, Import: size as the guest will see it, in bytes. Omitted with Import: the size of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 3145728, max = 2190433320960i64))]
    pub size_bytes: Option<i64>,
    /// Import: where the content comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<TaskSource>,
    /// The disk epoch under which it opens the file.
    #[schemars(range(min = 1))]
    pub disk_epoch: i64,
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TaskAction {
    /// Make an empty disk; an existing file is refused.
    Create,
    /// Make a disk from an image; an existing file is refused.
    Import,
    /// Look at an existing file, change nothing.
    Adopt,
    /// Remove the file.
    Delete,
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
    /// How far it is.
    #[serde(default)]
    pub state: TaskState,
    /// Per cent done, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub progress_percent: Option<i32>,
    /// Why it failed, in one CamelCase word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// Why it failed, for people.
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
}
