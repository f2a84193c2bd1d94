//! Compacting, cloning and importing whole disks in real folders.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

mod skipped;

use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use paddock_vhd::{
    Access, BlockDevice, ChildOptions, CloneOptions, CloneReport, CompactOptions, CompactReport,
    ConvertOptions, CreateOptions, DiskSize, DiskType, Gate, Linked, OpenError, OpenErrorKind,
    OperationError, ParentSearch, Pool, Progress, Vhd, check, children, clone_disk, compact,
    import_linked, inspect, link, repair_in_place,
};

use skipped::skipped;

const MIB: u64 = 1 << 20;

fn go_on(progress: Progress) -> ControlFlow<()> {
    assert!(progress.done <= progress.total, "{progress:?}");
    ControlFlow::Continue(())
}

/// A process that is being started holds for a moment all files that this one
/// has open, and a file system with open files can't be unmounted. So tests
/// that start processes run alone.
static TURN: RwLock<()> = RwLock::new(());

#[allow(dead_code)] // Held, not read.
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

struct Folder {
    dir: tempfile::TempDir,
    pool: Pool,
    _turn: Turn,
}

/// Blocks of 2 MiB, in the order in which they are written. Of these the
/// second and the last hold zeros, and the first zeros at its end.
const WRITTEN: [u64; 5] = [7, 3, 0, 5, 8];

impl Folder {
    /// With a dynamic disk of 20 MiB, which is not new.
    fn new() -> Folder {
        Folder::with(Turn::Shared(
            TURN.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    /// For tests that start processes.
    fn alone() -> Folder {
        Folder::with(Turn::Alone(
            TURN.write().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    fn with(turn: Turn) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let folder = Folder {
            dir,
            pool,
            _turn: turn,
        };
        folder.fill("disk.vhd");
        touch(&folder.path("disk.vhd"), 1_700_000_000);
        folder
    }

    fn fill(&self, rel: &str) {
        let size = DiskSize::from_bytes(20 * MIB).unwrap();
        let options = CreateOptions::new(DiskType::Dynamic, size);
        let disk = Vhd::create(&self.pool, rel, &options).unwrap();
        for block in WRITTEN {
            let bytes = vec![block as u8 + 1; 2 * MIB as usize];
            disk.write_at(&bytes, block * 2 * MIB).unwrap();
            // In this order in the file.
            disk.flush().unwrap();
        }
        for (start, end) in [(6, 8), (15, 16), (16, 18)] {
            let zeros = vec![0; ((end - start) * MIB) as usize];
            disk.write_at(&zeros, start * MIB).unwrap();
        }
        disk.close().unwrap();
    }

    fn path(&self, rel: &str) -> PathBuf {
        self.dir.path().join(rel)
    }

    fn open(&self, rel: &str, access: Access) -> Vhd {
        Vhd::open(&self.pool, rel, access, Gate::open()).unwrap()
    }

    fn content(&self, rel: &str) -> Vec<u8> {
        let disk = self.open(rel, Access::ReadOnly);
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

    fn child(&self, rel: &str, parent: &str) -> Vhd {
        let options = ChildOptions::new();
        Vhd::create_child(&self.pool, rel, &self.pool, parent, &options).unwrap()
    }

    fn compact(&self, options: &CompactOptions<'_>) -> Result<CompactReport, OperationError> {
        compact(&self.pool, "disk.vhd", Gate::open(), options, &mut go_on)
    }

    fn refusal(&self, options: &CompactOptions<'_>) -> String {
        match self.compact(options) {
            Err(OperationError::Refused { path, reason }) => {
                assert_eq!(path, Path::new("disk.vhd"));
                reason
            }
            result => panic!("not refused: {result:?}"),
        }
    }

    /// The entries of the table of a disk of ours.
    fn table(&self, rel: &str) -> Vec<u32> {
        let bytes = std::fs::read(self.path(rel)).unwrap();
        let entries = bytes[1536..1536 + 40].chunks(4);
        entries
            .map(|entry| u32::from_be_bytes(entry.try_into().unwrap()))
            .collect()
    }
}

fn touch(path: &Path, seconds: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds))
        .unwrap();
}

fn modified(path: &Path) -> SystemTime {
    path.metadata().unwrap().modified().unwrap()
}

/// Everything of the footer but its checksum and where the header lies.
fn identity(path: &Path) -> (Vec<u8>, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    (bytes[24..64].to_vec(), bytes[68..512].to_vec())
}

#[test]
fn zero_blocks_go_and_everything_else_stays() {
    let folder = Folder::new();
    let path = folder.path("disk.vhd");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let content = folder.content("disk.vhd");
    let (before, id) = (path.metadata().unwrap(), identity(&path));
    let time = modified(&path);
    let lock = folder.path("disk.vhd.lock").metadata().unwrap().ino();
    let report = folder.compact(&CompactOptions::default()).unwrap();
    assert!(folder.content("disk.vhd") == content);
    folder.is_clean("disk.vhd");
    let after = path.metadata().unwrap();
    // Three blocks of 4097 sectors that begin at 7 modulo 8, and a footer.
    assert_eq!(after.len(), (7 + 2 * 4104 + 4097 + 1) * 512);
    let expected = CompactReport {
        old_len: before.len(),
        new_len: after.len(),
        blocks_before: 5,
        blocks_after: 3,
        freed_bytes: (before.blocks() - after.blocks()) * 512,
    };
    assert_eq!(report, expected);
    // Two blocks, and half of another one.
    assert!(report.freed_bytes >= 5 * MIB - 64 * 1024, "{report:?}");
    assert_eq!(after.mode() & 0o7777, 0o640);
    assert_eq!(identity(&path), id);
    assert_eq!(modified(&path), time);
    assert_eq!(folder.names(), ["disk.vhd", "disk.vhd.lock"]);
    let kept = folder.path("disk.vhd.lock").metadata().unwrap().ino();
    assert_eq!(kept, lock, "the lock file was replaced");
    // The order of the blocks in the file is what it was.
    let table = folder.table("disk.vhd");
    assert_eq!((table[7], table[0], table[5]), (7, 7 + 4104, 7 + 2 * 4104));
    // It can be written to, and compacted again.
    let disk = folder.open("disk.vhd", Access::ReadWrite);
    disk.write_at(&[9; 512], 3 * 2 * MIB).unwrap();
    disk.close().unwrap();
    let report = folder.compact(&CompactOptions::default()).unwrap();
    assert_eq!((report.blocks_before, report.blocks_after), (4, 4));
}

#[test]
fn defragmented_blocks_lie_in_the_order_of_the_disk() {
    let folder = Folder::new();
    let content = folder.content("disk.vhd");
    let fragments = || inspect(&folder.pool, "disk.vhd").unwrap().fragments;
    assert_eq!(fragments(), Some(5));
    // The three that are left: 7, then 0 and 5.
    folder.compact(&CompactOptions::default()).unwrap();
    assert_eq!(fragments(), Some(2));
    let options = CompactOptions {
        defragment: true,
        ..CompactOptions::default()
    };
    folder.compact(&options).unwrap();
    let table = folder.table("disk.vhd");
    assert_eq!((table[0], table[5], table[7]), (7, 7 + 4104, 7 + 2 * 4104));
    assert!(folder.content("disk.vhd") == content);
    folder.is_clean("disk.vhd");
    assert_eq!(fragments(), Some(1));
}

#[test]
fn free_ranges_are_given_up() {
    let folder = Folder::new();
    let path = folder.path("disk.vhd");
    let mut content = folder.content("disk.vhd");
    // All of block 5, part of block 0 to the byte, and where nothing is.
    let free: Vec<Range<u64>> = vec![100..MIB + 5, 3 * MIB..4 * MIB, 10 * MIB..12 * MIB];
    for range in &free {
        content[range.start as usize..range.end as usize].fill(0);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    touch(&path, now.as_secs());
    let before = modified(&path);
    let options = CompactOptions {
        free: Some(&|_| Ok(free.clone())),
        ..CompactOptions::default()
    };
    let report = folder.compact(&options).unwrap();
    assert_eq!((report.blocks_before, report.blocks_after), (5, 2));
    assert!(folder.content("disk.vhd") == content);
    folder.is_clean("disk.vhd");
    // A child of it that nobody knew of would notice.
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(seconds(modified(&path)) > seconds(before));
}

#[test]
fn what_is_free_is_asked_for_while_nobody_can_begin_to_use_it() {
    let folder = Folder::new();
    let asked = std::cell::Cell::new(0);
    let free = |disk: &dyn BlockDevice| {
        asked.set(asked.get() + 1);
        let mut byte = [0];
        disk.read_at(&mut byte, 0).unwrap();
        assert_eq!((byte, disk.size()), ([1], 20 * MIB));
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let open = Vhd::open(&folder.pool, "disk.vhd", access, Gate::open());
            assert_eq!(open.unwrap_err().kind(), OpenErrorKind::InUse);
        }
        Ok(std::iter::once(0..2 * MIB).collect())
    };
    let options = CompactOptions {
        free: Some(&free),
        ..CompactOptions::default()
    };
    let report = folder.compact(&options).unwrap();
    assert_eq!((asked.get(), report.blocks_after), (1, 2));
    let before = std::fs::read(folder.path("disk.vhd")).unwrap();
    let fails = |_: &dyn BlockDevice| Err(std::io::Error::other("no walk"));
    let options = CompactOptions {
        free: Some(&fails),
        ..CompactOptions::default()
    };
    let error = folder.compact(&options).unwrap_err();
    assert!(error.to_string().contains("no walk"), "{error}");
    assert!(std::fs::read(folder.path("disk.vhd")).unwrap() == before);
    assert_eq!(folder.names(), ["disk.vhd", "disk.vhd.lock"]);
}

#[test]
fn a_target_gets_the_result_and_the_old_file_stays() {
    let folder = Folder::new();
    let old = std::fs::read(folder.path("disk.vhd")).unwrap();
    let time = modified(&folder.path("disk.vhd"));
    let options = CompactOptions {
        target: Some("new/disk.vhd".into()),
        ..CompactOptions::default()
    };
    let report = folder.compact(&options).unwrap();
    assert_eq!(report.blocks_after, 3);
    assert!(std::fs::read(folder.path("disk.vhd")).unwrap() == old);
    assert!(folder.content("new/disk.vhd") == folder.content("disk.vhd"));
    folder.is_clean("new/disk.vhd");
    assert_eq!(modified(&folder.path("new/disk.vhd")), time);
    let id = |rel| identity(&folder.path(rel));
    assert_eq!(id("new/disk.vhd"), id("disk.vhd"));
    // Not over another file.
    let again = folder.compact(&options);
    assert!(matches!(again, Err(OperationError::Create(_))), "{again:?}");
}

#[test]
fn children_still_fit_and_keep_free_ranges_from_being_given_up() {
    let folder = Folder::new();
    let child = folder.child("a/child.vhd", "disk.vhd");
    child.write_at(&[0xcc; 700], 14 * MIB + 9).unwrap();
    child.close().unwrap();
    folder.child("undo.vud", "disk.vhd").close().unwrap();
    folder
        .child("grandchild.vhd", "a/child.vhd")
        .close()
        .unwrap();
    let found = children(&folder.pool, "disk.vhd").unwrap();
    assert_eq!(found, [Path::new("a/child.vhd"), Path::new("undo.vud")]);
    let found = children(&folder.pool, "grandchild.vhd").unwrap();
    assert_eq!(found, [] as [PathBuf; 0]);
    let content = folder.content("grandchild.vhd");
    let reason = folder.refusal(&CompactOptions {
        free: Some(&|_| Ok(std::iter::once(0..MIB).collect())),
        ..CompactOptions::default()
    });
    assert!(reason.contains("a/child.vhd (2 in all)"), "{reason}");
    folder.compact(&CompactOptions::default()).unwrap();
    // For writing, too: the parent's time is what they know.
    folder.open("undo.vud", Access::ReadWrite).close().unwrap();
    assert!(folder.content("grandchild.vhd") == content);
    // One that is open has its parents locked.
    let open = folder.open("grandchild.vhd", Access::ReadOnly);
    match folder.compact(&CompactOptions::default()) {
        Err(OperationError::Open(error)) => assert_eq!(error.kind(), OpenErrorKind::InUse),
        result => panic!("{result:?}"),
    }
    drop(open);
    folder.compact(&CompactOptions::default()).unwrap();
}

#[test]
fn children_that_cannot_be_ruled_out_are_not() {
    let folder = Folder::new();
    let mut deep = PathBuf::new();
    for _ in 0..64 {
        deep.push("d");
    }
    std::fs::create_dir_all(folder.dir.path().join(&deep)).unwrap();
    let lowest = deep.join("child.vhd");
    folder
        .child(lowest.to_str().unwrap(), "disk.vhd")
        .close()
        .unwrap();
    assert_eq!(children(&folder.pool, "disk.vhd").unwrap(), [lowest]);
    std::fs::create_dir(folder.dir.path().join(&deep).join("d")).unwrap();
    let error = children(&folder.pool, "disk.vhd").unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::Unsupported);
    let options = CompactOptions {
        free: Some(&|_| Ok(std::iter::once(0..MIB).collect())),
        ..CompactOptions::default()
    };
    match folder.compact(&options) {
        Err(OperationError::Open(error)) => assert_eq!(error.kind(), OpenErrorKind::Unsupported),
        result => panic!("{result:?}"),
    }
    // What shows the same needs to know of none.
    folder.compact(&CompactOptions::default()).unwrap();
}

#[test]
fn what_cannot_be_compacted_is_refused_with_the_reason() {
    let folder = Folder::new();
    let options = CompactOptions::default();
    let bad = CompactOptions {
        free: Some(&|_| Ok([MIB..2 * MIB, 0..5].to_vec())),
        ..options.clone()
    };
    let reason = folder.refusal(&bad);
    assert!(reason.contains("0..5"), "{reason}");
    let size = DiskSize::from_bytes(MIB).unwrap();
    let fixed = CreateOptions::new(DiskType::Fixed, size);
    Vhd::create(&folder.pool, "fixed.vhd", &fixed).unwrap();
    folder.child("child.vhd", "disk.vhd").close().unwrap();
    for (rel, expected) in [
        ("fixed.vhd", "convert it"),
        ("child.vhd", "data of its parent"),
    ] {
        let before = std::fs::read(folder.path(rel)).unwrap();
        match compact(&folder.pool, rel, Gate::open(), &options, &mut go_on) {
            Err(OperationError::Refused { reason, .. }) => {
                assert!(reason.contains(expected), "{reason}");
            }
            result => panic!("{result:?}"),
        }
        assert!(std::fs::read(folder.path(rel)).unwrap() == before);
    }
    std::fs::hard_link(folder.path("disk.vhd"), folder.path("link.vhd")).unwrap();
    let reason = folder.refusal(&options);
    assert!(reason.contains("hard link"), "{reason}");
    std::fs::remove_file(folder.path("link.vhd")).unwrap();
    // The mark of a saved state, in both footers.
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(folder.path("disk.vhd"))
        .unwrap();
    let mut footer = [0; 512];
    file.read_exact_at(&mut footer, 0).unwrap();
    footer[84] = 1;
    let sum = u32::from_be_bytes(footer[64..68].try_into().unwrap());
    footer[64..68].copy_from_slice(&(sum - 1).to_be_bytes());
    let end = file.metadata().unwrap().len() - 512;
    file.write_all_at(&footer, 0).unwrap();
    file.write_all_at(&footer, end).unwrap();
    assert!(inspect(&folder.pool, "disk.vhd").unwrap().saved_state);
    let reason = folder.refusal(&options);
    assert!(reason.contains("saved state"), "{reason}");
}

#[test]
fn what_was_cut_off_is_ended_first() {
    let folder = Folder::new();
    // Two blocks at the same place.
    let file = std::fs::File::options()
        .write(true)
        .open(folder.path("disk.vhd"))
        .unwrap();
    file.write_all_at(&7u32.to_be_bytes(), 1536 + 4).unwrap();
    let mut stop = |progress: Progress| match progress.done {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    repair_in_place(&folder.pool, "disk.vhd", Gate::open(), &mut stop).unwrap_err();
    let old = std::fs::read(folder.path("disk.vhd")).unwrap();
    let cut_off = |error: OperationError| {
        assert!(error.to_string().contains("was cut off"), "{error}");
    };
    cut_off(folder.compact(&CompactOptions::default()).unwrap_err());
    cut_off(clone(&folder.pool, "disk.vhd", &folder.pool, "clone.vhd").unwrap_err());
    assert!(std::fs::read(folder.path("disk.vhd")).unwrap() == old);
    repair_in_place(&folder.pool, "disk.vhd", Gate::open(), &mut go_on).unwrap();
    clone(&folder.pool, "disk.vhd", &folder.pool, "clone.vhd").unwrap();
    folder.compact(&CompactOptions::default()).unwrap();
    folder.is_clean("disk.vhd");
}

#[test]
fn a_cancellation_leaves_nothing_whenever_it_comes() {
    let folder = Folder::new();
    let old = std::fs::read(folder.path("disk.vhd")).unwrap();
    let time = modified(&folder.path("disk.vhd"));
    let mut calls = 0;
    loop {
        let mut left = calls;
        let mut progress = |_: Progress| match left {
            0 => ControlFlow::Break(()),
            _ => {
                left -= 1;
                ControlFlow::Continue(())
            }
        };
        let options = CompactOptions::default();
        match compact(
            &folder.pool,
            "disk.vhd",
            Gate::open(),
            &options,
            &mut progress,
        ) {
            Err(OperationError::Cancelled) => {}
            result => {
                result.unwrap();
                break;
            }
        }
        assert!(std::fs::read(folder.path("disk.vhd")).unwrap() == old);
        assert_eq!(modified(&folder.path("disk.vhd")), time);
        assert_eq!(folder.names(), ["disk.vhd", "disk.vhd.lock"]);
        calls += 1;
    }
    // At the beginning, for each block, and before the new name.
    assert_eq!(calls, 7);
}

const VICTIM: &str = "PADDOCK_TEST_COMPACT";

/// Not a test of its own: dies at a given call of the progress.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn victim() {
    let Ok(task) = std::env::var(VICTIM) else {
        return;
    };
    let (calls, folder) = task.split_once(' ').unwrap();
    let mut left: u32 = calls.parse().unwrap();
    let pool = Pool::open(folder).unwrap();
    let mut progress = |_: Progress| {
        if left == 0 {
            // As sudden as a kill: nothing is tidied up.
            std::process::abort();
        }
        left -= 1;
        ControlFlow::Continue(())
    };
    compact(
        &pool,
        "disk.vhd",
        Gate::open(),
        &CompactOptions::default(),
        &mut progress,
    )
    .unwrap();
}

#[test]
fn a_process_that_dies_leaves_the_old_file_or_the_new_one() {
    let folder = Folder::alone();
    let content = folder.content("disk.vhd");
    let old = folder.path("disk.vhd").metadata().unwrap().ino();
    let mut outcomes = Vec::new();
    for calls in 0..8 {
        let task = format!("{calls} {}", folder.dir.path().display());
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--ignored", "--quiet"])
            .env(VICTIM, task)
            .output()
            .unwrap()
            .status;
        let is_old = folder.path("disk.vhd").metadata().unwrap().ino() == old;
        outcomes.push((status.success(), is_old));
        assert!(folder.content("disk.vhd") == content, "{calls}");
        folder.is_clean("disk.vhd");
    }
    let mut expected = vec![(false, true); 7];
    expected.push((true, false));
    assert_eq!(outcomes, expected);
    // What the dead ones left went with the last one.
    assert_eq!(folder.names(), ["disk.vhd", "disk.vhd.lock"]);
}

fn clone(
    pool: &Pool,
    rel: &str,
    target_pool: &Pool,
    target: &str,
) -> Result<CloneReport, OperationError> {
    let options = CloneOptions {
        unique_id: uuid::Uuid::from_bytes([0xab; 16]),
        created: UNIX_EPOCH + Duration::from_secs(1_600_000_000),
        search: ParentSearch::new(),
    };
    clone_disk(
        pool,
        rel,
        target_pool,
        target,
        Gate::open(),
        &options,
        &mut go_on,
    )
}

/// That the clone is what it was made of, but for the identity.
fn is_clone(folder: &Folder, rel: &str, target_pool: &Pool, target: &str) {
    let old = inspect(&folder.pool, rel).unwrap();
    let new = inspect(target_pool, target).unwrap();
    assert_eq!(new.unique_id, uuid::Uuid::from_bytes([0xab; 16]));
    assert_eq!(new.created, UNIX_EPOCH + Duration::from_secs(1_600_000_000));
    assert_eq!(
        (
            new.disk_type,
            new.virtual_size,
            new.block_size,
            new.allocated_blocks
        ),
        (
            old.disk_type,
            old.virtual_size,
            old.block_size,
            old.allocated_blocks
        )
    );
    assert_ne!(old.unique_id, new.unique_id);
    let search = ParentSearch::new().root(folder.pool.clone());
    let report = check(target_pool, target, &search, &mut go_on).unwrap();
    assert_eq!(report.findings, []);
    let access = Access::ReadOnly;
    let open = Vhd::open_with(target_pool, target, access, Gate::open(), &search);
    let disk = open.unwrap();
    let mut content = vec![0; disk.size() as usize];
    disk.read_at(&mut content, 0).unwrap();
    assert!(content == folder.content(rel), "{target}");
}

#[test]
fn a_clone_is_the_same_disk_with_another_identity() {
    let folder = Folder::new();
    let old = std::fs::read(folder.path("disk.vhd")).unwrap();
    let report = clone(&folder.pool, "disk.vhd", &folder.pool, "new/clone.vhd").unwrap();
    is_clone(&folder, "disk.vhd", &folder.pool, "new/clone.vhd");
    if !report.reflinked {
        // Five blocks, and not the slack between them.
        assert!(
            (10 * MIB..=10 * MIB + 64 * 1024).contains(&report.bytes),
            "{report:?}"
        );
    }
    // Each is written to without the other.
    let disk = folder.open("new/clone.vhd", Access::ReadWrite);
    disk.write_at(&[0xfe; 4096], 0).unwrap();
    disk.close().unwrap();
    assert!(std::fs::read(folder.path("disk.vhd")).unwrap() == old);
    // Not over another file, and not of a disk that is being written to.
    let again = clone(&folder.pool, "disk.vhd", &folder.pool, "new/clone.vhd");
    assert!(matches!(again, Err(OperationError::Create(_))), "{again:?}");
    let held = folder.open("disk.vhd", Access::ReadWrite);
    match clone(&folder.pool, "disk.vhd", &folder.pool, "other.vhd") {
        Err(OperationError::Open(error)) => assert_eq!(error.kind(), OpenErrorKind::InUse),
        result => panic!("{result:?}"),
    }
    drop(held);
    assert_eq!(folder.names(), ["disk.vhd", "disk.vhd.lock", "new"]);
}

#[test]
fn a_clone_of_a_fixed_disk_has_its_space() {
    let folder = Folder::new();
    let size = DiskSize::from_bytes(4 * MIB).unwrap();
    let options = CreateOptions::new(DiskType::Fixed, size);
    let disk = Vhd::create(&folder.pool, "fixed.vhd", &options).unwrap();
    disk.write_at(&[7; 5000], MIB + 77).unwrap();
    disk.close().unwrap();
    let report = clone(&folder.pool, "fixed.vhd", &folder.pool, "clone.vhd").unwrap();
    is_clone(&folder, "fixed.vhd", &folder.pool, "clone.vhd");
    let metadata = folder.path("clone.vhd").metadata().unwrap();
    assert_eq!(metadata.len(), 4 * MIB + 512);
    assert!(metadata.blocks() * 512 >= 4 * MIB, "{report:?}");
    // What the beginning of the guest's disk holds is no footer.
    let start = std::fs::read(folder.path("clone.vhd")).unwrap();
    assert!(start[..512].iter().all(|&byte| byte == 0));
}

#[test]
fn a_clone_of_a_child_finds_the_same_parent() {
    let folder = Folder::new();
    let child = folder.child("a/child.vhd", "disk.vhd");
    child.write_at(&[0xcc; 700], 14 * MIB + 9).unwrap();
    child.close().unwrap();
    for (target, relative) in [
        ("a/clone.vhd", r".\..\disk.vhd"),
        ("clone.vhd", r".\disk.vhd"),
        ("b/c/clone.vhd", r".\..\..\disk.vhd"),
    ] {
        clone(&folder.pool, "a/child.vhd", &folder.pool, target).unwrap();
        is_clone(&folder, "a/child.vhd", &folder.pool, target);
        let parent = inspect(&folder.pool, target).unwrap().parent.unwrap();
        assert_eq!(parent.relative.as_deref(), Some(relative), "{target}");
        // It opens where nobody tells it where to look, and for writing.
        let disk = folder.open(target, Access::ReadWrite);
        disk.write_at(&[1; 10], 0).unwrap();
        disk.close().unwrap();
    }
    let found = children(&folder.pool, "disk.vhd").unwrap();
    assert_eq!(found.len(), 4);
    // Another pool has the way there as an absolute path alone.
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = Pool::open(dir.path()).unwrap();
    clone(&folder.pool, "a/child.vhd", &elsewhere, "clone.vhd").unwrap();
    is_clone(&folder, "a/child.vhd", &elsewhere, "clone.vhd");
    let parent = inspect(&elsewhere, "clone.vhd").unwrap().parent.unwrap();
    let absolute = folder.path("disk.vhd");
    assert_eq!(parent.relative, None);
    assert_eq!(parent.absolute.as_deref(), absolute.to_str());
    let alone = Vhd::open(&elsewhere, "clone.vhd", Access::ReadOnly, Gate::open());
    assert!(matches!(alone, Err(OpenError::ParentNotFound { .. })));
}

#[test]
fn a_cancelled_clone_leaves_nothing() {
    let folder = Folder::new();
    let mut calls = 0;
    loop {
        let mut left = calls;
        let mut progress = |_: Progress| match left {
            0 => ControlFlow::Break(()),
            _ => {
                left -= 1;
                ControlFlow::Continue(())
            }
        };
        let pool = &folder.pool;
        let options = CloneOptions::new();
        match clone_disk(
            pool,
            "disk.vhd",
            pool,
            "clone.vhd",
            Gate::open(),
            &options,
            &mut progress,
        ) {
            Err(OperationError::Cancelled) => {}
            result => {
                result.unwrap();
                break;
            }
        }
        assert_eq!(folder.names(), ["disk.vhd", "disk.vhd.lock"]);
        calls += 1;
    }
    assert!(calls >= 2, "{calls}");
}

/// An XFS in a file, mounted for as long as this lives.
struct Mount(tempfile::TempDir);

/// What a program prints. The error says what went wrong.
fn run(program: &str, args: &[&str], paths: &[&Path]) -> Result<String, String> {
    match Command::new(program).args(args).args(paths).output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => Err(format!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

impl Mount {
    fn xfs() -> Result<Mount, String> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(400 * MIB).unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        run("mkfs.xfs", &["-q", "-m", "reflink=1"], &[&image])?;
        run("mount", &["-o", "loop"], &[&image, &dir.path().join("mnt")])?;
        Ok(Mount(dir))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mnt")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn a_clone_shares_its_space_where_the_file_system_can() {
    let folder = Folder::alone();
    let mount = match Mount::xfs() {
        Ok(mount) => mount,
        Err(why) => {
            skipped(format_args!("no file system with reflinks: {why}"));
            return;
        }
    };
    let pool = Pool::open(mount.path()).unwrap();
    let report = clone(&folder.pool, "disk.vhd", &pool, "copy.vhd").unwrap();
    assert!(!report.reflinked && report.bytes >= 10 * MIB, "{report:?}");
    is_clone(&folder, "disk.vhd", &pool, "copy.vhd");
    let before = pool.space().unwrap().available;
    let report = clone(&pool, "copy.vhd", &pool, "clone.vhd").unwrap();
    let expected = CloneReport {
        reflinked: true,
        bytes: 0,
    };
    assert_eq!(report, expected);
    is_clone(&folder, "disk.vhd", &pool, "clone.vhd");
    let taken = before - pool.space().unwrap().available;
    assert!(taken < MIB, "{taken}");
    // It needs no room either: fill the file system but for a little.
    let left = pool.space().unwrap().available - 5 * MIB;
    let filler = std::fs::File::create(mount.path().join("filler")).unwrap();
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, left).unwrap();
    let report = clone(&pool, "copy.vhd", &pool, "third.vhd").unwrap();
    assert!(report.reflinked);
    // A copy from elsewhere does, and says so before anything is touched.
    match clone(&folder.pool, "disk.vhd", &pool, "new/fourth.vhd") {
        Err(OperationError::NoSpace { need, have, .. }) => {
            assert!(need >= 10 * MIB && have < 6 * MIB, "{need} {have}");
        }
        result => panic!("{result:?}"),
    }
    assert!(!mount.path().join("new").exists());
    // So does a compaction: of three blocks there is no room for two.
    match compact(
        &pool,
        "copy.vhd",
        Gate::open(),
        &CompactOptions::default(),
        &mut go_on,
    ) {
        Err(OperationError::NoSpace { need, have, .. }) => {
            assert!(
                (5 * MIB..6 * MIB).contains(&need) && have < need,
                "{need} {have}"
            );
        }
        result => panic!("{result:?}"),
    }
    filler.set_len(left - 3 * MIB).unwrap();
    // Now there is, once the zeros are counted.
    let report = compact(
        &pool,
        "copy.vhd",
        Gate::open(),
        &CompactOptions::default(),
        &mut go_on,
    )
    .unwrap();
    assert_eq!(report.blocks_after, 3);
}

/// A loop device with a name that stays, for as long as this lives.
struct Loop {
    dir: tempfile::TempDir,
    device: PathBuf,
    name: PathBuf,
}

impl Loop {
    /// Over a file of 8 MiB with a file system and something behind it.
    fn new() -> Result<Loop, String> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(8 * MIB).unwrap();
        run(
            "mkfs.ext4",
            &["-q", "-b", "1024"],
            &[&image, Path::new("6144")],
        )?;
        file.write_all_at(&[7; 5000], 7 * MIB).unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        let device = run("losetup", &["--find", "--show"], &[&image])?;
        let by_id = Path::new("/dev/disk/by-id");
        let name = by_id.join(format!("paddock-test-{}", std::process::id()));
        let this = Loop {
            dir,
            device: device.into(),
            name,
        };
        std::fs::create_dir_all(by_id)
            .and_then(|()| std::os::unix::fs::symlink(&this.device, &this.name))
            .map_err(|error| format!("{}: {error}", this.name.display()))?;
        Ok(this)
    }

    fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.name);
        // If it was made for this.
        let _ = std::fs::remove_dir("/dev/disk/by-id");
        let _ = std::fs::remove_dir("/dev/disk");
        let _ = Command::new("umount").arg(self.mountpoint()).output();
        let _ = Command::new("losetup").arg("-d").arg(&self.device).output();
    }
}

#[test]
fn a_physical_disk_is_imported_while_nobody_uses_it() {
    let folder = Folder::alone();
    let disk = match Loop::new() {
        Ok(disk) => disk,
        Err(why) => {
            skipped(format_args!("no loop devices: {why}"));
            return;
        }
    };
    let pool = &folder.pool;
    // By a name that may be another disk's tomorrow.
    let refused = link(pool, "linked", &disk.device).unwrap_err().to_string();
    assert!(refused.contains("/dev/disk/by-id"), "{refused}");
    let info = link(pool, "linked", &disk.name).unwrap();
    assert_eq!((&info.device, info.size), (&disk.name, 8 * MIB));
    let options = ConvertOptions::new(DiskType::Dynamic);
    import_linked(
        pool,
        "linked",
        pool,
        "new.vhd",
        Gate::open(),
        &options,
        &mut go_on,
    )
    .unwrap();
    let image = std::fs::read(disk.dir.path().join("image")).unwrap();
    assert!(folder.content("new.vhd") == image);
    folder.is_clean("new.vhd");
    // Not while another has it, or the host.
    let held = Linked::open(pool, "linked").unwrap();
    assert_eq!(held.info(), &info);
    let in_use = |error: OperationError| match error {
        OperationError::Open(error) => error.kind() == OpenErrorKind::InUse,
        _ => false,
    };
    assert!(in_use(link(pool, "again", &disk.name).unwrap_err()));
    drop(held);
    run("mount", &[], &[&disk.device, &disk.mountpoint()]).unwrap();
    let import = import_linked(
        pool,
        "linked",
        pool,
        "b.vhd",
        Gate::open(),
        &options,
        &mut go_on,
    );
    assert!(in_use(import.unwrap_err()));
    // A pool on the disk itself is told so.
    let inside = Pool::open(disk.mountpoint()).unwrap();
    assert!(in_use(link(&inside, "linked", &disk.name).unwrap_err()));
    assert_eq!(
        folder.names(),
        [
            "disk.vhd",
            "disk.vhd.lock",
            "linked",
            "linked.lock",
            "new.vhd",
            "new.vhd.lock"
        ]
    );
}
