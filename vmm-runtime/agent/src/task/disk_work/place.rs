//! Where a namespace may have files made: whatever the operator has ordered, the last look before a name is used.

use crate::instance::core::Failure;
use paddock_crds::{
    VirtualHardDiskTask,
    reference::{is_in_folder_of, outside_folder},
    virtual_hard_disk_task::{TaskAction, TaskOrder},
};

/// Refuses a file that is made, adopted or exported outside of the folder of the task's namespace. Disks that have a
/// file already are worked on wherever that is.
pub(super) fn check(task: &VirtualHardDiskTask, order: &TaskOrder) -> Result<(), Failure> {
    let file = match task.spec.action {
        TaskAction::Create | TaskAction::Import | TaskAction::Clone | TaskAction::Adopt => {
            Some(&order.file)
        }
        TaskAction::Export => order.target.as_ref(),
        _ => None,
    };
    let namespace = task.metadata.namespace.as_deref().unwrap_or_default();
    match file {
        Some(file) if !is_in_folder_of(namespace, &file.path) => Err(Failure::new(
            "PathNotAllowed",
            outside_folder(namespace, &file.pool, &file.path),
        )),
        _ => Ok(()),
    }
}
