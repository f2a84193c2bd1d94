//! Tasks that make a disk.

use super::*;

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
        Err("PathNotAllowed")
    );
    let elsewhere = task(TaskAction::Create, "d.vhd", |order| {
        order.file.pool = "none".into();
    });
    assert_eq!(world.run(&elsewhere), Err("PoolUnavailable"));
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
        alone[0].starts_with("error: team/b.vhd: its parent 'a.vhd'"),
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
