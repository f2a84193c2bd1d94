//! Folders of disks, and what is done to them.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use paddock_vhd::{
    Access, BlockDevice, ChildOptions, ConvertOptions, CopyReport, CreateOptions, DiskSize,
    DiskType, FindingKind, Gate, MergeOptions, MergeReport, OpenError, OperationError,
    ParentSearch, Pool, Progress, ResizeOptions, ResizeReport, Vhd, check, convert, inspect, merge,
    remove, resize,
};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn go_on(progress: Progress) -> ControlFlow<()> {
    assert!(progress.done <= progress.total, "{progress:?}");
    ControlFlow::Continue(())
}

pub(crate) struct Folder {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) pool: Pool,
}

impl Folder {
    /// With a base, a child and a grandchild of 8 MiB, none of them new.
    pub(crate) fn new(base: DiskType) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let size = DiskSize::from_bytes(8 * MIB).unwrap();
        let disk = Vhd::create(&pool, "base.vhd", &CreateOptions::new(base, size)).unwrap();
        disk.write_at(&[1; 70_000], MIB).unwrap();
        disk.write_at(&[2; 5000], 5 * MIB).unwrap();
        disk.close().unwrap();
        let folder = Folder { dir, pool };
        let child = folder.child("child.vhd", "base.vhd");
        child.write_at(&[3; 1000], MIB + 100).unwrap();
        child.discard(5 * MIB, 5000).unwrap();
        child.close().unwrap();
        let grandchild = folder.child("g/grandchild.vhd", "child.vhd");
        grandchild.write_at(&[4; 10], 7 * MIB).unwrap();
        grandchild.write_zeroes(MIB + 500, 100).unwrap();
        grandchild.close().unwrap();
        folder
    }

    /// Without the grandchild, which keeps the child from being merged.
    pub(crate) fn pair(base: DiskType) -> Folder {
        let folder = Folder::new(base);
        remove(&folder.pool, "g/grandchild.vhd").unwrap();
        folder
    }

    pub(crate) fn child(&self, rel: &str, parent: &str) -> Vhd {
        let options = ChildOptions::new();
        Vhd::create_child(&self.pool, rel, &self.pool, parent, &options).unwrap()
    }

    pub(crate) fn path(&self, rel: &str) -> PathBuf {
        self.dir.path().join(rel)
    }

    pub(crate) fn open(&self, rel: &str, access: Access) -> Result<Vhd, OpenError> {
        Vhd::open(&self.pool, rel, access, Gate::open())
    }

    pub(crate) fn content(&self, rel: &str) -> Vec<u8> {
        let disk = self.open(rel, Access::ReadOnly).unwrap();
        let mut bytes = vec![0; disk.size() as usize];
        disk.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub(crate) fn is_clean(&self, rel: &str) {
        let report = check(&self.pool, rel, &ParentSearch::new(), &mut go_on).unwrap();
        assert_eq!(report.findings, []);
    }

    /// Where metadata lies behind blocks, what these leave is not given back.
    pub(crate) fn is_clean_but_for_leaks(&self, rel: &str) {
        let report = check(&self.pool, rel, &ParentSearch::new(), &mut go_on).unwrap();
        let leak = |kind: &FindingKind| *kind == FindingKind::SpaceLeaked;
        assert!(report.counts.keys().all(leak), "{:?}", report.findings);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn merge(&self, rel: &str) -> Result<MergeReport, OperationError> {
        let options = MergeOptions::default();
        merge(&self.pool, rel, Gate::open(), &options, &mut go_on)
    }

    pub(crate) fn convert(
        &self,
        rel: &str,
        target: &str,
        to: DiskType,
    ) -> Result<CopyReport, OperationError> {
        let options = ConvertOptions::new(to);
        convert(
            &self.pool,
            rel,
            &self.pool,
            target,
            Gate::open(),
            &options,
            &mut go_on,
        )
    }
}

pub(crate) const TYPES: [DiskType; 2] = [DiskType::Fixed, DiskType::Dynamic];

pub(crate) fn stop(_: Progress) -> ControlFlow<()> {
    ControlFlow::Break(())
}

impl Folder {
    pub(crate) fn touch(&self, rel: &str, time: SystemTime) {
        let file = std::fs::File::options().write(true).open(self.path(rel));
        file.unwrap().set_modified(time).unwrap();
    }

    pub(crate) fn modified(&self, rel: &str) -> SystemTime {
        self.path(rel).metadata().unwrap().modified().unwrap()
    }

    /// Makes the file's time of modification one that no clock has come to.
    pub(crate) fn now(&self, rel: &str) {
        self.touch(rel, UNIX_EPOCH + Duration::from_secs(4_000_000_000));
    }

    pub(crate) fn second(&self, rel: &str) -> u64 {
        self.modified(rel)
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
    }

    pub(crate) fn stop_merge(&self, rel: &str) {
        let options = MergeOptions::default();
        let stopped = merge(&self.pool, rel, Gate::open(), &options, &mut stop);
        assert!(matches!(stopped, Err(OperationError::Cancelled)));
    }
}

pub(crate) fn resized(
    folder: &Folder,
    rel: &str,
    size: u64,
    force: bool,
) -> Result<(), OperationError> {
    let options = ResizeOptions {
        size: DiskSize::from_bytes(size).unwrap(),
        force,
        search: ParentSearch::new(),
    };
    let old_size = inspect(&folder.pool, rel).unwrap().virtual_size;
    let report = resize(&folder.pool, rel, Gate::open(), &options, &mut go_on)?;
    let expected = ResizeReport {
        old_size,
        new_size: size,
    };
    assert_eq!(report, expected);
    assert_eq!(inspect(&folder.pool, rel).unwrap().virtual_size, size);
    Ok(())
}
