//! Files that hosts share and that a task changes or replaces: from its disk epoch on, no earlier one is opened.

use super::{
    Job,
    failure::{from_open, io_error},
};
use crate::instance::core::Failure;
use paddock_crds::virtual_hard_disk_task::TaskAction;
use paddock_vhd::{LockOwner, OpenErrorKind, claim as claim_disk};

/// Notes in the lock files that the disk is this host's in the task's epoch. A host that comes back with an earlier
/// one is refused, and this one, should it be late, by a later.
pub(super) fn claim(job: &Job<'_>, action: TaskAction, host: &str) -> Result<(), Failure> {
    // What only gives room back needs none, in a pool that is full.
    let changes = matches!(
        action,
        TaskAction::Convert
            | TaskAction::Compact
            | TaskAction::Resize
            | TaskAction::Merge
            | TaskAction::CommitUndo
    );
    let order = job.order;
    let files = std::iter::once(&order.file).chain(&order.undo);
    let shared = files.filter(|file| changes && job.pools.is_shared(&file.pool));
    for file in shared {
        let epoch = u64::try_from(order.disk_epoch).unwrap_or_default();
        let boot = LockOwner::this_boot().map_err(|error| io_error(error.to_string()))?;
        let owner =
            LockOwner::new(epoch, host, boot).map_err(|error| io_error(error.to_string()))?;
        let at = job.pools.at(file)?;
        match claim_disk(&at.pool, at.path, &owner) {
            Ok(()) => {}
            // Removed before a crash, which the work itself knows to tell from a loss.
            Err(error) if error.kind() == OpenErrorKind::NotFound => {}
            Err(error) => return Err(at.named(from_open(&error))),
        }
    }
    Ok(())
}
