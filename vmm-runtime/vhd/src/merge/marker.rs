//! The marker beside a parent that is being merged into, `NAME.merging`: until
//! when the merge itself may have modified it.
//!
//! A parent that a merge was cut off in is not as its child knows it. Whether
//! only the merge wrote to it is told by two things. Whoever of this library
//! opens it for writing takes the marker away first. Others don't know of it,
//! but leave a later time of modification: a merge renews the marker such that
//! it never writes after the time in it.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use uuid::Uuid;

use crate::pool::{Place, PoolError};
use crate::sidefile::MERGING;

const MARK: &str = "a child is being merged into this disk, version 1";

/// For how long the time in a marker reaches. Within that time after a merge
/// was cut off, another program's write is not noticed; a write of the merge
/// that is stuck for longer can't be told from another program's.
const REACH: Duration = Duration::from_secs(60);
/// When it is renewed.
const RENEWAL: Duration = Duration::from_secs(20);

/// A time of modification, in nanoseconds since 1970.
pub(super) type Modified = i128;

/// When the parent may have been modified by the merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// When the merge began to write.
    pub(super) from: Modified,
    pub(super) until: Modified,
}

/// A marker that is kept up to date.
pub(super) struct Marker {
    file: File,
    place: Place,
    child: Uuid,
    from: Modified,
    renewed: Instant,
}

impl Marker {
    /// Puts a marker beside the disk `parent`, durably. `resumed`: one of the
    /// same merge may be there. It is not taken away in between, since the
    /// parent is modified already.
    pub(super) fn set(parent: &Place, child: Uuid, resumed: bool) -> Result<Marker, PoolError> {
        // Nothing is written yet.
        let now = modified(parent)?;
        let begun = Span {
            from: now,
            until: now,
        };
        let place = MERGING.place(parent)?;
        let (file, from) = match read(parent, child)?.filter(|_| resumed) {
            Some(span) => (place.open(OFlags::RDWR)?.into(), span.from),
            None => {
                let file = MERGING.create(parent, text(child, begun).as_bytes())?;
                // Whoever closed the parent just now may have left a time a little ahead, for its children to
                // notice: what the merge writes meanwhile is stamped earlier.
                let created =
                    of_file(&file).map_err(|source| MERGING.write_failed(&place, source))?;
                (file, now.min(created))
            }
        };
        let mut marker = Marker {
            file,
            place,
            from,
            child,
            renewed: Instant::now(),
        };
        marker.renew()?;
        marker.place.sync_folder()?;
        Ok(marker)
    }

    /// Call before each write to the parent.
    pub(super) fn before_write(&mut self) -> Result<(), PoolError> {
        if self.renewed.elapsed() < RENEWAL {
            return Ok(());
        }
        self.renew()
    }

    fn renew(&mut self) -> Result<(), PoolError> {
        self.renewed = Instant::now();
        // The clock of the file system, not ours, is what files are stamped
        // with.
        self.write(i128::MAX)?;
        let now = of_file(&self.file).map_err(|source| self.failed(source))?;
        self.write(now + REACH.as_nanos() as i128)?;
        self.file.sync_data().map_err(|source| self.failed(source))
    }

    /// The merge writes no more, and the disk `parent` is durable as it is.
    pub(super) fn stop(self, parent: &Place) -> Result<(), PoolError> {
        self.write(modified(parent)?)?;
        self.file.sync_data().map_err(|source| self.failed(source))
    }

    /// Less than a sector, and all of it the same but for the number: a crash
    /// leaves the one or the other.
    fn write(&self, until: Modified) -> Result<(), PoolError> {
        let span = Span {
            from: self.from,
            until,
        };
        self.file
            .write_all_at(text(self.child, span).as_bytes(), 0)
            .map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> PoolError {
        MERGING.write_failed(&self.place, source)
    }
}

fn text(child: Uuid, Span { from, until }: Span) -> String {
    format!("{MARK}\nchild {child}\nfrom {from:039}\nuntil {until:039}\nend\n")
}

/// What the marker beside the disk `parent` says of a merge of `child`.
pub(super) fn read(parent: &Place, child: Uuid) -> Result<Option<Span>, PoolError> {
    let bytes = MERGING.read(parent, 512)?;
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let found = text.and_then(|text| parse(&text));
    Ok(found.and_then(|(of, span)| (of == child).then_some(span)))
}

fn parse(text: &str) -> Option<(Uuid, Span)> {
    let rest = text.strip_prefix(MARK)?.strip_prefix("\nchild ")?;
    let (child, rest) = rest.split_once("\nfrom ")?;
    let (from, rest) = rest.split_once("\nuntil ")?;
    let until = rest.strip_suffix("\nend\n")?;
    let span = Span {
        from: from.parse().ok()?,
        until: until.parse().ok()?,
    };
    Some((child.parse().ok()?, span))
}

/// When the disk at `place` was modified.
pub(super) fn modified(place: &Place) -> Result<Modified, PoolError> {
    let file = File::from(place.open(OFlags::RDONLY)?);
    of_file(&file).map_err(|source| PoolError::Io {
        path: place.rel().to_owned(),
        operation: "look at the file",
        source,
    })
}

fn of_file(file: &File) -> std::io::Result<Modified> {
    let metadata = file.metadata()?;
    Ok(i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pool::Pool;

    #[test]
    fn a_marker_is_of_one_child_and_complete() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("disk"), "x").unwrap();
        let disk = pool.place(Path::new("disk")).unwrap();
        let (child, other) = (Uuid::from_bytes([1; 16]), Uuid::from_bytes([2; 16]));
        assert_eq!(read(&disk, child).unwrap(), None);
        let from = modified(&disk).unwrap();
        let mut marker = Marker::set(&disk, child, false).unwrap();
        let reach = |span: Option<Span>| {
            let Span { from: begun, until } = span.unwrap();
            assert_eq!(begun, from);
            until - from
        };
        assert!(reach(read(&disk, child).unwrap()) >= REACH.as_nanos() as i128);
        assert_eq!(read(&disk, other).unwrap(), None);
        // Renewed only when it is time.
        let before = std::fs::read(dir.path().join("disk.merging")).unwrap();
        marker.before_write().unwrap();
        assert!(std::fs::read(dir.path().join("disk.merging")).unwrap() == before);
        marker.renewed -= RENEWAL;
        std::fs::write(dir.path().join("disk.merging"), "").unwrap();
        marker.before_write().unwrap();
        let bytes = std::fs::read(dir.path().join("disk.merging")).unwrap();
        assert!(bytes.len() == before.len() && bytes.len() <= 512);
        marker.stop(&disk).unwrap();
        assert_eq!(reach(read(&disk, child).unwrap()), 0);
        // A merge that goes on keeps when it began; another one doesn't.
        let file = File::options()
            .write(true)
            .open(dir.path().join("disk"))
            .unwrap();
        let later = std::time::SystemTime::now() + Duration::from_secs(5);
        file.set_modified(later).unwrap();
        Marker::set(&disk, child, true).unwrap();
        assert_eq!(read(&disk, child).unwrap().unwrap().from, from);
        Marker::set(&disk, child, false).unwrap();
        let Span { from: anew, .. } = read(&disk, child).unwrap().unwrap();
        // The disk's time is ahead of the clock that its writes are stamped by.
        assert!(anew >= from && anew < modified(&disk).unwrap());
        for len in 0..bytes.len() {
            std::fs::write(dir.path().join("disk.merging"), &bytes[..len]).unwrap();
            assert_eq!(read(&disk, child).unwrap(), None, "{len}");
        }
        std::fs::write(dir.path().join("disk.merging"), [0xff; 4096]).unwrap();
        assert_eq!(read(&disk, child).unwrap(), None);
        MERGING.forget(&disk).unwrap();
    }
}
