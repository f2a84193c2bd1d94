//! Disk tasks with `paddock-vhd`, in threads that may block.
//!
//! Every task may be repeated after a crash of the agent. A disk that is made carries an identity that follows from
//! the VirtualHardDisk it is made for, so a file that is there already counts as done exactly if it carries that one;
//! any other file is somebody's and is not touched. What was not finished has a temporary name, which the next try
//! replaces under the file's lock.

use super::{
    core::CANCELLED,
    runner::{Control, DiskWorker},
};
use crate::{
    host::{self, SpecReceiver},
    instance::core::Failure,
};
use futures::{FutureExt, future::BoxFuture};
use paddock_crds::{
    HostSpec, VirtualHardDiskTask, virtual_hard_disk,
    virtual_hard_disk_task::{TaskAction, TaskResult, TaskSource},
};
use paddock_vhd::{
    CreateError, CreateOptions, DiskSize, DiskType, ImportError, ImportOptions, IoError, OpenError,
    OpenErrorKind, Pool, PoolError, Vhd, import_raw, inspect,
};
use std::{ops::ControlFlow, path::PathBuf, sync::Arc};
use uuid::Uuid;

/// The namespace of the identities (a random UUID of this purpose).
const IDENTITIES: Uuid = Uuid::from_u128(0x8f2b_64a1_0d5e_4c7b_9a36_51e0_c2d4_7f18);

/// Works on real files.
pub struct VhdWorker {
    spec: SpecReceiver,
}

impl VhdWorker {
    /// A worker on the pools of the Host.
    #[must_use]
    pub fn new(spec: SpecReceiver) -> Self {
        Self { spec }
    }
}

impl DiskWorker for VhdWorker {
    fn perform(
        &self,
        task: Arc<VirtualHardDiskTask>,
        control: Arc<Control>,
    ) -> BoxFuture<'static, Result<TaskResult, Failure>> {
        let spec = self.spec.clone();
        async move {
            let spec = host::spec(&spec)
                .await
                .map_err(|error| Failure::new("PoolUnavailable", error))?;
            let work = tokio::task::spawn_blocking(move || perform(&task, &spec, &control));
            match work.await {
                Ok(result) => result,
                Err(error) => Err(io_error(format!("the work broke off: {error}"))),
            }
        }
        .boxed()
    }
}

/// Does a task. Blocks.
fn perform(
    task: &VirtualHardDiskTask,
    host: &HostSpec,
    control: &Control,
) -> Result<TaskResult, Failure> {
    let spec = &task.spec;
    let pool = open_pool(host, &spec.file.pool)?;
    let path = PathBuf::from(&spec.file.path);
    let identity = identity(task);
    let done = match spec.action {
        TaskAction::Create => create(&pool, &path, task, identity),
        TaskAction::Import => import(&pool, &path, task, host, identity, control),
        TaskAction::Adopt => look(&pool, &path),
        TaskAction::Delete => delete(&pool, &path),
    };
    done.map_err(|failure| Failure {
        message: format!("pool {}: {}", spec.file.pool, failure.message),
        ..failure
    })
}

/// The identity of the disk that a task makes: it follows from the uid of the VirtualHardDisk that owns the task, so
/// that another task of the same disk recognises the file too; from the task's own uid when it has no owner.
fn identity(task: &VirtualHardDiskTask) -> Uuid {
    let owner = task
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.kind == "VirtualHardDisk")
        .map(|owner| owner.uid.as_str());
    let uid = owner.or(task.metadata.uid.as_deref()).unwrap_or_default();
    Uuid::new_v5(&IDENTITIES, uid.as_bytes())
}

fn create(
    pool: &Pool,
    path: &PathBuf,
    task: &VirtualHardDiskTask,
    identity: Uuid,
) -> Result<TaskResult, Failure> {
    let size = disk_size(task)?
        .ok_or_else(|| io_error("the task names no size: expected sizeBytes".to_owned()))?;
    let mut options = CreateOptions::new(disk_type(task), size);
    options.unique_id = identity;
    match Vhd::create(pool, path, &options) {
        Ok(disk) => {
            disk.close().map_err(|error| from_io(&error))?;
            look(pool, path)
        }
        Err(CreateError::AlreadyExists { .. }) => already_made(pool, path, identity),
        Err(error) => Err(from_create(&error)),
    }
}

fn import(
    pool: &Pool,
    path: &PathBuf,
    task: &VirtualHardDiskTask,
    host: &HostSpec,
    identity: Uuid,
    control: &Control,
) -> Result<TaskResult, Failure> {
    let source = task
        .spec
        .source
        .as_ref()
        .ok_or_else(|| io_error("the task names no source".to_owned()))?;
    if inspect(pool, path).is_ok_and(|found| found.unique_id == identity) {
        return look(pool, path);
    }
    let options = ImportOptions {
        disk_type: disk_type(task),
        size: disk_size(task)?,
        sha256: sha256(source)?,
        unique_id: Some(identity),
    };
    let images = open_pool(host, &source.file.pool)?;
    let image = images
        .open_read(&source.file.path)
        .map_err(|error| from_source(&source.file.pool, &error))?;
    let progress = &mut |progress: paddock_vhd::Progress| {
        control.set_progress(progress.done, progress.total);
        if control.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    match import_raw(&image, pool, path, &options, progress) {
        Ok(_) => look(pool, path),
        Err(ImportError::Create(CreateError::AlreadyExists { .. })) => {
            already_made(pool, path, identity)
        }
        Err(error) => Err(from_import(&error)),
    }
}

/// The file is there: is it the one that this task, before a crash, has made?
fn already_made(pool: &Pool, path: &PathBuf, identity: Uuid) -> Result<TaskResult, Failure> {
    match inspect(pool, path) {
        Ok(found) if found.unique_id == identity => look(pool, path),
        _ => Err(Failure::new(
            "FileExists",
            format!(
                "{}: there is a file of that name already, made for something else; it was not touched: choose another path, or adopt it",
                path.display()
            ),
        )),
    }
}

fn look(pool: &Pool, path: &PathBuf) -> Result<TaskResult, Failure> {
    let found = inspect(pool, path).map_err(|error| from_open(&error))?;
    let bytes = |bytes: u64| i64::try_from(bytes).ok();
    Ok(TaskResult {
        uuid: Some(found.unique_id.to_string()),
        size_bytes: bytes(found.virtual_size),
        allocated_bytes: bytes(found.allocated),
    })
}

fn delete(pool: &Pool, path: &PathBuf) -> Result<TaskResult, Failure> {
    match paddock_vhd::remove(pool, path) {
        Ok(()) => Ok(nothing()),
        // Removed before a crash, or by somebody else: what was wanted.
        Err(error) if error.kind() == OpenErrorKind::NotFound => Ok(nothing()),
        Err(error) => Err(from_open(&error)),
    }
}

/// The result of a task that leaves nothing to describe.
fn nothing() -> TaskResult {
    TaskResult {
        uuid: None,
        size_bytes: None,
        allocated_bytes: None,
    }
}

fn open_pool(host: &HostSpec, name: &str) -> Result<Pool, Failure> {
    let path = host::pool_path(host, name)?;
    Pool::open(&path)
        .map_err(|error| Failure::new("PoolUnavailable", format!("pool {name}: {error}")))
}

fn disk_type(task: &VirtualHardDiskTask) -> DiskType {
    match task.spec.disk_type.unwrap_or_default() {
        virtual_hard_disk::DiskType::Fixed => DiskType::Fixed,
        virtual_hard_disk::DiskType::Dynamic => DiskType::Dynamic,
    }
}

fn disk_size(task: &VirtualHardDiskTask) -> Result<Option<DiskSize>, Failure> {
    let Some(bytes) = task.spec.size_bytes else {
        return Ok(None);
    };
    let bytes = u64::try_from(bytes)
        .map_err(|_| io_error(format!("sizeBytes is {bytes}: expected a positive number")))?;
    DiskSize::from_bytes(bytes)
        .map(Some)
        .map_err(|error| io_error(error.to_string()))
}

fn sha256(source: &TaskSource) -> Result<Option<[u8; 32]>, Failure> {
    let Some(text) = &source.sha256 else {
        return Ok(None);
    };
    parse_sha256(text).map(Some).ok_or_else(|| {
        Failure::new(
            "ChecksumMismatch",
            format!("sha256 is {text:?}: expected 64 hexadecimal digits"),
        )
    })
}

fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut sum = [0; 32];
    for (index, byte) in sum.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(sum)
}

fn io_error(message: String) -> Failure {
    Failure::new("IoError", message)
}

fn from_io(error: &IoError) -> Failure {
    match error {
        IoError::NoSpace { .. } => Failure::new("PoolFull", error.to_string()),
        _ => io_error(error.to_string()),
    }
}

fn from_create(error: &CreateError) -> Failure {
    let reason = match error {
        CreateError::AlreadyExists { .. } => "FileExists",
        CreateError::InUse { .. } => "DiskInUse",
        CreateError::PathEscapes { .. } => "PathEscapesPool",
        CreateError::NoSpace { .. } => "PoolFull",
        _ => "IoError",
    };
    Failure::new(reason, error.to_string())
}

fn from_import(error: &ImportError) -> Failure {
    let reason = match error {
        ImportError::Create(error) => return from_create(error),
        ImportError::SourceTooLarge { .. } => "SourceTooLarge",
        ImportError::Size(_) => "SourceTooLarge",
        ImportError::NotRaw { .. } => "UnsupportedFormat",
        ImportError::WrongSha256 { .. } => "ChecksumMismatch",
        ImportError::Cancelled => CANCELLED,
        ImportError::Write { source, .. } => return from_io(source),
        _ => "IoError",
    };
    Failure::new(reason, error.to_string())
}

fn from_source(pool: &str, error: &PoolError) -> Failure {
    let reason = match error {
        PoolError::NotFound { .. } => "ImageNotFound",
        PoolError::PathEscapes { .. } => "PathEscapesPool",
        PoolError::NotAFile { .. } => "ImageNotFound",
        _ => "IoError",
    };
    Failure::new(reason, format!("image in pool {pool}: {error}"))
}

fn from_open(error: &OpenError) -> Failure {
    let reason = match error.kind() {
        OpenErrorKind::NotFound => "FileNotFound",
        OpenErrorKind::InUse => "DiskInUse",
        OpenErrorKind::Corrupt => "CorruptDisk",
        OpenErrorKind::Unsupported => "UnsupportedFormat",
        OpenErrorKind::PathEscapes => "PathEscapesPool",
        OpenErrorKind::NoSpace => "PoolFull",
        _ => "IoError",
    };
    Failure::new(reason, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use paddock_crds::{
        VirtualHardDiskTaskSpec,
        host::{Pool as HostPool, PoolScope},
        reference::{LocalReference, PoolFile},
        virtual_hard_disk_task::SourceFile,
    };
    use std::fs;

    const SIZE: i64 = 4 << 20;

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
    }

    fn task(uid: &str, action: TaskAction, path: &str) -> VirtualHardDiskTask {
        let mut task = VirtualHardDiskTask::new(
            "t",
            VirtualHardDiskTaskSpec {
                action,
                virtual_hard_disk_ref: LocalReference { name: "d".into() },
                file: PoolFile {
                    pool: "default".into(),
                    path: path.into(),
                },
                disk_type: None,
                size_bytes: Some(SIZE),
                source: None,
                disk_epoch: 1,
            },
        );
        task.metadata.uid = Some(uid.into());
        task
    }

    fn import_of(uid: &str, image: &str, sha256: Option<&str>) -> VirtualHardDiskTask {
        let mut task = task(uid, TaskAction::Import, "d.vhd");
        task.spec.source = Some(TaskSource {
            file: SourceFile {
                pool: "images".into(),
                path: image.into(),
            },
            format: virtual_hard_disk::ImageFormat::Raw,
            sha256: sha256.map(Into::into),
        });
        task
    }

    #[test]
    fn create_is_repeatable_and_never_takes_anothers_file() {
        let world = World::new();
        let mine = task("a", TaskAction::Create, "sub/d.vhd");
        let made = world.run(&mine).unwrap();
        assert_eq!(made.size_bytes, Some(SIZE));
        assert_eq!(made.uuid, Some(identity(&mine).to_string()));
        assert_eq!(world.run(&mine), Ok(made));
        let before = fs::read(world.file("sub/d.vhd")).unwrap();
        let other = task("b", TaskAction::Create, "sub/d.vhd");
        assert_eq!(world.run(&other), Err("FileExists"));
        fs::write(world.file("text"), "hello").unwrap();
        assert_eq!(
            world.run(&task("c", TaskAction::Create, "text")),
            Err("FileExists")
        );
        assert_eq!(fs::read(world.file("sub/d.vhd")).unwrap(), before);
        assert_eq!(fs::read(world.file("text")).unwrap(), b"hello");
    }

    #[test]
    fn import_is_repeatable_and_checks_its_sum() {
        let world = World::new();
        let image = world.dir.path().join("images/i.img");
        fs::write(&image, vec![7; 1 << 20]).unwrap();
        let wrong = "0".repeat(64);
        assert_eq!(
            world.run(&import_of("a", "i.img", Some(&wrong))),
            Err("ChecksumMismatch")
        );
        assert!(!world.file("d.vhd").exists());
        let made = world.run(&import_of("a", "i.img", None)).unwrap();
        assert_eq!(made.size_bytes, Some(SIZE));
        // Done before the crash: the source is not needed any more.
        fs::remove_file(&image).unwrap();
        assert_eq!(world.run(&import_of("a", "i.img", None)), Ok(made));
        assert_eq!(
            world.run(&import_of("b", "i.img", None)),
            Err("ImageNotFound")
        );
        fs::write(&image, vec![7; 1 << 20]).unwrap();
        assert_eq!(world.run(&import_of("b", "i.img", None)), Err("FileExists"));
    }

    #[test]
    fn an_image_that_is_too_large_or_outside_is_refused() {
        let world = World::new();
        fs::write(world.dir.path().join("images/i.img"), vec![7; 5 << 20]).unwrap();
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
            world.run(&task("a", TaskAction::Create, "../../d.vhd")),
            Err("PathEscapesPool")
        );
        let mut elsewhere = task("a", TaskAction::Create, "d.vhd");
        elsewhere.spec.file.pool = "none".into();
        assert_eq!(world.run(&elsewhere), Err("PoolUnavailable"));
    }

    #[test]
    fn a_cancelled_import_leaves_nothing() {
        let world = World::new();
        fs::write(world.dir.path().join("images/i.img"), vec![7; 2 << 20]).unwrap();
        let control = Control::default();
        control.cancel();
        let failure = perform(&import_of("a", "i.img", None), &world.host, &control).unwrap_err();
        assert_eq!(failure.reason, CANCELLED);
        assert!(!world.file("d.vhd").exists());
    }

    #[test]
    fn adopt_looks_and_delete_is_repeatable() {
        let world = World::new();
        assert_eq!(
            world.run(&task("x", TaskAction::Adopt, "d.vhd")),
            Err("FileNotFound")
        );
        let made = world.run(&task("a", TaskAction::Create, "d.vhd")).unwrap();
        assert_eq!(world.run(&task("x", TaskAction::Adopt, "d.vhd")), Ok(made));
        let pool = Pool::open(world.dir.path().join("default")).unwrap();
        let held = Vhd::open(
            &pool,
            "d.vhd",
            paddock_vhd::Access::ReadWrite,
            paddock_vhd::Gate::open(),
        )
        .unwrap();
        assert_eq!(
            world.run(&task("x", TaskAction::Delete, "d.vhd")),
            Err("DiskInUse")
        );
        assert!(world.file("d.vhd").exists());
        held.close().unwrap();
        let gone = Ok(nothing());
        assert_eq!(world.run(&task("x", TaskAction::Delete, "d.vhd")), gone);
        assert!(!world.file("d.vhd").exists());
        assert_eq!(world.run(&task("x", TaskAction::Delete, "d.vhd")), gone);
        fs::write(world.file("text"), "hello").unwrap();
        assert_eq!(
            world.run(&task("x", TaskAction::Adopt, "text")),
            Err("UnsupportedFormat")
        );
        assert_eq!(
            world.run(&task("x", TaskAction::Delete, "text")),
            Err("UnsupportedFormat")
        );
        assert_eq!(fs::read(world.file("text")).unwrap(), b"hello");
    }

    #[test]
    fn the_identity_follows_the_disk() {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
        let owned = |uid: &str| {
            let mut task = task(uid, TaskAction::Create, "d");
            task.metadata.owner_references = Some(vec![OwnerReference {
                kind: "VirtualHardDisk".into(),
                uid: "disk".into(),
                ..OwnerReference::default()
            }]);
            task
        };
        assert_eq!(identity(&owned("a")), identity(&owned("b")));
        assert_ne!(
            identity(&owned("a")),
            identity(&task("a", TaskAction::Create, "d"))
        );
    }

    #[test]
    fn sums_are_64_hexadecimal_digits() {
        let text = "00ff".to_owned() + &"aB".repeat(30);
        assert_eq!(
            parse_sha256(&text).map(|sum| (sum[0], sum[1], sum[2])),
            Some((0, 255, 0xab))
        );
        for bad in [
            "",
            "0",
            &"g".repeat(64),
            &"0".repeat(63),
            &"+".repeat(64),
            &"é".repeat(32),
        ] {
            assert_eq!(parse_sha256(bad), None, "{bad}");
        }
    }
}
