//! Tasks that look at a disk, change or remove it.

use super::*;

#[test]
fn adopt_looks_and_delete_is_repeatable() {
    let world = World::new();
    let adopt = task(TaskAction::Adopt, "d.vhd", |_| {});
    let delete = task(TaskAction::Delete, "d.vhd", |_| {});
    assert_eq!(world.run(&adopt), Err("FileNotFound"));
    let made = world
        .run(&task(TaskAction::Create, "d.vhd", |_| {}))
        .unwrap();
    assert_eq!(world.run(&adopt), Ok(made));
    let held = Vhd::open(&world.pool(), "d.vhd", Access::ReadWrite, Gate::open()).unwrap();
    assert_eq!(world.run(&delete), Err("DiskInUse"));
    assert!(world.file("d.vhd").exists());
    held.close().unwrap();
    let gone = Ok(TaskResult::default());
    assert_eq!(world.run(&delete), gone);
    assert!(!world.file("d.vhd").exists());
    assert_eq!(world.run(&delete), gone);
    fs::write(world.file("text"), "hello").unwrap();
    assert_eq!(
        world.run(&task(TaskAction::Adopt, "text", |_| {})),
        Err("UnsupportedFormat")
    );
    assert_eq!(
        world.run(&task(TaskAction::Delete, "text", |_| {})),
        Err("UnsupportedFormat")
    );
    assert_eq!(fs::read(world.file("text")).unwrap(), b"hello");
}

#[test]
fn resize_grows_and_shrinks_as_it_may() {
    let world = World::new();
    world.disk("d.vhd", 1);
    let resize = |size: i64, shrink: Shrink| {
        task(TaskAction::Resize, "d.vhd", |order| {
            order.size_bytes = Some(size);
            order.shrink = shrink;
        })
    };
    let grown = world.run(&resize(2 * SIZE, Shrink::Refuse)).unwrap();
    assert_eq!(grown.size_bytes, Some(2 * SIZE));
    assert_eq!(world.run(&resize(2 * SIZE, Shrink::Refuse)), Ok(grown));
    assert_eq!(world.run(&resize(SIZE, Shrink::Refuse)), Err("Refused"));
    let back = world.run(&resize(SIZE, Shrink::IfEmpty)).unwrap();
    assert_eq!(back.size_bytes, Some(SIZE));
    // The last KiB is not empty.
    let less = SIZE - (1 << 20);
    assert_eq!(world.run(&resize(less, Shrink::IfEmpty)), Err("Refused"));
    let cut = world.run(&resize(less, Shrink::Force)).unwrap();
    assert_eq!(cut.size_bytes, Some(less));
    assert_eq!(world.first("d.vhd"), 1);
}

#[test]
fn merge_ends_in_the_parent_and_is_known_as_done() {
    let world = World::new();
    world.disk("base.vhd", 1);
    world.child("child.vhd", "base.vhd");
    world.write("child.vhd", 2);
    let merge = task(TaskAction::Merge, "child.vhd", |order| {
        order.parents = vec![file("base.vhd")];
    });
    let merged = world.run(&merge).unwrap();
    let base = inspect(&world.pool(), "base.vhd").unwrap();
    assert_eq!(merged.uuid, Some(base.unique_id.to_string()));
    assert_eq!(world.files(), ["base.vhd"]);
    assert_eq!(world.first("base.vhd"), 2);
    // Nobody has begun it: then a disk that is missing is missing.
    assert_eq!(world.run(&merge), Err("FileNotFound"));
    assert_eq!(world.run(&begun(merge)), Ok(merged));
    let alone = task(TaskAction::Merge, "base.vhd", |_| {});
    assert_eq!(world.run(&alone), Err("Refused"));
}

#[test]
fn a_merge_that_has_begun_goes_on_to_its_end() {
    let world = World::new();
    world.disk("base.vhd", 1);
    world.child("child.vhd", "base.vhd");
    world.write("child.vhd", 2);
    let merge = task(TaskAction::Merge, "child.vhd", |order| {
        order.parents = vec![file("base.vhd")];
    });
    let control = Control::default();
    let order = merge.status.as_ref().unwrap().order.as_ref().unwrap();
    let job = Job::new(order, &world.host, &control, false);
    control.cancel();
    change::merge(&job).unwrap();
    assert_eq!(world.first("base.vhd"), 2);
}

#[test]
fn undo_disks_are_committed_and_discarded_once() {
    let world = World::new();
    world.disk("base.vhd", 1);
    let undo = |action| {
        task(action, "base.vhd", |order| {
            order.undo = Some(file("vm/d.vud"));
        })
    };
    let start = |byte| {
        let pool = world.pool();
        let options = ChildOptions::new();
        let undo = paddock_vhd::start_undo(&pool, "vm/d.vud", &pool, "base.vhd", &options).unwrap();
        undo.write_at(&[byte; 512], 0).unwrap();
        undo.close().unwrap();
    };
    start(2);
    let discarded = world.run(&undo(TaskAction::DiscardUndo)).unwrap();
    assert_eq!(discarded.size_bytes, Some(SIZE));
    assert_eq!(world.first("base.vhd"), 1);
    assert_eq!(world.run(&undo(TaskAction::DiscardUndo)), Ok(discarded));
    start(3);
    let committed = world.run(&undo(TaskAction::CommitUndo)).unwrap();
    assert_eq!(world.first("base.vhd"), 3);
    assert!(!world.file("vm/d.vud").exists());
    // What is missing without an agent's doing was not committed.
    let commit = undo(TaskAction::CommitUndo);
    assert_eq!(world.run(&commit), Err("FileNotFound"));
    assert_eq!(begun_of(&world, &commit), Some(false));
    assert_eq!(world.run(&begun(commit)), Ok(committed));
    // The disk itself is missed.
    fs::remove_file(world.file("base.vhd")).unwrap();
    for action in [TaskAction::CommitUndo, TaskAction::DiscardUndo] {
        assert_eq!(world.run(&undo(action)), Err("FileNotFound"));
    }
}

/// What is told of a merge that failed.
fn begun_of(world: &World, task: &VirtualHardDiskTask) -> Option<bool> {
    left::leave_off(task, &world.host, true).unwrap().begun
}

#[test]
fn of_a_merge_that_fails_it_is_told_whether_it_has_begun() {
    let world = World::new();
    world.disk("base.vhd", 1);
    for child in ["child.vhd", "left.vhd"] {
        world.child(child, "base.vhd");
    }
    world.write("child.vhd", 2);
    let merge = task(TaskAction::Merge, "child.vhd", |order| {
        order.parents = vec![file("base.vhd")];
    });
    // The file of a disk that was deleted.
    let failure = refused(&world, &merge);
    assert_eq!(failure.reason, "Refused");
    for part in ["left.vhd", "a deleted one has left that"] {
        assert!(failure.message.contains(part), "{}", failure.message);
    }
    assert_eq!(begun_of(&world, &merge), Some(false));
    let checked = world.run(&task(TaskAction::Check, "child.vhd", |_| {}));
    assert_eq!(checked.unwrap().begun, Some(false));
    // The disk is as usable as before.
    world.write("child.vhd", 3);
    fs::remove_file(world.file("left.vhd")).unwrap();
    let pool = world.pool();
    let broken = paddock_vhd::merge(
        &pool,
        "child.vhd",
        Gate::open(),
        &paddock_vhd::MergeOptions::default(),
        &mut |_| ControlFlow::Break(()),
    );
    assert!(broken.is_err());
    assert_eq!(begun_of(&world, &merge), Some(true));
    world.run(&merge).unwrap();
    assert_eq!(world.first("base.vhd"), 3);
    assert_eq!(begun_of(&world, &merge), Some(false));
}

#[test]
fn check_tells_what_is_wrong() {
    let world = World::new();
    world.disk("d.vhd", 1);
    let check = task(TaskAction::Check, "d.vhd", |_| {});
    let healthy = world.run(&check).unwrap();
    assert_eq!(healthy.findings, Some(vec![]));
    assert_eq!(healthy.size_bytes, Some(SIZE));
    let mut bytes = fs::read(world.file("d.vhd")).unwrap();
    let end = bytes.len() - 512;
    bytes[end..].fill(0);
    fs::write(world.file("d.vhd"), &bytes).unwrap();
    let found = world.run(&check).unwrap().findings.unwrap();
    assert!(found[0].starts_with("warning: "), "{found:?}");
    assert_eq!(fs::read(world.file("d.vhd")).unwrap(), bytes);
    let missing = task(TaskAction::Check, "none.vhd", |_| {});
    assert_eq!(world.run(&missing), Err("FileNotFound"));
}
