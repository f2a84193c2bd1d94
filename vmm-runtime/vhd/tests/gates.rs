//! What a host that may have been fenced still does to disks: nothing.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;

use paddock_vhd::{
    BlockDevice, ChildOptions, CloneOptions, CompactOptions, ConvertOptions, CreateOptions,
    DiskSize, DiskType, Gate, ImportError, ImportOptions, IoErrorKind, MergeOptions,
    OperationError, ParentSearch, Pool, Progress, ResizeOptions, Vhd, clone_disk, compact, convert,
    export_raw, import_raw, merge, repair, repair_in_place, reparent, resize, undo_repair,
};

const MIB: u64 = 1 << 20;

type Advance<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// With a base, a child, and a disk that can be repaired.
fn folder() -> (tempfile::TempDir, Pool) {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::open(dir.path()).unwrap();
    let size = DiskSize::from_bytes(8 * MIB).unwrap();
    for rel in ["base.vhd", "damaged.vhd"] {
        let options = CreateOptions::new(DiskType::Dynamic, size);
        let disk = Vhd::create(&pool, rel, &options).unwrap();
        for block in 0..3 {
            disk.write_at(&[1; 5000], block * 2 * MIB).unwrap();
        }
        disk.close().unwrap();
    }
    let options = ChildOptions::new();
    let child = Vhd::create_child(&pool, "child.vhd", &pool, "base.vhd", &options).unwrap();
    child.write_at(&[2; 5000], 3 * MIB).unwrap();
    child.close().unwrap();
    let file = File::options()
        .write(true)
        .open(dir.path().join("damaged.vhd"));
    // Two blocks in one place.
    file.unwrap()
        .write_all_at(&7u32.to_be_bytes(), 1536 + 4)
        .unwrap();
    (dir, pool)
}

/// All files but locks: what they hold, which they are, and their times.
fn state(folder: &Path) -> BTreeMap<String, (Vec<u8>, u64, SystemTime)> {
    let entries = std::fs::read_dir(folder).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_none_or(|ending| ending != "lock"));
    let state = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let metadata = path.metadata().unwrap();
        let content = std::fs::read(&path).unwrap();
        (
            name,
            (content, metadata.ino(), metadata.modified().unwrap()),
        )
    };
    files.map(state).collect()
}

type Operation = fn(&Pool, Gate, Advance<'_>) -> Result<(), OperationError>;

const OPERATIONS: [(&str, Operation); 14] = [
    ("import", |pool, gate, advance| {
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[3; 5000], MIB).unwrap();
        let options = ImportOptions {
            disk_type: DiskType::Dynamic,
            size: None,
            sha256: None,
            unique_id: None,
            gate,
        };
        let imported = import_raw(&source, pool, "new.vhd", &options, advance);
        imported.map(drop).map_err(|error| match error {
            ImportError::Write { path, source } => OperationError::Io { path, source },
            error => panic!("{error}"),
        })
    }),
    ("export", |pool, gate, advance| {
        let search = ParentSearch::new();
        export_raw(pool, "child.vhd", pool, "new.raw", gate, &search, advance).map(drop)
    }),
    ("repair into", |pool, gate, advance| {
        let search = ParentSearch::new();
        repair(pool, "damaged.vhd", "new.vhd", gate, &search, advance).map(drop)
    }),
    ("compact", |pool, gate, advance| {
        let options = CompactOptions::default();
        compact(pool, "base.vhd", gate, &options, advance).map(drop)
    }),
    ("compact into", |pool, gate, advance| {
        let options = CompactOptions {
            target: Some("new.vhd".into()),
            ..CompactOptions::default()
        };
        compact(pool, "base.vhd", gate, &options, advance).map(drop)
    }),
    ("convert", |pool, gate, advance| {
        let options = ConvertOptions::new(DiskType::Dynamic);
        convert(pool, "child.vhd", pool, "new.vhd", gate, &options, advance).map(drop)
    }),
    ("clone", |pool, gate, advance| {
        let options = CloneOptions::new();
        clone_disk(pool, "base.vhd", pool, "new.vhd", gate, &options, advance).map(drop)
    }),
    ("merge", |pool, gate, advance| {
        let options = MergeOptions::default();
        merge(pool, "child.vhd", gate, &options, advance).map(drop)
    }),
    ("resize", |pool, gate, advance| {
        let options = ResizeOptions {
            size: DiskSize::from_bytes(9 * MIB).unwrap(),
            force: true,
            search: ParentSearch::new(),
        };
        resize(pool, "base.vhd", gate, &options, advance).map(drop)
    }),
    ("reconnect", |pool, gate, _| {
        reparent(
            pool,
            "child.vhd",
            pool,
            "base.vhd",
            gate,
            &ParentSearch::new(),
        )
    }),
    ("create", |pool, gate, advance| {
        let size = DiskSize::from_bytes(MIB).unwrap();
        let mut options = CreateOptions::new(DiskType::Fixed, size);
        options.gate = gate;
        let disk = Vhd::create_with(pool, "new.vhd", &options, advance)?;
        disk.close().unwrap();
        Ok(())
    }),
    ("create a child", |pool, gate, _| {
        let mut options = ChildOptions::new();
        options.gate = gate;
        let child = Vhd::create_child(pool, "new.vhd", pool, "base.vhd", &options)?;
        child.close().unwrap();
        Ok(())
    }),
    ("repair", |pool, gate, advance| {
        repair_in_place(pool, "damaged.vhd", gate, advance).map(drop)
    }),
    ("undo a repair", |pool, gate, advance| {
        if gate.is_open() {
            repair_in_place(pool, "damaged.vhd", Gate::open(), advance)?;
        }
        undo_repair(pool, "damaged.vhd", gate)
    }),
];

fn is_closed(error: &OperationError) -> bool {
    matches!(error, OperationError::Io { source, .. } if source.kind() == IoErrorKind::GateClosed)
}

#[test]
fn nothing_passes_a_closed_gate() {
    for (name, operation) in OPERATIONS {
        let (dir, pool) = folder();
        let go_on: Advance<'_> = &mut |_| ControlFlow::Continue(());
        if name == "undo a repair" {
            repair_in_place(&pool, "damaged.vhd", Gate::open(), go_on).unwrap();
        }
        let before = state(dir.path());
        let gate = Gate::open();
        gate.close();
        let error = operation(&pool, gate, go_on).unwrap_err();
        assert!(is_closed(&error), "{name}: {error}");
        assert!(state(dir.path()) == before, "{name}");
        operation(&pool, Gate::open(), go_on).unwrap();
    }
}

/// In the last moment, too: what is complete does not take another's place.
#[test]
fn a_gate_that_closes_meanwhile_keeps_new_files_from_their_names() {
    for (name, operation) in &OPERATIONS[..7] {
        let (dir, pool) = folder();
        let before = state(dir.path());
        let gate = Gate::open();
        let close_at_the_end: Advance<'_> = &mut |progress| {
            if progress.done == progress.total {
                gate.close();
            }
            ControlFlow::Continue(())
        };
        operation(&pool, gate.clone(), close_at_the_end).unwrap_err();
        assert!(!gate.is_open(), "{name}");
        assert!(state(dir.path()) == before, "{name}");
    }
}
