//! Pretended work on disks, for tests of scale: everything succeeds at once and nothing is written.

use super::runner::{Control, DiskWorker};
use crate::instance::core::Failure;
use futures::{FutureExt, future::BoxFuture};
use paddock_crds::{VirtualHardDiskTask, virtual_hard_disk_task::TaskResult};
use std::sync::Arc;

/// What a pretended import takes as the size of its source, in bytes.
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
        async move {
            Ok(TaskResult {
                uuid: task.metadata.uid.clone(),
                size_bytes: Some(task.spec.size_bytes.unwrap_or(SOURCE_BYTES)),
                allocated_bytes: Some(0),
            })
        }
        .boxed()
    }
}
