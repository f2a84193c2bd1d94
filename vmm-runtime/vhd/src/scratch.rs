//! Room beside a disk for what it is to be made of.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

use rustix::fs::OFlags;

use crate::create::CreateError;
use crate::lock::{Mode, Sidecar};
use crate::pool::{Place, Pool, PoolError};

/// A file beside a disk that is to be made, for as long as that takes: a
/// download. It is removed when this is dropped; what a crash has left of an
/// earlier one for the same disk is replaced.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    place: Place,
}

impl Scratch {
    /// Makes an empty one for the disk `rel`, and the folders on the way.
    pub fn beside(pool: &Pool, rel: impl AsRef<Path>) -> Result<Scratch, CreateError> {
        let target = pool.place_creating_folders(rel.as_ref())?;
        let mut name = OsString::from(".");
        name.push(target.rel().file_name().unwrap_or_default());
        name.push(".source");
        let place = target.sibling(name)?;
        match place.unlink() {
            Ok(()) | Err(PoolError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = place.open(flags)?.into();
        Ok(Scratch { file, place })
    }

    /// The file, to read and to write.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its path in the pool.
    pub fn path(&self) -> &Path {
        self.place.rel()
    }
}

impl Drop for Scratch {
    /// Nothing can be done about errors here: a file that stays is removed
    /// when the disk is tried again.
    fn drop(&mut self) {
        let _ = self.place.unlink();
        // There if it was opened as a disk.
        if let Ok(lock) = Sidecar::acquire(&self.place, Mode::Exclusive) {
            let _ = lock.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn leaves_nothing_and_replaces_what_a_crash_left() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let folder = dir.path().join("a");
        let first = Scratch::beside(&pool, "a/d.vhd").unwrap();
        first.file().write_all(b"half a download").unwrap();
        // As a crash does.
        std::mem::forget(first);
        assert_eq!(names(&folder), [".d.vhd.source"]);
        let second = Scratch::beside(&pool, "a/d.vhd").unwrap();
        assert_eq!(second.path(), Path::new("a/.d.vhd.source"));
        assert_eq!(second.file().metadata().unwrap().len(), 0);
        drop(second);
        assert_eq!(names(&folder), [""; 0]);
        assert!(matches!(
            Scratch::beside(&pool, "../d.vhd"),
            Err(CreateError::PathEscapes { .. })
        ));
    }
}
