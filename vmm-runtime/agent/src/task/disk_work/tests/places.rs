//! Where images are read from, and where files are made.

use super::*;

#[test]
fn no_disk_is_read_as_an_image() {
    let mut world = World::new();
    // Another namespace's, with an undo disk beside it.
    let other = world.dir.path().join("default/other");
    fs::create_dir(&other).unwrap();
    world.disk("d.vhd", 5);
    for name in ["d.vhd", "d-2.vud", ".d.vhd.new"] {
        fs::copy(world.file("d.vhd"), other.join(name)).unwrap();
    }
    let import = |pool: &str, path: &str, format: ImageFormat| {
        task(TaskAction::Import, "new.vhd", |order| {
            order.source = Some(TaskSource {
                file: SourceFile {
                    pool: pool.into(),
                    path: path.into(),
                },
                format,
                sha256: None,
            });
        })
    };
    // A person means the pool for images too; another pool has the same folder by another name.
    world.host.pools[0].kinds = vec![PoolKind::Disks, PoolKind::Images];
    for (name, path) in [
        ("again", "default"),
        ("inside", "default/other"),
        ("around", ""),
    ] {
        let path = world.dir.path().join(path);
        world.host.pools.push(HostPool {
            name: name.into(),
            path: path.to_str().unwrap().into(),
            scope: PoolScope::Local,
            kinds: vec![PoolKind::Images],
        });
    }
    for (pool, folder) in [
        ("default", "other/"),
        ("again", "other/"),
        ("inside", ""),
        ("around", "default/other/"),
    ] {
        for name in ["d.vhd", "d-2.vud", ".d.vhd.new", "made-later.vhd"] {
            for format in [ImageFormat::Raw, ImageFormat::Vhd] {
                let path = format!("{folder}{name}");
                let failure = refused(&world, &import(pool, &path, format));
                assert_eq!(failure.reason, "PoolHoldsDisks", "{pool}: {path}");
                assert!(failure.message.contains("cloneRef"), "{failure:?}");
            }
        }
    }
    assert_eq!(world.files(), ["d.vhd"]);
}

#[test]
fn what_a_namespace_makes_lies_in_its_folder() {
    let world = World::new();
    world.disk("d.vhd", 5);
    fs::write(world.image("i.img"), vec![7; 2 << 20]).unwrap();
    let pools = world.dir.path();
    let other = pools.join("default/other");
    fs::create_dir(&other).unwrap();
    fs::copy(world.file("d.vhd"), other.join("left.vhd")).unwrap();
    let place = |path: &str| PoolFile {
        pool: "default".into(),
        path: path.into(),
    };
    for path in [
        "d.vhd",
        "other/new.vhd",
        "other/left.vhd",
        "other/left.vhd.repair",
        "Team/new.vhd",
        "teams/new.vhd",
        "team",
        "./team/new.vhd",
        "team/../other/new.vhd",
    ] {
        let mut import = import_of("x", "i.img", None);
        if let Some(order) = import.status.as_mut().and_then(|s| s.order.as_mut()) {
            order.file = place(path);
        }
        for refused_task in [
            task(TaskAction::Create, "", |order| order.file = place(path)),
            import,
            task(TaskAction::Clone, "", |order| {
                order.file = place(path);
                order.clone = vec![file("d.vhd")];
            }),
            task(TaskAction::Adopt, "", |order| order.file = place(path)),
            task(TaskAction::Export, "d.vhd", |order| {
                order.target = Some(place(path));
            }),
        ] {
            let failure = refused(&world, &refused_task);
            let action = refused_task.spec.action;
            assert_eq!(failure.reason, "PathNotAllowed", "{action:?} {path}");
            assert!(
                failure.message.contains("a path that begins with team/"),
                "{failure:?}"
            );
        }
    }
    let names = |folder| fs::read_dir(folder).unwrap().count();
    assert_eq!((names(other), names(pools.join("default"))), (1, 2));
    // What has its file elsewhere goes on there.
    let check = task(TaskAction::Check, "", |order| {
        order.file = place("other/left.vhd");
    });
    assert_eq!(world.run(&check).unwrap().findings, Some(vec![]));
}
