//! A disk that is being made.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::SystemTime;

use uuid::Uuid;

use super::{CreateError, CreateOptions, Names};
use crate::block::{BlockDevice, IoError};
use crate::format::DiskType;
use crate::format::bat::BLOCK_SIZE;
use crate::format::footer::Footer;
use crate::format::geometry::Geometry;
use crate::gate::{Gate, GatePass};
use crate::image::{self, Image, NewParent, Refusal, Tuning, format_new, formatted_len, recognise};
use crate::lock::Sidecar;
use crate::pool::Pool;
use crate::storage::{Backing, FileStorage};
use crate::vhd::Vhd;

/// What a new disk is to be.
pub(crate) struct Blueprint {
    pub(crate) disk_type: DiskType,
    /// Bytes that the guest sees.
    pub(crate) size: u64,
    /// `None`: computed from the size.
    pub(crate) geometry: Option<Geometry>,
    pub(crate) unique_id: Uuid,
    pub(crate) created: SystemTime,
    pub(crate) block_size: u32,
    /// Of a differencing disk.
    pub(crate) parent: Option<NewParent>,
    /// What every change of it passes.
    pub(crate) gate: Gate,
}

/// What is written into a new disk's file.
struct Form<'a> {
    disk_type: DiskType,
    footer: Footer,
    block_size: u32,
    parent: Option<&'a NewParent>,
    gate: &'a Gate,
}

/// Told how many zeros of a fixed disk are written, where the file system
/// can't reserve its space; may cancel.
pub(crate) type Zeroing<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// A disk that is being made: complete but for its name, and gone without a
/// trace if it is dropped before it gets it.
pub(crate) struct NewDisk {
    /// Dropped first, with the file.
    image: Box<dyn Image>,
    disk_type: DiskType,
    gate: Gate,
    /// Those of the parents.
    locks: Vec<Sidecar>,
    names: Names,
}

impl NewDisk {
    /// Makes an empty disk under a temporary name. `data`: how many bytes of
    /// the file system will be written to it at once, for the check that they
    /// fit; a fixed disk's are known.
    pub(crate) fn begin(
        pool: &Pool,
        rel: &Path,
        options: &CreateOptions,
        data: Option<u64>,
        zeroing: &mut Zeroing<'_>,
    ) -> Result<NewDisk, CreateError> {
        if options.disk_type == DiskType::Differencing {
            return Err(CreateError::NeedsParent {
                path: rel.to_owned(),
            });
        }
        let blueprint = Blueprint {
            disk_type: options.disk_type,
            size: options.size.bytes(),
            geometry: None,
            unique_id: options.unique_id,
            created: options.created,
            block_size: BLOCK_SIZE,
            parent: None,
            gate: options.gate.clone(),
        };
        NewDisk::begin_over(pool, rel, &blueprint, data, None, Vec::new(), zeroing)
    }

    /// As [`NewDisk::begin`], for a disk of any type. `parent` and `locks`
    /// are those of the parents of a differencing disk.
    pub(crate) fn begin_over(
        pool: &Pool,
        rel: &Path,
        blueprint: &Blueprint,
        data: Option<u64>,
        parent: Option<Box<dyn Image>>,
        locks: Vec<Sidecar>,
        zeroing: &mut Zeroing<'_>,
    ) -> Result<NewDisk, CreateError> {
        let &Blueprint {
            disk_type,
            size,
            unique_id,
            created,
            block_size,
            ..
        } = blueprint;
        let len = formatted_len(disk_type, size, block_size)
            .saturating_add(blueprint.parent.as_ref().map_or(0, NewParent::len));
        let need = match disk_type {
            DiskType::Fixed => len,
            DiskType::Dynamic | DiskType::Differencing => len.saturating_add(data.unwrap_or(0)),
        };
        let no_space = |have| CreateError::NoSpace {
            path: rel.to_owned(),
            need,
            have,
        };
        // Before any folder is made.
        let have = pool.space()?.available;
        if have < need {
            return Err(no_space(have));
        }
        drop(enter(&blueprint.gate, rel)?);
        let names = Names::take(pool, rel)?;
        let mut footer = Footer::new(disk_type, size, unique_id, created);
        footer.geometry = blueprint.geometry.unwrap_or(footer.geometry);
        let form = Form {
            disk_type,
            footer,
            block_size,
            parent: blueprint.parent.as_ref(),
            gate: &blueprint.gate,
        };
        NewDisk::make(names, &form, need, parent, locks, zeroing)
    }

    /// Makes an empty dynamic disk whose footer is `footer` but for where the
    /// header lies. `data`: how many bytes will be written to it, for the
    /// check that they fit.
    pub(crate) fn begin_again(
        names: Names,
        footer: &Footer,
        block_size: u32,
        data: u64,
        gate: &Gate,
    ) -> Result<NewDisk, CreateError> {
        let disk_type = DiskType::Dynamic;
        let header_offset = Some(crate::format::footer::LEN as u64);
        let form = Form {
            disk_type,
            footer: Footer {
                header_offset,
                ..footer.clone()
            },
            block_size,
            parent: None,
            gate,
        };
        let need = formatted_len(disk_type, footer.current_size, block_size).saturating_add(data);
        let nothing = &mut |_| ControlFlow::Continue(());
        NewDisk::make(names, &form, need, None, Vec::new(), nothing)
    }

    fn make(
        mut names: Names,
        form: &Form<'_>,
        need: u64,
        parent: Option<Box<dyn Image>>,
        locks: Vec<Sidecar>,
        zeroing: &mut Zeroing<'_>,
    ) -> Result<NewDisk, CreateError> {
        let &Form {
            disk_type,
            ref footer,
            block_size,
            ..
        } = form;
        let rel = names.target.rel().to_owned();
        let rel = rel.as_path();
        let no_space = |have| CreateError::NoSpace {
            path: rel.to_owned(),
            need,
            have,
        };
        // The folder may be a mount of its own.
        let have = names.target.space()?.available;
        if have < need {
            return Err(no_space(have));
        }
        let file = names.create()?;
        // Ours from the beginning: nobody may open it between the rename and
        // a lock.
        names.lock_file(&file)?;
        let io = |operation, source: io::Error| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                no_space(names.target.space().map_or(0, |space| space.available))
            }
            _ => CreateError::Io {
                path: rel.to_owned(),
                operation,
                source,
            },
        };
        let must_write_zeros = match disk_type {
            DiskType::Dynamic | DiskType::Differencing => false,
            // What a fixed disk needs is its length.
            DiskType::Fixed => {
                let _pass = enter(form.gate, rel)?;
                match FileStorage::reserve(&file, need) {
                    Ok(()) => false,
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => true,
                    Err(error) => return Err(io("reserve the disk's space", error)),
                }
            }
        };
        let backing = Backing::new(
            Box::new(FileStorage::new(file)),
            form.gate.clone(),
            &rel.to_string_lossy(),
        );
        let zeroed = match must_write_zeros {
            true => write_zeros(&backing, footer.current_size, zeroing),
            false => Ok(ControlFlow::Continue(())),
        };
        let zeroed = match zeroed {
            Ok(ControlFlow::Break(())) => return Err(CreateError::Cancelled),
            zeroed => zeroed.map(drop),
        };
        zeroed
            .and_then(|()| format_new(&backing, disk_type, footer, block_size, form.parent))
            .map_err(|error| write_error(rel, need, &names, error))?;
        let tuning = Tuning::for_data(need);
        let image = recognise(&backing, tuning)
            .and_then(|found| image::assemble(backing, &found, parent, false, tuning))
            .map_err(|refusal| {
                let source = match refusal {
                    Refusal::Io(error) => io::Error::other(error),
                    Refusal::Corrupt(found) | Refusal::Unsupported(found) => {
                        io::Error::other(found)
                    }
                };
                CreateError::Io {
                    path: rel.to_owned(),
                    operation: "read back the new disk",
                    source,
                }
            })?;
        Ok(NewDisk {
            image,
            disk_type,
            gate: form.gate.clone(),
            locks,
            names,
        })
    }

    /// The disk, to fill it before it gets its name.
    pub(crate) fn device(&self) -> &dyn BlockDevice {
        &*self.image
    }

    /// The same, for a copy.
    pub(crate) fn image(&self) -> &dyn Image {
        &*self.image
    }

    /// Makes all that was written durable and gives the disk its name.
    pub(crate) fn finish(self) -> Result<Vhd, CreateError> {
        self.seal()?;
        self.publish()
    }

    /// Makes all that was written durable.
    pub(crate) fn seal(&self) -> Result<(), CreateError> {
        self.image
            .put_away()
            .map_err(|error| write_error(self.names.target.rel(), 0, &self.names, error))
    }

    /// Another descriptor of the file, for what else is to be set on it once
    /// it is sealed.
    pub(crate) fn file(&self) -> Result<File, CreateError> {
        Ok(self.names.open_again()?)
    }

    /// Gives a sealed disk its name.
    pub(crate) fn publish(mut self) -> Result<Vhd, CreateError> {
        let path = self.names.target.rel().to_owned();
        {
            let _pass = enter(&self.gate, &path)?;
            self.names.publish()?;
        }
        let NewDisk {
            image,
            disk_type,
            locks,
            mut names,
            ..
        } = self;
        match names.lock.take() {
            Some(lock) => Ok(Vhd::new(image, disk_type, lock, locks)),
            // Taken nowhere else.
            None => Err(CreateError::Io {
                path,
                operation: "keep the lock",
                source: io::ErrorKind::NotFound.into(),
            }),
        }
    }
}

/// Writes that many zeros, in steps between which it may be cancelled.
fn write_zeros(
    backing: &Backing,
    len: u64,
    zeroing: &mut Zeroing<'_>,
) -> Result<ControlFlow<()>, IoError> {
    const STEP: u64 = 64 << 20;
    let mut at = 0;
    while at < len {
        if zeroing(at).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let piece = STEP.min(len - at);
        backing.write_zeros(at, piece)?;
        at += piece;
    }
    Ok(ControlFlow::Continue(()))
}

fn enter<'a>(gate: &'a Gate, path: &Path) -> Result<GatePass<'a>, CreateError> {
    let path = path.to_owned();
    gate.enter().map_err(|_| CreateError::GateClosed { path })
}

fn write_error(path: &Path, need: u64, names: &Names, error: IoError) -> CreateError {
    let path = path.to_owned();
    match error {
        IoError::NoSpace { .. } => CreateError::NoSpace {
            path,
            need,
            have: names.target.space().map_or(0, |space| space.available),
        },
        IoError::GateClosed => CreateError::GateClosed { path },
        error => CreateError::Io {
            path,
            operation: "write the new disk",
            source: io::Error::other(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::fault::FaultStorage;

    #[test]
    fn the_zeros_of_a_fixed_disk_are_written_until_it_is_cancelled() {
        let zeros = |steps: u32| {
            let storage = FaultStorage::default();
            let backing = Backing::new(Box::new(storage.clone()), Gate::open(), "disk");
            let mut left = steps;
            let mut seen = Vec::new();
            let mut zeroing = |done| match left.checked_sub(1) {
                Some(rest) => {
                    left = rest;
                    seen.push(done);
                    ControlFlow::Continue(())
                }
                None => ControlFlow::Break(()),
            };
            let outcome = write_zeros(&backing, (64 << 20) + 512, &mut zeroing).unwrap();
            (outcome.is_break(), storage.bytes().len(), seen)
        };
        assert_eq!(zeros(0), (true, 0, vec![]));
        assert_eq!(zeros(1), (true, 64 << 20, vec![0]));
        let all = vec![0, 64 << 20];
        assert_eq!(zeros(2), (false, (64 << 20) + 512, all));
    }
}
