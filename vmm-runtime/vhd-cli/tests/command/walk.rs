//! A disk's life: files are put on it, a child changes them, it is merged,
//! compacted, and damaged.

use std::fs;

use crate::disks::corrupt_entry;
use crate::mount::{Mounts, can_mount};
use crate::support::{MIB, file_len};

/// Bytes that no compression or zero detection makes less of.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

#[test]
fn a_disk_lives() {
    if !can_mount() {
        return;
    }
    let mounts = Mounts::new();
    let folder = &mounts.folder;
    mounts.ext4("disk.vhd");
    let large = noise(24 << 20);
    mounts.mount(&["--direct", "disk.vhd", "mnt"]);
    fs::write(mounts.file("large"), &large).unwrap();
    fs::write(mounts.file("small"), "first").unwrap();
    mounts.unmount(&["mnt"]);
    folder
        .vhd(&[
            "create",
            "--type",
            "differencing",
            "--parent",
            "disk.vhd",
            "child.vhd",
        ])
        .ends(0);
    mounts.mount(&["--direct", "child.vhd", "mnt"]);
    assert!(fs::read(mounts.file("large")).unwrap() == large);
    fs::write(mounts.file("small"), "second").unwrap();
    fs::write(mounts.file("new"), "new").unwrap();
    mounts.unmount(&["mnt"]);
    let chain = folder.json(&["info", "--chain", "child.vhd"]);
    let types: Vec<_> = chain["chain"]
        .as_array()
        .unwrap()
        .iter()
        .map(|disk| disk["diskType"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["Differencing", "Dynamic"]);
    folder
        .vhd(&["compact", "disk.vhd"])
        .fails(1, &["child.vhd", "`vhd compact --keep-free FILE`"]);
    folder.vhd(&["compact", "--keep-free", "disk.vhd"]).ends(0);
    folder.vhd(&["check", "child.vhd"]).ends(0);
    // The parent has none of it yet.
    mounts.mount(&["--read-only", "disk.vhd", "mnt"]);
    assert_eq!(fs::read(mounts.file("small")).unwrap(), b"first");
    mounts.unmount(&["mnt"]);
    folder.vhd(&["merge", "child.vhd"]).ends(0);
    assert!(!folder.path("child.vhd").exists());
    mounts.mount(&["--direct", "disk.vhd", "mnt"]);
    assert_eq!(fs::read(mounts.file("small")).unwrap(), b"second");
    assert_eq!(fs::read(mounts.file("new")).unwrap(), b"new");
    assert!(fs::read(mounts.file("large")).unwrap() == large);
    fs::remove_file(mounts.file("large")).unwrap();
    mounts.unmount(&["mnt"]);
    let before = file_len(&folder.path("disk.vhd"));
    let compacted = folder.json(&["compact", "disk.vhd"]);
    let after = file_len(&folder.path("disk.vhd"));
    assert_eq!(compacted["oldSize"], before);
    assert_eq!(compacted["newSize"], after);
    assert_eq!(compacted["volumes"][0]["kind"], "ext4");
    assert!(after + 20 * MIB < before, "{before} {after} {compacted}");
    mounts.mount(&["--read-only", "disk.vhd", "mnt"]);
    assert_eq!(fs::read(mounts.file("small")).unwrap(), b"second");
    assert_eq!(fs::read(mounts.file("new")).unwrap(), b"new");
    mounts.unmount(&["mnt"]);
    folder.vhd(&["check", "disk.vhd"]).ends(0);
    corrupt_entry(folder, "disk.vhd", 3, 0x0fff_ffff);
    let said = folder.vhd(&["check", "disk.vhd"]).ends(2);
    assert!(said.stdout.contains("error: block 3: "), "{said:?}");
    folder.vhd(&["mount", "--direct", "disk.vhd", "mnt"]).fails(
        2,
        &["disk.vhd: the VHD is damaged", "vhd check", "vhd repair"],
    );
    assert_eq!(folder.json(&["mounts"]), serde_json::json!([]));
}
