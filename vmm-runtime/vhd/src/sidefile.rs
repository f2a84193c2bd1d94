//! The files that operations put beside a disk: what is under way, and what it
//! takes to end it or to take it back.
//!
//! Each is named like the disk with an ending of its own. Anyone may have
//! written what lies there, so it is read up to a bound.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;

use crate::pool::{Place, PoolError};

/// A kind of such files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SideFile {
    suffix: &'static str,
    /// What can't be done to it, for messages.
    read: &'static str,
    write: &'static str,
}

/// Beside a child: it is being merged into its parent.
pub(crate) const MERGE: SideFile = SideFile {
    suffix: ".merge",
    read: "read the record of a merge",
    write: "write the record of a merge",
};

/// Beside a parent: a child is being merged into it.
pub(crate) const MERGING: SideFile = SideFile {
    suffix: ".merging",
    read: "read the marker of a merge",
    write: "write the marker of a merge",
};

/// Beside a fixed disk that gets another size.
pub(crate) const RESIZE: SideFile = SideFile {
    suffix: ".resize",
    read: "read the record of a resize",
    write: "write the record of a resize",
};

/// Beside a disk that is, or was, repaired in place.
pub(crate) const REPAIR: SideFile = SideFile {
    suffix: ".repair",
    read: "read the journal of a repair",
    write: "write the journal of a repair",
};

impl SideFile {
    /// Its place beside the disk.
    pub(crate) fn place(&self, disk: &Place) -> Result<Place, PoolError> {
        disk.with_suffix(self.suffix)
    }

    /// Puts one that holds `bytes` beside the disk, in the place of another,
    /// durably.
    pub(crate) fn create(&self, disk: &Place, bytes: &[u8]) -> Result<File, PoolError> {
        let place = self.place(disk)?;
        match place.unlink() {
            Ok(()) | Err(PoolError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let file = File::from(place.open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?);
        file.write_all_at(bytes, 0)
            .and_then(|()| file.sync_all())
            .map_err(|source| self.failed(&place, self.write, source))?;
        place.sync_folder()?;
        Ok(file)
    }

    /// Writes over the beginning of the one beside the disk, durably. A crash
    /// leaves the old bytes or the new ones if they lie in one sector.
    pub(crate) fn rewrite(&self, disk: &Place, bytes: &[u8]) -> Result<(), PoolError> {
        let place = self.place(disk)?;
        let file = File::from(place.open(OFlags::RDWR)?);
        file.write_all_at(bytes, 0)
            .and_then(|()| file.sync_data())
            .map_err(|source| self.failed(&place, self.write, source))
    }

    /// The first `most` bytes of the one beside the disk, if there is one.
    pub(crate) fn read(&self, disk: &Place, most: u64) -> Result<Option<Vec<u8>>, PoolError> {
        let place = self.place(disk)?;
        let file = match place.open(OFlags::RDONLY) {
            Ok(file) => File::from(file),
            Err(PoolError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(most)
            .read_to_end(&mut bytes)
            .map_err(|source| self.failed(&place, self.read, source))?;
        Ok(Some(bytes))
    }

    /// Removes the one beside the disk, durably, if there is one.
    pub(crate) fn forget(&self, disk: &Place) -> Result<(), PoolError> {
        let place = self.place(disk)?;
        match place.unlink() {
            Ok(()) => place.sync_folder(),
            Err(PoolError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn write_failed(&self, disk: &Place, source: std::io::Error) -> PoolError {
        self.failed(disk, self.write, source)
    }

    fn failed(&self, place: &Place, operation: &'static str, source: std::io::Error) -> PoolError {
        PoolError::Io {
            path: place.rel().to_owned(),
            operation,
            source,
        }
    }
}

/// Removes all of them: the disk is gone, or another one gets its name.
pub(crate) fn forget_all(disk: &Place) -> Result<(), PoolError> {
    let all = [MERGE, MERGING, RESIZE, REPAIR];
    all.iter().try_for_each(|file| file.forget(disk))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pool::Pool;

    #[test]
    fn they_are_replaced_read_up_to_a_bound_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let disk = pool.place(Path::new("disk")).unwrap();
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(MERGE.read(&disk, 10).unwrap(), None);
        assert!(MERGE.rewrite(&disk, b"x").is_err());
        for file in [MERGE, MERGING, RESIZE, REPAIR] {
            file.create(&disk, b"longer").unwrap();
            file.create(&disk, b"first").unwrap();
            file.rewrite(&disk, b"wor").unwrap();
            assert_eq!(file.read(&disk, 100).unwrap().unwrap(), b"worst");
            assert_eq!(file.read(&disk, 4).unwrap().unwrap(), b"wors");
        }
        assert_eq!(names(), 4);
        MERGE.forget(&disk).unwrap();
        assert_eq!(names(), 3);
        forget_all(&disk).unwrap();
        forget_all(&disk).unwrap();
        assert_eq!(names(), 0);
    }
}
