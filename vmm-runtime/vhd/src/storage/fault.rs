//! A file that logs what is done to it, fails when told to, and can be shown
//! as it may be after a crash at any point of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Space, Storage};
use crate::image::random::Random;

pub(super) const SECTOR: usize = 512;

/// What was done to the file.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Write {
        offset: u64,
        bytes: Arc<[u8]>,
    },
    Zero {
        offset: u64,
        len: u64,
    },
    SetLen(u64),
    Sync,
    /// A sync that failed: which of the operations before it got to disk is
    /// decided by the seed, and the others never will.
    FailedSync(u64),
}

/// Which call fails, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Io,
    NoSpace,
}

#[derive(Debug, Default)]
struct State {
    /// As the running system sees it.
    current: Vec<u8>,
    /// As the disk has it.
    durable: Vec<u8>,
    log: Vec<Op>,
    /// How many of those no later sync will bring to disk.
    settled: usize,
    /// Calls so far that change something.
    changes: u64,
    /// And those that look at something.
    looks: u64,
    faults: BTreeMap<u64, Fault>,
    bad_looks: BTreeSet<u64>,
    /// Calls that failed.
    failures: usize,
}

/// A handle to such a file. Clones are handles to the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultStorage(Arc<Mutex<State>>);

impl FaultStorage {
    /// A file with durable content. `faults`: the numbers of the changes that
    /// fail.
    pub(crate) fn new(bytes: Vec<u8>, faults: BTreeMap<u64, Fault>) -> FaultStorage {
        FaultStorage(Arc::new(Mutex::new(State {
            durable: bytes.clone(),
            current: bytes,
            faults,
            ..State::default()
        })))
    }

    /// The same, where the looks (reads, lengths, searches for data) of these
    /// numbers fail as well.
    pub(crate) fn with_bad_looks(self, looks: BTreeSet<u64>) -> FaultStorage {
        self.state().bad_looks = looks;
        self
    }

    /// Files of the content `base` in each of which another one of the calls
    /// fails that this one has seen: with `EIO`, and with `ENOSPC` if it is a
    /// change. Named for messages.
    pub(crate) fn each_failing(
        &self,
        base: &[u8],
    ) -> impl Iterator<Item = (String, FaultStorage)> + use<'_> {
        let base = base.to_vec();
        let file = move |faults| FaultStorage::new(base.clone(), faults);
        let again = file.clone();
        let changes = (0..self.changes())
            .flat_map(|call| [(call, Fault::Io), (call, Fault::NoSpace)])
            .map(move |(call, fault)| {
                let name = format!("{fault:?} at change {call}");
                (name, file(BTreeMap::from([(call, fault)])))
            });
        let looks = (0..self.looks()).map(move |look| {
            let file = again(BTreeMap::new()).with_bad_looks(BTreeSet::from([look]));
            (format!("failure of look {look}"), file)
        });
        changes.chain(looks)
    }

    /// How many changes were asked for.
    pub(crate) fn changes(&self) -> u64 {
        self.state().changes
    }

    /// How many looks were.
    pub(crate) fn looks(&self) -> u64 {
        self.state().looks
    }

    /// How many calls failed.
    pub(crate) fn failures(&self) -> usize {
        self.state().failures
    }

    /// How many operations were logged.
    pub(crate) fn position(&self) -> usize {
        self.state().log.len()
    }

    /// The file as the running system sees it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state().current.clone()
    }

    /// The log so far.
    pub(crate) fn log(&self) -> Vec<Op> {
        self.state().log.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn change(&self, op: Op) -> io::Result<()> {
        let mut state = self.state();
        let call = state.changes;
        state.changes += 1;
        let fault = state.faults.get(&call).copied();
        state.failures += usize::from(fault.is_some());
        let (op, result) = match (op, fault) {
            (op, None) => (Some(op), Ok(())),
            (Op::Sync, Some(fault)) => (Some(Op::FailedSync(call)), Err(error(fault))),
            // The first half gets there, to the end of a sector.
            (Op::Write { offset, bytes }, Some(fault)) => {
                let end = (offset as usize + bytes.len() / 2).next_multiple_of(SECTOR);
                let bytes = bytes.get(..end - offset as usize).map(Arc::from);
                (
                    bytes.map(|bytes| Op::Write { offset, bytes }),
                    Err(error(fault)),
                )
            }
            (_, Some(fault)) => (None, Err(error(fault))),
        };
        if let Some(op) = op {
            apply(&mut state.current, &op);
            let current = &state.current;
            let logged = whole_sectors(current.len(), |range| current[range].into(), op);
            state.log.push(logged);
            state.settle();
        }
        result
    }

    /// One more look; the state, if it succeeds.
    fn look(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let look = state.looks;
        state.looks += 1;
        if state.bad_looks.contains(&look) {
            state.failures += 1;
            return Err(error(Fault::Io));
        }
        Ok(state)
    }
}

impl State {
    /// Brings to disk what the last operation has brought there.
    fn settle(&mut self) {
        let end = self.log.len() - 1;
        let before = &self.log[self.settled..end];
        match &self.log[end] {
            Op::Sync => {
                for op in before {
                    apply(&mut self.durable, op);
                }
            }
            Op::FailedSync(seed) => {
                apply_some(&mut self.durable, before, &mut Random::new(*seed));
            }
            _ => return,
        }
        self.settled = end + 1;
    }
}

/// A change as it goes to disk: sectors as a whole, with what else they hold
/// in the page cache at that time. `current`: a range of bytes of the file, of
/// so many.
pub(super) fn whole_sectors(
    len: usize,
    current: impl FnOnce(Range<usize>) -> Arc<[u8]>,
    op: Op,
) -> Op {
    let (offset, bytes) = match &op {
        Op::Write { offset, bytes } => (*offset as usize, bytes.len()),
        Op::Zero { offset, len } => (*offset as usize, *len as usize),
        _ => return op,
    };
    if offset % SECTOR == 0 && bytes % SECTOR == 0 {
        return op;
    }
    let start = offset / SECTOR * SECTOR;
    let end = (offset + bytes).next_multiple_of(SECTOR).min(len);
    Op::Write {
        offset: start as u64,
        bytes: current(start..end),
    }
}

fn error(fault: Fault) -> io::Error {
    io::Error::from_raw_os_error(match fault {
        Fault::Io => libc::EIO,
        Fault::NoSpace => libc::ENOSPC,
    })
}

impl Storage for FaultStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.look()?.current.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.look()?;
        let found = state
            .current
            .get(offset as usize..offset as usize + buf.len());
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.change(Op::Write {
            offset,
            bytes: buf.into(),
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(Op::Sync)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen(len))
    }

    fn zero(&self, offset: u64, len: u64, _space: Space) -> io::Result<()> {
        self.change(Op::Zero { offset, len })
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        let _state = self.look()?;
        Ok((!range.is_empty()).then_some(range))
    }

    /// Pages that nobody wrote to since the last sync, failed or not, come
    /// from the disk again.
    fn drop_cache(&self) -> io::Result<()> {
        let mut state = self.state();
        let mut current = state.durable.clone();
        for op in &state.log[state.settled..] {
            apply(&mut current, op);
        }
        state.current = current;
        Ok(())
    }
}

/// What a file holds.
pub(crate) trait Content: Clone {
    fn len(&self) -> usize;

    /// Cuts it off, or makes it longer by zeros.
    fn set_len(&mut self, len: usize);

    /// Makes it longer if the bytes end past its end.
    fn write(&mut self, bytes: &[u8], offset: usize);

    /// Zeros bytes that it has.
    fn zero(&mut self, range: Range<usize>);
}

impl Content for Vec<u8> {
    fn len(&self) -> usize {
        self.len()
    }

    fn set_len(&mut self, len: usize) {
        self.resize(len, 0);
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.len() < end {
            self.resize(end, 0);
        }
        self[offset..end].copy_from_slice(bytes);
    }

    fn zero(&mut self, range: Range<usize>) {
        self[range].fill(0);
    }
}

/// The bytes that an operation changes.
fn changed(file: &impl Content, op: &Op) -> Range<usize> {
    match op {
        Op::Write { offset, bytes } => *offset as usize..*offset as usize + bytes.len(),
        // Does not make the file longer.
        Op::Zero { offset, len } => {
            let offset = *offset as usize;
            offset..file.len().min(offset + *len as usize).max(offset)
        }
        Op::SetLen(_) | Op::Sync | Op::FailedSync(_) => 0..0,
    }
}

/// Applies those bytes of an operation that are in the range.
fn apply_range(file: &mut impl Content, op: &Op, range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    match op {
        Op::Write { offset, bytes } => {
            let offset = *offset as usize;
            file.write(
                &bytes[range.start - offset..range.end - offset],
                range.start,
            );
        }
        _ => file.zero(range),
    }
}

/// Applies an operation.
pub(super) fn apply(file: &mut impl Content, op: &Op) {
    if let Op::SetLen(len) = op {
        file.set_len(*len as usize);
    }
    let range = changed(file, op);
    apply_range(file, op, range);
}

/// Applies those sectors of an operation that `select` wants.
fn apply_sectors(file: &mut impl Content, op: &Op, mut select: impl FnMut() -> bool) {
    if let Op::SetLen(len) = op
        && select()
    {
        file.set_len(*len as usize);
    }
    let Range { start, end } = changed(file, op);
    // Neighbours in one go.
    let (mut at, mut from) = (start, start);
    while at < end {
        let next = ((at / SECTOR + 1) * SECTOR).min(end);
        if !select() {
            apply_range(file, op, from..at);
            from = next;
        }
        at = next;
    }
    apply_range(file, op, from..end);
}

/// Shows the file as it may be after a crash, for points of the log that
/// follow on each other.
pub(crate) struct Crashes<'a, C = Vec<u8>> {
    log: &'a [Op],
    durable: C,
    /// Operations that no sync covers yet.
    unsynced: Range<usize>,
}

impl<'a, C: Content> Crashes<'a, C> {
    pub(crate) fn new(base: C, log: &'a [Op]) -> Crashes<'a, C> {
        Crashes {
            log,
            durable: base,
            unsynced: 0..0,
        }
    }

    /// The file after a crash when `point` operations had been issued: what
    /// was synced, and some of what was not.
    pub(crate) fn at(&mut self, point: usize, random: &mut Random) -> C {
        self.advance(point);
        let mut file = self.durable.clone();
        apply_some(&mut file, &self.log[self.unsynced.clone()], random);
        file
    }

    /// The file as it is read when `point` operations had been issued and the
    /// page cache holds only what is to be written.
    pub(super) fn uncached(&mut self, point: usize) -> C {
        self.advance(point);
        let mut file = self.durable.clone();
        for op in &self.log[self.unsynced.clone()] {
            apply(&mut file, op);
        }
        file
    }

    fn advance(&mut self, point: usize) {
        assert!(point >= self.unsynced.end);
        for (index, op) in self
            .log
            .iter()
            .enumerate()
            .take(point)
            .skip(self.unsynced.end)
        {
            match op {
                Op::Sync => {
                    for op in &self.log[self.unsynced.start..index] {
                        apply(&mut self.durable, op);
                    }
                    self.unsynced.start = index + 1;
                }
                Op::FailedSync(seed) => {
                    let before = &self.log[self.unsynced.start..index];
                    apply_some(&mut self.durable, before, &mut Random::new(*seed));
                    self.unsynced.start = index + 1;
                }
                _ => {}
            }
        }
        self.unsynced.end = point;
    }
}

/// Applies a random part of operations: of all sectors, of whole operations,
/// all but one operation, or one alone.
fn apply_some(file: &mut impl Content, ops: &[Op], random: &mut Random) {
    let mode = random.below(6);
    let chosen = random.below(ops.len().max(1) as u64) as usize;
    for (index, op) in ops.iter().enumerate() {
        let whole = match mode {
            0 => true,
            1 => false,
            2 => random.below(2) == 0,
            3 => index != chosen,
            4 => index == chosen,
            _ => {
                apply_sectors(file, op, || random.below(2) == 0);
                continue;
            }
        };
        if whole {
            apply(file, op);
        }
        // The file's length may be there without its data.
        if !whole
            && let Op::Write { offset, bytes } = op
            && random.below(2) == 0
        {
            let end = *offset as usize + bytes.len();
            if file.len() < end {
                file.set_len(end);
            }
        }
    }
}
