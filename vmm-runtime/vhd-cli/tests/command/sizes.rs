//! resize, compact, clone, and repair in place.

use serde_json::json;

use crate::disks::corrupt_entry;
use crate::support::{Folder, MIB, file_len};

#[test]
fn a_disk_gets_another_size() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    folder.raw("expected.raw", 20 * MIB, &[(MIB, 1), (5 * MIB, 2)]);
    let resized = folder.json(&["resize", "--size", "20MiB", "disk.vhd"]);
    assert_eq!(
        resized,
        json!({"file": folder.path("disk.vhd"), "oldSize": 8 * MIB, "newSize": 20 * MIB})
    );
    assert_eq!(folder.json(&["info", "disk.vhd"])["virtualSize"], 20 * MIB);
    let compare = [
        "compare",
        "--strict",
        "--against",
        "raw",
        "disk.vhd",
        "expected.raw",
    ];
    folder.vhd(&compare).ends(0);
    folder
        .vhd(&["resize", "--size", "4M", "disk.vhd"])
        .fails(1, &["disk.vhd"]);
    folder.vhd(&compare).ends(0);
    folder
        .vhd(&["resize", "--size", "4M", "--cut-off", "disk.vhd"])
        .ends(0);
    assert_eq!(folder.json(&["info", "disk.vhd"])["virtualSize"], 4 * MIB);
    folder.vhd(&["check", "disk.vhd"]).ends(0);
    folder
        .vhd(&["resize", "--size", "4GB", "disk.vhd"])
        .fails(1, &["write 4GiB"]);
}

#[test]
fn a_clone_is_the_same_with_an_identity_of_its_own() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    let cloned = folder.json(&["clone", "disk.vhd", "clone.vhd"]);
    assert_eq!(cloned["target"], json!(folder.path("clone.vhd")));
    folder
        .vhd(&["compare", "--strict", "disk.vhd", "clone.vhd"])
        .ends(0);
    let id = |name: &str| folder.json(&["info", name])["uniqueId"].clone();
    assert_ne!(id("disk.vhd"), id("clone.vhd"));
    folder
        .vhd(&["clone", "disk.vhd", "clone.vhd"])
        .fails(1, &["--force"]);
    folder
        .vhd(&["clone", "--force", "disk.vhd", "disk.vhd"])
        .fails(1, &["it is the source"]);
}

#[test]
fn a_disk_is_compacted_in_its_place_or_beside_it() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    let before = file_len(&folder.path("disk.vhd"));
    let beside = folder.json(&["compact", "--into", "small.vhd", "disk.vhd"]);
    assert_eq!(beside["file"], json!(folder.path("small.vhd")));
    assert_eq!(beside["oldSize"], before);
    assert_eq!(
        (&beside["blocksBefore"], &beside["blocksAfter"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(file_len(&folder.path("disk.vhd")), before);
    folder.vhd(&["compare", "disk.vhd", "small.vhd"]).ends(0);
    folder
        .vhd(&["compact", "--into", "small.vhd", "disk.vhd"])
        .fails(1, &["--force"]);
    let placed = folder.json(&["compact", "--defragment", "--keep-free", "disk.vhd"]);
    assert_eq!(placed["file"], json!(folder.path("disk.vhd")));
    assert_eq!(placed["volumes"], json!([]));
    folder.vhd(&["check", "disk.vhd"]).ends(0);
    folder.vhd(&["compare", "disk.vhd", "small.vhd"]).ends(0);
    folder
        .vhd(&["create", "--type", "fixed", "--size", "3M", "fixed.vhd"])
        .ends(0);
    folder
        .vhd(&["compact", "fixed.vhd"])
        .fails(1, &["a fixed disk", "convert it"]);
    std::fs::create_dir(folder.path("elsewhere")).unwrap();
    folder
        .vhd(&["compact", "--into", "elsewhere/small.vhd", "disk.vhd"])
        .fails(1, &["within its folder"]);
}

#[test]
fn a_disk_is_repaired_where_it_is_and_that_undone() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    corrupt_entry(&folder, "disk.vhd", 2, 0x7fff_ffff);
    let damaged = std::fs::read(folder.path("disk.vhd")).unwrap();
    folder.vhd(&["repair", "disk.vhd"]).fails(1, &["<NEW>"]);
    let repaired = folder.json(&["repair", "--in-place", "disk.vhd"]);
    assert_eq!(repaired["lostBlocks"], json!([2]));
    assert_eq!(repaired["target"], json!(folder.path("disk.vhd")));
    folder.vhd(&["check", "disk.vhd"]).ends(0);
    assert_eq!(folder.names(), ["disk.vhd", "disk.vhd.repair"]);
    folder.vhd(&["repair", "--undo", "disk.vhd"]).ends(0);
    assert!(std::fs::read(folder.path("disk.vhd")).unwrap() == damaged);
    folder.vhd(&["check", "disk.vhd"]).ends(2);
    folder.vhd(&["repair", "--in-place", "disk.vhd"]).ends(0);
    folder.vhd(&["repair", "--forget", "disk.vhd"]).ends(0);
    assert_eq!(folder.names(), ["disk.vhd"]);
    folder
        .vhd(&["repair", "--undo", "disk.vhd"])
        .fails(1, &["no journal"]);
}
