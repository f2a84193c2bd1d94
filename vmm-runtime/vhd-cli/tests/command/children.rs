//! Disks that have children: what is refused, and where they are looked for.

use std::fs;

use serde_json::json;

use crate::mount::{Mounts, can_mount, kill_server};
use crate::serve::{serve, stop};
use crate::support::{Folder, MIB};

/// A base in `a`, and a child of it in `b`.
fn apart() -> Folder {
    let folder = Folder::new();
    fs::create_dir(folder.path("a")).unwrap();
    fs::create_dir(folder.path("b")).unwrap();
    folder.disk("a/base.vhd");
    child(&folder, "a/base.vhd", "b/child.vhd");
    folder
}

fn child(folder: &Folder, parent: &str, name: &str) {
    folder
        .vhd(&["create", "--type", "differencing", "--parent", parent, name])
        .ends(0);
}

#[test]
fn a_parent_is_not_written_to_unless_its_children_are_abandoned() {
    let folder = Folder::new();
    folder.disk("base.vhd");
    child(&folder, "base.vhd", "child.vhd");
    let socket = ["serve", "--socket", "sock"];
    folder.vhd(&[&socket[..], &["base.vhd"]].concat()).fails(
        1,
        &["it is the parent of", "child.vhd", "--abandon-children"],
    );
    if can_mount() {
        folder
            .vhd(&["mount", "--direct", "base.vhd"])
            .fails(1, &["it is the parent of", "child.vhd"]);
    }
    // Reading does no harm, nor does writing to the child.
    let (server, _) = serve(&folder, &["--read-only", "base.vhd"]);
    stop(server);
    let (server, _) = serve(&folder, &["child.vhd"]);
    stop(server);
    let (server, _) = serve(&folder, &["--abandon-children", "base.vhd"]);
    stop(server);
}

#[test]
fn an_undo_disk_that_was_kept_lies_beside_its_disk() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    fs::create_dir(folder.path("a")).unwrap();
    folder.disk("a/disk.vhd");
    let mounted = mounts.mount(&["a/disk.vhd"]);
    mounts.unmount(&["--keep", "a/disk.vhd"]);
    let undo = mounted["undo"].as_str().unwrap();
    assert_eq!(
        std::path::Path::new(undo).parent(),
        Some(folder.path("a").as_path())
    );
    folder
        .vhd(&["serve", "--socket", "sock", "a/disk.vhd"])
        .fails(1, &[undo]);
    folder.vhd(&["undo", "discard", undo]).ends(0);
}

#[test]
fn children_elsewhere_are_found_where_they_are_searched() {
    let folder = apart();
    let path = folder.path("b/child.vhd");
    let path = path.to_str().unwrap();
    let children = |arguments: &[&str]| {
        let told = folder.json(&[&["info", "--children", "a/base.vhd"], arguments].concat());
        told["children"].clone()
    };
    assert_eq!(children(&[]), json!([]));
    assert_eq!(children(&["--search", "b"]), json!([path]));
    let said = folder.vhd(&["info", "--children", "a/base.vhd"]).ends(0);
    assert!(
        said.stdout.contains("\nchildren:  none that is known\n"),
        "{said:?}"
    );
    let resize = ["resize", "--size", "16M", "--search", "b", "a/base.vhd"];
    folder.vhd(&resize).fails(1, &["it has children", path]);
    folder
        .vhd(&["serve", "--socket", "sock", "--search", "b", "a/base.vhd"])
        .fails(1, &["it is the parent of", path]);
    child(&folder, "a/base.vhd", "a/other.vhd");
    folder
        .vhd(&["merge", "--search", "b", "a/other.vhd"])
        .fails(1, &["would make other disks useless", path]);
    assert!(folder.path("a/other.vhd").exists());
    folder.vhd(&["check", "b/child.vhd"]).ends(0);
}

#[test]
fn an_undo_disk_is_not_committed_while_children_elsewhere_are_known() {
    let folder = apart();
    folder.vhd(&["undo", "start", "a/base.vhd"]).ends(0);
    let path = folder.path("b/child.vhd");
    folder
        .vhd(&["undo", "commit", "--search", "b", "a/base.vhd"])
        .fails(
            1,
            &["would make other disks useless", path.to_str().unwrap()],
        );
    assert!(folder.path("a/base.vud").exists());
    // Its own disk is no reason, in whichever folder it is looked for.
    fs::remove_file(path).unwrap();
    let commit = ["undo", "commit", "--search", "b", "--search", "a"];
    folder.vhd(&[&commit[..], &["a/base.vhd"]].concat()).ends(0);
    assert!(!folder.path("a/base.vud").exists());
}

#[test]
fn a_mount_is_not_committed_while_children_elsewhere_are_known() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    for name in ["a", "b"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    folder.disk("a/disk.vhd");
    child(folder, "a/disk.vhd", "b/child.vhd");
    let path = folder.path("b/child.vhd");
    let mounted = mounts.mount(&["a/disk.vhd"]);
    let undo = mounted["undo"].as_str().unwrap();
    folder
        .vhd(&["unmount", "--commit", "--search", "b", "a/disk.vhd"])
        .fails(
            1,
            &[
                "would make other disks useless",
                path.to_str().unwrap(),
                undo,
            ],
        );
    assert!(fs::exists(undo).unwrap());
    // It can be asked for again.
    fs::remove_file(path).unwrap();
    let unmounted = mounts.unmount(&["--commit", "--search", "b", "a/disk.vhd"]);
    assert_eq!(unmounted[0]["changes"], "committed");
    assert!(!fs::exists(undo).unwrap());
}

#[test]
fn what_is_free_is_kept_for_children_elsewhere() {
    let folder = Folder::new();
    fs::create_dir(folder.path("b")).unwrap();
    folder.raw("disk.raw", 16 * MIB, &[]);
    if folder
        .other("mkfs.ext4", &["-q", "-F", "disk.raw"])
        .is_none()
    {
        return;
    }
    folder
        .vhd(&[
            "convert", "--from", "raw", "--to", "dynamic", "disk.raw", "base.vhd",
        ])
        .ends(0);
    child(&folder, "base.vhd", "b/child.vhd");
    // One that is not below the base's folder.
    fs::create_dir(folder.path("a")).unwrap();
    fs::rename(folder.path("base.vhd"), folder.path("a/base.vhd")).unwrap();
    let compact = ["compact", "--search", "b", "a/base.vhd"];
    folder
        .vhd(&compact)
        .fails(1, &["it is the parent of", "child.vhd", "--keep-free"]);
    folder
        .vhd(&["compact", "--search", "b", "--keep-free", "a/base.vhd"])
        .ends(0);
}

#[test]
fn what_cannot_be_looked_at_is_told_and_passed_over() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    folder.disk("dead.vhd");
    // A file system whose server is dead, below the disk's folder.
    let mounted = mounts.mount(&["--direct", "dead.vhd"]);
    kill_server(&mounts, &mounted);
    let said = folder.vhd(&["compact", "disk.vhd"]);
    folder.vhd(&["unmount", "dead.vhd"]).ends(6);
    let said = said.ends(0);
    assert!(said.stderr.contains("could not be looked at"), "{said:?}");
}
