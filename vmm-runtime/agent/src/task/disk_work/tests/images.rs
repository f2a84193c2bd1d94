//! Disks that are made of virtual hard disks in a pool.

use super::*;

fn import(
    path: &str,
    image: &str,
    sha256: Option<String>,
    size: Option<i64>,
) -> VirtualHardDiskTask {
    task(TaskAction::Import, path, |order| {
        order.disk_uid = path.into();
        order.size_bytes = size;
        order.source = Some(TaskSource {
            file: image_source(image),
            format: ImageFormat::Vhd,
            sha256,
        });
    })
}

/// Makes the disk `old/base.vhd` of images, which shows 5, and a child of it in the same folder.
fn fill(world: &World) {
    let base = task(TaskAction::Create, "", |order| {
        order.file = image_file("old/base.vhd");
        order.disk_type = Some(DiskType::Fixed);
    });
    world.run(&base).unwrap();
    let images = Pool::open(world.image("")).unwrap();
    let disk = Vhd::open(&images, "old/base.vhd", Access::ReadWrite, Gate::open()).unwrap();
    disk.write_at(&[5; 512], 0).unwrap();
    disk.close().unwrap();
    let child = task(TaskAction::Create, "", |order| {
        order.disk_uid = "child".into();
        order.file = image_file("old/child.vhd");
        order.parents = vec![image_file("old/base.vhd")];
    });
    world.run(&child).unwrap();
}

#[test]
fn a_vhd_of_any_type_becomes_a_disk_of_its_own() {
    let world = World::new();
    fill(&world);
    for (path, image) in [("a.vhd", "old/base.vhd"), ("b.vhd", "old/child.vhd")] {
        let import = import(path, image, None, Some(2 * SIZE));
        let made = world.run(&import).unwrap();
        assert_eq!(
            (made.disk_type, made.size_bytes),
            (Some(DiskType::Dynamic), Some(2 * SIZE))
        );
        assert_eq!(world.first(path), 5);
        assert_eq!(world.run(&import), Ok(made));
    }
    assert_eq!(world.files(), ["a.vhd", "b.vhd"]);
    let small = import("c.vhd", "old/base.vhd", None, Some(SIZE - 512));
    assert_eq!(
        refused(&world, &small).message,
        "pool images: team/old/base.vhd: its disk has 4194304 bytes and the new one only 4193792: choose a larger size"
    );
    // Without its parent a child shows nothing.
    fs::remove_file(world.image("old/base.vhd")).unwrap();
    let orphan = import("c.vhd", "old/child.vhd", None, None);
    assert_eq!(world.run(&orphan), Err("ParentNotFound"));
    let none = import("c.vhd", "old/base.vhd", None, None);
    assert_eq!(world.run(&none), Err("ImageNotFound"));
    assert_eq!(world.files(), ["a.vhd", "b.vhd"]);
}

#[test]
fn another_format_and_another_sum_are_named() {
    let world = World::new();
    fill(&world);
    for (mark, name) in [
        (b"vhdxfile".as_slice(), "VHDX"),
        (b"QFI\xfb\0\0\0\x03", "qcow2"),
        (b"KDMV\x01\0\0\0", "VMDK"),
    ] {
        fs::write(world.image("x"), [mark, &[0; 4096]].concat()).unwrap();
        let failure = refused(&world, &import("a.vhd", "x", None, None));
        assert_eq!(failure.reason, "UnsupportedFormat");
        assert!(failure.message.contains(name), "{}", failure.message);
    }
    let (wrong, image) = (
        "0".repeat(64),
        fs::read(world.image("old/base.vhd")).unwrap(),
    );
    let sum = <sha2::Sha256 as sha2::Digest>::digest(&image);
    let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    let failure = refused(
        &world,
        &import("a.vhd", "old/base.vhd", Some(wrong.clone()), None),
    );
    assert_eq!(
        (failure.reason, failure.message),
        (
            "ChecksumMismatch",
            format!(
                "pool images: team/old/base.vhd: its SHA-256 is {sum}, expected {wrong}; the image was changed, or the sum is of another one"
            )
        )
    );
    assert_eq!(world.files(), [""; 0]);
    world
        .run(&import("a.vhd", "old/base.vhd", Some(sum), None))
        .unwrap();
}
