//! Linked disks: a small file in a pool that stands for a physical disk of
//! the host, so that it can be made a virtual one.
//!
//! Nothing is ever written to the physical disk. It is opened exclusively:
//! the host must not use it meanwhile. The descriptor names it by a path that
//! stays, and has its size and serial number, so that another disk in its
//! place is noticed.

mod descriptor;
mod device;

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::compact::runs;
use crate::convert::{ConvertOptions, CopyReport};
use crate::create::{CreateError, CreateOptions, Names, NewDisk};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::format::bat::BLOCK_SIZE;
use crate::gate::Gate;
use crate::import::Progress;
use crate::lock::{Mode, Sidecar};
use crate::operation::{OperationError, report};
use crate::pool::Pool;
use crate::room::Room;
use crate::size::DiskSize;

pub(crate) use descriptor::{MAGIC, MAX_LEN, parse};
#[cfg(fuzzing)]
pub(crate) use descriptor::{encode, summed};
use device::{Devices, Refused};

/// The physical disk that a linked disk stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkedInfo {
    /// Its path, in `/dev/disk/by-id`.
    pub device: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Its serial number; empty if it has none.
    pub serial: String,
}

/// A linked disk that is open: nobody else, and not the host either, has the
/// physical disk until this is dropped.
#[derive(Debug)]
pub struct Linked {
    file: File,
    info: LinkedInfo,
    _lock: Sidecar,
}

/// Makes the linked disk `rel`, a descriptor of the physical disk `device`,
/// which is a path in `/dev/disk/by-id`: other names change. It must be a
/// whole disk, not a partition or another kind of volume; the host must not
/// use it; and the pool must not lie on it. Nothing is read from it but its
/// size and serial number.
pub fn link(
    pool: &Pool,
    rel: impl AsRef<Path>,
    device: impl AsRef<Path>,
) -> Result<LinkedInfo, OperationError> {
    link_with(pool, rel.as_ref(), device.as_ref(), &Devices::system())
}

fn link_with(
    pool: &Pool,
    rel: &Path,
    device: &Path,
    devices: &Devices,
) -> Result<LinkedInfo, OperationError> {
    let refused = |reason| OperationError::Refused {
        path: rel.to_owned(),
        reason,
    };
    let failed = |error: Refused| from_device(rel, device, error);
    let name = device.to_str().unwrap_or_default();
    let (file, serial) = devices.open(device).map_err(failed)?;
    if devices
        .lies_on(pool.identity()?.0, &file)
        .map_err(|error| failed(error.into()))?
    {
        return Err(refused(format!(
            "the pool lies on the disk {name} itself; put the descriptor on another one"
        )));
    }
    let info = LinkedInfo {
        device: device.to_owned(),
        size: device::len(&file).map_err(|error| failed(error.into()))?,
        serial,
    };
    let text = descriptor::encode(&info).map_err(refused)?;
    let mut names = Names::take(pool, rel)?;
    let file = names.create()?;
    file.write_all_at(text.as_bytes(), 0)
        .and_then(|()| file.sync_all())
        .map_err(|source| CreateError::Io {
            path: rel.to_owned(),
            operation: "write the descriptor",
            source,
        })?;
    names.publish()?;
    Ok(info)
}

impl Linked {
    /// Opens the linked disk `rel` and the physical disk, which must be the
    /// one that was linked. Whoever may write to the pool chooses by this
    /// which of the host's disks is opened: it is for administrators.
    pub fn open(pool: &Pool, rel: impl AsRef<Path>) -> Result<Linked, OpenError> {
        Linked::open_with(pool, rel.as_ref(), &Devices::system())
    }

    fn open_with(pool: &Pool, rel: &Path, devices: &Devices) -> Result<Linked, OpenError> {
        let place = pool.place(rel)?;
        place.identity()?;
        let lock = Sidecar::acquire(&place, Mode::Exclusive)
            .map_err(|error| OpenError::from_lock(rel, error))?;
        let info = read(rel, &File::from(place.open(OFlags::RDONLY)?))?;
        let device = info.device.as_path();
        let failed = |error: Refused| from_device(rel, device, error);
        let (file, serial) = devices.open(device).map_err(failed)?;
        let size = device::len(&file).map_err(|error| failed(error.into()))?;
        if (size, &serial) != (info.size, &info.serial) {
            return Err(OpenError::Unsupported {
                path: rel.to_owned(),
                what: format!(
                    "the disk {} has {size} bytes and the serial number '{serial}', linked were {} bytes and '{}': it is another one; link it anew",
                    device.display(),
                    info.size,
                    info.serial
                ),
            });
        }
        Ok(Linked {
            file,
            info,
            _lock: lock,
        })
    }

    /// What the descriptor says, which is so.
    pub fn info(&self) -> &LinkedInfo {
        &self.info
    }
}

/// Makes the disk `target` of what the linked disk `rel` stands for, as
/// [`convert`](crate::convert) does of a virtual one; the parents' search has
/// no effect. A disk of more than 127 GiB can't be an IDE disk afterwards. For
/// a dynamic one the file system must have room for the whole disk: what of
/// it is zero is not known before it is read.
pub fn import_linked(
    pool: &Pool,
    rel: impl AsRef<Path>,
    target_pool: &Pool,
    target: impl AsRef<Path>,
    gate: Gate,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<CopyReport, OperationError> {
    let source = Linked::open(pool, &rel)?;
    import(
        &source,
        rel.as_ref(),
        target_pool,
        target.as_ref(),
        gate,
        options,
        progress,
    )
}

/// How much is read at once.
const CHUNK: u64 = 1 << 20;

fn import(
    source: &Linked,
    rel: &Path,
    target_pool: &Pool,
    target: &Path,
    gate: Gate,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<CopyReport, OperationError> {
    let total = source.info.size;
    let size = DiskSize::from_bytes(total).map_err(|error| OperationError::Refused {
        path: rel.to_owned(),
        reason: format!("the physical disk: {error}"),
    })?;
    let create = CreateOptions {
        disk_type: options.disk_type,
        size,
        unique_id: options.unique_id,
        created: options.created,
        gate,
    };
    let data = (options.disk_type == DiskType::Dynamic).then(|| {
        let mut room = Room::in_blocks(BLOCK_SIZE);
        room.add(0..total);
        room.bytes()
    });
    let new = NewDisk::begin(target_pool, target, &create, data, &mut |_| {
        progress(Progress { done: 0, total })
    })?;
    let to_target = OperationError::io(target);
    let mut buf = vec![0; CHUNK as usize];
    let (mut at, mut written) = (0, 0);
    while at < total {
        let chunk = &mut buf[..CHUNK.min(total - at) as usize];
        source
            .file
            .read_exact_at(chunk, at)
            .map_err(|error| from_device(rel, &source.info.device, error.into()))?;
        for run in runs(chunk, at) {
            let offset = at + run.start as u64;
            written += run.len() as u64;
            new.device()
                .write_at(&chunk[run], offset)
                .map_err(&to_target)?;
        }
        at += chunk.len() as u64;
        report(at, total, progress)?;
    }
    drop(new.finish()?);
    Ok(CopyReport {
        size: total,
        written_bytes: written,
    })
}

/// Whether a file that begins with `start` is a descriptor.
pub(crate) fn is_descriptor(start: &[u8]) -> bool {
    start.starts_with(MAGIC.as_bytes())
}

/// What a file says if it is a descriptor.
pub(crate) fn recognise(rel: &Path, file: &File) -> Result<Option<LinkedInfo>, OpenError> {
    let mut start = [0; MAGIC.len()];
    match file.read_exact_at(&mut start, 0) {
        Ok(()) if is_descriptor(&start) => read(rel, file).map(Some),
        // What can't be read is no descriptor; as a disk it will be told.
        _ => Ok(None),
    }
}

/// Reads a descriptor.
fn read(rel: &Path, file: &File) -> Result<LinkedInfo, OpenError> {
    let io = |source| OpenError::Io {
        path: rel.to_owned(),
        operation: "read the descriptor",
        source,
    };
    let len = file.metadata().map_err(io)?.len();
    // One more than may be.
    let mut bytes = vec![0; len.min(MAX_LEN as u64 + 1) as usize];
    file.read_exact_at(&mut bytes, 0).map_err(io)?;
    if !is_descriptor(&bytes) {
        return Err(OpenError::Unsupported {
            path: rel.to_owned(),
            what: "it is not the descriptor of a linked disk".to_owned(),
        });
    }
    parse(&bytes).map_err(|found| OpenError::Corrupt {
        path: rel.to_owned(),
        found: format!("as the descriptor of a linked disk: {found}"),
    })
}

fn from_device(rel: &Path, device: &Path, error: Refused) -> OpenError {
    let path = rel.to_owned();
    let device = device.display();
    match error {
        Refused::Used => OpenError::InUse {
            path,
            holder: format!(
                "the host uses the disk {device} (mounted, or part of a volume or an array), or another program has it"
            ),
        },
        Refused::Kind(what) => OpenError::Unsupported {
            path,
            what: format!("{device} {what}"),
        },
        Refused::Io(source) => OpenError::Io {
            path,
            operation: "open the physical disk",
            source: io::Error::new(source.kind(), format!("{device}: {source}")),
        },
    }
}

#[cfg(test)]
mod tests;
