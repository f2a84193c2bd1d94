//! Tasks on real folders, each done, done again as after a crash, and refused.

use super::*;
use crate::task::core::{CANCELLED, test_order, test_task};
use paddock_crds::{
    VirtualHardDiskTaskStatus,
    host::{Pool as HostPool, PoolScope},
    reference::PoolFile,
    virtual_hard_disk::{DiskType, ImageFormat, Precompact},
    virtual_hard_disk_task::{ExportFormat, Shrink, SourceFile, TaskSource},
};
use paddock_vhd::{Access, BlockDevice, ChildOptions, Gate, ParentSearch, Pool, Vhd, inspect};
use std::{fs, path::PathBuf};

const SIZE: i64 = 4 << 20;
const BLOCK: u64 = 2 << 20;

struct World {
    dir: tempfile::TempDir,
    host: HostSpec,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            HostPool {
                name: name.into(),
                path: path.to_str().unwrap().into(),
                scope: PoolScope::Local,
                kinds: vec![],
            }
        };
        let pools = vec![pool("default"), pool("images")];
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
        self.dir.path().join("default").join(name)
    }

    fn image(&self, name: &str) -> PathBuf {
        self.dir.path().join("images").join(name)
    }

    fn pool(&self) -> Pool {
        Pool::open(self.dir.path().join("default")).unwrap()
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

fn file(path: &str) -> PoolFile {
    PoolFile {
        pool: "default".into(),
        path: path.into(),
    }
}

fn image_file(path: &str) -> PoolFile {
    PoolFile {
        pool: "images".into(),
        path: path.into(),
    }
}

fn task(
    action: TaskAction,
    path: &str,
    change: impl FnOnce(&mut TaskOrder),
) -> VirtualHardDiskTask {
    let mut task = test_task(action);
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
            file: SourceFile {
                pool: "images".into(),
                path: image.into(),
            },
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

#[test]
fn create_is_repeatable_and_never_takes_anothers_file() {
    let world = World::new();
    let mine = task(TaskAction::Create, "sub/d.vhd", |_| {});
    let made = world.run(&mine).unwrap();
    assert_eq!(made.size_bytes, Some(SIZE));
    assert_eq!(made.disk_type, Some(DiskType::Dynamic));
    assert_eq!(world.run(&mine), Ok(made));
    let before = fs::read(world.file("sub/d.vhd")).unwrap();
    let other = task(TaskAction::Create, "sub/d.vhd", of_disk("other"));
    assert_eq!(world.run(&other), Err("FileExists"));
    fs::write(world.file("text"), "hello").unwrap();
    assert_eq!(
        world.run(&task(TaskAction::Create, "text", |_| {})),
        Err("FileExists")
    );
    assert_eq!(fs::read(world.file("sub/d.vhd")).unwrap(), before);
    assert_eq!(fs::read(world.file("text")).unwrap(), b"hello");
}

#[test]
fn a_task_without_an_order_fails() {
    let world = World::new();
    assert_eq!(world.run(&test_task(TaskAction::Delete)), Err("IoError"));
}

#[test]
fn import_is_repeatable_and_checks_its_sum() {
    let world = World::new();
    fs::write(world.image("i.img"), vec![7; 1 << 20]).unwrap();
    let wrong = "0".repeat(64);
    assert_eq!(
        world.run(&import_of("a", "i.img", Some(&wrong))),
        Err("ChecksumMismatch")
    );
    assert_eq!(world.files(), [""; 0]);
    let made = world.run(&import_of("a", "i.img", None)).unwrap();
    assert_eq!(made.size_bytes, Some(SIZE));
    // Done before the crash: the source is not needed any more.
    fs::remove_file(world.image("i.img")).unwrap();
    assert_eq!(world.run(&import_of("a", "i.img", None)), Ok(made));
    assert_eq!(
        world.run(&import_of("b", "i.img", None)),
        Err("ImageNotFound")
    );
    fs::write(world.image("i.img"), vec![7; 1 << 20]).unwrap();
    assert_eq!(world.run(&import_of("b", "i.img", None)), Err("FileExists"));
}

#[test]
fn an_image_that_is_too_large_or_outside_is_refused() {
    let world = World::new();
    fs::write(world.image("i.img"), vec![7; 5 << 20]).unwrap();
    fs::write(world.dir.path().join("secret"), "x").unwrap();
    assert_eq!(
        world.run(&import_of("a", "i.img", None)),
        Err("SourceTooLarge")
    );
    assert_eq!(
        world.run(&import_of("a", "../secret", None)),
        Err("PathEscapesPool")
    );
    assert_eq!(
        world.run(&task(TaskAction::Create, "../../d.vhd", |_| {})),
        Err("PathEscapesPool")
    );
    let elsewhere = task(TaskAction::Create, "d.vhd", |order| {
        order.file.pool = "none".into();
    });
    assert_eq!(world.run(&elsewhere), Err("PoolUnavailable"));
}

#[test]
fn what_is_cancelled_leaves_nothing() {
    let world = World::new();
    fs::write(world.image("i.img"), vec![7; 2 << 20]).unwrap();
    world.disk("base.vhd", 1);
    let files = world.files();
    let to = |path: &str| {
        let path = path.to_owned();
        move |order: &mut TaskOrder| order.target = Some(file(&path))
    };
    for task in [
        import_of("a", "i.img", None),
        task(TaskAction::Clone, "d.vhd", |order| {
            order.disk_uid = "clone".into();
            order.clone = vec![file("base.vhd")];
        }),
        task(TaskAction::Convert, "base.vhd", to("new.vhd")),
        task(TaskAction::Compact, "base.vhd", to("new.vhd")),
        task(TaskAction::Export, "base.vhd", to("new.img")),
    ] {
        let order = task.status.as_ref().unwrap().order.as_ref().unwrap();
        let control = Control::default();
        let job = Job {
            order,
            pools: Pools::of(&world.host),
            control: &control,
            begun: false,
        };
        // Deleted while it is at work.
        control.cancel();
        let failure = match task.spec.action {
            TaskAction::Import => make::import(&job),
            TaskAction::Clone => make::clone(&job),
            TaskAction::Convert => target::convert(&job),
            TaskAction::Compact => target::compact(&job),
            _ => target::export(&job),
        };
        assert_eq!(
            failure.unwrap_err().reason,
            CANCELLED,
            "{:?}",
            task.spec.action
        );
        // Deleted before.
        let failure = perform(&task, &world.host, &control).unwrap_err();
        assert_eq!(failure.reason, CANCELLED);
        assert_eq!(world.files(), files, "{:?}", task.spec.action);
    }
}

#[test]
fn adopt_looks_and_delete_is_repeatable() {
    let world = World::new();
    let adopt = task(TaskAction::Adopt, "d.vhd", |_| {});
    let delete = task(TaskAction::Delete, "d.vhd", |_| {});
    assert_eq!(world.run(&adopt), Err("FileNotFound"));
    let made = world
        .run(&task(TaskAction::Create, "d.vhd", |_| {}))
        .unwrap();
    assert_eq!(world.run(&adopt), Ok(made));
    let held = Vhd::open(&world.pool(), "d.vhd", Access::ReadWrite, Gate::open()).unwrap();
    assert_eq!(world.run(&delete), Err("DiskInUse"));
    assert!(world.file("d.vhd").exists());
    held.close().unwrap();
    let gone = Ok(TaskResult::default());
    assert_eq!(world.run(&delete), gone);
    assert!(!world.file("d.vhd").exists());
    assert_eq!(world.run(&delete), gone);
    fs::write(world.file("text"), "hello").unwrap();
    assert_eq!(
        world.run(&task(TaskAction::Adopt, "text", |_| {})),
        Err("UnsupportedFormat")
    );
    assert_eq!(
        world.run(&task(TaskAction::Delete, "text", |_| {})),
        Err("UnsupportedFormat")
    );
    assert_eq!(fs::read(world.file("text")).unwrap(), b"hello");
}

#[test]
fn a_child_is_made_on_its_parent_even_in_another_pool() {
    let world = World::new();
    world.disk("base.vhd", 1);
    let child = |path: PoolFile, parents: Vec<PoolFile>| {
        task(TaskAction::Create, "", |order| {
            order.disk_uid = path.path.clone();
            order.file = path;
            order.parents = parents;
            order.size_bytes = None;
        })
    };
    let first = child(image_file("a.vhd"), vec![file("base.vhd")]);
    let made = world.run(&first).unwrap();
    assert_eq!(
        (made.disk_type, made.size_bytes),
        (Some(DiskType::Differencing), Some(SIZE))
    );
    assert_eq!(world.run(&first), Ok(made));
    let parents = vec![image_file("a.vhd"), file("base.vhd")];
    world.run(&child(file("b.vhd"), parents.clone())).unwrap();
    let orphan = child(file("c.vhd"), vec![file("none.vhd")]);
    assert_eq!(world.run(&orphan), Err("ParentNotFound"));
    // Its grandparent is in a pool that the child does not know.
    let check = |parents: Vec<PoolFile>| {
        let check = task(TaskAction::Check, "b.vhd", |order| order.parents = parents);
        world.run(&check).unwrap().findings.unwrap()
    };
    assert_eq!(check(parents), [""; 0]);
    let alone = check(vec![]);
    assert!(
        alone[0].starts_with("error: b.vhd: its parent 'a.vhd'"),
        "{alone:?}"
    );
}

#[test]
fn a_clone_has_the_content_and_an_identity_of_its_own() {
    let world = World::new();
    world.disk("base.vhd", 1);
    world.child("child.vhd", "base.vhd");
    let clone = |path: &str, of: &[&str], size: i64, disk_type: DiskType| {
        task(TaskAction::Clone, path, |order| {
            order.disk_uid = path.into();
            order.clone = of.iter().map(|path| file(path)).collect();
            order.size_bytes = Some(size);
            order.disk_type = Some(disk_type);
        })
    };
    let same = clone("same.vhd", &["base.vhd"], SIZE, DiskType::Dynamic);
    let made = world.run(&same).unwrap();
    let source = inspect(&world.pool(), "base.vhd").unwrap();
    assert_ne!(made.uuid, Some(source.unique_id.to_string()));
    assert_eq!(made.disk_type, Some(DiskType::Dynamic));
    let larger = clone(
        "larger.vhd",
        &["child.vhd", "base.vhd"],
        2 * SIZE,
        DiskType::Fixed,
    );
    let grown = world.run(&larger).unwrap();
    assert_eq!(
        (grown.size_bytes, grown.disk_type),
        (Some(2 * SIZE), Some(DiskType::Fixed))
    );
    let smaller = clone(
        "smaller.vhd",
        &["base.vhd"],
        SIZE - (1 << 20),
        DiskType::Dynamic,
    );
    assert_eq!(world.run(&smaller), Err("Refused"));
    // Done before the crash, when the source may be gone.
    fs::remove_file(world.file("base.vhd")).unwrap();
    assert_eq!(world.run(&same), Ok(made));
    assert_eq!(world.run(&larger), Ok(grown));
    assert_eq!((world.first("same.vhd"), world.first("larger.vhd")), (1, 1));
    let none = clone("none.vhd", &["base.vhd"], SIZE, DiskType::Dynamic);
    assert_eq!(world.run(&none), Err("FileNotFound"));
}

#[test]
fn convert_makes_a_new_file_and_leaves_the_old_one() {
    let world = World::new();
    world.disk("base.vhd", 1);
    world.child("child.vhd", "base.vhd");
    let convert = |target: &str, disk_type: DiskType| {
        task(TaskAction::Convert, "child.vhd", |order| {
            order.parents = vec![file("base.vhd")];
            order.target = Some(file(target));
            order.disk_type = Some(disk_type);
        })
    };
    let to_fixed = convert("new.vhd", DiskType::Fixed);
    let made = world.run(&to_fixed).unwrap();
    assert_eq!(made.disk_type, Some(DiskType::Fixed));
    assert_eq!(world.first("new.vhd"), 1);
    assert_eq!(world.run(&to_fixed), Ok(made.clone()));
    // Another path is another disk.
    let again = world.run(&convert("other.vhd", DiskType::Dynamic)).unwrap();
    assert_ne!(again.uuid, made.uuid);
    assert_eq!(
        world.run(&convert("base.vhd", DiskType::Fixed)),
        Err("FileExists")
    );
    assert_eq!(world.first("child.vhd"), 1);
}

#[test]
fn compact_gives_back_zeros_and_with_precompact_free_space() {
    let world = World::new();
    let disk = task(TaskAction::Create, "d.vhd", |order| {
        order.size_bytes = Some(8 * SIZE);
    });
    world.run(&disk).unwrap();
    let opened = Vhd::open(&world.pool(), "d.vhd", Access::ReadWrite, Gate::open()).unwrap();
    for block in 0..8 {
        opened
            .write_at(&vec![9; BLOCK as usize], block * BLOCK)
            .unwrap();
    }
    opened
        .write_at(&vec![0; BLOCK as usize], 3 * BLOCK)
        .unwrap();
    opened.close().unwrap();
    let compact = |target: &str, precompact: Precompact| {
        task(TaskAction::Compact, "d.vhd", |order| {
            order.target = Some(file(target));
            order.precompact = precompact;
        })
    };
    let before = inspect(&world.pool(), "d.vhd").unwrap();
    assert_eq!(before.allocated_blocks, Some(8));
    let plain = compact("new.vhd", Precompact::Disabled);
    let made = world.run(&plain).unwrap();
    let after = inspect(&world.pool(), "new.vhd").unwrap();
    assert_eq!(after.allocated_blocks, Some(7));
    assert_eq!(after.unique_id, before.unique_id);
    assert_eq!(world.run(&plain), Ok(made));
    // No file system is known on it: nothing more is taken away.
    let made = world
        .run(&compact("walked.vhd", Precompact::Enabled))
        .unwrap();
    assert_eq!(made.disk_type, Some(DiskType::Dynamic));
    let after = inspect(&world.pool(), "walked.vhd").unwrap();
    assert_eq!(after.allocated_blocks, Some(7));
    world.disk("other.vhd", 1);
    let taken = task(TaskAction::Compact, "d.vhd", |order| {
        order.target = Some(file("text"));
    });
    fs::write(world.file("text"), "hello").unwrap();
    assert_eq!(world.run(&taken), Err("FileExists"));
    let elsewhere = task(TaskAction::Compact, "d.vhd", |order| {
        order.target = Some(image_file("new.vhd"));
    });
    assert_eq!(world.run(&elsewhere), Err("Refused"));
    assert_eq!(world.first("d.vhd"), 9);
}

#[test]
fn compact_gives_back_what_a_file_system_calls_free() {
    const IMAGE: usize = 32 << 20;
    let world = World::new();
    // Rests of deleted files all over it.
    fs::write(world.image("i.img"), vec![0xaa; IMAGE]).unwrap();
    let made = std::process::Command::new("mkfs.ext4")
        .args(["-q", "-F", "-E", "nodiscard,lazy_itable_init=0"])
        .arg(world.image("i.img"))
        .output();
    match made {
        Ok(output) if output.status.success() => {}
        refused => {
            println!("skipped: no ext4 file system can be made: {refused:?}");
            return;
        }
    }
    let mut import = import_of("a", "i.img", None);
    if let Some(order) = import.status.as_mut().and_then(|s| s.order.as_mut()) {
        order.size_bytes = None;
    }
    world.run(&import).unwrap();
    let compact = |target: &str, precompact: Precompact| {
        let compact = task(TaskAction::Compact, "d.vhd", |order| {
            order.target = Some(file(target));
            order.precompact = precompact;
        });
        world.run(&compact).unwrap().allocated_bytes.unwrap()
    };
    let plain = compact("plain.vhd", Precompact::Disabled);
    let walked = compact("walked.vhd", Precompact::Enabled);
    assert!(plain > 24 << 20, "{plain}");
    assert!(walked < 8 << 20, "{walked}");
    // What the file system uses is as it was.
    let shown = task(TaskAction::Export, "walked.vhd", |order| {
        order.target = Some(image_file("out.img"));
    });
    world.run(&shown).unwrap();
    let checked = std::process::Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(world.image("out.img"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn resize_grows_and_shrinks_as_it_may() {
    let world = World::new();
    world.disk("d.vhd", 1);
    let resize = |size: i64, shrink: Shrink| {
        task(TaskAction::Resize, "d.vhd", |order| {
            order.size_bytes = Some(size);
            order.shrink = shrink;
        })
    };
    let grown = world.run(&resize(2 * SIZE, Shrink::Refuse)).unwrap();
    assert_eq!(grown.size_bytes, Some(2 * SIZE));
    assert_eq!(world.run(&resize(2 * SIZE, Shrink::Refuse)), Ok(grown));
    assert_eq!(world.run(&resize(SIZE, Shrink::Refuse)), Err("Refused"));
    let back = world.run(&resize(SIZE, Shrink::IfEmpty)).unwrap();
    assert_eq!(back.size_bytes, Some(SIZE));
    // The last KiB is not empty.
    let less = SIZE - (1 << 20);
    assert_eq!(world.run(&resize(less, Shrink::IfEmpty)), Err("Refused"));
    let cut = world.run(&resize(less, Shrink::Force)).unwrap();
    assert_eq!(cut.size_bytes, Some(less));
    assert_eq!(world.first("d.vhd"), 1);
}

#[test]
fn merge_ends_in_the_parent_and_is_known_as_done() {
    let world = World::new();
    world.disk("base.vhd", 1);
    world.child("child.vhd", "base.vhd");
    world.write("child.vhd", 2);
    let merge = task(TaskAction::Merge, "child.vhd", |order| {
        order.parents = vec![file("base.vhd")];
    });
    let merged = world.run(&merge).unwrap();
    let base = inspect(&world.pool(), "base.vhd").unwrap();
    assert_eq!(merged.uuid, Some(base.unique_id.to_string()));
    assert_eq!(world.files(), ["base.vhd"]);
    assert_eq!(world.first("base.vhd"), 2);
    // Nobody has begun it: then a disk that is missing is missing.
    assert_eq!(world.run(&merge), Err("FileNotFound"));
    assert_eq!(world.run(&begun(merge)), Ok(merged));
    let alone = task(TaskAction::Merge, "base.vhd", |_| {});
    assert_eq!(world.run(&alone), Err("Refused"));
}

#[test]
fn a_merge_that_has_begun_goes_on_to_its_end() {
    let world = World::new();
    world.disk("base.vhd", 1);
    world.child("child.vhd", "base.vhd");
    world.write("child.vhd", 2);
    let merge = task(TaskAction::Merge, "child.vhd", |order| {
        order.parents = vec![file("base.vhd")];
    });
    let control = Control::default();
    let job = Job {
        order: merge.status.as_ref().unwrap().order.as_ref().unwrap(),
        pools: Pools::of(&world.host),
        control: &control,
        begun: false,
    };
    control.cancel();
    change::merge(&job).unwrap();
    assert_eq!(world.first("base.vhd"), 2);
}

#[test]
fn undo_disks_are_committed_and_discarded_once() {
    let world = World::new();
    world.disk("base.vhd", 1);
    let undo = |action| {
        task(action, "base.vhd", |order| {
            order.undo = Some(file("vm/d.vud"));
        })
    };
    let start = |byte| {
        let pool = world.pool();
        let options = ChildOptions::new();
        let undo = paddock_vhd::start_undo(&pool, "vm/d.vud", &pool, "base.vhd", &options).unwrap();
        undo.write_at(&[byte; 512], 0).unwrap();
        undo.close().unwrap();
    };
    start(2);
    let discarded = world.run(&undo(TaskAction::DiscardUndo)).unwrap();
    assert_eq!(discarded.size_bytes, Some(SIZE));
    assert_eq!(world.first("base.vhd"), 1);
    assert_eq!(world.run(&undo(TaskAction::DiscardUndo)), Ok(discarded));
    start(3);
    let committed = world.run(&undo(TaskAction::CommitUndo)).unwrap();
    assert_eq!(world.first("base.vhd"), 3);
    assert!(!world.file("vm/d.vud").exists());
    assert_eq!(world.run(&undo(TaskAction::CommitUndo)), Ok(committed));
    // The disk itself is missed.
    fs::remove_file(world.file("base.vhd")).unwrap();
    for action in [TaskAction::CommitUndo, TaskAction::DiscardUndo] {
        assert_eq!(world.run(&undo(action)), Err("FileNotFound"));
    }
}

#[test]
fn check_tells_what_is_wrong() {
    let world = World::new();
    world.disk("d.vhd", 1);
    let check = task(TaskAction::Check, "d.vhd", |_| {});
    let healthy = world.run(&check).unwrap();
    assert_eq!(healthy.findings, Some(vec![]));
    assert_eq!(healthy.size_bytes, Some(SIZE));
    let mut bytes = fs::read(world.file("d.vhd")).unwrap();
    let end = bytes.len() - 512;
    bytes[end..].fill(0);
    fs::write(world.file("d.vhd"), &bytes).unwrap();
    let found = world.run(&check).unwrap().findings.unwrap();
    assert!(found[0].starts_with("warning: "), "{found:?}");
    assert_eq!(fs::read(world.file("d.vhd")).unwrap(), bytes);
    let missing = task(TaskAction::Check, "none.vhd", |_| {});
    assert_eq!(world.run(&missing), Err("FileNotFound"));
}

#[test]
fn export_writes_an_image_and_knows_its_own() {
    let world = World::new();
    world.disk("base.vhd", 1);
    world.child("child.vhd", "base.vhd");
    let export = |target: &str, format: ExportFormat| {
        task(TaskAction::Export, "child.vhd", |order| {
            order.parents = vec![file("base.vhd")];
            order.target = Some(image_file(target));
            order.format = format;
        })
    };
    let raw = export("d.img", ExportFormat::Raw);
    let done = world.run(&raw).unwrap();
    let image = fs::read(world.image("d.img")).unwrap();
    assert_eq!((image.len() as i64, image[0], image[1024]), (SIZE, 1, 0));
    assert_eq!(world.run(&raw), Ok(done));
    let mut other = image.clone();
    other[5000] = 1;
    for other in [&other, &image[1..].to_vec()] {
        fs::write(world.image("d.img"), other).unwrap();
        assert_eq!(world.run(&raw), Err("FileExists"));
        assert_eq!(&fs::read(world.image("d.img")).unwrap(), other);
    }
    for (target, format, disk_type) in [
        ("f.vhd", ExportFormat::FixedVhd, DiskType::Fixed),
        ("d.vhd", ExportFormat::DynamicVhd, DiskType::Dynamic),
    ] {
        let task = export(target, format);
        world.run(&task).unwrap();
        world.run(&task).unwrap();
        let adopt = task_in_images(target);
        assert_eq!(world.run(&adopt).unwrap().disk_type, Some(disk_type));
    }
}

fn task_in_images(path: &str) -> VirtualHardDiskTask {
    task(TaskAction::Adopt, "", |order| order.file = image_file(path))
}

#[test]
fn a_disk_in_use_is_said_by_every_task() {
    let world = World::new();
    world.disk("base.vhd", 1);
    let held = Vhd::open(&world.pool(), "base.vhd", Access::ReadWrite, Gate::open()).unwrap();
    for action in [
        TaskAction::Resize,
        TaskAction::Check,
        TaskAction::Convert,
        TaskAction::Compact,
        TaskAction::Export,
    ] {
        let busy = task(action, "base.vhd", |order| {
            order.size_bytes = Some(2 * SIZE);
            order.target = Some(file("new.vhd"));
        });
        let failure = refused(&world, &busy);
        assert_eq!(
            failure.reason, "DiskInUse",
            "{action:?}: {}",
            failure.message
        );
        assert!(
            failure.message.starts_with("pool default: base.vhd: "),
            "{}",
            failure.message
        );
    }
    held.close().unwrap();
    assert_eq!(world.files(), ["base.vhd"]);
}
