//! What a disk is after a crash: every sector must have the value of the last
//! acknowledged flush or a later one.

mod threads;
mod trim;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::path::Path;

use super::random::Random;
use super::sample::{Sample, foreign_child, foreign_disk, new_child, new_disk, open_parents};
use super::{Image, Mutant, Tuning, open};
use crate::block::IoErrorKind;
use crate::check::{Severity, examine};
use crate::format::DiskType;
use crate::format::footer::Footer;
use crate::gate::Gate;
use crate::storage::fault::{Crashes, Fault, FaultStorage, Op};
use crate::storage::{Backing, Storage};
use crate::survey::{Part, survey_seeds};

const SIZE: u64 = 16 * BLOCK as u64 - 3 * 512;
const BLOCK: u32 = 16 << 10;
const SECTORS: usize = (SIZE / 512) as usize;

fn tuning(mutant: Option<Mutant>) -> Tuning {
    // A bitmap cache of six bitmaps, growth by three blocks.
    Tuning {
        growth: 3 * u64::from(BLOCK),
        bitmap_cache: 3072,
        mutant,
    }
}

fn open_disk(
    storage: impl Storage + 'static,
    parents: &[Vec<u8>],
    mutant: Option<Mutant>,
) -> Result<Box<dyn Image>, String> {
    let backing = Backing::new(Box::new(storage), Gate::open(), "disk");
    let opened = open(backing, open_parents(parents), false, tuning(mutant));
    opened
        .map(|(disk, _)| disk)
        .map_err(|refusal| format!("not opened: {refusal:?}"))
}

/// The same with a storage that fails now and then: opened again until none
/// of its failures is in the way.
fn open_at_last(
    storage: &FaultStorage,
    parents: &[Vec<u8>],
    mutant: Option<Mutant>,
) -> Result<Box<dyn Image>, String> {
    loop {
        let failures = storage.failures();
        match open_disk(storage.clone(), parents, mutant) {
            Err(what) if storage.failures() == failures => return Err(what),
            Err(_) => {}
            Ok(disk) => return Ok(disk),
        }
    }
}

/// A value that a sector had in the running system.
struct Version {
    /// The request that made it.
    request: u64,
    /// The operations on the file that were issued before that request.
    begun: usize,
    bytes: Vec<u8>,
}

/// A flush that was acknowledged.
struct Flush {
    request: u64,
    /// The operations on the file that were issued before it returned.
    over: usize,
}

/// What was asked of a disk and what it may hold.
struct History {
    /// What reads must return now.
    content: Vec<u8>,
    versions: Vec<Vec<Version>>,
    flushes: Vec<Flush>,
    requests: u64,
}

impl History {
    fn new(content: Vec<u8>) -> History {
        let first = |bytes: &[u8]| {
            vec![Version {
                request: 0,
                begun: 0,
                bytes: bytes.to_vec(),
            }]
        };
        History {
            versions: content.chunks(512).map(first).collect(),
            flushes: vec![Flush {
                request: 0,
                over: 0,
            }],
            requests: 0,
            content,
        }
    }

    fn begin(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// Notes the present content of all sectors that differ from their last
    /// version.
    fn note(&mut self, request: u64, begun: usize) {
        for (versions, bytes) in self.versions.iter_mut().zip(self.content.chunks(512)) {
            if versions.last().is_some_and(|last| last.bytes != bytes) {
                versions.push(Version {
                    request,
                    begun,
                    bytes: bytes.to_vec(),
                });
            }
        }
    }

    /// Refuses content that a crash after `point` operations can't explain.
    fn check(&self, content: &[u8], point: usize) -> Result<(), String> {
        self.check_sectors(content, point, |_| true)
    }

    /// The same for some sectors.
    fn check_sectors(
        &self,
        content: &[u8],
        point: usize,
        of: impl Fn(usize) -> bool,
    ) -> Result<(), String> {
        let flush = self
            .flushes
            .iter()
            .rfind(|flush| flush.over <= point)
            .unwrap();
        let sectors = content.chunks(512).zip(&self.versions).enumerate();
        for (sector, (bytes, versions)) in sectors.filter(|(sector, _)| of(*sector)) {
            // The last one before the flush, and all that follow.
            let base = versions
                .iter()
                .rposition(|version| version.request <= flush.request)
                .unwrap();
            let mut allowed = versions[base..]
                .iter()
                .filter(|version| version.begun <= point);
            if !allowed.any(|version| version.bytes == bytes) {
                return Err(format!(
                    "sector {sector} after {point} operations holds {:02x?}, expected one of {:02x?}",
                    &bytes[..8],
                    versions[base..]
                        .iter()
                        .map(|version| &version.bytes[..8])
                        .collect::<Vec<_>>()
                ));
            }
        }
        Ok(())
    }
}

/// Does random requests to a disk, which may fail, and notes what it may hold.
struct Workload<'a> {
    storage: FaultStorage,
    parents: &'a [Vec<u8>],
    mutant: Option<Mutant>,
    disk: Box<dyn Image>,
    history: History,
    random: Random,
}

impl Workload<'_> {
    fn open<'a>(
        storage: FaultStorage,
        parents: &'a [Vec<u8>],
        content: Vec<u8>,
        seed: u64,
        mutant: Option<Mutant>,
    ) -> Result<Workload<'a>, String> {
        Ok(Workload {
            disk: open_at_last(&storage, parents, mutant)?,
            storage,
            parents,
            mutant,
            history: History::new(content),
            random: Random::new(seed),
        })
    }

    /// Opens the disk again on the same boot: it may hold as much as after a
    /// crash.
    fn reopen(&mut self) -> Result<(), String> {
        let request = self.history.begin();
        self.disk = open_at_last(&self.storage, self.parents, self.mutant)?;
        let begun = self.storage.position();
        let found = self.content()?;
        let checked = self.history.check(&found, begun);
        checked.map_err(|what| format!("opened again, {what}"))?;
        self.history.content = found;
        self.history.note(request, begun);
        Ok(())
    }

    /// All that the disk shows, whatever reads fail on the way.
    fn content(&self) -> Result<Vec<u8>, String> {
        let mut found = vec![0; SIZE as usize];
        loop {
            let failures = self.storage.failures();
            match self.disk.read_at(&mut found, 0) {
                Err(error) if self.storage.failures() == failures => return Err(error.to_string()),
                Err(_) => {}
                Ok(()) => return Ok(found),
            }
        }
    }

    fn request(&mut self) -> Result<(), String> {
        let begun = self.storage.position();
        let request = self.history.begin();
        let kind = self.random.below(17);
        let range = match kind {
            // Whole blocks, so that regions are freed.
            0..3 => {
                let start = self.random.below(16) * u64::from(BLOCK);
                start..(start + u64::from(BLOCK) * (1 + self.random.below(2))).min(SIZE)
            }
            // Small, so that blocks are filled in part.
            _ => self.random.range(
                SIZE,
                if kind < 12 {
                    4096
                } else {
                    u64::from(BLOCK) * 2
                },
            ),
        };
        let span = range.start as usize..range.end as usize;
        let len = range.end - range.start;
        let before = self.history.content.clone();
        let result = match kind {
            13.. => {
                let result = match kind {
                    16 => self.disk.put_away(),
                    _ => self.disk.flush(),
                };
                if result.is_ok() {
                    self.history.flushes.push(Flush {
                        request,
                        over: self.storage.position(),
                    });
                }
                result
            }
            0 | 1 | 3 => {
                self.history.content[span.clone()].fill(0);
                self.disk.discard(range.start, len)
            }
            4 => {
                self.history.content[span.clone()].fill(0);
                self.disk.write_zeroes(range.start, len)
            }
            _ => {
                let bytes = self.random.bytes(len);
                self.history.content[span.clone()].copy_from_slice(&bytes);
                self.disk.write_at(&bytes, range.start)
            }
        };
        self.history.note(request, begun);
        if let Err(error) = result {
            if !matches!(
                error.kind(),
                IoErrorKind::Io | IoErrorKind::NoSpace | IoErrorKind::SyncFailed
            ) {
                return Err(format!("unexpected error: {error}"));
            }
            // Each sector is the old or the new one; which one counts now.
            let found = self.content()?;
            for (sector, bytes) in found.chunks(512).enumerate() {
                let at = sector * 512..sector * 512 + bytes.len();
                if bytes != &self.history.content[at.clone()] && bytes != &before[at] {
                    return Err(format!(
                        "sector {sector} is neither old nor new after '{error}'"
                    ));
                }
            }
            self.history.content = found;
            self.history.note(request, begun);
            if error.kind() == IoErrorKind::SyncFailed && self.random.below(2) == 0 {
                self.reopen()?;
            }
        }
        Ok(())
    }

    /// Writes to the disk, or discards where there are no bytes.
    fn change(&mut self, range: Range<u64>, bytes: Option<&[u8]>) -> Result<(), String> {
        let begun = self.storage.position();
        let request = self.history.begin();
        let span = range.start as usize..range.end as usize;
        let result = match bytes {
            Some(bytes) => {
                self.history.content[span].copy_from_slice(bytes);
                self.disk.write_at(bytes, range.start)
            }
            None => {
                self.history.content[span].fill(0);
                self.disk.discard(range.start, range.end - range.start)
            }
        };
        self.history.note(request, begun);
        result.map_err(|error| error.to_string())
    }

    fn flush(&mut self) -> Result<(), String> {
        let request = self.history.begin();
        self.disk.flush().map_err(|error| error.to_string())?;
        let over = self.storage.position();
        self.history.flushes.push(Flush { request, over });
        Ok(())
    }

    fn check_reads(&self) -> Result<(), String> {
        let found = self.content()?;
        match (0..SECTORS)
            .find(|s| found[s * 512..s * 512 + 512] != self.history.content[s * 512..s * 512 + 512])
        {
            Some(sector) => Err(format!("sector {sector} reads wrong while running")),
            None => Ok(()),
        }
    }
}

/// Which calls fail.
#[derive(Debug, Clone, Copy)]
enum Failing {
    None,
    /// Some changes and looks, or none.
    Some,
    Change(u64, Fault),
    Look(u64),
}

impl Failing {
    fn storage(self, file: Vec<u8>, random: &mut Random) -> FaultStorage {
        let (changes, looks) = match self {
            Failing::None => Default::default(),
            Failing::Some => (faults(random), bad_looks(random)),
            Failing::Change(call, fault) => (BTreeMap::from([(call, fault)]), BTreeSet::new()),
            Failing::Look(look) => (BTreeMap::new(), BTreeSet::from([look])),
        };
        FaultStorage::new(file, changes).with_bad_looks(looks)
    }
}

fn bad_looks(random: &mut Random) -> BTreeSet<u64> {
    match random.below(3) {
        0 => (0..3).map(|_| random.below(400)).collect(),
        _ => BTreeSet::new(),
    }
}

fn faults(random: &mut Random) -> BTreeMap<u64, Fault> {
    let mut faults = BTreeMap::new();
    // A third of the workloads without any.
    for _ in 0..random.below(3) {
        let first = random.below(150);
        let fault = if random.below(4) == 0 {
            Fault::Io
        } else {
            Fault::NoSpace
        };
        for call in first..first + 1 + random.below(3) {
            faults.insert(call, fault);
        }
    }
    faults
}

/// A disk to make children of: half of its blocks hold data, or one of a
/// chain is.
fn parent(random: &mut Random) -> Sample {
    let parent = foreign_disk(SIZE - 5 * 512, 2 * BLOCK, random);
    match random.below(2) {
        0 => parent,
        _ => foreign_child(parent, SIZE, BLOCK / 2, random),
    }
}

/// Runs a workload, then looks at the disk after crashes at `points` points.
/// Returns how many there were; the error says what was lost.
fn crash(seed: u64, points: usize, mutant: Option<Mutant>) -> Result<usize, String> {
    crash_at(seed, points, 60, Failing::Some, mutant)?;
    Ok(points)
}

/// The same with so many requests and failures. Returns how many changes and
/// looks there were.
fn crash_at(
    seed: u64,
    points: usize,
    requests: usize,
    failing: Failing,
    mutant: Option<Mutant>,
) -> Result<(u64, u64), String> {
    let mut random = Random::new(seed);
    let mut sample = match random.below(4) {
        0 => new_disk(DiskType::Dynamic, SIZE, BLOCK),
        1 => foreign_disk(SIZE, BLOCK, &mut random),
        2 => new_child(parent(&mut random), SIZE, BLOCK),
        _ => foreign_child(parent(&mut random), SIZE, BLOCK, &mut random),
    };
    match random.below(8) {
        // What opening mends: no footer at the end; a damaged one; a damaged
        // copy at the beginning.
        0 => sample.file.truncate(sample.file.len() - 512),
        1 => *sample.file.last_mut().unwrap() ^= 1,
        2 => sample.file[100] ^= 1,
        _ => {}
    }
    let storage = failing.storage(sample.file.clone(), &mut random);
    let mut workload = Workload::open(
        storage,
        &sample.parents,
        sample.content,
        seed ^ 0xdead,
        mutant,
    )?;
    workload.check_reads()?;
    for _ in 0..requests {
        workload.request()?;
    }
    workload.check_reads()?;
    if random.below(2) == 0 {
        // May fail like anything else; the disk stays consistent.
        let _ = workload.disk.put_away();
    }
    let log = workload.storage.log();
    keeps_a_footer(&sample.file, &log).map_err(|lost| format!("seed {seed}: {lost}"))?;
    let mut chosen: Vec<usize> = (0..points)
        .map(|_| random.below(log.len() as u64 + 1) as usize)
        .collect();
    chosen.sort_unstable();
    let mut crashes = Crashes::new(sample.file, &log);
    for point in chosen {
        let file = crashes.at(point, &mut random);
        recover(
            file,
            &sample.parents,
            &workload.history,
            point,
            &mut random,
            mutant,
        )
        .map_err(|lost| {
            format!(
                "seed {seed}, crash after {point} of {} operations: {lost}",
                log.len()
            )
        })?;
    }
    let storage = &workload.storage;
    Ok((storage.changes(), storage.looks()))
}

/// At every moment a footer behind the data must be durable and untouched, so
/// that a disk whose head is damaged can still be read.
fn keeps_a_footer(base: &[u8], log: &[Op]) -> Result<(), String> {
    let intact = |footer: &&[u8]| Footer::parse(footer).is_ok();
    let ends = [&base[base.len() - 512..], &base[..512]];
    let Some(footer) = ends.into_iter().find(intact) else {
        return Err("no footer to begin with".to_owned());
    };
    let mut durable = BTreeSet::new();
    if ends[0] == footer {
        durable.insert(base.len() - 512);
    }
    let mut written = BTreeSet::new();
    let mut had_one = false;
    for (index, op) in log.iter().enumerate() {
        had_one |= !durable.is_empty();
        let touched = match op {
            Op::Write { offset, bytes } => *offset as usize..*offset as usize + bytes.len(),
            Op::Zero { offset, len } => *offset as usize..(*offset + *len) as usize,
            Op::SetLen(len) => *len as usize..usize::MAX,
            Op::Sync => {
                durable.append(&mut written);
                continue;
            }
            Op::FailedSync(_) => {
                written.clear();
                continue;
            }
        };
        let same = match op {
            Op::Write { offset, bytes } if **bytes == *footer => Some(*offset as usize),
            _ => None,
        };
        for list in [&mut durable, &mut written] {
            list.retain(|&at| same == Some(at) || at + 512 <= touched.start || touched.end <= at);
        }
        written.extend(same.filter(|at| *at > 0 && !durable.contains(at)));
        if had_one && durable.is_empty() {
            return Err(format!("operation {index} takes the last footer away"));
        }
    }
    Ok(())
}

/// Opens what a crash left, checks it, and goes on using it for a while.
fn recover(
    file: Vec<u8>,
    parents: &[Vec<u8>],
    history: &History,
    point: usize,
    random: &mut Random,
    mutant: Option<Mutant>,
) -> Result<(), String> {
    let storage = FaultStorage::new(file, BTreeMap::new());
    let seed = random.next();
    let mut workload = Workload::open(storage, parents, Vec::new(), seed, mutant)?;
    let content = workload.content()?;
    history.check(&content, point)?;
    workload.history = History::new(content);
    for _ in 0..6 {
        workload.request()?;
    }
    workload.check_reads()?;
    workload
        .disk
        .put_away()
        .map_err(|error| error.to_string())?;
    // Once more, as the next start finds it.
    workload.disk = open_at_last(&workload.storage, parents, mutant)?;
    workload.check_reads()?;
    is_sound(&workload.storage)
}

/// A check of the file finds no error.
fn is_sound(storage: &FaultStorage) -> Result<(), String> {
    let backing = Backing::new(Box::new(storage.clone()), Gate::open(), "disk");
    let verdict = examine(&backing, Path::new("disk"), &mut |_| {
        ControlFlow::Continue(())
    });
    let report = verdict.map_err(|error| error.to_string())?.report;
    match report.worst() {
        Some(Severity::Error) => Err(format!("{:?}", report.findings)),
        _ => Ok(()),
    }
}

#[test]
fn no_crash_loses_what_was_flushed() {
    survey_seeds(Part::Requests, |seed| crash(seed, 25, None).unwrap());
}

#[test]
fn nor_does_a_failure_of_any_call() {
    survey_seeds(Part::Failures, |seed| {
        let (changes, looks) = crash_at(seed, 1, 10, Failing::None, None).unwrap();
        let changes = (0..changes)
            .flat_map(|call| [Fault::Io, Fault::NoSpace].map(|fault| Failing::Change(call, fault)));
        let mut points = 1;
        for failing in changes.chain((0..looks).map(Failing::Look)) {
            crash_at(seed, 2, 10, failing, None).unwrap();
            points += 2;
        }
        points
    });
}

/// The seed of a growth for which there is no space, and a smaller one then.
#[test]
fn nor_does_a_growth_without_space() {
    assert!(crash(5672, 25, None).unwrap() > 0);
}

/// The test above must be able to fail: it notices each of these faults.
#[test]
fn every_mutant_is_caught() {
    // The rare ones with a seed from which on they are found soon.
    let mutants = [
        (Mutant::TableBeforeData, 200),
        (Mutant::TrustFailedGrowth, 250),
    ];
    let common = [
        Mutant::SkipDataSync,
        Mutant::SkipMetadataSync,
        Mutant::ForgetHeadCopy,
        Mutant::ReuseBeforeDurable,
        Mutant::ReuseUnpunched,
        Mutant::BitmapBeforeData,
        Mutant::BitmapsBeforeSync,
        Mutant::TrustSlack,
        Mutant::KeepFailedReservation,
        Mutant::TrustNextSync,
        Mutant::TrustCache,
        Mutant::FillChildBlocks,
        Mutant::UncoverParent,
        Mutant::ZeroNothing,
        Mutant::ZeroWithoutBits,
        Mutant::GrowUnsynced,
    ];
    let common = common.into_iter().map(|mutant| (mutant, 0));
    for (mutant, first) in mutants.into_iter().chain(common) {
        let caught = (first..first + 300).find_map(|seed| crash(seed, 25, Some(mutant)).err());
        let how = caught.unwrap_or_else(|| panic!("{mutant:?} was not caught"));
        println!("{mutant:?}: {how}");
    }
}
