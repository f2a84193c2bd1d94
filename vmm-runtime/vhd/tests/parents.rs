//! Where parents are looked for and found, and what copies are told of them.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use paddock_vhd::{
    Access, BlockDevice, ChildOptions, CloneOptions, CreateOptions, DiskSize, DiskType,
    FindingKind, Gate, OpenError, OpenErrorKind, OperationError, ParentSearch, Pool, Progress, Vhd,
    check, clone_disk, inspect, merge, repair, repair_in_place, reparent,
};

const MIB: u64 = 1 << 20;

fn go_on(progress: Progress) -> ControlFlow<()> {
    assert!(progress.done <= progress.total, "{progress:?}");
    ControlFlow::Continue(())
}

struct Folder {
    dir: tempfile::TempDir,
    pool: Pool,
}

impl Folder {
    fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        Folder { dir, pool }
    }

    fn path(&self, rel: &str) -> PathBuf {
        self.dir.path().join(rel)
    }

    /// A dynamic disk of 8 MiB with a 1 at 1 MiB.
    fn base(&self, rel: &str) {
        let size = DiskSize::from_bytes(8 * MIB).unwrap();
        let options = CreateOptions::new(DiskType::Dynamic, size);
        let disk = Vhd::create(&self.pool, rel, &options).unwrap();
        disk.write_at(&[1; 512], MIB).unwrap();
        disk.close().unwrap();
    }

    fn child(&self, rel: &str, parent: &str) {
        let options = ChildOptions::new();
        let child = Vhd::create_child(&self.pool, rel, &self.pool, parent, &options).unwrap();
        child.write_at(&[2; 512], 0).unwrap();
        child.close().unwrap();
    }

    fn open(&self, rel: &str, search: &ParentSearch) -> Result<Vhd, OpenError> {
        Vhd::open_with(&self.pool, rel, Access::ReadWrite, Gate::open(), search)
    }

    fn reparent(&self, rel: &str, parent: &str) -> Result<(), OperationError> {
        let search = ParentSearch::new();
        reparent(&self.pool, rel, &self.pool, parent, Gate::open(), &search)
    }
}

fn shows_its_parent(disk: &Vhd) {
    let mut bytes = [0; 1];
    disk.read_at(&mut bytes, MIB).unwrap();
    assert_eq!(bytes, [1]);
}

#[test]
fn what_is_not_the_parent_is_passed_over_and_left_alone() {
    let folder = Folder::new();
    folder.base("base.vhd");
    folder.child("child.vhd", "base.vhd");
    std::fs::create_dir(folder.path("right")).unwrap();
    std::fs::rename(folder.path("base.vhd"), folder.path("right/base.vhd")).unwrap();
    std::fs::remove_file(folder.path("base.vhd.lock")).unwrap();
    let mut search = ParentSearch::new();
    for wrong in ["folder", "link", "used", "text", "other"] {
        std::fs::create_dir(folder.path(wrong)).unwrap();
        search = search.folder(folder.pool.clone(), wrong);
    }
    std::fs::create_dir(folder.path("folder/base.vhd")).unwrap();
    std::os::unix::fs::symlink(folder.path("right/base.vhd"), folder.path("link/base.vhd"))
        .unwrap();
    std::fs::write(folder.path("text/base.vhd"), "text").unwrap();
    folder.base("other/base.vhd");
    std::fs::remove_file(folder.path("other/base.vhd.lock")).unwrap();
    folder.base("used/base.vhd");
    let used = folder.open("used/base.vhd", &search).unwrap();
    let error = folder.open("child.vhd", &search).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::ParentMismatch, "{error}");
    let search = search.folder(folder.pool.clone(), "right");
    shows_its_parent(&folder.open("child.vhd", &search).unwrap());
    for wrong in ["folder", "link", "text", "other"] {
        assert!(
            !folder.path(wrong).join("base.vhd.lock").exists(),
            "{wrong}"
        );
    }
    drop(used);
    // The parent itself is not passed over because somebody uses it.
    let used = folder.open("right/base.vhd", &search).unwrap();
    let error = folder.open("child.vhd", &search).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::InUse, "{error}");
    drop(used);
}

#[test]
fn copies_are_told_where_the_parent_is_now() {
    let folder = Folder::new();
    folder.base("a/base.vhd");
    folder.child("a/child.vhd", "a/base.vhd");
    // The tree moves: the absolute path that the child has leads nowhere.
    std::fs::rename(folder.path("a"), folder.path("b")).unwrap();
    let b = Pool::open(folder.path("b")).unwrap();
    std::fs::create_dir(folder.path("b/sub")).unwrap();
    let sub = Pool::open(folder.path("b/sub")).unwrap();
    let clone = |pool: &Pool, target: &str| {
        let options = CloneOptions::new();
        clone_disk(
            &b,
            "child.vhd",
            pool,
            target,
            Gate::open(),
            &options,
            &mut go_on,
        )
    };
    // Into another pool there is no way but the absolute one.
    clone(&sub, "c.vhd").unwrap();
    let told = |pool: &Pool, rel: &str| inspect(pool, rel).unwrap().parent.unwrap();
    let absolute = folder.path("b/base.vhd");
    let parent = told(&sub, "c.vhd");
    assert_eq!(parent.absolute.as_deref(), absolute.to_str());
    let search = ParentSearch::new().root(b.clone());
    let open = Vhd::open_with(&sub, "c.vhd", Access::ReadWrite, Gate::open(), &search);
    shows_its_parent(&open.unwrap());
    clone(&b, "x/c.vhd").unwrap();
    let search = ParentSearch::new();
    repair(
        &b,
        "child.vhd",
        "y/c.vhd",
        Gate::open(),
        &search,
        &mut go_on,
    )
    .unwrap();
    for rel in ["x/c.vhd", "y/c.vhd"] {
        let parent = told(&b, rel);
        assert_eq!(parent.relative.as_deref(), Some(r".\..\base.vhd"), "{rel}");
        assert_eq!(parent.absolute.as_deref(), absolute.to_str(), "{rel}");
        assert_eq!(parent.modified, told(&b, "child.vhd").modified);
        let open = Vhd::open(&b, rel, Access::ReadWrite, Gate::open());
        shows_its_parent(&open.unwrap());
    }
    // A clone of what finds no parent would find none either; what can be
    // saved of a damaged disk is, and the way stays as it was written.
    std::fs::rename(folder.path("b/base.vhd"), folder.path("away")).unwrap();
    match clone(&b, "z.vhd") {
        Err(OperationError::Open(error)) => {
            assert_eq!(error.kind(), OpenErrorKind::ParentNotFound);
        }
        result => panic!("{result:?}"),
    }
    assert!(!folder.path("b/z.vhd").exists());
    repair(
        &b,
        "child.vhd",
        "w/c.vhd",
        Gate::open(),
        &search,
        &mut go_on,
    )
    .unwrap();
    let parent = told(&b, "w/c.vhd");
    assert_eq!(parent.relative.as_deref(), Some(r".\..\base.vhd"));
    assert_eq!(parent.absolute, told(&b, "child.vhd").absolute);
}

/// Changes what a file's header says, with the right checksum.
fn edit_header(path: &Path, edit: impl Fn(&mut [u8])) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut header = [0; 1024];
    file.read_exact_at(&mut header, 512).unwrap();
    edit(&mut header);
    header[36..40].fill(0);
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[36..40].copy_from_slice(&(!sum).to_be_bytes());
    file.write_all_at(&header, 512).unwrap();
}

#[test]
fn a_locator_outside_of_the_file_is_mended_by_reconnecting() {
    let folder = Folder::new();
    folder.base("base.vhd");
    folder.child("child.vhd", "base.vhd");
    let time = || {
        folder
            .path("child.vhd")
            .metadata()
            .unwrap()
            .modified()
            .unwrap()
    };
    // A third locator, of a system that nobody knows.
    edit_header(&folder.path("child.vhd"), |header| {
        let third = &mut header[576 + 48..576 + 72];
        third[..4].copy_from_slice(b"MacX");
        third[4..8].copy_from_slice(&512u32.to_be_bytes());
        third[8..12].copy_from_slice(&20u32.to_be_bytes());
        third[16..24].copy_from_slice(&(1u64 << 40).to_be_bytes());
    });
    let before = time();
    let (pool, search) = (&folder.pool, ParentSearch::new());
    let error = folder.open("child.vhd", &search).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::Corrupt);
    assert!(
        error.to_string().contains("reconnect it to its parent"),
        "{error}"
    );
    let report = check(pool, "child.vhd", &search, &mut go_on).unwrap();
    assert_eq!(report.findings[0].kind, FindingKind::LayoutImpossible);
    let error = repair(
        pool,
        "child.vhd",
        "new.vhd",
        Gate::open(),
        &search,
        &mut go_on,
    )
    .unwrap_err();
    let said = error.to_string();
    assert!(said.contains("reconnect it to its parent"), "{said}");
    assert!(!said.contains("too little"), "{said}");
    folder.reparent("child.vhd", "base.vhd").unwrap();
    assert_eq!(time(), before);
    shows_its_parent(&folder.open("child.vhd", &search).unwrap());
    let report = check(pool, "child.vhd", &search, &mut go_on).unwrap();
    assert_eq!(report.findings, []);
}

#[test]
fn a_disk_that_a_crash_left_long_is_tidied_before_it_is_reconnected() {
    let folder = Folder::new();
    folder.base("base.vhd");
    folder.child("child.vhd", "base.vhd");
    let child = folder.open("child.vhd", &ParentSearch::new()).unwrap();
    child.write_at(&[3; 512], 3 * MIB).unwrap();
    child.flush().unwrap();
    // With what is reserved for its growth.
    std::fs::copy(folder.path("child.vhd"), folder.path("crashed.vhd")).unwrap();
    child.close().unwrap();
    let len = |rel: &str| folder.path(rel).metadata().unwrap().len();
    assert!(len("crashed.vhd") > 32 * MIB);
    folder.reparent("crashed.vhd", "base.vhd").unwrap();
    assert!(len("crashed.vhd") < len("child.vhd") + 4096);
    let search = ParentSearch::new();
    let report = check(&folder.pool, "crashed.vhd", &search, &mut go_on).unwrap();
    assert_eq!(report.findings, []);
}

#[test]
fn the_tables_of_a_chain_are_bounded_together() {
    let folder = Folder::new();
    folder.base("0.vhd");
    for index in 1..=10 {
        let parent = format!("{}.vhd", index - 1);
        folder.child(&format!("{index}.vhd"), &parent);
    }
    // As long as a table may be: 16 MiB each that would have to be read.
    for index in 0..10 {
        edit_header(&folder.path(&format!("{index}.vhd")), |header| {
            header[28..32].copy_from_slice(&4_177_920u32.to_be_bytes());
        });
    }
    let search = ParentSearch::new();
    let refusal = |rel: &str| {
        let open = Vhd::open(&folder.pool, rel, Access::ReadOnly, Gate::open());
        open.unwrap_err()
    };
    // Eight are not too many; they are not there, though.
    let error = refusal("8.vhd");
    assert_eq!(error.kind(), OpenErrorKind::Corrupt, "{error}");
    for rel in ["9.vhd", "10.vhd"] {
        let error = refusal(rel);
        assert_eq!(error.kind(), OpenErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("33423360 entries"), "{error}");
    }
    let error = folder.open("10.vhd", &search).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::Unsupported, "{error}");
}

#[test]
fn a_child_that_a_repair_was_cut_off_in_is_neither_merged_nor_reconnected() {
    let folder = Folder::new();
    folder.base("base.vhd");
    folder.child("child.vhd", "base.vhd");
    let child = folder.open("child.vhd", &ParentSearch::new()).unwrap();
    child.write_at(&[3; 512], 3 * MIB).unwrap();
    child.close().unwrap();
    // Two blocks in one place: that of the first, behind two locators.
    let file = File::options()
        .read(true)
        .write(true)
        .open(folder.path("child.vhd"));
    let file = file.unwrap();
    let mut entry = [0; 4];
    file.read_exact_at(&mut entry, 1536).unwrap();
    file.write_all_at(&entry, 1536 + 4).unwrap();
    let stop = &mut |progress: Progress| match progress.done {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    repair_in_place(&folder.pool, "child.vhd", Gate::open(), stop).unwrap_err();
    let before = std::fs::read(folder.path("child.vhd")).unwrap();
    let options = paddock_vhd::MergeOptions::default();
    let merged = merge(
        &folder.pool,
        "child.vhd",
        Gate::open(),
        &options,
        &mut go_on,
    );
    for error in [
        merged.unwrap_err(),
        folder.reparent("child.vhd", "base.vhd").unwrap_err(),
    ] {
        assert!(
            error.to_string().contains("a repair of it was cut off"),
            "{error}"
        );
    }
    assert!(std::fs::read(folder.path("child.vhd")).unwrap() == before);
    assert!(folder.path("child.vhd.repair").exists());
    // Of another disk that gets the name, it says nothing.
    let journal = std::fs::read(folder.path("child.vhd.repair")).unwrap();
    std::fs::remove_file(folder.path("child.vhd")).unwrap();
    folder.base("child.vhd");
    assert!(!folder.path("child.vhd.repair").exists());
    std::fs::write(folder.path("child.vhd.repair"), journal).unwrap();
    folder
        .open("child.vhd", &ParentSearch::new())
        .unwrap()
        .close()
        .unwrap();
    let report = check(&folder.pool, "child.vhd", &ParentSearch::new(), &mut go_on).unwrap();
    assert_eq!(report.findings, []);
}
