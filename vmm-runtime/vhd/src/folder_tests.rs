//! Whole operations that crashes cut off: what is left of the files, and of
//! the names that they were given and lost.

use std::ffi::OsStr;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::copying::is_zero;
use crate::image::random::Random;
use crate::storage::fault::{Content, Fault};
use crate::storage::trace::{Folder, Skip, Trace, read_folder, write_folder};
use crate::survey::{Left, Part, survey_seeds};
use crate::{
    Access, BlockDevice, ChildOptions, CloneOptions, CompactOptions, ConvertOptions, CreateOptions,
    DiskSize, DiskType, Gate, ImportOptions, MergeOptions, ParentSearch, Pool, Progress,
    ResizeOptions, Vhd, check, clone_disk, compact, convert, import_raw, merge, remove,
    repair_in_place, resize, undo_repair,
};

const MIB: u64 = 1 << 20;
const TOLD: &str = "the failure was not told";

type Outcome<T> = Result<T, String>;

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A folder on a file system in memory, if there is one: what it holds is not
/// synced, and there is much of it.
fn folder(files: &Folder, skip: Option<Skip>) -> (tempfile::TempDir, Pool, Trace) {
    let memory = Path::new("/dev/shm");
    let dir = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    let dir = dir.unwrap();
    write_folder(files, dir.path());
    let trace = Trace::of(dir.path(), skip);
    let pool = Pool::open(dir.path()).unwrap();
    (dir, pool, trace)
}

/// An operation, and what there is before it.
struct Operation<'a> {
    before: Folder,
    run: &'a dyn Fn(&Pool) -> Outcome<()>,
    /// Judges what is left; may go on with it.
    look: &'a dyn Fn(&Pool) -> Outcome<Left>,
}

impl Operation<'_> {
    fn left_of(&self, files: &Folder) -> Outcome<Left> {
        let (_dir, pool, _trace) = folder(files, None);
        (self.look)(&pool)
    }

    /// Lets it be cut off at each of its operations on files and names, and
    /// lets each of its calls fail: then it is looked at what that leaves, in
    /// the running system and after a crash, and the same once it was begun
    /// again. Returns how many times.
    fn survey(&self, seed: u64, skip: Option<Skip>) -> Outcome<usize> {
        let mut random = Random::new(seed);
        let (_dir, pool, trace) = folder(&self.before, skip);
        (self.run)(&pool)?;
        let (len, (calls, _)) = (trace.len(), trace.calls());
        let mut looks = 0;
        for point in (0..=len).chain([len; 4]) {
            let left = self.left_of(&trace.crash(point, &mut random));
            let at = |what| format!("seed {seed}, crash after {point} of {len}: {what}");
            if left.map_err(at)? == Left::Old && point == len {
                return Err(at("it is not durable when it is over".to_owned()));
            }
            looks += 1;
        }
        for call in 0..calls {
            for fault in [Fault::Io, Fault::NoSpace] {
                looks += self
                    .survey_failure(call, fault, skip, &mut random)
                    .map_err(|what| format!("seed {seed}, {fault:?} at call {call}: {what}"))?;
            }
        }
        Ok(looks)
    }

    fn survey_failure(
        &self,
        call: u64,
        fault: Fault,
        skip: Option<Skip>,
        random: &mut Random,
    ) -> Outcome<usize> {
        let (dir, pool, trace) = folder(&self.before, skip);
        trace.fail(call, fault, random.next());
        let failed = (self.run)(&pool).is_err();
        // For lack of space there may be another way.
        if !failed && fault == Fault::Io && trace.calls().1 > 0 {
            return Err(TOLD.to_owned());
        }
        self.left_of(&read_folder(dir.path()))?;
        let len = trace.len();
        let left = self.left_of(&trace.crash(len, random));
        let left = left.map_err(|what| format!("after a crash: {what}"))?;
        if !failed {
            return match left {
                Left::New => Ok(2),
                Left::Old => Err("it is not durable when it is over".to_owned()),
            };
        }
        // On the same boot, with what is in the page cache. It may be refused
        // for being done.
        let again = (self.run)(&pool);
        let at = |what| format!("begun again, which gave {again:?}: {what}");
        if self.left_of(&read_folder(dir.path())).map_err(at)? == Left::Old {
            return Err(at("it is not done".to_owned()));
        }
        let end = trace.len();
        for point in len..=end {
            let left = self.left_of(&trace.crash(point, random)).map_err(at)?;
            if left == Left::Old && point == end && again.is_ok() {
                return Err(at("it is not durable when it is over".to_owned()));
            }
        }
        Ok(2 + end - len)
    }
}

fn pattern(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    for _ in 0..3 {
        let range = random.range(MIB, 100_000);
        let data = random.bytes(range.end - range.start);
        bytes[range.start as usize..range.end as usize].copy_from_slice(&data);
    }
    bytes
}

fn options(disk_type: DiskType) -> CreateOptions {
    CreateOptions::new(disk_type, DiskSize::MIN)
}

fn an_hour_ago() -> SystemTime {
    SystemTime::now() - Duration::from_secs(3600)
}

/// What is in a folder once `make` has filled it.
fn made(make: impl FnOnce(&Pool)) -> Folder {
    let (dir, pool, _trace) = folder(&Folder::new(), None);
    make(&pool);
    read_folder(dir.path())
}

fn make(pool: &Pool, rel: &str, disk_type: DiskType, content: &[u8]) {
    let disk = Vhd::create(pool, rel, &options(disk_type)).unwrap();
    disk.write_at(content, 0).unwrap();
    disk.close().unwrap();
}

fn content(pool: &Pool, rel: &str, access: Access) -> Outcome<Vec<u8>> {
    let disk = Vhd::open(pool, rel, access, Gate::open()).map_err(told)?;
    let mut bytes = vec![0; disk.size() as usize];
    disk.read_at(&mut bytes, 0).map_err(told)?;
    disk.close().map_err(told)?;
    Ok(bytes)
}

fn is_there(pool: &Pool, rel: &str) -> bool {
    pool.path().join(rel).exists()
}

/// Judges a disk that is new as a whole or not there.
fn new_or_absent(pool: &Pool, rel: &str, expected: &[u8]) -> Outcome<Left> {
    if !is_there(pool, rel) {
        return Ok(Left::Old);
    }
    match content(pool, rel, Access::ReadWrite)? == expected {
        true => Ok(Left::New),
        false => Err(format!("{rel} shows something else")),
    }
}

type Scenario = fn(u64, Option<Skip>) -> Outcome<usize>;

fn creating(seed: u64, skip: Option<Skip>) -> Outcome<usize> {
    let disk_type = [DiskType::Dynamic, DiskType::Fixed][seed as usize % 2];
    let run = |pool: &Pool| {
        let disk = Vhd::create(pool, "a.vhd", &options(disk_type)).map_err(told)?;
        disk.close().map_err(told)
    };
    let look = |pool: &Pool| new_or_absent(pool, "a.vhd", &vec![0; MIB as usize]);
    let before = Folder::new();
    Operation {
        before,
        run: &run,
        look: &look,
    }
    .survey(seed, skip)
}

fn importing(seed: u64, skip: Option<Skip>) -> Outcome<usize> {
    let bytes = pattern(&mut Random::new(seed));
    let source = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(source.path(), &bytes).unwrap();
    let options = ImportOptions {
        disk_type: [DiskType::Dynamic, DiskType::Fixed][seed as usize % 2],
        size: Some(DiskSize::MIN),
        sha256: None,
        unique_id: None,
        gate: Gate::open(),
    };
    let run = |pool: &Pool| {
        let source = File::open(source.path()).unwrap();
        let imported = import_raw(&source, pool, "a.vhd", &options, &mut go_on);
        imported.map(drop).map_err(told)
    };
    let look = |pool: &Pool| new_or_absent(pool, "a.vhd", &bytes);
    let before = Folder::new();
    Operation {
        before,
        run: &run,
        look: &look,
    }
    .survey(seed, skip)
}

/// A disk and what it shows.
fn one_disk(seed: u64) -> (Folder, Vec<u8>) {
    let bytes = pattern(&mut Random::new(seed));
    let before = made(|pool| make(pool, "a.vhd", DiskType::Dynamic, &bytes));
    (before, bytes)
}

fn converting(seed: u64, skip: Option<Skip>) -> Outcome<usize> {
    let (before, bytes) = one_disk(seed);
    let options = ConvertOptions::new([DiskType::Fixed, DiskType::Dynamic][seed as usize % 2]);
    let run = |pool: &Pool| {
        let done = convert(
            pool,
            "a.vhd",
            pool,
            "b.vhd",
            Gate::open(),
            &options,
            &mut go_on,
        );
        done.map(drop).map_err(told)
    };
    let look = |pool: &Pool| new_or_absent(pool, "b.vhd", &bytes);
    Operation {
        before,
        run: &run,
        look: &look,
    }
    .survey(seed, skip)
}

fn cloning(seed: u64, skip: Option<Skip>) -> Outcome<usize> {
    let (before, bytes) = one_disk(seed);
    let options = CloneOptions::new();
    let run = |pool: &Pool| {
        let done = clone_disk(
            pool,
            "a.vhd",
            pool,
            "b.vhd",
            Gate::open(),
            &options,
            &mut go_on,
        );
        done.map(drop).map_err(told)
    };
    let look = |pool: &Pool| new_or_absent(pool, "b.vhd", &bytes);
    Operation {
        before,
        run: &run,
        look: &look,
    }
    .survey(seed, skip)
}

fn compacting(seed: u64, skip: Option<Skip>) -> Outcome<usize> {
    let mut bytes = pattern(&mut Random::new(seed));
    let before = made(|pool| {
        make(pool, "a.vhd", DiskType::Dynamic, &bytes);
        let disk = Vhd::open(pool, "a.vhd", Access::ReadWrite, Gate::open()).unwrap();
        disk.write_at(&vec![0; MIB as usize], 0).unwrap();
        disk.close().unwrap();
    });
    // All zeros: the block goes.
    bytes.fill(0);
    let old_len = before[OsStr::new("a.vhd")].0.len();
    let run = |pool: &Pool| {
        let done = compact(
            pool,
            "a.vhd",
            Gate::open(),
            &CompactOptions::default(),
            &mut go_on,
        );
        done.map(drop).map_err(told)
    };
    let look = |pool: &Pool| {
        let len = pool.path().join("a.vhd").metadata().map_err(told)?.len();
        if content(pool, "a.vhd", Access::ReadWrite)? != bytes {
            return Err("it shows something else".to_owned());
        }
        match len < old_len as u64 {
            true => Ok(Left::New),
            false => Ok(Left::Old),
        }
    };
    Operation {
        before,
        run: &run,
        look: &look,
    }
    .survey(seed, skip)
}

fn merging(seed: u64, skip: Option<Skip>) -> Outcome<usize> {
    let mut random = Random::new(seed);
    let (below, above) = (pattern(&mut random), pattern(&mut random));
    let mut shown = below.clone();
    let before = made(|pool| {
        make(pool, "a.vhd", DiskType::Dynamic, &below);
        let parent = File::options().write(true).open(pool.path().join("a.vhd"));
        parent.unwrap().set_modified(an_hour_ago()).unwrap();
        let options = ChildOptions::new();
        let child = Vhd::create_child(pool, "b.vhd", pool, "a.vhd", &options).unwrap();
        for (sector, bytes) in above.chunks(512).enumerate() {
            if !is_zero(bytes) {
                child.write_at(bytes, sector as u64 * 512).unwrap();
                shown[sector * 512..][..512].copy_from_slice(bytes);
            }
        }
        child.close().unwrap();
    });
    let run = |pool: &Pool| {
        let done = merge(
            pool,
            "b.vhd",
            Gate::open(),
            &MergeOptions::default(),
            &mut go_on,
        );
        done.map(drop).map_err(told)
    };
    let look = |pool: &Pool| {
        let left = match is_there(pool, "b.vhd") {
            true => Left::Old,
            false => Left::New,
        };
        if left == Left::Old {
            if content(pool, "b.vhd", Access::ReadOnly)? != shown {
                return Err("the child shows something else".to_owned());
            }
            run(pool)?;
        }
        match content(pool, "a.vhd", Access::ReadWrite)? == shown {
            true => Ok(left),
            false => Err("the parent shows something else".to_owned()),
        }
    };
    Operation {
        before,
        run: &run,
        look: &look,
    }
    .survey(seed, skip)
}

fn removing(seed: u64, skip: Option<Skip>) -> Outcome<usize> {
    let (before, bytes) = one_disk(seed);
    let run = |pool: &Pool| remove(pool, "a.vhd").map_err(told);
    let look = |pool: &Pool| {
        if is_there(pool, "a.vhd") {
            return match content(pool, "a.vhd", Access::ReadWrite)? == bytes {
                true => Ok(Left::Old),
                false => Err("it shows something else".to_owned()),
            };
        }
        Ok(Left::New)
    };
    Operation {
        before,
        run: &run,
        look: &look,
    }
    .survey(seed, skip)
}

fn resizing(seed: u64, skip: Option<Skip>) -> Outcome<usize> {
    let bytes = pattern(&mut Random::new(seed));
    let before = made(|pool| make(pool, "a.vhd", DiskType::Fixed, &bytes));
    let new_size = MIB + 64 * 512;
    let options = ResizeOptions {
        size: DiskSize::from_bytes(new_size).unwrap(),
        force: false,
        search: ParentSearch::new(),
    };
    let run = |pool: &Pool| {
        let done = resize(pool, "a.vhd", Gate::open(), &options, &mut go_on);
        done.map(drop).map_err(told)
    };
    let look = |pool: &Pool| {
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let found = content(pool, "a.vhd", access)?;
            let (old, grown) = found.split_at(MIB as usize);
            if old != bytes || !is_zero(grown) {
                return Err("it shows something else".to_owned());
            }
        }
        match content(pool, "a.vhd", Access::ReadWrite)?.len() as u64 == new_size {
            true => Ok(Left::New),
            false => Ok(Left::Old),
        }
    };
    Operation {
        before,
        run: &run,
        look: &look,
    }
    .survey(seed, skip)
}

fn repairing(seed: u64, skip: Option<Skip>) -> Outcome<usize> {
    let (mut before, bytes) = one_disk(seed);
    let file = &mut before.get_mut(OsStr::new("a.vhd")).unwrap().0;
    // A damaged copy of the footer.
    let byte = file.read(100..101)[0];
    file.write(&[byte ^ 1], 100);
    let damaged = file.read(0..file.len());
    let run = |pool: &Pool| {
        let done = repair_in_place(pool, "a.vhd", Gate::open(), &mut go_on);
        done.map(drop).map_err(told)
    };
    let look = |pool: &Pool| {
        let is_as_before = || {
            let found = std::fs::read(pool.path().join("a.vhd"));
            found.is_ok_and(|found| found == damaged)
        };
        let left = match is_as_before() {
            true => Left::Old,
            false => Left::New,
        };
        if left == Left::New {
            undo_repair(pool, "a.vhd", Gate::open()).map_err(told)?;
            if !is_as_before() {
                return Err("it can't be undone".to_owned());
            }
        }
        run(pool)?;
        let report = check(pool, "a.vhd", &ParentSearch::new(), &mut go_on).map_err(told)?;
        match content(pool, "a.vhd", Access::ReadWrite)? == bytes && report.findings.is_empty() {
            true => Ok(left),
            false => Err("it shows something else".to_owned()),
        }
    };
    Operation {
        before,
        run: &run,
        look: &look,
    }
    .survey(seed, skip)
}

/// A disk that is opened, written to and closed.
fn using(seed: u64, skip: Option<Skip>) -> Outcome<usize> {
    let bytes = Random::new(seed).bytes(70_000);
    let before = made(|pool| make(pool, "a.vhd", DiskType::Dynamic, &[]));
    let run = |pool: &Pool| {
        let disk = Vhd::open(pool, "a.vhd", Access::ReadWrite, Gate::open()).map_err(told)?;
        disk.write_at(&bytes, 0).map_err(told)?;
        disk.flush().map_err(told)?;
        disk.close().map_err(told)
    };
    // Not flushed, it may be there in part.
    let look = |pool: &Pool| {
        let found = content(pool, "a.vhd", Access::ReadWrite)?;
        let (written, rest) = found.split_at(bytes.len());
        if !is_zero(rest) {
            return Err("it shows something else".to_owned());
        }
        match written == bytes {
            true => Ok(Left::New),
            false => Ok(Left::Old),
        }
    };
    Operation {
        before,
        run: &run,
        look: &look,
    }
    .survey(seed, skip)
}

const SCENARIOS: [(&str, Scenario); 10] = [
    ("use", using),
    ("create", creating),
    ("import", importing),
    ("convert", converting),
    ("clone", cloning),
    ("compact", compacting),
    ("merge", merging),
    ("remove", removing),
    ("resize", resizing),
    ("repair", repairing),
];

#[test]
fn an_operation_that_is_cut_off_leaves_names_for_whole_files() {
    let mut all = 0;
    survey_seeds(Part::Folders, |seed| {
        let (name, scenario) = SCENARIOS[seed as usize % SCENARIOS.len()];
        // All of them, however few points are asked for.
        let points = scenario(seed, None).unwrap_or_else(|what| panic!("{name}: {what}"));
        all = seed;
        points
    });
    for seed in all + 1..SCENARIOS.len() as u64 {
        let (name, scenario) = SCENARIOS[seed as usize];
        scenario(seed, None).unwrap_or_else(|what| panic!("{name}: {what}"));
    }
}

/// The test above must be able to fail: it notices each sync that is missing.
#[test]
fn a_sync_that_is_left_out_is_caught() {
    let skips: [(&str, Scenario, Skip); 13] = [
        ("use", using, Skip::DropCache),
        ("create", creating, Skip::FolderSync),
        ("import", importing, Skip::FolderSync),
        ("convert", converting, Skip::FolderSync),
        ("clone", cloning, Skip::FolderSync),
        ("compact", compacting, Skip::FolderSync),
        ("remove", removing, Skip::FolderSync),
        ("merge", merging, Skip::FolderSync),
        ("merge", merging, Skip::Sync(".merge")),
        ("resize", resizing, Skip::Sync(".resize")),
        ("resize", resizing, Skip::FolderSync),
        ("repair", repairing, Skip::Sync(".repair")),
        ("clone", cloning, Skip::Sync(".new")),
    ];
    for (name, scenario, skip) in skips {
        let caught = (0..20).find_map(|seed| scenario(seed, Some(skip)).err());
        let how = caught.unwrap_or_else(|| panic!("{name} without {skip:?} was not caught"));
        println!("{name} without {skip:?}: {how}");
    }
}
