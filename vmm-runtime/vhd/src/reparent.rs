//! Reconnecting a child to its parent: one that was moved, or whose time of
//! modification is not what the child knows.
//!
//! The header has no copy, and two sectors that a crash may tear. So a new
//! one is written behind the end of the file, and the footer's copy at the
//! beginning, one sector, then names it.

use std::fs::{File, FileTimes};
use std::path::Path;

use crate::block::IoError;
use crate::chain::{self, ParentSearch};
use crate::error::OpenError;
use crate::format::SECTOR;
use crate::format::footer::{self, Footer};
use crate::format::header::{self, Header};
use crate::gate::Gate;
use crate::image::{Mutant, NewParent, Recognised, Refusal, Tuning, recognise};
use crate::lock::{self, Mode};
use crate::operation::OperationError;
use crate::pool::Pool;
use crate::storage::{Backing, FileStorage};
use crate::vhd::{Access, Opened};

/// Tells the differencing disk `rel` that its parent is the disk `parent_rel`
/// of `parent_pool` as it is now. That must have the identity that the child
/// knows; whether it has the right content is the caller's to know. Nobody
/// may have the child open. `search` is where the parent's own parents are
/// looked for.
///
/// The child's time of modification stays, so its own children still fit.
/// After a crash it knows its parent either as before or as asked.
pub fn reparent(
    pool: &Pool,
    rel: impl AsRef<Path>,
    parent_pool: &Pool,
    parent_rel: impl AsRef<Path>,
    search: &ParentSearch,
) -> Result<(), OperationError> {
    let (rel, parent_rel) = (rel.as_ref(), parent_rel.as_ref());
    let place = pool.place(rel)?;
    let (file, _lock) = lock::open_locked(&place, Mode::Exclusive)
        .map_err(|error| OpenError::from_lock(rel, error))?;
    let file = File::from(file);
    let system = |source| OpenError::Io {
        path: rel.to_owned(),
        operation: "keep the time of modification",
        source,
    };
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    let modified = modified.map_err(system)?;
    let times = file.try_clone().map_err(system)?;
    let name = rel.to_string_lossy();
    let backing = Backing::new(Box::new(FileStorage::new(file)), Gate::open(), &name);
    let bad = |refusal: Refusal| OpenError::from_refusal(rel, refusal);
    backing.read_afresh().map_err(OperationError::io(rel))?;
    let found = recognise(&backing, Tuning::default()).map_err(bad)?;
    let Some(link) = chain::read_link(&backing, &found).map_err(bad)? else {
        return Err(OperationError::Refused {
            path: rel.to_owned(),
            reason: format!("it is a {} disk and has no parent", found.disk_type),
        });
    };
    // Itself can't be its parent: it is locked.
    let parent = Opened::open(
        parent_pool,
        parent_rel,
        Access::ReadOnly,
        Gate::open(),
        search,
    )?;
    if parent.unique_id != link.unique_id {
        return Err(OpenError::ParentMismatch {
            path: rel.to_owned(),
            parent: parent_rel.to_owned(),
            expected: link.unique_id,
            found: parent.unique_id,
        }
        .into());
    }
    let new = NewParent::locate(pool, rel, parent_pool, parent_rel, &parent)?;
    write_parent(&backing, &found, &new, Tuning::default()).map_err(OperationError::io(rel))?;
    times
        .set_times(FileTimes::new().set_modified(modified))
        .and_then(|()| times.sync_all())
        .map_err(system)?;
    Ok(())
}

/// Writes a new header with its locators behind the end of the file, then the
/// footers that name it.
pub(crate) fn write_parent(
    backing: &Backing,
    found: &Recognised,
    new: &NewParent,
    tuning: Tuning,
) -> Result<(), IoError> {
    let Some((_, old)) = &found.header else {
        return Ok(());
    };
    if found.head_is_lost {
        // The one at the end won't be there any more.
        backing.write(&found.footer_bytes, 0)?;
        backing.sync()?;
    }
    let header_offset = backing.len()?.next_multiple_of(SECTOR);
    let texts_offset = header_offset + header::LEN as u64;
    let (parent, texts) = new.place(texts_offset);
    let header = Header {
        parent,
        ..old.clone()
    };
    let footer = Footer {
        header_offset: Some(header_offset),
        ..found.footer.clone()
    };
    // The other fields of the footer stay, those unknown to us as well.
    let mut bytes = found.footer_bytes;
    footer.encode_header_offset(&mut bytes);
    if tuning.is(Mutant::HeadBeforeHeader) {
        backing.write(&bytes, 0)?;
    }
    let mut end = texts_offset;
    for (offset, text) in &texts {
        backing.write(text, *offset)?;
        end = offset + text.len() as u64;
    }
    backing.write(&header.encode(), header_offset)?;
    // The footer that is at the end now, until the other one is named.
    backing.write(&found.footer_bytes, end)?;
    backing.sync()?;
    backing.write(&bytes, 0)?;
    backing.sync()?;
    backing.write(&bytes, end)?;
    backing.sync()?;
    debug_assert_eq!(bytes.len(), footer::LEN);
    Ok(())
}

#[cfg(test)]
mod tests;
