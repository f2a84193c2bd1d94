//! A log file that keeps the newest bytes and no more than it may.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Two halves: `NAME` is written until it holds half of what is allowed, then it becomes `NAME.1`, whose old content is
/// given up. So at least half of what is allowed is always there, once that much was written.
#[derive(Debug)]
pub(crate) struct BoundedLog {
    path: PathBuf,
    old_path: PathBuf,
    file: File,
    written: u64,
    half: u64,
}

impl BoundedLog {
    /// Opens `path` to go on where an earlier run has stopped. At most `max` bytes are kept.
    pub fn open(path: &Path, max: u64) -> io::Result<Self> {
        let mut old_name = path.file_name().map(OsString::from).unwrap_or_default();
        old_name.push(".1");
        let file = Self::open_file(path)?;
        let written = file.metadata()?.len();
        Ok(BoundedLog {
            path: path.to_owned(),
            old_path: path.with_file_name(old_name),
            file,
            written,
            half: (max / 2).max(1),
        })
    }

    fn open_file(path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
    }

    /// Appends.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.half.saturating_sub(self.written);
            if room == 0 {
                self.rotate()?;
                continue;
            }
            let take = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(take);
            self.file.write_all(now)?;
            self.written += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.path, &self.old_path)?;
        self.file = Self::open_file(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(directory: &Path) -> (String, String) {
        let read = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
        (read("log.1"), read("log"))
    }

    #[test]
    fn keeps_the_newest_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = BoundedLog::open(&directory.path().join("log"), 8).unwrap();
        log.write(b"abc").unwrap();
        assert_eq!(both(directory.path()), ("".into(), "abc".into()));
        log.write(b"defghij").unwrap();
        assert_eq!(both(directory.path()), ("efgh".into(), "ij".into()));
        log.write(b"kl").unwrap();
        assert_eq!(both(directory.path()), ("efgh".into(), "ijkl".into()));
        drop(log);
        let mut log = BoundedLog::open(&directory.path().join("log"), 8).unwrap();
        log.write(b"m").unwrap();
        assert_eq!(both(directory.path()), ("ijkl".into(), "m".into()));
    }

    #[test]
    fn a_smaller_limit_than_before_is_kept_from_the_next_byte_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        BoundedLog::open(&path, 100)
            .unwrap()
            .write(&[b'x'; 40])
            .unwrap();
        BoundedLog::open(&path, 8).unwrap().write(b"y").unwrap();
        assert_eq!(both(directory.path()), ("x".repeat(40), "y".into()));
    }
}
