//! The children of a disk, as far as they lie beside it.

use std::fs::File;

use rustix::fs::OFlags;
use uuid::Uuid;

use crate::chain;
use crate::gate::Gate;
use crate::image::{Tuning, recognise};
use crate::pool::{Place, PoolError};
use crate::storage::{Backing, FileStorage};

/// The most children that are named.
const MOST: usize = 16;

/// The names of the differencing disks in the folder of `disk` whose parent
/// has the identity `parent`, at most [`MOST`]. Other folders are not looked
/// into, and what can't be read as a disk is none. Takes no locks: a child
/// that is in use is one all the same.
pub(crate) fn children(disk: &Place, parent: Uuid) -> Result<Vec<String>, PoolError> {
    let mut children = Vec::new();
    for name in disk.names()? {
        let place = disk.sibling(name?)?;
        let Ok(file) = place.open(OFlags::RDONLY) else {
            continue;
        };
        let gate = Gate::open();
        gate.close();
        let name = place.rel().to_string_lossy();
        let backing = Backing::new(Box::new(FileStorage::new(File::from(file))), gate, &name);
        let link = recognise(&backing, Tuning::default())
            .and_then(|found| chain::read_link(&backing, &found));
        if let Ok(Some(link)) = link
            && link.unique_id == parent
        {
            children.push(name.into_owned());
            if children.len() == MOST {
                break;
            }
        }
    }
    children.sort();
    Ok(children)
}
