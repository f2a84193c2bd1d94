//! Disks as other programs write them, made of ours by changing the bytes in
//! which they differ.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

use std::ops::ControlFlow;
use std::path::PathBuf;

use paddock_vhd::{
    Access, BlockDevice, ChildOptions, CreateOptions, DiskSize, DiskType, FindingKind, Gate,
    ParentSearch, Pool, Progress, ResizeOptions, Vhd, check, inspect, resize,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 5 * MIB + 512;

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

struct Folder {
    dir: tempfile::TempDir,
    pool: Pool,
}

impl Folder {
    /// With a disk that holds something, and a child of it if one is asked
    /// for: `disk.vhd` is the one or the other.
    fn new(disk_type: DiskType) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let folder = Folder { dir, pool };
        let size = DiskSize::from_bytes(SIZE).unwrap();
        let (name, of) = match disk_type {
            DiskType::Differencing => ("base.vhd", DiskType::Dynamic),
            other => ("disk.vhd", other),
        };
        let disk = Vhd::create(&folder.pool, name, &CreateOptions::new(of, size)).unwrap();
        disk.write_at(&[1; 5000], 100).unwrap();
        disk.write_at(&[2; 512], SIZE - 512).unwrap();
        disk.close().unwrap();
        if disk_type == DiskType::Differencing {
            let (pool, options) = (&folder.pool, ChildOptions::new());
            let disk = Vhd::create_child(pool, "disk.vhd", pool, "base.vhd", &options).unwrap();
            disk.write_at(&[3; 512], 3 * MIB).unwrap();
            disk.close().unwrap();
        }
        folder
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk.vhd")
    }

    /// Changes the file.
    fn edit(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path()).unwrap();
        change(&mut bytes);
        std::fs::write(self.path(), bytes).unwrap();
    }

    /// Changes both footers, and makes their sums right.
    fn edit_footers(&self, change: impl Fn(&mut [u8])) {
        self.edit(|bytes| {
            let tail = bytes.len() - 512;
            for at in [0, tail] {
                let footer = &mut bytes[at..at + 512];
                if footer.starts_with(b"conectix") {
                    change(footer);
                    seal(footer, 64);
                }
            }
        });
    }

    fn open(&self, access: Access) -> Vhd {
        Vhd::open(&self.pool, "disk.vhd", access, Gate::open()).unwrap()
    }

    fn content(&self) -> Vec<u8> {
        let disk = self.open(Access::ReadOnly);
        let mut bytes = vec![0; disk.size() as usize];
        disk.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn kinds(&self) -> Vec<FindingKind> {
        let report = check(&self.pool, "disk.vhd", &ParentSearch::new(), &mut go_on).unwrap();
        report.counts.into_keys().collect()
    }

    /// It shows what it did, takes writes, and grows.
    fn works(&self, mut content: Vec<u8>) {
        assert!(self.content() == content);
        let disk = self.open(Access::ReadWrite);
        for at in [0, 2 * MIB - 100, SIZE - 1000] {
            disk.write_at(&[9; 1000], at).unwrap();
            content[at as usize..at as usize + 1000].fill(9);
        }
        disk.close().unwrap();
        assert!(self.content() == content);
        let options = ResizeOptions {
            size: DiskSize::from_bytes(7 * MIB).unwrap(),
            force: false,
            search: ParentSearch::new(),
        };
        resize(&self.pool, "disk.vhd", Gate::open(), &options, &mut go_on).unwrap();
        content.resize(7 * MIB as usize, 0);
        assert!(self.content() == content);
        assert_eq!(self.kinds(), []);
    }
}

/// The ones' complement of the sum of all bytes but its own.
fn seal(bytes: &mut [u8], field: usize) {
    bytes[field..field + 4].fill(0);
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    bytes[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}

const TYPES: [DiskType; 3] = [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing];

/// Virtual PC before 2004.
#[test]
fn a_footer_may_have_511_bytes() {
    for disk_type in TYPES {
        let folder = Folder::new(disk_type);
        let content = folder.content();
        folder.edit(|bytes| bytes.truncate(bytes.len() - 1));
        assert_eq!(folder.kinds(), []);
        folder.works(content);
    }
}

/// The room for a locator is in sectors by the specification and in bytes in
/// what most write, and nothing depends on it.
#[test]
fn the_room_of_a_locator_may_be_in_sectors_or_bytes() {
    for space in [0, 1, 2, 511, 512, 1024, 4096, u32::MAX] {
        let folder = Folder::new(DiskType::Differencing);
        let content = folder.content();
        folder.edit(|bytes| {
            let header = &mut bytes[512..1536];
            for slot in [576, 600] {
                assert!(header[slot..].starts_with(b"W2"));
                header[slot + 4..slot + 8].copy_from_slice(&u32::to_be_bytes(space));
            }
            seal(header, 36);
        });
        assert_eq!(folder.kinds(), [], "{space}");
        folder.works(content);
    }
}

/// Others go by the geometry; for us the size is what rules.
#[test]
fn the_size_counts_whatever_the_geometry_is() {
    for disk_type in TYPES {
        for geometry in [[0; 4], [0, 50, 4, 17], [0xff, 0xff, 16, 255], [0xff; 4]] {
            let folder = Folder::new(disk_type);
            let content = folder.content();
            folder.edit_footers(|footer| footer[56..60].copy_from_slice(&geometry));
            assert_eq!(folder.kinds(), [FindingKind::GeometryDiffers]);
            assert_eq!(folder.open(Access::ReadOnly).size(), SIZE);
            folder.works(content);
        }
    }
}

/// Virtual PC, Virtual Server, Hyper-V, Xen's tapdisk, QEMU, disk2vhd, Azure.
#[test]
fn disks_of_all_creators_are_used_alike() {
    let creators: [(&[u8; 4], u32, &[u8; 4], &str); 8] = [
        (b"vpc ", 0x0005_0003, b"Wi2k", "vpc"),
        (b"vpc ", 0x0001_0000, b"Mac ", "vpc"),
        (b"vs  ", 0x0001_0000, b"Wi2k", "vs"),
        (b"win ", 0x0006_0003, b"Wi2k", "win"),
        (b"tap\0", 0x0001_0003, &[0; 4], "tap"),
        (b"qemu", 0x0005_0003, b"Wi2k", "qemu"),
        (b"d2v ", 0x0001_0000, b"Wi2k", "d2v"),
        (b"wa\0\0", 0x0007_0000, b"Wi2k", "wa"),
    ];
    for disk_type in TYPES {
        for (creator, version, host, name) in creators {
            let folder = Folder::new(disk_type);
            let content = folder.content();
            folder.edit_footers(|footer| {
                // The temporary bit, and one that the specification reserves.
                footer[8..12].copy_from_slice(&3u32.to_be_bytes());
                footer[28..32].copy_from_slice(creator);
                footer[32..36].copy_from_slice(&version.to_be_bytes());
                footer[36..40].copy_from_slice(host);
                // Xen's hidden byte.
                footer[85] = u8::from(creator == b"tap\0");
            });
            let info = inspect(&folder.pool, "disk.vhd").unwrap();
            assert_eq!((&info.creator[..], info.virtual_size), (name, SIZE));
            assert_eq!(folder.kinds(), []);
            folder.works(content);
            // What is unknown to us is still there.
            let bytes = std::fs::read(folder.path()).unwrap();
            let footer = &bytes[bytes.len() - 512..];
            assert_eq!(footer[11], 3);
            assert_eq!(footer[85], u8::from(creator == b"tap\0"));
        }
    }
}
