//! What holds for every task.

use super::*;

#[test]
fn a_task_without_an_order_fails() {
    let world = World::new();
    assert_eq!(world.run(&test_task(TaskAction::Delete)), Err("IoError"));
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
        let job = Job::new(order, &world.host, &control, false);
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
            failure.message.starts_with("pool default: team/base.vhd: "),
            "{}",
            failure.message
        );
    }
    held.close().unwrap();
    assert_eq!(world.files(), ["base.vhd"]);
}
