//! Whether a piece of work may begin on a disk that nobody holds.

use super::{Draft, family::listed};
use crate::identity::name;
use paddock_crds::{
    VirtualHardDiskTaskSpec,
    quantity::format_bytes,
    reference::{PoolFile, is_in_folder_of, outside_folder},
    virtual_hard_disk::{Access, DiskType},
    virtual_hard_disk_task::TaskAction,
};

/// The reason where a path is not in its namespace's folder.
pub(super) const PATH_NOT_ALLOWED: &str = "PathNotAllowed";

/// Why a piece of work does not begin.
pub(super) struct Refused {
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// Whether it may begin later by itself; else it has failed.
    pub(super) waits: bool,
}

fn wrong(reason: &'static str, message: impl Into<String>) -> Refused {
    Refused {
        reason,
        message: message.into(),
        waits: false,
    }
}

fn waits(reason: &'static str, message: impl Into<String>) -> Refused {
    Refused {
        reason,
        message: message.into(),
        waits: true,
    }
}

/// Actions that may be asked for by making a task.
pub(super) fn may_be_asked(action: TaskAction) -> bool {
    matches!(
        action,
        TaskAction::Compact
            | TaskAction::Merge
            | TaskAction::Resize
            | TaskAction::Check
            | TaskAction::Export
            | TaskAction::CommitUndo
            | TaskAction::DiscardUndo
    )
}

impl Draft<'_> {
    /// Why work on the disk's file may not begin, whoever asks for it.
    pub(super) fn refuse(&self, spec: &VirtualHardDiskTaskSpec) -> Option<Refused> {
        let status = &self.plan.status;
        let action = spec.action;
        let on_undo = matches!(action, TaskAction::CommitUndo | TaskAction::DiscardUndo);
        let in_place = matches!(
            action,
            TaskAction::Convert | TaskAction::Compact | TaskAction::Resize | TaskAction::CommitUndo
        );
        if status.disk_type == Some(DiskType::Linked) {
            return Some(wrong(
                "Linked",
                "a linked disk only stands for a physical one: make a disk of it by source.linkedRef, and work on that",
            ));
        }
        let unfinished = status.unfinished.as_ref().map(|u| u.action);
        if unfinished == Some(TaskAction::Merge)
            && !matches!(action, TaskAction::Merge | TaskAction::Check)
        {
            return Some(wrong("MergeInterrupted", self.merge_interrupted()));
        }
        match (&status.undo, on_undo) {
            (None, true) => return Some(wrong("NoUndoDisk", "it has no undo disk")),
            (Some(undo), true)
                if action == TaskAction::DiscardUndo
                    && unfinished == Some(TaskAction::CommitUndo) =>
            {
                return Some(wrong(
                    "CommitBegun",
                    format!(
                        "the disk has a part of what the undo disk of VirtualMachine \"{}\" holds, or may have: it can only be committed, unless a task Check proves that the commit never began",
                        undo.machine
                    ),
                ));
            }
            (Some(undo), false) if action != TaskAction::Check => {
                return Some(wrong(
                    "HasUndoDisk",
                    format!(
                        "it has an undo disk of VirtualMachine \"{}\": commit or discard it first, by spec.undoDisks.request of that machine or by a task CommitUndo or DiscardUndo",
                        undo.machine
                    ),
                ));
            }
            _ => {}
        }
        if self.s.disk.spec.access == Access::ReadOnly
            && matches!(
                action,
                TaskAction::Resize | TaskAction::CommitUndo | TaskAction::Merge
            )
        {
            return Some(wrong(
                "ReadOnly",
                "its spec.access is ReadOnly: nothing may change it",
            ));
        }
        let children = self.made_of(&self.s.family.children);
        if in_place && !children.is_empty() {
            return Some(wrong(
                "HasChildren",
                format!(
                    "differencing disks have it as parent, and would lose what they show: {}; delete or convert them first",
                    listed(children)
                ),
            ));
        }
        if let Some(child) = self.s.family.merging.get(name(&self.s.disk.metadata)) {
            return Some(waits(
                "ParentInUse",
                format!("VirtualHardDisk \"{child}\" is being merged into it"),
            ));
        }
        if (in_place || action == TaskAction::Merge)
            && let Some((reason, message)) = self.copying()
        {
            return Some(waits(reason, message));
        }
        match action {
            TaskAction::Merge => self.refuse_merge(),
            TaskAction::Compact if status.disk_type != Some(DiskType::Dynamic) => Some(wrong(
                "NotDynamic",
                "only a dynamic disk can be compacted: its spec.type must be Dynamic",
            )),
            TaskAction::Resize => self.refuse_resize(spec),
            TaskAction::Export => self.refuse_export(spec),
            _ => None,
        }
    }

    fn refuse_export(&self, spec: &VirtualHardDiskTaskSpec) -> Option<Refused> {
        let namespace = self.namespace();
        let PoolFile { pool, path } = spec.target.as_ref()?;
        (!is_in_folder_of(namespace, path))
            .then(|| wrong(PATH_NOT_ALLOWED, outside_folder(namespace, pool, path)))
    }

    fn refuse_merge(&self) -> Option<Refused> {
        let s = self.s;
        let Some(parent_name) = self.plan.status.lineage.first() else {
            return Some(wrong(
                "NotDifferencing",
                "only a differencing disk can be merged into its parent",
            ));
        };
        let Some(parent) = s.family.parent.as_deref() else {
            return Some(wrong(
                "ParentNotFound",
                format!("there is no VirtualHardDisk \"{parent_name}\" in its namespace"),
            ));
        };
        let several = self.made_of(&s.family.siblings);
        if !several.is_empty() {
            return Some(wrong(
                "ParentHasOtherChildren",
                format!(
                    "its parent \"{parent_name}\" has other children, which would lose what they show: {}; make a disk of its own of it instead, by changing spec.type",
                    listed(several)
                ),
            ));
        }
        let children = self.made_of(&s.family.children);
        if !children.is_empty() {
            return Some(wrong(
                "HasChildren",
                format!(
                    "differencing disks have it as parent: {}; merge those first",
                    listed(children)
                ),
            ));
        }
        if parent.spec.access == Access::ReadOnly {
            return Some(wrong(
                "ParentReadOnly",
                format!("spec.access of its parent \"{parent_name}\" is ReadOnly"),
            ));
        }
        let status = parent.status.as_ref();
        let in_use = status
            .is_some_and(|s| s.attachment.is_some() || s.undo.is_some() || s.unfinished.is_some());
        if in_use || s.family.taken.contains(parent_name) {
            return Some(waits(
                "ParentInUse",
                format!(
                    "its parent \"{parent_name}\" is in use{}",
                    status
                        .and_then(|s| s.attachment.as_ref())
                        .map(|a| format!(" by \"{}\"", a.owner.name))
                        .unwrap_or_default()
                ),
            ));
        }
        let copies = self.made_of(&s.family.parent_copies);
        (!copies.is_empty()).then(|| {
            waits(
                "BeingCopied",
                format!(
                    "its parent \"{parent_name}\" is being copied to {}",
                    listed(copies)
                ),
            )
        })
    }

    /// What a person can do about a merge that was interrupted.
    pub(super) fn merge_interrupted(&self) -> String {
        let parent = self.plan.status.lineage.first();
        format!(
            "a part of it was merged into VirtualHardDisk \"{}\", or may have been: make another task Merge to bring that to its end, or a task Check to learn whether it has begun",
            parent.map(String::as_str).unwrap_or_default()
        )
    }

    fn refuse_resize(&self, spec: &VirtualHardDiskTaskSpec) -> Option<Refused> {
        let status = &self.plan.status;
        if status.disk_type == Some(DiskType::Differencing) {
            return Some(wrong(
                "Differencing",
                "a differencing disk has the size of its parent: make a disk of its own of it first, by changing spec.type",
            ));
        }
        let asked = self.s.disk.spec.size.as_ref().map(|s| s.bytes());
        let wanted = spec.size.as_ref().map_or(0, |s| s.bytes());
        asked.filter(|asked| *asked > wanted).map(|asked| {
            wrong(
                "SizeAsked",
                format!(
                    "the disk's spec.size asks for {}: remove spec.size first",
                    format_bytes(asked)
                ),
            )
        })
    }
}
