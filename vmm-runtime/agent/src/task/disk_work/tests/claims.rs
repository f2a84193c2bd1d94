//! Disks on a folder that hosts share.

use super::*;
use paddock_vhd::{LockOwner, OpenErrorKind, OpenOptions};

fn shared() -> World {
    let mut world = World::new();
    world.host.pools[0].scope = PoolScope::Shared;
    world
}

fn owner(disk_epoch: u64, host: &str) -> LockOwner {
    LockOwner::new(disk_epoch, host, Uuid::from_u128(9)).unwrap()
}

/// Opens the disk for writing on another host, and loses that one.
fn crash(world: &World, path: &str, owner: LockOwner) {
    let gate = Gate::open();
    let options = OpenOptions::new(Access::ReadWrite).gate(gate.clone());
    let disk = options.owner(owner).open(&world.pool(), path).unwrap();
    gate.close();
    assert!(disk.close().is_err());
}

fn on(host: &str, disk_epoch: i64, mut task: VirtualHardDiskTask) -> VirtualHardDiskTask {
    let status = task.status.as_mut().unwrap();
    status.host = Some(host.into());
    status.order.as_mut().unwrap().disk_epoch = disk_epoch;
    task
}

fn resize(size: i64) -> VirtualHardDiskTask {
    task(TaskAction::Resize, "d.vhd", |order| {
        order.size_bytes = Some(size);
    })
}

#[test]
fn a_task_ends_the_epochs_before_its_own() {
    let world = shared();
    world.disk("d.vhd", 1);
    crash(&world, "d.vhd", owner(5, "node-a"));
    // Late, or of an epoch that another host has.
    for stale in [4, 5] {
        let task = on("node-b", stale, resize(2 * SIZE));
        assert_eq!(world.run(&task), Err("DiskInUse"), "epoch {stale}");
    }
    let grown = world.run(&on("node-b", 6, resize(2 * SIZE))).unwrap();
    assert_eq!(grown.size_bytes, Some(2 * SIZE));
    // The same again, as after a crash of the agent.
    world.run(&on("node-b", 6, resize(2 * SIZE))).unwrap();
    let open = |owner: LockOwner| {
        let options = OpenOptions::new(Access::ReadWrite).owner(owner);
        options.open(&world.pool(), "d.vhd")
    };
    let refused = open(owner(5, "node-a")).unwrap_err();
    assert_eq!(refused.kind(), OpenErrorKind::InUse);
    open(owner(7, "node-a")).unwrap().close().unwrap();
}

#[test]
fn what_a_dead_host_has_left_hinders_no_reader_and_no_removal() {
    let world = shared();
    world.disk("d.vhd", 1);
    crash(&world, "d.vhd", owner(5, "node-a"));
    world.child("child.vhd", "d.vhd");
    assert_eq!(world.first_of_child(), 1);
    let clone = task(TaskAction::Clone, "copy.vhd", |order| {
        order.disk_uid = "copy".into();
        order.size_bytes = None;
        order.clone = vec![file("d.vhd")];
    });
    world.run(&clone).unwrap();
    assert_eq!(world.first("copy.vhd"), 1);
    world
        .run(&task(TaskAction::Check, "d.vhd", |_| {}))
        .unwrap();
    for path in ["child.vhd", "d.vhd"] {
        world.run(&task(TaskAction::Delete, path, |_| {})).unwrap();
    }
    assert_eq!(world.files(), ["copy.vhd"]);
}

impl World {
    fn first_of_child(&self) -> u8 {
        let pool = self.pool().assigned();
        let disk = Vhd::open(&pool, "child.vhd", Access::ReadOnly, Gate::open()).unwrap();
        let mut byte = [0];
        disk.read_at(&mut byte, 0).unwrap();
        byte[0]
    }
}

#[test]
fn adopt_tells_the_epoch_that_the_file_has_come_to() {
    let world = shared();
    world.disk("d.vhd", 1);
    let adopt = task(TaskAction::Adopt, "d.vhd", |_| {});
    assert_eq!(world.run(&adopt).unwrap().disk_epoch, None);
    crash(&world, "d.vhd", owner(57, "node-a"));
    assert_eq!(world.run(&adopt).unwrap().disk_epoch, Some(57));
    crash(&world, "d.vhd", owner(1 << 60, "node-a"));
    let failure = refused(&world, &adopt);
    assert_eq!(failure.reason, "Refused");
    assert!(
        failure.message.contains("d.vhd.lock"),
        "{}",
        failure.message
    );
}
