//! Checking and repairing disks in real folders.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use paddock_vhd::{
    Access, BlockDevice, CheckReport, ChildOptions, CompactOptions, CreateError, CreateOptions,
    DiskSize, DiskType, FindingKind, Gate, OpenErrorKind, OperationError, ParentSearch, Pool,
    Progress, RepairReport, ResizeOptions, Severity, Vhd, check, compact, discard_repair_journal,
    inspect, repair, repair_in_place, resize, undo_repair,
};

const MIB: u64 = 1 << 20;

struct Folder {
    dir: tempfile::TempDir,
    pool: Pool,
}

fn go_on(progress: Progress) -> ControlFlow<()> {
    assert!(progress.done <= progress.total, "{progress:?}");
    ControlFlow::Continue(())
}

/// Not while the disk is only looked at.
fn stop_once_begun(progress: Progress) -> ControlFlow<()> {
    match progress.done {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    }
}

impl Folder {
    /// With a dynamic disk of 8 MiB, the number of each block in it.
    fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let size = DiskSize::from_bytes(8 * MIB).unwrap();
        let options = CreateOptions::new(DiskType::Dynamic, size);
        let disk = Vhd::create(&pool, "base.vhd", &options).unwrap();
        for block in 0..4 {
            disk.write_at(&[block as u8 + 1; 5000], block * 2 * MIB)
                .unwrap();
        }
        disk.close().unwrap();
        Folder { dir, pool }
    }

    fn child(&self) {
        let (pool, options) = (&self.pool, ChildOptions::new());
        let disk = Vhd::create_child(pool, "child.vhd", pool, "base.vhd", &options).unwrap();
        disk.write_at(&[9; 100], 10).unwrap();
        disk.discard(2 * MIB, 2 * MIB).unwrap();
        disk.write_at(&[8; 512], 6 * MIB).unwrap();
        disk.close().unwrap();
    }

    fn content(&self, rel: &str) -> Vec<u8> {
        let disk = Vhd::open(&self.pool, rel, Access::ReadOnly, Gate::open()).unwrap();
        let mut bytes = vec![0; disk.size() as usize];
        disk.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn check(&self, rel: &str) -> CheckReport {
        check(&self.pool, rel, &ParentSearch::new(), &mut go_on).unwrap()
    }

    fn kinds(&self, rel: &str) -> Vec<FindingKind> {
        let report = self.check(rel);
        report.findings.iter().map(|finding| finding.kind).collect()
    }

    fn entry(&self, rel: &str, block: u64, entry: u32) {
        let path = self.dir.path().join(rel);
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&entry.to_be_bytes(), 1536 + block * 4)
            .unwrap();
    }

    fn repair(&self, rel: &str) -> Result<RepairReport, OperationError> {
        repair(
            &self.pool,
            rel,
            "repaired/disk.vhd",
            Gate::open(),
            &ParentSearch::new(),
            &mut go_on,
        )
    }
}

#[test]
fn one_wrong_entry_is_named_refused_and_repaired_around() {
    let folder = Folder::new();
    let mut content = folder.content("base.vhd");
    assert_eq!(folder.check("base.vhd").worst(), None);
    folder.entry("base.vhd", 2, 0);
    let damaged = std::fs::read(folder.dir.path().join("base.vhd")).unwrap();
    let report = folder.check("base.vhd");
    assert_eq!(report.worst(), Some(Severity::Error));
    assert_eq!(report.findings[0].kind, FindingKind::BlockOverMetadata);
    assert_eq!(report.findings[0].block, Some(2));
    let opened = Vhd::open(&folder.pool, "base.vhd", Access::ReadOnly, Gate::open());
    assert_eq!(opened.unwrap_err().kind(), OpenErrorKind::Corrupt);
    let report = folder.repair("base.vhd").unwrap();
    assert_eq!(
        report,
        RepairReport {
            copied_bytes: 6 * MIB,
            lost_blocks: vec![2],
            doubtful_blocks: vec![],
        }
    );
    content[4 * MIB as usize..6 * MIB as usize].fill(0);
    assert!(folder.content("repaired/disk.vhd") == content);
    assert_eq!(folder.kinds("repaired/disk.vhd"), []);
    let (old, new) = (
        inspect(&folder.pool, "base.vhd").unwrap(),
        inspect(&folder.pool, "repaired/disk.vhd").unwrap(),
    );
    assert_eq!((old.unique_id, old.created), (new.unique_id, new.created));
    assert!(std::fs::read(folder.dir.path().join("base.vhd")).unwrap() == damaged);
    // The target is never replaced.
    let error = folder.repair("base.vhd").unwrap_err();
    assert!(
        matches!(
            error,
            OperationError::Create(CreateError::AlreadyExists { .. })
        ),
        "{error}"
    );
}

#[test]
fn blocks_in_the_same_place_are_told() {
    let folder = Folder::new();
    let content = folder.content("base.vhd");
    folder.entry("base.vhd", 3, 7);
    let report = folder.repair("base.vhd").unwrap();
    assert_eq!(report.doubtful_blocks, [0, 3]);
    let found = folder.content("repaired/disk.vhd");
    assert!(found[..6 * MIB as usize] == content[..6 * MIB as usize]);
    assert!(found[6 * MIB as usize..] == content[..2 * MIB as usize]);
}

#[test]
fn a_repaired_child_shows_what_the_child_did() {
    let folder = Folder::new();
    folder.child();
    let content = folder.content("child.vhd");
    let before = std::fs::read(folder.dir.path().join("child.vhd")).unwrap();
    // A hole in its space, and a lost tail.
    let file = File::options()
        .write(true)
        .open(folder.dir.path().join("child.vhd"))
        .unwrap();
    file.set_len(before.len() as u64 - 512).unwrap();
    assert_eq!(folder.kinds("child.vhd"), [FindingKind::FooterDamaged]);
    let report = folder.repair("child.vhd").unwrap();
    assert_eq!(report.lost_blocks, []);
    assert_eq!(folder.kinds("repaired/disk.vhd"), []);
    assert!(folder.content("repaired/disk.vhd") == content);
    let parent = inspect(&folder.pool, "repaired/disk.vhd")
        .unwrap()
        .parent
        .unwrap();
    assert_eq!(parent.relative.as_deref(), Some(r".\..\base.vhd"));
    // Without the block that hides it, the parent shows.
    folder.entry("child.vhd", 3, 1);
    std::fs::remove_dir_all(folder.dir.path().join("repaired")).unwrap();
    let report = folder.repair("child.vhd").unwrap();
    assert_eq!(report.lost_blocks, [3]);
    let found = folder.content("repaired/disk.vhd");
    assert!(found[..6 * MIB as usize] == content[..6 * MIB as usize]);
    assert_eq!(found[6 * MIB as usize], 4);
}

#[test]
fn what_moved_metadata_leaves_behind_is_leaked() {
    let folder = Folder::new();
    let (pool, search) = (&folder.pool, ParentSearch::new());
    let create = |gib: u64| DiskSize::from_bytes(gib << 30).unwrap();
    // A table of 8 KiB, a block behind it, then a longer table behind that.
    let options = CreateOptions::new(DiskType::Dynamic, create(4));
    let disk = Vhd::create(pool, "grown.vhd", &options).unwrap();
    disk.write_at(&[1; 512], 0).unwrap();
    disk.close().unwrap();
    assert_eq!(folder.kinds("grown.vhd"), []);
    let options = ResizeOptions {
        size: create(9),
        force: false,
        search,
    };
    resize(pool, "grown.vhd", Gate::open(), &options, &mut go_on).unwrap();
    let report = folder.check("grown.vhd");
    assert_eq!(folder.kinds("grown.vhd"), [FindingKind::SpaceLeaked]);
    assert_eq!(report.findings[0].offset, Some(512));
    // The old header, the old table, and up to the block at 12 KiB.
    assert_eq!(report.leaked_bytes, 12_288 - 512 - 512);
    let options = CompactOptions::default();
    compact(pool, "grown.vhd", Gate::open(), &options, &mut go_on).unwrap();
    assert_eq!(folder.kinds("grown.vhd"), []);
}

#[test]
fn the_way_to_the_parent_is_checked() {
    let folder = Folder::new();
    folder.child();
    assert_eq!(folder.kinds("child.vhd"), []);
    let base = folder.dir.path().join("base.vhd");
    let moved = folder.dir.path().join("moved.vhd");
    let time = base.metadata().unwrap().modified().unwrap();
    let touch = |time| {
        File::options()
            .write(true)
            .open(&base)
            .unwrap()
            .set_modified(time)
    };
    touch(time + std::time::Duration::from_secs(9)).unwrap();
    assert_eq!(folder.kinds("child.vhd"), [FindingKind::ParentChanged]);
    touch(time).unwrap();
    std::fs::rename(&base, &moved).unwrap();
    assert_eq!(folder.kinds("child.vhd"), [FindingKind::ParentMissing]);
    let size = DiskSize::from_bytes(8 * MIB).unwrap();
    let options = CreateOptions::new(DiskType::Fixed, size);
    Vhd::create(&folder.pool, "base.vhd", &options)
        .unwrap()
        .close()
        .unwrap();
    assert_eq!(folder.kinds("child.vhd"), [FindingKind::ParentMismatch]);
    // A parent that is damaged itself can't be opened.
    std::fs::rename(&moved, &base).unwrap();
    folder.entry("base.vhd", 1, 2);
    assert_eq!(folder.kinds("child.vhd"), [FindingKind::ParentMissing]);
}

#[test]
fn a_disk_in_use_is_not_checked_and_one_beyond_repair_is_told() {
    let folder = Folder::new();
    let disk = Vhd::open(&folder.pool, "base.vhd", Access::ReadWrite, Gate::open()).unwrap();
    let error = check(&folder.pool, "base.vhd", &ParentSearch::new(), &mut go_on).unwrap_err();
    assert!(
        matches!(&error, OperationError::Open(error) if error.kind() == OpenErrorKind::InUse),
        "{error}"
    );
    disk.close().unwrap();
    let save = |stop: &mut dyn FnMut(Progress) -> ControlFlow<()>| {
        let search = ParentSearch::new();
        repair(
            &folder.pool,
            "base.vhd",
            "repaired/disk.vhd",
            Gate::open(),
            &search,
            stop,
        )
    };
    // Already while it is looked at.
    let cancelled = save(&mut |_| ControlFlow::Break(()));
    assert!(matches!(cancelled, Err(OperationError::Cancelled)));
    assert!(!folder.dir.path().join("repaired").exists());
    let pool = &folder.pool;
    let stop = &mut |_| ControlFlow::Break(());
    let cancelled = repair_in_place(pool, "base.vhd", Gate::open(), stop);
    assert!(matches!(cancelled, Err(OperationError::Cancelled)));
    let cancelled = save(&mut stop_once_begun);
    assert!(matches!(cancelled, Err(OperationError::Cancelled)));
    let left = std::fs::read_dir(folder.dir.path().join("repaired")).unwrap();
    assert_eq!(left.count(), 0);
    let file = File::options()
        .write(true)
        .open(folder.dir.path().join("base.vhd"))
        .unwrap();
    file.write_all_at(b"X", 512).unwrap();
    assert_eq!(folder.kinds("base.vhd"), [FindingKind::HeaderDamaged]);
    let error = folder.repair("base.vhd").unwrap_err();
    assert!(
        matches!(&error, OperationError::Refused { reason, .. } if reason.contains("header")),
        "{error}"
    );
}

#[test]
fn a_disk_is_repaired_where_it_is_and_that_is_undone() {
    let folder = Folder::new();
    let mut content = folder.content("base.vhd");
    let path = folder.dir.path().join("base.vhd");
    let journal = folder.dir.path().join("base.vhd.repair");
    let pool = &folder.pool;
    // Nothing to repair: nothing is done.
    let nothing = RepairReport {
        copied_bytes: 0,
        lost_blocks: vec![],
        doubtful_blocks: vec![],
    };
    let before = std::fs::read(&path).unwrap();
    assert_eq!(
        repair_in_place(pool, "base.vhd", Gate::open(), &mut go_on).unwrap(),
        nothing
    );
    assert!(std::fs::read(&path).unwrap() == before && !journal.exists());
    // A block over the header, one in another's place, a damaged footer.
    folder.entry("base.vhd", 2, 1);
    folder.entry("base.vhd", 3, 7);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&[1], 100)
        .unwrap();
    let damaged = std::fs::read(&path).unwrap();
    let expected = RepairReport {
        copied_bytes: 2 * MIB,
        lost_blocks: vec![2],
        doubtful_blocks: vec![0, 3],
    };
    let repaired = repair_in_place(pool, "base.vhd", Gate::open(), &mut go_on).unwrap();
    assert_eq!(repaired, expected);
    content[4 * MIB as usize..6 * MIB as usize].fill(0);
    content.copy_within(..2 * MIB as usize, 6 * MIB as usize);
    assert!(folder.content("base.vhd") == content);
    // The blocks' old places, and the old footer's, are used by nothing.
    assert_eq!(folder.check("base.vhd").worst(), Some(Severity::Warning));
    // Once more: it is as it should be.
    let after = std::fs::read(&path).unwrap();
    assert_eq!(
        repair_in_place(pool, "base.vhd", Gate::open(), &mut go_on).unwrap(),
        expected
    );
    assert!(std::fs::read(&path).unwrap() == after && journal.exists());
    undo_repair(pool, "base.vhd", Gate::open()).unwrap();
    assert!(std::fs::read(&path).unwrap() == damaged && !journal.exists());
    let error = undo_repair(pool, "base.vhd", Gate::open()).unwrap_err();
    assert!(error.to_string().contains("no journal"), "{error}");
    // Repaired and used, it can't be undone any more.
    repair_in_place(pool, "base.vhd", Gate::open(), &mut go_on).unwrap();
    let disk = Vhd::open(pool, "base.vhd", Access::ReadWrite, Gate::open()).unwrap();
    disk.write_at(&[9; 10], 4 * MIB).unwrap();
    disk.close().unwrap();
    let used = std::fs::read(&path).unwrap();
    let error = undo_repair(pool, "base.vhd", Gate::open()).unwrap_err();
    assert!(error.to_string().contains("was changed since"), "{error}");
    assert!(std::fs::read(&path).unwrap() == used);
    // Damaged again: the journal of before is not overwritten.
    folder.entry("base.vhd", 1, 1);
    let error = repair_in_place(pool, "base.vhd", Gate::open(), &mut go_on).unwrap_err();
    assert!(error.to_string().contains("damaged again"), "{error}");
    discard_repair_journal(pool, "base.vhd").unwrap();
    discard_repair_journal(pool, "base.vhd").unwrap();
    let repaired = repair_in_place(pool, "base.vhd", Gate::open(), &mut go_on).unwrap();
    assert_eq!(repaired.lost_blocks, [1]);
}

#[test]
fn a_repair_that_was_cut_off_keeps_writers_out_until_it_is_ended() {
    let folder = Folder::new();
    let path = folder.dir.path().join("base.vhd");
    let pool = &folder.pool;
    folder.entry("base.vhd", 3, 7);
    let damaged = std::fs::read(&path).unwrap();
    let mut stop = stop_once_begun;
    for _ in 0..2 {
        let stopped = repair_in_place(pool, "base.vhd", Gate::open(), &mut stop);
        assert!(matches!(stopped, Err(OperationError::Cancelled)));
        assert!(folder.dir.path().join("base.vhd.repair").exists());
        let opened = Vhd::open(pool, "base.vhd", Access::ReadWrite, Gate::open());
        let error = opened.unwrap_err();
        assert!(error.to_string().contains("was cut off"), "{error}");
        let kinds = folder.kinds("base.vhd");
        assert!(kinds.contains(&FindingKind::RepairUnfinished), "{kinds:?}");
    }
    undo_repair(pool, "base.vhd", Gate::open()).unwrap();
    assert!(std::fs::read(&path).unwrap() == damaged);
    let stopped = repair_in_place(pool, "base.vhd", Gate::open(), &mut stop);
    assert!(matches!(stopped, Err(OperationError::Cancelled)));
    let repaired = repair_in_place(pool, "base.vhd", Gate::open(), &mut go_on).unwrap();
    assert_eq!(repaired.doubtful_blocks, [0, 3]);
    Vhd::open(pool, "base.vhd", Access::ReadWrite, Gate::open())
        .unwrap()
        .close()
        .unwrap();
    // What is worse than that is left alone.
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(b"X", 512)
        .unwrap();
    discard_repair_journal(pool, "base.vhd").unwrap();
    let worse = std::fs::read(&path).unwrap();
    let error = repair_in_place(pool, "base.vhd", Gate::open(), &mut go_on).unwrap_err();
    assert!(error.to_string().contains("header"), "{error}");
    assert!(std::fs::read(&path).unwrap() == worse);
    assert!(!folder.dir.path().join("base.vhd.repair").exists());
}
