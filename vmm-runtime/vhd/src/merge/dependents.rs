//! The disks that a merge makes useless: they show what the parent, or the
//! child, is no more.

use std::path::{Path, PathBuf};

use super::Child;
use crate::children::children_of;
use crate::operation::OperationError;
use crate::pool::{Pool, PoolError};

/// The most that are named.
const MOST: usize = 16;

impl Child<'_> {
    /// Refuses while there are `known` dependents, or others in the pools of
    /// the two disks, whole of both.
    pub(super) fn refuse_dependents(
        &self,
        parent_pool: &Pool,
        known: &[PathBuf],
    ) -> Result<(), OperationError> {
        let mut names: Vec<String> = known
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let mut pools = vec![self.pool];
        if parent_pool.identity()? != self.pool.identity()? {
            pools.push(parent_pool);
        }
        // One pool may lie in the other.
        let mut seen = vec![self.identity];
        for (index, pool) in pools.iter().enumerate() {
            for path in children_of(pool, self.rel, &[self.id, self.link.unique_id])? {
                let identity = match identity(pool, &path) {
                    Err(PoolError::NotFound { .. }) => continue,
                    identity => identity?,
                };
                if seen.contains(&identity) {
                    continue;
                }
                seen.push(identity);
                let name = match index {
                    0 => path.display().to_string(),
                    _ => pool.path().join(path).display().to_string(),
                };
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        let searched: Vec<String> = pools
            .iter()
            .map(|pool| pool.path().display().to_string())
            .collect();
        let more = match names.len().saturating_sub(MOST) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        names.truncate(MOST);
        Err(self.refused(format!(
            "merging it would make other disks useless: {}{more}; merge or remove those first (searched: all of {})",
            names.join(", "),
            searched.join(" and ")
        )))
    }
}

fn identity(pool: &Pool, path: &Path) -> Result<(u64, u64), PoolError> {
    pool.place(path)?.identity()
}
