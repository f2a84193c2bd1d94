//! Disk tasks with `paddock-vhd`, in threads that may block.
//!
//! Every task may be repeated after a crash of the agent. A disk that is made carries an identity that follows from
//! the VirtualHardDisk it is made for (a converted or exported one also from its path and its task's disk epoch), so a file that is there already
//! counts as done exactly if it carries that one; a raw image counts as done if it holds just what the disk shows. Any
//! other file is somebody's and is not touched. What was not finished has a temporary name, which the next try replaces
//! under the file's lock; a merge and a change of size take up what was begun.
//!
//! What a task has made that fails or is cancelled is removed, and of a merge that fails it is told whether it has begun:
//! until it has, the disk is as usable as before.

mod change;
mod claim;
mod download;
mod failure;
mod image;
mod left;
mod linked;
mod look;
mod make;
mod place;
mod pools;
mod target;
#[cfg(test)]
mod tests;

use super::runner::{Control, DiskWorker};
use crate::{
    download::Web,
    host::{self, SpecReceiver},
    instance::core::Failure,
};
use failure::io_error;
use futures::{FutureExt, channel::oneshot, future::BoxFuture};
use paddock_crds::{
    HostSpec, VirtualHardDiskTask,
    virtual_hard_disk_task::{TaskAction, TaskOrder, TaskResult, TaskState},
};
use pools::Pools;
use std::{ops::ControlFlow, sync::Arc};
use uuid::Uuid;

/// The namespace of the identities (a random UUID of this purpose).
const IDENTITIES: Uuid = Uuid::from_u128(0x8f2b_64a1_0d5e_4c7b_9a36_51e0_c2d4_7f18);

/// Works on real files.
pub struct VhdWorker {
    spec: SpecReceiver,
}

impl VhdWorker {
    /// A worker on the pools of the Host.
    #[must_use]
    pub fn new(spec: SpecReceiver) -> Self {
        Self { spec }
    }
}

impl DiskWorker for VhdWorker {
    fn perform(
        &self,
        task: Arc<VirtualHardDiskTask>,
        control: Arc<Control>,
    ) -> BoxFuture<'static, Result<TaskResult, Failure>> {
        let spec = self.spec.clone();
        async move {
            let spec = host::spec(&spec)
                .await
                .map_err(|error| Failure::new("PoolUnavailable", error))?;
            beside(move || perform(&task, &spec, &control)).await?
        }
        .boxed()
    }

    fn leave_off(
        &self,
        task: Arc<VirtualHardDiskTask>,
        begun: bool,
    ) -> BoxFuture<'static, Option<TaskResult>> {
        if !left::is_told(task.spec.action) {
            return async { None }.boxed();
        }
        let spec = self.spec.clone();
        async move {
            let spec = host::spec(&spec).await.ok()?;
            beside(move || left::leave_off(&task, &spec, begun))
                .await
                .ok()?
        }
        .boxed()
    }
}

/// Does work in a thread of its own: one that hangs on a dead pool takes none from others.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let (answer, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("task".to_owned())
        .spawn(move || {
            // Nobody waits any more when the agent ends.
            let _ = answer.send(work());
        })
        .map_err(|error| io_error(format!("start a thread: {error}")))?;
    result
        .await
        .map_err(|error| io_error(format!("the work broke off: {error}")))
}

/// A task that is worked on.
struct Job<'a> {
    order: &'a TaskOrder,
    pools: Pools<'a>,
    control: &'a Control,
    /// Whether an agent was at work on it before.
    begun: bool,
}

impl<'a> Job<'a> {
    fn new(order: &'a TaskOrder, host: &'a HostSpec, control: &'a Control, begun: bool) -> Self {
        Self {
            order,
            pools: Pools::of(host),
            control,
            begun,
        }
    }

    /// The identity of the disk that the task makes in the place of the VirtualHardDisk's own: it follows from that
    /// one's uid, so that another task of the same disk recognises the file too.
    fn identity(&self) -> Uuid {
        Uuid::new_v5(&IDENTITIES, self.order.disk_uid.as_bytes())
    }

    /// The identity of a further file of the same disk: it follows from its place too, and from the disk epoch, which
    /// no other task has: what an earlier one has made there may be of another content.
    fn identity_at(&self, pool: &str, path: &str) -> Uuid {
        let order = self.order;
        let text = format!("{}\n{}\n{pool}\n{path}", order.disk_uid, order.disk_epoch);
        Uuid::new_v5(&IDENTITIES, text.as_bytes())
    }

    /// Takes in how far the work is; ends it when the task was deleted.
    fn progress(&self) -> impl FnMut(paddock_vhd::Progress) -> ControlFlow<()> + '_ {
        |progress| {
            self.control.set_progress(progress.done, progress.total);
            if self.control.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        }
    }

    /// As [`Job::progress`], for work that would leave something half done: it goes on to its end.
    fn steady_progress(&self) -> impl FnMut(paddock_vhd::Progress) -> ControlFlow<()> + '_ {
        |progress| {
            self.control.set_progress(progress.done, progress.total);
            ControlFlow::Continue(())
        }
    }
}

/// Does a task. Blocks.
fn perform(
    task: &VirtualHardDiskTask,
    host: &HostSpec,
    control: &Control,
) -> Result<TaskResult, Failure> {
    let status = task.status.as_ref();
    let order = status
        .and_then(|status| status.order.as_ref())
        .ok_or_else(|| io_error("status.order is missing: the operator writes it".to_owned()))?;
    if control.is_cancelled() {
        return Err(failure::cancelled());
    }
    place::check(task, order)?;
    let begun = status.is_some_and(|status| status.state == TaskState::Running);
    let job = Job::new(order, host, control, begun);
    let name = status.and_then(|status| status.host.as_deref());
    claim::claim(&job, task.spec.action, name.unwrap_or_default())?;
    match task.spec.action {
        TaskAction::Create if order.device.is_some() => linked::link_device(&job),
        TaskAction::Create => make::create(&job),
        TaskAction::Import if order.download.is_some() => download::import(&job, &Web::system()),
        TaskAction::Import if order.linked.is_some() => linked::import(&job),
        TaskAction::Import if image::is_vhd(order) => image::import(&job),
        TaskAction::Import => make::import(&job),
        TaskAction::Clone => make::clone(&job),
        TaskAction::Adopt => look::adopt(&job),
        TaskAction::Check => look::check(&job),
        TaskAction::Delete => change::delete(&job),
        TaskAction::Resize => change::resize(&job),
        TaskAction::Merge => change::merge(&job),
        TaskAction::CommitUndo => change::commit_undo(&job),
        TaskAction::DiscardUndo => change::discard_undo(&job),
        TaskAction::Convert => target::convert(&job),
        TaskAction::Compact => target::compact(&job),
        TaskAction::Export => target::export(&job),
    }
}

/// What is told of a size in bytes; `None` for one that the API cannot hold.
fn bytes(bytes: u64) -> Option<i64> {
    i64::try_from(bytes).ok()
}
