//! The folder of the disks.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Bytes that are random, then as many that are a hole.
const STRETCH: u64 = 8 << 20;

/// A folder that is removed with this value.
#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
}

impl Files {
    /// Makes the folder, which must not exist.
    pub fn new(folder: &Path) -> Result<Self> {
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        fs::create_dir(folder).with_context(|| {
            format!(
                "creating {}: choose a --folder that does not exist",
                folder.display()
            )
        })?;
        let folder = folder
            .canonicalize()
            .with_context(|| format!("resolving {}", folder.display()))?;
        Ok(Files { folder })
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
