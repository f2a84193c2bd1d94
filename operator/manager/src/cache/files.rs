//! Which disk has which file: a file belongs to one VirtualHardDisk, in whatever namespace.

use super::World;
use paddock_crds::{
    VirtualHardDisk, VirtualHardDiskTask, reference::PoolFile, virtual_hard_disk::BoundFile,
};
use paddock_planner::{ObjectKey, disk};
use std::collections::BTreeSet;

/// A file: pool and path.
pub type FileKey = (String, String);

fn key(file: &BoundFile) -> FileKey {
    (file.pool.clone(), file.path.clone())
}

/// The files that a disk has: its own, its undo disk, and what is still to be removed.
fn held(disk: &VirtualHardDisk) -> BTreeSet<FileKey> {
    let status = disk.status.iter();
    let files = status.flat_map(|s| {
        let undo = s.undo.iter().map(|u| &u.file);
        s.file.iter().chain(undo).chain(&s.obsolete_files)
    });
    files.map(key).collect()
}

/// Every file that a disk names: those that it has, the one that its spec asks for, and the one that is made for it.
pub fn named(disk: &VirtualHardDisk) -> BTreeSet<FileKey> {
    let mut files = held(disk);
    let asked = disk.spec.file.path.clone();
    files.extend(asked.map(|path| (disk.spec.file.pool.clone(), path)));
    files.insert(key(&disk::file(disk)));
    files
}

/// The file that a task makes in the place of its disk's. What is exported is nobody's.
pub fn target(task: &VirtualHardDiskTask) -> Option<FileKey> {
    use paddock_crds::virtual_hard_disk_task::TaskAction;
    let replaces = matches!(task.spec.action, TaskAction::Convert | TaskAction::Compact);
    let order = task.status.as_ref()?.order.as_ref()?;
    let PoolFile { pool, path } = order.target.as_ref().filter(|_| replaces)?;
    Some((pool.clone(), path.clone()))
}

/// Whether a disk no longer names a file that it named before.
pub fn gives_up(old: &VirtualHardDisk, new: &VirtualHardDisk) -> bool {
    !named(old).is_subset(&named(new))
}

impl World {
    /// Another disk that has the file that a disk asks for, or that asked for it earlier, where both may mean one host.
    #[must_use]
    pub fn other_with_its_file(
        &self,
        key: &ObjectKey,
        disk: &VirtualHardDisk,
    ) -> Option<ObjectKey> {
        let wanted = disk::file(disk);
        let file = (wanted.pool, wanted.path);
        let host = |d: &VirtualHardDisk| d.status.as_ref().and_then(|s| s.host.clone());
        let age = |key: &ObjectKey, d: &VirtualHardDisk| {
            let made = d.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (made, key.clone())
        };
        let mine = age(key, disk);
        let my_host = host(disk);
        let targets: BTreeSet<_> = self.index.disks_to_get_file(&file).collect();
        let named = self.index.disks_with_file(&file);
        named
            .chain(targets.iter().copied())
            .filter(|other| *other != key)
            .filter_map(|other| Some((other, self.disks.get(other)?)))
            .find(|(other, found)| {
                let their_host = host(found);
                let one_place = my_host.is_none() || their_host.is_none() || my_host == their_host;
                let theirs = held(found).contains(&file) || targets.contains(other);
                one_place && (theirs || age(other, found) < mine)
            })
            .map(|(other, _)| other.clone())
    }
}
