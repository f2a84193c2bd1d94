//! create, info, check, repair, map, compare.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Folder, MIB, file_len, signal, wait, wait_for};

/// The names of an object's fields.
fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn a_disk_is_made_and_described() {
    let folder = Folder::new();
    let made = folder.json(&["create", "--type", "dynamic", "--size", "10GiB", "disk.vhd"]);
    assert_eq!(folder.names(), ["disk.vhd"]);
    assert!(file_len(&folder.path("disk.vhd")) < 100 << 10);
    let told = folder.json(&["info", "disk.vhd"]);
    assert_eq!(made, told);
    assert_eq!(
        keys(&told),
        [
            "allocated",
            "allocatedBlocks",
            "blockSize",
            "created",
            "creator",
            "creatorVersion",
            "diskType",
            "file",
            "fileSize",
            "fragments",
            "geometry",
            "headFooter",
            "lock",
            "originalSize",
            "savedState",
            "tailFooter",
            "uniqueId",
            "virtualSize",
        ]
    );
    assert_eq!(told["file"], json!(folder.path("disk.vhd")));
    assert_eq!(told["diskType"], "Dynamic");
    assert_eq!(told["virtualSize"], 10u64 << 30);
    assert_eq!(told["fileSize"], file_len(&folder.path("disk.vhd")));
    assert_eq!(told["originalSize"], 10u64 << 30);
    assert_eq!(told["creator"], "win");
    // Rounded down: 20805 * 16 * 63 sectors are 10 GiB but for 160.
    assert_eq!(
        told["geometry"],
        json!({"cylinders": 20805, "heads": 16, "sectors": 63})
    );
    assert_eq!(
        (&told["headFooter"], &told["tailFooter"]),
        (&json!("Good"), &json!("Good"))
    );
    assert_eq!(told["lock"], json!({}));
    assert_eq!(told["allocatedBlocks"], 0);
    assert_eq!(told["blockSize"], 2 << 20);
    let human = folder.vhd(&["info", "disk.vhd"]).ends(0).stdout;
    assert!(
        human.contains("\ntype:      dynamic\nsize:      10 GiB (10737418240 bytes)\n           20805 cylinders, 16 heads, 63 sectors\n"),
        "{human}"
    );
    assert!(
        human.contains("\nblocks:    0 of 5120, 2 MiB each\n"),
        "{human}"
    );
}

#[test]
fn a_fixed_disk_takes_its_space_at_once() {
    let folder = Folder::new();
    let made = folder.json(&["create", "--type", "fixed", "--size", "3M", "fixed.vhd"]);
    assert_eq!(made["diskType"], "Fixed");
    assert_eq!(made["fileSize"], 3 * MIB + 512);
    assert!(made.get("blockSize").is_none());
    if let Some(said) = folder.other(
        "qemu-img",
        &["info", "--output=json", "-f", "vpc", "fixed.vhd"],
    ) {
        assert_eq!(said.ends(0).json()["virtual-size"], 3 * MIB);
    }
}

#[test]
fn other_programs_see_what_was_made() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    if let Some(said) = folder.other(
        "qemu-img",
        &["info", "--output=json", "-f", "vpc", "disk.vhd"],
    ) {
        assert_eq!(said.ends(0).json()["virtual-size"], 8 * MIB);
    }
    if let Some(said) = folder.other("vhdiinfo", &["disk.vhd"]) {
        let said = said.ends(0);
        assert!(said.stdout.contains("Dynamic"), "{said:?}");
        assert!(said.stdout.contains("(8388608 bytes)"), "{said:?}");
    }
}

#[test]
fn quiet_commands_say_nothing_but_what_was_asked_for() {
    let folder = Folder::new();
    let said = folder
        .vhd(&["--quiet", "create", "--size", "3M", "disk.vhd"])
        .ends(0);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", ""));
    let said = folder.vhd(&["check", "-q", "disk.vhd"]).ends(0);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", ""));
    let said = folder.vhd(&["info", "--quiet", "disk.vhd"]).ends(0);
    assert!(said.stdout.contains("dynamic"), "{said:?}");
}

#[test]
fn a_disk_without_a_flaw_checks_well() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    assert_eq!(
        folder.json(&["check", "disk.vhd"]),
        json!({
            "file": folder.path("disk.vhd"),
            "worst": null,
            "diskType": "Dynamic",
            "allocatedBlocks": 2,
            "leakedBytes": 0,
            "findings": [],
            "counts": {},
        })
    );
    let said = folder.vhd(&["check", "disk.vhd"]).ends(0);
    assert_eq!(
        said.stdout,
        format!(
            "{}: dynamic, 2 blocks, 0 bytes leaked: no flaw\n",
            folder.path("disk.vhd").display()
        )
    );
    assert_eq!(said.stderr, "");
}

/// Points the entry of a block in the table somewhere else.
pub(crate) fn corrupt_entry(folder: &Folder, name: &str, block: u64, sector: u32) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(folder.path(name))
        .unwrap();
    let mut table = [0; 8];
    file.read_exact_at(&mut table, 512 + 16).unwrap();
    let at = u64::from_be_bytes(table) + 4 * block;
    file.write_all_at(&sector.to_be_bytes(), at).unwrap();
}

#[test]
fn a_damaged_disk_is_named_and_refused_and_saved() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    corrupt_entry(&folder, "disk.vhd", 2, 0x7fff_ffff);
    let said = folder.vhd(&["check", "disk.vhd"]).ends(2);
    assert!(
        said.stdout.starts_with("error: block 2: at byte "),
        "{said:?}"
    );
    let found = folder.vhd(&["--json", "check", "disk.vhd"]).ends(2).json();
    assert_eq!(found["worst"], "Error");
    assert_eq!(
        found["counts"],
        json!({"BlockPastEnd": 1, "SpaceLeaked": 1})
    );
    assert_eq!(found["findings"][0]["block"], 2);
    // Opening it, for writing above all.
    folder
        .vhd(&["serve", "--socket", "disk.sock", "disk.vhd"])
        .fails(
            2,
            &[
                "disk.vhd: the VHD is damaged",
                "`vhd check FILE`",
                "`vhd repair FILE NEW`",
            ],
        );
    let error: Value = serde_json::from_str(
        &folder
            .vhd(&["--json", "map", "disk.vhd"])
            .fails(2, &[])
            .stderr,
    )
    .unwrap();
    assert_eq!(keys(&error), ["error", "exitCode", "hint", "kind"]);
    assert_eq!(
        (&error["kind"], &error["exitCode"]),
        (&json!("damaged"), &json!(2))
    );
    // What is left is saved.
    let saved = folder.json(&["repair", "disk.vhd", "saved.vhd"]);
    assert_eq!(
        saved,
        json!({
            "file": folder.path("disk.vhd"),
            "target": folder.path("saved.vhd"),
            "copiedBytes": 2 * MIB,
            "lostBlocks": [2],
            "doubtfulBlocks": [],
        })
    );
    folder.vhd(&["check", "saved.vhd"]).ends(0);
    folder.raw("left.raw", 8 * MIB, &[(MIB, 1)]);
    folder
        .vhd(&["compare", "--against", "raw", "saved.vhd", "left.raw"])
        .ends(0);
}

#[test]
fn a_map_tells_data_zeros_and_holes() {
    let folder = Folder::new();
    // Whole blocks: whether the rest of one is a hole is the file system's.
    let block = |start: u64| (0..512).map(move |n| (start + n * 4096, 1));
    let pieces: Vec<_> = block(0).chain(block(4 * MIB)).collect();
    folder.raw("full.raw", 8 * MIB, &pieces);
    folder
        .vhd(&[
            "convert", "--from", "raw", "--to", "dynamic", "full.raw", "disk.vhd",
        ])
        .ends(0);
    let run = |start: u64, length: u64, data: bool| json!({"start": start, "length": length, "present": data, "zero": !data, "data": data});
    assert_eq!(
        folder.json(&["map", "disk.vhd"]),
        json!([
            run(0, 2 * MIB, true),
            run(2 * MIB, 2 * MIB, false),
            run(4 * MIB, 2 * MIB, true),
            run(6 * MIB, 2 * MIB, false),
        ])
    );
    assert_eq!(
        folder.vhd(&["map", "disk.vhd"]).ends(0).stdout,
        "           start           length kind\n\
         \x20              0          2097152 data\n\
         \x20        2097152          2097152 hole\n\
         \x20        4194304          2097152 data\n\
         \x20        6291456          2097152 hole\n"
    );
    folder.raw("disk.raw", 8 * MIB, &[(4 * MIB, 1)]);
    let runs = folder.json(&["map", "--from", "raw", "disk.raw"]);
    let len: u64 = runs
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["length"].as_u64().unwrap())
        .sum();
    assert_eq!(len, 8 * MIB);
}

#[test]
fn differences_are_found() {
    let folder = Folder::new();
    folder.disk("a.vhd");
    folder.raw("same.raw", 8 * MIB, &[(MIB, 1), (5 * MIB, 2)]);
    folder.raw("longer.raw", 9 * MIB, &[(MIB, 1), (5 * MIB, 2)]);
    folder.raw("other.raw", 8 * MIB, &[(MIB, 1), (5 * MIB, 3)]);
    folder.raw(
        "more.raw",
        9 * MIB,
        &[(MIB, 1), (5 * MIB, 2), (8 * MIB + 4096, 4)],
    );
    let answer = |offset: Option<u64>, second: u64| json!({"equal": offset.is_none(), "offset": offset, "firstSize": 8 * MIB, "secondSize": second});
    for (options, file, offset, second) in [
        (&[][..], "same.raw", None, 8 * MIB),
        (&[], "longer.raw", None, 9 * MIB),
        (&["--strict"], "longer.raw", Some(8 * MIB), 9 * MIB),
        (&[], "other.raw", Some(5 * MIB), 8 * MIB),
        (&[], "more.raw", Some(8 * MIB + 4096), 9 * MIB),
    ] {
        let arguments = [
            &["--json", "compare", "--against", "raw", "a.vhd", file],
            options,
        ]
        .concat();
        let said = folder.vhd(&arguments);
        let said = said.ends(if offset.is_some() { 5 } else { 0 });
        assert_eq!(said.json(), answer(offset, second), "{file}");
    }
    let said = folder
        .vhd(&["compare", "--from", "raw", "other.raw", "a.vhd"])
        .ends(5);
    assert_eq!(said.stdout, "they differ at byte 5242880\n");
}

/// Lets the command believe that no file system can reserve space.
fn without_fallocate(command: &mut Command) {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP as u32;
    let mut filter = [
        // The number of the system call comes first.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_fallocate as u32,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let set = move || {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the program and its steps live until the call returns.
        let result = unsafe {
            match libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) {
                0 => libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const program,
                ),
                failed => failed,
            }
        };
        match result {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(set) };
}

#[test]
fn a_fixed_disk_of_written_zeros_is_made_and_cancelled() {
    let folder = Folder::new();
    let create = |size: &str| {
        let create = ["create", "--type", "fixed", "--size", size, "disk.vhd"];
        let mut command = folder.command(&create);
        without_fallocate(&mut command);
        command
    };
    assert!(create("70M").status().unwrap().success());
    let path = folder.path("disk.vhd");
    assert_eq!(file_len(&path), 70 * MIB + 512);
    // All of its space is there.
    assert!(path.metadata().unwrap().blocks() * 512 >= 70 * MIB);
    std::fs::remove_file(&path).unwrap();
    // Long enough that the signal comes before its end.
    let mut child = create("4G").stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the zeros", || {
        let half = folder.path(".disk.vhd.new").metadata();
        half.is_ok_and(|half| half.len() > 0).then_some(())
    });
    signal(&child, rustix::process::Signal::INT);
    assert_eq!(wait(&mut child).code(), Some(130));
    assert_eq!(folder.names(), [""; 0]);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "vhd: cancelled; nothing was changed\n");
}
