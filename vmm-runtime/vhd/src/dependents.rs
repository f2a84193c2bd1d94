//! The children of a disk, as far as they lie beside it.

use uuid::Uuid;

use crate::children::parent_of;
use crate::pool::{Place, PoolError};

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
        if matches!(parent_of(&place), Ok(Some(found)) if found == parent) {
            children.push(place.rel().to_string_lossy().into_owned());
            if children.len() == MOST {
                break;
            }
        }
    }
    children.sort();
    Ok(children)
}
