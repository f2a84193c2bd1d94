//! The way from one disk to another: the caller's thread reads, others leave
//! out the zeros and write, and one more has what was written brought to disk
//! meanwhile, so that the sync at the end finds little to do.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};

use crate::block::IoError;

/// Zeros are left out in pieces of this size: what most file systems in
/// images align to, and a multiple of every sector size.
pub(crate) const PIECE: usize = 64 << 10;

/// How much is read at once: a part of a block of any disk of ours.
pub(crate) const CHUNK: usize = 1 << 20;

/// Threads that write.
const WRITERS: usize = 2;

/// Chunks in memory.
const CHUNKS: usize = 6;

/// So much of what is written follows on each other before it is brought to
/// disk, in bytes.
const BEHIND: u64 = 16 << 20;

/// Where a copy goes.
pub(crate) trait Target: Sync {
    /// Writes bytes of the disk. From many threads at once.
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), IoError>;

    /// Begins to bring to disk what was written in the range. For speed
    /// alone.
    fn write_behind(&self, range: Range<u64>);
}

/// Why a copy ended early.
#[derive(Debug)]
pub(crate) enum Stopped<E> {
    /// The reading side gave up.
    Reader(E),
    /// The target can't be written.
    Target(IoError),
}

impl<E> From<E> for Stopped<E> {
    fn from(error: E) -> Stopped<E> {
        Stopped::Reader(error)
    }
}

struct Chunk {
    offset: u64,
    bytes: Vec<u8>,
}

/// Copies what `read` passes on, and returns how many bytes were written. All
/// of it is written when this returns, but not durable.
pub(crate) fn copy<E>(
    target: &dyn Target,
    read: impl FnOnce(&mut Feed<'_>) -> Result<(), Stopped<E>>,
) -> Result<u64, Stopped<E>> {
    let outcome = Outcome::default();
    let (full, chunks) = sync_channel(CHUNKS);
    let (empty, buffers) = channel();
    let (written, ranges) = channel();
    let chunks = Mutex::new(chunks);
    let result = std::thread::scope(|scope| {
        // Gone before the threads are waited for, or they would wait for it.
        let mut feed = Feed {
            outcome: &outcome,
            full,
            buffers,
            made: 0,
        };
        for _ in 0..WRITERS {
            let (empty, written) = (empty.clone(), written.clone());
            let (chunks, outcome) = (&chunks, &outcome);
            scope.spawn(move || write_chunks(target, chunks, &empty, &written, outcome));
        }
        drop((empty, written));
        scope.spawn(move || write_behind(target, ranges));
        let result = read(&mut feed);
        if result.is_err() {
            outcome.stop.store(true, Ordering::SeqCst);
        }
        result
    });
    let failed = outcome.failed.into_inner();
    match failed.unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(Stopped::Target(error)),
        None => result.map(|()| outcome.written.into_inner()),
    }
}

#[derive(Default)]
struct Outcome {
    written: AtomicU64,
    /// Nothing more is to be written.
    stop: AtomicBool,
    failed: Mutex<Option<IoError>>,
}

/// What the reading side passes chunks to.
pub(crate) struct Feed<'a> {
    outcome: &'a Outcome,
    full: SyncSender<Chunk>,
    buffers: Receiver<Vec<u8>>,
    made: usize,
}

impl Feed<'_> {
    /// Reads the bytes from `at` on, not beyond `end` and not beyond the next
    /// multiple of a chunk, and passes them on. Returns how many those are.
    pub(crate) fn chunk<E>(
        &mut self,
        at: u64,
        end: u64,
        read: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<u64, Stopped<E>> {
        let len = (CHUNK as u64 - at % CHUNK as u64).min(end - at);
        let mut bytes = if self.made < CHUNKS {
            self.made += 1;
            vec![0; CHUNK]
        } else {
            self.buffers.recv().map_err(|_| gone())?
        };
        if self.outcome.stop.load(Ordering::SeqCst) {
            // The reason is kept with the outcome, and replaces this one.
            return Err(gone());
        }
        bytes.resize(len as usize, 0);
        read(&mut bytes)?;
        let chunk = Chunk { offset: at, bytes };
        self.full.send(chunk).map_err(|_| gone())?;
        Ok(len)
    }
}

fn gone<E>() -> Stopped<E> {
    Stopped::Target(IoError::Io {
        disk: "the target".into(),
        operation: "write",
        source: std::io::Error::from(std::io::ErrorKind::BrokenPipe).into(),
    })
}

fn write_chunks(
    target: &dyn Target,
    chunks: &Mutex<Receiver<Chunk>>,
    empty: &Sender<Vec<u8>>,
    written: &Sender<Range<u64>>,
    outcome: &Outcome,
) {
    loop {
        let next = chunks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Chunk { offset, bytes }) = next else {
            return;
        };
        if !outcome.stop.load(Ordering::SeqCst) {
            let result = write_runs(target, &bytes, offset, |run| {
                outcome
                    .written
                    .fetch_add(run.end - run.start, Ordering::SeqCst);
                // Its receiver outlives the writers.
                let _ = written.send(run);
            });
            if let Err(error) = result {
                outcome.stop.store(true, Ordering::SeqCst);
                let mut failed = outcome
                    .failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                failed.get_or_insert(error);
            }
        }
        // The reader may be gone; it needs no buffers then.
        let _ = empty.send(bytes);
    }
}

/// Has what was written brought to disk, neighbours together.
fn write_behind(target: &dyn Target, ranges: Receiver<Range<u64>>) {
    let mut window: Range<u64> = 0..0;
    for range in ranges {
        // Two writers: not quite in order.
        if range.start.abs_diff(window.end) > BEHIND || window.is_empty() {
            if !window.is_empty() {
                target.write_behind(window);
            }
            window = range;
            continue;
        }
        window = window.start.min(range.start)..window.end.max(range.end);
        if window.end - window.start >= BEHIND {
            target.write_behind(window);
            window = 0..0;
        }
    }
}

/// Writes the pieces of a chunk that are not zero, neighbours in one go.
fn write_runs(
    target: &dyn Target,
    chunk: &[u8],
    offset: u64,
    written: impl Fn(Range<u64>),
) -> Result<(), IoError> {
    // Pieces begin at multiples of their size on the disk.
    let piece_end = |from: usize| {
        let within = ((offset + from as u64) % PIECE as u64) as usize;
        (from + PIECE - within).min(chunk.len())
    };
    let mut start = 0;
    while start < chunk.len() {
        let mut end = start;
        while end < chunk.len() && !is_zero(&chunk[end..piece_end(end)]) {
            end = piece_end(end);
        }
        if end > start {
            target.write(&chunk[start..end], offset + start as u64)?;
            written(offset + start as u64..offset + end as u64);
        }
        start = if end < chunk.len() {
            piece_end(end)
        } else {
            end
        };
    }
    Ok(())
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Compares the bytes with themselves, one further on: a memcmp.
    bytes.first().is_none_or(|&first| first == 0)
        && bytes[..bytes.len().saturating_sub(1)] == bytes[bytes.len().min(1)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what is written; fails from `limit` on.
    struct Memory {
        bytes: Mutex<Vec<u8>>,
        writes: AtomicU64,
        limit: u64,
    }

    impl Memory {
        fn new(len: usize, limit: u64) -> Memory {
            Memory {
                bytes: Mutex::new(vec![0; len]),
                writes: AtomicU64::new(0),
                limit,
            }
        }
    }

    impl Target for Memory {
        fn write(&self, bytes: &[u8], offset: u64) -> Result<(), IoError> {
            if offset >= self.limit {
                return Err(IoError::GateClosed);
            }
            self.writes.fetch_add(1, Ordering::SeqCst);
            let at = offset as usize;
            self.bytes.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }

        fn write_behind(&self, range: Range<u64>) {
            assert!(range.end <= self.bytes.lock().unwrap().len() as u64);
        }
    }

    fn copy_all(source: &[u8], target: &Memory) -> Result<u64, Stopped<&'static str>> {
        copy(target, |feed| {
            let (mut at, end) = (0, source.len() as u64);
            while at < end {
                at += feed.chunk(at, end, |buf| {
                    buf.copy_from_slice(&source[at as usize..at as usize + buf.len()]);
                    Ok::<_, &'static str>(())
                })?;
            }
            Ok(())
        })
    }

    #[test]
    fn everything_but_zeros_is_written_once() {
        let mut source = vec![0; 20 * CHUNK + 12_345];
        for at in [
            0,
            PIECE - 1,
            3 * CHUNK,
            3 * CHUNK + PIECE,
            20 * CHUNK + 12_344,
        ] {
            source[at] = 7;
        }
        let target = Memory::new(source.len(), u64::MAX);
        let written = copy_all(&source, &target).unwrap();
        assert!(*target.bytes.lock().unwrap() == source);
        // The first piece, two neighbours, and the piece at the end.
        assert_eq!(written, 3 * PIECE as u64 + 12_345);
        assert_eq!(target.writes.into_inner(), 3);
    }

    #[test]
    fn the_first_failure_ends_it() {
        let source = vec![1; 64 * CHUNK];
        let target = Memory::new(source.len(), 5 * CHUNK as u64);
        assert!(matches!(
            copy_all(&source, &target),
            Err(Stopped::Target(IoError::GateClosed))
        ));
        // All before it, but for the one that the other writer may have had in hand.
        let writes = target.writes.into_inner();
        assert!((4..=5).contains(&writes), "{writes}");
    }

    #[test]
    fn the_reader_can_give_up() {
        let target = Memory::new(8 * CHUNK, u64::MAX);
        let result = copy(&target, |feed| {
            for at in 0..8 * CHUNK as u64 {
                feed.chunk(at, at + 1, |_| if at == 5 { Err("enough") } else { Ok(()) })?;
            }
            Ok(())
        });
        assert!(matches!(result, Err(Stopped::Reader("enough"))));
        assert_eq!(target.writes.into_inner(), 0);
    }
}
