//! Tasks on real folders, each done, done again as after a crash, and refused.

mod changes;
mod claims;
mod downloads;
mod every;
mod images;
mod making;
mod places;
mod targets;

use super::*;
use crate::task::core::{CANCELLED, test_order, test_task};
use paddock_crds::{
    VirtualHardDiskTaskStatus,
    host::{Pool as HostPool, PoolKind, PoolScope},
    reference::PoolFile,
    virtual_hard_disk::{Defragment, DiskType, ImageFormat, Precompact},
    virtual_hard_disk_task::{ExportFormat, Shrink, SourceFile, TaskSource},
};
use paddock_vhd::{Access, BlockDevice, ChildOptions, Gate, ParentSearch, Pool, Vhd, inspect};
use std::{fs, path::PathBuf};

const NAMESPACE: &str = "team";
const SIZE: i64 = 4 << 20;
const BLOCK: u64 = 2 << 20;

struct World {
    dir: tempfile::TempDir,
    host: HostSpec,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = |name: &str, kind| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.join(NAMESPACE)).unwrap();
            HostPool {
                name: name.into(),
                path: path.to_str().unwrap().into(),
                scope: PoolScope::Local,
                kinds: vec![kind],
            }
        };
        let pools = vec![
            pool("default", PoolKind::Disks),
            pool("images", PoolKind::Images),
        ];
        Self {
            dir,
            host: HostSpec {
                pools,
                ..HostSpec::default()
            },
        }
    }

    fn run(&self, task: &VirtualHardDiskTask) -> Result<TaskResult, &'static str> {
        perform(task, &self.host, &Control::default()).map_err(|failure| failure.reason)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("default").join(NAMESPACE).join(name)
    }

    fn image(&self, name: &str) -> PathBuf {
        self.dir.path().join("images").join(NAMESPACE).join(name)
    }

    /// The folder of the namespace.
    fn pool(&self) -> Pool {
        Pool::open(self.file("")).unwrap()
    }

    /// Makes the disk `path` with `byte` in its first and its last KiB.
    fn disk(&self, path: &str, byte: u8) {
        self.run(&task(TaskAction::Create, path, |_| {})).unwrap();
        self.write(path, byte);
    }

    fn write(&self, path: &str, byte: u8) {
        let disk = Vhd::open(&self.pool(), path, Access::ReadWrite, Gate::open()).unwrap();
        disk.write_at(&[byte; 1024], 0).unwrap();
        disk.write_at(&[byte; 1024], disk.size() - 1024).unwrap();
        disk.close().unwrap();
    }

    /// Makes the differencing disk `path` over `parent`.
    fn child(&self, path: &str, parent: &str) {
        let child = task(TaskAction::Create, path, |order| {
            order.disk_uid = path.into();
            order.parents = vec![file(parent)];
        });
        self.run(&child).unwrap();
    }

    /// The first byte of what a disk shows.
    fn first(&self, path: &str) -> u8 {
        let search = ParentSearch::new();
        let gate = Gate::open();
        let disk = Vhd::open_with(&self.pool(), path, Access::ReadOnly, gate, &search).unwrap();
        let mut byte = [0];
        disk.read_at(&mut byte, 0).unwrap();
        byte[0]
    }

    /// What is in the pool but lock files.
    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.file(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".lock"))
            .collect();
        names.sort();
        names
    }
}

/// A file in the folder of the namespace.
fn file(path: &str) -> PoolFile {
    PoolFile {
        pool: "default".into(),
        path: format!("{NAMESPACE}/{path}"),
    }
}

fn image_file(path: &str) -> PoolFile {
    PoolFile {
        pool: "images".into(),
        path: format!("{NAMESPACE}/{path}"),
    }
}

fn image_source(path: &str) -> SourceFile {
    let PoolFile { pool, path } = image_file(path);
    SourceFile { pool, path }
}

fn task(
    action: TaskAction,
    path: &str,
    change: impl FnOnce(&mut TaskOrder),
) -> VirtualHardDiskTask {
    let mut task = test_task(action);
    task.metadata.namespace = Some(NAMESPACE.into());
    let mut order = test_order(file(path));
    order.size_bytes = Some(SIZE);
    change(&mut order);
    task.status = Some(VirtualHardDiskTaskStatus {
        order: Some(order),
        ..VirtualHardDiskTaskStatus::default()
    });
    task
}

/// The same task, as an agent finds it that comes after a crash.
fn begun(mut task: VirtualHardDiskTask) -> VirtualHardDiskTask {
    if let Some(status) = &mut task.status {
        status.state = TaskState::Running;
    }
    task
}

fn import_of(uid: &str, image: &str, sha256: Option<&str>) -> VirtualHardDiskTask {
    task(TaskAction::Import, "d.vhd", |order| {
        order.disk_uid = uid.into();
        order.source = Some(TaskSource {
            file: image_source(image),
            format: ImageFormat::Raw,
            sha256: sha256.map(Into::into),
        });
    })
}

fn of_disk(uid: &str) -> impl FnOnce(&mut TaskOrder) + '_ {
    move |order| order.disk_uid = uid.into()
}

fn refused(world: &World, task: &VirtualHardDiskTask) -> Failure {
    perform(task, &world.host, &Control::default()).unwrap_err()
}
