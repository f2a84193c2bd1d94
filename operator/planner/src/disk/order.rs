//! What a task's agent is to do, with everything resolved.

use super::{
    Draft,
    choose::Reach,
    family::{Origin, bound_file, pool_file},
    file, is_shared,
};
use crate::{
    identity::{ObjectKey, disk_path, uid},
    resolve::image_pool,
};
use paddock_crds::{
    VirtualHardDiskTaskSpec,
    host::PoolKind,
    reference::PoolFile,
    virtual_hard_disk::{BoundFile, DiskType, HttpSource},
    virtual_hard_disk_task::{
        ExportFormat, Shrink, SourceFile, TaskAction, TaskOrder, TaskSource, TaskState,
    },
};

/// The longest path in a pool.
const LONGEST_PATH: usize = 512;

impl Draft<'_> {
    fn bare_order(&self, file: PoolFile, disk_epoch: i64) -> TaskOrder {
        TaskOrder {
            disk_uid: uid(&self.s.disk.metadata).to_owned(),
            disk_epoch,
            file,
            parents: Vec::new(),
            target: None,
            disk_type: None,
            size_bytes: None,
            source: None,
            download: None,
            linked: None,
            device: None,
            clone: Vec::new(),
            undo: None,
            shrink: Shrink::default(),
            precompact: Default::default(),
            defragment: Default::default(),
            format: ExportFormat::default(),
        }
    }

    /// The order to make the disk's file, and what its host must reach.
    pub(super) fn making_order(
        &self,
        action: TaskAction,
        disk_epoch: i64,
    ) -> Result<(TaskOrder, Reach), (&'static str, String)> {
        let disk = self.s.disk;
        let spec = &disk.spec;
        let (parent, source) = (self.parent()?, self.source()?);
        let place = pool_file(&file(disk));
        // The first machine that names a child or a copy has the disk made on its host.
        let family = self.s.family;
        let mut readers = family.children.iter().chain(&family.copies);
        let near = readers.find_map(|d| d.status.as_ref()?.host.clone());
        let shared = is_shared(self.s.hosts, &place.pool);
        let mut reach = Reach {
            near: near.filter(|_| !shared && self.plan.status.host.is_none()),
            pool: place.pool.clone(),
            also: Vec::new(),
        };
        let mut order = self.bare_order(place, disk_epoch);
        if action == TaskAction::Adopt {
            return Ok((order, reach));
        }
        order.disk_type = Some(spec.wanted_type().unwrap_or_default());
        order.size_bytes = spec
            .size
            .as_ref()
            .and_then(|size| i64::try_from(size.bytes()).ok());
        let image = spec.source.as_ref().and_then(|s| s.image.as_ref());
        if let Some(image) = image {
            reach
                .also
                .extend(image_pool(disk).map(|p| (p, PoolKind::Images)));
            order.source = Some(TaskSource {
                file: SourceFile {
                    pool: image.pool.clone(),
                    path: image.path.clone(),
                },
                format: image.format,
                sha256: image.sha256.as_ref().map(|s| s.to_ascii_lowercase()),
            });
        }
        let http = spec.source.as_ref().and_then(|s| s.http.as_ref());
        order.download = http.map(|http| HttpSource {
            sha256: http.sha256.to_ascii_lowercase(),
            ..http.clone()
        });
        for Origin { files, host } in parent.iter().chain(&source) {
            reach
                .also
                .extend(files.iter().map(|f| (f.pool.clone(), PoolKind::Disks)));
            if host.is_some() {
                reach.near.clone_from(host);
            }
        }
        order.parents = parent.map(|p| p.files).unwrap_or_default();
        let files = source.map(|s| s.files).unwrap_or_default();
        match action {
            TaskAction::Import => order.linked = files.into_iter().next(),
            _ => order.clone = files,
        }
        if let Some(device) = &spec.linked {
            reach.near = Some(device.host.clone());
            order.device = Some(device.clone());
        }
        Ok((order, reach))
    }

    /// What the host of a task on the disk's file must reach.
    pub(super) fn reach(&self) -> Reach {
        let status = &self.plan.status;
        let files = status.obsolete_files.iter().chain(&status.parent_files);
        let pool = status.file.as_ref().or(status.obsolete_files.first());
        Reach {
            pool: pool.map_or_else(|| file(self.s.disk).pool, |f| f.pool.clone()),
            also: files.map(|f| (f.pool.clone(), PoolKind::Disks)).collect(),
            near: None,
        }
    }

    /// The order to remove a file.
    pub(super) fn removal_order(&self, file: &BoundFile, disk_epoch: i64) -> TaskOrder {
        self.bare_order(pool_file(file), disk_epoch)
    }

    /// The order to work on the disk's file, and what its host must reach.
    pub(super) fn work_order(
        &self,
        spec: &VirtualHardDiskTaskSpec,
        file: &BoundFile,
        disk_epoch: i64,
    ) -> (TaskOrder, Reach) {
        let status = &self.plan.status;
        let mut reach = self.reach();
        let mut order = self.bare_order(pool_file(file), disk_epoch);
        order.parents = status.parent_files.iter().map(pool_file).collect();
        match spec.action {
            TaskAction::Convert | TaskAction::Compact => {
                order.target = Some(PoolFile {
                    pool: file.pool.clone(),
                    path: self.next_path(disk_epoch, "vhd"),
                });
                order.disk_type = match spec.action {
                    TaskAction::Convert => self.s.disk.spec.wanted_type(),
                    _ => status.disk_type.or(Some(DiskType::Dynamic)),
                };
                order.precompact = spec.precompact.unwrap_or_default();
                order.defragment = spec.defragment.unwrap_or_default();
            }
            TaskAction::Export => {
                if let Some(target) = &spec.target {
                    reach.also.push((target.pool.clone(), PoolKind::Disks));
                }
                order.target.clone_from(&spec.target);
                order.format = spec.format.unwrap_or_default();
            }
            TaskAction::Resize => {
                order.size_bytes = spec
                    .size
                    .as_ref()
                    .and_then(|size| i64::try_from(size.bytes()).ok());
                order.shrink = spec.shrink.unwrap_or_default();
            }
            TaskAction::CommitUndo | TaskAction::DiscardUndo | TaskAction::Check => {
                order.undo = status.undo.as_ref().map(|u| pool_file(&u.file));
            }
            _ => {}
        }
        (order, reach)
    }

    /// A name that the disk's file never had: the first name with the disk epoch in it.
    fn next_path(&self, disk_epoch: i64, ending: &str) -> String {
        next_path(self.s.disk, disk_epoch, ending)
    }

    /// Leaves what a task may have made to be removed, since nobody will say whether it has.
    pub(super) fn abandon_target(&mut self, task: &paddock_crds::VirtualHardDiskTask) {
        if !matches!(task.spec.action, TaskAction::Convert | TaskAction::Compact) {
            return;
        }
        let order = task.status.as_ref().and_then(|s| s.order.as_ref());
        if let Some(target) = order.and_then(|o| o.target.as_ref()).map(bound_file) {
            self.make_obsolete(target);
        }
    }

    /// Leaves to be removed what a task has made that nobody took over: its host was declared off in between.
    pub(super) fn abandon_untaken(&mut self, task: &paddock_crds::VirtualHardDiskTask) {
        let status = task.status.as_ref();
        if status.is_some_and(|s| s.state == TaskState::Succeeded) {
            self.abandon_target(task);
        }
    }

    /// Leaves a file to be removed.
    pub(super) fn make_obsolete(&mut self, file: BoundFile) {
        let status = &mut self.plan.status;
        let known = status.file.as_ref() == Some(&file) || status.obsolete_files.contains(&file);
        if !known && status.obsolete_files.len() < super::work::MOST_OBSOLETE {
            status.obsolete_files.push(file);
        }
    }
}

/// The name of a disk's file with a disk epoch in it, and another ending.
#[must_use]
pub(crate) fn next_path(
    disk: &paddock_crds::VirtualHardDisk,
    disk_epoch: i64,
    ending: &str,
) -> String {
    let key = ObjectKey::of(&disk.metadata);
    let own = disk_path(&key, uid(&disk.metadata));
    let first = disk.spec.file.path.as_deref().unwrap_or(&own);
    let with = |path: &str| {
        let stem = path.strip_suffix(".vhd").unwrap_or(path);
        format!("{stem}-{disk_epoch}.{ending}")
    };
    let named = with(first);
    if named.len() <= LONGEST_PATH {
        named
    } else {
        with(&own)
    }
}
