//! Disks on a folder that hosts share, as one of them has them.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use paddock_vhd::{
    Access, BlockDevice, ChildOptions, CompactOptions, CreateOptions, DiskSize, DiskType, Gate,
    LockInfo, LockOwner, MergeOptions, MergeReport, OpenError, OpenErrorKind, OpenOptions,
    OperationError, ParentSearch, Pool, Progress, Vhd, check, claim, compact, inspect, merge,
    remove,
};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

struct Folder {
    dir: tempfile::TempDir,
    pool: Pool,
}

/// Where the lock file has what it says of hosts.
const HEADER: usize = 4096;

impl Folder {
    fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let folder = Folder { dir, pool };
        folder.create("disk.vhd");
        folder
    }

    fn create(&self, rel: &str) {
        let size = DiskSize::from_bytes(8 * MIB).unwrap();
        let options = CreateOptions::new(DiskType::Dynamic, size);
        Vhd::create(&self.pool, rel, &options)
            .unwrap()
            .close()
            .unwrap();
    }

    fn path(&self, rel: &str) -> PathBuf {
        self.dir.path().join(rel)
    }

    fn open(&self, access: Access, owner: Option<&LockOwner>) -> Result<Vhd, OpenError> {
        let mut options = OpenOptions::new(access);
        if let Some(owner) = owner {
            options = options.owner(owner.clone());
        }
        options.open(&self.pool, "disk.vhd")
    }

    /// Opens the disk for writing, and loses its host before it has written.
    fn lose(&self, rel: &str, owner: &LockOwner) {
        let gate = Gate::open();
        let options = OpenOptions::new(Access::ReadWrite).gate(gate.clone());
        let disk = options.owner(owner.clone()).open(&self.pool, rel).unwrap();
        gate.close();
        assert!(disk.close().is_err());
    }

    /// Opens the disk for writing, and loses its host.
    fn crash(&self, rel: &str, owner: &LockOwner) {
        let gate = Gate::open();
        let options = OpenOptions::new(Access::ReadWrite).gate(gate.clone());
        let disk = options.owner(owner.clone()).open(&self.pool, rel).unwrap();
        disk.write_at(&[5; 512], MIB).unwrap();
        disk.flush().unwrap();
        gate.close();
        assert!(disk.close().is_err());
    }

    /// The refusal's words.
    fn refusal(&self, access: Access, owner: Option<&LockOwner>) -> String {
        match self.open(access, owner) {
            Err(OpenError::InUse { path, holder }) => {
                assert_eq!(path, PathBuf::from("disk.vhd"));
                holder
            }
            result => panic!("not refused: {result:?}"),
        }
    }
}

fn owner(disk_epoch: u64, host: &str) -> LockOwner {
    LockOwner::new(disk_epoch, host, Uuid::new_v4()).unwrap()
}

const WRITING: Access = Access::ReadWrite;
const READING: Access = Access::ReadOnly;

#[test]
fn a_disk_that_is_closed_in_order_is_free_and_keeps_its_epoch() {
    let folder = Folder::new();
    folder
        .open(WRITING, Some(&owner(5, "node-a")))
        .unwrap()
        .close()
        .unwrap();
    // Dropping it is as good.
    drop(folder.open(WRITING, Some(&owner(6, "node-b"))).unwrap());
    for access in [WRITING, READING] {
        folder.open(access, None).unwrap().close().unwrap();
        let why = folder.refusal(access, Some(&owner(5, "node-a")));
        assert!(why.contains("epoch 6"), "{why}");
        folder.open(access, Some(&owner(6, "node-a"))).unwrap();
    }
}

#[test]
fn a_dead_hosts_disk_goes_to_a_higher_epoch_alone() {
    let folder = Folder::new();
    let dead = owner(5, "node-a");
    folder.crash("disk.vhd", &dead);
    for access in [WRITING, READING] {
        for other in [None, Some(owner(5, "node-b")), Some(owner(4, "node-b"))] {
            let why = folder.refusal(access, other.as_ref());
            assert!(
                why.contains("host node-a") && why.contains("epoch 5"),
                "{why}"
            );
        }
        // Reading with the proof; nothing is taken over by that.
        folder.open(READING, Some(&owner(6, "node-b"))).unwrap();
    }
    assert_eq!(
        remove(&folder.pool, "disk.vhd").unwrap_err().kind(),
        OpenErrorKind::InUse
    );
    // Itself again, after it booted.
    folder.crash("disk.vhd", &owner(5, "node-a"));
    let next = folder.open(WRITING, Some(&owner(6, "node-b"))).unwrap();
    let mut byte = [0];
    next.read_at(&mut byte, MIB).unwrap();
    assert_eq!(byte, [5]);
    next.close().unwrap();
    let why = folder.refusal(WRITING, Some(&dead));
    assert!(
        why.contains("epoch 6") && why.contains("node-a in epoch 5 is over"),
        "{why}"
    );
}

#[test]
fn who_has_a_disk_is_told() {
    let folder = Folder::new();
    let lock = || inspect(&folder.pool, "disk.vhd").unwrap().lock;
    assert_eq!(lock(), LockInfo::default());
    let owner = owner(5, "node-a");
    let disk = folder.open(WRITING, Some(&owner)).unwrap();
    let found = lock();
    let by = found.by.clone().unwrap();
    let process = format!("process {} on ", std::process::id());
    assert!(by.starts_with(&process), "{by}");
    let held = LockInfo {
        open: Some(WRITING),
        by: Some(by),
        disk_epoch: Some(5),
        host: Some("node-a".to_owned()),
        boot_id: Some(owner.boot_id()),
    };
    assert_eq!(found, held);
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(
        (&json["open"], &json["diskEpoch"]),
        (&"ReadWrite".into(), &5.into())
    );
    disk.close().unwrap();
    let free = LockInfo {
        disk_epoch: Some(5),
        ..LockInfo::default()
    };
    assert_eq!(lock(), free);
    // Of a host that died it is told as well.
    folder.crash("disk.vhd", &owner);
    let dead = LockInfo {
        open: None,
        by: None,
        ..held
    };
    assert_eq!(lock(), dead);
}

#[test]
fn what_died_on_this_boot_is_dead() {
    let folder = Folder::new();
    let boot = LockOwner::this_boot().unwrap();
    let this = LockOwner::new(5, "node-a", boot).unwrap();
    folder.crash("disk.vhd", &this);
    folder.open(WRITING, None).unwrap().close().unwrap();
    // It still counts for other hosts.
    folder.refusal(WRITING, Some(&owner(5, "node-b")));
    folder.open(WRITING, Some(&this)).unwrap().close().unwrap();
    folder.open(WRITING, Some(&owner(5, "node-b"))).unwrap();
}

#[test]
fn a_holder_notices_that_it_was_taken_over_and_leaves_the_record_alone() {
    let folder = Folder::new();
    let lock = folder.path("disk.vhd.lock");
    let disk = folder.open(WRITING, Some(&owner(5, "node-a"))).unwrap();
    disk.check_owner().unwrap();
    // Another host, whose kernel knows nothing of this one's locks.
    folder.create("other.vhd");
    folder.crash("other.vhd", &owner(6, "node-b"));
    let mut bytes = std::fs::read(&lock).unwrap();
    let taken = std::fs::read(folder.path("other.vhd.lock")).unwrap();
    assert_eq!((bytes.len(), taken.len()), (HEADER + 4608, HEADER + 4608));
    bytes[HEADER..].copy_from_slice(&taken[HEADER..]);
    std::fs::write(&lock, &bytes).unwrap();
    let Err(OpenError::InUse { path, holder }) = disk.check_owner() else {
        panic!("not noticed")
    };
    assert_eq!(path, PathBuf::from("disk.vhd"));
    assert!(
        holder.contains("host node-b has taken it over in epoch 6"),
        "{holder}"
    );
    disk.close().unwrap();
    assert!(std::fs::read(&lock).unwrap()[HEADER..] == taken[HEADER..]);
    // Without an owner there is nothing to notice.
    let disk = folder.open(WRITING, Some(&owner(7, "node-c"))).unwrap();
    drop(disk);
    folder.open(READING, None).unwrap().check_owner().unwrap();
}

#[test]
fn a_replaced_lock_file_is_noticed() {
    let folder = Folder::new();
    let disk = folder.open(WRITING, Some(&owner(5, "node-a"))).unwrap();
    let lock = folder.path("disk.vhd.lock");
    std::fs::copy(&lock, folder.path("copy")).unwrap();
    std::fs::rename(folder.path("copy"), &lock).unwrap();
    assert_eq!(disk.check_owner().unwrap_err().kind(), OpenErrorKind::InUse);
}

#[test]
fn the_record_is_written_through_the_gate_before_the_disk() {
    let folder = Folder::new();
    let before = std::fs::read(folder.path("disk.vhd.lock")).unwrap();
    let gate = Gate::open();
    gate.close();
    let options = OpenOptions::new(WRITING).gate(gate);
    let result = options.owner(owner(5, "a")).open(&folder.pool, "disk.vhd");
    assert_eq!(result.unwrap_err().kind(), OpenErrorKind::Io);
    assert!(std::fs::read(folder.path("disk.vhd.lock")).unwrap() == before);
    // A disk that can't be opened is not held.
    std::fs::write(folder.path("disk.vhd"), [0; 4096]).unwrap();
    let result = folder.open(WRITING, Some(&owner(5, "a")));
    assert_eq!(result.unwrap_err().kind(), OpenErrorKind::Unsupported);
    let result = folder.open(WRITING, Some(&owner(5, "b")));
    assert_eq!(result.unwrap_err().kind(), OpenErrorKind::Unsupported);
}

#[test]
fn a_damaged_record_is_refused_until_a_person_decides() {
    let folder = Folder::new();
    folder.crash("disk.vhd", &owner(5, "node-a"));
    let lock = folder.path("disk.vhd.lock");
    let mut bytes = std::fs::read(&lock).unwrap();
    bytes[HEADER..].fill(7);
    std::fs::write(&lock, &bytes).unwrap();
    for owner in [None, Some(owner(9, "node-b"))] {
        let why = folder.refusal(WRITING, owner.as_ref());
        assert!(why.contains("remove that file"), "{why}");
    }
    std::fs::remove_file(&lock).unwrap();
    folder.open(WRITING, None).unwrap().close().unwrap();
}

#[test]
fn the_record_outlives_a_compaction_and_not_the_disk() {
    let folder = Folder::new();
    drop(folder.open(WRITING, Some(&owner(5, "node-a"))).unwrap());
    let inode = || folder.path("disk.vhd").metadata().unwrap().ino();
    let old = inode();
    let go_on = &mut |_| ControlFlow::Continue(());
    compact(
        &folder.pool,
        "disk.vhd",
        Gate::open(),
        &CompactOptions::default(),
        go_on,
    )
    .unwrap();
    assert_ne!(inode(), old);
    folder.refusal(WRITING, Some(&owner(4, "node-a")));
    // A disk that somebody removed by hand, and another one of its name.
    folder.crash("disk.vhd", &owner(5, "node-a"));
    std::fs::remove_file(folder.path("disk.vhd")).unwrap();
    folder.create("disk.vhd");
    folder.open(WRITING, Some(&owner(1, "node-b"))).unwrap();
}

#[test]
fn a_parent_that_a_dead_host_has_is_refused_to_readers() {
    let folder = Folder::new();
    let options = ChildOptions::new();
    let pool = &folder.pool;
    let child = Vhd::create_child(pool, "child.vhd", pool, "disk.vhd", &options).unwrap();
    child.close().unwrap();
    folder.crash("disk.vhd", &owner(5, "node-a"));
    let child = Vhd::open(pool, "child.vhd", READING, Gate::open());
    assert_eq!(child.unwrap_err().kind(), OpenErrorKind::InUse);
    let go_on = &mut |_| ControlFlow::Continue(());
    let search = ParentSearch::new();
    let checked = check(pool, "disk.vhd", &search, go_on);
    match checked {
        Err(OperationError::Open(error)) => assert_eq!(error.kind(), OpenErrorKind::InUse),
        result => panic!("{result:?}"),
    }
}

#[test]
fn who_is_told_which_disks_it_may_open_needs_nobodys_return() {
    let folder = Folder::new();
    let options = ChildOptions::new();
    let child = Vhd::create_child(
        &folder.pool,
        "child.vhd",
        &folder.pool,
        "disk.vhd",
        &options,
    );
    child.unwrap().close().unwrap();
    folder.crash("disk.vhd", &owner(5, "node-a"));
    let pool = folder.pool.clone().assigned();
    // As a parent, as a source, and to be removed.
    let child = Vhd::open(&pool, "child.vhd", READING, Gate::open()).unwrap();
    child.close().unwrap();
    let go_on = &mut |_| ControlFlow::Continue(());
    let search = ParentSearch::new();
    check(&pool, "disk.vhd", &search, go_on).unwrap();
    // An epoch is still an epoch.
    let open = |owner: LockOwner| {
        OpenOptions::new(WRITING)
            .owner(owner)
            .open(&pool, "disk.vhd")
    };
    for stale in [owner(4, "node-a"), owner(5, "node-b")] {
        assert_eq!(open(stale).unwrap_err().kind(), OpenErrorKind::InUse);
    }
    remove(&pool, "child.vhd").unwrap();
    remove(&pool, "disk.vhd").unwrap();
}

#[test]
fn a_claim_ends_what_was_before_it() {
    let folder = Folder::new();
    let dead = owner(5, "node-a");
    folder.crash("disk.vhd", &dead);
    let claim = |owner: &LockOwner| claim(&folder.pool, "disk.vhd", owner);
    for stale in [owner(4, "node-b"), owner(5, "node-b")] {
        assert_eq!(claim(&stale).unwrap_err().kind(), OpenErrorKind::InUse);
    }
    let next = owner(6, "node-b");
    claim(&next).unwrap();
    // Again, as after a crash of its work.
    claim(&next).unwrap();
    let lock = inspect(&folder.pool, "disk.vhd").unwrap().lock;
    assert_eq!((lock.disk_epoch, lock.host), (Some(6), None));
    folder.open(WRITING, None).unwrap().close().unwrap();
    folder.refusal(WRITING, Some(&dead));
    let other = claim(&owner(7, "node-a"));
    other.unwrap();
    let reader = folder.open(READING, None).unwrap();
    assert_eq!(
        claim(&owner(8, "node-a")).unwrap_err().kind(),
        OpenErrorKind::InUse
    );
    drop(reader);
    // What it is, is not asked; that it is there, is.
    std::fs::write(folder.path("disk.vhd"), "damaged").unwrap();
    claim(&owner(8, "node-a")).unwrap();
    std::fs::remove_file(folder.path("disk.vhd")).unwrap();
    assert_eq!(
        claim(&owner(9, "node-a")).unwrap_err().kind(),
        OpenErrorKind::NotFound
    );
}

impl Folder {
    /// A child of the disk that has something to be merged.
    fn child(&self) {
        let (pool, options) = (&self.pool, ChildOptions::new());
        let child = Vhd::create_child(pool, "child.vhd", pool, "disk.vhd", &options).unwrap();
        child.write_at(&[7; 512], 3 * MIB).unwrap();
        child.close().unwrap();
    }

    fn merge(
        &self,
        owner: &LockOwner,
        gate: Gate,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<MergeReport, OperationError> {
        let options = MergeOptions {
            owner: Some(owner.clone()),
            ..MergeOptions::default()
        };
        merge(&self.pool, "child.vhd", gate, &options, progress)
    }

    /// The epoch that the disk's lock file has, and the host that it names.
    fn record(&self) -> (Option<u64>, Option<String>) {
        let lock = inspect(&self.pool, "disk.vhd").unwrap().lock;
        (lock.disk_epoch, lock.host)
    }
}

fn in_use(result: Result<MergeReport, OperationError>) -> String {
    match result {
        Err(OperationError::Open(OpenError::InUse { path, holder })) => {
            assert_eq!(path, PathBuf::from("disk.vhd"));
            holder
        }
        result => panic!("not refused: {result:?}"),
    }
}

#[test]
fn a_merge_has_its_parent_in_an_epoch() {
    let folder = Folder::new();
    folder.child();
    folder.lose("disk.vhd", &owner(5, "node-a"));
    let before = std::fs::read(folder.path("disk.vhd")).unwrap();
    let go_on = &mut |_| ControlFlow::Continue(());
    for stale in [owner(4, "node-b"), owner(5, "node-b")] {
        let why = in_use(folder.merge(&stale, Gate::open(), go_on));
        assert!(why.contains("epoch 5"), "{why}");
    }
    // Not even begun.
    assert!(std::fs::read(folder.path("disk.vhd")).unwrap() == before);
    assert!(!folder.path("child.vhd.merge").exists());
    assert_eq!(folder.record(), (Some(5), Some("node-a".to_owned())));
    let merger = owner(6, "node-b");
    let mut seen = Vec::new();
    let watch = &mut |_| {
        seen.push(folder.record());
        ControlFlow::Continue(())
    };
    let report = folder.merge(&merger, Gate::open(), watch).unwrap();
    assert_eq!((report.merged_bytes, report.resumed), (512, false));
    let held = (Some(6), Some("node-b".to_owned()));
    assert!(!seen.is_empty() && seen.iter().all(|found| *found == held));
    assert_eq!(folder.record(), (Some(6), None));
    // Who had it before is over.
    let why = folder.refusal(WRITING, Some(&owner(5, "node-a")));
    assert!(why.contains("epoch 6"), "{why}");
    let disk = folder.open(WRITING, None).unwrap();
    let mut byte = [0];
    disk.read_at(&mut byte, 3 * MIB).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn a_merge_that_does_not_end_gives_its_parent_back_unless_its_host_died() {
    let folder = Folder::new();
    folder.child();
    let merger = owner(6, "node-b");
    let go_on = &mut |_| ControlFlow::Continue(());
    // Refused, since the parent was modified.
    let disk = folder.open(WRITING, None).unwrap();
    disk.write_at(&[1], 0).unwrap();
    disk.close().unwrap();
    let refused = folder.merge(&merger, Gate::open(), go_on);
    assert!(
        matches!(
            refused,
            Err(OperationError::Open(OpenError::ParentChanged { .. }))
        ),
        "{refused:?}"
    );
    assert_eq!(folder.record(), (Some(6), None));
    // Stopped.
    remove(&folder.pool, "child.vhd").unwrap();
    let disk = File::options().write(true).open(folder.path("disk.vhd"));
    let earlier = SystemTime::now() - Duration::from_secs(60);
    disk.unwrap().set_modified(earlier).unwrap();
    folder.child();
    let stopped = folder.merge(&merger, Gate::open(), &mut |_| ControlFlow::Break(()));
    assert!(
        matches!(stopped, Err(OperationError::Cancelled)),
        "{stopped:?}"
    );
    assert_eq!(folder.record(), (Some(6), None));
    // Fenced: as if the host had died.
    let gate = Gate::open();
    let fence = gate.clone();
    let fenced = folder.merge(&merger, gate, &mut |_| {
        fence.close();
        ControlFlow::Continue(())
    });
    assert!(
        matches!(fenced, Err(OperationError::Io { .. })),
        "{fenced:?}"
    );
    assert_eq!(folder.record(), (Some(6), Some("node-b".to_owned())));
    let why = in_use(folder.merge(&owner(6, "node-c"), Gate::open(), go_on));
    assert!(why.contains("host node-b has it in epoch 6"), "{why}");
    let ended = folder.merge(&owner(7, "node-c"), Gate::open(), go_on);
    assert!(ended.unwrap().resumed);
    assert_eq!(folder.record(), (Some(7), None));
}

#[test]
fn a_new_child_leaves_its_parents_record_alone() {
    let folder = Folder::new();
    drop(folder.open(WRITING, Some(&owner(5, "node-a"))).unwrap());
    let lock = || std::fs::read(folder.path("disk.vhd.lock")).unwrap();
    let before = lock();
    folder.child();
    assert!(lock() == before);
}

#[test]
fn an_old_lock_file_has_no_record() {
    let folder = Folder::new();
    let lock = folder.path("disk.vhd.lock");
    std::fs::write(&lock, "process 1 on a-host-with-a-long-name\n".repeat(9)).unwrap();
    folder.open(WRITING, None).unwrap().close().unwrap();
    folder.crash("disk.vhd", &owner(5, "node-a"));
    folder.refusal(WRITING, None);
    // What is said to who finds it locked is the last holder's line.
    let _held = folder.open(WRITING, Some(&owner(6, "node-b"))).unwrap();
    let why = folder.refusal(WRITING, Some(&owner(7, "node-c")));
    let process = format!("locked by process {} on ", std::process::id());
    assert!(why.contains(&process) && !why.contains("long"), "{why}");
}
