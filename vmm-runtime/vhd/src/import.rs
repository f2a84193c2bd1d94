//! Making a disk out of a raw image.

use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, SeekFrom};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::block::IoError;
pub(crate) use crate::copying::is_zero;
use crate::copying::{self, CHUNK, Feed, PIECE, Stopped, Target};
use crate::create::{CreateError, CreateOptions, NewDisk};
use crate::format::bat::BLOCK_SIZE;
use crate::format::footer::{self, Footer};
use crate::format::{DiskType, SECTOR, foreign};
use crate::gate::Gate;
use crate::image::Image;
use crate::pool::Pool;
use crate::room::Room;
use crate::size::{DiskSize, DiskSizeError};
use crate::storage::next_data;

/// What [`import_raw`] makes.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The type of the new disk.
    pub disk_type: DiskType,
    /// Its size. `None`: that of the source, rounded up to a sector and to
    /// the smallest disk. What lies behind the source's end is zero.
    pub size: Option<DiskSize>,
    /// What the SHA-256 of the whole source must be.
    pub sha256: Option<[u8; 32]>,
    /// The identity of the new disk, by which an import that was cut short
    /// after its end is recognised. `None`: a random one.
    pub unique_id: Option<Uuid>,
    /// What every write passes, and the naming of the disk.
    pub gate: Gate,
}

/// How far a long operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the source that are read, or passed over because they are
    /// holes; bytes of metadata for a check.
    pub done: u64,
    /// All of them.
    pub total: u64,
}

/// What an import did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportReport {
    /// The size of the new disk.
    pub size: DiskSize,
    /// Bytes of the source.
    pub source_bytes: u64,
    /// Bytes that were not zero, and so were written; counted in pieces of
    /// at most 64 KiB.
    pub written_bytes: u64,
    /// The SHA-256 of the source, if one was asked for.
    pub sha256: Option<[u8; 32]>,
}

/// Why nothing was imported. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The target can't be made.
    #[error(transparent)]
    Create(CreateError),
    /// The source is larger than the disk is to be.
    #[error("the source has {source_bytes} bytes and the disk only {size}: choose a larger size")]
    SourceTooLarge {
        /// Bytes of the source.
        source_bytes: u64,
        /// The size asked for.
        size: DiskSize,
    },
    /// No disk can have the size of the source.
    #[error("the source: {0}")]
    Size(#[from] DiskSizeError),
    /// The source is an image in a format of its own, not a raw one.
    #[error("the source is not a raw image but {format}; convert it to raw first")]
    NotRaw {
        /// What it is.
        format: &'static str,
    },
    /// The source's SHA-256 is another one.
    #[error(
        "the source's SHA-256 is {}, expected {}; the download is damaged or the sum is of another image",
        Hex(found),
        Hex(expected)
    )]
    WrongSha256 {
        /// What it should be.
        expected: [u8; 32],
        /// What it is.
        found: [u8; 32],
    },
    /// The progress callback said to stop.
    #[error("the import was cancelled")]
    Cancelled,
    /// The source can't be read.
    #[error("{operation} of the source: {source}")]
    Source {
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The target can't be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The new disk.
        path: PathBuf,
        /// What went wrong.
        source: IoError,
    },
}

impl From<CreateError> for ImportError {
    fn from(error: CreateError) -> ImportError {
        match error {
            CreateError::Cancelled => ImportError::Cancelled,
            CreateError::GateClosed { path } => ImportError::Write {
                path,
                source: IoError::GateClosed,
            },
            error => ImportError::Create(error),
        }
    }
}

struct Hex<'a>(&'a [u8; 32]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Makes the disk `rel` out of the raw image `source` (a regular file or a
/// block device), leaving out its holes and its zeros. Only when the whole
/// source was read, its sum compared, and everything is durable, the disk
/// gets its name. `progress` is called for each MiB and each hole, and may
/// cancel.
///
/// A dynamic disk is refused for lack of space if the source's data would not
/// fit, not counting the zeros in it that are yet to be found.
pub fn import_raw(
    source: &File,
    pool: &Pool,
    rel: impl AsRef<Path>,
    options: &ImportOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<ImportReport, ImportError> {
    let rel = rel.as_ref();
    let total = source_len(source)?;
    let size = disk_size(total, options.size)?;
    refuse_formats(source, total)?;
    let runs = DataRuns { source, total };
    let mut create = CreateOptions::new(options.disk_type, size);
    create.gate = options.gate.clone();
    if let Some(unique_id) = options.unique_id {
        create.unique_id = unique_id;
    }
    let data = match options.disk_type {
        DiskType::Dynamic => Some(runs.room()?),
        _ => None,
    };
    let disk = NewDisk::begin(pool, rel, &create, data, &mut |_| {
        progress(Progress { done: 0, total })
    })?;
    // Where the kernel can't be told, it finds out by itself.
    let _ = rustix::fs::fadvise(source, 0, None, Advice::Sequential);
    let mut reading = Reading {
        hash: options.sha256.map(|_| Sha256::new()),
        at: 0,
        total,
        progress,
    };
    let written = copying::copy(&Device(disk.image()), |feed| {
        runs.visit(|data| {
            reading.skip(data.start)?;
            reading.data(source, data.end, feed)
        })?;
        Ok(reading.skip(total)?)
    })
    .map_err(|stopped| match stopped {
        Stopped::Reader(error) => error,
        Stopped::Target(source) => ImportError::Write {
            path: rel.to_owned(),
            source,
        },
    })?;
    let Reading { hash, .. } = reading;
    let found = hash.map(|hash| <[u8; 32]>::from(hash.finalize()));
    if let (Some(expected), Some(found)) = (options.sha256, found)
        && expected != found
    {
        return Err(ImportError::WrongSha256 { expected, found });
    }
    // Durable and named; nothing is left to flush.
    drop(disk.finish()?);
    Ok(ImportReport {
        size,
        source_bytes: total,
        written_bytes: written,
        sha256: found,
    })
}

/// Refuses what is no raw image: an image in a format of its own, or neither a
/// regular file nor a block device. Returns its length in bytes.
pub fn check_raw(source: &File) -> Result<u64, ImportError> {
    let total = source_len(source)?;
    refuse_formats(source, total)?;
    Ok(total)
}

fn source_error(operation: &'static str) -> impl Fn(io::Error) -> ImportError {
    move |source| ImportError::Source { operation, source }
}

/// The length of a regular file or a block device.
fn source_len(source: &File) -> Result<u64, ImportError> {
    let kind = source
        .metadata()
        .map_err(source_error("look at"))?
        .file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let error = io::Error::other("it is neither a regular file nor a block device");
        return Err(ImportError::Source {
            operation: "open",
            source: error,
        });
    }
    rustix::fs::seek(source, SeekFrom::End(0))
        .map_err(io::Error::from)
        .map_err(source_error("ask for the length"))
}

/// The size of the new disk: what was asked for if the source fits, else that
/// of the source.
fn disk_size(total: u64, asked: Option<DiskSize>) -> Result<DiskSize, ImportError> {
    match asked {
        Some(size) if size.bytes() < total => Err(ImportError::SourceTooLarge {
            source_bytes: total,
            size,
        }),
        Some(size) => Ok(size),
        None => {
            let bytes = total
                .checked_next_multiple_of(SECTOR)
                .unwrap_or(u64::MAX - SECTOR + 1);
            Ok(DiskSize::from_bytes(bytes.max(DiskSize::MIN.bytes()))?)
        }
    }
}

/// Refuses images that are not raw: a guest would find no disk in them.
fn refuse_formats(source: &File, total: u64) -> Result<(), ImportError> {
    let mut start = [0; foreign::LOOK_AT];
    let len = total.min(foreign::LOOK_AT as u64) as usize;
    source
        .read_exact_at(&mut start[..len], 0)
        .map_err(source_error("read"))?;
    if let Some(format) = foreign::name(&start[..len]) {
        return Err(ImportError::NotRaw { format });
    }
    let mut end = [0; footer::LEN];
    for footer_len in [footer::LEN, footer::OLD_LEN] {
        let Some(offset) = total.checked_sub(footer_len as u64) else {
            continue;
        };
        source
            .read_exact_at(&mut end[..footer_len], offset)
            .map_err(source_error("read"))?;
        if Footer::parse(&end[..footer_len]).is_ok() {
            return Err(ImportError::NotRaw { format: "a VHD" });
        }
    }
    Ok(())
}

/// The parts of the source that are not holes.
struct DataRuns<'a> {
    source: &'a File,
    total: u64,
}

impl DataRuns<'_> {
    fn visit<E: From<ImportError>>(
        &self,
        mut each: impl FnMut(Range<u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 0;
        while let Some(data) =
            next_data(self.source, at..self.total).map_err(source_error("look for data in"))?
        {
            at = data.end;
            each(data)?;
        }
        Ok(())
    }

    /// How much room they take in a new dynamic disk, at most.
    fn room(&self) -> Result<u64, ImportError> {
        let mut room = Room::in_blocks(BLOCK_SIZE);
        self.visit(|data| {
            room.add(data);
            Ok::<_, ImportError>(())
        })?;
        Ok(room.bytes())
    }
}

/// The new disk.
pub(crate) struct Device<'a>(pub(crate) &'a dyn Image);

impl Target for Device<'_> {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), IoError> {
        self.0.write_at(bytes, offset)
    }

    fn write_behind(&self, range: Range<u64>) {
        self.0.write_behind(range.start, range.end - range.start);
    }
}

/// The reading side of an import.
struct Reading<'a> {
    hash: Option<Sha256>,
    /// How far it has come in the source.
    at: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

impl Reading<'_> {
    /// Passes over a hole up to `end`. The sum is that of zeros.
    fn skip(&mut self, end: u64) -> Result<(), ImportError> {
        static ZEROS: [u8; PIECE] = [0; PIECE];
        while let Some(hash) = &mut self.hash
            && self.at < end
        {
            let len = (end - self.at).min(CHUNK as u64);
            let mut left = len as usize;
            while left > 0 {
                let piece = left.min(PIECE);
                hash.update(&ZEROS[..piece]);
                left -= piece;
            }
            self.at += len;
            report(self.at, self.total, self.progress)?;
        }
        if self.at < end {
            self.at = end;
            report(self.at, self.total, self.progress)?;
        }
        Ok(())
    }

    /// Passes data up to `end` on.
    fn data(
        &mut self,
        source: &File,
        end: u64,
        feed: &mut Feed<'_>,
    ) -> Result<(), Stopped<ImportError>> {
        while self.at < end {
            self.at += feed.chunk(self.at, end, |chunk| {
                source
                    .read_exact_at(chunk, self.at)
                    .map_err(source_error("read"))?;
                if let Some(hash) = &mut self.hash {
                    hash.update(&*chunk);
                }
                Ok(())
            })?;
            report(self.at, self.total, self.progress)?;
        }
        Ok(())
    }
}

fn report(
    done: u64,
    total: u64,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), ImportError> {
    match progress(Progress { done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ImportError::Cancelled),
    }
}
