//! The disks that a disk has to do with: its parent, its children, and those that are copied.

use super::Draft;
use crate::identity::{deleting, name};
use paddock_crds::{
    VirtualHardDisk,
    reference::PoolFile,
    virtual_hard_disk::{BoundFile, Children, DiskType, OwnerKind},
    virtual_hard_disk_task::TaskAction,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The most parents that a disk may have: a chain holds 64 disks.
const MOST_PARENTS: usize = 63;
/// How many names a message or status gives.
const NAMED: usize = 5;

/// The disks of its namespace that a disk has to do with.
#[derive(Clone, Debug, Default)]
pub struct Family {
    /// The disk that it has as its parent, or is to have.
    pub parent: Option<Arc<VirtualHardDisk>>,
    /// The parent's other children, made and to be made.
    pub siblings: Vec<Arc<VirtualHardDisk>>,
    /// Its children, made and to be made.
    pub children: Vec<Arc<VirtualHardDisk>>,
    /// The disk that it is to be a copy of.
    pub source: Option<Arc<VirtualHardDisk>>,
    /// Disks that are to be copies of it and are not made yet.
    pub copies: Vec<Arc<VirtualHardDisk>>,
    /// Disks that are to be copies of the parent and are not made yet.
    pub parent_copies: Vec<Arc<VirtualHardDisk>>,
    /// Names of those among all these, and of itself, that another plan is just taking. A machine that waits for a disk
    /// to be made does not take it.
    pub taken: BTreeSet<String>,
    /// Of itself, its parent and its source: the name of another disk that is being merged into it.
    pub merging: BTreeMap<String, String>,
}

impl Family {
    /// What the status says of the children.
    #[must_use]
    pub fn children_told(&self) -> Option<Children> {
        let mut names: Vec<String> = names(&self.children);
        names.sort();
        let count = i32::try_from(names.len()).unwrap_or(i32::MAX);
        names.truncate(NAMED);
        (count > 0).then_some(Children { count, names })
    }
}

/// The name of the disk that a disk has as its parent; before it is made, of the one that it is to have.
#[must_use]
pub fn parent_name(disk: &VirtualHardDisk) -> Option<&str> {
    let status = disk.status.as_ref();
    if status.is_some_and(|s| s.file.is_some()) {
        return status?.lineage.first().map(String::as_str);
    }
    if status.is_some_and(|s| s.merged_into.is_some()) {
        return None;
    }
    disk.spec.parent_ref.as_ref().map(|r| r.name.as_str())
}

/// Whether a disk is being merged into its parent, or was when that was interrupted: then the parent has a part of it.
#[must_use]
pub fn is_merging(disk: &VirtualHardDisk) -> bool {
    let unfinished = disk.status.as_ref().and_then(|s| s.unfinished.as_ref());
    unfinished.is_some_and(|u| u.action == TaskAction::Merge)
}

/// The name of the disk that a disk is made of, if there is one: of a copy's or of an import's from a physical disk.
#[must_use]
pub fn source_name(disk: &VirtualHardDisk) -> Option<&str> {
    let source = disk.spec.source.as_ref()?;
    let named = source.clone_ref.as_ref().or(source.linked_ref.as_ref());
    named.map(|r| r.name.as_str())
}

fn names(disks: &[Arc<VirtualHardDisk>]) -> Vec<String> {
    disks.iter().map(|d| name(&d.metadata).to_owned()).collect()
}

/// The first few names in alphabetical order, and how many more there are.
pub(crate) fn listed(mut names: Vec<String>) -> String {
    names.sort();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let shown: Vec<String> = names.iter().map(|n| format!("\"{n}\"")).collect();
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Whether a disk is a linked one.
pub(crate) fn is_linked(disk: &VirtualHardDisk) -> bool {
    disk.spec.disk_type == Some(DiskType::Linked)
}

pub(super) fn pool_file(file: &BoundFile) -> PoolFile {
    PoolFile {
        pool: file.pool.clone(),
        path: file.path.clone(),
    }
}

pub(super) fn bound_file(file: &PoolFile) -> BoundFile {
    BoundFile {
        pool: file.pool.clone(),
        path: file.path.clone(),
    }
}

/// A disk's file and those of its parents, nearest first.
fn chain(disk: &VirtualHardDisk) -> Vec<PoolFile> {
    let status = disk.status.iter();
    status
        .flat_map(|s| s.file.iter().chain(&s.parent_files))
        .map(pool_file)
        .collect()
}

/// A disk that another is made from: its files, and its host unless hosts share them.
pub(super) struct Origin {
    pub(super) files: Vec<PoolFile>,
    pub(super) host: Option<String>,
}

type Why = (&'static str, String);

impl Draft<'_> {
    /// The parent that the disk is to be made on, or the reason why it cannot be yet.
    pub(super) fn parent(&self) -> Result<Option<Origin>, Why> {
        let Some(wanted) = self.s.disk.spec.parent_ref.as_ref().map(|r| &r.name) else {
            return Ok(None);
        };
        let found = self.s.family.parent.as_deref();
        let origin = self.origin(
            wanted,
            found,
            ["ParentNotFound", "ParentNotReady", "ParentInUse"],
        )?;
        if found.is_some_and(is_linked) {
            return Err((
                "ParentLinked",
                format!(
                    "VirtualHardDisk \"{wanted}\" is a linked disk: make a disk of it by source.linkedRef first"
                ),
            ));
        }
        if origin.files.len() > MOST_PARENTS {
            return Err((
                "ChainTooLong",
                format!(
                    "VirtualHardDisk \"{wanted}\" has {} parents already, and a chain holds 64 disks: merge or convert some of them",
                    origin.files.len() - 1
                ),
            ));
        }
        // A sibling that a machine takes is no hindrance: it only reads the parent.
        Ok(Some(origin))
    }

    /// The disk that the disk is to be a copy of, or the reason why it cannot be copied yet.
    pub(super) fn source(&self) -> Result<Option<Origin>, Why> {
        let disk = self.s.disk;
        let Some(wanted) = source_name(disk) else {
            return Ok(None);
        };
        let found = self.s.family.source.as_deref();
        let origin = self.origin(
            wanted,
            found,
            ["SourceNotFound", "SourceNotReady", "SourceInUse"],
        )?;
        let source = disk.spec.source.as_ref();
        let by_link = source.is_some_and(|s| s.linked_ref.is_some());
        match (by_link, found.is_some_and(is_linked)) {
            (true, false) => Err((
                "SourceNotLinked",
                format!(
                    "source.linkedRef: VirtualHardDisk \"{wanted}\" is not a linked disk: copy it by source.cloneRef"
                ),
            )),
            (false, true) => Err((
                "SourceLinked",
                format!(
                    "source.cloneRef: VirtualHardDisk \"{wanted}\" is a linked disk: name it by source.linkedRef"
                ),
            )),
            _ => Ok(Some(origin)),
        }
    }

    fn origin(
        &self,
        wanted: &str,
        found: Option<&VirtualHardDisk>,
        [not_found, not_ready, in_use]: [&'static str; 3],
    ) -> Result<Origin, Why> {
        let Some(found) = found else {
            return Err((
                not_found,
                format!("there is no VirtualHardDisk \"{wanted}\" in its namespace"),
            ));
        };
        let status = found.status.clone().unwrap_or_default();
        if deleting(&found.metadata) {
            return Err((
                not_ready,
                format!("VirtualHardDisk \"{wanted}\" is being deleted"),
            ));
        }
        if status.file.is_none() || is_merging(found) {
            return Err((
                not_ready,
                format!("VirtualHardDisk \"{wanted}\" has no file that could be read yet"),
            ));
        }
        if let Some(a) = &status.attachment {
            let holder = match a.owner.kind {
                OwnerKind::VirtualMachine => "VirtualMachine",
                OwnerKind::VirtualHardDiskTask => "VirtualHardDiskTask",
            };
            return Err((
                in_use,
                format!(
                    "VirtualHardDisk \"{wanted}\" is attached to {holder} \"{}\"",
                    a.owner.name
                ),
            ));
        }
        if let Some(undo) = &status.undo {
            return Err((
                in_use,
                format!(
                    "VirtualHardDisk \"{wanted}\" has an undo disk of VirtualMachine \"{}\": commit or discard it first",
                    undo.machine
                ),
            ));
        }
        if let Some(other) = self.s.family.merging.get(wanted) {
            return Err((
                in_use,
                format!("VirtualHardDisk \"{other}\" is being merged into \"{wanted}\""),
            ));
        }
        if self.s.family.taken.contains(wanted) {
            return Err((
                in_use,
                format!("VirtualHardDisk \"{wanted}\" is just being attached"),
            ));
        }
        Ok(Origin {
            files: chain(found),
            host: status.host,
        })
    }

    /// Those of some disks that have their file, or get it just now: what is not made shows nothing yet, and is made
    /// once it can be.
    pub(super) fn made_of(&self, disks: &[Arc<VirtualHardDisk>]) -> Vec<String> {
        let made = |d: &&Arc<VirtualHardDisk>| {
            d.status
                .as_ref()
                .is_some_and(|s| s.file.is_some() || s.attachment.is_some())
                || self.s.family.taken.contains(name(&d.metadata))
        };
        let made = disks.iter().filter(made);
        made.map(|d| name(&d.metadata).to_owned()).collect()
    }

    /// Children and copies that read the file now or are just being made: it must not go.
    pub(super) fn readers(&self) -> Option<Why> {
        let children = self.made_of(&self.s.family.children);
        if !children.is_empty() {
            let count = children.len();
            return Some((
                "HasChildren",
                format!(
                    "{count} differencing disk{} it as parent: {}; delete or convert them first",
                    if count == 1 { " has" } else { "s have" },
                    listed(children)
                ),
            ));
        }
        self.copying()
    }

    /// Copies of the disk that are just being made.
    pub(super) fn copying(&self) -> Option<Why> {
        let names = self.made_of(&self.s.family.copies);
        (!names.is_empty()).then(|| {
            (
                "BeingCopied",
                format!("it is being copied to {}", listed(names)),
            )
        })
    }
}
