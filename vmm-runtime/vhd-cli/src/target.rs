//! Targets: new files, which get their name when they are complete.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use paddock_vhd::Pool;
use uuid::Uuid;

use crate::disk_path::DiskPath;
use crate::failure::Failure;

/// What may happen to a file that is there.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Force {
    /// Replace the target if it exists. It stays as it is until the new file
    /// is complete
    #[arg(long)]
    force: bool,
}

/// A file that is being made. If it is dropped before [`Target::finish`],
/// nothing is left of it, and what was there before is untouched.
#[derive(Debug)]
pub(crate) struct Target {
    disk: DiskPath,
    /// Under another name beside the old one, which it is to replace.
    replacing: Option<DiskPath>,
}

impl Target {
    /// Refuses a file that is there, unless it may be replaced, and is none
    /// of the `sources`.
    pub(crate) fn new(path: &Path, force: Force, sources: &[PathBuf]) -> Result<Target, Failure> {
        let disk = DiskPath::any(path)?;
        let Ok(metadata) = disk.path().symlink_metadata() else {
            return Ok(Target {
                disk,
                replacing: None,
            });
        };
        let shown = path.display();
        if !metadata.is_file() {
            return Err(Failure::wrong_use(format!(
                "{shown}: not a regular file; it is not replaced, choose another name"
            )));
        }
        if !force.force {
            return Err(Failure::wrong_use(format!(
                "{shown}: there is a file of that name already; choose another name, or replace it with --force"
            )));
        }
        let identity = disk.identity();
        for source in sources {
            if DiskPath::existing(source)?.identity() == identity {
                return Err(Failure::wrong_use(format!(
                    "{shown}: it is the source, or one of its parents; it is not replaced, choose another name"
                )));
            }
        }
        let name = format!(
            ".{}.{}",
            disk.name.to_string_lossy(),
            Uuid::new_v4().simple()
        );
        Ok(Target {
            replacing: Some(disk.sibling(name)),
            disk,
        })
    }

    /// The folder in which the file is to be made.
    pub(crate) fn pool(&self) -> &Pool {
        &self.disk.pool
    }

    /// The name by which it is to be made.
    pub(crate) fn name(&self) -> &Path {
        &self.making().name
    }

    /// As whom it is to be made.
    pub(crate) fn making(&self) -> &DiskPath {
        self.replacing.as_ref().unwrap_or(&self.disk)
    }

    /// Puts the new file, complete, in the old one's place, if there is one
    /// and nobody uses it.
    pub(crate) fn finish(mut self) -> Result<DiskPath, Failure> {
        let Some(new) = self.replacing.as_ref() else {
            return Ok(self.disk.clone());
        };
        paddock_vhd::replace(&self.disk.pool, &new.name, &self.disk.name)?;
        let _ = fs::remove_file(lock_of(new));
        self.replacing = None;
        Ok(self.disk.clone())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(new) = &self.replacing {
            let _ = fs::remove_file(new.path());
            let _ = fs::remove_file(lock_of(new));
        }
    }
}

fn lock_of(disk: &DiskPath) -> PathBuf {
    let mut name = disk.name.clone().into_os_string();
    name.push(".lock");
    disk.path().with_file_name(name)
}
