//! Tasks that make a further file.

use super::*;

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
    // A copy of the disk under that name would look the same: only an earlier agent's own counts as done.
    assert_eq!(world.run(&plain), Err("FileExists"));
    assert_eq!(world.run(&begun(plain)), Ok(made));
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
fn compact_keeps_the_order_of_blocks_or_mends_it() {
    let world = World::new();
    let disk = task(TaskAction::Create, "d.vhd", |order| {
        order.size_bytes = Some(8 * SIZE);
    });
    world.run(&disk).unwrap();
    let opened = Vhd::open(&world.pool(), "d.vhd", Access::ReadWrite, Gate::open()).unwrap();
    for block in [5, 2, 7] {
        opened.write_at(&[9; 512], block * BLOCK).unwrap();
    }
    opened.close().unwrap();
    for (target, defragment, runs) in [
        ("kept.vhd", Defragment::Disabled, 3),
        ("mended.vhd", Defragment::Enabled, 1),
    ] {
        let compact = task(TaskAction::Compact, "d.vhd", |order| {
            order.target = Some(file(target));
            order.defragment = defragment;
        });
        world.run(&compact).unwrap();
        let found = inspect(&world.pool(), target).unwrap();
        assert_eq!(
            (found.allocated_blocks, found.fragments),
            (Some(3), Some(runs)),
            "{target}"
        );
    }
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
            crate::skipped::skipped(format_args!("no ext4 file system can be made: {refused:?}"));
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
fn an_export_takes_no_earlier_one_for_its_own() {
    let world = World::new();
    world.disk("d.vhd", 1);
    let export = |disk_epoch: i64, target: &str, format: ExportFormat| {
        task(TaskAction::Export, "d.vhd", |order| {
            order.disk_epoch = disk_epoch;
            order.target = Some(image_file(target));
            order.format = format;
        })
    };
    let images = Pool::open(world.image("")).unwrap();
    let shown = |target: &str| {
        let disk = Vhd::open(&images, target, Access::ReadOnly, Gate::open()).unwrap();
        let mut byte = [0];
        disk.read_at(&mut byte, 0).unwrap();
        byte[0]
    };
    for (target, format) in [
        ("fixed.vhd", ExportFormat::FixedVhd),
        ("dynamic.vhd", ExportFormat::DynamicVhd),
    ] {
        world.write("d.vhd", 1);
        world.run(&export(4, target, format)).unwrap();
        // Itself after a crash.
        world.run(&export(4, target, format)).unwrap();
        world.write("d.vhd", 2);
        assert_eq!(world.run(&export(6, target, format)), Err("FileExists"));
        assert_eq!(shown(target), 1);
    }
    world.write("d.vhd", 1);
    world.run(&export(4, "d.img", ExportFormat::Raw)).unwrap();
    world.write("d.vhd", 2);
    assert_eq!(
        world.run(&export(6, "d.img", ExportFormat::Raw)),
        Err("FileExists")
    );
    assert_eq!(fs::read(world.image("d.img")).unwrap()[0], 1);
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
fn what_was_made_for_a_task_that_is_cancelled_is_removed() {
    let world = World::new();
    world.disk("base.vhd", 1);
    let making = |action| {
        task(action, "base.vhd", |order| {
            order.target = Some(file("new.vhd"));
            order.disk_type = Some(DiskType::Fixed);
        })
    };
    for action in [TaskAction::Convert, TaskAction::Compact] {
        // An earlier agent has made it, and ended before it told so.
        let made = making(action);
        world.run(&made).unwrap();
        assert_eq!(world.files(), ["base.vhd", "new.vhd"]);
        assert_eq!(left::leave_off(&made, &world.host, true), None);
        assert_eq!(world.files(), ["base.vhd"], "{action:?}");
        // Somebody else's stays.
        let other = task(TaskAction::Create, "new.vhd", of_disk("other"));
        world.run(&other).unwrap();
        world.write("new.vhd", 7);
        left::leave_off(&made, &world.host, true);
        assert_eq!(world.first("new.vhd"), 7);
        fs::remove_file(world.file("new.vhd")).unwrap();
    }
    // A copy of the disk that was there before anybody began.
    fs::copy(world.file("base.vhd"), world.file("new.vhd")).unwrap();
    left::leave_off(&making(TaskAction::Compact), &world.host, false);
    assert_eq!(world.files(), ["base.vhd", "new.vhd"]);
    assert_eq!(world.run(&making(TaskAction::Compact)), Err("FileExists"));
}
