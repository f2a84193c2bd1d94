//! What is decided for a disk, step by step, with exact values.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{
    at, key,
    life::{Life, held_by_machine, shared},
    ready_disk, unmade_disk,
};
use paddock_crds::{
    host::{OutOfService, PoolKind, PoolScope},
    names::DISK_FINALIZER,
    virtual_hard_disk::{
        DiskSource, DiskState, FileMode, HttpSource, ImageFormat, ImageSource, OwnerKind,
        ReclaimPolicy,
    },
    virtual_hard_disk_task::{TaskAction, TaskState},
};
use paddock_planner::{
    ObjectKey,
    disk::{self, Action, Family, Snapshot},
    placement::Availability,
};
use std::{collections::BTreeMap, sync::Arc};

#[test]
fn a_disk_in_a_shared_pool_is_made_at_once() {
    let mut life = shared();
    let plan = life.plan();
    assert_eq!(plan.before, [Action::AddFinalizer]);
    let [Action::CreateTask { task, spec }] = &plan.after[..] else {
        panic!("{:?}", plan.after);
    };
    assert_eq!(*task, key("d-create-1"));
    assert_eq!(spec.action, TaskAction::Create);
    life.apply(&plan);
    assert_eq!(life.disk.status.as_ref().unwrap().attachment, None);
    // Only the second step gives the task the disk, and then a host.
    let plan = life.plan();
    let attachment = plan.status.attachment.as_ref().unwrap();
    assert_eq!(attachment.owner.kind, OwnerKind::VirtualHardDiskTask);
    assert_eq!((&*attachment.host, attachment.disk_epoch), ("host-a", 1));
    let [
        Action::AssignTask {
            task,
            host,
            host_epoch: 1,
            order,
        },
    ] = &plan.after[..]
    else {
        panic!("{:?}", plan.after);
    };
    assert_eq!((task, &**host), (&key("d-create-1"), "host-a"));
    assert_eq!((order.size_bytes, order.disk_epoch), (Some(1 << 30), 1));
    assert!(order.file.path.starts_with("t/d-"));
    life.settle();
    assert_eq!(life.state(), DiskState::Creating);
    assert_eq!(life.disk.status.as_ref().unwrap().host, None);
    life.report(TaskState::Succeeded, None);
    life.settle();
    assert!(life.tasks.is_empty());
    let status = life.disk.status.clone().unwrap();
    assert_eq!(status.state, DiskState::Ready);
    assert_eq!(
        (status.size.as_deref(), status.size_bytes),
        (Some("1Gi"), Some(1 << 30))
    );
    assert_eq!(status.allocated.as_deref(), Some("3Mi"));
    assert_eq!((status.attachment, status.disk_epoch), (None, 1));
    assert_eq!(life.ready().0, "True");
    life.now += 60;
    let plan = life.plan();
    assert_eq!((plan.before, plan.after), (vec![], vec![]));
    assert_eq!(Some(plan.status), life.disk.status);
}

#[test]
fn a_disk_in_a_local_pool_waits_for_its_first_machine() {
    let mut life = Life::new(unmade_disk("d", "default"));
    let plan = life.settle();
    assert!(plan.pending && life.tasks.is_empty());
    assert_eq!(life.ready().1, "WaitingForFirstConsumer");
    assert_eq!(life.state(), DiskState::Pending);
    life.disk.status.as_mut().unwrap().host = Some("host-b".to_owned());
    life.settle();
    let status = life.task().status.as_ref().unwrap();
    assert_eq!(status.host.as_deref(), Some("host-b"));
}

#[test]
fn the_only_host_with_the_pool_gets_the_disk() {
    let mut life = Life::new(unmade_disk("d", "default"));
    life.hosts.truncate(1);
    life.settle();
    assert_eq!(
        life.disk.status.as_ref().unwrap().host.as_deref(),
        Some("host-a")
    );
    life.hosts.clear();
    let mut none = Life::new(unmade_disk("d", "fast"));
    none.settle();
    assert_eq!(none.ready().1, "PoolNotFound");
}

#[test]
fn an_image_is_imported_where_its_pool_is() {
    let mut life = shared();
    life.disk.spec.source = Some(DiskSource {
        image: Some(ImageSource {
            pool: "images".to_owned(),
            path: "tiny.img".to_owned(),
            format: ImageFormat::Raw,
            sha256: Some("AB".repeat(32)),
        }),
        ..DiskSource::default()
    });
    Arc::make_mut(&mut life.hosts[0].host).spec.pools.pop();
    life.settle();
    let task = life.task();
    assert_eq!(task.spec.action, TaskAction::Import);
    let source = life.order().source.as_ref().unwrap();
    assert_eq!(source.sha256.as_deref(), Some(&*"ab".repeat(32)));
    assert_eq!(
        task.status.as_ref().unwrap().host.as_deref(),
        Some("host-b")
    );
}

#[test]
fn no_image_is_read_from_a_pool_of_disks() {
    let mut life = shared();
    for host in &mut life.hosts {
        let pools = &mut Arc::make_mut(&mut host.host).spec.pools;
        pools[1].kinds = vec![PoolKind::Disks, PoolKind::Images];
    }
    life.disk.spec.source = Some(DiskSource {
        image: Some(ImageSource {
            pool: "shared".to_owned(),
            path: "other/d.vhd".to_owned(),
            format: ImageFormat::Raw,
            sha256: None,
        }),
        ..DiskSource::default()
    });
    life.settle();
    assert!(life.tasks.is_empty());
    let why = "pool \"shared\" holds disks, so that no image is read from it: put the image into a pool that is for Images alone, or copy a disk by source.cloneRef";
    assert_eq!(
        life.ready(),
        (
            "False".to_owned(),
            "NoHostAvailable".to_owned(),
            format!("no host can work on it: host-a: {why}; host-b: {why}")
        )
    );
}

#[test]
fn a_file_lies_in_the_folder_of_its_namespace() {
    for (path, mode) in [
        ("d.vhd", FileMode::Create),
        ("other/d.vhd", FileMode::Create),
        ("other/d.vhd", FileMode::Adopt),
        ("T/d.vhd", FileMode::Adopt),
    ] {
        let mut life = shared();
        life.disk.spec.file.mode = mode;
        life.disk.spec.file.path = Some(path.to_owned());
        life.settle();
        assert!(life.tasks.is_empty(), "{path}");
        assert_eq!(
            (life.state(), life.ready().1),
            (DiskState::Failed, "PathNotAllowed".to_owned()),
            "{path}"
        );
        assert!(life.ready().2.contains("such as t/d.vhd"), "{path}");
        life.disk.spec.file.path = Some("t/d.vhd".to_owned());
        life.settle();
        assert_eq!(life.tasks.len(), 1, "{path}");
    }
}

#[test]
fn an_image_on_the_web_is_downloaded_by_whoever_has_the_pool() {
    let mut life = shared();
    life.disk.spec.source = Some(DiskSource {
        http: Some(HttpSource {
            url: "https://images.example/a.img".to_owned(),
            sha256: "AB".repeat(32),
            format: ImageFormat::Raw,
        }),
        ..DiskSource::default()
    });
    // No pool of images is asked for.
    for host in &mut life.hosts {
        Arc::make_mut(&mut host.host)
            .spec
            .pools
            .retain(|p| p.name != "images");
    }
    life.settle();
    assert_eq!(life.task().spec.action, TaskAction::Import);
    let order = life.order();
    assert_eq!(order.source, None);
    assert_eq!(
        order.download,
        Some(HttpSource {
            url: "https://images.example/a.img".to_owned(),
            sha256: "ab".repeat(32),
            format: ImageFormat::Raw,
        })
    );
    assert_eq!(
        order.size_bytes,
        life.disk.spec.size.as_ref().map(|s| s.bytes() as i64)
    );
    let host = life.task().status.as_ref().unwrap().host.clone().unwrap();
    assert_eq!(life.ready().2, format!("host {host} downloads its image"));
}

#[test]
fn work_is_spread_over_hosts() {
    let life = shared();
    let mut busy = BTreeMap::new();
    busy.insert("host-a".to_owned(), 1);
    let mut task = life.disk.clone();
    task.metadata.finalizers = Some(vec![DISK_FINALIZER.to_owned()]);
    let mut other = shared();
    let plan = other.plan();
    other.apply(&plan);
    let tasks: Vec<_> = other.tasks.values().cloned().collect();
    let plan = disk::decide(&Snapshot {
        disk: &other.disk,
        system_namespace: "paddock-system",
        tasks: &tasks,
        family: &Family::default(),
        wanted: false,
        measured: None,
        hosts: &other.hosts,
        busy: &busy,
        same_file: None,
        retry_due: false,
        creation_refused: false,
        now: &at(1),
    });
    assert_eq!(plan.status.attachment.unwrap().host, "host-b");
}

#[test]
fn a_failed_task_is_told_and_tried_again_when_due() {
    let mut life = shared();
    life.settle();
    life.report(TaskState::Failed, Some("ImageNotFound"));
    let plan = life.settle();
    assert!(plan.retry);
    assert_eq!(life.state(), DiskState::Failed);
    assert_eq!(life.ready().1, "ImageNotFound");
    assert_eq!(life.ready().2, "told ImageNotFound");
    assert_eq!(life.disk.status.as_ref().unwrap().attachment, None);
    assert_eq!(life.order().disk_epoch, 1);
    life.retry_due = true;
    let plan = life.plan();
    life.apply(&plan);
    life.retry_due = false;
    life.settle();
    assert_eq!(life.order().disk_epoch, 2);
    // The failure stays in sight while it is tried again.
    assert_eq!(life.ready().1, "ImageNotFound");
    life.report(TaskState::Succeeded, None);
    life.settle();
    assert_eq!(life.ready().0, "True");
    assert_eq!(life.state(), DiskState::Ready);
}

#[test]
fn an_own_leftover_file_is_taken_and_a_strangers_is_not() {
    let mut life = shared();
    life.settle();
    life.report(TaskState::Failed, Some("FileExists"));
    life.settle();
    assert_eq!(life.task().spec.action, TaskAction::Adopt);
    assert!(disk::is_unassigned(life.task()) || life.task().status.is_some());
    let mut named = shared();
    named.disk.spec.file.path = Some("t/mine.vhd".to_owned());
    named.settle();
    named.report(TaskState::Failed, Some("FileExists"));
    let plan = named.settle();
    assert!(plan.retry);
    assert_eq!(named.ready().1, "FileExists");
    assert_eq!(named.task().spec.action, TaskAction::Create);
}

#[test]
fn one_file_belongs_to_one_disk() {
    let mut life = shared();
    life.disk.spec.file.mode = FileMode::Adopt;
    life.disk.spec.file.path = Some("t/base.vhd".to_owned());
    life.same_file = Some(key("first"));
    life.settle();
    assert_eq!(life.ready().1, "FileInUse");
    assert!(life.tasks.is_empty());
    life.same_file = None;
    life.settle();
    assert_eq!(life.task().spec.action, TaskAction::Adopt);
}

#[test]
fn a_task_follows_its_host_to_the_new_epoch() {
    let mut life = shared();
    life.settle();
    life.silence("host-a");
    life.settle();
    life.hosts[0].availability = Availability::Ready { epoch: 2 };
    let plan = life.settle();
    assert!(plan.pending);
    let attachment = life
        .disk
        .status
        .as_ref()
        .unwrap()
        .attachment
        .clone()
        .unwrap();
    assert_eq!((attachment.host_epoch, attachment.disk_epoch), (2, 1));
    assert_eq!(life.task().status.as_ref().unwrap().host_epoch, Some(2));
}

#[test]
fn a_word_frees_a_disk_from_a_task_and_a_machine() {
    let mut life = shared();
    life.settle();
    life.silence("host-a");
    life.settle();
    assert!(life.disk.status.as_ref().unwrap().attachment.is_some());
    life.hosts[0].ended_below = Some(2);
    life.settle();
    assert_eq!(life.order().disk_epoch, 2);
    assert_eq!(
        life.task().status.as_ref().unwrap().host.as_deref(),
        Some("host-b")
    );
    let mut held = Life::new(ready_disk("d", Some("host-a")));
    held_by_machine(&mut held.disk);
    held.hosts[0].ended_below = Some(1);
    held.settle();
    assert_eq!(held.state(), DiskState::Attached);
    held.hosts[0].ended_below = Some(2);
    held.settle();
    assert_eq!(held.disk.status.as_ref().unwrap().attachment, None);
    assert_eq!(held.state(), DiskState::Ready);
}

#[test]
fn an_attached_disk_waits_and_says_for_whom() {
    let mut life = Life::new(ready_disk("d", Some("host-a")));
    held_by_machine(&mut life.disk);
    life.delete();
    life.settle();
    assert!(!life.gone);
    assert_eq!(life.state(), DiskState::Terminating);
    let (reason, message) = life.deleting();
    assert_eq!(reason, "Attached");
    assert_eq!(
        message,
        "it is attached to VirtualMachine \"web\" on host host-a: stop or delete that machine first"
    );
    life.silence("host-a");
    life.settle();
    assert!(life.deleting().1.contains("spec.outOfService.token"));
    life.disk.status = Some(disk::detached(life.disk.status.as_ref().unwrap()));
    life.settle();
    assert!(life.gone && life.tasks.is_empty());
}

#[test]
fn a_file_is_removed_when_the_user_said_so() {
    let mut life = Life::new(ready_disk("d", Some("host-a")));
    life.disk.metadata.finalizers = Some(vec![DISK_FINALIZER.to_owned()]);
    life.disk.spec.reclaim_policy = ReclaimPolicy::Delete;
    life.delete();
    life.settle();
    assert!(!life.gone);
    assert_eq!(
        (life.task().spec.action, &*life.order().file.path),
        (TaskAction::Delete, "d.vhd")
    );
    assert_eq!(life.order().disk_epoch, 1);
    life.report(TaskState::Failed, Some("IoError"));
    let plan = life.settle();
    assert!(plan.retry && !life.gone);
    assert!(life.deleting().1.contains("set reclaimPolicy to Retain"));
    life.report(TaskState::Succeeded, None);
    life.settle();
    assert!(life.gone && life.tasks.is_empty());
}

#[test]
fn a_namespace_in_deletion_has_its_tasks_elsewhere() {
    let mut life = Life::new(ready_disk("d", None));
    life.disk.metadata.finalizers = Some(vec![DISK_FINALIZER.to_owned()]);
    life.disk.spec.reclaim_policy = ReclaimPolicy::Delete;
    life.creation_refused = true;
    life.delete();
    life.settle();
    let task = ObjectKey::of(&life.task().metadata);
    assert_eq!(task, ObjectKey::new("paddock-system", "t.d-delete-2"));
    life.report(TaskState::Failed, Some("FileNotFound"));
    life.settle();
    assert!(life.gone && life.tasks.is_empty());
    let mut unmade = shared();
    unmade.creation_refused = true;
    unmade.settle();
    assert_eq!(unmade.ready().1, "NamespaceTerminating");
    assert!(unmade.tasks.is_empty());
}

#[test]
fn a_file_on_a_host_out_of_service_is_left() {
    let mut life = Life::new(ready_disk("d", Some("host-a")));
    life.disk.metadata.finalizers = Some(vec![DISK_FINALIZER.to_owned()]);
    life.disk.spec.reclaim_policy = ReclaimPolicy::Delete;
    life.silence("host-a");
    life.delete();
    life.settle();
    assert!(!life.gone);
    let host = Arc::make_mut(&mut life.hosts[0].host);
    host.spec.out_of_service = Some(OutOfService {
        token: "t1".to_owned(),
    });
    host.status.as_mut().unwrap().out_of_service_token = Some("t1".to_owned());
    let plan = life.plan();
    assert_eq!(plan.note.as_ref().unwrap().0, "FileRetained");
    life.apply(&plan);
    assert!(life.gone);
}

#[test]
fn a_deletion_calls_the_work_off_and_waits_for_its_end() {
    let mut life = shared();
    life.settle();
    life.delete();
    life.settle();
    assert!(life.task().metadata.deletion_timestamp.is_some());
    assert_eq!(life.deleting().0, "WaitingForTask");
    assert!(!life.gone);
    life.report(TaskState::Failed, Some("Cancelled"));
    life.settle();
    assert!(life.gone && life.tasks.is_empty());
}

#[test]
fn a_task_that_was_never_assigned_is_no_hindrance() {
    let mut life = shared();
    let plan = life.plan();
    life.apply(&plan);
    life.delete();
    life.settle();
    assert!(life.gone && life.tasks.is_empty());
}

#[test]
fn a_task_forced_away_frees_nothing() {
    let mut life = shared();
    life.settle();
    life.tasks.clear();
    life.settle();
    assert!(life.tasks.is_empty());
    assert!(life.disk.status.as_ref().unwrap().attachment.is_some());
    life.delete();
    life.settle();
    assert!(!life.gone);
    life.hosts[0].ended_below = Some(2);
    life.settle();
    assert!(life.gone);
}

#[test]
fn a_pool_is_shared_when_any_host_says_so() {
    let mut life = shared();
    let pools = &mut Arc::make_mut(&mut life.hosts[0].host).spec.pools;
    pools[1].scope = PoolScope::Local;
    life.settle();
    let status = life.task().status.as_ref().unwrap();
    assert_eq!(status.host.as_deref(), Some("host-b"));
}
