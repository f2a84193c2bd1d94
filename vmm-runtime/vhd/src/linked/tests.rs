//! Files that stand for physical disks, and a sysfs made up.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rustix::fs::makedev;

use super::device::Devices;
use super::{Linked, LinkedInfo, descriptor, import, link_with, parse};
use crate::block::BlockDevice;
use crate::convert::ConvertOptions;
use crate::error::{OpenError, OpenErrorKind};
use crate::format::DiskType;
use crate::gate::Gate;
use crate::inspect::inspect;
use crate::operation::OperationError;
use crate::pool::Pool;
use crate::remove::remove;
use crate::vhd::{Access, Vhd};

const MIB: usize = 1 << 20;

struct Host {
    dir: tempfile::TempDir,
    pool: Pool,
    devices: Devices,
}

impl Host {
    /// A pool, and a disk of 3 MiB and a half.
    fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["pool", "by-id", "sys"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let pool = Pool::open(dir.path().join("pool")).unwrap();
        let devices = Devices::of_test(&dir.path().join("by-id"), &dir.path().join("sys"));
        let mut content = vec![0; 3 * MIB + MIB / 2];
        content[..512].fill(0xaa);
        content[2 * MIB + 5..2 * MIB + 100_000].fill(0xbb);
        content[3 * MIB + MIB / 2 - 1] = 0xcc;
        fs::write(dir.path().join("by-id/disk"), content).unwrap();
        Host { dir, pool, devices }
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("by-id/disk")
    }

    fn link(&self, device: &Path) -> Result<LinkedInfo, OperationError> {
        link_with(&self.pool, Path::new("a/linked"), device, &self.devices)
    }

    fn open(&self) -> Result<Linked, OpenError> {
        Linked::open_with(&self.pool, Path::new("a/linked"), &self.devices)
    }

    fn descriptor(&self) -> PathBuf {
        self.dir.path().join("pool/a/linked")
    }
}

#[test]
fn a_linked_disk_is_imported_and_not_changed() {
    let host = Host::new();
    let info = host.link(&host.disk()).unwrap();
    let expected = LinkedInfo {
        device: host.disk(),
        size: 3 * MIB as u64 + MIB as u64 / 2,
        serial: String::new(),
    };
    assert_eq!(info, expected);
    let content = fs::read(host.disk()).unwrap();
    for (disk_type, name) in [(DiskType::Fixed, "f.vhd"), (DiskType::Dynamic, "d.vhd")] {
        let source = host.open().unwrap();
        assert_eq!(source.info(), &expected);
        let mut options = ConvertOptions::new(disk_type);
        options.created = UNIX_EPOCH;
        let mut last = 0;
        let report = import(
            &source,
            Path::new("a/linked"),
            &host.pool,
            Path::new(name),
            Gate::open(),
            &options,
            &mut |progress| {
                assert_eq!(progress.total, content.len() as u64);
                last = progress.done;
                ControlFlow::Continue(())
            },
        )
        .unwrap();
        assert_eq!(last, content.len() as u64);
        // Pieces of 4 KiB: one, 25 from 2 MiB on, and the last one.
        let written = (1 + 25 + 1) * 4096;
        assert_eq!((report.size, report.written_bytes), (last, written));
        let disk = Vhd::open(&host.pool, name, Access::ReadOnly, Gate::open()).unwrap();
        assert_eq!(disk.disk_type(), disk_type);
        let mut found = vec![0; content.len()];
        disk.read_at(&mut found, 0).unwrap();
        assert!(found == content);
    }
    assert!(fs::read(host.disk()).unwrap() == content);
}

#[test]
fn it_is_nobody_elses_while_it_is_open() {
    let host = Host::new();
    host.link(&host.disk()).unwrap();
    let open = host.open().unwrap();
    assert_eq!(host.open().unwrap_err().kind(), OpenErrorKind::InUse);
    // By another name as well.
    let other = link_with(&host.pool, Path::new("b"), &host.disk(), &host.devices);
    match other {
        Err(OperationError::Open(error)) => assert_eq!(error.kind(), OpenErrorKind::InUse),
        result => panic!("{result:?}"),
    }
    drop(open);
    host.open().unwrap();
}

#[test]
fn another_disk_in_its_place_is_noticed() {
    let host = Host::new();
    host.link(&host.disk()).unwrap();
    let file = fs::File::options().write(true).open(host.disk()).unwrap();
    file.set_len(4 * MIB as u64).unwrap();
    let error = host.open().unwrap_err();
    assert!(error.to_string().contains("it is another one"), "{error}");
    fs::remove_file(host.disk()).unwrap();
    let error = host.open().unwrap_err();
    assert!(error.to_string().contains("by-id/disk"), "{error}");
}

#[test]
fn only_names_that_stay_are_linked() {
    let host = Host::new();
    let root = host.dir.path();
    fs::write(root.join("outside"), "x").unwrap();
    fs::create_dir(root.join("by-id/folder")).unwrap();
    fs::write(root.join("by-id/folder/disk"), "x").unwrap();
    for device in [
        "outside",
        "by-id",
        "by-id/",
        "by-id/../outside",
        "by-id/folder/disk",
        "by-id/folder/../disk",
        "by-id/./disk",
        "by-id//disk",
        "by-id/disk/",
        "by-id/folder",
    ] {
        // As it is written: joining would change it.
        let device = PathBuf::from(format!("{}/{device}", root.display()));
        let result = host.link(&device);
        let open = |error: &OpenError| error.kind() == OpenErrorKind::Unsupported;
        let refused = matches!(&result, Err(OperationError::Open(error)) if open(error));
        assert!(refused, "{device:?}: {result:?}");
    }
    assert!(!host.descriptor().exists());
    // On a real system a file is no disk, wherever it is.
    let system = Devices::system();
    for device in ["/etc/passwd", "/dev/disk/by-id/../../../etc/passwd"] {
        assert!(system.open(Path::new(device)).is_err(), "{device}");
    }
}

#[test]
fn it_is_no_disk_to_anybody_else() {
    let host = Host::new();
    let info = host.link(&host.disk()).unwrap();
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let error = Vhd::open(&host.pool, "a/linked", access, Gate::open()).unwrap_err();
        assert_eq!(error.kind(), OpenErrorKind::Unsupported);
        assert!(
            error.to_string().contains("can only be imported"),
            "{error}"
        );
    }
    let found = inspect(&host.pool, "a/linked").unwrap();
    assert_eq!(found.linked, Some(info.clone()));
    assert_eq!((found.virtual_size, found.parent), (info.size, None));
    let json = serde_json::to_value(inspect(&host.pool, "a/linked").unwrap()).unwrap();
    assert_eq!(json["linked"]["size"], info.size);
    remove(&host.pool, "a/linked").unwrap();
    let left = fs::read_dir(host.dir.path().join("pool/a"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
    assert!(host.disk().exists());
}

#[test]
fn a_descriptor_that_was_changed_is_refused() {
    let host = Host::new();
    host.link(&host.disk()).unwrap();
    let bytes = fs::read(host.descriptor()).unwrap();
    let info = parse(&bytes).unwrap();
    assert_eq!(descriptor::encode(&info).unwrap().as_bytes(), bytes);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            assert!(parse(&changed).is_err(), "byte {at}, bit {bit}");
        }
        assert!(parse(&bytes[..at]).is_err(), "{at}");
    }
    assert!(parse(&[&bytes[..], b"\n"].concat()).is_err());
    assert!(parse(&[&bytes[..], &[b'x'; 4096]].concat()).is_err());
    fs::write(host.descriptor(), &bytes[..100]).unwrap();
    assert_eq!(host.open().unwrap_err().kind(), OpenErrorKind::Corrupt);
    let error = inspect(&host.pool, "a/linked").unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::Corrupt);
    fs::write(host.descriptor(), "something else").unwrap();
    assert_eq!(host.open().unwrap_err().kind(), OpenErrorKind::Unsupported);
    let newer = b"paddock linked disk, version 2\nwhatever\n";
    let why = parse(newer).unwrap_err();
    assert!(why.contains("newer release"), "{why}");
}

#[test]
fn what_cannot_be_written_is_not() {
    let info = |device: &str, serial: &str| {
        descriptor::encode(&LinkedInfo {
            device: device.into(),
            size: 1,
            serial: serial.into(),
        })
    };
    assert!(info("/dev/disk/by-id/x", "WD 1 ").is_ok());
    for (device, serial) in [
        ("", ""),
        ("/dev/x\ny", ""),
        ("/dev/\u{e4}", ""),
        ("/dev/x", "a\nb"),
        ("/dev/x", "a\0"),
        (&"x".repeat(1025), ""),
    ] {
        assert!(info(device, serial).is_err(), "{device:?} {serial:?}");
    }
}

/// Makes the device `name` with the number `number` in a sysfs, with files.
fn device(root: &Path, name: &str, number: &str, files: &[(&str, &str)]) {
    let folder = root.join("devices").join(name);
    fs::create_dir_all(&folder).unwrap();
    for (file, text) in files.iter().chain(&[("dev", number)]) {
        let file = folder.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, format!("{text}\n")).unwrap();
    }
    symlink(&folder, root.join("sys").join(number)).unwrap();
}

#[test]
fn only_a_whole_disk_is_linked_and_known_by_its_number() {
    let host = Host::new();
    let root = host.dir.path();
    device(root, "sda", "8:0", &[("device/wwid", " naa.5000c5 ")]);
    device(root, "sda/sda1", "8:1", &[("partition", "1")]);
    device(root, "vda", "254:0", &[("serial", "web-root")]);
    device(root, "nvme", "259:0", &[("device/serial", "S3X\u{1}9 ")]);
    device(root, "sdb", "8:16", &[("serial", "")]);
    device(root, "sdc", "8:32", &[]);
    fs::create_dir_all(root.join("devices/sdc/device")).unwrap();
    fs::write(
        root.join("devices/sdc/device/vpd_pg80"),
        b"\0\x80\0\x04Z1F2",
    )
    .unwrap();
    device(root, "dm-0", "252:0", &[("dm/uuid", "LVM-abc")]);
    device(root, "dm-1", "252:1", &[("dm/uuid", "mpath-36005")]);
    device(root, "md0", "9:0", &[("md/level", "raid1")]);
    let serial = |major, minor| host.devices.whole_disk(makedev(major, minor));
    assert_eq!(serial(8, 0), Ok("naa.5000c5".to_owned()));
    assert_eq!(serial(254, 0), Ok("web-root".to_owned()));
    assert_eq!(serial(259, 0), Ok("S3X9".to_owned()));
    assert_eq!(serial(8, 16), Ok(String::new()));
    assert_eq!(serial(8, 32), Ok("Z1F2".to_owned()));
    assert_eq!(serial(252, 1), Ok("mpath-36005".to_owned()));
    for (major, minor, what) in [(8, 1, "partition"), (252, 0, "volume"), (9, 0, "array")] {
        let why = serial(major, minor).unwrap_err();
        assert!(why.contains(what), "{why}");
    }
}

#[test]
fn what_a_file_system_lies_on_is_followed_to_the_disks() {
    let host = Host::new();
    let root = host.dir.path();
    device(root, "sda", "8:0", &[]);
    device(root, "sda/sda1", "8:1", &[("partition", "1")]);
    device(root, "sdb", "8:16", &[]);
    device(root, "md0", "9:0", &[]);
    device(root, "dm-0", "252:0", &[]);
    for (of, slave) in [("md0", "sda/sda1"), ("md0", "sdb"), ("dm-0", "md0")] {
        let slaves = root.join("devices").join(of).join("slaves");
        fs::create_dir_all(&slaves).unwrap();
        let name = Path::new(slave).file_name().unwrap();
        symlink(root.join("devices").join(slave), slaves.join(name)).unwrap();
    }
    // It lies on itself: followed once.
    symlink(
        root.join("devices/dm-0"),
        root.join("devices/md0/slaves/dm-0"),
    )
    .unwrap();
    let layers = |major, minor| {
        let found = host.devices.layers(makedev(major, minor));
        let unique: BTreeSet<_> = found.iter().cloned().collect();
        assert_eq!(unique.len(), found.len());
        unique.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(layers(252, 0), ["252:0", "8:0", "8:1", "8:16", "9:0"]);
    assert_eq!(layers(8, 1), ["8:0", "8:1"]);
    assert_eq!(layers(8, 16), ["8:16"]);
    assert_eq!(layers(7, 7), ["7:7"]);
}
