//! Finding the children of a disk.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use uuid::Uuid;

use crate::chain;
use crate::error::OpenError;
use crate::image::{Refusal, Tuning, recognise};
use crate::pool::{Place, Pool, PoolError};
use crate::resize;
use crate::storage::Backing;

/// The most files and folders that are looked at for children. Someone's home
/// may be the pool.
const MAX_ENTRIES: usize = 1 << 20;
/// The most folders that lie in each other.
const MAX_DEPTH: usize = 64;
/// The most that is named of what could not be looked at.
const MAX_SKIPPED: usize = 16;

/// The children of a disk, as far as they were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Children {
    /// Their paths in the pool, in order.
    pub found: Vec<PathBuf>,
    /// Files and folders that the system does not let us look at, at most 16
    /// of them: there may be others there.
    pub skipped: Vec<PathBuf>,
}

impl Children {
    fn skip(&mut self, path: &Path) {
        if self.skipped.len() < MAX_SKIPPED {
            self.skipped.push(path.to_owned());
        }
    }
}

/// The differencing disks in `pool`, in any of its folders, whose parent is
/// the disk `rel`, by their paths in order. Undo disks count as well. A child
/// is known by the identity of its parent, so the children of a copy with the
/// same identity are among them. What can't be looked at is passed over.
///
/// Takes no locks. Refused where the pool holds more than 2^20 names or
/// folders deeper than 64: then nobody can say that there are no children.
pub fn children(pool: &Pool, rel: impl AsRef<Path>) -> Result<Vec<PathBuf>, OpenError> {
    Ok(look_for_children(pool, rel)?.found)
}

/// As [`children`], and says what was passed over.
pub fn look_for_children(pool: &Pool, rel: impl AsRef<Path>) -> Result<Children, OpenError> {
    let rel = rel.as_ref();
    let place = pool.place(rel)?;
    let found = resize::fixed::recognise_at(&place, &open(&place)?)
        .map_err(|refusal| OpenError::from_refusal(rel, refusal))?;
    children_in(pool, found.footer.unique_id)
}

/// As [`look_for_children`], for a disk that may lie elsewhere and has the
/// identity `unique_id`.
pub fn children_in(pool: &Pool, unique_id: Uuid) -> Result<Children, OpenError> {
    look(pool, Path::new(""), &[unique_id])
}

/// The children of the disks with the identities `parents`, looked for on
/// behalf of the disk `rel`.
pub(crate) fn children_of(
    pool: &Pool,
    rel: &Path,
    parents: &[Uuid],
) -> Result<Vec<PathBuf>, OpenError> {
    Ok(look(pool, rel, parents)?.found)
}

/// `rel`: the disk, for messages.
fn look(pool: &Pool, rel: &Path, parents: &[Uuid]) -> Result<Children, OpenError> {
    let too_many = |what: String| OpenError::Unsupported {
        path: rel.to_owned(),
        what: format!(
            "children can't be looked for in {}, {what}; put disks into a pool of their own",
            pool.path().display()
        ),
    };
    let mut children = Children::default();
    let mut seen = 0;
    let mut folders = vec![(PathBuf::new(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match pool.entries(&folder) {
            Ok(entries) => entries,
            // Removed meanwhile.
            Err(PoolError::NotFound { .. }) => continue,
            // The pool itself has to be read.
            Err(error) if depth == 0 => return Err(error.into()),
            Err(_) => {
                children.skip(&folder);
                continue;
            }
        };
        seen += entries.len();
        if seen > MAX_ENTRIES {
            return Err(too_many(format!(
                "the pool has more than {MAX_ENTRIES} files"
            )));
        }
        for (name, kind) in entries {
            let path = folder.join(name);
            match kind {
                FileType::Directory if depth == MAX_DEPTH => {
                    return Err(too_many(format!(
                        "the pool's folders lie more than {MAX_DEPTH} deep"
                    )));
                }
                FileType::Directory => folders.push((path, depth + 1)),
                FileType::RegularFile => match parent_at(pool, &path) {
                    Ok(Some(parent)) if parents.contains(&parent) => children.found.push(path),
                    Ok(_) => {}
                    Err(_) => children.skip(&path),
                },
                _ => {}
            }
        }
    }
    children.found.sort();
    children.skipped.sort();
    Ok(children)
}

fn parent_at(pool: &Pool, path: &Path) -> Result<Option<Uuid>, OpenError> {
    match pool.place(path) {
        Ok(place) => parent_of(&place),
        // Removed meanwhile.
        Err(PoolError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The identity of the parent of what lies at `place`; `None` if that is no
/// differencing disk, or damaged, or gone. Takes no lock.
fn parent_of(place: &Place) -> Result<Option<Uuid>, OpenError> {
    let read = || -> Result<Option<Uuid>, OpenError> {
        let backing = open(place)?;
        let refused = |refusal| OpenError::from_refusal(place.rel(), refusal);
        match recognise(&backing, Tuning::default()) {
            Ok(found) => {
                let link = chain::read_link(&backing, &found).map_err(refused)?;
                Ok(link.map(|link| link.unique_id))
            }
            Err(Refusal::Corrupt(_) | Refusal::Unsupported(_)) => Ok(None),
            Err(refusal) => Err(refused(refusal)),
        }
    };
    match read() {
        Err(OpenError::NotFound { .. } | OpenError::Unsupported { .. }) => Ok(None),
        result => result,
    }
}

fn open(place: &Place) -> Result<Backing, OpenError> {
    let file = File::from(place.open(OFlags::RDONLY)?);
    Ok(Backing::read_only(file, place.rel()))
}
