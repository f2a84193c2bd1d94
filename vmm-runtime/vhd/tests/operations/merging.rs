//! Merging, and merges that were cut off.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use paddock_vhd::{
    Access, DiskType, Gate, MergeOptions, MergeReport, OpenError, OpenErrorKind, OperationError,
    ParentSearch, Pool, merge, reparent,
};

use crate::folder::{Folder, TYPES, go_on};

#[test]
fn a_merge_gives_the_parent_the_childs_content_and_removes_the_child() {
    for base in TYPES {
        let folder = Folder::new(base);
        let content = folder.content("g/grandchild.vhd");
        let report = folder.merge("g/grandchild.vhd").unwrap();
        assert_eq!(report.parent.as_deref(), Some(Path::new("child.vhd")));
        assert!(!report.resumed && report.merged_bytes >= 1024);
        assert!(folder.content("child.vhd") == content);
        assert_eq!(std::fs::read_dir(folder.path("g")).unwrap().count(), 0);
        // The child of a parent that the merge changed is the next.
        let report = folder.merge("child.vhd").unwrap();
        assert_eq!(report.parent.as_deref(), Some(Path::new("base.vhd")));
        assert!(folder.content("base.vhd") == content);
        assert_eq!(folder.names(), ["base.vhd", "base.vhd.lock", "g"]);
        folder.is_clean("base.vhd");
        let error = folder.merge("base.vhd").unwrap_err();
        assert!(error.to_string().contains("no parent"), "{error}");
    }
}

#[test]
fn a_merge_that_was_stopped_is_taken_up_again() {
    let folder = Folder::pair(DiskType::Dynamic);
    let content = folder.content("child.vhd");
    folder.stop_merge("child.vhd");
    assert!(folder.content("child.vhd") == content);
    let error = folder.open("child.vhd", Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::ParentChanged);
    let report = folder.merge("child.vhd").unwrap();
    assert!(report.resumed);
    assert!(folder.content("base.vhd") == content);
    assert_eq!(folder.names(), ["base.vhd", "base.vhd.lock", "g"]);
}

/// What the file says that a merge leaves beside the child when all is done but
/// for removing it.
fn done(record: &Path) -> String {
    let text = std::fs::read_to_string(record).unwrap();
    let done = text.replace("state begun", "state done.");
    assert_ne!(text, done);
    done
}

#[test]
fn a_merge_without_its_child_is_over_only_if_the_parent_has_all_of_it() {
    let folder = Folder::pair(DiskType::Dynamic);
    let content = folder.content("child.vhd");
    let record = folder.path("child.vhd.merge");
    folder.stop_merge("child.vhd");
    // Someone takes the child away.
    std::fs::rename(folder.path("child.vhd"), folder.path("kept")).unwrap();
    let half = std::fs::read(folder.path("base.vhd")).unwrap();
    for _ in 0..2 {
        let said = folder.merge("child.vhd").unwrap_err().to_string();
        assert!(said.contains("the parent has a part of it"), "{said}");
        assert!(said.contains("remove child.vhd.merge"), "{said}");
        assert!(record.exists());
    }
    assert!(std::fs::read(folder.path("base.vhd")).unwrap() == half);
    // With the child back it goes on.
    std::fs::rename(folder.path("kept"), folder.path("child.vhd")).unwrap();
    assert!(folder.merge("child.vhd").unwrap().resumed);
    assert!(folder.content("base.vhd") == content);
    assert!(!record.exists());
    // Cut off between the child and its record, and before the child.
    let ended = MergeReport {
        parent: None,
        merged_bytes: 0,
        resumed: true,
    };
    for remove_child in [true, false] {
        folder.child("child.vhd", "base.vhd").close().unwrap();
        folder.stop_merge("child.vhd");
        std::fs::write(&record, done(&record)).unwrap();
        let before = std::fs::read(folder.path("base.vhd")).unwrap();
        let search = ParentSearch::new();
        let pool = &folder.pool;
        if remove_child {
            std::fs::remove_file(folder.path("child.vhd")).unwrap();
        } else {
            let again = reparent(pool, "child.vhd", pool, "base.vhd", Gate::open(), &search);
            let said = again.unwrap_err().to_string();
            assert!(said.contains("merge it again"), "{said}");
        }
        assert_eq!(folder.merge("child.vhd").unwrap(), ended);
        assert!(!record.exists() && !folder.path("child.vhd").exists());
        assert!(std::fs::read(folder.path("base.vhd")).unwrap() == before);
    }
    let error = folder.merge("child.vhd").unwrap_err();
    assert!(matches!(
        error,
        OperationError::Open(OpenError::NotFound { .. })
    ));
    // The marker is left, until someone opens the parent for writing.
    assert!(folder.path("base.vhd.merging").exists());
    drop(folder.open("base.vhd", Access::ReadWrite).unwrap());
    assert!(!folder.path("base.vhd.merging").exists());
}

/// What another one does to the parent of a merge that was stopped.
#[test]
fn a_merge_into_a_parent_that_others_changed_is_not_taken_up() {
    type Change = fn(&Folder);
    let changes: [(Change, &str); 4] = [
        (
            |folder| {
                let later = folder.modified("base.vhd") + Duration::from_nanos(1_000_000);
                folder.touch("base.vhd", later);
            },
            "modified since by something else",
        ),
        // Another disk, from a backup.
        (
            |folder| folder.touch("base.vhd", UNIX_EPOCH + Duration::from_secs(999_999_999)),
            "modified since by something else",
        ),
        // Even if it leaves no later time.
        (
            |folder| {
                let time = folder.modified("base.vhd");
                folder
                    .open("base.vhd", Access::ReadWrite)
                    .unwrap()
                    .close()
                    .unwrap();
                folder.touch("base.vhd", time);
            },
            "opened for writing since",
        ),
        (
            |folder| std::fs::remove_file(folder.path("base.vhd.merging")).unwrap(),
            "base.vhd.merging is gone",
        ),
    ];
    for (change, expected) in changes {
        let folder = Folder::pair(DiskType::Dynamic);
        let content = folder.content("child.vhd");
        folder.stop_merge("child.vhd");
        change(&folder);
        let before = std::fs::read(folder.path("base.vhd")).unwrap();
        for _ in 0..2 {
            let error = folder.merge("child.vhd").unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert!(std::fs::read(folder.path("base.vhd")).unwrap() == before);
        assert!(folder.path("child.vhd").exists());
        let forced = MergeOptions {
            force: true,
            ..MergeOptions::default()
        };
        let gate = Gate::open();
        let report = merge(&folder.pool, "child.vhd", gate, &forced, &mut go_on).unwrap();
        assert!(report.resumed && folder.content("base.vhd") == content);
    }
}

/// The folder as it is at each step of a merge is one that a crash may leave.
#[test]
fn a_merge_that_a_crash_cut_off_is_taken_up_again() {
    let folder = Folder::pair(DiskType::Fixed);
    let content = folder.content("child.vhd");
    let mut copies = Vec::new();
    let mut copy = |_| {
        let dir = tempfile::tempdir().unwrap();
        for name in folder.names() {
            if folder.path(&name).is_file() && !name.ends_with(".lock") {
                let to = dir.path().join(&name);
                std::fs::copy(folder.path(&name), &to).unwrap();
                let file = std::fs::File::options().write(true).open(&to).unwrap();
                file.set_modified(folder.modified(&name)).unwrap();
            }
        }
        let pool = Pool::open(dir.path()).unwrap();
        copies.push(Folder { dir, pool });
        ControlFlow::Continue(())
    };
    let options = MergeOptions::default();
    merge(&folder.pool, "child.vhd", Gate::open(), &options, &mut copy).unwrap();
    assert!(copies.len() > 2, "{}", copies.len());
    for (index, left) in copies.iter().enumerate() {
        assert!(left.content("child.vhd") == content);
        if index % 2 == 0 {
            // Later than the merge can have written.
            let time = left.modified("base.vhd");
            left.touch("base.vhd", time + Duration::from_secs(120));
            let error = left.merge("child.vhd").unwrap_err();
            assert!(error.to_string().contains("by something else"), "{error}");
            left.touch("base.vhd", time);
        }
        assert!(left.merge("child.vhd").unwrap().resumed);
        assert!(left.content("base.vhd") == content);
        assert_eq!(left.names(), ["base.vhd", "base.vhd.lock"]);
    }
}
