//! Undo disks.

use std::ops::ControlFlow;

use paddock_vhd::{
    Access, BlockDevice, ChildOptions, DiskType, Gate, MergeOptions, OperationError, commit_undo,
    discard_undo, remove, start_undo,
};

use crate::folder::{Folder, MIB, go_on};

#[test]
fn a_record_of_another_disk_of_the_name_keeps_nothing_from_being_discarded() {
    let folder = Folder::pair(DiskType::Dynamic);
    let pool = &folder.pool;
    let start = || start_undo(pool, "d.vud", pool, "child.vhd", &ChildOptions::new());
    start().unwrap().close().unwrap();
    folder.stop_merge("d.vud");
    let refused = discard_undo(pool, "d.vud").unwrap_err().to_string();
    assert!(refused.contains("has begun"), "{refused}");
    let record = folder.path("d.vud.merge");
    let left = std::fs::read(&record).unwrap();
    // Who removes the disk removes the record, and so does who makes another.
    remove(pool, "d.vud").unwrap();
    assert!(!record.exists());
    std::fs::write(&record, &left).unwrap();
    start().unwrap().close().unwrap();
    assert!(!record.exists());
    // And if it is there all the same, it is of another disk.
    std::fs::write(&record, &left).unwrap();
    discard_undo(pool, "d.vud").unwrap();
    assert!(!folder.path("d.vud").exists() && !record.exists());
}

#[test]
fn an_undo_disk_is_kept_committed_or_discarded() {
    let folder = Folder::new(DiskType::Fixed);
    let pool = &folder.pool;
    let options = ChildOptions::new();
    let content = folder.content("base.vhd");
    let start = |undo: &str| start_undo(pool, undo, pool, "base.vhd", &options);
    let wrong = start("vm/disk.vhd").unwrap_err();
    assert!(wrong.to_string().contains(".vud"), "{wrong}");
    let undo = start("vm/disk.vud").unwrap();
    undo.write_at(&[9; 10], 3 * MIB).unwrap();
    undo.close().unwrap();
    // Kept.
    let undo = folder.open("vm/disk.vud", Access::ReadWrite).unwrap();
    let mut found = [0; 10];
    undo.read_at(&mut found, 3 * MIB).unwrap();
    assert_eq!(found, [9; 10]);
    undo.close().unwrap();
    // Discarded.
    discard_undo(pool, "vm/disk.vud").unwrap();
    assert!(folder.content("base.vhd") == content);
    assert_eq!(std::fs::read_dir(folder.path("vm")).unwrap().count(), 0);
    // Only undo disks are.
    let wrong = discard_undo(pool, "base.vhd").unwrap_err();
    assert!(matches!(wrong, OperationError::Refused { .. }), "{wrong}");
    std::fs::copy(folder.path("base.vhd"), folder.path("copy.vud")).unwrap();
    let wrong = discard_undo(pool, "copy.vud").unwrap_err();
    assert!(wrong.to_string().contains("not a differencing"), "{wrong}");
    assert!(folder.path("copy.vud").exists());
    // Committed; not discarded any more once that has begun.
    let undo = start("vm/disk.vud").unwrap();
    undo.write_at(&[8; 10], 3 * MIB).unwrap();
    undo.close().unwrap();
    let options = MergeOptions::default();
    // It would make the other child useless.
    let wrong = commit_undo(pool, "vm/disk.vud", Gate::open(), &options, &mut go_on);
    let wrong = wrong.unwrap_err();
    assert!(wrong.to_string().contains("child.vhd"), "{wrong}");
    std::fs::remove_file(folder.path("child.vhd")).unwrap();
    let stopped = commit_undo(pool, "vm/disk.vud", Gate::open(), &options, &mut |_| {
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(OperationError::Cancelled)));
    let wrong = discard_undo(pool, "vm/disk.vud").unwrap_err();
    assert!(wrong.to_string().contains("has begun"), "{wrong}");
    let report = commit_undo(pool, "vm/disk.vud", Gate::open(), &options, &mut go_on).unwrap();
    assert!(report.resumed);
    let mut expected = content;
    expected[3 * MIB as usize..][..10].fill(8);
    assert!(folder.content("base.vhd") == expected);
    assert_eq!(std::fs::read_dir(folder.path("vm")).unwrap().count(), 0);
}
