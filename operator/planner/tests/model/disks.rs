//! Disks in the states that tests begin with, all on `host-a`.

use super::{ready_disk, unmade_disk};
use paddock_crds::{
    VirtualHardDisk,
    names::DISK_FINALIZER,
    reference::LocalReference,
    virtual_hard_disk::{BoundFile, DiskSource, DiskType, UndoDisk, UndoState},
};

pub fn file(path: &str) -> BoundFile {
    BoundFile {
        pool: "default".to_owned(),
        path: path.to_owned(),
    }
}

fn named(name: &str) -> Option<LocalReference> {
    Some(LocalReference {
        name: name.to_owned(),
    })
}

/// The same disk, once the operator has seen it.
pub fn seen(mut disk: VirtualHardDisk) -> VirtualHardDisk {
    disk.metadata.finalizers = Some(vec![DISK_FINALIZER.to_owned()]);
    disk
}

pub fn dynamic(name: &str) -> VirtualHardDisk {
    let mut disk = seen(ready_disk(name, Some("host-a")));
    disk.status.as_mut().unwrap().disk_type = Some(DiskType::Dynamic);
    disk
}

pub fn unmade_child(name: &str, parent: &str) -> VirtualHardDisk {
    let mut disk = unmade_disk(name, "default");
    disk.spec.disk_type = Some(DiskType::Differencing);
    disk.spec.size = None;
    disk.spec.parent_ref = named(parent);
    disk
}

pub fn child(name: &str, parent: &str) -> VirtualHardDisk {
    let mut disk = unmade_child(name, parent);
    let mut status = dynamic(name).status.unwrap();
    status.disk_type = Some(DiskType::Differencing);
    status.lineage = vec![parent.to_owned()];
    status.parent_files = vec![file(&format!("{parent}.vhd"))];
    disk.status = Some(status);
    disk
}

pub fn unmade_copy(name: &str, source: &str) -> VirtualHardDisk {
    let mut disk = unmade_disk(name, "default");
    disk.spec.source = Some(DiskSource {
        clone_ref: named(source),
        ..DiskSource::default()
    });
    disk
}

/// The undo disk of the machine `web`, whose guest has run with it.
pub fn kept_undo(path: &str) -> UndoDisk {
    UndoDisk {
        file: file(path),
        machine: "web".to_owned(),
        machine_uid: Some("uid-web".to_owned()),
        ran: true,
        state: UndoState::Kept,
    }
}
