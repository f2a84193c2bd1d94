//! The pools of this host, and where parents are looked for in them.

use super::failure::from_open;
use crate::{host, instance::core::Failure};
use paddock_crds::{HostSpec, reference::PoolFile, virtual_hard_disk_task::SourceFile};
use paddock_vhd::{OpenErrorKind, ParentSearch, Pool, VhdInfo, inspect};
use std::path::Path;

/// The pools that the Host names.
pub(super) struct Pools<'a>(&'a HostSpec);

/// A file in a pool that is open.
pub(super) struct At<'a> {
    pub pool: Pool,
    /// Name of the pool.
    pub name: &'a str,
    pub path: &'a Path,
}

impl<'a> Pools<'a> {
    pub fn of(host: &'a HostSpec) -> Self {
        Self(host)
    }

    pub fn open(&self, name: &str) -> Result<Pool, Failure> {
        Self::open_at(name, &host::pool_path(self.0, name)?)
    }

    fn open_at(name: &str, path: &Path) -> Result<Pool, Failure> {
        // The operator knows that no other host has the disks of a task: what one that died has left does not count.
        Pool::open(path)
            .map(Pool::assigned)
            .map_err(|error| Failure::new("PoolUnavailable", format!("pool {name}: {error}")))
    }

    /// Whether hosts share a pool.
    pub fn is_shared(&self, name: &str) -> bool {
        host::is_shared(self.0, name)
    }

    pub fn at<'f>(&self, file: &'f PoolFile) -> Result<At<'f>, Failure> {
        Ok(At {
            pool: self.open(&file.pool)?,
            name: &file.pool,
            path: Path::new(&file.path),
        })
    }

    /// An image, which never lies where disks do.
    pub fn image<'f>(&self, file: &'f SourceFile) -> Result<At<'f>, Failure> {
        Ok(At {
            pool: Self::open_at(&file.pool, &host::image_pool_path(self.0, &file.pool)?)?,
            name: &file.pool,
            path: Path::new(&file.path),
        })
    }

    /// Looks for parents where the child says, and in the folders of `parents`.
    pub fn search(&self, parents: &[PoolFile]) -> Result<ParentSearch, Failure> {
        let mut search = ParentSearch::new();
        for parent in parents {
            let At { pool, path, .. } = self.at(parent)?;
            let folder = path.parent().unwrap_or(Path::new(""));
            search = search.root(pool.clone()).folder(pool, folder);
        }
        Ok(search)
    }
}

impl At<'_> {
    /// What the file says of itself; `None` when there is none.
    pub fn find(&self) -> Result<Option<VhdInfo>, Failure> {
        match inspect(&self.pool, self.path) {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == OpenErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.named(from_open(&error))),
        }
    }

    /// The same failure, with the name of the pool in front.
    pub fn named(&self, failure: Failure) -> Failure {
        Failure {
            message: format!("pool {}: {}", self.name, failure.message),
            ..failure
        }
    }
}
