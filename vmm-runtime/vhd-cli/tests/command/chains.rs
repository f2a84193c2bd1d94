//! Differencing disks: create, info --chain, merge, reparent, undo.

use std::fs::{File, FileTimes};
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::serve::{serve, stop};
use crate::support::{Folder, MIB, signal, skipped, wait, wait_for};

/// A base, in a folder of its own, and a child.
fn pair() -> Folder {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.path("a/bases")).unwrap();
    folder.disk("a/bases/base.vhd");
    folder
        .vhd(&[
            "create",
            "--type",
            "differencing",
            "--parent",
            "a/bases/base.vhd",
            "a/child.vhd",
        ])
        .ends(0);
    folder
}

#[test]
fn a_chain_is_told() {
    let folder = pair();
    let chain = folder.json(&["info", "--chain", "a/child.vhd"]);
    let chain = chain["chain"].as_array().unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[0]["file"], json!(folder.path("a/child.vhd")));
    assert_eq!(chain[0]["diskType"], "Differencing");
    assert_eq!(chain[1]["file"], json!(folder.path("a/bases/base.vhd")));
    assert_eq!(chain[1]["diskType"], "Dynamic");
    let parent = &chain[0]["parent"];
    assert_eq!(parent["uniqueId"], chain[1]["uniqueId"]);
    assert_eq!(parent["name"], "base.vhd");
    assert_eq!(parent["relative"], ".\\bases\\base.vhd");
    assert_eq!(parent["absolute"], json!(folder.path("a/bases/base.vhd")));
}

#[test]
fn a_tree_that_was_moved_is_found() {
    let folder = pair();
    std::fs::create_dir(folder.path("a/children")).unwrap();
    folder
        .vhd(&[
            "create",
            "--type",
            "differencing",
            "--parent",
            "a/bases/base.vhd",
            "a/children/other.vhd",
        ])
        .ends(0);
    std::fs::rename(folder.path("a"), folder.path("b")).unwrap();
    for child in ["b/child.vhd", "b/children/other.vhd"] {
        folder.vhd(&["check", child]).ends(0);
        folder.vhd(&["compare", child, "b/bases/base.vhd"]).ends(0);
    }
}

#[test]
fn other_children_are_looked_for_in_the_folders_of_both_disks() {
    let folder = pair();
    let other = |rel: &str| {
        std::fs::create_dir_all(folder.path(rel).parent().unwrap()).unwrap();
        let create = ["create", "--type", "differencing", "--parent"];
        let arguments = [&create[..], &["a/bases/base.vhd", rel]].concat();
        folder.vhd(&arguments).ends(0);
    };
    other("b/child.vhd");
    other("a/bases/deep/other.vhd");
    let searched = format!(
        "(searched: all of {} and {})",
        folder.path("b").display(),
        folder.path("a/bases").display()
    );
    let found = folder.path("a/bases/deep/other.vhd").display().to_string();
    let refused = folder.vhd(&["merge", "b/child.vhd"]).ends(1);
    assert!(refused.stderr.contains(&found), "{refused:?}");
    assert!(refused.stderr.contains(&searched), "{refused:?}");
    std::fs::remove_file(folder.path("a/bases/deep/other.vhd")).unwrap();
    folder.vhd(&["merge", "b/child.vhd"]).ends(0);
    // One that is gone half-way is not taken for merged.
    std::fs::write(
        folder.path("a/child.vhd.merge"),
        "merge of a differencing VHD into its parent, version 1\n\
         child 00000000-0000-0000-0000-000000000001\n\
         parent 00000000-0000-0000-0000-000000000002\n\
         state begun\nend\n",
    )
    .unwrap();
    std::fs::remove_file(folder.path("a/child.vhd")).unwrap();
    folder
        .vhd(&["merge", "a/child.vhd"])
        .fails(1, &["the parent has a part of it"]);
}

#[test]
fn a_parent_that_was_moved_is_searched_and_reconnected() {
    let folder = pair();
    std::fs::create_dir(folder.path("elsewhere")).unwrap();
    let base = "elsewhere/base.vhd";
    std::fs::rename(folder.path("a/bases/base.vhd"), folder.path(base)).unwrap();
    folder.vhd(&["map", "a/child.vhd"]).fails(
        2,
        &[
            "its parent 'base.vhd'",
            "was not found",
            "--search",
            "vhd reparent",
        ],
    );
    folder.vhd(&["check", "a/child.vhd"]).ends(2);
    folder
        .vhd(&["map", "--search", "elsewhere", "a/child.vhd"])
        .ends(0);
    folder.vhd(&["reparent", "a/child.vhd", base]).ends(0);
    folder.vhd(&["check", "a/child.vhd"]).ends(0);
    assert_eq!(
        folder.json(&["info", "a/child.vhd"])["parent"]["relative"],
        ".\\..\\elsewhere\\base.vhd"
    );
    // A parent that changed.
    let later = SystemTime::now() + Duration::from_secs(60);
    File::options()
        .write(true)
        .open(folder.path(base))
        .unwrap()
        .set_times(FileTimes::new().set_modified(later))
        .unwrap();
    folder
        .vhd(&["serve", "--socket", "sock", "a/child.vhd"])
        .fails(
            2,
            &[
                &format!("its parent {} was modified", folder.path(base).display()),
                "vhd reparent",
            ],
        );
    folder.vhd(&["reparent", "a/child.vhd", base]).ends(0);
    folder.vhd(&["check", "a/child.vhd"]).ends(0);
    // Not to another disk.
    folder.disk("other.vhd");
    folder
        .vhd(&["reparent", "a/child.vhd", "other.vhd"])
        .fails(2, &["its parent is the disk"]);
    folder
        .vhd(&["reparent", "other.vhd", base])
        .fails(1, &["has no parent"]);
}

#[test]
fn a_child_is_merged() {
    let folder = pair();
    let copied = folder.json(&[
        "merge",
        "a/child.vhd",
        "--into",
        "all.vhd",
        "--type",
        "fixed",
    ]);
    assert_eq!(copied["target"], json!(folder.path("all.vhd")));
    assert_eq!(folder.json(&["info", "all.vhd"])["diskType"], "Fixed");
    folder.vhd(&["compare", "a/child.vhd", "all.vhd"]).ends(0);
    let merged = folder.json(&["merge", "a/child.vhd"]);
    assert_eq!(
        merged,
        json!({
            "file": folder.path("a/child.vhd"),
            "parent": folder.path("a/bases/base.vhd"),
            "mergedBytes": 0,
            "resumed": false,
        })
    );
    assert!(!folder.path("a/child.vhd").exists());
    folder
        .vhd(&["compare", "a/bases/base.vhd", "all.vhd"])
        .ends(0);
    folder
        .vhd(&["merge", "all.vhd"])
        .fails(1, &["has no parent to be merged into"]);
    folder
        .vhd(&["merge", "a/bases/base.vhd", "--type", "fixed"])
        .fails(1, &["--into"]);
}

#[test]
fn a_child_with_siblings_is_merged_only_when_they_are_abandoned() {
    let folder = Folder::new();
    folder.disk("base.vhd");
    let child = |name| {
        let create = ["create", "--type", "differencing", "--parent", "base.vhd"];
        folder.vhd(&[&create[..], &[name]].concat()).ends(0);
    };
    child("one.vhd");
    child("two.vhd");
    folder.vhd(&["merge", "one.vhd"]).fails(1, &["two.vhd"]);
    assert!(folder.path("one.vhd").exists());
    folder
        .vhd(&["merge", "one.vhd", "--abandon-others"])
        .ends(0);
    assert!(!folder.path("one.vhd").exists());
    folder
        .vhd(&["merge", "two.vhd", "--into", "all.vhd", "--abandon-others"])
        .fails(1, &["--into"]);
}

#[test]
fn changes_are_committed_or_discarded() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    let undo = folder.json(&["undo", "start", "disk.vhd"]);
    assert_eq!(undo["file"], json!(folder.path("disk.vud")));
    assert_eq!(undo["diskType"], "Differencing");
    assert_eq!(undo["virtualSize"], 8 * MIB);
    folder
        .vhd(&["undo", "start", "disk.vhd"])
        .fails(1, &["there is a file of that name already"]);
    folder
        .vhd(&["undo", "start", "disk.vud"])
        .fails(1, &["name the disk"]);
    let committed = folder.json(&["undo", "commit", "disk.vhd"]);
    assert_eq!(committed["file"], json!(folder.path("disk.vud")));
    assert_eq!(folder.names(), ["disk.vhd"]);
    folder
        .vhd(&["undo", "start", "--undo", "other.vud", "disk.vhd"])
        .ends(0);
    assert_eq!(
        folder.json(&["undo", "discard", "other.vud"]),
        json!({"file": folder.path("other.vud"), "discarded": true})
    );
    assert_eq!(folder.names(), ["disk.vhd"]);
    folder
        .vhd(&["undo", "discard", "disk.vhd"])
        .fails(1, &["disk.vud: there is no such file"]);
}

#[test]
fn a_disk_with_children_keeps_what_is_free() {
    let folder = pair();
    // Without a file system nothing is known to be free.
    folder.vhd(&["compact", "a/bases/base.vhd"]).ends(0);
    folder.vhd(&["check", "a/child.vhd"]).ends(0);
    folder
        .vhd(&["compact", "a/child.vhd"])
        .fails(1, &["child.vhd: "]);
    let disk = "a/bases/base.vhd";
    folder.vhd(&["compact", "--keep-free", disk]).ends(0);
    folder.vhd(&["check", "a/child.vhd"]).ends(0);
}

#[test]
fn a_merge_that_was_cut_off_is_ended_by_another() {
    let folder = Folder::new();
    folder.vhd(&["create", "--size", "1G", "base.vhd"]).ends(0);
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
    let (server, said) = serve(&folder, &["child.vhd"]);
    let uri = said["uri"].as_str().unwrap();
    let write = ["-f", "raw", "-c", "write -P 3 0 256M", uri];
    let written = folder.other("qemu-io", &write).map(|said| said.ends(0));
    stop(server);
    if written.is_none() {
        return;
    }
    folder
        .vhd(&["merge", "child.vhd", "--into", "all.vhd"])
        .ends(0);
    let mut merge = folder.command(&["merge", "child.vhd"]).spawn().unwrap();
    let over = wait_for("the record of the merge", || {
        let over = merge.try_wait().unwrap().is_some();
        (over || folder.path("child.vhd.merge").exists()).then_some(over)
    });
    if !over {
        signal(&merge, rustix::process::Signal::INT);
    }
    if wait(&mut merge).code() == Some(0) {
        skipped("the merge was over before the signal came");
        return;
    }
    assert_eq!(merge.wait().unwrap().code(), Some(130));
    let said = merge.wait_with_output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(
        said.contains("do the same again to bring it to its end"),
        "{said}"
    );
    // The child shows what it did.
    folder.vhd(&["compare", "child.vhd", "all.vhd"]).ends(0);
    let merged = folder.json(&["merge", "child.vhd"]);
    assert_eq!(merged["resumed"], true);
    assert_eq!(merged["parent"], json!(folder.path("base.vhd")));
    folder.vhd(&["compare", "base.vhd", "all.vhd"]).ends(0);
    assert_eq!(folder.names(), ["all.vhd", "base.vhd"]);
}
