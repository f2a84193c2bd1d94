//! Each operation asks the file system for the room that it takes, and no
//! more, before it touches anything.

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use crate::create::CreateError;
use crate::pool::AVAILABLE;
use crate::{
    Access, BlockDevice, ChildOptions, ConvertOptions, CreateOptions, DiskSize, DiskType, Gate,
    ImportError, ImportOptions, MergeOptions, OperationError, ParentSearch, Pool, Progress,
    ResizeOptions, Vhd, convert, export_raw, import_raw, merge, repair, reparent, resize,
};

const MIB: u64 = 1 << 20;
/// The metadata of an empty dynamic disk of at most 256 MiB.
const EMPTY: u64 = 512 + 1024 + 512 + 512;
/// What a block of 2 MiB takes besides its data.
const BLOCK: u64 = 4096 + 512;

fn go_on(progress: Progress) -> ControlFlow<()> {
    assert!(progress.done <= progress.total);
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

    /// A disk of 4 MiB with data in the first `data` bytes.
    fn disk(&self, rel: &str, disk_type: DiskType, data: u64) {
        let size = DiskSize::from_bytes(4 * MIB).unwrap();
        let options = CreateOptions::new(disk_type, size);
        fill(Vhd::create(&self.pool, rel, &options).unwrap(), data);
    }

    fn child(&self, rel: &str, parent: &str, data: u64) {
        let (pool, options) = (&self.pool, ChildOptions::new());
        fill(
            Vhd::create_child(pool, rel, pool, parent, &options).unwrap(),
            data,
        );
    }

    fn names(&self) -> Vec<std::ffi::OsString> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    /// That the operation needs so much, says so, and leaves everything as it
    /// was where there is less.
    fn needs(&self, expected: u64, operation: &mut dyn FnMut() -> Option<(u64, u64)>) {
        let before = self.names();
        for have in [0, expected.saturating_sub(1)] {
            AVAILABLE.set(Some(have));
            let refused = operation();
            assert_eq!(refused, (expected > 0).then_some((expected, have)));
            if expected == 0 {
                AVAILABLE.set(None);
                return;
            }
            assert_eq!(self.names(), before);
        }
        AVAILABLE.set(Some(expected));
        assert_eq!(operation(), None);
        AVAILABLE.set(None);
    }
}

fn fill(disk: Vhd, data: u64) {
    if data > 0 {
        disk.write_at(&vec![7; data as usize], 0).unwrap();
    }
    disk.close().unwrap();
}

fn told<T>(result: Result<T, OperationError>) -> Option<(u64, u64)> {
    match result {
        Ok(_) => None,
        Err(
            OperationError::NoSpace { need, have, .. }
            | OperationError::Create(CreateError::NoSpace { need, have, .. }),
        ) => Some((need, have)),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn an_import() {
    let folder = Folder::new();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![7; 3 * MIB as usize], 0).unwrap();
    file.set_len(4 * MIB).unwrap();
    let (pool, name) = (&folder.pool, "disk.vhd");
    let import = |disk_type| {
        let options = ImportOptions {
            disk_type,
            size: None,
            sha256: None,
            unique_id: None,
            gate: Gate::open(),
        };
        match import_raw(&file, pool, name, &options, &mut go_on) {
            Ok(_) => None,
            Err(ImportError::Create(CreateError::NoSpace { need, have, .. })) => Some((need, have)),
            Err(error) => panic!("{error}"),
        }
    };
    folder.needs(EMPTY + 3 * MIB + 2 * BLOCK, &mut || {
        import(DiskType::Dynamic)
    });
    crate::remove(pool, name).unwrap();
    folder.needs(4 * MIB + 512, &mut || import(DiskType::Fixed));
}

#[test]
fn an_export_and_a_conversion() {
    let folder = Folder::new();
    folder.disk("base.vhd", DiskType::Dynamic, MIB);
    folder.child("child.vhd", "base.vhd", 3 * MIB);
    let pool = &folder.pool;
    folder.needs(3 * MIB, &mut || {
        let search = ParentSearch::new();
        told(export_raw(
            pool,
            "child.vhd",
            pool,
            "raw",
            Gate::open(),
            &search,
            &mut go_on,
        ))
    });
    let convert = |disk_type, target: &str| {
        let (gate, options) = (Gate::open(), ConvertOptions::new(disk_type));
        told(convert(
            pool,
            "child.vhd",
            pool,
            target,
            gate,
            &options,
            &mut go_on,
        ))
    };
    folder.needs(EMPTY + 3 * MIB + 2 * BLOCK, &mut || {
        convert(DiskType::Dynamic, "dynamic.vhd")
    });
    folder.needs(4 * MIB + 512, &mut || convert(DiskType::Fixed, "fixed.vhd"));
}

#[test]
fn a_longer_table_and_a_way_to_the_parent() {
    let folder = Folder::new();
    folder.disk("base.vhd", DiskType::Dynamic, MIB);
    folder.child("child.vhd", "base.vhd", MIB);
    let (pool, search) = (&folder.pool, ParentSearch::new());
    // Two paths of a sector each.
    folder.needs(1024 + 3 * 512 + 2 * 512, &mut || {
        let gate = Gate::open();
        told(reparent(pool, "child.vhd", pool, "base.vhd", gate, &search))
    });
    let options = ResizeOptions {
        size: DiskSize::from_bytes(1 << 30).unwrap(),
        force: false,
        search: ParentSearch::new(),
    };
    folder.needs(512 * 4 + 1024 + 4 * 512, &mut || {
        let gate = Gate::open();
        told(resize(pool, "child.vhd", gate, &options, &mut go_on))
    });
}

#[test]
fn a_repair() {
    let folder = Folder::new();
    folder.disk("base.vhd", DiskType::Dynamic, 3 * MIB);
    let (pool, search) = (&folder.pool, ParentSearch::new());
    folder.needs(EMPTY + 2 * (2 * MIB + BLOCK), &mut || {
        told(repair(
            pool,
            "base.vhd",
            "new.vhd",
            Gate::open(),
            &search,
            &mut go_on,
        ))
    });
}

/// What a merge takes depends on what the parent's own file has room for.
#[test]
fn a_merge() {
    let merged = |folder: &Folder| {
        let (gate, options) = (Gate::open(), MergeOptions::default());
        told(merge(&folder.pool, "child.vhd", gate, &options, &mut go_on))
    };
    type Make<'a> = &'a dyn Fn(&Folder);
    let cases: [(Make<'_>, &str, u64); 5] = [
        // All of it: nothing is there yet.
        (
            &|folder| folder.disk("base.vhd", DiskType::Dynamic, 0),
            "base.vhd",
            3 * MIB + 2 * BLOCK,
        ),
        // One block is there, as far as it was written.
        (
            &|folder| folder.disk("base.vhd", DiskType::Dynamic, MIB),
            "base.vhd",
            2 * MIB + BLOCK,
        ),
        // What the parent shows is its own parent's.
        (
            &|folder| {
                folder.disk("base.vhd", DiskType::Dynamic, 4 * MIB);
                folder.child("middle.vhd", "base.vhd", 0);
            },
            "middle.vhd",
            3 * MIB + 2 * BLOCK,
        ),
        // A block with a hole in it.
        (
            &|folder| {
                folder.disk("base.vhd", DiskType::Dynamic, 4 * MIB);
                let open = Vhd::open(&folder.pool, "base.vhd", Access::ReadWrite, Gate::open());
                let disk = open.unwrap();
                disk.write_zeroes(MIB / 2, MIB).unwrap();
                disk.close().unwrap();
            },
            "base.vhd",
            MIB,
        ),
        // Its space is reserved.
        (
            &|folder| folder.disk("base.vhd", DiskType::Fixed, 0),
            "base.vhd",
            0,
        ),
    ];
    for (make, parent, expected) in cases {
        let folder = Folder::new();
        make(&folder);
        folder.child("child.vhd", parent, 3 * MIB);
        folder.needs(expected, &mut || merged(&folder));
    }
}
