//! What the fuzz targets call. Not part of the library proper: compiled only
//! with `--cfg fuzzing`.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::block::{IoError, IoErrorKind};
use crate::check::{Severity, examine};
use crate::format::DiskType;
use crate::format::footer::{self, Footer};
use crate::format::header::{self, Header};
use crate::gate::Gate;
use crate::image::{self, Tuning};
use crate::linked;
use crate::lock::{self, LockOwner};
use crate::operation::OperationError;
use crate::repair::in_place::Plan;
use crate::repair::journal::Journal;
use crate::resize::fixed::Record;
use crate::resize::sparse;
use crate::storage::memory::MemoryStorage;
use crate::storage::{Backing, Storage};

/// Opens a file as a disk and uses it. The first byte says whether the
/// checksums of the rest are made right first.
pub fn open(data: &[u8]) {
    let Some((flags, file)) = data.split_first() else {
        return;
    };
    let mut file = file.to_vec();
    if flags % 2 == 1 {
        seal(&mut file);
    }
    let tuning = Tuning {
        growth: 64 << 10,
        bitmap_cache: 4096,
    };
    let storage = std::sync::Arc::new(MemoryStorage::new(file));
    let below = || -> Option<Box<dyn image::Image>> {
        let mut parent = vec![0x55; 20_000];
        parent.resize(40_960, 0);
        parent.extend(Footer::new(DiskType::Fixed, 40_960, Uuid::nil(), UNIX_EPOCH).encode());
        let backing = Backing::new(Box::new(MemoryStorage::new(parent)), Gate::open(), "parent");
        let (image, _) = image::open(backing, None, true, tuning).ok()?;
        Some(image)
    };
    let open = |read_only| {
        let backing = Backing::new(
            Box::new(std::sync::Arc::clone(&storage)),
            Gate::open(),
            "disk",
        );
        image::open(backing, below(), read_only, tuning)
            .ok()
            .map(|(disk, _)| disk)
    };
    let checked = {
        let backing = Backing::new(
            Box::new(std::sync::Arc::clone(&storage)),
            Gate::open(),
            "disk",
        );
        let path = std::path::Path::new("disk");
        examine(&backing, path, &mut |_| ControlFlow::Continue(())).ok()
    };
    let opens = open(true).is_some();
    let worst = checked.map(|verdict| verdict.report.worst());
    let no_error = worst.is_some_and(|worst| worst != Some(Severity::Error));
    assert_eq!(opens, no_error, "a check agrees with opening");
    let Some(disk) = open(flags & 2 != 0) else {
        return;
    };
    let size = disk.size();
    let mut expected = Vec::new();
    for (index, place) in [0, size / 3, size / 2, size.saturating_sub(5000)]
        .into_iter()
        .enumerate()
    {
        let len = 5000.min(size - place);
        let mut buf = vec![0; len as usize];
        fine(disk.read_at(&mut buf, place));
        fine(disk.block_status(place, len).map(drop));
        if disk.read_only() {
            continue;
        }
        if index == 2 && flags & 4 != 0 {
            fine(disk.discard(0, size.min(16 << 20)));
            fine(disk.flush());
            expected.clear();
        }
        buf.fill(index as u8 + 1);
        if fine(disk.write_at(&buf, place)) {
            expected = vec![(place, buf)];
        }
    }
    if !fine(disk.put_away()) || disk.read_only() {
        return;
    }
    drop(disk);
    let disk = open(true).expect("what was put away can be opened");
    for (place, bytes) in expected {
        let mut found = vec![0; bytes.len()];
        disk.read_at(&mut found, place)
            .expect("what was written can be read");
        assert!(found == bytes, "what was written is there");
    }
}

/// Whether it worked; a file that gets too long for the memory is no finding.
fn fine(result: Result<(), IoError>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) if error.kind() == IoErrorKind::NoSpace => false,
        Err(error) => panic!("{error}"),
    }
}

/// Reads bytes as a footer and a header, and writes what was read.
pub fn parse(data: &[u8]) {
    if let Ok(footer) = Footer::parse(data) {
        assert_eq!(Footer::parse(&footer.encode()).as_ref(), Ok(&footer));
        let _ = (footer.created(), footer.creator_name());
    }
    let mut bytes = [0; header::LEN];
    let len = data.len().min(bytes.len());
    bytes[..len].copy_from_slice(&data[..len]);
    if let Ok(header) = Header::parse(&bytes) {
        for locator in &header.parent.locators {
            let _ = (locator.range(), locator.text(data));
        }
        let again = Header::parse(&header.encode()).expect("its own bytes");
        assert_eq!(
            (again.bat_offset, again.bat_entries),
            (header.bat_offset, header.bat_entries)
        );
    }
}

/// Reads bytes as the descriptor of a linked disk, with their sum as it is
/// and made right.
pub fn linked(data: &[u8]) {
    let read = |bytes: &[u8]| {
        if let Ok(info) = linked::parse(bytes) {
            assert_eq!(
                linked::encode(&info).expect("it was read").as_bytes(),
                bytes
            );
        }
    };
    read(data);
    read(&linked::summed(data));
}

/// Reads bytes as what a lock file says of its owners, and lets somebody take
/// the disk.
pub fn lock(data: &[u8]) {
    let Ok(record) = lock::read_record(data) else {
        return;
    };
    let owner = LockOwner::new(u64::MAX, "host", Uuid::max()).expect("a host's name");
    let file = lock::record_of(record.as_ref(), &owner, data);
    let found = lock::read_record(&file).expect("what was written can be read");
    assert!(
        found.is_some_and(|found| found.names(&owner)),
        "who took it has it"
    );
}

/// Makes the checksums right wherever a footer or a header may be.
fn seal(file: &mut [u8]) {
    let fix = |bytes: &mut [u8], field: usize| {
        bytes[field..field + 4].fill(0);
        let sum = bytes
            .iter()
            .fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()));
        bytes[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
    };
    if let Some(head) = file.get_mut(..footer::LEN) {
        fix(head, 64);
        let offset = u64::from_be_bytes(head[16..24].try_into().unwrap_or_default());
        if let Ok(offset) = usize::try_from(offset)
            && let Some(header) = offset
                .checked_add(header::LEN)
                .and_then(|end| file.get_mut(offset..end))
        {
            fix(header, 36);
        }
    }
    if let Some(tail) = file.len().checked_sub(footer::LEN) {
        fix(&mut file[tail..], 64);
    }
}

/// A file in memory, and it as the file of a disk.
fn file(bytes: &[u8]) -> (Arc<MemoryStorage>, impl Fn() -> Backing + use<>) {
    let storage = Arc::new(MemoryStorage::new(bytes.to_vec()));
    let shared = Arc::clone(&storage);
    let backing = move || Backing::new(Box::new(Arc::clone(&shared)), Gate::open(), "disk");
    (storage, backing)
}

/// The file of a disk in an input of [`open`], and its flags.
fn disk_of(data: &[u8]) -> Option<(u8, Vec<u8>)> {
    let (flags, bytes) = data.split_first()?;
    let mut bytes = bytes.to_vec();
    if flags % 2 == 1 {
        seal(&mut bytes);
    }
    Some((*flags, bytes))
}

fn all_of(storage: &MemoryStorage) -> Vec<u8> {
    let mut bytes = vec![0; storage.len().expect("memory has a length") as usize];
    storage.read_at(&mut bytes, 0).expect("memory can be read");
    bytes
}

/// Takes bytes for the file of a disk, checks and reads it. The caller counts
/// the memory that takes: the table of a file can't be longer than the file.
pub fn bounded(data: &[u8]) {
    let Some((_, bytes)) = disk_of(data) else {
        return;
    };
    let (_, backing) = file(&bytes);
    let go_on = &mut |_| ControlFlow::Continue(());
    let _ = examine(&backing(), Path::new("disk"), go_on);
    if let Ok((disk, _)) = image::open(backing(), None, true, Tuning::default()) {
        let size = disk.size();
        let mut buf = [0; 512];
        for at in [0, size / 2, size - 512] {
            disk.read_at(&mut buf, at).expect("it can be read");
            disk.block_status(at, 512).expect("it has a status");
        }
    }
}

/// Gives a disk another size, and looks whether it shows the same.
pub fn resize(data: &[u8]) {
    let Some((flags, bytes)) = disk_of(data) else {
        return;
    };
    let (_, backing) = file(&bytes);
    let Ok(found) = image::recognise(&backing(), Tuning::default()) else {
        return;
    };
    let old_size = found.footer.current_size;
    if found.disk_type != DiskType::Dynamic || old_size > 8 << 20 {
        return;
    }
    let read = |disk: &dyn image::Image| {
        let mut content = vec![0; disk.size() as usize];
        disk.read_at(&mut content, 0).expect("it can be read");
        content
    };
    let open = || image::open(backing(), None, true, Tuning::default()).map(|(disk, _)| disk);
    let Ok(disk) = open() else {
        return;
    };
    let mut content = read(&*disk);
    drop(disk);
    for size in [
        512 * (1 + u64::from(flags) * 40),
        old_size + 512 * u64::from(flags),
    ] {
        let found = image::recognise(&backing(), Tuning::default()).expect("it was opened");
        let size = size.min(16 << 20);
        if sparse::obstacle(&found, size).is_some() {
            return;
        }
        match sparse::apply(&backing(), &found, size, Tuning::default()) {
            Ok(()) => content.resize(size as usize, 0),
            Err(error) => assert_eq!(error.kind(), IoErrorKind::NoSpace, "{error}"),
        }
        let disk = open().expect("what was resized can be opened");
        assert!(read(&*disk) == content, "what was resized shows the same");
    }
}

/// Repairs a disk in place, and undoes that.
pub fn repair(data: &[u8]) {
    let Some((_, bytes)) = disk_of(data) else {
        return;
    };
    let (storage, backing) = file(&bytes);
    let path = Path::new("disk");
    let go_on = &mut |_| ControlFlow::Continue(());
    let Ok(verdict) = examine(&backing(), path, go_on) else {
        return;
    };
    let Some((found, layout)) = verdict
        .found
        .and_then(|found| found.layout().map(|layout| (found, layout)))
    else {
        return;
    };
    let plan = match Plan::of(&backing(), &found, &layout) {
        Ok(Some(plan)) => plan,
        Ok(None) => return,
        Err(error) => return assert_eq!(error.kind(), IoErrorKind::NoSpace, "{error}"),
    };
    let journal = Journal::decode(&plan.journal.encode()).expect("its own bytes");
    assert!(journal == plan.journal, "a journal is as it was written");
    let io = OperationError::io(path);
    let done = plan.apply(&backing(), Tuning::default(), &io, &mut |_| Ok(()));
    if done.is_ok() {
        let verdict = examine(&backing(), path, go_on).expect("it is a disk");
        assert_ne!(
            verdict.report.worst(),
            Some(Severity::Error),
            "it is repaired"
        );
    }
    assert!(journal.fits(&backing()).expect("memory can be read"));
    journal.put_back(&backing()).expect("there was room before");
    assert!(all_of(&storage) == bytes, "it is as it was");
}

/// Takes bytes for the journal of a repair and for the record of a resize,
/// with their sums as they are and made right, and others for the disk that
/// is to be put as they say. The first two bytes are the length of the former.
pub fn journals(data: &[u8]) {
    let Some((len, rest)) = data.split_first_chunk() else {
        return;
    };
    let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
    let (record, disk) = rest.split_at(len);
    let mut sealed = record.to_vec();
    // As the journal has them: the body's length and sum, the head's sum.
    if sealed.len() >= 512 {
        let (head, body) = sealed.split_at_mut(512);
        head[56..64].copy_from_slice(&(body.len() as u64).to_be_bytes());
        head[64..96].copy_from_slice(&Sha256::digest(body));
        let sum = Sha256::digest(&head[..480]);
        head[480..].copy_from_slice(&sum);
    }
    for bytes in [record, &sealed] {
        if let Some(journal) = Journal::decode(bytes) {
            let (_, backing) = file(disk);
            if journal.fits(&backing()).unwrap_or_default() {
                let _ = journal.put_back(&backing());
            }
        }
    }
    let mut sealed = record.to_vec();
    // As the record has them: two footers and the sum of all.
    if let Some(end) = sealed.len().checked_sub(32).filter(|end| *end >= 1024) {
        for footer in [end - 1024, end - 512] {
            seal(&mut sealed[footer..footer + 512]);
        }
        let sum = Sha256::digest(&sealed[..end]);
        sealed[end..].copy_from_slice(&sum);
    }
    for bytes in [record, &sealed] {
        if let Some(record) = Record::decode(bytes) {
            assert_eq!(record.encode()[..], *bytes);
            let (_, backing) = file(disk);
            if let Ok(Some(found)) = record.view(&backing()) {
                let len = backing().len().expect("memory has a length");
                assert!(found.footer.current_size <= len, "what is shown is there");
            }
            let _ = record.settle(&backing());
        }
    }
}

/// A folder of up to four children that name each other, or themselves, or
/// what the bytes say. Each is opened, inspected and checked.
pub fn chain(data: &[u8]) {
    let Ok(dir) = folder() else {
        return;
    };
    let pool = crate::Pool::open(&dir).expect("it was just made");
    let mut data = data.iter().copied();
    let mut next = || data.next().unwrap_or_default();
    let disks = 1 + next() % 4;
    for disk in 0..disks {
        let (parent, id, ways) = (next() % 4, next() % 4, next());
        let mut way = |start: &str| {
            let text: Vec<u8> = (0..next() % 24).map(|_| next()).collect();
            let text = String::from_utf8_lossy(&text);
            match ways % 3 {
                0 => format!("{start}{parent}.vhd"),
                1 => format!("{start}{text}"),
                _ => format!("{start}{text}/../{parent}.vhd"),
            }
        };
        let link = image::NewParent {
            unique_id: Uuid::from_bytes([id; 16]),
            modified: 0,
            name: way(""),
            relative: (ways & 4 != 0).then(|| way(".\\")),
            absolute: (ways & 8 != 0).then(|| way(&format!("{}/", dir.display()))),
        };
        let unique_id = Uuid::from_bytes([disk; 16]);
        let kind = match ways & 16 {
            0 => DiskType::Differencing,
            _ => DiskType::Dynamic,
        };
        let footer = Footer::new(kind, 40_960, unique_id, UNIX_EPOCH);
        let (storage, backing) = file(&[]);
        image::format_new(&backing(), kind, &footer, 4096, Some(&link)).expect("there is room");
        let path = dir.join(format!("{disk}.vhd"));
        std::fs::write(path, all_of(&storage)).expect("there is room");
    }
    for disk in 0..disks {
        let rel = format!("{disk}.vhd");
        let search = crate::ParentSearch::new().folder(pool.clone(), "");
        let go_on = &mut |_| ControlFlow::Continue(());
        let report = crate::check(&pool, &rel, &search, go_on).expect("it can be checked");
        let sound = report.worst() != Some(Severity::Error);
        let chain = crate::inspect_chain(&pool, &rel, &search);
        assert!(!sound || chain.is_ok_and(|chain| chain.len() <= 4));
        for access in [crate::Access::ReadOnly, crate::Access::ReadWrite] {
            let disk = crate::Vhd::open_with(&pool, &rel, access, Gate::open(), &search);
            assert!(!sound || disk.is_ok(), "a check agrees with opening");
        }
    }
    std::fs::remove_dir_all(&dir).expect("it is ours");
}

/// A folder of this process alone, in memory where that is possible.
fn folder() -> std::io::Result<std::path::PathBuf> {
    let memory = Path::new("/dev/shm");
    let base = match memory.is_dir() {
        true => memory.to_owned(),
        false => std::env::temp_dir(),
    };
    let dir = base.join(format!("paddock-vhd-fuzz-{}", std::process::id()));
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::create_dir(&dir)?;
    Ok(dir)
}
