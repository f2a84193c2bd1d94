//! Converting, exporting and merging disks in real folders.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

mod skipped;

use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use paddock_vhd::{
    Access, BlockDevice, ChildOptions, ConvertOptions, CopyReport, CreateError, CreateOptions,
    DiskSize, DiskType, Gate, IoErrorKind, MergeOptions, MergeReport, OpenError, OpenErrorKind,
    OperationError, ParentSearch, Pool, Progress, ResizeOptions, ResizeReport, Vhd, check,
    commit_undo, convert, discard_undo, export_raw, inspect, merge, reparent, resize, start_undo,
};

use skipped::skipped;

const MIB: u64 = 1 << 20;

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

struct Folder {
    dir: tempfile::TempDir,
    pool: Pool,
}

impl Folder {
    /// With a base, a child and a grandchild of 8 MiB, none of them new.
    fn new(base: DiskType) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let size = DiskSize::from_bytes(8 * MIB).unwrap();
        let disk = Vhd::create(&pool, "base.vhd", &CreateOptions::new(base, size)).unwrap();
        disk.write_at(&[1; 70_000], MIB).unwrap();
        disk.write_at(&[2; 5000], 5 * MIB).unwrap();
        disk.close().unwrap();
        let folder = Folder { dir, pool };
        let child = folder.child("child.vhd", "base.vhd");
        child.write_at(&[3; 1000], MIB + 100).unwrap();
        child.discard(5 * MIB, 5000).unwrap();
        child.close().unwrap();
        let grandchild = folder.child("g/grandchild.vhd", "child.vhd");
        grandchild.write_at(&[4; 10], 7 * MIB).unwrap();
        grandchild.write_zeroes(MIB + 500, 100).unwrap();
        grandchild.close().unwrap();
        folder
    }

    fn child(&self, rel: &str, parent: &str) -> Vhd {
        let options = ChildOptions::new();
        Vhd::create_child(&self.pool, rel, &self.pool, parent, &options).unwrap()
    }

    fn path(&self, rel: &str) -> PathBuf {
        self.dir.path().join(rel)
    }

    fn open(&self, rel: &str, access: Access) -> Result<Vhd, OpenError> {
        Vhd::open(&self.pool, rel, access, Gate::open())
    }

    fn content(&self, rel: &str) -> Vec<u8> {
        let disk = self.open(rel, Access::ReadOnly).unwrap();
        let mut bytes = vec![0; disk.size() as usize];
        disk.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn is_clean(&self, rel: &str) {
        let report = check(&self.pool, rel, &ParentSearch::new(), &mut go_on).unwrap();
        assert_eq!(report.findings, []);
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn merge(&self, rel: &str) -> Result<MergeReport, OperationError> {
        let options = MergeOptions::default();
        merge(&self.pool, rel, Gate::open(), &options, &mut go_on)
    }

    fn convert(&self, rel: &str, target: &str, to: DiskType) -> Result<CopyReport, OperationError> {
        let options = ConvertOptions::new(to);
        convert(&self.pool, rel, &self.pool, target, &options, &mut go_on)
    }
}

const TYPES: [DiskType; 2] = [DiskType::Fixed, DiskType::Dynamic];

#[test]
fn a_conversion_shows_the_same_in_any_type() {
    for base in TYPES {
        let folder = Folder::new(base);
        for (index, rel) in ["base.vhd", "child.vhd", "g/grandchild.vhd"]
            .iter()
            .enumerate()
        {
            let content = folder.content(rel);
            for to in TYPES {
                let target = format!("{index}-{to}.vhd");
                let report = folder.convert(rel, &target, to).unwrap();
                let pieces = content.chunks(64 << 10);
                let data = pieces.filter(|piece| piece.iter().any(|&byte| byte != 0));
                assert_eq!(report.size, 8 * MIB);
                assert!(report.written_bytes <= data.map(|piece| piece.len() as u64).sum());
                assert!(report.written_bytes >= 70_000);
                assert!(folder.content(&target) == content, "{rel} to {to}");
                folder.is_clean(&target);
                let info = inspect(&folder.pool, &target).unwrap();
                assert_eq!(info.disk_type, to);
                assert_ne!(
                    info.unique_id,
                    inspect(&folder.pool, rel).unwrap().unique_id
                );
            }
        }
        // Nothing of the zeros takes a block.
        let info = inspect(&folder.pool, "2-dynamic.vhd").unwrap();
        assert_eq!(info.allocated_blocks, Some(2));
    }
}

#[test]
fn an_export_is_the_bytes_with_holes() {
    let folder = Folder::new(DiskType::Dynamic);
    let content = folder.content("g/grandchild.vhd");
    let (pool, search) = (&folder.pool, ParentSearch::new());
    let export =
        |target: &str| export_raw(pool, "g/grandchild.vhd", pool, target, &search, &mut go_on);
    export("out/disk.raw").unwrap();
    assert!(std::fs::read(folder.path("out/disk.raw")).unwrap() == content);
    let metadata = folder.path("out/disk.raw").metadata().unwrap();
    assert!(
        metadata.blocks() * 512 < MIB,
        "{} blocks",
        metadata.blocks()
    );
    let entries = std::fs::read_dir(folder.path("out")).unwrap();
    assert_eq!(entries.count(), 1, "no lock file, no temporary");
    let error = export("out/disk.raw").unwrap_err();
    assert!(matches!(
        error,
        OperationError::Create(CreateError::AlreadyExists { .. })
    ));
}

#[test]
fn a_cancelled_copy_leaves_nothing() {
    let folder = Folder::new(DiskType::Dynamic);
    let before = folder.names();
    let mut calls = 0;
    let mut stop = |progress: Progress| {
        assert_eq!(progress.total, 8 * MIB);
        calls += 1;
        match calls % 3 {
            0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    let pool = &folder.pool;
    let options = ConvertOptions::new(DiskType::Dynamic);
    let result = convert(pool, "child.vhd", pool, "new.vhd", &options, &mut stop);
    assert!(matches!(result, Err(OperationError::Cancelled)));
    let search = ParentSearch::new();
    let result = export_raw(pool, "child.vhd", pool, "new.raw", &search, &mut stop);
    assert!(matches!(result, Err(OperationError::Cancelled)));
    assert_eq!(calls, 6);
    assert_eq!(folder.names(), before);
}

#[test]
fn a_copy_needs_a_source_at_rest_and_a_type() {
    let folder = Folder::new(DiskType::Dynamic);
    let refused = folder.convert("child.vhd", "new.vhd", DiskType::Differencing);
    assert!(matches!(
        refused,
        Err(OperationError::Create(CreateError::NeedsParent { .. }))
    ));
    let disk = folder.open("child.vhd", Access::ReadWrite).unwrap();
    let refused = folder.convert("child.vhd", "new.vhd", DiskType::Dynamic);
    let Err(OperationError::Open(error)) = refused else {
        panic!("converted while in use")
    };
    assert_eq!(error.kind(), OpenErrorKind::InUse);
    disk.close().unwrap();
    let disk = folder.open("base.vhd", Access::ReadWrite).unwrap();
    disk.write_at(&[7], 0).unwrap();
    disk.close().unwrap();
    let touched = std::fs::File::options()
        .write(true)
        .open(folder.path("base.vhd"))
        .unwrap();
    touched
        .set_modified(UNIX_EPOCH + Duration::from_secs(1_800_000_000))
        .unwrap();
    let refused = folder.convert("g/grandchild.vhd", "new.vhd", DiskType::Dynamic);
    let Err(OperationError::Open(error)) = refused else {
        panic!("converted over a parent that changed")
    };
    assert_eq!(error.kind(), OpenErrorKind::ParentChanged);
    assert!(!folder.path("new.vhd").exists());
}

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

fn stop(_: Progress) -> ControlFlow<()> {
    ControlFlow::Break(())
}

impl Folder {
    /// Its base is old, so that a merge into it shows in its time.
    fn old(base: DiskType) -> Folder {
        let folder = Folder::new(base);
        let time = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        folder.touch("base.vhd", time);
        let (pool, search) = (&folder.pool, ParentSearch::new());
        reparent(pool, "child.vhd", pool, "base.vhd", &search).unwrap();
        folder
    }

    fn touch(&self, rel: &str, time: SystemTime) {
        let file = std::fs::File::options().write(true).open(self.path(rel));
        file.unwrap().set_modified(time).unwrap();
    }

    fn modified(&self, rel: &str) -> SystemTime {
        self.path(rel).metadata().unwrap().modified().unwrap()
    }

    fn stop_merge(&self, rel: &str) {
        let options = MergeOptions::default();
        let stopped = merge(&self.pool, rel, Gate::open(), &options, &mut stop);
        assert!(matches!(stopped, Err(OperationError::Cancelled)));
    }
}

#[test]
fn a_merge_that_was_stopped_is_taken_up_again() {
    let folder = Folder::old(DiskType::Dynamic);
    let content = folder.content("child.vhd");
    let options = MergeOptions::default();
    folder.stop_merge("child.vhd");
    assert!(folder.content("child.vhd") == content);
    let error = folder.open("child.vhd", Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::ParentChanged);
    let report = folder.merge("child.vhd").unwrap();
    assert!(report.resumed);
    assert!(folder.content("base.vhd") == content);
    assert_eq!(folder.names(), ["base.vhd", "base.vhd.lock", "g"]);
    // Cut off between the child and its record.
    let child = folder.child("child.vhd", "base.vhd");
    child.close().unwrap();
    let _ = merge(
        &folder.pool,
        "child.vhd",
        Gate::open(),
        &options,
        &mut |_| ControlFlow::Break(()),
    );
    assert!(folder.path("child.vhd.merge").exists());
    std::fs::remove_file(folder.path("child.vhd")).unwrap();
    let report = folder.merge("child.vhd").unwrap();
    assert_eq!(
        report,
        MergeReport {
            parent: None,
            merged_bytes: 0,
            resumed: true
        }
    );
    assert!(!folder.path("child.vhd.merge").exists());
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
        let folder = Folder::old(DiskType::Dynamic);
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
    let folder = Folder::old(DiskType::Fixed);
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

#[test]
fn dependents_in_the_same_folder_are_found() {
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
        said.contains("useless: grandchild.vhd, another.vhd;"),
        "{said}"
    );
    // Those in the child's folder as well as those beside the parent.
    folder.child("g/third.vhd", "base.vhd").close().unwrap();
    let said = folder.merge("g/third.vhd").unwrap_err().to_string();
    assert!(
        said.contains("useless: g/sibling.vhd, another.vhd, child.vhd;"),
        "{said}"
    );
    assert!(std::fs::read(folder.path("base.vhd")).unwrap() == before);
    let forced = MergeOptions {
        force: true,
        ..MergeOptions::default()
    };
    merge(&folder.pool, "child.vhd", Gate::open(), &forced, &mut go_on).unwrap();
}

#[test]
fn a_merge_is_refused_before_anything_is_touched() {
    let folder = Folder::new(DiskType::Dynamic);
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
    // The parent is in use, by a sibling or alone.
    let sibling = folder.child("g/sibling.vhd", "base.vhd");
    let error = folder.merge("child.vhd").unwrap_err();
    assert!(
        matches!(&error, OperationError::Open(error) if error.kind() == OpenErrorKind::InUse),
        "{error}"
    );
    sibling.close().unwrap();
    paddock_vhd::remove(&folder.pool, "g/sibling.vhd").unwrap();
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
    let wrong = reparent(pool, "child.vhd", pool, "other.vhd", &search).unwrap_err();
    assert!(
        matches!(&wrong, OperationError::Open(error) if error.kind() == OpenErrorKind::ParentMismatch),
        "{wrong}"
    );
    let wrong = reparent(pool, "child.vhd", pool, "child.vhd", &search).unwrap_err();
    assert!(
        matches!(&wrong, OperationError::Open(error) if error.kind() == OpenErrorKind::InUse),
        "{wrong}"
    );
    let wrong = reparent(pool, "other.vhd", pool, "child.vhd", &search).unwrap_err();
    assert!(wrong.to_string().contains("no parent"), "{wrong}");
    reparent(pool, "child.vhd", pool, "bases/moved.vhd", &search).unwrap();
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
    let search = ParentSearch::new();
    // It would make the other child useless.
    let wrong = commit_undo(pool, "vm/disk.vud", Gate::open(), &search, &mut go_on);
    let wrong = wrong.unwrap_err();
    assert!(wrong.to_string().contains("child.vhd"), "{wrong}");
    std::fs::remove_file(folder.path("child.vhd")).unwrap();
    let stopped = commit_undo(pool, "vm/disk.vud", Gate::open(), &search, &mut |_| {
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(OperationError::Cancelled)));
    let wrong = discard_undo(pool, "vm/disk.vud").unwrap_err();
    assert!(wrong.to_string().contains("has begun"), "{wrong}");
    let report = commit_undo(pool, "vm/disk.vud", Gate::open(), &search, &mut go_on).unwrap();
    assert!(report.resumed);
    let mut expected = content;
    expected[3 * MIB as usize..][..10].fill(8);
    assert!(folder.content("base.vhd") == expected);
    assert_eq!(std::fs::read_dir(folder.path("vm")).unwrap().count(), 0);
}

fn resized(folder: &Folder, rel: &str, size: u64, force: bool) -> Result<(), OperationError> {
    let options = ResizeOptions {
        size: DiskSize::from_bytes(size).unwrap(),
        force,
        search: ParentSearch::new(),
    };
    let old_size = inspect(&folder.pool, rel).unwrap().virtual_size;
    let report = resize(&folder.pool, rel, Gate::open(), &options, &mut go_on)?;
    let expected = ResizeReport {
        old_size,
        new_size: size,
    };
    assert_eq!(report, expected);
    assert_eq!(inspect(&folder.pool, rel).unwrap().virtual_size, size);
    Ok(())
}

#[test]
fn disks_grow_and_shrink_and_keep_their_data() {
    for disk_type in TYPES {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let folder = Folder { dir, pool };
        let size = DiskSize::from_bytes(8 * MIB).unwrap();
        let options = CreateOptions::new(disk_type, size);
        let disk = Vhd::create(&folder.pool, "disk.vhd", &options).unwrap();
        disk.write_at(&[1; 70_000], MIB).unwrap();
        disk.close().unwrap();
        let data = folder.content("disk.vhd");
        let first = inspect(&folder.pool, "disk.vhd").unwrap();
        for size in [
            9 * MIB + 512,
            70 * MIB,
            // More entries than a sector has.
            300 * MIB,
            6 * MIB + 1024,
            4 * MIB,
            5 * MIB,
        ] {
            resized(&folder, "disk.vhd", size, false).unwrap();
            let disk = folder.open("disk.vhd", Access::ReadOnly).unwrap();
            let zeros = vec![0; MIB as usize];
            let mut found = zeros.clone();
            for at in [0, MIB, size / 2 - MIB / 2, size - MIB] {
                let expected = match at {
                    MIB => &data[MIB as usize..2 * MIB as usize],
                    _ => &zeros[..],
                };
                disk.read_at(&mut found, at).unwrap();
                let is_data = size == 4 * MIB && at == 3 * MIB / 2;
                assert!(found == expected || is_data, "{disk_type} {size} at {at}");
            }
            drop(disk);
            folder.is_clean("disk.vhd");
            assert_eq!(folder.names(), ["disk.vhd", "disk.vhd.lock"]);
            let disk = folder.open("disk.vhd", Access::ReadWrite).unwrap();
            disk.write_at(&[2; 5000], size - 5000).unwrap();
            disk.flush().unwrap();
            disk.discard(size - 5000, 5000).unwrap();
            disk.close().unwrap();
            let info = inspect(&folder.pool, "disk.vhd").unwrap();
            assert_eq!(info.unique_id, first.unique_id);
            let expected = match disk_type {
                DiskType::Fixed => size + 512,
                _ => info.file_size,
            };
            assert_eq!(info.file_size, expected);
            if disk_type == DiskType::Fixed {
                assert!(info.allocated >= size, "its space is reserved");
            } else {
                assert!(info.allocated <= 3 * MIB, "{} bytes", info.allocated);
            }
        }
    }
}

#[test]
fn a_shrink_cuts_data_only_when_forced() {
    for disk_type in TYPES {
        let folder = Folder::new(disk_type);
        // The child's data as well as its parent's counts.
        for (rel, smallest) in [("g/grandchild.vhd", 7 * MIB + 512), ("child.vhd", 0)] {
            let smallest = match smallest {
                0 => MIB + 70_144,
                smallest => smallest,
            };
            let before = std::fs::read(folder.path(rel)).unwrap();
            let error = resized(&folder, rel, MIB + 512, false).unwrap_err();
            let said = error.to_string();
            assert!(
                said.contains(&format!("the smallest size is {smallest} ")),
                "{said}"
            );
            let last = match rel {
                "child.vhd" => MIB + 69_999,
                _ => 7 * MIB + 9,
            };
            assert!(said.contains(&format!("is byte {last},")), "{said}");
            assert!(std::fs::read(folder.path(rel)).unwrap() == before);
            let mut content = folder.content(rel);
            resized(&folder, rel, smallest, false).unwrap();
            content.truncate(smallest as usize);
            assert!(folder.content(rel) == content);
            resized(&folder, rel, MIB + 1024, true).unwrap();
            content.truncate(MIB as usize + 1024);
            assert!(folder.content(rel) == content);
            // The parent's data would come back.
            let error = resized(&folder, rel, 3 * MIB, false).unwrap_err();
            let said = error.to_string();
            assert!(said.contains("its parent has data"), "{said}");
            std::fs::remove_file(folder.path(rel)).unwrap();
        }
        let error = resized(&folder, "base.vhd", 5 * MIB + 4096, false).unwrap_err();
        assert!(error.to_string().contains("5248000 bytes"), "{error}");
        resized(&folder, "base.vhd", 5_248_000, false).unwrap();
        resized(&folder, "base.vhd", 5 * MIB, true).unwrap();
        resized(&folder, "base.vhd", 8 * MIB, false).unwrap();
        assert!(
            folder.content("base.vhd")[5 * MIB as usize..]
                .iter()
                .all(|&byte| byte == 0)
        );
    }
}

#[test]
fn a_resize_is_refused_before_anything_is_touched() {
    let folder = Folder::new(DiskType::Fixed);
    let before = std::fs::read(folder.path("base.vhd")).unwrap();
    let names = folder.names();
    let said = |result: Result<(), OperationError>| result.unwrap_err().to_string();
    let text = said(resized(&folder, "base.vhd", 9 * MIB, false));
    assert!(
        text.contains("it has children") && text.contains("child.vhd"),
        "{text}"
    );
    let disk = folder.open("base.vhd", Access::ReadOnly).unwrap();
    let error = resized(&folder, "base.vhd", 9 * MIB, true).unwrap_err();
    assert!(
        matches!(&error, OperationError::Open(error) if error.kind() == OpenErrorKind::InUse),
        "{error}"
    );
    drop(disk);
    let space = folder.pool.space().unwrap().available;
    if space < 2000 << 30 {
        let error = resized(&folder, "base.vhd", 2040 << 30, true).unwrap_err();
        assert!(matches!(&error, OperationError::NoSpace { .. }), "{error}");
    } else {
        skipped("this file system has room for the largest disk");
    }
    let gate = Gate::open();
    gate.close();
    let options = ResizeOptions {
        size: DiskSize::from_bytes(9 * MIB).unwrap(),
        force: true,
        search: ParentSearch::new(),
    };
    for rel in ["base.vhd", "child.vhd"] {
        let error = resize(&folder.pool, rel, gate.clone(), &options, &mut go_on).unwrap_err();
        assert!(
            matches!(&error, OperationError::Io { source, .. } if source.kind() == IoErrorKind::GateClosed),
            "{error}"
        );
    }
    // A disk of a saved state, even when forced.
    let child = std::fs::read(folder.path("g/grandchild.vhd")).unwrap();
    let mut saved = child.clone();
    for at in [0, saved.len() - 512] {
        saved[at + 84] = 1;
        let sum = u32::from_be_bytes(saved[at + 64..at + 68].try_into().unwrap()) - 1;
        saved[at + 64..at + 68].copy_from_slice(&sum.to_be_bytes());
    }
    std::fs::write(folder.path("g/grandchild.vhd"), &saved).unwrap();
    let text = said(resized(&folder, "g/grandchild.vhd", 9 * MIB, true));
    assert!(text.contains("saved state"), "{text}");
    assert!(std::fs::read(folder.path("base.vhd")).unwrap() == before);
    assert_eq!(folder.names(), names);
    // Forced, a parent grows and its child shows zeros behind its end.
    std::fs::write(folder.path("g/grandchild.vhd"), &child).unwrap();
    let mut content = folder.content("g/grandchild.vhd");
    resized(&folder, "g/grandchild.vhd", 11 * MIB, false).unwrap();
    content.resize(11 * MIB as usize, 0);
    assert!(folder.content("g/grandchild.vhd") == content);
    resized(&folder, "base.vhd", 9 * MIB, true).unwrap();
    assert!(folder.content("g/grandchild.vhd") == content);
}
