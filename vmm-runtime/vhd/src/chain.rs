//! Finding and opening the parents of a differencing disk.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use uuid::Uuid;

use crate::error::OpenError;
use crate::format::bat;
use crate::format::header::Header;
use crate::format::{DiskType, locator};
use crate::image::{self, Image, Recognised, Refusal, Tuning};
use crate::lock::{self, Mode, Sidecar};
use crate::pool::{Place, Pool, PoolError};
use crate::resize;
use crate::storage::Backing;

/// The most disks in a chain, the opened one included.
///
/// However long it is, an open chain keeps at most 32 MiB of sector bitmaps in
/// memory: the opened disk 8 MiB, and its parents 24 MiB together, in equal
/// shares of at most 8 MiB. Besides, there is what finds them, about a quarter of
/// that with blocks of 2 MiB, and what was changed and is not written yet.
pub const MAX_CHAIN: usize = 64;

/// The most entries that the tables of the parents in a chain may have
/// together. Each takes nine bytes of memory while the chain is open, so all
/// of them at most 287 MiB; they suffice for 32 parents of the largest size with
/// the usual blocks of 2 MiB, or for a whole chain of half of that.
const MAX_CHAIN_ENTRIES: u64 = 8 * bat::MAX_ENTRIES as u64;

/// Where the parents of a differencing disk are looked for, besides where the
/// disk itself says: first its path relative to the child, then the absolute
/// one, then the folders given here, in their order. What is found counts
/// only if it has the parent's identity.
///
/// An absolute path is followed into the pool of the child and into those
/// given to [`ParentSearch::root`], and nowhere else; and so is a relative one
/// that leaves the pool of the child.
#[derive(Debug, Clone, Default)]
pub struct ParentSearch {
    roots: Vec<Pool>,
    folders: Vec<(Pool, PathBuf)>,
}

impl ParentSearch {
    /// Looks only where the disk itself says, within its pool.
    pub fn new() -> ParentSearch {
        ParentSearch::default()
    }

    /// Follows paths that lead below [`Pool::path`] of `pool` as well.
    #[must_use]
    pub fn root(mut self, pool: Pool) -> ParentSearch {
        self.roots.push(pool);
        self
    }

    /// Looks for the parent's name in the folder `rel` of `pool` as well
    /// (`""`: the pool itself).
    #[must_use]
    pub fn folder(mut self, pool: Pool, rel: impl Into<PathBuf>) -> ParentSearch {
        self.folders.push((pool, rel.into()));
        self
    }
}

/// What a differencing disk says of its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParentLink {
    pub(crate) unique_id: Uuid,
    /// Seconds since 2000-01-01 UTC.
    pub(crate) modified: u32,
    pub(crate) name: String,
    pub(crate) relative: Vec<String>,
    pub(crate) absolute: Vec<String>,
}

/// Reads the locators of a differencing disk; `None` for others.
pub(crate) fn read_link(
    backing: &Backing,
    found: &Recognised,
) -> Result<Option<ParentLink>, Refusal> {
    let (DiskType::Differencing, Some((_, Header { parent, .. }))) =
        (found.disk_type, &found.header)
    else {
        return Ok(None);
    };
    let mut link = ParentLink {
        unique_id: parent.unique_id,
        modified: parent.modified,
        name: parent.name.clone(),
        relative: Vec::new(),
        absolute: Vec::new(),
    };
    for locator in &parent.locators {
        let Some((start, end)) = locator.range().filter(|(_, end)| *end <= found.data_end) else {
            continue;
        };
        // At most 16 KiB.
        let mut bytes = vec![0; (end - start) as usize];
        backing.read(&mut bytes, start)?;
        let Some(text) = locator.text(&bytes) else {
            continue;
        };
        let relative = locator.platform == locator::RELATIVE
            || (locator.platform == locator::URL && text.starts_with('.'));
        if relative {
            link.relative.push(text);
        } else {
            link.absolute.push(text);
        }
    }
    Ok(Some(link))
}

/// The parents of a disk, opened, and the locks on them.
pub(crate) struct Parents {
    pub(crate) image: Option<Box<dyn Image>>,
    pub(crate) locks: Vec<Sidecar>,
    /// The first parent, from the child up, that is not as its child knows it.
    pub(crate) changed: Option<OpenError>,
    /// Paths of the parents in their pools, the nearest first.
    pub(crate) places: Vec<(Pool, PathBuf)>,
}

/// A parent that was found: locked, and with the right identity.
pub(crate) struct Found {
    pub(crate) pool: Pool,
    pub(crate) rel: PathBuf,
    identity: (u64, u64),
    lock: Option<Sidecar>,
    pub(crate) modified: u32,
    backing: Backing,
    recognised: Recognised,
}

/// Opens the parents of the disk `rel`, which is `found` in `backing` and has
/// the given device and inode. `locking`: whether they are locked.
pub(crate) fn open_parents(
    pool: &Pool,
    rel: &Path,
    identity: (u64, u64),
    link: Option<ParentLink>,
    search: &ParentSearch,
    locking: bool,
) -> Result<Parents, OpenError> {
    let mut seen = vec![identity];
    let mut at = (pool.clone(), rel.to_owned());
    let mut next = link;
    let mut chain: Vec<Found> = Vec::new();
    let mut changed = None;
    let mut entries = 0;
    while let Some(link) = next {
        if seen.len() >= MAX_CHAIN {
            return Err(OpenError::Unsupported {
                path: rel.to_owned(),
                what: format!("its chain has more than {MAX_CHAIN} disks; merge some of them"),
            });
        }
        let parent = find(&at.0, &at.1, &link, search, &seen, locking)?;
        if parent.modified != link.modified && changed.is_none() {
            changed = Some(OpenError::ParentChanged {
                path: at.1.clone(),
                parent: parent.rel.clone(),
                expected: link.modified,
                found: parent.modified,
            });
        }
        entries += u64::from(parent.recognised.entries());
        if entries > MAX_CHAIN_ENTRIES {
            return Err(OpenError::Unsupported {
                path: rel.to_owned(),
                what: format!(
                    "the tables of its parents have more than {MAX_CHAIN_ENTRIES} entries together; merge some of them"
                ),
            });
        }
        seen.push(parent.identity);
        at = (parent.pool.clone(), parent.rel.clone());
        next = read_link(&parent.backing, &parent.recognised)
            .map_err(|refusal| OpenError::from_refusal(&parent.rel, refusal))?;
        chain.push(parent);
    }
    let tuning = Tuning::for_parent(chain.len());
    let mut parents = Parents {
        image: None,
        locks: Vec::new(),
        changed,
        places: chain
            .iter()
            .map(|found| (found.pool.clone(), found.rel.clone()))
            .collect(),
    };
    while let Some(parent) = chain.pop() {
        let image = image::assemble(
            parent.backing,
            &parent.recognised,
            parents.image.take(),
            true,
            tuning,
        );
        parents.image =
            Some(image.map_err(|refusal| OpenError::from_refusal(&parent.rel, refusal))?);
        parents.locks.extend(parent.lock);
    }
    Ok(parents)
}

/// Tries the places where a parent may be, until one has the right identity.
pub(crate) fn find(
    pool: &Pool,
    child: &Path,
    link: &ParentLink,
    search: &ParentSearch,
    seen: &[(u64, u64)],
    locking: bool,
) -> Result<Found, OpenError> {
    let mut tried = Vec::new();
    let mut mismatch = None;
    let mut failed = None;
    let mut is_loop = false;
    for candidate in candidates(pool, child, link, search) {
        let (pool, rel) = match candidate {
            Ok(candidate) => candidate,
            Err(refused) => {
                tried.push(refused);
                continue;
            }
        };
        let shown = rel.display().to_string().escape_debug().to_string();
        let place = match pool.place(&rel) {
            Ok(place) => place,
            Err(error) => {
                tried.push(error.to_string());
                continue;
            }
        };
        match place.identity() {
            Ok(identity) if seen.contains(&identity) => {
                is_loop = true;
                tried.push(format!("{shown} is in the chain already"));
                continue;
            }
            Ok(_) => {}
            Err(error) => {
                tried.push(error.to_string());
                continue;
            }
        }
        // Without a lock at first: it may be anything, and anyone's.
        let looked = look(&pool, &rel, &place, link, false).and_then(|found| match found {
            Look::Parent(_) if locking => look(&pool, &rel, &place, link, true),
            found => Ok(found),
        });
        match looked {
            Ok(Look::Parent(found)) => return Ok(*found),
            Ok(Look::Other(id)) => {
                tried.push(format!("{shown} is the disk {id}"));
                mismatch.get_or_insert((rel, id));
            }
            Ok(Look::NoDisk(what)) => tried.push(format!("{shown}: {what}")),
            // It is the parent: there is no other.
            Err(error @ OpenError::InUse { .. }) => return Err(error),
            Err(error) => {
                tried.push(error.to_string());
                if matches!(error, OpenError::Io { .. }) {
                    failed.get_or_insert(error);
                }
            }
        }
    }
    if let Some(failed) = failed {
        // The parent may be just what could not be read.
        return Err(failed);
    }
    let path = child.to_owned();
    Err(match mismatch {
        Some((parent, found)) => OpenError::ParentMismatch {
            path,
            parent,
            expected: link.unique_id,
            found,
        },
        None if is_loop => OpenError::Corrupt {
            path,
            found: format!("its chain of parents is a loop: {}", tried.join("; ")),
        },
        None => OpenError::ParentNotFound {
            path,
            parent: link.name.escape_debug().to_string(),
            unique_id: link.unique_id,
            tried: if tried.is_empty() {
                "it does not say where that is".to_owned()
            } else {
                tried.join("; ")
            },
        },
    })
}

/// What lies in a place where the parent may be.
enum Look {
    Parent(Box<Found>),
    /// A disk with this identity.
    Other(Uuid),
    /// No disk, or one of which too little is left: why.
    NoDisk(String),
}

fn look(
    pool: &Pool,
    rel: &Path,
    place: &Place,
    link: &ParentLink,
    locking: bool,
) -> Result<Look, OpenError> {
    let (file, lock) = if locking {
        let (file, lock) = lock::open_locked(place, Mode::Shared)
            .map_err(|error| OpenError::from_lock(rel, error))?;
        (File::from(file), Some(lock))
    } else {
        (File::from(place.open(OFlags::RDONLY)?), None)
    };
    let (identity, modified) = look_at(rel, &file)?;
    let backing = Backing::read_only(file, rel);
    let recognised = match resize::fixed::recognise_at(place, &backing) {
        Ok(recognised) => recognised,
        Err(Refusal::Corrupt(what) | Refusal::Unsupported(what)) => {
            return Ok(Look::NoDisk(what));
        }
        Err(refusal) => return Err(OpenError::from_refusal(rel, refusal)),
    };
    if recognised.footer.unique_id != link.unique_id {
        return Ok(Look::Other(recognised.footer.unique_id));
    }
    Ok(Look::Parent(Box::new(Found {
        pool: pool.clone(),
        rel: rel.to_owned(),
        identity,
        lock,
        modified,
        backing,
        recognised,
    })))
}

/// Device and inode of a file, and when it was modified in seconds since
/// 2000-01-01 UTC.
pub(crate) fn look_at(rel: &Path, file: &File) -> Result<((u64, u64), u32), OpenError> {
    let metadata = file.metadata().map_err(|source| OpenError::Io {
        path: rel.to_owned(),
        operation: "look at the file",
        source,
    })?;
    let seconds = metadata.mtime().saturating_sub(946_684_800);
    let modified = u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
    Ok(((metadata.dev(), metadata.ino()), modified))
}

/// The places to try, in order; those that may not be, with the reason.
fn candidates(
    pool: &Pool,
    child: &Path,
    link: &ParentLink,
    search: &ParentSearch,
) -> Vec<Result<(Pool, PathBuf), String>> {
    let mut list = Vec::new();
    for path in &link.relative {
        let found = beneath(child, path)
            .map(|rel| (pool.clone(), rel))
            .or_else(|| outside(pool, child, path, &search.roots));
        list.push(found.ok_or_else(|| format!("'{}' leaves the pool", path.escape_debug())));
    }
    for path in &link.absolute {
        let found = std::iter::once(pool)
            .chain(&search.roots)
            .find_map(|pool| within(pool, path).map(|rel| (pool.clone(), rel)));
        list.push(found.ok_or_else(|| format!("'{}' is outside of the pool", path.escape_debug())));
    }
    let names = std::iter::once(&link.name)
        .chain(&link.relative)
        .chain(&link.absolute)
        .filter_map(|path| path.rsplit(['\\', '/']).next())
        .filter(|name| !matches!(*name, "" | "." | "..") && !name.contains('\0'));
    let mut unique: Vec<&str> = Vec::new();
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    for (pool, folder) in &search.folders {
        list.extend(
            unique
                .iter()
                .map(|name| Ok((pool.clone(), folder.join(name)))),
        );
    }
    list
}

/// The path in the pool of what `path` means to a disk that is `child` there.
/// `None` when it is not in the pool.
fn beneath(child: &Path, path: &str) -> Option<PathBuf> {
    let mut parts: Vec<&str> = Vec::new();
    for component in child.parent()?.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    for part in path.split(['\\', '/']) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.iter().collect())
}

/// The place of what `path`, which leaves the pool, means to the disk `child`
/// there, in one of the `roots`.
fn outside(pool: &Pool, child: &Path, path: &str, roots: &[Pool]) -> Option<(Pool, PathBuf)> {
    let child = std::path::absolute(pool.path()).ok()?.join(child);
    let path = Path::new("/").join(beneath(child.strip_prefix("/").ok()?, path)?);
    let path = path.to_str()?;
    roots
        .iter()
        .find_map(|root| within(root, path).map(|rel| (root.clone(), rel)))
}

/// The path in the pool of an absolute path. `None` when it is not in it.
fn within(pool: &Pool, path: &str) -> Option<PathBuf> {
    let path = path.replace('\\', "/");
    let root = std::path::absolute(pool.path()).ok()?;
    let rel = Path::new(&path).strip_prefix(root).ok()?;
    // What leaves the pool all the same is refused by the pool.
    (!rel.as_os_str().is_empty()).then(|| rel.to_owned())
}

/// How a child in the folder of `child` names the parent `parent`, both in
/// the same pool: `.\` and the way there. `None` if the path can't be written
/// with backslashes.
pub(crate) fn relative_path(child: &Path, parent: &Path) -> Option<String> {
    let parts = |path: &Path| -> Option<Vec<String>> {
        path.components()
            .filter(|component| *component != Component::CurDir)
            .map(|component| match component {
                Component::Normal(part) => {
                    let part = part.to_str()?;
                    (!part.contains('\\')).then(|| part.to_owned())
                }
                _ => None,
            })
            .collect()
    };
    let parent = parts(parent)?;
    // What the child's folders are called doesn't matter.
    let child: Vec<_> = child
        .parent()?
        .components()
        .filter(|component| *component != Component::CurDir)
        .collect();
    let shared = child
        .iter()
        .zip(&parent[..parent.len().saturating_sub(1)])
        .take_while(|(a, b)| a.as_os_str() == b.as_str())
        .count();
    let mut path = String::from(".");
    for _ in shared..child.len() {
        path.push_str("\\..");
    }
    for part in &parent[shared..] {
        path.push('\\');
        path.push_str(part);
    }
    Some(path)
}

/// What the relative path `path` of the disk `from` becomes when that disk is
/// copied to `to`.
pub(crate) fn moved_path(from: &Path, to: &Path, path: &str) -> Option<String> {
    relative_path(to, &beneath(from, path)?)
}

/// How a child names the parent `rel` of `pool` absolutely.
pub(crate) fn absolute_path(pool: &Pool, rel: &Path) -> Result<Option<String>, PoolError> {
    let root = std::path::absolute(pool.path()).map_err(|source| PoolError::Io {
        path: pool.path().to_owned(),
        operation: "find the folder's absolute path",
        source,
    })?;
    let path = root.join(rel);
    Ok(path
        .to_str()
        .filter(|path| !path.contains('\\'))
        .map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_lead_from_the_child_to_the_parent() {
        for (child, parent, expected) in [
            ("a.vhd", "b.vhd", r".\b.vhd"),
            ("a.vhd", "x/b.vhd", r".\x\b.vhd"),
            ("x/a.vhd", "b.vhd", r".\..\b.vhd"),
            ("x/y/a.vhd", "x/z/b.vhd", r".\..\z\b.vhd"),
            ("x/a.vhd", "x/b.vhd", r".\b.vhd"),
            ("b/a.vhd", "b", r".\..\b"),
        ] {
            let path = relative_path(Path::new(child), Path::new(parent)).unwrap();
            assert_eq!(path, expected);
            assert_eq!(beneath(Path::new(child), &path).unwrap(), Path::new(parent));
        }
        assert_eq!(relative_path(Path::new("a"), Path::new(r"b\c")), None);
    }

    #[test]
    fn relative_paths_stay_in_the_pool() {
        assert_eq!(beneath(Path::new("a.vhd"), r".\..\b.vhd"), None);
        assert_eq!(beneath(Path::new("x/a.vhd"), r".\..\..\x\b.vhd"), None);
        assert_eq!(beneath(Path::new("x/a.vhd"), r".\.."), None);
        assert_eq!(
            beneath(Path::new("x/a.vhd"), "b.vhd").unwrap(),
            Path::new("x/b.vhd")
        );
    }

    #[test]
    fn absolute_paths_are_followed_into_the_pool_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let root = dir.path().to_str().unwrap();
        assert_eq!(
            within(&pool, &format!("{root}/x/b.vhd")).unwrap(),
            Path::new("x/b.vhd")
        );
        assert_eq!(
            within(&pool, &format!("{root}/x/b.vhd").replace('/', "\\")).unwrap(),
            Path::new("x/b.vhd")
        );
        for outside in ["/etc/passwd", root, &format!("{root}x/b"), r"C:\b.vhd", ""] {
            assert_eq!(within(&pool, outside), None, "{outside}");
        }
        let up = within(&pool, &format!("{root}/../b.vhd")).unwrap();
        assert!(matches!(
            pool.place(&up),
            Err(PoolError::PathEscapes { .. })
        ));
    }
}
