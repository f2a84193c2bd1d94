//! Disks with parents and undo disks, in real folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use paddock_vhd::{
    BlockDevice, ChildOptions, CreateError, CreateOptions, DiskSize, DiskType, Gate, IoError,
    IoErrorKind, LockOwner, MergeOptions, OperationError, Pool, Vhd, commit_undo, discard_undo,
};

use super::open::{Opened, not_started, open};
use crate::api::EndReason;
use crate::config::{DiskSlot, MissingUndo, PoolFile, ValidDisk};

struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// Two pools; `a` has `base.vhd` with ones in its first bytes.
    fn new() -> Self {
        let world = World {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(world.folder("a")).unwrap();
        fs::create_dir(world.folder("b")).unwrap();
        let size = DiskSize::from_bytes(4 << 20).unwrap();
        let options = CreateOptions::new(DiskType::Dynamic, size);
        let base = Vhd::create(&world.pool("a"), "base.vhd", &options).unwrap();
        base.write_at(&[1; 8], 0).unwrap();
        base.close().unwrap();
        world
    }

    fn folder(&self, pool: &str) -> PathBuf {
        self.dir.path().join(pool)
    }

    fn pool(&self, pool: &str) -> Pool {
        Pool::open(self.folder(pool)).unwrap()
    }

    fn file(&self, pool: &str, path: &str) -> PoolFile {
        PoolFile {
            pool: self.folder(pool),
            path: path.into(),
        }
    }

    fn disk(&self, pool: &str, path: &str) -> ValidDisk {
        ValidDisk {
            name: "d".into(),
            slot: DiskSlot::Virtio { unit: 0 },
            file: self.file(pool, path),
            parents: vec![],
            undo: None,
            disk_epoch: 1,
            owner: None,
            read_only: false,
            serial: String::new(),
            boot_position: None,
        }
    }

    fn with_undo(&self, missing: MissingUndo) -> ValidDisk {
        ValidDisk {
            undo: Some((self.file("a", "vm/d.vud"), missing)),
            ..self.disk("a", "base.vhd")
        }
    }

    /// Makes the base look as if it had been written to.
    fn touch_base(&self) {
        let base = fs::File::options()
            .write(true)
            .open(self.folder("a").join("base.vhd"))
            .unwrap();
        base.set_modified(SystemTime::now() + Duration::from_secs(60))
            .unwrap();
    }
}

fn start(disk: &Opened) -> [u8; 8] {
    let mut start = [0; 8];
    disk.vhd.read_at(&mut start, 0).unwrap();
    start
}

fn refusal(disk: &ValidDisk) -> (EndReason, String) {
    let refused = open(disk).unwrap_err();
    (refused.reason, refused.message)
}

#[test]
fn an_undo_disk_takes_what_is_written_and_is_kept() {
    let world = World::new();
    let before = fs::read(world.folder("a").join("base.vhd")).unwrap();
    let disk = world.with_undo(MissingUndo::Create);
    let opened = open(&disk).unwrap();
    assert_eq!(opened.grows_in.path(), world.folder("a"));
    opened.vhd.write_at(&[2; 8], 0).unwrap();
    opened.vhd.close().unwrap();
    assert_eq!(
        fs::read(world.folder("a").join("base.vhd")).unwrap(),
        before
    );
    // Kept, whichever way it is asked for.
    for missing in [MissingUndo::Create, MissingUndo::Refuse] {
        let opened = open(&world.with_undo(missing)).unwrap();
        assert_eq!(start(&opened), [2; 8]);
        opened.vhd.close().unwrap();
    }
    let options = MergeOptions::default();
    let mut go_on = |_| std::ops::ControlFlow::Continue(());
    commit_undo(
        &world.pool("a"),
        "vm/d.vud",
        Gate::open(),
        &options,
        &mut go_on,
    )
    .unwrap();
    assert_eq!(start(&open(&world.disk("a", "base.vhd")).unwrap()), [2; 8]);
    assert!(!world.folder("a").join("vm/d.vud").exists());
}

#[test]
fn a_discarded_undo_disk_leaves_the_disk_as_it_was() {
    let world = World::new();
    let opened = open(&world.with_undo(MissingUndo::Create)).unwrap();
    opened.vhd.write_at(&[2; 8], 0).unwrap();
    opened.vhd.close().unwrap();
    discard_undo(&world.pool("a"), "vm/d.vud").unwrap();
    let (reason, message) = refusal(&world.with_undo(MissingUndo::Refuse));
    assert_eq!(reason, EndReason::UndoDiskNotFound);
    assert!(message.contains("vm/d.vud"), "{message}");
    assert_eq!(start(&open(&world.disk("a", "base.vhd")).unwrap()), [1; 8]);
}

#[test]
fn the_gate_in_front_of_an_undo_disk_is_the_machines() {
    let world = World::new();
    let opened = open(&world.with_undo(MissingUndo::Create)).unwrap();
    opened.gate.close();
    let error = opened.vhd.write_at(&[2; 8], 0).unwrap_err();
    assert_eq!(error.kind(), IoErrorKind::GateClosed);
}

#[test]
fn parents_are_found_in_the_pools_that_are_named() {
    let world = World::new();
    let child = Vhd::create_child(
        &world.pool("b"),
        "child.vhd",
        &world.pool("a"),
        "base.vhd",
        &ChildOptions::new(),
    );
    child.unwrap().close().unwrap();
    let alone = world.disk("b", "child.vhd");
    let (reason, message) = refusal(&alone);
    assert_eq!(reason, EndReason::ParentNotFound);
    assert!(message.contains("base.vhd"), "{message}");
    let named = ValidDisk {
        parents: vec![world.file("a", "base.vhd")],
        ..alone.clone()
    };
    assert_eq!(start(&open(&named).unwrap()), [1; 8]);
    // Elsewhere than the child says, but where the configuration says.
    fs::create_dir(world.folder("a").join("moved")).unwrap();
    let (from, to) = ("base.vhd", "moved/base.vhd");
    fs::rename(world.folder("a").join(from), world.folder("a").join(to)).unwrap();
    assert_eq!(refusal(&named).0, EndReason::ParentNotFound);
    let moved = ValidDisk {
        parents: vec![world.file("a", to)],
        ..alone.clone()
    };
    assert_eq!(start(&open(&moved).unwrap()), [1; 8]);
    // And with an undo disk above the child.
    let undone = ValidDisk {
        undo: Some((world.file("b", "d.vud"), MissingUndo::Create)),
        ..moved
    };
    for _ in 0..2 {
        let opened = open(&undone).unwrap();
        assert_eq!(start(&opened), [1; 8]);
        opened.vhd.close().unwrap();
    }
}

#[test]
fn a_base_that_was_changed_is_said() {
    let world = World::new();
    let disk = world.with_undo(MissingUndo::Create);
    open(&disk).unwrap().vhd.close().unwrap();
    world.touch_base();
    let (reason, message) = refusal(&disk);
    assert_eq!(reason, EndReason::ParentChanged);
    assert!(message.contains("base.vhd"), "{message}");
}

#[test]
fn a_disk_in_use_is_said_with_and_without_undo() {
    let world = World::new();
    let held = open(&world.disk("a", "base.vhd")).unwrap();
    for disk in [
        world.disk("a", "base.vhd"),
        world.with_undo(MissingUndo::Create),
    ] {
        assert_eq!(refusal(&disk).0, EndReason::DiskInUse);
    }
    drop(held);
    assert!(!Path::new(&world.folder("a").join("vm/d.vud")).exists());
}

fn owner(disk_epoch: u64, host: &str) -> LockOwner {
    LockOwner::new(disk_epoch, host, uuid::Uuid::new_v4()).unwrap()
}

/// As a host leaves a disk that it dies with.
fn crash(opened: Opened) {
    opened.vhd.write_at(&[3; 8], 0).unwrap();
    opened.vhd.flush().unwrap();
    opened.gate.close();
    assert!(opened.vhd.close().is_err());
}

#[test]
fn a_disk_that_hosts_share_goes_to_the_highest_epoch() {
    let world = World::new();
    let at = |disk_epoch, host| ValidDisk {
        disk_epoch,
        owner: Some(owner(disk_epoch, host)),
        ..world.disk("a", "base.vhd")
    };
    crash(open(&at(5, "node-a")).unwrap());
    for stale in [at(4, "node-b"), at(5, "node-b")] {
        let (reason, message) = refusal(&stale);
        assert_eq!(reason, EndReason::DiskInUse);
        assert!(message.contains("node-a"), "{message}");
    }
    // Itself after its next boot, and whoever it is given to then.
    crash(open(&at(5, "node-a")).unwrap());
    let opened = open(&at(6, "node-b")).unwrap();
    assert_eq!(start(&opened), [3; 8]);
    opened.vhd.close().unwrap();
    let (reason, _) = refusal(&at(5, "node-a"));
    assert_eq!(reason, EndReason::DiskInUse);
}

#[test]
fn an_undo_disk_that_hosts_share_goes_to_the_highest_epoch() {
    let world = World::new();
    let at = |disk_epoch, host| ValidDisk {
        disk_epoch,
        owner: Some(owner(disk_epoch, host)),
        ..world.with_undo(MissingUndo::Create)
    };
    crash(open(&at(5, "node-a")).unwrap());
    assert_eq!(refusal(&at(5, "node-b")).0, EndReason::DiskInUse);
    let opened = open(&at(6, "node-b")).unwrap();
    assert_eq!(start(&opened), [3; 8]);
}

#[test]
fn what_a_dead_host_has_left_keeps_nobody_from_reading_a_parent() {
    let world = World::new();
    let (a, b) = (world.pool("a"), world.pool("b"));
    let options = ChildOptions::new();
    let child = Vhd::create_child(&b, "child.vhd", &a, "base.vhd", &options).unwrap();
    child.close().unwrap();
    let dead = ValidDisk {
        owner: Some(owner(5, "node-a")),
        ..world.disk("a", "base.vhd")
    };
    let opened = open(&dead).unwrap();
    opened.gate.close();
    assert!(opened.vhd.close().is_err());
    let child = ValidDisk {
        parents: vec![world.file("a", "base.vhd")],
        ..world.disk("b", "child.vhd")
    };
    assert_eq!(start(&open(&child).unwrap()), [1; 8]);
}

#[test]
fn no_room_for_an_undo_disk_is_a_full_pool() {
    let world = World::new();
    let disk = world.disk("a", "base.vhd");
    let undo = world.file("a", "d.vud");
    let path = PathBuf::from("d.vud");
    let full = [
        OperationError::NoSpace {
            path: path.clone(),
            need: 2,
            have: 1,
        },
        OperationError::Create(CreateError::NoSpace {
            path: path.clone(),
            need: 2,
            have: 1,
        }),
        OperationError::Io {
            path: path.clone(),
            source: IoError::NoSpace {
                disk: "d.vud".into(),
                operation: "write",
                reason: "full".into(),
            },
        },
    ];
    for error in full {
        let refused = not_started(&disk, &undo, &error);
        assert_eq!(refused.reason, EndReason::PoolFull);
        assert!(refused.message.contains("d.vud"), "{}", refused.message);
    }
    let other = OperationError::Io {
        path,
        source: IoError::GateClosed,
    };
    let refused = not_started(&disk, &undo, &other);
    assert_eq!(refused.reason, EndReason::DiskNotOpened);
}
