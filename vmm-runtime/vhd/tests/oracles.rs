//! Other programs' opinion of our disks, and ours of theirs. Each test prints
//! `skipped:` and what is missing where a program isn't installed.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

mod skipped;

use std::fs::File;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use paddock_vhd::{
    Access, BlockDevice, ChildOptions, CompactOptions, CreateOptions, DiskSize, DiskType, Gate,
    ImportOptions, OpenErrorKind, ParentSearch, Pool, ResizeOptions, Vhd, compact, import_raw,
    inspect, resize,
};

use skipped::skipped;

const MIB: u64 = 1 << 20;

/// Runs a program, or says that it isn't there.
fn run(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skipped(format_args!("{program} is not installed"));
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

#[track_caller]
fn succeeds(output: &Output) {
    let said = |stream: &[u8]| String::from_utf8_lossy(stream).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        said(&output.stdout),
        said(&output.stderr)
    );
}

/// One test at a time: a program that another test is about to start holds a
/// copy of every open file for a moment, and with it the locks.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// QEMU finds the bytes of `raw` in `disk.vhd`.
#[track_caller]
fn same_for_qemu(dir: &tempfile::TempDir) {
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (raw, disk) = (path("raw"), path("disk.vhd"));
    let args = ["compare", "-f", "raw", "-F", "vpc", &raw, &disk];
    if let Some(output) = run("qemu-img", &args) {
        succeeds(&output);
    }
}

/// What is written to the disks: pieces within, across and at the end of
/// blocks. On 4 KiB for the sake of those who read bitmaps by bytes.
fn parts(size: u64) -> Vec<(u64, Vec<u8>)> {
    vec![
        (0, vec![1; 4096]),
        (2 * MIB - 4096, vec![2; 8192]),
        (7 * MIB, vec![3; 100 << 10]),
        (size - 4096, vec![4; 4096]),
    ]
}

fn write_raw(path: &Path, size: u64) {
    let raw = File::create_new(path).unwrap();
    raw.set_len(size).unwrap();
    for (offset, bytes) in parts(size) {
        raw.write_all_at(&bytes, offset).unwrap();
    }
}

fn make(pool: &Pool, disk_type: DiskType, size: u64) {
    let disk = Vhd::create(
        pool,
        "disk.vhd",
        &CreateOptions::new(disk_type, DiskSize::from_bytes(size).unwrap()),
    )
    .unwrap();
    // Backwards, so that blocks lie in another order than on the disk.
    for (offset, bytes) in parts(size).into_iter().rev() {
        disk.write_at(&bytes, offset).unwrap();
        disk.flush().unwrap();
    }
    disk.close().unwrap();
}

/// Sizes that no geometry hits exactly.
const SIZES: [u64; 2] = [16 * MIB, 33 * MIB + 4096];

#[test]
fn qemu_reads_our_disks() {
    let _alone = alone();
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        for size in SIZES {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
            make(&Pool::open(dir.path()).unwrap(), disk_type, size);
            write_raw(&dir.path().join("raw"), size);
            let args = [
                "compare",
                "-f",
                "raw",
                "-F",
                "vpc",
                &path("raw"),
                &path("disk.vhd"),
            ];
            let Some(output) = run("qemu-img", &args) else {
                return;
            };
            succeeds(&output);
            let Some(check) = run(
                "qemu-img",
                &["info", "-f", "vpc", "--output=json", &path("disk.vhd")],
            ) else {
                return;
            };
            let info: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
            assert_eq!(info["virtual-size"], size);
        }
    }
}

#[test]
fn we_read_qemus_disks() {
    let _alone = alone();
    for (subformat, disk_type) in [("fixed", DiskType::Fixed), ("dynamic", DiskType::Dynamic)] {
        for (size, force_size) in SIZES
            .into_iter()
            .flat_map(|size| [(size, "on"), (size, "off")])
        {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
            write_raw(&dir.path().join("raw"), size);
            let options = format!("subformat={subformat},force_size={force_size}");
            let (raw, disk) = (path("raw"), path("disk.vhd"));
            let args = [
                "convert", "-f", "raw", "-O", "vpc", "-o", &options, &raw, &disk,
            ];
            let Some(output) = run("qemu-img", &args) else {
                return;
            };
            succeeds(&output);
            let info = ["info", "-f", "vpc", "--output=json", &disk];
            let info = run("qemu-img", &info).unwrap();
            let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
            let pool = Pool::open(dir.path()).unwrap();
            let disk = Vhd::open(&pool, "disk.vhd", Access::ReadWrite, Gate::open()).unwrap();
            assert_eq!(disk.disk_type(), disk_type);
            // Without the exact size, a whole number of cylinders.
            assert_eq!(info["virtual-size"], disk.size());
            assert!(disk.size() == size || (force_size == "off" && disk.size() > size));
            let mut found = vec![0; disk.size() as usize];
            disk.read_at(&mut found, 0).unwrap();
            let mut expected = std::fs::read(path("raw")).unwrap();
            expected.resize(disk.size() as usize, 0);
            assert!(found == expected, "{subformat} {size} {force_size}");
            // And QEMU what we then write to it.
            for offset in [5 * MIB + 512, 9 * MIB] {
                disk.write_at(&[9; 1000], offset).unwrap();
                expected[offset as usize..offset as usize + 1000].fill(9);
            }
            disk.close().unwrap();
            std::fs::write(path("raw"), &expected).unwrap();
            same_for_qemu(&dir);
        }
    }
}

/// A table that moved behind the blocks, and a size that no geometry hits.
#[test]
fn others_read_what_we_resized() {
    let _alone = alone();
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let pool = Pool::open(dir.path()).unwrap();
        make(&pool, disk_type, SIZES[0]);
        write_raw(&dir.path().join("raw"), SIZES[0]);
        let raw = File::options().write(true).open(path("raw")).unwrap();
        for size in [SIZES[1], 300 * MIB, 17 * MIB + 4096, 16 * MIB] {
            let options = ResizeOptions {
                size: DiskSize::from_bytes(size).unwrap(),
                force: false,
                search: ParentSearch::new(),
            };
            resize(&pool, "disk.vhd", Gate::open(), &options, &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap();
            // In between the guest writes to a block that is new.
            if size == SIZES[1] {
                let disk = Vhd::open(&pool, "disk.vhd", Access::ReadWrite, Gate::open()).unwrap();
                disk.write_at(&[7; 4096], 16 * MIB - 8192).unwrap();
                disk.write_at(&[8; 4096], 20 * MIB).unwrap();
                disk.discard(20 * MIB, 4096).unwrap();
                disk.close().unwrap();
                raw.write_all_at(&[7; 4096], 16 * MIB - 8192).unwrap();
            }
            raw.set_len(size).unwrap();
            let info = ["info", "-f", "vpc", "--output=json", &path("disk.vhd")];
            if let Some(output) = run("qemu-img", &info) {
                let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                assert_eq!(info["virtual-size"], size, "{disk_type}");
                same_for_qemu(&dir);
            }
            if let Some(output) = run("vhdiinfo", &[&path("disk.vhd")]) {
                succeeds(&output);
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                // This one takes the original size for the size, and that
                // stays as it was when the disk was made.
                let said = [SIZES[0], size].map(|size| text.contains(&format!("({size} bytes)")));
                assert!(said.contains(&true), "{text}");
            }
        }
    }
}

#[test]
fn qemu_reads_an_imported_disk() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    write_raw(&dir.path().join("raw"), SIZES[1]);
    let pool = Pool::open(dir.path()).unwrap();
    let options = ImportOptions {
        disk_type: DiskType::Dynamic,
        size: None,
        sha256: None,
        unique_id: None,
        gate: Gate::open(),
    };
    let source = pool.open_read("raw").unwrap();
    import_raw(&source, &pool, "disk.vhd", &options, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let args = [
        "compare",
        "-f",
        "raw",
        "-F",
        "vpc",
        &path("raw"),
        &path("disk.vhd"),
    ];
    let Some(output) = run("qemu-img", &args) else {
        return;
    };
    succeeds(&output);
}

#[test]
fn libvhdi_knows_our_disks() {
    let _alone = alone();
    for (disk_type, name) in [(DiskType::Fixed, "Fixed"), (DiskType::Dynamic, "Dynamic")] {
        let dir = tempfile::tempdir().unwrap();
        make(&Pool::open(dir.path()).unwrap(), disk_type, SIZES[1]);
        let Some(output) = run("vhdiinfo", &[dir.path().join("disk.vhd").to_str().unwrap()]) else {
            return;
        };
        succeeds(&output);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(name), "{text}");
        assert!(text.contains(&format!("({} bytes)", SIZES[1])), "{text}");
    }
}

/// All bytes of `disk.vhd` as libvhdi has them, through its FUSE mount.
fn libvhdi_reads(dir: &tempfile::TempDir) -> Option<Vec<u8>> {
    let mount = dir.path().join("mount");
    std::fs::create_dir_all(&mount).unwrap();
    let disk = dir.path().join("disk.vhd");
    let (disk, mount) = (disk.to_str().unwrap(), mount.to_str().unwrap());
    let output = run("vhdimount", &[disk, mount])?;
    let image = Path::new(mount).join("vhdi1");
    let bytes = match output.status.success() {
        true => std::fs::read(&image).ok(),
        false => None,
    };
    let _ = Command::new("umount").arg(mount).output();
    if bytes.is_none() {
        skipped("vhdimount can't mount here");
    }
    bytes
}

/// Fixed, dynamic, resized and compacted ones.
#[test]
fn libvhdi_reads_our_disks() {
    let _alone = alone();
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        make(&pool, disk_type, SIZES[0]);
        write_raw(&dir.path().join("raw"), SIZES[0]);
        let expected = std::fs::read(dir.path().join("raw")).unwrap();
        let Some(found) = libvhdi_reads(&dir) else {
            return;
        };
        assert!(found == expected, "{disk_type}");
        // Longer and then as before: a table behind the blocks. (It does not
        // go by the current size, see above.)
        for size in [40 * MIB, SIZES[0]] {
            let options = ResizeOptions {
                size: DiskSize::from_bytes(size).unwrap(),
                force: false,
                search: ParentSearch::new(),
            };
            let mut go_on = |_| ControlFlow::Continue(());
            resize(&pool, "disk.vhd", Gate::open(), &options, &mut go_on).unwrap();
            let found = libvhdi_reads(&dir).unwrap();
            assert!(found == expected, "{disk_type} {size}");
        }
        if disk_type == DiskType::Dynamic {
            let options = CompactOptions::default();
            let mut go_on = |_| ControlFlow::Continue(());
            compact(&pool, "disk.vhd", Gate::open(), &options, &mut go_on).unwrap();
            assert!(libvhdi_reads(&dir).unwrap() == expected);
            same_for_qemu(&dir);
        }
    }
}

#[test]
fn qemu_refuses_what_we_have_open() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::open(dir.path()).unwrap();
    make(&pool, DiskType::Dynamic, SIZES[0]);
    let path = dir.path().join("disk.vhd").to_str().unwrap().to_owned();
    // By `command`, as one argument.
    let qemu_io = |read_only: bool, command: &str| {
        let mut args = vec!["-f", "vpc", "-c", command, &path];
        if read_only {
            args.insert(0, "-r");
        }
        run("qemu-io", &args)
    };
    let open = |access| Vhd::open(&pool, "disk.vhd", access, Gate::open());
    let refused = |output: Option<Output>| {
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains("lock"), "{text}");
    };
    let Some(output) = qemu_io(false, "read 0 512") else {
        return;
    };
    succeeds(&output);
    let writer = open(Access::ReadWrite).unwrap();
    refused(qemu_io(false, "write 0 512"));
    refused(qemu_io(true, "read 0 512"));
    drop(writer);
    let reader = open(Access::ReadOnly).unwrap();
    refused(qemu_io(false, "write 0 512"));
    succeeds(&qemu_io(true, "read 0 512").unwrap());
    drop(reader);
    succeeds(&qemu_io(false, "write 0 512").unwrap());
}

/// And we refuse what QEMU has open, which it keeps as long as its input is
/// not at its end.
#[test]
fn we_refuse_what_qemu_has_open() {
    let _alone = alone();
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;

    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::open(dir.path()).unwrap();
    make(&pool, DiskType::Dynamic, SIZES[0]);
    let path = dir.path().join("disk.vhd");
    for (flag, reader_is_let_in) in [(None, false), (Some("-r"), true)] {
        let mut command = Command::new("qemu-io");
        command
            .args(flag)
            .args(["-f", "vpc"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut qemu = match command.spawn() {
            Ok(qemu) => qemu,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                skipped("qemu-io is not installed");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let mut input = qemu.stdin.take().unwrap();
        let mut output = BufReader::new(qemu.stdout.take().unwrap());
        // Once it answers, it has the disk open.
        input.write_all(b"read 0 512\n").unwrap();
        let mut line = String::new();
        while !line.contains("read 512/512") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "qemu-io ended");
        }
        let open = |access| Vhd::open(&pool, "disk.vhd", access, Gate::open());
        let error = open(Access::ReadWrite).unwrap_err();
        assert_eq!(error.kind(), OpenErrorKind::InUse, "{error}");
        assert_eq!(open(Access::ReadOnly).is_ok(), reader_is_let_in);
        input.write_all(b"quit\n").unwrap();
        drop(input);
        qemu.wait().unwrap();
        open(Access::ReadWrite).unwrap();
    }
}

#[test]
fn libvhdi_knows_our_children_and_their_parent() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::open(dir.path()).unwrap();
    make(&pool, DiskType::Dynamic, SIZES[0]);
    let parent = inspect(&pool, "disk.vhd").unwrap().unique_id;
    let options = ChildOptions::new();
    Vhd::create_child(&pool, "child.vhd", &pool, "disk.vhd", &options)
        .unwrap()
        .close()
        .unwrap();
    let Some(output) = run(
        "vhdiinfo",
        &[dir.path().join("child.vhd").to_str().unwrap()],
    ) else {
        return;
    };
    succeeds(&output);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("Differential"), "{text}");
    assert!(text.contains(&parent.to_string()), "{text}");
    assert!(text.contains("disk.vhd"), "{text}");
}
