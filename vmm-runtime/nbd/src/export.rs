//! What a server offers.

use std::fmt;
use std::sync::Arc;

use paddock_vhd::BlockDevice;

use crate::protocol::{MAX_TEXT_BYTES, transmission_flag as flag};

/// The most exports of one server.
pub const MAX_EXPORTS: usize = 256;

/// A disk under a name.
#[derive(Clone)]
pub struct Export {
    /// What clients ask for, at most 4,096 bytes. The empty name means the server's first export.
    pub name: String,
    /// The disk.
    pub disk: Arc<dyn BlockDevice>,
    /// Changes are refused, even if the disk would take them.
    pub read_only: bool,
    /// Said to clients that list the exports, at most 4,096 bytes; nothing when empty.
    pub description: String,
}

impl Export {
    /// A disk that may be changed unless it was opened for reading.
    pub fn new(name: impl Into<String>, disk: Arc<dyn BlockDevice>) -> Self {
        Export {
            name: name.into(),
            disk,
            read_only: false,
            description: String::new(),
        }
    }

    pub(crate) fn refuses_changes(&self) -> bool {
        self.read_only || self.disk.read_only()
    }

    pub(crate) fn transmission_flags(&self, structured_replies: bool) -> u16 {
        // Several connections: they share the disk, whose flush covers every write that was answered on any of them.
        let mut flags =
            flag::HAS_FLAGS | flag::SEND_FLUSH | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
        if structured_replies {
            flags |= flag::SEND_DF;
        }
        if self.refuses_changes() {
            flags | flag::READ_ONLY
        } else {
            // Not FAST_ZERO: whether zeroing is faster than writing is the file system's secret.
            flags | flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES
        }
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("name", &self.name)
            .field("bytes", &self.disk.size())
            .field("read_only", &self.refuses_changes())
            .field("description", &self.description)
            .finish()
    }
}

/// Why exports cannot be offered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportsError {
    /// None, or too many.
    #[error("a server has 1 to {MAX_EXPORTS} exports, found {0}")]
    Count(usize),
    /// Two of one name.
    #[error("there are two exports called {0:?}: give each a name of its own")]
    Twice(String),
    /// A text that the protocol has no room for.
    #[error(
        "the name and the description of an export have at most {MAX_TEXT_BYTES} bytes, found {0}"
    )]
    TooLong(usize),
}

/// At least one export, no two of one name.
#[derive(Clone, Debug)]
pub(crate) struct Exports(Vec<Arc<Export>>);

impl Exports {
    pub fn new(list: Vec<Export>) -> Result<Self, ExportsError> {
        if list.is_empty() || list.len() > MAX_EXPORTS {
            return Err(ExportsError::Count(list.len()));
        }
        for (index, export) in list.iter().enumerate() {
            let longest = export.name.len().max(export.description.len());
            if longest > MAX_TEXT_BYTES {
                return Err(ExportsError::TooLong(longest));
            }
            if list
                .iter()
                .take(index)
                .any(|other| other.name == export.name)
            {
                return Err(ExportsError::Twice(export.name.clone()));
            }
        }
        Ok(Exports(list.into_iter().map(Arc::new).collect()))
    }

    pub fn find(&self, name: &str) -> Option<&Arc<Export>> {
        let named = self.iter().find(|export| export.name == name);
        named.or_else(|| self.0.first().filter(|_| name.is_empty()))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_disk::MemoryDisk;

    fn named(names: &[&str]) -> Result<Exports, ExportsError> {
        let disk = Arc::new(MemoryDisk::new(512));
        Exports::new(
            names
                .iter()
                .map(|&name| Export::new(name, disk.clone()))
                .collect(),
        )
    }

    #[test]
    fn the_first_export_is_also_the_one_without_a_name() {
        let exports = named(&["a", "b"]).unwrap();
        assert_eq!(exports.find("").unwrap().name, "a");
        assert_eq!(exports.find("b").unwrap().name, "b");
        assert!(exports.find("c").is_none());
        assert_eq!(named(&["a", ""]).unwrap().find("").unwrap().name, "");
    }

    #[test]
    fn what_cannot_be_told_apart_or_said_is_refused() {
        assert_eq!(named(&[]).unwrap_err(), ExportsError::Count(0));
        assert_eq!(
            named(&["a", "b", "a"]).unwrap_err(),
            ExportsError::Twice("a".into())
        );
        assert_eq!(
            named(&[&"n".repeat(4097)]).unwrap_err(),
            ExportsError::TooLong(4097)
        );
    }
}
