//! Random lives of a base with an undo disk, a child, a second child and a copy that are still to be made, each decided
//! for by itself. Whatever happens in whatever order: nobody opens what another has open, or what has a part of a merge
//! or commit; and once nothing goes wrong any more, every disk is usable, merged or made.
//!
//! Mutants that this suite was seen to kill: a merge or commit taken for begun at its assignment, which bars the disk for
//! ever; children that are not made yet counted as readers; a copy made of a base that a child is being merged into, and a
//! merge into a base that is being copied.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use model::{
    at,
    disks::{child, kept_undo, unmade_child, unmade_copy},
    life::Life,
    ready_disk,
};
use paddock_crds::{
    VirtualHardDisk, VirtualHardDiskTaskSpec,
    names::DISK_FINALIZER,
    virtual_hard_disk::{
        Attachment, AttachmentOwner, DiskState, DiskType, OwnerKind, UndoDisk, UndoState,
    },
    virtual_hard_disk_task::{TaskAction, TaskOrder, TaskResult, TaskState},
};
use paddock_planner::{
    ObjectKey,
    disk::{self, Action, Family},
    placement::Availability,
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

const BASE: usize = 0;
const NAMES: [&str; 4] = ["base", "kid", "sib", "dup"];

#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// It opens the files.
    Begins,
    /// It is done.
    Ends,
    /// It fails, before it has opened them or after.
    Fails,
}

#[derive(Clone, Debug)]
enum Op {
    /// Plans for a disk, and applies the steps before the status, the status, and at most this many steps after it.
    Operate(usize, u8),
    Agent(usize, u8, Outcome),
    Ask(usize, TaskAction),
    DeleteTask(usize, u8),
    /// A machine takes a disk, with an undo disk or without, and its guest runs or not.
    Machine(usize, bool, bool),
    MachineEnds(usize),
    Retry(usize),
    Silence,
    Return,
    Word,
}

fn op() -> impl Strategy<Value = Op> {
    let which = || 0..NAMES.len();
    let outcome = prop_oneof![
        4 => Just(Outcome::Begins),
        4 => Just(Outcome::Ends),
        2 => Just(Outcome::Fails),
    ];
    let action = prop_oneof![
        3 => Just(TaskAction::Merge),
        3 => Just(TaskAction::CommitUndo),
        2 => Just(TaskAction::DiscardUndo),
        1 => Just(TaskAction::Check),
        1 => Just(TaskAction::Resize),
    ];
    prop_oneof![
        16 => (which(), 0..6u8).prop_map(|(d, n)| Op::Operate(d, n)),
        10 => (which(), 0..3u8, outcome).prop_map(|(d, n, o)| Op::Agent(d, n, o)),
        4 => (which(), action).prop_map(|(d, a)| Op::Ask(d, a)),
        1 => (which(), 0..3u8).prop_map(|(d, n)| Op::DeleteTask(d, n)),
        2 => (which(), any::<bool>(), any::<bool>()).prop_map(|(d, u, r)| Op::Machine(d, u, r)),
        3 => which().prop_map(Op::MachineEnds),
        2 => which().prop_map(Op::Retry),
        1 => Just(Op::Silence),
        3 => Just(Op::Return),
        1 => Just(Op::Word),
    ]
}

/// What a task opens: to read, and to write.
fn opens(action: TaskAction, order: &TaskOrder) -> (BTreeSet<String>, BTreeSet<String>) {
    let file = [order.file.clone()];
    let undo: Vec<_> = order.undo.iter().cloned().collect();
    let (reads, writes) = match action {
        TaskAction::Create => (order.parents.clone(), file.to_vec()),
        TaskAction::Clone => (order.clone.clone(), file.to_vec()),
        TaskAction::Merge => {
            let below = order.parents.first().cloned();
            let above = order.parents[1..].to_vec();
            (above, file.into_iter().chain(below).collect())
        }
        TaskAction::CommitUndo => {
            let writes = file.into_iter().chain(undo).collect();
            (order.parents.clone(), writes)
        }
        TaskAction::DiscardUndo => (vec![], undo),
        TaskAction::Resize => (order.parents.clone(), file.to_vec()),
        _ => (file.iter().chain(&order.parents).cloned().collect(), vec![]),
    };
    let paths = |files: Vec<_>| -> BTreeSet<String> {
        let paths = files.into_iter();
        paths
            .map(|f: paddock_crds::reference::PoolFile| f.path)
            .collect()
    };
    (paths(reads), paths(writes))
}

/// A user of files.
#[derive(Clone, Debug, Default)]
struct Open {
    reads: BTreeSet<String>,
    writes: BTreeSet<String>,
}

struct World {
    lives: Vec<Life>,
    /// Tasks and machines that have files open.
    open: BTreeMap<String, Open>,
    /// What was merged or committed in part: the upper file, and the lower that has a part of it.
    begun: BTreeMap<String, String>,
    undo_files: BTreeSet<String>,
    epoch: i64,
    silent: bool,
    asked: u32,
}

fn base() -> VirtualHardDisk {
    let mut disk = ready_disk("base", Some("host-a"));
    disk.status.as_mut().unwrap().disk_type = Some(DiskType::Dynamic);
    disk
}

fn undo(path: &str) -> UndoDisk {
    UndoDisk {
        ran: false,
        state: UndoState::New,
        ..kept_undo(path)
    }
}

impl World {
    fn new(has_child: bool, has_undo: bool) -> Self {
        let kid = match has_child {
            true => child("kid", "base"),
            false => unmade_child("kid", "base"),
        };
        let mut base = base();
        // A disk with children never gets one, but one with an undo disk may be named as a parent.
        let has_undo = has_undo && !has_child;
        base.status.as_mut().unwrap().undo = has_undo.then(|| UndoDisk {
            state: UndoState::Kept,
            ran: true,
            ..undo("base-1.vud")
        });
        let disks = [
            base,
            kid,
            unmade_child("sib", "base"),
            unmade_copy("dup", "base"),
        ];
        let lives = disks.into_iter().map(|mut disk| {
            disk.metadata.finalizers = Some(vec![DISK_FINALIZER.to_owned()]);
            Life::new(disk)
        });
        Self {
            lives: lives.collect(),
            open: BTreeMap::new(),
            begun: BTreeMap::new(),
            undo_files: has_undo
                .then(|| "base-1.vud".to_owned())
                .into_iter()
                .collect(),
            epoch: 1,
            silent: false,
            asked: 0,
        }
    }

    fn disks(&self) -> Vec<Arc<VirtualHardDisk>> {
        let disks = self.lives.iter().map(|l| Arc::new(l.disk.clone()));
        disks.collect()
    }

    /// As the operator finds it in its cache.
    fn family(&self, of: usize) -> Family {
        let all = self.disks();
        let me = &NAMES[of];
        let name = |d: &Arc<VirtualHardDisk>| d.metadata.name.clone().unwrap();
        let find = |wanted: Option<&str>| all.iter().find(|d| Some(&*name(d)) == wanted).cloned();
        let others = |keep: &dyn Fn(&VirtualHardDisk) -> bool| -> Vec<_> {
            let others = all.iter().filter(|d| name(d) != *me);
            others.filter(|d| keep(d)).cloned().collect()
        };
        let source_of = |d: &VirtualHardDisk| {
            let made = d.status.as_ref().is_some_and(|s| s.file.is_some());
            let source = d.spec.source.as_ref().filter(|_| !made)?;
            source.clone_ref.as_ref().map(|r| r.name.clone())
        };
        let parent = disk::parent_name(&all[of]).map(str::to_owned);
        let source = all[of].spec.source.as_ref();
        let source = source.and_then(|s| s.clone_ref.as_ref().map(|r| r.name.clone()));
        let named = [Some((*me).to_owned()), parent.clone(), source.clone()];
        let merging = named.iter().flatten().filter_map(|below| {
            let of_it = |d: &VirtualHardDisk| {
                disk::parent_name(d) == Some(below.as_str()) && disk::is_merging(d)
            };
            Some((below.clone(), name(others(&of_it).first()?)))
        });
        let merging = merging.collect();
        Family {
            merging,
            siblings: others(&|d| parent.is_some() && disk::parent_name(d) == parent.as_deref()),
            children: others(&|d| disk::parent_name(d) == Some(*me)),
            copies: others(&|d| source_of(d).as_deref() == Some(*me)),
            parent_copies: others(&|d| parent.is_some() && source_of(d) == parent),
            parent: find(parent.as_deref()),
            source: find(source.as_deref()),
            taken: BTreeSet::new(),
        }
    }

    fn operate(&mut self, of: usize, most: u8) {
        let family = self.family(of);
        let life = &mut self.lives[of];
        life.family = family;
        let mut plan = life.plan();
        plan.after.truncate(usize::from(most));
        life.apply(&plan);
        life.retry_due = false;
        let mut told = plan.before.iter();
        if told.any(|step| matches!(step, Action::TellParent { .. })) {
            let status = life.family.parent.as_ref().unwrap().status.clone();
            self.lives[BASE].disk.status = status;
        }
    }

    fn nth(&self, of: usize, n: u8) -> Option<ObjectKey> {
        let mut all = self.lives[of].tasks.keys();
        all.nth(usize::from(n)).cloned()
    }

    /// Opens files, if nobody has what they must not have.
    fn opens(&mut self, who: &str, wanted: Open, is_merge: bool) {
        for (other, has) in &self.open {
            let all: BTreeSet<_> = wanted.reads.union(&wanted.writes).collect();
            let clash = all.iter().find(|f| has.writes.contains(**f));
            let clash = clash.or_else(|| {
                let mut writes = wanted.writes.iter();
                writes
                    .find(|f| has.reads.contains(*f))
                    .map(|_| all.iter().next().unwrap())
            });
            assert!(
                clash.is_none(),
                "{who} opens what {other} has open: {clash:?}"
            );
        }
        for (upper, lower) in &self.begun {
            let reads = wanted.reads.contains(lower) || wanted.writes.contains(lower);
            assert!(
                !reads || is_merge && wanted.writes.contains(upper),
                "{who} opens {lower}, which has a part of {upper}"
            );
            assert!(
                !wanted.writes.contains(upper) || is_merge,
                "{who} changes {upper}, which is merged in part"
            );
        }
        self.open.insert(who.to_owned(), wanted);
    }

    fn agent(&mut self, of: usize, n: u8, outcome: Outcome) {
        let Some(key) = self.nth(of, n).filter(|_| !self.silent) else {
            return;
        };
        let task = self.lives[of].tasks[&key].clone();
        let action = task.spec.action;
        let Some(status) = task.status.as_ref().filter(|s| s.host.is_some()) else {
            return;
        };
        if disk::is_over(&task) || status.host_epoch != Some(self.epoch) {
            return;
        }
        let deleted = task.metadata.deletion_timestamp.is_some();
        let order = status.order.clone().unwrap();
        let (reads, writes) = opens(action, &order);
        let upper = order.undo.as_ref().unwrap_or(&order.file).path.clone();
        let is_merge = matches!(action, TaskAction::Merge | TaskAction::CommitUndo);
        let who = key.to_string();
        let is_open = self.open.contains_key(&who);
        let missing = action == TaskAction::CommitUndo && !self.undo_files.contains(&upper);
        match outcome {
            Outcome::Begins if !is_open && !deleted && !missing => {
                // A check may look at anything.
                if action != TaskAction::Check {
                    self.opens(&who, Open { reads, writes }, is_merge);
                }
                if is_merge {
                    let lower = match action {
                        TaskAction::Merge => &order.parents[0],
                        _ => &order.file,
                    };
                    self.begun.insert(upper, lower.path.clone());
                }
            }
            Outcome::Begins => {}
            Outcome::Ends if is_open || action == TaskAction::Check && !deleted => {
                self.open.remove(&who);
                if is_merge || action == TaskAction::DiscardUndo {
                    self.begun.remove(&upper);
                    self.undo_files.remove(&upper);
                }
                let begun = self.begun.contains_key(&upper);
                let begun = (action == TaskAction::Check).then_some(begun);
                self.report(of, &key, TaskState::Succeeded, "", begun);
            }
            // A merge that has begun goes on to its end though it is deleted.
            Outcome::Ends | Outcome::Fails if is_open && deleted && is_merge => {}
            Outcome::Ends if !deleted && !missing => {}
            Outcome::Ends | Outcome::Fails => {
                self.open.remove(&who);
                let begun = is_merge.then(|| self.begun.contains_key(&upper));
                let reason = match (deleted, missing) {
                    (true, _) => "Cancelled",
                    (_, true) => "FileNotFound",
                    _ => "IoError",
                };
                self.report(of, &key, TaskState::Failed, reason, begun);
            }
        }
    }

    fn report(
        &mut self,
        of: usize,
        task: &ObjectKey,
        state: TaskState,
        reason: &str,
        begun: Option<bool>,
    ) {
        let found = Arc::make_mut(self.lives[of].tasks.get_mut(task).unwrap());
        let status = found.status.as_mut().unwrap();
        status.state = state;
        status.reason = Some(reason.to_owned());
        status.result = Some(TaskResult {
            begun,
            ..TaskResult::default()
        });
    }

    fn ask(&mut self, of: usize, action: TaskAction) {
        self.asked += 1;
        let name = format!("asked-{}", self.asked);
        let mut spec = VirtualHardDiskTaskSpec::new(action, NAMES[of]);
        spec.size =
            (action == TaskAction::Resize).then(|| paddock_crds::ByteQuantity::from_bytes(1 << 31));
        self.lives[of].ask(&name, spec);
    }

    /// A machine starts, where the operator would let it.
    fn machine(&mut self, of: usize, with_undo: bool, runs: bool) {
        let family = self.family(of);
        let status = self.lives[of].disk.status.clone().unwrap_or_default();
        let settles = status
            .undo
            .as_ref()
            .is_some_and(|u| matches!(u.state, UndoState::Committing | UndoState::Discarding));
        let copied = family.copies.iter().any(|d| {
            let status = d.status.as_ref();
            status.is_some_and(|s| s.attachment.is_some())
        });
        let is_free = status.state == DiskState::Ready
            && status.attachment.is_none()
            && status.unfinished.is_none()
            && family.children.is_empty();
        let Some(file) = status
            .file
            .clone()
            .filter(|_| is_free && !settles && !copied)
        else {
            return;
        };
        if self.silent {
            return;
        }
        let attachment = Attachment {
            owner: AttachmentOwner {
                kind: OwnerKind::VirtualMachine,
                name: "web".to_owned(),
                uid: "uid-web".to_owned(),
            },
            host: "host-a".to_owned(),
            host_epoch: self.epoch,
            disk_epoch: status.disk_epoch + 1,
        };
        let mut now = disk::attached(&status, attachment);
        if with_undo && now.undo.is_none() {
            now.undo = Some(undo(&format!("{}-{}.vud", NAMES[of], now.disk_epoch)));
        }
        let below = status.parent_files.iter().map(|f| f.path.clone());
        let (mut reads, mut writes) = (BTreeSet::from_iter(below), BTreeSet::new());
        match now.undo.as_mut().filter(|_| runs) {
            Some(undo) => {
                reads.insert(file.path.clone());
                writes.insert(undo.file.path.clone());
                undo.ran = true;
                self.undo_files.insert(undo.file.path.clone());
            }
            None => {
                writes.insert(file.path.clone());
            }
        }
        self.lives[of].disk.status = Some(now);
        self.opens(
            &format!("machine of {}", NAMES[of]),
            Open { reads, writes },
            false,
        );
    }

    fn machine_ends(&mut self, of: usize) {
        let Some(status) = self.lives[of].disk.status.clone() else {
            return;
        };
        let held = status.attachment.as_ref().map(|a| a.owner.kind);
        if held != Some(OwnerKind::VirtualMachine) {
            return;
        }
        let mut now = disk::detached(&status);
        if let Some(undo) = now.undo.as_mut().filter(|undo| undo.ran) {
            undo.state = UndoState::Kept;
        }
        self.lives[of].disk.status = Some(now);
        self.open.remove(&format!("machine of {}", NAMES[of]));
    }

    fn step(&mut self, op: &Op) {
        for life in &mut self.lives {
            life.now += 1;
        }
        match op {
            Op::Operate(of, most) => self.operate(*of, *most),
            Op::Agent(of, n, outcome) => self.agent(*of, *n, *outcome),
            Op::Ask(of, action) => self.ask(*of, *action),
            Op::DeleteTask(of, n) => {
                if let Some(task) = self.nth(*of, *n) {
                    let life = &mut self.lives[*of];
                    let found = Arc::make_mut(life.tasks.get_mut(&task).unwrap());
                    if found.metadata.finalizers.is_none() {
                        life.tasks.remove(&task);
                    } else {
                        found.metadata.deletion_timestamp = Some(at(1));
                    }
                }
            }
            Op::Machine(of, with_undo, runs) => self.machine(*of, *with_undo, *runs),
            Op::MachineEnds(of) => self.machine_ends(*of),
            Op::Retry(of) => self.lives[*of].retry_due = true,
            Op::Silence => {
                self.silent = true;
                for life in &mut self.lives {
                    life.silence("host-a");
                }
            }
            Op::Return if self.silent => {
                self.silent = false;
                self.epoch += 1;
                for life in &mut self.lives {
                    life.hosts[0].availability = Availability::Ready { epoch: self.epoch };
                }
            }
            Op::Word if self.silent => {
                // It is off: nothing is open any more.
                self.open.clear();
                for of in 0..NAMES.len() {
                    self.machine_ends(of);
                    self.lives[of].hosts[0].ended_below = Some(self.epoch + 1);
                }
            }
            Op::Return | Op::Word => {}
        }
    }

    /// Everybody does what is to be done, and nothing goes wrong any more.
    fn rest(&mut self) {
        for of in 0..NAMES.len() {
            self.step(&Op::MachineEnds(of));
        }
        self.step(&Op::Return);
        for _ in 0..40 {
            for of in 0..NAMES.len() {
                self.step(&Op::Retry(of));
                self.step(&Op::Operate(of, 9));
                for n in 0..u8::try_from(self.lives[of].tasks.len()).unwrap_or(u8::MAX) {
                    self.step(&Op::Agent(of, n, Outcome::Begins));
                    self.step(&Op::Agent(of, n, Outcome::Ends));
                }
            }
        }
    }

    fn status(&self, of: usize) -> paddock_crds::VirtualHardDiskStatus {
        self.lives[of].disk.status.clone().unwrap_or_default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nobody_reads_half_a_merge_and_every_disk_is_usable_in_the_end(
        has_child in any::<bool>(),
        has_undo in any::<bool>(),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut world = World::new(has_child, has_undo);
        for op in &ops {
            world.step(op);
        }
        world.rest();
        // What is barred is so for a reason, and what a person is told to do ends it.
        for of in 0..NAMES.len() {
            let status = world.status(of);
            if let Some(undo) = &status.undo {
                prop_assert_eq!(undo.state, match undo.ran { true => UndoState::Kept, false => UndoState::New });
                world.ask(of, TaskAction::CommitUndo);
            }
            if status.unfinished.is_some() {
                prop_assert!(status.unfinished.unwrap().interrupted);
                world.ask(of, TaskAction::Merge);
            }
        }
        world.rest();
        for (of, name) in NAMES.iter().enumerate() {
            let status = world.status(of);
            let merged = status.state == DiskState::Merged;
            prop_assert!(merged || status.state == DiskState::Ready, "{}: {:?}", name, status);
            prop_assert_eq!(status.file.is_none(), merged);
            prop_assert_eq!(&status.attachment, &None);
            prop_assert_eq!(&status.unfinished, &None);
            prop_assert_eq!(&status.undo, &None);
            for task in world.lives[of].tasks.values() {
                prop_assert!(disk::is_over(task), "{:?} never ends", task.metadata.name);
            }
        }
        prop_assert_eq!(&world.begun, &BTreeMap::new());
        prop_assert_eq!(&world.undo_files, &BTreeSet::new());
    }
}
