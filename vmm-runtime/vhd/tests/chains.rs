//! Differencing disks in real folders, through the public interface.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

use std::fs::{File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use paddock_vhd::{
    Access, BlockDevice, ChildOptions, CreateError, CreateOptions, DiskGeometry, DiskSize,
    DiskType, FooterState, Gate, IoErrorKind, MAX_CHAIN, OpenError, OpenErrorKind, ParentSearch,
    Pool, Vhd, VhdInfo, inspect, inspect_chain, remove,
};

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

    fn child(&self, rel: &str, parent: &str) -> Vhd {
        Vhd::create_child(&self.pool, rel, &self.pool, parent, &ChildOptions::new()).unwrap()
    }

    fn open(&self, rel: &str, access: Access) -> Result<Vhd, OpenError> {
        Vhd::open(&self.pool, rel, access, Gate::open())
    }

    fn open_with(&self, rel: &str, search: &ParentSearch) -> Result<Vhd, OpenError> {
        Vhd::open_with(&self.pool, rel, Access::ReadWrite, Gate::open(), search)
    }

    fn refusal(&self, rel: &str, access: Access) -> OpenError {
        self.open(rel, access).unwrap_err()
    }
}

fn byte(disk: &dyn BlockDevice, offset: u64) -> u8 {
    let mut byte = [0];
    disk.read_at(&mut byte, offset).unwrap();
    byte[0]
}

/// Moves a file, and keeps its time of modification.
fn rename(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::rename(from, to).unwrap();
}

fn modified(path: &Path) -> SystemTime {
    path.metadata().unwrap().modified().unwrap()
}

fn touch(path: &Path, time: SystemTime) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
}

#[test]
fn a_child_shows_its_parent_and_keeps_its_own() {
    let folder = Folder::new();
    folder.base("bases/base.vhd");
    let before = std::fs::read(folder.path("bases/base.vhd")).unwrap();
    let child = folder.child("vms/a/child.vhd", "bases/base.vhd");
    assert_eq!((child.size(), byte(&child, MIB)), (8 * MIB, 1));
    child.write_at(&[2; 100], MIB + 100).unwrap();
    child.write_at(&[3; 512], 5 * MIB).unwrap();
    child.close().unwrap();
    let grandchild = folder.child("grandchild.vhd", "vms/a/child.vhd");
    grandchild.write_at(&[4; 1], MIB).unwrap();
    grandchild.discard(4 * MIB, 4 * MIB).unwrap();
    grandchild.close().unwrap();
    let disk = folder.open("grandchild.vhd", Access::ReadWrite).unwrap();
    assert_eq!(disk.disk_type(), DiskType::Differencing);
    let found = [0, 1, 99, 100, 199, 200, 511, 512].map(|at| byte(&disk, MIB + at));
    assert_eq!(found, [4, 1, 1, 2, 2, 1, 1, 0]);
    assert_eq!(byte(&disk, 5 * MIB), 0);
    disk.close().unwrap();
    let child = folder.open("vms/a/child.vhd", Access::ReadOnly).unwrap();
    assert_eq!((byte(&child, MIB), byte(&child, 5 * MIB)), (1, 3));
    assert_eq!(
        child.write_at(&[1], 0).unwrap_err().kind(),
        IoErrorKind::ReadOnly
    );
    assert!(std::fs::read(folder.path("bases/base.vhd")).unwrap() == before);
}

#[test]
fn what_it_says_of_its_parent() {
    let folder = Folder::new();
    folder.base("bases/base.vhd");
    let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    touch(&folder.path("bases/base.vhd"), time);
    folder
        .child("a/child.vhd", "bases/base.vhd")
        .close()
        .unwrap();
    let base = inspect(&folder.pool, "bases/base.vhd").unwrap();
    assert_eq!(base.parent, None);
    let info = inspect(&folder.pool, "a/child.vhd").unwrap();
    assert_eq!(info.disk_type, DiskType::Differencing);
    assert_eq!(info.allocated_blocks, Some(0));
    // Footer, header, table, two locators, footer.
    assert_eq!(info.file_size, 512 + 1024 + 512 + 2 * 512 + 512);
    let parent = info.parent.clone().unwrap();
    assert_eq!(parent.unique_id, base.unique_id);
    assert_eq!(parent.modified, time);
    assert_eq!(parent.name, "base.vhd");
    assert_eq!(parent.relative.as_deref(), Some(r".\..\bases\base.vhd"));
    let absolute = folder.path("bases/base.vhd");
    assert_eq!(parent.absolute.as_deref(), absolute.to_str());
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["diskType"], "Differencing");
    assert_eq!(json["parent"]["name"], "base.vhd");
    folder.child("b.vhd", "a/child.vhd").close().unwrap();
    let chain = inspect_chain(&folder.pool, "b.vhd", &ParentSearch::new()).unwrap();
    let paths: Vec<_> = chain
        .iter()
        .map(|(_, rel, _)| rel.to_str().unwrap())
        .collect();
    assert_eq!(paths, ["b.vhd", "a/child.vhd", "bases/base.vhd"]);
    assert_eq!(chain[1].2, info);
}

#[test]
fn everything_that_the_footers_say_is_told() {
    let folder = Folder::new();
    folder.base("base.vhd");
    let path = folder.path("base.vhd");
    let look = || inspect(&folder.pool, "base.vhd").unwrap();
    let info = look();
    let geometry = DiskGeometry {
        cylinders: 240,
        heads: 4,
        sectors: 17,
    };
    assert_eq!(info.geometry, geometry);
    assert_eq!((info.original_size, info.virtual_size), (8 * MIB, 8 * MIB));
    let creator = (info.creator.as_str(), info.creator_version.as_str());
    assert_eq!(creator, ("win", "10.0"));
    let (good, lost) = (FooterState::Good, FooterState::Lost);
    assert_eq!((info.head_footer, info.tail_footer), (Some(good), good));
    assert_eq!((info.allocated_blocks, info.fragments), (Some(1), Some(1)));
    let bytes = std::fs::read(&path).unwrap();
    let mut broken = bytes.clone();
    broken[100] ^= 1;
    std::fs::write(&path, &broken).unwrap();
    let info = look();
    assert_eq!((info.head_footer, info.tail_footer), (Some(lost), good));
    std::fs::write(&path, &bytes[..bytes.len() - 512]).unwrap();
    let info = look();
    assert_eq!((info.head_footer, info.tail_footer), (Some(good), lost));
    // Looking restores nothing; opening for writing does.
    folder
        .open("base.vhd", Access::ReadWrite)
        .unwrap()
        .close()
        .unwrap();
    assert_eq!(look().tail_footer, good);
    let json = serde_json::to_value(look()).unwrap();
    assert_eq!(
        (&json["geometry"]["heads"], &json["headFooter"]),
        (&4.into(), &"Good".into())
    );
    let back: VhdInfo = serde_json::from_value(json).unwrap();
    assert_eq!(back, look());
    let size = DiskSize::from_bytes(MIB).unwrap();
    let options = CreateOptions::new(DiskType::Fixed, size);
    Vhd::create(&folder.pool, "fixed.vhd", &options).unwrap();
    let fixed = inspect(&folder.pool, "fixed.vhd").unwrap();
    assert_eq!((fixed.head_footer, fixed.tail_footer), (None, good));
    assert_eq!((fixed.fragments, fixed.block_size), (None, None));
}

/// The bytes of the locators, as other programs read them.
#[test]
fn locators_are_written_as_the_format_has_them() {
    let folder = Folder::new();
    folder.base("base.vhd");
    folder.child("child.vhd", "base.vhd").close().unwrap();
    let bytes = std::fs::read(folder.path("child.vhd")).unwrap();
    assert_eq!(bytes[60..64], 4u32.to_be_bytes());
    assert_eq!(&bytes[512 + 64..512 + 70], b"\0b\0a\0s");
    let utf16 =
        |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let absolute = folder.path("base.vhd");
    let texts = [
        (b"W2ru", r".\base.vhd"),
        (b"W2ku", absolute.to_str().unwrap()),
    ];
    for (index, (platform, text)) in texts.into_iter().enumerate() {
        let at = 512 + 576 + index * 24;
        let text = utf16(text);
        let offset = 2048 + index * 512;
        assert_eq!(&bytes[at..at + 4], platform);
        assert_eq!(bytes[at + 4..at + 8], 512u32.to_be_bytes());
        assert_eq!(bytes[at + 8..at + 12], (text.len() as u32).to_be_bytes());
        assert_eq!(bytes[at + 12..at + 16], [0; 4]);
        assert_eq!(bytes[at + 16..at + 24], (offset as u64).to_be_bytes());
        assert_eq!(bytes[offset..offset + text.len()], text);
    }
}

#[test]
fn the_parent_is_found_by_either_path_and_by_the_callers_folders() {
    let folder = Folder::new();
    folder.base("bases/base.vhd");
    folder
        .child("a/child.vhd", "bases/base.vhd")
        .close()
        .unwrap();
    // The child moved: only the absolute path is right.
    rename(&folder.path("a/child.vhd"), &folder.path("x/y/child.vhd"));
    let disk = folder.open("x/y/child.vhd", Access::ReadWrite).unwrap();
    assert_eq!(byte(&disk, MIB), 1);
    drop(disk);
    // The pool moved with both: only the relative path is right.
    rename(&folder.path("x/y/child.vhd"), &folder.path("p/a/child.vhd"));
    rename(
        &folder.path("bases/base.vhd"),
        &folder.path("p/bases/base.vhd"),
    );
    let inner = Pool::open(folder.path("p")).unwrap();
    let disk = Vhd::open(&inner, "a/child.vhd", Access::ReadWrite, Gate::open()).unwrap();
    assert_eq!(byte(&disk, MIB), 1);
    drop(disk);
    // Neither is: the caller must know.
    rename(
        &folder.path("p/bases/base.vhd"),
        &folder.path("store/base.vhd"),
    );
    let error = folder.refusal("p/a/child.vhd", Access::ReadWrite);
    assert_eq!(error.kind(), OpenErrorKind::ParentNotFound);
    let said = error.to_string();
    assert!(
        said.contains("'base.vhd'") && said.contains("p/bases/base.vhd"),
        "{said}"
    );
    let search = ParentSearch::new()
        .folder(folder.pool.clone(), "nowhere")
        .folder(folder.pool.clone(), "store");
    let disk = folder.open_with("p/a/child.vhd", &search).unwrap();
    assert_eq!(byte(&disk, MIB), 1);
}

#[test]
fn an_absolute_path_is_followed_out_of_the_pool_only_where_the_caller_says() {
    let (folder, other) = (Folder::new(), Folder::new());
    other.base("bases/base.vhd");
    let child = |rel: &str| {
        let (pool, options) = (&folder.pool, ChildOptions::new());
        Vhd::create_child(pool, rel, &other.pool, "bases/base.vhd", &options).unwrap()
    };
    child("child.vhd").close().unwrap();
    let info = inspect(&folder.pool, "child.vhd").unwrap().parent.unwrap();
    assert_eq!(info.relative, None);
    let error = folder.refusal("child.vhd", Access::ReadOnly);
    assert_eq!(error.kind(), OpenErrorKind::ParentNotFound);
    assert!(error.to_string().contains("outside of the pool"), "{error}");
    for search in [
        ParentSearch::new().root(other.pool.clone()),
        ParentSearch::new().folder(other.pool.clone(), "bases"),
    ] {
        let disk = folder.open_with("child.vhd", &search).unwrap();
        assert_eq!(byte(&disk, MIB), 1);
    }
}

#[test]
fn another_disk_in_the_parents_place_is_refused() {
    let folder = Folder::new();
    folder.base("base.vhd");
    folder.child("child.vhd", "base.vhd").close().unwrap();
    let base = inspect(&folder.pool, "base.vhd").unwrap().unique_id;
    rename(&folder.path("base.vhd"), &folder.path("moved/base.vhd"));
    folder.base("base.vhd");
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let OpenError::ParentMismatch {
            path,
            parent,
            expected,
            found,
        } = folder.refusal("child.vhd", access)
        else {
            panic!("opened with another parent")
        };
        assert_eq!(path, Path::new("child.vhd"));
        assert_eq!(parent, Path::new("base.vhd"));
        assert_eq!(expected, base);
        assert_eq!(found, inspect(&folder.pool, "base.vhd").unwrap().unique_id);
    }
    // The right one elsewhere is found behind the wrong one.
    let search = ParentSearch::new().folder(folder.pool.clone(), "moved");
    folder.open_with("child.vhd", &search).unwrap();
    // Something else there is told, too.
    std::fs::write(folder.path("base.vhd"), "text").unwrap();
    let error = folder.refusal("child.vhd", Access::ReadOnly);
    assert_eq!(error.kind(), OpenErrorKind::ParentNotFound);
    assert!(error.to_string().contains("no VHD footer"), "{error}");
}

#[test]
fn a_parent_that_changed_can_be_read_through_and_not_written_over() {
    let folder = Folder::new();
    folder.base("base.vhd");
    let base = folder.path("base.vhd");
    let time = modified(&base);
    folder.child("child.vhd", "base.vhd").close().unwrap();
    folder.child("grandchild.vhd", "child.vhd").close().unwrap();
    // Opening the parent for writing alone changes nothing.
    folder
        .open("base.vhd", Access::ReadWrite)
        .unwrap()
        .close()
        .unwrap();
    folder.open("child.vhd", Access::ReadWrite).unwrap();
    let disk = folder.open("base.vhd", Access::ReadWrite).unwrap();
    disk.write_at(&[9], 0).unwrap();
    disk.close().unwrap();
    for rel in ["child.vhd", "grandchild.vhd"] {
        let OpenError::ParentChanged { path, parent, .. } = folder.refusal(rel, Access::ReadWrite)
        else {
            panic!("opened for writing")
        };
        assert_eq!((path, parent), ("child.vhd".into(), "base.vhd".into()));
        let disk = folder.open(rel, Access::ReadOnly).unwrap();
        assert_eq!(byte(&disk, 0), 9);
    }
    let options = ChildOptions::new();
    let error = Vhd::create_child(&folder.pool, "new.vhd", &folder.pool, "child.vhd", &options)
        .unwrap_err();
    assert!(
        matches!(&error, CreateError::Parent(OpenError::ParentChanged { .. })),
        "{error}"
    );
    assert!(!folder.path("new.vhd").exists() && !folder.path("new.vhd.lock").exists());
    touch(&base, time);
    folder.open("child.vhd", Access::ReadWrite).unwrap();
}

#[test]
fn parents_are_locked_against_writers_and_shared_with_siblings() {
    let folder = Folder::new();
    folder.base("base.vhd");
    let one = folder.child("one.vhd", "base.vhd");
    folder.child("two.vhd", "base.vhd").close().unwrap();
    let two = folder.open("two.vhd", Access::ReadWrite).unwrap();
    let deep = folder.child("one/deep.vhd", "base.vhd");
    for _ in 0..2 {
        let error = folder.refusal("base.vhd", Access::ReadWrite);
        assert_eq!(error.kind(), OpenErrorKind::InUse);
        let error = remove(&folder.pool, "base.vhd").unwrap_err();
        assert_eq!(error.kind(), OpenErrorKind::InUse);
    }
    folder.open("base.vhd", Access::ReadOnly).unwrap();
    drop((one, two, deep));
    let writer = folder.open("base.vhd", Access::ReadWrite).unwrap();
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let error = folder.refusal("one.vhd", access);
        assert_eq!(error.kind(), OpenErrorKind::InUse);
        assert!(error.to_string().starts_with("base.vhd"), "{error}");
    }
    drop(writer);
    remove(&folder.pool, "one.vhd").unwrap();
    assert!(!folder.path("one.vhd").exists() && !folder.path("one.vhd.lock").exists());
}

/// Sets what a file says of its parent, with the right checksum.
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
fn loops_are_refused() {
    let folder = Folder::new();
    folder.base("base.vhd");
    folder.child("a.vhd", "base.vhd").close().unwrap();
    // b over a, then a over b. Names of the same length.
    folder.child("b.vhd", "a.vhd").close().unwrap();
    folder.child("z.vhd", "b.vhd").close().unwrap();
    let b = inspect(&folder.pool, "b.vhd").unwrap().unique_id;
    let a = inspect(&folder.pool, "a.vhd").unwrap().unique_id;
    let point_to = |path: &Path, id: uuid::Uuid, name: &str| {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        edit_header(path, |header| {
            header[40..56].copy_from_slice(id.as_bytes());
            // The relative locator alone, with this text.
            header[576 + 8..576 + 12].copy_from_slice(&(name.len() as u32).to_be_bytes());
            header[600..624].fill(0);
        });
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&name, 2048).unwrap();
    };
    point_to(&folder.path("a.vhd"), b, ".\\b.vhd");
    for rel in ["a.vhd", "b.vhd", "z.vhd"] {
        let error = folder.refusal(rel, Access::ReadOnly);
        assert_eq!(error.kind(), OpenErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("loop"), "{error}");
        let error = inspect_chain(&folder.pool, rel, &ParentSearch::new()).unwrap_err();
        assert_eq!(error.kind(), OpenErrorKind::Corrupt);
    }
    // By another name of the same file, too.
    std::fs::hard_link(folder.path("a.vhd"), folder.path("c.vhd")).unwrap();
    point_to(&folder.path("a.vhd"), a, ".\\c.vhd");
    let error = folder.refusal("a.vhd", Access::ReadWrite);
    assert_eq!(error.kind(), OpenErrorKind::Corrupt, "{error}");
    // A looping disk can still be looked at and removed.
    inspect(&folder.pool, "z.vhd").unwrap();
    remove(&folder.pool, "z.vhd").unwrap();
}

#[test]
fn chains_are_bounded() {
    let folder = Folder::new();
    folder.base("0.vhd");
    for index in 1..MAX_CHAIN {
        let disk = folder.child(&format!("{index}.vhd"), &format!("{}.vhd", index - 1));
        disk.write_at(&[index as u8], index as u64).unwrap();
        disk.close().unwrap();
    }
    let last = format!("{}.vhd", MAX_CHAIN - 1);
    let disk = folder.open(&last, Access::ReadWrite).unwrap();
    for index in 1..MAX_CHAIN as u64 {
        assert_eq!(u64::from(byte(&disk, index)), index);
    }
    assert_eq!((byte(&disk, 0), byte(&disk, MIB)), (0, 1));
    drop(disk);
    let options = ChildOptions::new();
    let error =
        Vhd::create_child(&folder.pool, "more.vhd", &folder.pool, &last, &options).unwrap_err();
    assert!(error.to_string().contains("64 disks"), "{error}");
    assert!(!folder.path("more.vhd").exists());
    // One that is too long all the same: a base that became a child.
    let template = folder.path("1.vhd");
    let id = inspect(&folder.pool, "0.vhd").unwrap().unique_id;
    folder.base("more.vhd");
    folder.child("template.vhd", "more.vhd").close().unwrap();
    let mut bytes = std::fs::read(folder.path("template.vhd")).unwrap();
    let len = bytes.len();
    for at in [0, len - 512] {
        let footer = &mut bytes[at..at + 512];
        footer[68..84].copy_from_slice(id.as_bytes());
        footer[64..68].fill(0);
        let sum: u32 = footer.iter().map(|&byte| u32::from(byte)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    }
    std::fs::write(folder.path("0.vhd"), bytes).unwrap();
    assert!(template.exists());
    let error = folder.refusal(&last, Access::ReadOnly);
    assert_eq!(error.kind(), OpenErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("more than 64"), "{error}");
    let shorter = format!("{}.vhd", MAX_CHAIN - 2);
    folder.open(&shorter, Access::ReadOnly).unwrap();
}

#[test]
fn locators_that_leave_the_pool_lead_nowhere() {
    let folder = Folder::new();
    let outside = Folder::new();
    outside.base("base.vhd");
    folder.base("base.vhd");
    folder.child("child.vhd", "base.vhd").close().unwrap();
    std::fs::copy(folder.path("base.vhd"), outside.path("base.vhd")).unwrap();
    std::fs::remove_file(folder.path("base.vhd")).unwrap();
    let name = outside.dir.path().file_name().unwrap().to_str().unwrap();
    let path = outside.path("base.vhd");
    std::os::unix::fs::symlink(outside.dir.path(), folder.path("link")).unwrap();
    for text in [
        format!(r".\..\{name}\base.vhd"),
        r".\link\base.vhd".to_owned(),
        path.to_str().unwrap().to_owned(),
        r"..".to_owned(),
        r".\.".to_owned(),
    ] {
        let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for platform in [b"W2ru", b"W2ku"] {
            edit_header(&folder.path("child.vhd"), |header| {
                header[576..580].copy_from_slice(platform);
                header[584..588].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
                header[600..624].fill(0);
            });
            let file = File::options()
                .write(true)
                .open(folder.path("child.vhd"))
                .unwrap();
            file.write_all_at(&bytes, 2048).unwrap();
            let error = folder.refusal("child.vhd", Access::ReadOnly);
            assert_eq!(
                error.kind(),
                OpenErrorKind::ParentNotFound,
                "{text}: {error}"
            );
        }
    }
    // The name in the header neither.
    edit_header(&folder.path("child.vhd"), |header| {
        let name: Vec<u8> = "..".encode_utf16().flat_map(u16::to_be_bytes).collect();
        header[64..576].fill(0);
        header[64..64 + name.len()].copy_from_slice(&name);
    });
    let search = ParentSearch::new().folder(folder.pool.clone(), "");
    let error = folder.open_with("child.vhd", &search).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::ParentNotFound, "{error}");
}

#[test]
fn a_differencing_disk_needs_a_parent() {
    let folder = Folder::new();
    let size = DiskSize::from_bytes(8 * MIB).unwrap();
    let options = CreateOptions::new(DiskType::Differencing, size);
    let error = Vhd::create(&folder.pool, "disk.vhd", &options).unwrap_err();
    assert!(matches!(error, CreateError::NeedsParent { .. }), "{error}");
    let error = Vhd::create_child(
        &folder.pool,
        "disk.vhd",
        &folder.pool,
        "nothing.vhd",
        &ChildOptions::new(),
    )
    .unwrap_err();
    assert!(matches!(
        error,
        CreateError::Parent(OpenError::NotFound { .. })
    ));
    assert_eq!(folder.dir.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_relative_path_that_leaves_the_pool_is_followed_into_a_root() {
    let folder = Folder::new();
    folder.base("old/bases/base.vhd");
    folder
        .child("old/disks/child.vhd", "old/bases/base.vhd")
        .close()
        .unwrap();
    // The absolute path leads nowhere any more.
    rename(&folder.path("old"), &folder.path("new"));
    let disks = Pool::open(folder.path("new/disks")).unwrap();
    let open = |search: &ParentSearch| {
        Vhd::open_with(&disks, "child.vhd", Access::ReadOnly, Gate::open(), search)
    };
    let error = open(&ParentSearch::new()).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::ParentNotFound, "{error}");
    let search = ParentSearch::new().root(Pool::open(folder.path("new/disks")).unwrap());
    let error = open(&search).unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::ParentNotFound, "{error}");
    let search = ParentSearch::new().root(Pool::open(folder.path("new")).unwrap());
    assert_eq!(byte(&open(&search).unwrap(), MIB), 1);
    let search = ParentSearch::new().root(Pool::open("/").unwrap());
    assert_eq!(byte(&open(&search).unwrap(), MIB), 1);
}
