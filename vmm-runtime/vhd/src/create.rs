//! Creating a disk.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;
use uuid::Uuid;

use crate::block::{BlockDevice, IoError};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::format::bat::BLOCK_SIZE;
use crate::format::footer::Footer;
use crate::format::geometry::Geometry;
use crate::gate::Gate;
use crate::image::{self, Image, NewParent, Refusal, Tuning, format_new, formatted_len, recognise};
use crate::lock::{LockError, Mode, Sidecar};
use crate::pool::{Place, Pool, PoolError, RenameError};
use crate::size::DiskSize;
use crate::storage::{Backing, FileStorage};
use crate::vhd::Vhd;

/// What [`Vhd::create`](crate::Vhd::create) makes.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Fixed: all space is reserved now. Dynamic: the file grows as it is
    /// written to. Differencing is refused: see
    /// [`Vhd::create_child`](crate::Vhd::create_child).
    pub disk_type: DiskType,
    /// What the guest sees.
    pub size: DiskSize,
    /// The identity that children of the disk refer to.
    pub unique_id: Uuid,
    /// The time of creation; the format keeps whole seconds from 2000 on.
    pub created: SystemTime,
}

impl CreateOptions {
    /// A disk with a random identity, created now.
    pub fn new(disk_type: DiskType, size: DiskSize) -> CreateOptions {
        CreateOptions {
            disk_type,
            size,
            unique_id: Uuid::new_v4(),
            created: SystemTime::now(),
        }
    }
}

/// Why a disk was not created. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// A file of that name is there; it was not touched.
    #[error("{}: there is a file of that name already; choose another name or remove it", path.display())]
    AlreadyExists {
        /// The file.
        path: PathBuf,
    },
    /// Someone holds the lock of that name.
    #[error("{}: the name is in use: {holder}", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Which lock is held, and by whom where that is known.
        holder: String,
    },
    /// The path would leave the pool: it is absolute, has `..` in it, or
    /// passes a symbolic link.
    #[error("{}: the path leaves its pool: it must be relative, without '..' and without symbolic links", path.display())]
    PathEscapes {
        /// The path as given.
        path: PathBuf,
    },
    /// A differencing disk needs a parent: see
    /// [`Vhd::create_child`](crate::Vhd::create_child).
    #[error("{}: a differencing disk is made over a parent, name one", path.display())]
    NeedsParent {
        /// The file.
        path: PathBuf,
    },
    /// The parent can't be opened.
    #[error("the parent: {0}")]
    Parent(#[from] OpenError),
    /// The file system is too full.
    #[error("{}: the disk needs {need} bytes and the file system has {have} left; free some or choose another pool", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// How much it takes, in bytes.
        need: u64,
        /// How much there is, in bytes.
        have: u64,
    },
    /// The system refused.
    #[error("{}: {operation}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl From<PoolError> for CreateError {
    fn from(error: PoolError) -> CreateError {
        match error {
            PoolError::PathEscapes { path } => CreateError::PathEscapes { path },
            PoolError::Io {
                path,
                operation,
                source,
            } => CreateError::Io {
                path,
                operation,
                source,
            },
            PoolError::NotFound { path } => {
                let source = io::ErrorKind::NotFound.into();
                CreateError::Io {
                    path,
                    operation: "create the file",
                    source,
                }
            }
            PoolError::NotAFile { path, found } => {
                let source = io::Error::other(format!("there is a {found} of that name"));
                CreateError::Io {
                    path,
                    operation: "create the file",
                    source,
                }
            }
        }
    }
}

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
}

/// What is written into a new disk's file.
struct Form<'a> {
    disk_type: DiskType,
    footer: Footer,
    block_size: u32,
    parent: Option<&'a NewParent>,
}

/// A disk that is being made: complete but for its name, and gone without a
/// trace if it is dropped before it gets it.
pub(crate) struct NewDisk {
    /// Dropped first, with the file.
    image: Box<dyn Image>,
    disk_type: DiskType,
    /// Those of the parents.
    locks: Vec<Sidecar>,
    names: Names,
}

/// The names that a new file takes, and gives back if it isn't finished.
pub(crate) struct Names {
    pub(crate) target: Place,
    /// The name until it is complete. Derived from the target's: who holds
    /// the target's lock owns what is left there by a crash.
    temporary: Place,
    temporary_exists: bool,
    /// Whether the new file takes the place of one that is there.
    replaces: bool,
    pub(crate) lock: Option<Sidecar>,
}

impl Names {
    pub(crate) fn take(pool: &Pool, rel: &Path) -> Result<Names, CreateError> {
        let target = pool.place_creating_folders(rel)?;
        let taken = || CreateError::AlreadyExists {
            path: rel.to_owned(),
        };
        // Before the lock: a disk that is in use is there, above all.
        if target.exists()? {
            return Err(taken());
        }
        let temporary = Names::temporary(&target)?;
        let lock = Sidecar::acquire(&target, Mode::Exclusive).map_err(|error| match error {
            LockError::Held(holder) => CreateError::InUse {
                path: rel.to_owned(),
                holder,
            },
            LockError::Pool(error) => error.into(),
            LockError::Io(source) => CreateError::Io {
                path: rel.to_owned(),
                operation: "lock the name",
                source,
            },
        })?;
        let names = Names {
            target,
            temporary,
            temporary_exists: false,
            replaces: false,
            lock: Some(lock),
        };
        if names.target.exists()? {
            // Made between the look and the lock. Its lock file stays.
            return Err(taken());
        }
        if let Some(lock) = &names.lock {
            // What hosts had was another disk of this name.
            lock.forget().map_err(|source| CreateError::Io {
                path: rel.to_owned(),
                operation: "clear the lock file",
                source,
            })?;
        }
        Ok(names)
    }

    /// The names of a file that is to take the place of the disk `target`.
    /// `lock`: that disk's, held exclusively; it stays with the name.
    pub(crate) fn replacing(target: Place, lock: Sidecar) -> Result<Names, CreateError> {
        Ok(Names {
            temporary: Names::temporary(&target)?,
            target,
            temporary_exists: false,
            replaces: true,
            lock: Some(lock),
        })
    }

    fn temporary(target: &Place) -> Result<Place, PoolError> {
        let mut name = OsString::from(".");
        name.push(target.rel().file_name().unwrap_or_default());
        name.push(".new");
        target.sibling(name)
    }

    /// Creates the file under its temporary name.
    pub(crate) fn create(&mut self) -> Result<File, CreateError> {
        match self.temporary.unlink() {
            Ok(()) | Err(PoolError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let file = self
            .temporary
            .open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        self.temporary_exists = true;
        Ok(file.into())
    }

    /// Locks the file for writing, under the name's lock.
    pub(crate) fn lock_file(&mut self, file: &File) -> Result<(), CreateError> {
        let path = self.target.rel();
        let Some(lock) = &mut self.lock else {
            return Ok(());
        };
        lock.lock_file(file.as_fd(), Mode::Exclusive)
            .map_err(|error| match error {
                LockError::Io(source) => CreateError::Io {
                    path: path.to_owned(),
                    operation: "lock the file",
                    source,
                },
                LockError::Pool(error) => error.into(),
                LockError::Held(holder) => CreateError::InUse {
                    path: path.to_owned(),
                    holder,
                },
            })
    }

    /// Another descriptor of the file that has no name yet.
    pub(crate) fn open_again(&self) -> Result<File, PoolError> {
        self.temporary.open(OFlags::RDWR).map(File::from)
    }

    /// Gives the file its name.
    pub(crate) fn publish(&mut self) -> Result<(), CreateError> {
        if self.replaces {
            self.temporary.replace(&self.target)?;
            self.temporary_exists = false;
            self.target.sync_folder()?;
            return Ok(());
        }
        match self.temporary.rename_to(&self.target) {
            Ok(()) => {
                self.temporary_exists = false;
                Ok(())
            }
            Err(RenameError::Taken) => Err(CreateError::AlreadyExists {
                path: self.target.rel().to_owned(),
            }),
            Err(RenameError::Failed(error)) => Err(error.into()),
        }
    }
}

impl Drop for Names {
    /// Nothing can be done about errors here: a file that stays is removed
    /// when the name is tried again.
    fn drop(&mut self) {
        if self.temporary_exists {
            let _ = self.temporary.unlink();
        }
        if let Some(lock) = self.lock.take()
            && matches!(self.target.exists(), Ok(false))
        {
            let _ = lock.remove();
        }
    }
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
        };
        NewDisk::begin_over(pool, rel, &blueprint, data, None, Vec::new())
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
        let names = Names::take(pool, rel)?;
        let mut footer = Footer::new(disk_type, size, unique_id, created);
        footer.geometry = blueprint.geometry.unwrap_or(footer.geometry);
        let form = Form {
            disk_type,
            footer,
            block_size,
            parent: blueprint.parent.as_ref(),
        };
        NewDisk::make(names, &form, need, parent, locks)
    }

    /// Makes an empty dynamic disk whose footer is `footer` but for where the
    /// header lies. `data`: how many bytes will be written to it, for the
    /// check that they fit.
    pub(crate) fn begin_again(
        names: Names,
        footer: &Footer,
        block_size: u32,
        data: u64,
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
        };
        let need = formatted_len(disk_type, footer.current_size, block_size).saturating_add(data);
        NewDisk::make(names, &form, need, None, Vec::new())
    }

    fn make(
        mut names: Names,
        form: &Form<'_>,
        need: u64,
        parent: Option<Box<dyn Image>>,
        locks: Vec<Sidecar>,
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
            DiskType::Fixed => match FileStorage::reserve(&file, need) {
                Ok(()) => false,
                Err(error) if error.kind() == io::ErrorKind::Unsupported => true,
                Err(error) => return Err(io("reserve the disk's space", error)),
            },
        };
        let backing = Backing::new(
            Box::new(FileStorage::new(file)),
            Gate::open(),
            &rel.to_string_lossy(),
        );
        let written = if must_write_zeros {
            backing.write_zeros(0, footer.current_size)
        } else {
            Ok(())
        };
        written
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
        self.names.publish()?;
        let NewDisk {
            image,
            disk_type,
            locks,
            mut names,
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

fn write_error(path: &Path, need: u64, names: &Names, error: IoError) -> CreateError {
    let path = path.to_owned();
    match error {
        IoError::NoSpace { .. } => CreateError::NoSpace {
            path,
            need,
            have: names.target.space().map_or(0, |space| space.available),
        },
        error => CreateError::Io {
            path,
            operation: "write the new disk",
            source: io::Error::other(error),
        },
    }
}
