//! When a disk was modified, as its children know it: to the second.
//!
//! A change within the second of the one before would be invisible to them.
//! So whoever has changed a disk moves its time on, if it is not a later
//! second by itself: never back, or the time of an earlier content could come
//! up again.

use std::fs::{File, FileTimes};
use std::io;
use std::time::{Duration, SystemTime};

use crate::block::IoError;
use crate::format::footer;
use crate::gate::Gate;

/// The time that a disk had before it was changed.
#[derive(Debug)]
pub(crate) struct Stamp {
    file: File,
    before: SystemTime,
}

impl Stamp {
    /// Of a file that is about to be changed.
    pub(crate) fn take(file: &File) -> io::Result<Stamp> {
        Ok(Stamp {
            before: file.metadata()?.modified()?,
            file: file.try_clone()?,
        })
    }

    /// Gives the file that was changed, and is not written to any more, a
    /// later second than it had, durably. `disk`: for messages.
    pub(crate) fn move_on(&self, gate: &Gate, disk: &str) -> Result<(), IoError> {
        let _pass = gate.enter()?;
        let now = self.file.metadata().and_then(|file| file.modified());
        now.and_then(|now| {
            let time = later_second(self.before, now);
            if time != now {
                self.file.set_times(FileTimes::new().set_modified(time))?;
            }
            // A sync of the data leaves the time where it is.
            self.file.sync_all()
        })
        .map_err(|source| failed(disk, source))
    }

    /// Gives the file the time that it had, durably: it shows the same.
    pub(crate) fn put_back(&self, gate: &Gate, disk: &str) -> Result<(), IoError> {
        let _pass = gate.enter()?;
        self.file
            .set_times(FileTimes::new().set_modified(self.before))
            .and_then(|()| self.file.sync_all())
            .map_err(|source| failed(disk, source))
    }
}

fn failed(disk: &str, source: io::Error) -> IoError {
    IoError::Io {
        disk: disk.into(),
        operation: "set the time of modification",
        source: source.into(),
    }
}

/// `now`, moved on if children could not tell it from `before`, or took it for
/// an earlier one.
pub(crate) fn later_second(before: SystemTime, now: SystemTime) -> SystemTime {
    if footer::timestamp(now) <= footer::timestamp(before) {
        before + Duration::from_secs(1)
    } else {
        now
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_changed_disk_has_a_later_second() {
        let at = |millis: u64| UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + millis);
        for (before, now, expected) in [
            (100, 100, 1100),
            (100, 999, 1100),
            (100, 1000, 1000),
            (999, 1000, 1000),
            // The clock was set back, or the time moved on before.
            (5100, 300, 6100),
        ] {
            assert_eq!(later_second(at(before), at(now)), at(expected), "{before}");
        }
    }

    #[test]
    fn a_file_is_stamped_through_an_open_gate_alone() {
        let file = tempfile::tempfile().unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(4_000_000_000);
        file.set_modified(time).unwrap();
        let modified = || file.metadata().unwrap().modified().unwrap();
        let stamp = Stamp::take(&file).unwrap();
        let gate = Gate::open();
        stamp.move_on(&gate, "disk").unwrap();
        assert_eq!(modified(), time + Duration::from_secs(1));
        stamp.put_back(&gate, "disk").unwrap();
        assert_eq!(modified(), time);
        gate.close();
        assert!(matches!(
            stamp.move_on(&gate, "disk"),
            Err(IoError::GateClosed)
        ));
        assert!(matches!(
            stamp.put_back(&gate, "disk"),
            Err(IoError::GateClosed)
        ));
        assert_eq!(modified(), time);
    }
}
