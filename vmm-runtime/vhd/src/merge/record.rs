//! The record beside a child that is being merged, `NAME.merge`: that what is
//! different in the parent is this merge's doing, and whether all of it is
//! there.

use uuid::Uuid;

use crate::pool::{Place, PoolError};
use crate::sidefile::MERGE;

const MARK: &str = "merge of a differencing VHD into its parent, version 1";

/// How far a merge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The parent may have a part of the child.
    Begun,
    /// The parent has all of it, durably.
    Done,
}

/// What is merged into what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(super) state: State,
    pub(crate) child: Uuid,
    pub(super) parent: Uuid,
}

impl Record {
    /// The record beside the disk `child`. `None` if there is none, or if it
    /// was never complete: then the parent was not touched.
    pub(crate) fn read(child: &Place) -> Result<Option<Record>, PoolError> {
        // Bounded: the file may be anyone's.
        let bytes = MERGE.read(child, 256)?;
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(text.and_then(|text| Record::parse(&text)))
    }

    /// Whether all of the disk with the identity `child` was merged.
    pub(crate) fn is_done_of(&self, child: Uuid) -> bool {
        self.state == State::Done && self.child == child
    }

    /// Puts the record beside the disk `child`, durably.
    pub(super) fn write(&self, child: &Place) -> Result<(), PoolError> {
        MERGE.create(child, self.text().as_bytes()).map(drop)
    }

    /// Writes the record that is there already once more: it may be in the page
    /// cache alone, if its sync failed. Not taken away in between, the parent
    /// may have been written to.
    pub(super) fn confirm(&self, child: &Place) -> Result<(), PoolError> {
        MERGE.rewrite(child, self.text().as_bytes())?;
        child.sync_folder()
    }

    /// Says in the record beside the disk `child` that the parent has all of
    /// it, durably.
    pub(super) fn end(&self, child: &Place) -> Result<(), PoolError> {
        let done = Record {
            state: State::Done,
            ..*self
        };
        // Less than a sector, and as long as before.
        MERGE.rewrite(child, done.text().as_bytes())
    }

    fn text(&self) -> String {
        let Record {
            state,
            child,
            parent,
        } = self;
        let state = match state {
            State::Begun => "begun",
            State::Done => "done.",
        };
        format!("{MARK}\nchild {child}\nparent {parent}\nstate {state}\nend\n")
    }

    fn parse(text: &str) -> Option<Record> {
        let rest = text.strip_prefix(MARK)?.strip_prefix("\nchild ")?;
        let (child, rest) = rest.split_once("\nparent ")?;
        let (parent, rest) = rest.split_once("\nstate ")?;
        Some(Record {
            state: match rest.strip_suffix("\nend\n")? {
                "begun" => State::Begun,
                "done." => State::Done,
                _ => return None,
            },
            child: child.parse().ok()?,
            parent: parent.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pool::Pool;

    #[test]
    fn a_record_counts_only_if_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let place = pool.place(Path::new("a")).unwrap();
        assert_eq!(Record::read(&place).unwrap(), None);
        let begun = Record {
            state: State::Begun,
            child: Uuid::from_bytes([1; 16]),
            parent: Uuid::from_bytes([2; 16]),
        };
        begun.write(&place).unwrap();
        assert_eq!(Record::read(&place).unwrap(), Some(begun));
        let file = dir.path().join("a.merge");
        let bytes = std::fs::read(&file).unwrap();
        begun.end(&place).unwrap();
        let done = Record {
            state: State::Done,
            ..begun
        };
        assert_eq!(Record::read(&place).unwrap(), Some(done));
        assert_eq!(std::fs::read(&file).unwrap().len(), bytes.len());
        for len in 0..bytes.len() {
            std::fs::write(&file, &bytes[..len]).unwrap();
            assert_eq!(Record::read(&place).unwrap(), None, "{len}");
        }
        std::fs::write(&file, [0xff; 4096]).unwrap();
        assert_eq!(Record::read(&place).unwrap(), None);
        begun.write(&place).unwrap();
        assert_eq!(Record::read(&place).unwrap(), Some(begun));
    }
}
