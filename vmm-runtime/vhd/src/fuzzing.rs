//! What the fuzz targets call. Not part of the library proper: compiled only
//! with `--cfg fuzzing`.

use std::ops::ControlFlow;
use std::time::UNIX_EPOCH;

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
use crate::storage::Backing;
use crate::storage::memory::MemoryStorage;

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
