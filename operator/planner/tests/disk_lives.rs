//! Random lives of one disk. Whatever happens in whatever order, the operator's death between any two writes included:
//! the disk never loses its file, no file that it needs is removed, nothing opens it but the holder of its attachment,
//! and no file that was made for it is forgotten.
//!
//! Mutants that this suite, with the one beside it, was seen to kill: an old file that is not listed to be removed; a
//! target that is forgotten when its host is declared off; a removal that failed taken for done; an attachment taken
//! back and given again in one write; a file in use among those to be removed.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{
    at,
    life::{Life, held_by_machine},
    ready_disk,
};
use paddock_crds::{
    VirtualHardDiskTaskSpec,
    names::DISK_FINALIZER,
    virtual_hard_disk::{DiskType, OwnerKind, ReclaimPolicy},
    virtual_hard_disk_task::{TaskAction, TaskResult, TaskState},
};
use paddock_planner::{ObjectKey, disk, placement::Availability};
use proptest::prelude::*;
use std::{collections::BTreeSet, sync::Arc};

#[derive(Clone, Debug)]
enum Op {
    /// Plans, and applies the steps before the status, the status, and at most this many steps after it.
    Operate(u8),
    /// The agent ends a task it was given: well or not.
    Agent(u8, bool),
    Ask(u8),
    DeleteTask(u8),
    Type(bool),
    /// A machine takes the disk, or gives it back.
    Machine(bool),
    Retry,
    Silence,
    Return,
    /// The silent host is turned off, and a person says so.
    Word,
    Delete(bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..6u8).prop_map(Op::Operate),
        8 => (0..4u8, prop::bool::weighted(0.7)).prop_map(|(n, good)| Op::Agent(n, good)),
        3 => (0..3u8).prop_map(Op::Ask),
        1 => (0..4u8).prop_map(Op::DeleteTask),
        3 => any::<bool>().prop_map(Op::Type),
        3 => any::<bool>().prop_map(Op::Machine),
        2 => Just(Op::Retry),
        1 => Just(Op::Silence),
        3 => Just(Op::Return),
        1 => Just(Op::Word),
        1 => prop::bool::weighted(0.2).prop_map(Op::Delete),
    ]
}

struct World {
    life: Life,
    files: BTreeSet<String>,
    epoch: i64,
    silent: bool,
    asked: u32,
}

impl World {
    fn new() -> Self {
        let mut disk = ready_disk("d", Some("host-a"));
        disk.metadata.finalizers = Some(vec![DISK_FINALIZER.to_owned()]);
        disk.spec.reclaim_policy = ReclaimPolicy::Delete;
        disk.status.as_mut().unwrap().disk_type = Some(DiskType::Dynamic);
        Self {
            life: Life::new(disk),
            files: BTreeSet::from(["d.vhd".to_owned()]),
            epoch: 1,
            silent: false,
            asked: 0,
        }
    }

    fn nth(&self, n: u8) -> Option<ObjectKey> {
        let all: Vec<_> = self.life.tasks.keys().cloned().collect();
        all.get(usize::from(n)).cloned()
    }

    fn agent(&mut self, n: u8, good: bool) {
        let Some(task) = self.nth(n).filter(|_| !self.silent) else {
            return;
        };
        let found = Arc::make_mut(self.life.tasks.get_mut(&task).unwrap());
        let deleted = found.metadata.deletion_timestamp.is_some();
        let action = found.spec.action;
        let Some(status) = &mut found.status else {
            return;
        };
        let over = matches!(status.state, TaskState::Succeeded | TaskState::Failed);
        if over || status.host.is_none() || status.host_epoch != Some(self.epoch) {
            return;
        }
        let order = status.order.clone().unwrap();
        if !good || deleted {
            status.state = TaskState::Failed;
            status.reason = Some(if deleted { "Cancelled" } else { "IoError" }.to_owned());
            return;
        }
        status.state = TaskState::Succeeded;
        status.result = Some(TaskResult::default());
        match action {
            TaskAction::Delete => {
                let disk = self.life.disk.status.as_ref().unwrap();
                let needed = disk
                    .file
                    .as_ref()
                    .is_some_and(|f| f.path == order.file.path);
                let ends = self.life.disk.metadata.deletion_timestamp.is_some();
                assert!(!needed || ends, "the file in use was removed");
                let held = disk.attachment.as_ref();
                assert!(!needed || held.is_none(), "a held file was removed");
                self.files.remove(&order.file.path);
            }
            _ => {
                let holder = self.life.disk.status.as_ref().unwrap().attachment.as_ref();
                assert_eq!(
                    holder.map(|a| (&*a.owner.uid, a.disk_epoch)),
                    Some((&*format!("uid-{}", task.name), order.disk_epoch)),
                    "{task} opened the disk without its attachment"
                );
                assert!(self.files.contains(&order.file.path), "it opened nothing");
                if let Some(target) = order.target {
                    assert!(self.files.insert(target.path), "a file was made over");
                }
            }
        }
    }

    fn step(&mut self, op: &Op) {
        let life = &mut self.life;
        life.now += 1;
        match op {
            Op::Operate(most) => {
                let mut plan = life.plan();
                plan.after.truncate(usize::from(*most));
                life.apply(&plan);
                life.retry_due = false;
            }
            Op::Agent(n, good) => self.agent(*n, *good),
            Op::Ask(n) => {
                self.asked += 1;
                let name = format!("asked-{}", self.asked);
                let actions = [TaskAction::Compact, TaskAction::Check, TaskAction::Merge];
                let action = actions[usize::from(*n)];
                life.ask(&name, VirtualHardDiskTaskSpec::new(action, "d"));
            }
            Op::DeleteTask(n) => {
                if let Some(task) = self.nth(*n) {
                    let life = &mut self.life;
                    let found = Arc::make_mut(life.tasks.get_mut(&task).unwrap());
                    if found.metadata.finalizers.is_none() {
                        life.tasks.remove(&task);
                    } else {
                        found.metadata.deletion_timestamp = Some(at(1));
                    }
                }
            }
            Op::Type(fixed) => {
                life.disk.spec.disk_type = Some(if *fixed {
                    DiskType::Fixed
                } else {
                    DiskType::Dynamic
                });
            }
            Op::Machine(takes) => {
                let ends = life.disk.metadata.deletion_timestamp.is_some();
                let status = life.disk.status.as_ref().unwrap();
                let held = status.attachment.as_ref().map(|a| a.owner.kind);
                if *takes && held.is_none() && !ends && !self.silent {
                    let epoch = status.disk_epoch + 1;
                    held_by_machine(&mut life.disk);
                    let status = life.disk.status.as_mut().unwrap();
                    let attachment = status.attachment.as_mut().unwrap();
                    attachment.disk_epoch = epoch;
                    attachment.host_epoch = self.epoch;
                    status.disk_epoch = epoch;
                } else if !takes && held == Some(OwnerKind::VirtualMachine) {
                    life.disk.status = Some(disk::detached(status));
                }
            }
            Op::Retry => life.retry_due = true,
            Op::Silence => {
                self.silent = true;
                life.silence("host-a");
            }
            Op::Return if self.silent => {
                self.silent = false;
                self.epoch += 1;
                life.hosts[0].availability = Availability::Ready { epoch: self.epoch };
            }
            Op::Word if self.silent => life.hosts[0].ended_below = Some(self.epoch + 1),
            Op::Return | Op::Word => {}
            Op::Delete(really) => {
                if *really {
                    life.delete();
                }
            }
        }
    }

    fn check(&self) {
        let status = self.life.disk.status.as_ref().unwrap();
        if self.life.gone {
            assert_eq!(self.files, BTreeSet::new(), "files are left behind");
            return;
        }
        let ends = self.life.disk.metadata.deletion_timestamp.is_some();
        match &status.file {
            Some(file) => assert!(
                ends || self.files.contains(&file.path),
                "its file {} is lost",
                file.path
            ),
            None => assert!(ends, "it forgot its file"),
        }
        let mut known: BTreeSet<&str> = status.file.iter().map(|f| &*f.path).collect();
        known.extend(status.obsolete_files.iter().map(|f| &*f.path));
        let orders = self.life.tasks.values().filter_map(|t| t.status.as_ref());
        let orders = orders.filter_map(|s| s.order.as_ref()?.target.as_ref());
        known.extend(orders.map(|t| &*t.path));
        for file in &self.files {
            assert!(known.contains(&**file), "{file} is forgotten");
        }
    }

    /// Everybody does what is to be done, and nothing goes wrong any more.
    fn rest(&mut self) {
        self.step(&Op::Machine(false));
        self.step(&Op::Return);
        for _ in 0..60 {
            if self.life.gone {
                return;
            }
            self.step(&Op::Retry);
            self.step(&Op::Operate(9));
            if self.life.gone {
                return;
            }
            for n in 0..u8::try_from(self.life.tasks.len()).unwrap_or(u8::MAX) {
                self.agent(n, true);
            }
            self.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_is_left(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            if world.life.gone {
                break;
            }
            world.step(op);
            world.check();
        }
        world.rest();
        if world.life.gone {
            world.check();
            return Ok(());
        }
        let disk = &world.life.disk;
        prop_assert!(disk.metadata.deletion_timestamp.is_none(), "a deletion does not end");
        let status = disk.status.as_ref().unwrap();
        prop_assert_eq!(&status.attachment, &None);
        prop_assert_eq!(status.disk_type, disk.spec.wanted_type());
        prop_assert_eq!(&status.obsolete_files, &[]);
        let path = &status.file.as_ref().unwrap().path;
        prop_assert_eq!(world.files, BTreeSet::from([path.clone()]));
        for task in world.life.tasks.values() {
            prop_assert!(disk::is_over(task), "{:?} never ends", task.metadata.name);
            prop_assert_eq!(&task.metadata.finalizers, &None);
        }
    }
}
