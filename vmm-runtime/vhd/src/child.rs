//! Creating a differencing disk.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::SystemTime;

use uuid::Uuid;

use crate::chain::{self, ParentSearch};
use crate::create::{Blueprint, CreateError, NewDisk};
use crate::error::OpenError;
use crate::format::DiskType;
use crate::format::bat::BLOCK_SIZE;
use crate::gate::Gate;
use crate::image::NewParent;
use crate::pool::Pool;
use crate::vhd::{Access, Opened, Vhd};

/// What [`Vhd::create_child`](crate::Vhd::create_child) makes.
#[derive(Debug, Clone)]
pub struct ChildOptions {
    /// The identity that children of the new disk refer to.
    pub unique_id: Uuid,
    /// The time of creation; the format keeps whole seconds from 2000 on.
    pub created: SystemTime,
    /// Where the parent's own parents are looked for.
    pub search: ParentSearch,
    /// As of [`CreateOptions`](crate::CreateOptions).
    pub gate: Gate,
}

impl ChildOptions {
    /// A child with a random identity, created now, with a gate that is open.
    pub fn new() -> ChildOptions {
        ChildOptions {
            unique_id: Uuid::new_v4(),
            created: SystemTime::now(),
            search: ParentSearch::new(),
            gate: Gate::open(),
        }
    }
}

impl Default for ChildOptions {
    fn default() -> ChildOptions {
        ChildOptions::new()
    }
}

impl Vhd {
    /// Creates the differencing disk `rel` over the disk `parent_rel` of
    /// `parent_pool`, and opens it for writing. It has the parent's size and, at first, the parent's content. As for
    /// [`Vhd::create`], the file gets its name when it is complete.
    ///
    /// The child keeps the parent's identity and time of modification, the
    /// way to it from the child's folder if both are in the same pool, and
    /// its absolute path. Who modifies the parent makes the child useless for
    /// writing, see [`OpenError::ParentChanged`].
    ///
    /// The parent is locked and read, and nothing of it is written: its lock
    /// file names the owner and the epoch that it named before.
    pub fn create_child(
        pool: &Pool,
        rel: impl AsRef<Path>,
        parent_pool: &Pool,
        parent_rel: impl AsRef<Path>,
        options: &ChildOptions,
    ) -> Result<Vhd, CreateError> {
        let (rel, parent_rel) = (rel.as_ref(), parent_rel.as_ref());
        let mut parent = Opened::open(
            parent_pool,
            parent_rel,
            Access::ReadOnly,
            Gate::open(),
            &options.search,
        )?;
        if let Some(changed) = parent.changed.take() {
            return Err(changed.into());
        }
        if parent.parents + 2 > chain::MAX_CHAIN {
            return Err(CreateError::Parent(OpenError::Unsupported {
                path: parent_rel.to_owned(),
                what: format!(
                    "it is the last of {} disks, the most that a chain may have; merge some of them",
                    chain::MAX_CHAIN
                ),
            }));
        }
        let knows = (parent.unique_id, parent.modified);
        let link = NewParent::locate(pool, rel, parent_pool, parent_rel, knows)?;
        let blueprint = Blueprint {
            disk_type: DiskType::Differencing,
            size: parent.image.size(),
            geometry: Some(parent.geometry),
            unique_id: options.unique_id,
            created: options.created,
            block_size: BLOCK_SIZE,
            parent: Some(link),
            gate: options.gate.clone(),
        };
        let (image, locks) = parent.into_parent();
        let nothing = &mut |_| ControlFlow::Continue(());
        let (parent, data) = (Some(image), None);
        NewDisk::begin_over(pool, rel, &blueprint, data, parent, locks, nothing)?.finish()
    }
}

impl NewParent {
    /// What the child `rel` is told of the disk `parent_rel` of `parent_pool`,
    /// which has that identity and time of modification.
    pub(crate) fn locate(
        pool: &Pool,
        rel: &Path,
        parent_pool: &Pool,
        parent_rel: &Path,
        (unique_id, modified): (Uuid, u32),
    ) -> Result<NewParent, OpenError> {
        let unnameable = || OpenError::Unsupported {
            path: parent_rel.to_owned(),
            what: "its path is not UTF-8 or has a backslash in it, so no child can name it"
                .to_owned(),
        };
        let relative = if pool.identity()? == parent_pool.identity()? {
            Some(chain::relative_path(rel, parent_rel).ok_or_else(unnameable)?)
        } else {
            None
        };
        let absolute = chain::absolute_path(parent_pool, parent_rel)?.ok_or_else(unnameable)?;
        let name = parent_rel.file_name().and_then(|name| name.to_str());
        Ok(NewParent {
            unique_id,
            modified,
            name: name.ok_or_else(unnameable)?.to_owned(),
            relative,
            absolute: Some(absolute),
        })
    }
}
