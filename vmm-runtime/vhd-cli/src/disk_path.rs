//! FILE arguments: a folder of disks and a name in it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use paddock_vhd::{ParentSearch, Pool};

use crate::failure::Failure;

/// A disk that the user named: its folder is opened as a pool. Symbolic links
/// on the way are followed, the user's word counts.
#[derive(Debug, Clone)]
pub(crate) struct DiskPath {
    pub(crate) pool: Pool,
    pub(crate) name: PathBuf,
    /// Without symbolic links.
    path: PathBuf,
}

impl DiskPath {
    /// A file that is there.
    pub(crate) fn existing(path: &Path) -> Result<DiskPath, Failure> {
        let real = path.canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::wrong_use(format!("{}: there is no such file", path.display()))
            }
            _ => Failure::io(path, "open the file", &error),
        })?;
        DiskPath::split(path, real)
    }

    /// A file that may be there or not; its folder is.
    pub(crate) fn any(path: &Path) -> Result<DiskPath, Failure> {
        if path.symlink_metadata().is_ok() && path.exists() {
            return DiskPath::existing(path);
        }
        let folder = match path.parent() {
            Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
            Some(folder) => folder,
            None => return Err(no_file(path)),
        };
        let name = path.file_name().ok_or_else(|| no_file(path))?;
        let folder = folder.canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::wrong_use(format!("{}: there is no such folder", folder.display()))
            }
            _ => Failure::io(folder, "open the folder", &error),
        })?;
        DiskPath::split(path, folder.join(name))
    }

    fn split(given: &Path, real: PathBuf) -> Result<DiskPath, Failure> {
        let (Some(folder), Some(name)) = (real.parent(), real.file_name()) else {
            return Err(no_file(given));
        };
        Ok(DiskPath {
            pool: Pool::open(folder)?,
            name: name.into(),
            path: real,
        })
    }

    /// The whole path, without symbolic links.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Another name in the same folder.
    pub(crate) fn sibling(&self, name: impl Into<PathBuf>) -> DiskPath {
        let name = name.into();
        DiskPath {
            pool: self.pool.clone(),
            path: self.path.with_file_name(&name),
            name,
        }
    }

    /// Device and inode, if it is there.
    pub(crate) fn identity(&self) -> Option<(u64, u64)> {
        let metadata = self.path.metadata().ok()?;
        Some((metadata.dev(), metadata.ino()))
    }
}

fn no_file(path: &Path) -> Failure {
    Failure::wrong_use(format!("{}: that names no file", path.display()))
}

/// Two disks as names in one pool, so that one can name the other by the way
/// from folder to folder: a whole tree can be moved then. Their folders' own
/// pools, if they lie on different file systems.
pub(crate) struct Pair {
    pub(crate) child: (Pool, PathBuf),
    pub(crate) parent: (Pool, PathBuf),
}

impl Pair {
    pub(crate) fn new(child: &DiskPath, parent: &DiskPath) -> Result<Pair, Failure> {
        if let Some((folder, child, parent)) = shared_folder(child.path(), parent.path())
            && device(folder).is_some_and(|shared| {
                Some(shared) == child.1.parent().and_then(device)
                    && Some(shared) == parent.1.parent().and_then(device)
            })
        {
            let pool = Pool::open(folder)?;
            return Ok(Pair {
                child: (pool.clone(), child.0.to_owned()),
                parent: (pool, parent.0.to_owned()),
            });
        }
        Ok(Pair {
            child: (child.pool.clone(), child.name.clone()),
            parent: (parent.pool.clone(), parent.name.clone()),
        })
    }
}

type Named<'a> = (&'a Path, &'a Path);

/// The deepest folder that holds both, and each as a path from there and as
/// it was given.
fn shared_folder<'a>(a: &'a Path, b: &'a Path) -> Option<(&'a Path, Named<'a>, Named<'a>)> {
    let folder = a
        .parent()?
        .ancestors()
        .find(|folder| b.starts_with(folder))?;
    Some((
        folder,
        (a.strip_prefix(folder).ok()?, a),
        (b.strip_prefix(folder).ok()?, b),
    ))
}

fn device(folder: &Path) -> Option<u64> {
    folder.metadata().ok().map(|metadata| metadata.dev())
}

/// Where parents and children are looked for.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Search {
    /// Look for parents in this folder, too, and for children where those
    /// would become useless (may be given more than once). First they are
    /// looked for where the disk itself says, or beside it
    #[arg(long = "search", value_name = "DIR")]
    folders: Vec<PathBuf>,
}

impl Search {
    /// The folders, for a process that runs elsewhere.
    pub(crate) fn absolute(&self) -> impl Iterator<Item = PathBuf> {
        let absolute = |folder: &PathBuf| folder.canonicalize().unwrap_or_else(|_| folder.clone());
        self.folders.iter().map(absolute)
    }

    /// Any path that a disk names, then the folders that the user names.
    pub(crate) fn resolve(&self) -> Result<ParentSearch, Failure> {
        self.resolve_from(ParentSearch::new())
    }

    /// As [`Search::resolve`], for the disk's parent in the folder of
    /// `parent`: that folder is then the parent's pool, in which its other
    /// children are looked for, and not all of the host.
    pub(crate) fn resolve_beside(&self, parent: Option<&Path>) -> Result<ParentSearch, Failure> {
        let search = ParentSearch::new();
        self.resolve_from(match parent.and_then(Path::parent) {
            Some(folder) => search.root(Pool::open(folder)?),
            None => search,
        })
    }

    fn resolve_from(&self, search: ParentSearch) -> Result<ParentSearch, Failure> {
        let mut search = search.root(Pool::open("/")?);
        for folder in &self.folders {
            search = search.folder(Pool::open(folder)?, "");
        }
        Ok(search)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_folder_is_the_deepest() {
        let (folder, a, b) = shared_folder(Path::new("/x/y/a"), Path::new("/x/y/z/b")).unwrap();
        assert_eq!(folder, Path::new("/x/y"));
        assert_eq!((a.0, b.0), (Path::new("a"), Path::new("z/b")));
        let (folder, a, b) = shared_folder(Path::new("/x/y/a"), Path::new("/xy/b")).unwrap();
        assert_eq!(folder, Path::new("/"));
        assert_eq!((a.0, b.0), (Path::new("x/y/a"), Path::new("xy/b")));
    }
}
