//! Reconnecting a child to its parent: one that was moved, or whose time of
//! modification is not what the child knows.
//!
//! The header has no copy, and two sectors that a crash may tear. So a new
//! one is written behind the end of the file, and the footer's copy at the
//! beginning, one sector, then names it.

use std::fs::File;
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
use crate::merge::Record;
use crate::modified::Stamp;
use crate::operation::OperationError;
use crate::pool::Pool;
use crate::repair;
use crate::sidefile::MERGE;
use crate::storage::{Backing, FileStorage};
use crate::tidy::tidy;
use crate::vhd::{Access, Opened};

/// Tells the differencing disk `rel` that its parent is the disk `parent_rel`
/// of `parent_pool` as it is now. That must have the identity that the child
/// knows; whether it has the right content is the caller's to know. Nobody
/// may have the child open. `search` is where the parent's own parents are
/// looked for. Every change passes `gate`.
///
/// The child's time of modification stays, so its own children still fit.
/// After an error it is as it was. After a crash it knows its parent either as
/// before or as asked, and its time may be that of the crash: then its own
/// children open for reading alone until they are reconnected, too.
///
/// Refused for lack of space, while a repair of it is cut off, and once it is
/// merged.
pub fn reparent(
    pool: &Pool,
    rel: impl AsRef<Path>,
    parent_pool: &Pool,
    parent_rel: impl AsRef<Path>,
    gate: Gate,
    search: &ParentSearch,
) -> Result<(), OperationError> {
    let (rel, parent_rel) = (rel.as_ref(), parent_rel.as_ref());
    let place = pool.place(rel)?;
    let (file, _lock) = lock::open_locked(&place, Mode::Exclusive)
        .map_err(|error| OpenError::from_lock(rel, error))?;
    let file = File::from(file);
    let name = rel.to_string_lossy();
    let backing = Backing::read_only(again(rel, &file)?, rel);
    repair::refuse_cut_off(&place, &backing)?;
    let bad = |refusal: Refusal| OpenError::from_refusal(rel, refusal);
    backing.read_afresh().map_err(OperationError::io(rel))?;
    let found = recognise(&backing, Tuning::default()).map_err(bad)?;
    let refused = |reason: String| OperationError::Refused {
        path: rel.to_owned(),
        reason,
    };
    let Some(link) = chain::read_link(&backing, &found).map_err(bad)? else {
        return Err(refused(format!(
            "it is a {} disk and has no parent",
            found.disk_type
        )));
    };
    let record = Record::read(&place)?;
    if record.is_some_and(|record| record.is_done_of(found.footer.unique_id)) {
        return Err(refused(
            "all of it was merged into its parent: merge it again to end that".to_owned(),
        ));
    }
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
    let knows = (parent.unique_id, parent.modified);
    let new = NewParent::locate(pool, rel, parent_pool, parent_rel, knows)?;
    let need = (header::LEN + 3 * footer::LEN) as u64 + new.len();
    let have = place.space()?.available;
    if have < need {
        return Err(OperationError::NoSpace {
            path: rel.to_owned(),
            need,
            have,
        });
    }
    let io = OperationError::io(rel);
    let stamp = Stamp::take(&file).map_err(failed(rel, "look at the file"))?;
    let writable = || -> Result<Backing, OpenError> {
        let storage = Box::new(FileStorage::new(again(rel, &file)?));
        Ok(Backing::new(storage, gate.clone(), &name))
    };
    let written = match tidy(writable()?, &found) {
        // What is wrong with its table is not for here.
        Ok(()) | Err(Refusal::Corrupt(_)) => change_parent(&writable()?, &new, Tuning::default()),
        refused => refused,
    };
    // It shows the same, whatever came of it.
    let put_back = stamp.put_back(&gate, &name);
    written.map_err(|refusal| match refusal {
        Refusal::Io(error) => io(error),
        refusal => bad(refusal).into(),
    })?;
    put_back.map_err(&io)?;
    // What was begun was a merge into the parent as it was.
    Ok(MERGE.forget(&place)?)
}

fn again(rel: &Path, file: &File) -> Result<File, OpenError> {
    file.try_clone()
        .map_err(failed(rel, "duplicate the descriptor"))
}

fn failed(rel: &Path, operation: &'static str) -> impl Fn(std::io::Error) -> OpenError {
    let path = rel.to_owned();
    move |source| OpenError::Io {
        path: path.clone(),
        operation,
        source,
    }
}

/// Tells a disk of its new parent; after an error the file is as long as it
/// was.
fn change_parent(disk: &Backing, new: &NewParent, tuning: Tuning) -> Result<(), Refusal> {
    let found = recognise(disk, tuning)?;
    let len = disk.len()?;
    let written = write_parent(disk, &found, new, tuning);
    if written.is_err() {
        // It is the first error that is told.
        let _ = take_back(disk, &found, len);
    }
    Ok(written?)
}

/// Takes away what was written behind the end, if nothing names it yet.
fn take_back(disk: &Backing, found: &Recognised, len: u64) -> Result<(), Refusal> {
    let offset = |found: &Recognised| found.header.as_ref().map(|(offset, _)| *offset);
    let now = recognise(disk, Tuning::default())?;
    if !now.head_is_lost && offset(&now) == offset(found) {
        disk.set_len(len)?;
        disk.sync()?;
    }
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
