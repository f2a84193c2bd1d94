//! Disks on plain files, made by other programs and asked about by them.
//! Nothing is mounted.

#![allow(clippy::unwrap_used, dead_code)] // Each test uses a part of it.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use paddock_free_space::{Disk, Kind, Outcome, PartitionTable, Volume, free_space};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// A file as a disk.
pub struct Raw {
    pub file: File,
    pub size: u64,
}

impl Raw {
    pub fn open(path: &Path) -> Raw {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let size = file.metadata().unwrap().len();
        Raw { file, size }
    }

    pub fn create(path: &Path, size: u64) -> Raw {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .unwrap();
        file.set_len(size).unwrap();
        Raw { file, size }
    }

    pub fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub fn put(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
    }
}

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

/// Runs a program, or says that it isn't there.
pub fn run(program: &str, args: &[&str]) -> Option<Output> {
    // Not every user has the folders of those who administer in its path.
    let places = ["", "/usr/sbin/", "/sbin/"];
    for place in places {
        let mut command = Command::new(format!("{place}{program}"));
        match command.args(args).env("LC_ALL", "C").output() {
            Ok(output) => return Some(output),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => panic!("{program}: {error}"),
        }
    }
    skipped(format_args!("{program} is not installed"));
    None
}

pub fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a program that has to succeed, and returns what it printed.
#[track_caller]
pub fn must(program: &str, args: &[&str]) -> Option<String> {
    let output = run(program, args)?;
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        said(&output)
    );
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Bytes that look random, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A file of a populated file system.
pub struct Sample {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Removed again, so that its place is free among others.
    pub removed: bool,
}

/// Files of all lengths, of about `budget` bytes in total.
pub fn samples(budget: u64) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut total = 0;
    for index in 0..400_u64 {
        let len = match index % 8 {
            0 => 0,
            1 => 1,
            2 => 700,
            3 => 4096,
            4 => 5000,
            5 => 40_000,
            6 => 12_288,
            _ => budget / 12,
        };
        if total + len > budget {
            break;
        }
        total += len;
        samples.push(Sample {
            name: format!("f{index:03}.bin"),
            bytes: noise(index + 1, len as usize),
            removed: index % 3 == 1,
        });
    }
    samples
}

/// Writes samples into a folder.
pub fn write_samples(dir: &Path, samples: &[Sample]) {
    fs::create_dir_all(dir).unwrap();
    for sample in samples {
        fs::write(dir.join(&sample.name), &sample.bytes).unwrap();
    }
}

/// Compares what was read back from a file system.
#[track_caller]
pub fn same_samples(samples: &[Sample], mut read: impl FnMut(&str) -> Vec<u8>) {
    let mut compared = 0;
    for sample in samples.iter().filter(|sample| !sample.removed) {
        assert!(read(&sample.name) == sample.bytes, "{}", sample.name);
        compared += 1;
    }
    assert!(compared > 3, "{compared} files compared");
}

/// The one volume of a disk that has no partitions.
#[track_caller]
pub fn bare(path: &Path) -> Volume {
    let report = free_space(&Raw::open(path)).unwrap();
    assert_eq!(report.table, PartitionTable::None);
    let [volume] = report.volumes.as_slice() else {
        panic!("{:?}", report.volumes);
    };
    volume.clone()
}

/// The free ranges of a bare disk that has to be walked.
#[track_caller]
pub fn walked(path: &Path, kind: Kind) -> Vec<Range<u64>> {
    let volume = bare(path);
    assert_eq!(volume.kind, kind, "{:?}", volume.outcome);
    match volume.outcome {
        Outcome::Walked { free, free_bytes } => {
            assert_eq!(
                free_bytes,
                free.iter().map(|r| r.end - r.start).sum::<u64>()
            );
            for pair in free.windows(2) {
                assert!(pair[0].end < pair[1].start, "{pair:?}");
            }
            free
        }
        Outcome::Untouched { reason } => panic!("untouched: {reason}"),
    }
}

/// Why a bare disk is untouched.
#[track_caller]
pub fn untouched(path: &Path) -> String {
    match bare(path).outcome {
        Outcome::Walked { .. } => panic!("it was walked"),
        Outcome::Untouched { reason } => reason,
    }
}

/// Joins neighbours, leaves out what is empty.
pub fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut result: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match result.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => result.push(range),
        }
    }
    result
}

/// Compares with what another program says is free.
#[track_caller]
pub fn same_ranges(found: &[Range<u64>], expected: &[Range<u64>], what: &str) {
    assert!(!expected.is_empty(), "{what}: the oracle says nothing");
    if found == expected {
        return;
    }
    let only = |a: &[Range<u64>], b: &[Range<u64>]| -> Vec<Range<u64>> {
        a.iter()
            .filter(|r| !b.contains(r))
            .take(8)
            .cloned()
            .collect()
    };
    panic!(
        "{what}: only found {:?}, only expected {:?}",
        only(found, expected),
        only(expected, found)
    );
}

/// Disks with more free space aren't written full of garbage, in bytes.
const TRASHED_WHOLE: u64 = 32 * MIB;

/// Writes garbage into all that is free; of long ranges on larger disks, into
/// 64 KiB at their edges and of every MiB or 16 between.
pub fn trash(path: &Path, free: &[Range<u64>]) {
    let disk = Raw::open(path);
    let garbage = noise(0xbad, 64 << 10);
    let total: u64 = free.iter().map(|range| range.end - range.start).sum();
    let step = if total <= TRASHED_WHOLE {
        64 * KIB
    } else if total <= GIB {
        MIB
    } else {
        16 * MIB
    };
    for range in free {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(garbage.len() as u64);
            disk.put(at, &garbage[..len as usize]);
            at += step;
        }
        let len = (range.end - range.start).min(garbage.len() as u64);
        disk.put(range.end - len, &garbage[..len as usize]);
    }
}

/// A folder for a test's files.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

/// Numbers in a text, in their order.
pub fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Runs a script in a shell whose mounts nobody else sees. `$1` is the image,
/// `$2` a folder. Tells whether it could.
pub fn mounted(place: &Place, kind: &str, script: &str) -> bool {
    let folder = place.path("mounted");
    fs::create_dir_all(&folder).unwrap();
    let script = format!("set -e; mount -t {kind} -o loop \"$1\" \"$2\" || exit 77; {script}");
    let (image, folder) = (place.text("disk"), place.text("mounted"));
    let args = ["-m", "sh", "-c", &script, "sh", &image, &folder];
    let Some(output) = run("unshare", &args) else {
        return false;
    };
    if output.status.success() {
        return true;
    }
    // 77: not in this kernel, no loop device; 1: not root.
    let refused = matches!(output.status.code(), Some(77)) || said(&output).contains("unshare");
    assert!(refused, "{}", said(&output));
    skipped(format_args!(
        "cannot mount {kind} here: {}",
        said(&output).trim()
    ));
    false
}

/// Tells that a test can't run here, and why: past the test harness, which keeps
/// what a test prints that passes, while `e2e/test.sh` counts these lines.
fn skipped(why: impl std::fmt::Display) {
    // In one piece, among those of other tests.
    let line = format!("skipped: {why}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}
