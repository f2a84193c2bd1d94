//! Who depends on the parent of a merge, and what is refused for that and else.

use std::os::unix::fs::FileExt;
use std::time::{Duration, UNIX_EPOCH};

use paddock_vhd::{
    Access, BlockDevice, DiskType, Gate, IoErrorKind, MergeOptions, OpenErrorKind, OperationError,
    ParentSearch, Pool, inspect, merge, remove, repair_in_place, reparent,
};

use crate::folder::{Folder, MIB, TYPES, go_on, resized};

/// The way back to writing that the refusal names.
#[test]
fn a_child_whose_parent_changed_is_reconnected_and_then_merged_or_converted() {
    let folder = Folder::pair(DiskType::Dynamic);
    folder.stop_merge("child.vhd");
    let base = folder.open("base.vhd", Access::ReadWrite).unwrap();
    base.write_at(&[6; 100], 7 * MIB).unwrap();
    base.close().unwrap();
    let said = folder.merge("child.vhd").unwrap_err().to_string();
    assert!(said.contains("then reconnect the child"), "{said}");
    let (pool, search) = (&folder.pool, ParentSearch::new());
    reparent(pool, "child.vhd", pool, "base.vhd", Gate::open(), &search).unwrap();
    let content = folder.content("child.vhd");
    assert_eq!(content[7 * MIB as usize], 6);
    folder
        .convert("child.vhd", "new.vhd", DiskType::Dynamic)
        .unwrap();
    assert!(folder.content("new.vhd") == content);
    assert!(!folder.merge("child.vhd").unwrap().resumed);
    assert!(folder.content("base.vhd") == content);
}

/// Whoever changes a disk within the second in which it was changed before.
#[test]
fn children_notice_a_change_within_the_same_second() {
    type Change = fn(&Folder);
    let write: Change = |folder| {
        let disk = folder.open("base.vhd", Access::ReadWrite).unwrap();
        disk.write_at(&[6; 100], 7 * MIB).unwrap();
        disk.close().unwrap();
    };
    let merge_other: Change = |folder| {
        let forced = MergeOptions {
            force: true,
            ..MergeOptions::default()
        };
        let gate = Gate::open();
        merge(&folder.pool, "sibling.vhd", gate, &forced, &mut go_on).unwrap();
    };
    let grow: Change = |folder| resized(folder, "base.vhd", 9 * MIB, true).unwrap();
    let repair: Change = |folder| {
        let file = std::fs::File::options()
            .write(true)
            .open(folder.path("base.vhd"));
        // Two blocks in one place.
        file.unwrap()
            .write_all_at(&7u32.to_be_bytes(), 1536 + 4)
            .unwrap();
        folder.now("base.vhd");
        repair_in_place(&folder.pool, "base.vhd", Gate::open(), &mut go_on).unwrap();
    };
    for (index, change) in [write, merge_other, grow, repair].into_iter().enumerate() {
        for disk_type in TYPES {
            if index == 3 && disk_type == DiskType::Fixed {
                continue;
            }
            let folder = Folder::new(disk_type);
            folder.child("sibling.vhd", "base.vhd").close().unwrap();
            // Made and changed in one second: that of the change.
            folder.now("base.vhd");
            let (pool, search) = (&folder.pool, ParentSearch::new());
            for child in ["child.vhd", "sibling.vhd"] {
                reparent(pool, child, pool, "base.vhd", Gate::open(), &search).unwrap();
            }
            let mut seconds = vec![folder.second("base.vhd")];
            for _ in 0..2 {
                change(&folder);
                let now = folder.second("base.vhd");
                assert!(
                    now > *seconds.last().unwrap(),
                    "change {index} of {disk_type}"
                );
                seconds.push(now);
                let error = folder.open("child.vhd", Access::ReadWrite).unwrap_err();
                assert_eq!(error.kind(), OpenErrorKind::ParentChanged);
                if index != 0 {
                    break;
                }
            }
            // Whoever changes nothing leaves the time.
            let time = folder.modified("base.vhd");
            folder
                .open("base.vhd", Access::ReadWrite)
                .unwrap()
                .close()
                .unwrap();
            assert_eq!(folder.modified("base.vhd"), time);
        }
    }
}

#[test]
fn dependents_are_found_in_any_folder_of_both_pools() {
    let folder = Folder::new(DiskType::Dynamic);
    std::fs::rename(
        folder.path("g/grandchild.vhd"),
        folder.path("grandchild.vhd"),
    )
    .unwrap();
    let before = std::fs::read(folder.path("base.vhd")).unwrap();
    folder.child("g/sibling.vhd", "base.vhd").close().unwrap();
    folder.child("another.vhd", "base.vhd").close().unwrap();
    let said = folder.merge("child.vhd").unwrap_err().to_string();
    assert!(
        said.contains("useless: another.vhd, g/sibling.vhd, grandchild.vhd;"),
        "{said}"
    );
    let searched = format!("(searched: all of {})", folder.dir.path().display());
    assert!(said.contains(&searched), "{said}");
    folder.child("g/third.vhd", "base.vhd").close().unwrap();
    let said = folder.merge("g/third.vhd").unwrap_err().to_string();
    assert!(
        said.contains("useless: another.vhd, child.vhd, g/sibling.vhd;"),
        "{said}"
    );
    // The child in a pool of its own: those beside it, and those in the parent's.
    let inner = Pool::open(folder.path("g")).unwrap();
    let beside = Pool::open(folder.dir.path()).unwrap();
    let options = MergeOptions {
        search: ParentSearch::new().root(beside),
        ..MergeOptions::default()
    };
    let refused = merge(&inner, "third.vhd", Gate::open(), &options, &mut go_on);
    let said = refused.unwrap_err().to_string();
    let path = |rel: &str| folder.path(rel).display().to_string();
    let expected = format!(
        "useless: sibling.vhd, {}, {}; merge or remove those first (searched: all of {} and {})",
        path("another.vhd"),
        path("child.vhd"),
        path("g"),
        folder.dir.path().display()
    );
    assert!(said.ends_with(&expected), "{said}");
    // For want of a look nobody says that there are none.
    let mut deep = folder.path("d");
    for _ in 0..65 {
        deep.push("d");
    }
    std::fs::create_dir_all(deep).unwrap();
    let error = folder.merge("g/third.vhd").unwrap_err();
    assert!(error.to_string().contains("can't be looked for"), "{error}");
    let error = resized(&folder, "base.vhd", 9 * MIB, false).unwrap_err();
    assert!(error.to_string().contains("can't be looked for"), "{error}");
    std::fs::remove_dir_all(folder.path("d")).unwrap();
    remove(&folder.pool, "child.vhd").unwrap();
    folder.child("child.vhd", "base.vhd").close().unwrap();
    assert!(std::fs::read(folder.path("base.vhd")).unwrap() == before);
    let forced = MergeOptions {
        force: true,
        ..MergeOptions::default()
    };
    merge(&folder.pool, "child.vhd", Gate::open(), &forced, &mut go_on).unwrap();
}

#[test]
fn a_merge_is_refused_before_anything_is_touched() {
    let folder = Folder::pair(DiskType::Dynamic);
    let before = std::fs::read(folder.path("base.vhd")).unwrap();
    let names = folder.names();
    let options = MergeOptions {
        dependents: vec!["sibling.vhd".into(), "g/grandchild.vhd".into()],
        ..MergeOptions::default()
    };
    let error = merge(
        &folder.pool,
        "child.vhd",
        Gate::open(),
        &options,
        &mut go_on,
    )
    .unwrap_err();
    let said = error.to_string();
    assert!(said.contains("sibling.vhd, g/grandchild.vhd"), "{said}");
    // The parent is in use.
    let reader = folder.open("base.vhd", Access::ReadOnly).unwrap();
    let error = folder.merge("child.vhd").unwrap_err();
    assert!(
        matches!(&error, OperationError::Open(error) if error.kind() == OpenErrorKind::InUse),
        "{error}"
    );
    drop(reader);
    // A closed gate.
    let gate = Gate::open();
    gate.close();
    let plain = MergeOptions::default();
    let error = merge(&folder.pool, "child.vhd", gate, &plain, &mut go_on).unwrap_err();
    assert!(
        matches!(&error, OperationError::Io { source, .. } if source.kind() == IoErrorKind::GateClosed),
        "{error}"
    );
    assert_eq!(folder.names(), names);
    // A parent that changed, and no record of a merge.
    let time = folder
        .path("base.vhd")
        .metadata()
        .unwrap()
        .modified()
        .unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(folder.path("base.vhd"))
        .unwrap();
    file.set_modified(time + Duration::from_secs(5)).unwrap();
    let error = folder.merge("child.vhd").unwrap_err();
    assert!(
        matches!(&error, OperationError::Open(error) if error.kind() == OpenErrorKind::ParentChanged),
        "{error}"
    );
    assert!(std::fs::read(folder.path("base.vhd")).unwrap() == before);
    file.set_modified(time).unwrap();
    assert_eq!(folder.names(), names);
    // Forced, it goes.
    let forced = MergeOptions {
        force: true,
        ..options
    };
    merge(&folder.pool, "child.vhd", Gate::open(), &forced, &mut go_on).unwrap();
    assert!(!folder.path("child.vhd").exists());
}

#[test]
fn a_moved_or_touched_parent_is_reconnected() {
    let folder = Folder::new(DiskType::Dynamic);
    let content = folder.content("g/grandchild.vhd");
    std::fs::create_dir(folder.path("bases")).unwrap();
    std::fs::rename(folder.path("base.vhd"), folder.path("bases/moved.vhd")).unwrap();
    let touched = std::fs::File::options()
        .write(true)
        .open(folder.path("bases/moved.vhd"))
        .unwrap();
    let time = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    touched.set_modified(time).unwrap();
    let error = folder.open("child.vhd", Access::ReadOnly).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::ParentNotFound);
    let (pool, search) = (&folder.pool, ParentSearch::new());
    let before = folder.path("child.vhd").metadata().unwrap();
    // Another disk is not its parent, and neither is itself.
    let other = folder.convert("bases/moved.vhd", "other.vhd", DiskType::Dynamic);
    other.unwrap();
    let wrong = reparent(pool, "child.vhd", pool, "other.vhd", Gate::open(), &search).unwrap_err();
    assert!(
        matches!(&wrong, OperationError::Open(error) if error.kind() == OpenErrorKind::ParentMismatch),
        "{wrong}"
    );
    let wrong = reparent(pool, "child.vhd", pool, "child.vhd", Gate::open(), &search).unwrap_err();
    assert!(
        matches!(&wrong, OperationError::Open(error) if error.kind() == OpenErrorKind::InUse),
        "{wrong}"
    );
    let wrong = reparent(pool, "other.vhd", pool, "child.vhd", Gate::open(), &search).unwrap_err();
    assert!(wrong.to_string().contains("no parent"), "{wrong}");
    reparent(
        pool,
        "child.vhd",
        pool,
        "bases/moved.vhd",
        Gate::open(),
        &search,
    )
    .unwrap();
    let after = folder.path("child.vhd").metadata().unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    // The grandchild, which knows the child's time, can be written again.
    let disk = folder.open("g/grandchild.vhd", Access::ReadWrite).unwrap();
    let mut found = vec![0; content.len()];
    disk.read_at(&mut found, 0).unwrap();
    assert!(found == content);
    disk.close().unwrap();
    let info = inspect(pool, "child.vhd").unwrap().parent.unwrap();
    assert_eq!(info.relative.as_deref(), Some(r".\bases\moved.vhd"));
    assert_eq!((info.name.as_str(), info.modified), ("moved.vhd", time));
    folder.is_clean("child.vhd");
    assert!(folder.merge("g/grandchild.vhd").is_ok() && folder.merge("child.vhd").is_ok());
    assert!(folder.content("bases/moved.vhd") == content);
}
