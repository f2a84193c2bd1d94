//! Disks in a real folder, through the public interface.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

mod skipped;

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use paddock_vhd::{
    Access, BlockDevice, CreateError, CreateOptions, DiskSize, DiskType, ExtentKind, Gate,
    ImportError, ImportOptions, ImportReport, IoErrorKind, OpenError, OpenErrorKind, Pool,
    Progress, Vhd, import_raw, inspect, remove,
};
use sha2::{Digest, Sha256};

use skipped::skipped;

const MIB: u64 = 1 << 20;

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

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn create(&self, rel: &str, disk_type: DiskType, mib: u64) -> Vhd {
        Vhd::create(&self.pool, rel, &options(disk_type, mib)).unwrap()
    }

    fn open(&self, rel: &str, access: Access) -> Result<Vhd, OpenError> {
        Vhd::open(&self.pool, rel, access, Gate::open())
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn raw(&self, name: &str, len: u64, parts: &[(u64, &[u8])]) -> File {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.path().join(name))
            .unwrap();
        file.set_len(len).unwrap();
        for (offset, bytes) in parts {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    fn import(&self, source: &File, options: &ImportOptions) -> Result<ImportReport, ImportError> {
        import_raw(source, &self.pool, "disk.vhd", options, &mut |_| {
            ControlFlow::Continue(())
        })
    }
}

fn options(disk_type: DiskType, mib: u64) -> CreateOptions {
    CreateOptions::new(disk_type, DiskSize::from_bytes(mib * MIB).unwrap())
}

fn content(disk: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn dynamic(size: Option<u64>, sha256: Option<[u8; 32]>) -> ImportOptions {
    let size = size.map(|size| DiskSize::from_bytes(size).unwrap());
    ImportOptions {
        disk_type: DiskType::Dynamic,
        size,
        sha256,
        unique_id: None,
        gate: Gate::open(),
    }
}

#[test]
fn a_disk_keeps_what_was_written() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        let folder = Folder::new();
        let disk = folder.create("a/b/disk.vhd", disk_type, 8);
        disk.write_at(b"hello", 3 * MIB + 77).unwrap();
        disk.flush().unwrap();
        disk.close().unwrap();
        let disk = folder.open("a/b/disk.vhd", Access::ReadWrite).unwrap();
        assert_eq!((disk.size(), disk.disk_type()), (8 * MIB, disk_type));
        let mut expected = vec![0; 8 * MIB as usize];
        expected[3 * MIB as usize + 77..][..5].copy_from_slice(b"hello");
        assert!(content(&disk) == expected);
    }
}

#[test]
fn dropping_a_disk_puts_it_away_too() {
    let folder = Folder::new();
    folder
        .create("disk.vhd", DiskType::Dynamic, 8)
        .write_at(b"hello", 0)
        .unwrap();
    let disk = folder.open("disk.vhd", Access::ReadOnly).unwrap();
    let mut found = [0; 5];
    disk.read_at(&mut found, 0).unwrap();
    assert_eq!(&found, b"hello");
    // Header and table, the block on its 4 KiB, the footer: no slack.
    assert_eq!(
        folder.path().join("disk.vhd").metadata().unwrap().len(),
        4096 + 2 * MIB + 512
    );
}

#[test]
fn new_files_are_for_their_owner_and_leave_nothing_beside() {
    let folder = Folder::new();
    for (name, disk_type) in [("f.vhd", DiskType::Fixed), ("d.vhd", DiskType::Dynamic)] {
        folder.create(name, disk_type, 2).close().unwrap();
        let metadata = folder.path().join(name).metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        if disk_type == DiskType::Fixed {
            assert!(metadata.blocks() * 512 >= 2 * MIB, "its space is reserved");
        }
    }
    assert_eq!(
        folder.names(),
        ["d.vhd", "d.vhd.lock", "f.vhd", "f.vhd.lock"]
    );
}

#[test]
fn a_taken_name_is_left_alone() {
    let folder = Folder::new();
    std::fs::write(folder.path().join("taken"), "mine").unwrap();
    let error = Vhd::create(&folder.pool, "taken", &options(DiskType::Dynamic, 2)).unwrap_err();
    assert!(matches!(error, CreateError::AlreadyExists { path } if path == Path::new("taken")));
    let _disk = folder.create("disk.vhd", DiskType::Dynamic, 2);
    let error = Vhd::create(&folder.pool, "disk.vhd", &options(DiskType::Dynamic, 2)).unwrap_err();
    assert!(matches!(error, CreateError::AlreadyExists { .. }));
    assert_eq!(std::fs::read(folder.path().join("taken")).unwrap(), b"mine");
    assert_eq!(folder.names(), ["disk.vhd", "disk.vhd.lock", "taken"]);
}

#[test]
fn what_a_crash_left_of_a_creation_is_cleared_away() {
    let folder = Folder::new();
    std::fs::write(folder.path().join(".disk.vhd.new"), "half").unwrap();
    folder
        .create("disk.vhd", DiskType::Dynamic, 2)
        .close()
        .unwrap();
    assert_eq!(folder.names(), ["disk.vhd", "disk.vhd.lock"]);
}

#[test]
fn too_little_space_is_said_before_anything_is_made() {
    let folder = Folder::new();
    let have = folder.pool.space().unwrap().available;
    let size = DiskSize::MAX;
    if have > size.bytes() {
        skipped("the file system has more than 2040 GiB left");
        return;
    }
    let error = Vhd::create(
        &folder.pool,
        "a/disk.vhd",
        &CreateOptions::new(DiskType::Fixed, size),
    )
    .unwrap_err();
    let CreateError::NoSpace { path, need, have } = error else {
        panic!("{error}")
    };
    assert_eq!(path, Path::new("a/disk.vhd"));
    assert_eq!(need, size.bytes() + 512);
    assert!(have < need);
    assert_eq!(folder.names(), [""; 0]);
    // A dynamic one takes only its table.
    let disk = Vhd::create(
        &folder.pool,
        "a/disk.vhd",
        &CreateOptions::new(DiskType::Dynamic, size),
    )
    .unwrap();
    disk.write_at(b"end", size.bytes() - 3).unwrap();
    disk.close().unwrap();
    let disk = folder.open("a/disk.vhd", Access::ReadOnly).unwrap();
    let mut found = [0; 3];
    disk.read_at(&mut found, size.bytes() - 3).unwrap();
    assert_eq!(&found, b"end");
}

#[test]
fn paths_that_leave_the_pool_are_refused_by_every_operation() {
    let folder = Folder::new();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), folder.path().join("link")).unwrap();
    symlink(outside.path().join("x"), folder.path().join("file")).unwrap();
    let source = folder.raw("raw", MIB, &[]);
    for rel in ["../x", "/etc/x", "link/x", "a/../../x"] {
        let error = folder.open(rel, Access::ReadWrite).unwrap_err();
        assert_eq!(error.kind(), OpenErrorKind::PathEscapes, "{rel}");
        assert!(error.to_string().contains(rel), "{error}");
        assert_eq!(
            inspect(&folder.pool, rel).unwrap_err().kind(),
            OpenErrorKind::PathEscapes
        );
        assert_eq!(
            remove(&folder.pool, rel).unwrap_err().kind(),
            OpenErrorKind::PathEscapes
        );
        let error = Vhd::create(&folder.pool, rel, &options(DiskType::Dynamic, 2)).unwrap_err();
        assert!(
            matches!(&error, CreateError::PathEscapes { path } if path == Path::new(rel)),
            "{error}"
        );
        let error = import_raw(
            &source,
            &folder.pool,
            rel,
            &dynamic(None, None),
            &mut |_| ControlFlow::Continue(()),
        );
        assert!(matches!(
            error,
            Err(ImportError::Create(CreateError::PathEscapes { .. }))
        ));
    }
    let error = folder.open("file", Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::PathEscapes);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn what_is_no_disk_is_refused() {
    let folder = Folder::new();
    std::fs::write(folder.path().join("text"), "hello").unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    let kind = |rel: &str| folder.open(rel, Access::ReadOnly).unwrap_err().kind();
    assert_eq!(kind("text"), OpenErrorKind::Unsupported);
    assert_eq!(kind("folder"), OpenErrorKind::Unsupported);
    assert_eq!(kind("nothing"), OpenErrorKind::NotFound);
    assert_eq!(kind("no/folder"), OpenErrorKind::NotFound);
}

#[test]
fn one_writer_or_many_readers() {
    let folder = Folder::new();
    let writer = folder.create("disk.vhd", DiskType::Dynamic, 2);
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let error = folder.open("disk.vhd", access).unwrap_err();
        assert_eq!(error.kind(), OpenErrorKind::InUse);
        assert!(
            error
                .to_string()
                .contains(&format!("process {}", std::process::id())),
            "{error}"
        );
    }
    assert_eq!(
        remove(&folder.pool, "disk.vhd").unwrap_err().kind(),
        OpenErrorKind::InUse
    );
    writer.close().unwrap();
    let readers = [
        folder.open("disk.vhd", Access::ReadOnly).unwrap(),
        folder.open("disk.vhd", Access::ReadOnly).unwrap(),
    ];
    assert_eq!(
        folder
            .open("disk.vhd", Access::ReadWrite)
            .unwrap_err()
            .kind(),
        OpenErrorKind::InUse
    );
    drop(readers);
    folder
        .open("disk.vhd", Access::ReadWrite)
        .unwrap()
        .close()
        .unwrap();
}

/// The lock file may be lost or on another host: the locks on the disk itself
/// remain.
#[test]
fn a_disk_is_locked_without_its_lock_file_too() {
    let folder = Folder::new();
    let _writer = folder.create("disk.vhd", DiskType::Dynamic, 2);
    std::fs::remove_file(folder.path().join("disk.vhd.lock")).unwrap();
    let error = folder.open("disk.vhd", Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::InUse);
}

#[test]
fn a_removed_disk_leaves_nothing() {
    let folder = Folder::new();
    folder
        .create("disk.vhd", DiskType::Dynamic, 2)
        .close()
        .unwrap();
    std::fs::write(folder.path().join("text"), "hello").unwrap();
    remove(&folder.pool, "disk.vhd").unwrap();
    assert_eq!(
        remove(&folder.pool, "disk.vhd").unwrap_err().kind(),
        OpenErrorKind::NotFound
    );
    assert_eq!(
        remove(&folder.pool, "text").unwrap_err().kind(),
        OpenErrorKind::Unsupported
    );
    assert!(folder.path().join("text").exists());
    assert!(
        !folder.path().join("disk.vhd").exists() && !folder.path().join("disk.vhd.lock").exists()
    );
}

#[test]
fn inspecting_works_while_the_disk_is_in_use() {
    let folder = Folder::new();
    let created = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let options = CreateOptions {
        created,
        ..options(DiskType::Dynamic, 8)
    };
    let disk = Vhd::create(&folder.pool, "disk.vhd", &options).unwrap();
    disk.write_at(&[1; 512], 0).unwrap();
    disk.write_at(&[1; 512], 4 * MIB).unwrap();
    disk.flush().unwrap();
    let info = inspect(&folder.pool, "disk.vhd").unwrap();
    assert_eq!(info.disk_type, DiskType::Dynamic);
    assert_eq!(info.virtual_size, 8 * MIB);
    assert_eq!(info.unique_id, options.unique_id);
    assert_eq!(info.creator, "win");
    assert_eq!(info.created, created);
    assert_eq!(info.block_size, Some(2 << 20));
    assert_eq!(info.allocated_blocks, Some(2));
    assert!(!info.saved_state);
    assert!(
        info.file_size > 64 * MIB,
        "it has grown by its step: {}",
        info.file_size
    );
    assert!(info.allocated > 0);
    disk.close().unwrap();
    assert_eq!(
        inspect(&folder.pool, "disk.vhd").unwrap().file_size,
        4096 + 4104 * 512 + 2 * MIB + 512
    );
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["diskType"], "Dynamic");
    assert_eq!(json["allocatedBlocks"], 2);
    folder
        .create("fixed.vhd", DiskType::Fixed, 2)
        .close()
        .unwrap();
    let info = inspect(&folder.pool, "fixed.vhd").unwrap();
    assert_eq!(
        (info.disk_type, info.block_size, info.allocated_blocks),
        (DiskType::Fixed, None, None)
    );
    assert_eq!(
        inspect(&folder.pool, "nothing").unwrap_err().kind(),
        OpenErrorKind::NotFound
    );
}

#[test]
fn a_gate_closes_every_handle() {
    let folder = Folder::new();
    folder
        .create("disk.vhd", DiskType::Dynamic, 2)
        .close()
        .unwrap();
    let gate = Gate::open();
    let disk = Vhd::open(&folder.pool, "disk.vhd", Access::ReadWrite, gate.clone()).unwrap();
    assert!(gate.until(Gate::now() + Duration::from_secs(3600)));
    disk.write_at(b"a", 0).unwrap();
    disk.flush().unwrap();
    gate.until(Duration::ZERO);
    assert_eq!(
        disk.write_at(b"b", 0).unwrap_err().kind(),
        IoErrorKind::GateClosed
    );
    assert_eq!(disk.flush().unwrap_err().kind(), IoErrorKind::GateClosed);
    assert!(gate.drain(Duration::ZERO));
    let before = std::fs::read(folder.path().join("disk.vhd")).unwrap();
    assert_eq!(disk.close().unwrap_err().kind(), IoErrorKind::GateClosed);
    assert!(std::fs::read(folder.path().join("disk.vhd")).unwrap() == before);
}

#[test]
fn an_import_has_the_data_then_zeros() {
    let folder = Folder::new();
    let end = 5 * MIB + 300;
    let source = folder.raw(
        "raw",
        end,
        &[(0, b"begin"), (3 * MIB - 2, &[7; 5000]), (end - 3, b"end")],
    );
    let mut expected = vec![0; 8 * MIB as usize];
    source
        .read_exact_at(&mut expected[..end as usize], 0)
        .unwrap();
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        let options = ImportOptions {
            disk_type,
            ..dynamic(Some(8 * MIB), None)
        };
        let report = folder.import(&source, &options).unwrap();
        assert_eq!(report.size.bytes(), 8 * MIB);
        assert_eq!(report.source_bytes, end);
        assert!(
            report.written_bytes >= 5008 && report.written_bytes <= 5 * 65536,
            "{report:?}"
        );
        let disk = folder.open("disk.vhd", Access::ReadOnly).unwrap();
        assert_eq!(disk.disk_type(), disk_type);
        assert!(content(&disk) == expected, "{disk_type}");
        drop(disk);
        remove(&folder.pool, "disk.vhd").unwrap();
    }
    assert_eq!(folder.names(), ["raw"]);
}

#[test]
fn an_import_leaves_out_zeros_that_are_written_out() {
    let folder = Folder::new();
    let zeros = vec![0; 4 * MIB as usize];
    let source = folder.raw("raw", 16 * MIB, &[(2 * MIB, &zeros), (9 * MIB, b"x")]);
    let report = folder.import(&source, &dynamic(None, None)).unwrap();
    assert_eq!(report.size.bytes(), 16 * MIB);
    // The file system may know better than we where the x lies.
    assert!((1..=64 << 10).contains(&report.written_bytes), "{report:?}");
    let disk = folder.open("disk.vhd", Access::ReadOnly).unwrap();
    let kinds: Vec<_> = disk
        .block_status(0, 8 * MIB)
        .unwrap()
        .iter()
        .map(|extent| extent.kind)
        .collect();
    assert_eq!(kinds, [ExtentKind::Hole]);
    assert_eq!(
        inspect(&folder.pool, "disk.vhd").unwrap().allocated_blocks,
        Some(1)
    );
}

#[test]
fn a_source_of_any_length_gets_a_disk_it_fits() {
    let folder = Folder::new();
    for (len, size) in [(0, MIB), (1, MIB), (MIB + 1, MIB + 512)] {
        let name = format!("raw{len}");
        let source = folder.raw(&name, len, &[]);
        assert_eq!(
            folder
                .import(&source, &dynamic(None, None))
                .unwrap()
                .size
                .bytes(),
            size
        );
        remove(&folder.pool, "disk.vhd").unwrap();
    }
}

#[test]
fn a_source_larger_than_the_disk_is_refused_before_anything_is_written() {
    let folder = Folder::new();
    let source = folder.raw("raw", 2 * MIB + 1, &[]);
    let error = folder
        .import(&source, &dynamic(Some(2 * MIB), None))
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImportError::SourceTooLarge {
                source_bytes: 2_097_153,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(folder.names(), ["raw"]);
}

#[test]
fn the_sum_of_the_whole_source_is_compared() {
    let folder = Folder::new();
    let source = folder.raw("raw", 3 * MIB + 5, &[(MIB + 3, b"data")]);
    let sum: [u8; 32] = Sha256::digest(std::fs::read(folder.path().join("raw")).unwrap()).into();
    let mut wrong = sum;
    wrong[31] ^= 1;
    let error = folder
        .import(&source, &dynamic(None, Some(wrong)))
        .unwrap_err();
    let ImportError::WrongSha256 { expected, found } = error else {
        panic!("{error}")
    };
    assert_eq!((expected, found), (wrong, sum));
    assert_eq!(folder.names(), ["raw"]);
    let report = folder.import(&source, &dynamic(None, Some(sum))).unwrap();
    assert_eq!(report.sha256, Some(sum));
    assert_eq!(folder.names(), ["disk.vhd", "disk.vhd.lock", "raw"]);
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let folder = Folder::new();
    let source = folder.raw("raw", 8 * MIB, &[(0, &vec![1; 6 * MIB as usize])]);
    let mut calls = Vec::new();
    let result = import_raw(
        &source,
        &folder.pool,
        "disk.vhd",
        &dynamic(None, None),
        &mut |progress| {
            calls.push(progress);
            if calls.len() == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    assert!(matches!(result, Err(ImportError::Cancelled)));
    let expected = [MIB, 2 * MIB, 3 * MIB].map(|done| Progress {
        done,
        total: 8 * MIB,
    });
    assert_eq!(calls, expected);
    assert_eq!(folder.names(), ["raw"]);
}

#[test]
fn progress_ends_with_the_source() {
    let folder = Folder::new();
    let source = folder.raw("raw", 8 * MIB, &[(MIB, b"x")]);
    let mut last = None;
    import_raw(
        &source,
        &folder.pool,
        "disk.vhd",
        &dynamic(None, None),
        &mut |progress| {
            last = Some(progress);
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    assert_eq!(
        last,
        Some(Progress {
            done: 8 * MIB,
            total: 8 * MIB
        })
    );
}

#[test]
fn an_import_replaces_nothing() {
    let folder = Folder::new();
    std::fs::write(folder.path().join("disk.vhd"), "mine").unwrap();
    let source = folder.raw("raw", MIB, &[]);
    let error = folder.import(&source, &dynamic(None, None)).unwrap_err();
    assert!(
        matches!(
            error,
            ImportError::Create(CreateError::AlreadyExists { .. })
        ),
        "{error}"
    );
    assert_eq!(
        std::fs::read(folder.path().join("disk.vhd")).unwrap(),
        b"mine"
    );
}

#[test]
fn images_that_are_not_raw_are_named() {
    let folder = Folder::new();
    folder
        .create("source.vhd", DiskType::Fixed, 2)
        .close()
        .unwrap();
    let source = folder.pool.open_read("source.vhd").unwrap();
    let error = folder.import(&source, &dynamic(None, None)).unwrap_err();
    assert!(
        matches!(error, ImportError::NotRaw { format: "a VHD" }),
        "{error}"
    );
    let source = folder.raw("qcow2", 2 * MIB, &[(0, b"QFI\xfb")]);
    let error = folder.import(&source, &dynamic(None, None)).unwrap_err();
    assert!(
        matches!(
            error,
            ImportError::NotRaw {
                format: "a qcow2 image"
            }
        ),
        "{error}"
    );
}
