//! Converting and exporting.

use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;

use paddock_vhd::{
    Access, BlockDevice, ConvertOptions, CreateError, DiskType, Gate, OpenErrorKind,
    OperationError, ParentSearch, Progress, convert, export_raw, inspect,
};

use crate::folder::{Folder, MIB, TYPES, go_on};

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
    let export = |target: &str| {
        export_raw(
            pool,
            "g/grandchild.vhd",
            pool,
            target,
            Gate::open(),
            &search,
            &mut go_on,
        )
    };
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
    let result = convert(
        pool,
        "child.vhd",
        pool,
        "new.vhd",
        Gate::open(),
        &options,
        &mut stop,
    );
    assert!(matches!(result, Err(OperationError::Cancelled)));
    let search = ParentSearch::new();
    let result = export_raw(
        pool,
        "child.vhd",
        pool,
        "new.raw",
        Gate::open(),
        &search,
        &mut stop,
    );
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
    let refused = folder.convert("g/grandchild.vhd", "new.vhd", DiskType::Dynamic);
    let Err(OperationError::Open(error)) = refused else {
        panic!("converted over a parent that changed")
    };
    assert_eq!(error.kind(), OpenErrorKind::ParentChanged);
    assert!(!folder.path("new.vhd").exists());
}
