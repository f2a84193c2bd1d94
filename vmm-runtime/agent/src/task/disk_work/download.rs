//! Makes a disk of an image on the web: downloaded beside the disk, compared with its sum, and only then used.
//!
//! What an agent had downloaded when it ended is replaced by the next try, which begins anew: nobody knows what of it
//! had reached the file system.

use super::{
    Job,
    failure::{cancelled, from_create, from_import, io_error},
    image::{convert_from, fits, wrong_sum},
    look::look,
    make::{already_made, disk_type, grow, sha256, size},
    pools::At,
};
use crate::{
    download::{Answer, Web, shown},
    instance::core::Failure,
    task::runner::Control,
};
use paddock_crds::{virtual_hard_disk::ImageFormat, virtual_hard_disk_task::TaskResult};
use paddock_vhd::{
    CreateError, DiskSize, DiskType, ImportError, ImportOptions, ParentSearch, Progress, Scratch,
    import_raw,
};
use sha2::{Digest, Sha256};
use std::{fs::File, io, ops::ControlFlow, os::unix::fs::FileExt, path::Path, time::Duration};

/// From one look at whether the task was deleted to the next.
const LOOK_EACH: Duration = Duration::from_secs(1);

pub(super) fn import(job: &Job<'_>, web: &Web) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let source = job
        .order
        .download
        .as_ref()
        .ok_or_else(|| io_error("the order names nothing to download".to_owned()))?;
    let options = ImportOptions {
        disk_type: disk_type(job)?,
        size: size(job)?,
        // Of the download it is compared while that comes.
        sha256: None,
        unique_id: Some(job.identity()),
        gate: job.control.gate(),
    };
    let sum = sha256(&source.sha256)?;
    // Asked before the download: afterwards it would be in vain.
    if !matches!(at.find(), Ok(None)) {
        already_made(job, &at)?;
        // One that was not grown yet.
        grow(job, &at)?;
        return look(&at);
    }
    let scratch = Scratch::beside(&at.pool, at.path).map_err(|e| at.named(from_create(&e)))?;
    let room = Room {
        at: &at,
        options: &options,
        format: source.format,
    };
    download(job, web, &source.url, sum, scratch.file(), &room)?;
    let made = match source.format {
        ImageFormat::Raw => from_raw(job, &at, scratch.file(), &options),
        ImageFormat::Vhd => from_vhd(job, &at, scratch.path()),
    };
    made.map_err(|failure| Failure {
        message: format!("{}: {}", shown(&source.url), failure.message),
        ..failure
    })?;
    look(&at)
}

fn from_raw(
    job: &Job<'_>,
    at: &At<'_>,
    image: &File,
    options: &ImportOptions,
) -> Result<(), Failure> {
    match import_raw(
        image,
        &at.pool,
        at.path,
        options,
        &mut second_half(job.control),
    ) {
        Ok(_) => Ok(()),
        Err(ImportError::Create(CreateError::AlreadyExists { .. })) => {
            already_made(job, at).map(drop)
        }
        Err(error) => Err(at.named(from_import(&error))),
    }
}

fn from_vhd(job: &Job<'_>, at: &At<'_>, image: &Path) -> Result<(), Failure> {
    let from = At {
        pool: at.pool.clone(),
        name: at.name,
        path: image,
    };
    let found = from
        .find()?
        .ok_or_else(|| io_error("the download is gone".to_owned()))?;
    if found.disk_type == DiskType::Differencing {
        // Its parent would be looked for in the pool, among disks of others.
        return Err(Failure::new(
            "UnsupportedFormat",
            "a differencing disk, whose parent is not on the web: merge it first, or put both into a pool and use source.image",
        ));
    }
    fits(job, &from, &found)?;
    convert_from(
        job,
        &from,
        at,
        ParentSearch::new(),
        &mut second_half(job.control),
    )?;
    grow(job, at)
}

/// Takes in how far the making of the disk is: the second half, after the download.
fn second_half(control: &Control) -> impl FnMut(Progress) -> ControlFlow<()> + '_ {
    |progress| {
        let (done, total) = (progress.done, progress.total);
        control.set_progress(total + done, 2 * total);
        if control.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// The room for a download and the disk that is made of it.
struct Room<'a> {
    at: &'a At<'a>,
    options: &'a ImportOptions,
    format: ImageFormat,
}

impl Room<'_> {
    /// Refuses an image of `len` bytes that cannot become the disk.
    fn check(&self, url: &str, len: u64) -> Result<(), Failure> {
        let most = match self.format {
            ImageFormat::Raw => self.options.size.unwrap_or(DiskSize::MAX).bytes(),
            // How large its disk is is known when it is there.
            ImageFormat::Vhd => u64::MAX,
        };
        if len > most {
            return Err(Failure::new(
                "SourceTooLarge",
                format!(
                    "{url}: the image has {len} bytes and the disk only {most}: choose a larger size"
                ),
            ));
        }
        let disk = match self.options.disk_type {
            DiskType::Fixed => self.options.size.map_or(len, DiskSize::bytes),
            _ => 0,
        };
        let space = self.at.pool.space();
        let have = space
            .map_err(|error| io_error(error.to_string()))?
            .available;
        let need = len.saturating_add(disk);
        if need > have {
            return Err(self.at.named(Failure::new(
                "PoolFull",
                format!(
                    "{url}: the image has {len} bytes, and takes {need} together with the disk until that is made; the pool has {have} left: free some or choose another pool"
                ),
            )));
        }
        Ok(())
    }
}

/// Downloads into `file`. Blocks.
fn download(
    job: &Job<'_>,
    web: &Web,
    url: &str,
    sum: [u8; 32],
    file: &File,
    room: &Room<'_>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| io_error(format!("start a runtime: {error}")))?;
    let result = runtime.block_on(async {
        let answer = unless_cancelled(job, web.get(url)).await??;
        room.check(shown(url), answer.len())?;
        receive(job, answer, sum, file).await
    });
    // A question for a name that hangs holds up nothing.
    runtime.shutdown_background();
    result
}

/// Waits for `work`, or until the task is deleted.
async fn unless_cancelled<T>(job: &Job<'_>, work: impl Future<Output = T>) -> Result<T, Failure> {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(LOOK_EACH, &mut work).await {
            _ if job.control.is_cancelled() => return Err(cancelled()),
            Ok(done) => return Ok(done),
            Err(_) => {}
        }
    }
}

async fn receive(
    job: &Job<'_>,
    mut answer: Answer,
    sum: [u8; 32],
    file: &File,
) -> Result<(), Failure> {
    let mut hash = Sha256::new();
    let mut received = 0;
    while let Some(piece) = unless_cancelled(job, answer.next()).await?? {
        hash.update(&piece);
        file.write_all_at(&piece, received)
            .map_err(|error| from_write(answer.url(), &error))?;
        received += piece.len() as u64;
        // The first half.
        job.control.set_progress(received, 2 * answer.len());
    }
    let found = <[u8; 32]>::from(hash.finalize());
    if found == sum {
        return Ok(());
    }
    Err(wrong_sum(answer.url(), found, sum))
}

fn from_write(url: &str, error: &io::Error) -> Failure {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "PoolFull",
        _ => "IoError",
    };
    Failure::new(reason, format!("{url}: write the download: {error}"))
}
