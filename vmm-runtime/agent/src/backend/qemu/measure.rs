//! What the disks of a running machine take in their pools, measured now and then.

use super::run_folder::RunFolder;
use crate::{
    backend::{Teller, Told},
    instance::core::DiskUse,
};
use futures::channel::oneshot;
use paddock_vhd::Pool;
use paddock_vmm::config::VmConfig;
use std::{os::unix::fs::MetadataExt, path::PathBuf, time::Duration};
use tracing::debug;

/// From one measurement to the next.
const EACH: Duration = Duration::from_secs(60);
/// The end of a guest is told without its measurement if that takes longer.
const LAST: Duration = Duration::from_millis(500);

/// A file that a guest writes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Written {
    /// Name of the disk within the machine.
    name: String,
    pool: PathBuf,
    path: PathBuf,
}

/// Measures the disks of the machine in `folder` for ever, and tells.
pub async fn run(folder: &RunFolder, teller: &Teller) {
    loop {
        tokio::time::sleep(EACH).await;
        if let Some(uses) = now(folder).await {
            teller.tell(Told::Measured(uses)).await;
        }
    }
}

/// Measures them once more, now that nobody writes them, and tells.
pub async fn last(folder: &RunFolder, teller: &Teller) {
    if let Ok(Some(uses)) = tokio::time::timeout(LAST, now(folder)).await {
        teller.tell(Told::MeasuredLast(uses)).await;
    }
}

async fn now(folder: &RunFolder) -> Option<Vec<DiskUse>> {
    let Some(config) = folder.config() else {
        debug!(folder = %folder.path().display(), "no configuration: its disks are not measured");
        return None;
    };
    let files = written(&config);
    // A thread of its own, which a dead pool may hold: then nothing is measured any more.
    let (answer, answered) = oneshot::channel();
    let measuring = std::thread::Builder::new()
        .name("measure".to_owned())
        .spawn(move || {
            let _ = answer.send(files.iter().filter_map(measure).collect::<Vec<_>>());
        });
    measuring.ok()?;
    answered.await.ok()
}

/// The files that the guest writes: the undo disks where there are any.
fn written(config: &VmConfig) -> Vec<Written> {
    let disks = config.disks.iter().filter(|disk| !disk.read_only);
    disks
        .map(|disk| {
            let (pool, path) = match &disk.undo {
                Some(undo) => (&undo.pool, &undo.path),
                None => (&disk.pool, &disk.path),
            };
            Written {
                name: disk.name.clone(),
                pool: pool.clone(),
                path: path.clone(),
            }
        })
        .collect()
}

fn measure(file: &Written) -> Option<DiskUse> {
    let found = Pool::open(&file.pool)
        .and_then(|pool| pool.open_read(&file.path))
        .ok()?
        .metadata()
        .ok()?;
    Some(DiskUse {
        name: file.name.clone(),
        path: file.path.to_string_lossy().into_owned(),
        // stat counts in 512 bytes, whatever the file system's blocks.
        allocated: found.blocks().saturating_mul(512),
        length: found.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_measured_by_what_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let file = Written {
            name: "d".into(),
            pool: dir.path().into(),
            path: "d.vhd".into(),
        };
        assert_eq!(measure(&file), None);
        std::fs::write(dir.path().join("d.vhd"), vec![1; 8192]).unwrap();
        let found = measure(&file).unwrap();
        assert_eq!(found.length, 8192);
        assert!(found.allocated <= 16 << 10, "{found:?}");
        assert_eq!(found.name, "d");
    }

    #[test]
    fn the_undo_disk_is_what_the_guest_writes() {
        let config = serde_json::json!({
            "version": 1, "id": "i", "name": "n", "machine": "PC", "accelerator": "tcg", "cores": 1, "memoryMib": 32,
            "uuid": "00000000-0000-4000-8000-000000000001", "hostEpoch": 1, "boot": {},
            "disks": [
                {"name": "a", "bus": "IDE", "unit": 0, "pool": "/p", "path": "a.vhd", "diskEpoch": 1},
                {"name": "b", "bus": "IDE", "unit": 1, "pool": "/p", "path": "b.vhd", "diskEpoch": 1,
                 "undo": {"pool": "/q", "path": "b.vud", "missing": "Create"}},
                {"name": "c", "bus": "SCSI", "unit": 1, "pool": "/p", "path": "c.vhd", "diskEpoch": 1, "readOnly": true}
            ],
            "runDirectory": "/run", "qemu": {"binary": "/q", "uid": 1, "gid": 1}
        });
        let config = VmConfig::from_json(config.to_string().as_bytes()).unwrap();
        let file = |name: &str, pool: &str, path: &str| Written {
            name: name.into(),
            pool: pool.into(),
            path: path.into(),
        };
        assert_eq!(
            written(&config),
            [file("a", "/p", "a.vhd"), file("b", "/q", "b.vud")]
        );
    }
}
