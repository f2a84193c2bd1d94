//! Random sequences of all operations on families of disks, compared with
//! vectors of bytes: a hundredth as many steps as there are requests to disks in
//! the crate's own tests, and on top of those, since each looks at all disks of a
//! family. `PADDOCK_MODEL_STEPS` asks for another number than 40,000 of those
//! requests, and so than 400 of these steps.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use paddock_vhd::{
    Access, BlockDevice, ChildOptions, CloneOptions, CompactOptions, ConvertOptions, CreateOptions,
    DiskSize, DiskType, ExtentKind, FindingKind, Gate, ImportOptions, MergeOptions, OperationError,
    ParentSearch, Pool, Progress, ResizeOptions, Vhd, check, clone_disk, commit_undo, compact,
    convert, discard_repair_journal, discard_undo, export_raw, import_raw, inspect, merge, remove,
    repair, repair_in_place, reparent, resize, start_undo, undo_repair,
};

const USUAL_STEPS: usize = 400;
/// After so many steps another family begins.
const STEPS_OF_A_FAMILY: usize = 80;
const MOST_DISKS: usize = 6;
const LONGEST_CHAIN: usize = 4;
const MIB: u64 = 1 << 20;

fn go_on(progress: Progress) -> ControlFlow<()> {
    assert!(progress.done <= progress.total, "{progress:?}");
    ControlFlow::Continue(())
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn range(&mut self, size: u64) -> Range<u64> {
        let unit = [1, 512, 4096][self.below(3) as usize];
        let longest = [2000, 70_000, MIB][self.below(3) as usize];
        let start = self.below(size) / unit * unit;
        let len = (1 + self.below(longest)).next_multiple_of(unit);
        start..(start + len).min(size)
    }

    fn size(&mut self) -> u64 {
        MIB + 512 * self.below(7 * MIB / 512)
    }
}

struct Disk {
    rel: PathBuf,
    disk_type: DiskType,
    content: Vec<u8>,
    parent: Option<PathBuf>,
}

struct Family {
    dir: tempfile::TempDir,
    pool: Pool,
    disks: Vec<Disk>,
    random: Random,
    names: u32,
}

impl Family {
    fn new(seed: u64) -> Family {
        // In memory where that is possible: syncs would take most of the time.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.unwrap();
        Family {
            pool: Pool::open(dir.path()).unwrap(),
            dir,
            disks: Vec::new(),
            random: Random(seed),
            names: 0,
        }
    }

    fn name(&mut self, ending: &str) -> PathBuf {
        self.names += 1;
        let folder = ["", "a/", "b/"][self.random.below(3) as usize];
        format!("{folder}{}.{ending}", self.names).into()
    }

    fn any(&mut self) -> usize {
        self.random.below(self.disks.len() as u64) as usize
    }

    fn children(&self, of: usize) -> Vec<usize> {
        let rel = &self.disks[of].rel;
        (0..self.disks.len())
            .filter(|&child| self.disks[child].parent.as_ref() == Some(rel))
            .collect()
    }

    fn parent(&self, of: usize) -> Option<usize> {
        let parent = self.disks[of].parent.as_ref()?;
        self.disks.iter().position(|disk| disk.rel == *parent)
    }

    fn depth(&self, of: usize) -> usize {
        self.parent(of).map_or(1, |parent| 1 + self.depth(parent))
    }

    fn open(&self, rel: &Path, access: Access) -> Vhd {
        Vhd::open(&self.pool, rel, access, Gate::open()).unwrap()
    }

    fn size(&mut self) -> DiskSize {
        DiskSize::from_bytes(self.random.size()).unwrap()
    }

    /// One step. Returns the name of what was done.
    fn step(&mut self) -> &'static str {
        if self.disks.is_empty() {
            self.create();
            return "create";
        }
        let one = self.any();
        let leaf = self.children(one).is_empty();
        match self.random.below(24) {
            0 if self.disks.len() < MOST_DISKS => {
                self.create();
                "create"
            }
            1..4 if self.disks.len() < MOST_DISKS && self.depth(one) < LONGEST_CHAIN => {
                self.create_child(one);
                "create a child"
            }
            4 | 5 | 18 if leaf && self.disks[one].parent.is_some() => self.merge(one),
            6 if self.disks.len() < MOST_DISKS => {
                self.convert(one);
                "convert"
            }
            7..9 => self.resize(one),
            9 => {
                self.move_and_reparent(one);
                "move and reconnect"
            }
            10 | 11 if leaf && self.depth(one) < LONGEST_CHAIN => self.undo(one),
            12 if self.disks[one].disk_type == DiskType::Dynamic => {
                self.compact(one, leaf);
                "compact"
            }
            13 if leaf && self.disks.len() > 2 => {
                remove(&self.pool, &self.disks[one].rel).unwrap();
                self.disks.remove(one);
                "remove"
            }
            14 if self.disks.len() < MOST_DISKS => {
                self.clone(one);
                "clone"
            }
            15 if self.disks.len() < MOST_DISKS => {
                self.export_and_import(one);
                "export and import"
            }
            16 | 17 if leaf && self.disks[one].disk_type != DiskType::Fixed => {
                self.repair(one);
                "repair"
            }
            _ if leaf => {
                let rel = self.disks[one].rel.clone();
                let mut disk = self.open(&rel, Access::ReadWrite);
                let mut content = std::mem::take(&mut self.disks[one].content);
                disk = self.use_it(disk, &rel, &mut content);
                disk.close().unwrap();
                self.disks[one].content = content;
                "use"
            }
            _ => "nothing",
        }
    }

    fn create(&mut self) {
        let disk_type = [DiskType::Fixed, DiskType::Dynamic][self.random.below(2) as usize];
        let (rel, size) = (self.name("vhd"), self.size());
        let options = CreateOptions::new(disk_type, size);
        let disk = Vhd::create(&self.pool, &rel, &options).unwrap();
        let mut content = vec![0; size.bytes() as usize];
        self.use_it(disk, &rel, &mut content).close().unwrap();
        self.disks.push(Disk {
            rel,
            disk_type,
            content,
            parent: None,
        });
    }

    fn create_child(&mut self, parent: usize) {
        let rel = self.name("vhd");
        let (content, parent) = {
            let parent = &self.disks[parent];
            (parent.content.clone(), parent.rel.clone())
        };
        let options = ChildOptions::new();
        let disk = Vhd::create_child(&self.pool, &rel, &self.pool, &parent, &options).unwrap();
        disk.close().unwrap();
        self.disks.push(Disk {
            rel,
            disk_type: DiskType::Differencing,
            content,
            parent: Some(parent),
        });
    }

    /// Some requests to an open disk, which may be closed and opened again in
    /// between.
    fn use_it(&mut self, mut disk: Vhd, rel: &Path, content: &mut [u8]) -> Vhd {
        assert_eq!(disk.size(), content.len() as u64);
        for _ in 0..1 + self.random.below(12) {
            let range = self.random.range(content.len() as u64);
            let (start, len) = (range.start, range.end - range.start);
            let span = range.start as usize..range.end as usize;
            match self.random.below(12) {
                0..4 => {
                    let byte = 1 + self.random.below(255) as u8;
                    content[span.clone()].fill(byte);
                    disk.write_at(&content[span], start).unwrap();
                }
                4 => {
                    disk.write_zeroes(start, len).unwrap();
                    content[span].fill(0);
                }
                5 => {
                    disk.discard(start, len).unwrap();
                    content[span].fill(0);
                }
                6 => {
                    // Whole blocks.
                    let start = start / (2 * MIB) * 2 * MIB;
                    let len = (4 * MIB).min(content.len() as u64 - start);
                    disk.discard(start, len).unwrap();
                    content[start as usize..][..len as usize].fill(0);
                }
                7 => disk.flush().unwrap(),
                8 => {
                    disk.close().unwrap();
                    disk = self.open(rel, Access::ReadWrite);
                }
                9 => {
                    for extent in disk.block_status(start, len).unwrap() {
                        let end = (extent.offset + extent.len) as usize;
                        let span = extent.offset as usize..end;
                        let zero = || content[span.clone()].iter().all(|&byte| byte == 0);
                        assert!(extent.kind == ExtentKind::Data || zero());
                    }
                }
                _ => {
                    let mut found = vec![0xaa; span.len()];
                    disk.read_at(&mut found, start).unwrap();
                    assert!(found == content[span], "{range:?} reads wrong");
                }
            }
        }
        disk
    }

    fn merge(&mut self, child: usize) -> &'static str {
        let Some(parent) = self.parent(child) else {
            panic!("it has no parent");
        };
        let fits = self.disks[parent].content.len() == self.disks[child].content.len();
        let alone = self.children(parent).len() == 1;
        let rel = self.disks[child].rel.clone();
        let run = |stop: u32| {
            let mut left = stop;
            let mut progress = |_| {
                left = left.saturating_sub(1);
                match left {
                    0 => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            };
            let options = MergeOptions::default();
            merge(&self.pool, &rel, Gate::open(), &options, &mut progress)
        };
        if !fits || !alone {
            assert!(matches!(run(u32::MAX), Err(OperationError::Refused { .. })));
            return "refuse to merge";
        }
        let stop = self.random.below(6) as u32;
        match run(stop) {
            Ok(_) => {}
            Err(OperationError::Cancelled) => drop(run(u32::MAX).unwrap()),
            Err(error) => panic!("{error}"),
        }
        let content = std::mem::take(&mut self.disks[child].content);
        self.disks[parent].content = content;
        self.disks.remove(child);
        "merge"
    }

    fn convert(&mut self, of: usize) {
        let rel = self.name("vhd");
        let disk_type = [DiskType::Fixed, DiskType::Dynamic][self.random.below(2) as usize];
        let options = ConvertOptions::new(disk_type);
        let source = &self.disks[of];
        convert(
            &self.pool,
            &source.rel,
            &self.pool,
            &rel,
            Gate::open(),
            &options,
            &mut go_on,
        )
        .unwrap();
        let content = source.content.clone();
        self.disks.push(Disk {
            rel,
            disk_type,
            content,
            parent: None,
        });
    }

    fn clone(&mut self, of: usize) {
        let rel = self.name("vhd");
        let (options, source) = (CloneOptions::new(), &self.disks[of]);
        let (pool, gate) = (&self.pool, Gate::open());
        clone_disk(pool, &source.rel, pool, &rel, gate, &options, &mut go_on).unwrap();
        self.disks.push(Disk {
            rel,
            disk_type: source.disk_type,
            content: source.content.clone(),
            parent: source.parent.clone(),
        });
    }

    fn export_and_import(&mut self, of: usize) {
        let (raw, rel) = (self.name("raw"), self.name("vhd"));
        let disk_type = [DiskType::Fixed, DiskType::Dynamic][self.random.below(2) as usize];
        let (pool, search) = (&self.pool, ParentSearch::new());
        let source = &self.disks[of];
        export_raw(
            pool,
            &source.rel,
            pool,
            &raw,
            Gate::open(),
            &search,
            &mut go_on,
        )
        .unwrap();
        let path = self.dir.path().join(&raw);
        assert!(std::fs::read(&path).unwrap() == source.content);
        let options = ImportOptions {
            disk_type,
            size: None,
            sha256: None,
            unique_id: None,
            gate: Gate::open(),
        };
        let image = pool.open_read(&raw).unwrap();
        import_raw(&image, pool, &rel, &options, &mut go_on).unwrap();
        std::fs::remove_file(path).unwrap();
        self.disks.push(Disk {
            rel,
            disk_type,
            content: source.content.clone(),
            parent: None,
        });
    }

    /// A damage that costs nothing, into a new disk and where it is.
    fn repair(&mut self, of: usize) {
        let new = self.name("vhd");
        let (pool, rel) = (&self.pool, &self.disks[of].rel);
        let damage = || {
            let path = self.dir.path().join(rel);
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(&[0xa5; 8], 100).unwrap();
        };
        damage();
        repair(
            pool,
            rel,
            &new,
            Gate::open(),
            &ParentSearch::new(),
            &mut go_on,
        )
        .unwrap();
        // It has the identity of the other one.
        let copy = self.open(&new, Access::ReadOnly);
        let mut found = vec![0xaa; self.disks[of].content.len()];
        copy.read_at(&mut found, 0).unwrap();
        assert!(found == self.disks[of].content);
        drop(copy);
        remove(pool, &new).unwrap();
        repair_in_place(pool, rel, Gate::open(), &mut go_on).unwrap();
        self.is_clean(rel);
        undo_repair(pool, rel, Gate::open()).unwrap();
        let report = check(pool, rel, &ParentSearch::new(), &mut go_on).unwrap();
        assert!(report.counts.contains_key(&FindingKind::FooterCopyDamaged));
        repair_in_place(pool, rel, Gate::open(), &mut go_on).unwrap();
        discard_repair_journal(pool, rel).unwrap();
    }

    fn resize(&mut self, of: usize) -> &'static str {
        let size = self.random.size();
        let run = |force| {
            let options = ResizeOptions {
                size: DiskSize::from_bytes(size).unwrap(),
                force,
                search: ParentSearch::new(),
            };
            let rel = &self.disks[of].rel;
            resize(&self.pool, rel, Gate::open(), &options, &mut go_on)
        };
        if !self.children(of).is_empty() {
            return "nothing";
        }
        let content = &self.disks[of].content;
        let cut = content.get(size as usize..).unwrap_or_default();
        let below = self
            .parent(of)
            .map(|parent| &self.disks[parent].content[..]);
        let uncovered =
            below.and_then(|below| below.get(content.len()..below.len().min(size as usize)));
        let loses = cut
            .iter()
            .chain(uncovered.unwrap_or_default())
            .any(|&byte| byte != 0);
        if loses {
            assert!(matches!(run(false), Err(OperationError::Refused { .. })));
            if size > content.len() as u64 {
                return "refuse to grow";
            }
        }
        run(loses).unwrap();
        self.disks[of].content.resize(size as usize, 0);
        if loses { "resize by force" } else { "resize" }
    }

    fn move_and_reparent(&mut self, of: usize) {
        let rel = self.name("vhd");
        let old = self.disks[of].rel.clone();
        let path = |rel: &Path| self.dir.path().join(rel);
        if let Some(folder) = path(&rel).parent() {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::rename(path(&old), path(&rel)).unwrap();
        let children = self.children(of);
        let search = ParentSearch::new();
        if let Some(parent) = self.disks[of].parent.clone() {
            reparent(&self.pool, &rel, &self.pool, &parent, Gate::open(), &search).unwrap();
        }
        self.disks[of].rel = rel.clone();
        for child in children {
            reparent(
                &self.pool,
                &self.disks[child].rel,
                &self.pool,
                &rel,
                Gate::open(),
                &search,
            )
            .unwrap();
            self.disks[child].parent = Some(rel.clone());
        }
    }

    fn undo(&mut self, of: usize) -> &'static str {
        let undo = self.name("vud");
        let rel = self.disks[of].rel.clone();
        let options = ChildOptions::new();
        let disk = start_undo(&self.pool, &undo, &self.pool, &rel, &options).unwrap();
        let mut content = self.disks[of].content.clone();
        self.use_it(disk, &undo, &mut content).close().unwrap();
        self.is_clean(&undo);
        if self.random.below(2) == 0 {
            discard_undo(&self.pool, &undo).unwrap();
            return "discard an undo disk";
        }
        let options = MergeOptions::default();
        commit_undo(&self.pool, &undo, Gate::open(), &options, &mut go_on).unwrap();
        self.disks[of].content = content;
        "commit an undo disk"
    }

    fn compact(&mut self, of: usize, leaf: bool) {
        let mut free = Vec::new();
        let content = &mut self.disks[of].content;
        if leaf && self.random.below(2) == 0 {
            let range = self.random.range(content.len() as u64);
            content[range.start as usize..range.end as usize].fill(0);
            free.push(range);
        }
        let options = CompactOptions {
            free: Some(&|_| Ok(free.clone())),
            defragment: self.random.below(2) == 0,
            ..CompactOptions::default()
        };
        compact(
            &self.pool,
            &self.disks[of].rel,
            Gate::open(),
            &options,
            &mut go_on,
        )
        .unwrap();
    }

    fn is_clean(&self, rel: &Path) {
        let report = check(&self.pool, rel, &ParentSearch::new(), &mut go_on).unwrap();
        let leaked = |kind: &FindingKind| *kind == FindingKind::SpaceLeaked;
        assert!(report.counts.keys().all(leaked), "{:?}", report.findings);
    }

    /// All disks show what they should, and none of them has a flaw.
    fn check(&self) {
        for disk in &self.disks {
            self.is_clean(&disk.rel);
            let open = self.open(&disk.rel, Access::ReadOnly);
            let mut found = vec![0xaa; disk.content.len()];
            assert_eq!(open.size(), disk.content.len() as u64);
            open.read_at(&mut found, 0).unwrap();
            assert!(found == disk.content, "{}", disk.rel.display());
            assert_eq!(open.disk_type(), disk.disk_type);
        }
    }

    /// No operation left anything behind.
    fn nothing_else_is_there(&self) {
        let mut expected = 0;
        for folder in ["", "a", "b"] {
            let entries = std::fs::read_dir(self.dir.path().join(folder));
            for entry in entries.into_iter().flatten() {
                let path = entry.unwrap().path();
                let name = path.to_str().unwrap();
                if path.is_file() && !name.ends_with(".lock") {
                    let rel = path.strip_prefix(self.dir.path()).unwrap();
                    let known = self.disks.iter().any(|disk| disk.rel == rel);
                    assert!(known, "{name} was left");
                    expected += 1;
                }
            }
        }
        assert_eq!(expected, self.disks.len());
    }
}

#[test]
fn families_of_disks_do_what_vectors_do() {
    let steps = std::env::var("PADDOCK_MODEL_STEPS").ok();
    let steps = steps.map_or(USUAL_STEPS, |steps| steps.parse::<usize>().unwrap() / 100);
    let mut done = std::collections::BTreeMap::new();
    for seed in 0..steps.div_ceil(STEPS_OF_A_FAMILY) {
        let mut family = Family::new(seed as u64);
        for step in 0..STEPS_OF_A_FAMILY.min(steps) {
            // Shown when it fails.
            print!("family {seed}, step {step}: ");
            let what = family.step();
            println!("{what}, {} disks", family.disks.len());
            *done.entry(what).or_insert(0) += 1;
            family.check();
        }
        family.nothing_else_is_there();
        let chain = family.disks.iter().map(|disk| &disk.rel);
        for rel in chain {
            inspect(&family.pool, rel).unwrap();
        }
    }
    println!("{done:?}");
    if steps >= USUAL_STEPS {
        for what in [
            "create",
            "create a child",
            "merge",
            "refuse to merge",
            "convert",
            "clone",
            "export and import",
            "repair",
            "resize",
            "resize by force",
            "move and reconnect",
            "commit an undo disk",
            "discard an undo disk",
            "compact",
            "remove",
            "use",
        ] {
            assert!(
                done.get(what).is_some_and(|count| *count >= 3),
                "{what}: {done:?}"
            );
        }
    }
}
