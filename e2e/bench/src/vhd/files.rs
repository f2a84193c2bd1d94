//! The folder of the disks.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::signals;

/// Bytes that are random, then as many that are a hole.
const STRETCH: u64 = 8 << 20;

/// Says that a folder is a bench's, which may be removed. Locked by the bench that uses it.
const MARK: &str = "paddock-bench-vhd.folder";

/// A folder that is removed with this value.
#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
    _mark: File,
}

impl Files {
    /// Makes the folder, which must not exist, unless a bench that was killed has left it.
    pub fn new(folder: &Path) -> Result<Self> {
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        remove_left(folder)?;
        fs::create_dir(folder).with_context(|| {
            format!(
                "creating {}: choose a --folder that does not exist",
                folder.display()
            )
        })?;
        let folder = folder
            .canonicalize()
            .with_context(|| format!("resolving {}", folder.display()))?;
        let mark = File::create_new(folder.join(MARK)).context("marking the folder")?;
        lock(&mark, &folder)?;
        Ok(Files {
            folder,
            _mark: mark,
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn file_system(&self) -> String {
        match rustix::fs::statfs(&self.folder) {
            Ok(found) => format!("{:#x}", found.f_type),
            Err(error) => format!("unknown: {error}"),
        }
    }

    /// A raw image of random bytes; every second stretch a hole, if `half`.
    pub fn random(&self, name: &str, size: u64, half: bool) -> Result<PathBuf> {
        let path = self.path(name);
        let fill = || -> std::io::Result<()> {
            let mut image = File::create_new(&path)?;
            image.set_len(size)?;
            let mut random = File::open("/dev/urandom")?;
            let mut bytes = vec![0; 1 << 20];
            let mut at = 0;
            while at < size {
                signals::check().map_err(std::io::Error::other)?;
                if half && at / STRETCH % 2 == 1 {
                    at += STRETCH;
                    continue;
                }
                let step = (size - at).min(bytes.len() as u64);
                let (now, _) = bytes.split_at_mut(step as usize);
                random.read_exact(now)?;
                std::io::Seek::seek(&mut image, std::io::SeekFrom::Start(at))?;
                image.write_all(now)?;
                at += step;
            }
            image.sync_all()
        };
        fill().with_context(|| format!("filling {}", path.display()))?;
        Ok(path)
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Says that there is no room before anything is measured.
    pub fn need(&self, bytes: u64) -> Result<()> {
        let found = rustix::fs::statvfs(&self.folder)?;
        let free = found.f_bavail * found.f_frsize;
        ensure!(
            free >= bytes,
            "{} has {} MiB free, the disks of this bench need {} MiB: ask for less with --size and --convert-size",
            self.folder.display(),
            free >> 20,
            bytes >> 20
        );
        Ok(())
    }
}

/// Removes what a bench that was killed has left.
fn remove_left(folder: &Path) -> Result<()> {
    let Ok(mark) = File::open(folder.join(MARK)) else {
        return Ok(());
    };
    lock(&mark, folder)?;
    fs::remove_dir_all(folder)
        .with_context(|| format!("removing {}, which a bench left", folder.display()))
}

fn lock(mark: &File, folder: &Path) -> Result<()> {
    flock(mark, FlockOperation::NonBlockingLockExclusive).with_context(|| {
        format!(
            "{}: another bench uses it; choose another --folder",
            folder.display()
        )
    })
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} is left: {error}", self.folder.display());
        }
    }
}

/// Makes a file durable: what was written before must not slow down who is measured next.
pub(crate) fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("syncing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_bench_left_is_removed() {
        let dir = std::env::temp_dir().join(format!("paddock-bench-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let files = Files::new(&dir).unwrap();
        fs::write(files.path("disk"), "x").unwrap();
        // In use.
        assert!(Files::new(&dir).is_err());
        drop(files);
        assert!(!dir.exists());
        // As a bench leaves it that was killed.
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(MARK), "").unwrap();
        fs::write(dir.join("disk"), "x").unwrap();
        let files = Files::new(&dir).unwrap();
        assert!(!files.path("disk").exists());
        drop(files);
        // Somebody else's.
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("mine"), "x").unwrap();
        assert!(Files::new(&dir).is_err());
        assert!(dir.join("mine").exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
