//! Giving disks another size.

use paddock_vhd::{
    Access, BlockDevice, CreateOptions, DiskSize, DiskType, Gate, IoErrorKind, OpenErrorKind,
    OperationError, ParentSearch, Pool, ResizeOptions, Vhd, inspect, resize,
};

use crate::folder::{Folder, MIB, TYPES, go_on, resized};
use crate::skipped::skipped;

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
            folder.is_clean_but_for_leaks("disk.vhd");
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
