//! Pretended work on disks, for tests of scale: everything succeeds at once and nothing is written.

use super::runner::{Control, DiskWorker};
use crate::instance::core::Failure;
use futures::{FutureExt, future::BoxFuture};
use paddock_crds::{
    VirtualHardDiskTask,
    virtual_hard_disk::DiskType,
    virtual_hard_disk_task::{TaskAction, TaskResult},
};
use std::sync::Arc;

/// Size of a pretended disk whose order names none, in bytes.
const SOURCE_BYTES: i64 = 1 << 30;

/// The pretending worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct HollowWorker;

impl DiskWorker for HollowWorker {
    fn perform(
        &self,
        task: Arc<VirtualHardDiskTask>,
        _: Arc<Control>,
    ) -> BoxFuture<'static, Result<TaskResult, Failure>> {
        async move { Ok(pretend(&task)) }.boxed()
    }

    fn leave_off(
        &self,
        _: Arc<VirtualHardDiskTask>,
        _: bool,
    ) -> BoxFuture<'static, Option<TaskResult>> {
        async { None }.boxed()
    }
}

fn pretend(task: &VirtualHardDiskTask) -> TaskResult {
    let order = task
        .status
        .as_ref()
        .and_then(|status| status.order.as_ref());
    let has_file = task.spec.action != TaskAction::Delete;
    let disk_type = order.map(|order| match order.disk_type {
        _ if task.spec.action == TaskAction::Create && !order.parents.is_empty() => {
            DiskType::Differencing
        }
        disk_type => disk_type.unwrap_or_default(),
    });
    TaskResult {
        uuid: task.metadata.uid.clone().filter(|_| has_file),
        size_bytes: order
            .map(|order| order.size_bytes.unwrap_or(SOURCE_BYTES))
            .filter(|_| has_file),
        allocated_bytes: Some(0).filter(|_| has_file),
        serial: None,
        disk_type: disk_type.filter(|_| makes_a_disk(task.spec.action)),
        findings: (task.spec.action == TaskAction::Check).then(Vec::new),
        disk_epoch: None,
        begun: None,
    }
}

fn makes_a_disk(action: TaskAction) -> bool {
    matches!(
        action,
        TaskAction::Create
            | TaskAction::Import
            | TaskAction::Clone
            | TaskAction::Adopt
            | TaskAction::Convert
            | TaskAction::Compact
    )
}
