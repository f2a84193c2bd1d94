//! The names of a file that is being made.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::OFlags;

use super::CreateError;
use crate::lock::{LockError, Mode, Sidecar};
use crate::pool::{Place, Pool, PoolError, RenameError};
use crate::sidefile;

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
        let taken = || CreateError::AlreadyExists {
            path: self.target.rel().to_owned(),
        };
        if self.target.exists()? {
            // What lies beside it is its own.
            return Err(taken());
        }
        // Of another disk that had this name.
        sidefile::forget_all(&self.target)?;
        match self.temporary.rename_to(&self.target) {
            Ok(()) => {
                self.temporary_exists = false;
                Ok(())
            }
            Err(RenameError::Taken) => Err(taken()),
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
