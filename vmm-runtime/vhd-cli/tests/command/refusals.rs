//! What is refused, with which exit code and which words.

use crate::support::{Folder, MIB, signal, wait};
use std::io::{BufRead, BufReader};

#[test]
fn wrong_use_ends_with_1() {
    let folder = Folder::new();
    folder.vhd(&["--help"]).ends(0);
    folder.vhd(&["create", "--help"]).ends(0);
    folder.vhd(&["--version"]).ends(0);
    folder.vhd(&[]).fails(1, &["Usage"]);
    folder.vhd(&["frobnicate"]).fails(1, &["frobnicate"]);
    let said = folder.vhd(&["frobnicate", "--json"]).ends(1);
    let told: serde_json::Value = serde_json::from_str(&said.stderr).unwrap();
    assert_eq!(
        (&told["kind"], &told["exitCode"]),
        (&"wrongUse".into(), &1.into())
    );
    assert!(
        told["error"]
            .as_str()
            .unwrap()
            .starts_with("unrecognized subcommand 'frobnicate'"),
        "{told}"
    );
    // What has nothing to replace.
    for command in ["compact", "merge"] {
        folder
            .vhd(&[command, "--force", "disk.vhd"])
            .fails(1, &["--into <NEW>"]);
    }
    folder
        .vhd(&["info", "none.vhd"])
        .fails(1, &["vhd: none.vhd: there is no such file"]);
    folder
        .vhd(&["create", "--size", "1G", "none/disk.vhd"])
        .fails(1, &["none: there is no such folder"]);
    for (arguments, part) in [
        (&["disk.vhd"][..], "--size"),
        (&["--size", "10Gb", "disk.vhd"], "write 10GiB"),
        (&["--size", "1000", "disk.vhd"], "multiple of 512"),
        (
            &["--size", "512K", "disk.vhd"],
            "the smallest disk has 1 MiB",
        ),
        (
            &["--size", "2041GiB", "disk.vhd"],
            "the largest VHD has 2040 GiB",
        ),
        (&["--type", "differencing", "disk.vhd"], "--parent"),
        (&["--type", "linked", "disk.vhd"], "--device"),
        (
            &["--size", "1G", "--device", "/dev/x", "disk.vhd"],
            "--type linked",
        ),
        (
            &[
                "--type", "linked", "--device", "/dev/x", "--size", "1G", "disk.vhd",
            ],
            "leave out --size",
        ),
        (
            &["--type", "linked", "--device", "/dev/x", "disk.vhd"],
            "/dev/disk/by-id",
        ),
        (
            &["--size", "1G", "--parent", "x.vhd", "disk.vhd"],
            "--type differencing",
        ),
        (
            &[
                "--type",
                "differencing",
                "--parent",
                "x.vhd",
                "--size",
                "1G",
                "disk.vhd",
            ],
            "leave out --size",
        ),
    ] {
        folder
            .vhd(&[&["create"], arguments].concat())
            .fails(1, &[part]);
    }
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn other_formats_are_named() {
    let folder = Folder::new();
    let vmdk = [&b"KDMV"[..], &[1, 0, 0, 0]].concat();
    let qcow2 = [&b"QFI\xfb"[..], &[0, 0, 0, 3]].concat();
    for (mark, name) in [
        (&b"vhdxfile"[..], "a VHDX"),
        (&qcow2, "a qcow2 image"),
        (&vmdk, "a VMDK"),
        (b"# Disk DescriptorFile\n", "the descriptor of a VMDK"),
    ] {
        let mut bytes = vec![0; 1 << 20];
        bytes[..mark.len()].copy_from_slice(mark);
        std::fs::write(folder.path("image"), bytes).unwrap();
        for arguments in [
            &["info", "image"][..],
            &["map", "image"],
            &["compare", "image", "image"],
            &["convert", "--to", "raw", "image", "new"],
            &[
                "convert", "--from", "raw", "--to", "dynamic", "image", "new",
            ],
            &["merge", "image"],
            &["serve", "--socket", "sock", "image"],
            &[
                "create",
                "--type",
                "differencing",
                "--parent",
                "image",
                "new",
            ],
        ] {
            folder.vhd(arguments).fails(1, &[name]);
        }
        folder
            .vhd(&["info", "image"])
            .fails(1, &["`vhd convert --from raw`"]);
        assert_eq!(folder.names(), ["image"]);
    }
}

#[test]
fn a_raw_image_is_not_guessed() {
    let folder = Folder::new();
    folder.raw("disk.raw", MIB, &[(0, 7)]);
    folder
        .vhd(&["info", "disk.raw"])
        .fails(1, &["disk.raw", "`--from raw`"]);
    folder
        .vhd(&["convert", "--to", "dynamic", "disk.raw", "disk.vhd"])
        .fails(1, &["`--from raw`"]);
    assert_eq!(folder.names(), ["disk.raw"]);
}

#[test]
fn a_target_that_is_there_is_refused_or_replaced() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    folder.vhd(&["create", "--size", "3M", "old.vhd"]).ends(0);
    let old = folder.json(&["info", "old.vhd"]);
    let refusal = ["there is a file of that name already", "--force"];
    folder
        .vhd(&["create", "--size", "4M", "old.vhd"])
        .fails(1, &refusal);
    folder
        .vhd(&["convert", "--to", "raw", "disk.vhd", "old.vhd"])
        .fails(1, &refusal);
    assert_eq!(folder.json(&["info", "old.vhd"]), old);
    folder
        .vhd(&["create", "--size", "4M", "--force", "old.vhd"])
        .ends(0);
    assert_eq!(folder.json(&["info", "old.vhd"])["virtualSize"], 4 * MIB);
    folder
        .vhd(&["convert", "--to", "raw", "--force", "disk.vhd", "old.vhd"])
        .ends(0);
    folder
        .vhd(&["compare", "--against", "raw", "disk.vhd", "old.vhd"])
        .ends(0);
    folder
        .vhd(&["convert", "--to", "fixed", "--force", "disk.vhd", "old.vhd"])
        .ends(0);
    assert_eq!(folder.json(&["info", "old.vhd"])["diskType"], "Fixed");
    // Not over itself, under whatever name.
    std::os::unix::fs::symlink("disk.vhd", folder.path("link.vhd")).unwrap();
    for target in ["disk.vhd", "./disk.vhd", "link.vhd"] {
        folder
            .vhd(&["convert", "--to", "fixed", "--force", "disk.vhd", target])
            .fails(1, &["it is the source"]);
    }
    assert_eq!(folder.json(&["info", "disk.vhd"])["diskType"], "Dynamic");
    std::fs::create_dir(folder.path("folder")).unwrap();
    folder
        .vhd(&["create", "--size", "4M", "--force", "folder"])
        .fails(1, &["not a regular file"]);
    let failing = ["create", "--size", "9000P", "--force", "old.vhd"];
    folder.vhd(&failing).ends(1);
    assert_eq!(
        folder.names(),
        ["disk.vhd", "folder", "link.vhd", "old.vhd"]
    );
    assert_eq!(
        std::fs::read_dir(folder.path("")).unwrap().count(),
        5,
        "besides those, the lock file of the disk that was made first"
    );
}

#[test]
fn a_parent_of_the_source_is_not_replaced() {
    let folder = Folder::new();
    folder.disk("base.vhd");
    folder
        .vhd(&[
            "create",
            "--type",
            "differencing",
            "--parent",
            "base.vhd",
            "child.vhd",
        ])
        .ends(0);
    for arguments in [
        &[
            "convert",
            "--to",
            "dynamic",
            "--force",
            "child.vhd",
            "base.vhd",
        ][..],
        &["merge", "--force", "child.vhd", "--into", "base.vhd"],
        &[
            "create",
            "--type",
            "differencing",
            "--parent",
            "child.vhd",
            "--force",
            "base.vhd",
        ],
    ] {
        folder.vhd(arguments).fails(1, &["one of its parents"]);
    }
    folder.vhd(&["check", "child.vhd"]).ends(0);
}

#[test]
fn a_disk_in_use_ends_with_3() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    let mut server = folder
        .command(&["serve", "--socket", "sock", "disk.vhd"])
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    for arguments in [
        &["map", "disk.vhd"][..],
        &["check", "disk.vhd"],
        &["convert", "--to", "raw", "disk.vhd", "new"],
        &["create", "--size", "3M", "--force", "disk.vhd"],
        &["serve", "--socket", "other", "disk.vhd"],
    ] {
        folder
            .vhd(arguments)
            .fails(3, &[&format!("process {}", server.id())]);
    }
    // What it says of itself can be read all the same.
    let told = folder.json(&["info", "disk.vhd"]);
    assert_eq!(told["lock"]["open"], "ReadWrite");
    let by = format!("process {} ", server.id());
    assert!(
        told["lock"]["by"].as_str().unwrap().starts_with(&by),
        "{told}"
    );
    assert_eq!(folder.names(), ["disk.vhd", "sock"]);
    signal(&server, rustix::process::Signal::TERM);
    assert_eq!(wait(&mut server).code(), Some(0));
    assert_eq!(folder.names(), ["disk.vhd"]);
    folder.vhd(&["check", "disk.vhd"]).ends(0);
}

#[test]
fn no_room_ends_with_4() {
    let folder = Folder::new();
    // More than any machine of ours has.
    folder
        .vhd(&["create", "--type", "fixed", "--size", "2040GiB", "disk.vhd"])
        .fails(4, &["disk.vhd: the disk needs 2190433321472 bytes"]);
    assert_eq!(folder.names(), [""; 0]);
}
