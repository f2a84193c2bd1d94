//! Disks that are made of images on the web.

use super::*;
use crate::download::tests::{Reply, head, ok, serve, web};
use paddock_crds::virtual_hard_disk::HttpSource;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(600);
/// SHA-256 of 1 MiB of the byte 7.
const SUM: &str = "51b12eb838732b786b4d45c660a974ddf3860ae09084fd293fa6e5df46581a6c";

fn order_of(url: &str, sha256: &str) -> TaskOrder {
    let import = task(TaskAction::Import, "sub/d.vhd", |order| {
        order.download = Some(HttpSource {
            url: url.into(),
            sha256: sha256.into(),
            format: ImageFormat::Raw,
        });
    });
    import.status.unwrap().order.unwrap()
}

fn import(world: &World, order: &TaskOrder, control: &Control) -> Result<TaskResult, Failure> {
    let job = Job {
        order,
        pools: Pools::of(&world.host),
        control,
        begun: false,
    };
    download::import(&job, &web(LONG))
}

fn files(world: &World) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(world.file("sub"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "d.vhd.lock")
        .collect();
    names.sort();
    names
}

#[test]
fn an_image_is_downloaded_once() {
    let world = World::new();
    let server = serve(|_| Reply::Says(ok(&vec![7; 1 << 20])));
    let order = order_of(&format!("http://{server}/i.img"), SUM);
    // What an agent left that ended in the middle.
    fs::create_dir(world.file("sub")).unwrap();
    fs::write(world.file("sub/.d.vhd.source"), vec![1; 5 << 20]).unwrap();
    let control = Control::default();
    let made = import(&world, &order, &control).unwrap();
    assert_eq!(
        (made.size_bytes, made.disk_type),
        (Some(SIZE), Some(DiskType::Dynamic))
    );
    assert_eq!(files(&world), ["d.vhd"]);
    assert_eq!(world.first("sub/d.vhd"), 7);
    // Done before the crash: nothing is asked any more.
    let gone = TaskOrder {
        download: order_of("http://127.0.0.1:1/i.img", SUM).download,
        ..order.clone()
    };
    assert_eq!(import(&world, &gone, &control), Ok(made));
    let other = TaskOrder {
        disk_uid: "other".into(),
        ..gone
    };
    let failure = import(&world, &other, &control).unwrap_err();
    assert_eq!(failure.reason, "FileExists");
}

#[test]
fn what_is_not_the_image_leaves_nothing() {
    let world = World::new();
    let server = serve(|path| match path {
        "/i.img?key=secret" => Reply::Says(ok(&vec![7; 1 << 20])),
        "/large" => Reply::Stalls(head(SIZE as u64 + 1)),
        "/huge" => Reply::Stalls(head(2000 << 30)),
        "/short" => Reply::Says([head(1 << 20), vec![7; 1000]].concat()),
        _ => Reply::Says(ok(
            &[b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 1 << 16]].concat()
        )),
    });
    let url = |path: &str| format!("http://{server}{path}");
    let wrong = "0".repeat(64);
    let refused = |order: &TaskOrder| import(&world, order, &Control::default()).unwrap_err();
    let failure = refused(&order_of(&url("/i.img?key=secret"), &wrong));
    assert_eq!(
        (failure.reason, failure.message),
        (
            "ChecksumMismatch",
            format!(
                "http://{server}/i.img: its SHA-256 is {SUM}, expected {wrong}; the image was changed, or the sum is of another one"
            )
        )
    );
    let failure = refused(&order_of(&url("/large"), SUM));
    assert_eq!(
        (failure.reason, failure.message),
        (
            "SourceTooLarge",
            format!(
                "http://{server}/large: the image has 4194305 bytes and the disk only 4194304: choose a larger size"
            )
        )
    );
    let huge = TaskOrder {
        size_bytes: None,
        ..order_of(&url("/huge"), SUM)
    };
    assert_eq!(refused(&huge).reason, "PoolFull");
    assert_eq!(
        refused(&order_of(&url("/short"), SUM)).reason,
        "DownloadFailed"
    );
    let foreign = refused(&order_of(
        &url("/other"),
        "4c862ca3ee12cc2a9094bc917202ba77b184b7a1767d9936d0dcb8ae73728fc4",
    ));
    assert_eq!(foreign.reason, "UnsupportedFormat");
    assert_eq!(
        foreign.message,
        format!(
            "http://{server}/other: pool default: the source is not a raw image but a qcow2 image; convert it to raw first"
        )
    );
    assert_eq!(files(&world), [""; 0]);
}

#[test]
fn a_vhd_is_downloaded_without_what_others_have() {
    let world = World::new();
    world.disk("base.vhd", 3);
    world.child("child.vhd", "base.vhd");
    let [base, child] = ["base.vhd", "child.vhd"].map(|name| fs::read(world.file(name)).unwrap());
    // Its parent has the identity of the disk that is made here.
    fs::remove_file(world.file("child.vhd")).unwrap();
    let sum = |bytes: &[u8]| -> String {
        let sum = <sha2::Sha256 as sha2::Digest>::digest(bytes);
        sum.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let sums = [sum(&base), sum(&child)];
    let server = serve(move |path| {
        Reply::Says(ok(match path {
            "/base.vhd" => &base,
            _ => &child,
        }))
    });
    let of = |path: &str, sum: &str, size: i64| {
        let mut order = order_of(&format!("http://{server}{path}"), sum);
        order.download.as_mut().unwrap().format = ImageFormat::Vhd;
        order.size_bytes = Some(size);
        order
    };
    let control = Control::default();
    let failure = import(&world, &of("/child.vhd", &sums[1], SIZE), &control).unwrap_err();
    assert_eq!(failure.reason, "UnsupportedFormat");
    assert_eq!(files(&world), [""; 0]);
    let failure = import(&world, &of("/base.vhd", &sums[0], SIZE - 512), &control).unwrap_err();
    assert_eq!(failure.reason, "SourceTooLarge");
    let larger = of("/base.vhd", &sums[0], 2 * SIZE);
    let made = import(&world, &larger, &control).unwrap();
    assert_eq!(made.size_bytes, Some(2 * SIZE));
    assert_eq!(files(&world), ["d.vhd"]);
    assert_eq!(world.first("sub/d.vhd"), 3);
}

#[test]
fn a_download_ends_when_its_task_is_deleted() {
    let world = World::new();
    let (asked, heard) = std::sync::mpsc::channel();
    let server = serve(move |_| {
        asked.send(()).unwrap();
        Reply::Stalls([head(1 << 20), vec![7; 1000]].concat())
    });
    let order = order_of(&format!("http://{server}/i.img"), SUM);
    let control = Control::default();
    let failure = std::thread::scope(|scope| {
        let work = scope.spawn(|| import(&world, &order, &control).unwrap_err());
        heard.recv().unwrap();
        control.cancel();
        work.join().unwrap()
    });
    assert_eq!(failure.reason, CANCELLED);
    assert_eq!(files(&world), [""; 0]);
}
