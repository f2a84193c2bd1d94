//! convert.

use serde_json::json;

use crate::support::{Folder, MIB, signal, wait, wait_for};

#[test]
fn every_type_becomes_every_other() {
    let folder = Folder::new();
    let piece = |start: u64, byte: u8| (0..16).map(move |n| (start + n * 4096, byte));
    let pieces: Vec<_> = piece(MIB, 1).chain(piece(5 * MIB, 2)).collect();
    folder.raw("disk.raw", 8 * MIB, &pieces);
    let from_raw = folder.json(&[
        "convert",
        "--from",
        "raw",
        "--to",
        "dynamic",
        "disk.raw",
        "dynamic.vhd",
    ]);
    assert_eq!(
        from_raw,
        json!({
            "source": folder.path("disk.raw"),
            "target": folder.path("dynamic.vhd"),
            "size": 8 * MIB,
            "writtenBytes": 128 << 10,
        })
    );
    for (to, source, target) in [
        ("fixed", "dynamic.vhd", "fixed.vhd"),
        ("dynamic", "fixed.vhd", "again.vhd"),
        ("raw", "again.vhd", "again.raw"),
    ] {
        let copied = folder.json(&["convert", "--to", to, source, target]);
        assert_eq!(copied["writtenBytes"], 128 << 10, "{target}");
    }
    assert_eq!(
        std::fs::read(folder.path("again.raw")).unwrap(),
        std::fs::read(folder.path("disk.raw")).unwrap()
    );
    for vhd in ["dynamic.vhd", "fixed.vhd", "again.vhd"] {
        let arguments = ["compare", "-f", "raw", "-F", "vpc", "disk.raw", vhd];
        if let Some(said) = folder.other("qemu-img", &arguments) {
            said.ends(0);
        }
    }
    let larger = folder.json(&[
        "convert",
        "--from",
        "raw",
        "--to",
        "dynamic",
        "--size",
        "1GiB",
        "disk.raw",
        "larger.vhd",
    ]);
    assert_eq!(larger["size"], 1 << 30);
    folder
        .vhd(&["compare", "--from", "raw", "disk.raw", "larger.vhd"])
        .ends(0);
    for (arguments, part) in [
        (
            &["--from", "raw", "--to", "raw", "disk.raw", "x"][..],
            "--to dynamic",
        ),
        (
            &["--to", "raw", "--size", "1G", "fixed.vhd", "x"],
            "leave out --size",
        ),
        (
            &[
                "--from", "raw", "--to", "fixed", "--size", "4M", "disk.raw", "x",
            ],
            "choose a larger size",
        ),
        (
            &["--from", "raw", "--to", "fixed", "fixed.vhd", "x"],
            "not a raw image but a VHD",
        ),
    ] {
        folder
            .vhd(&[&["convert"], arguments].concat())
            .fails(1, &[part]);
    }
}

#[test]
fn ctrl_c_leaves_nothing() {
    let folder = Folder::new();
    // Long enough that the signal comes before its end.
    let pieces: Vec<_> = (0..2048).map(|n| (n * MIB, 1)).collect();
    folder.raw("disk.raw", 2048 * MIB, &pieces);
    std::fs::write(folder.path("old.vhd"), "old").unwrap();
    for (target, force) in [("new.vhd", None), ("old.vhd", Some("--force"))] {
        let arguments: Vec<_> = ["convert", "--from", "raw", "--to", "dynamic"]
            .into_iter()
            .chain(force)
            .chain(["disk.raw", target])
            .collect();
        let before = folder.names();
        let mut child = folder.command(&arguments).spawn().unwrap();
        // The half file, under its temporary name.
        wait_for("the new file", || (folder.names() != before).then_some(()));
        signal(&child, rustix::process::Signal::INT);
        assert_eq!(wait(&mut child).code(), Some(130), "{target}");
        assert_eq!(folder.names(), ["disk.raw", "old.vhd"]);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, "vhd: cancelled; nothing was changed\n");
    }
    assert_eq!(std::fs::read(folder.path("old.vhd")).unwrap(), b"old");
}
