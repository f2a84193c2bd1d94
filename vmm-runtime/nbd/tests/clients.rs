//! Clients of others in front of a dynamic disk: what they see and write is what is there.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use paddock_nbd::{Export, Server};
use paddock_vhd::{
    Access, BlockDevice, CreateOptions, DiskSize, DiskType, OpenError, OpenOptions, Pool, Vhd,
};

/// Four blocks of 2 MiB.
const SIZE: u64 = 8 << 20;
const MIB: usize = 1 << 20;

struct Served {
    directory: tempfile::TempDir,
    disk: Arc<Vhd>,
    server: Server,
}

fn serve(read_only: bool) -> Served {
    serve_with(read_only, false).unwrap()
}

/// `direct`: past the page cache. `None` if the file system can't.
fn serve_with(read_only: bool, direct: bool) -> Option<Served> {
    let directory = tempfile::tempdir().unwrap();
    let pool = Pool::open(directory.path()).unwrap();
    let size = DiskSize::from_bytes(SIZE).unwrap();
    let options = CreateOptions::new(DiskType::Dynamic, size);
    Vhd::create(&pool, "disk.vhd", &options)
        .unwrap()
        .close()
        .unwrap();
    let options = OpenOptions::new(Access::ReadWrite).direct(direct);
    let disk = match options.open(&pool, "disk.vhd") {
        Err(OpenError::Io { source, .. }) if source.kind() == ErrorKind::Unsupported => {
            return None;
        }
        opened => Arc::new(opened.unwrap()),
    };
    let exports = vec![Export {
        read_only,
        description: "a dynamic disk".to_owned(),
        ..Export::new("root", disk.clone())
    }];
    let server = Server::unix(&directory.path().join("s"), exports).unwrap();
    Some(Served {
        directory,
        disk,
        server,
    })
}

impl Served {
    fn uri(&self) -> String {
        let socket = self.directory.path().join("s");
        format!("nbd+unix:///root?socket={}", socket.display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What is on the disk, read without any client.
    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        self.disk.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// A block of data, a block that was never written to, half a block of data, a megabyte of zeros, a last block that
    /// was never written to.
    fn fill(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        for (at, byte) in bytes.iter_mut().enumerate() {
            if at < 2 * MIB || (4 * MIB..5 * MIB).contains(&at) {
                *byte = (at / 512 % 251 + 1) as u8;
            }
        }
        self.disk.write_at(&bytes[..2 * MIB], 0).unwrap();
        self.disk
            .write_at(&bytes[4 * MIB..5 * MIB], 4 << 20)
            .unwrap();
        assert!(self.content() == bytes);
        bytes
    }
}

/// Says so if the tool is missing.
fn have(tool: &str) -> bool {
    let found = Command::new(tool)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        skipped(format_args!("{tool} is not installed"));
    }
    found
}

fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).output().unwrap();
    let (said, complained) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {said}{complained}"
    );
    said.into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn nbdinfo_reads_what_is_offered() {
    if !have("nbdinfo") {
        return;
    }
    for read_only in [false, true] {
        let served = serve(read_only);
        let said = run("nbdinfo", &["--json", &served.uri()]);
        let info: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["structured"], true);
        assert_eq!(info["exports"].as_array().unwrap().len(), 1);
        let export = &info["exports"][0];
        assert_eq!(export["export-name"], "root");
        assert_eq!(export["description"], "a dynamic disk");
        assert_eq!(export["export-size"], SIZE);
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
        assert_eq!(export["is_read_only"], read_only);
        for can in ["can_cache", "can_df", "can_flush", "can_multi_conn"] {
            assert_eq!(export[can], true, "{can}");
        }
        for can in ["can_fua", "can_trim", "can_zero"] {
            assert_eq!(export[can], !read_only, "{can}");
        }
        assert_eq!(export["can_fast_zero"], false);
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 << 20);
        served.server.stop();
    }
}

#[test]
fn nbdinfo_and_qemu_see_where_the_holes_are() {
    let served = serve(true);
    served.fill();
    if have("nbdinfo") {
        let map: Vec<Vec<u64>> = run("nbdinfo", &["--map", &served.uri()])
            .lines()
            .map(|line| {
                let fields = line.split_whitespace().take(3);
                fields.map(|field| field.parse().unwrap()).collect()
            })
            .collect();
        let mib = MIB as u64;
        assert_eq!(
            map,
            [
                [0, 2 * mib, 0],
                [2 * mib, 2 * mib, 3],
                [4 * mib, mib, 0],
                // Allocated with its block, and never written to.
                [5 * mib, mib, 2],
                [6 * mib, 2 * mib, 3],
            ]
        );
    }
    if have("qemu-img") {
        let said = run("qemu-img", &["map", "--output=json", &served.uri()]);
        let map: serde_json::Value = serde_json::from_str(&said).unwrap();
        let zero: Vec<(u64, u64, bool)> = map
            .as_array()
            .unwrap()
            .iter()
            .map(|run| {
                (
                    run["start"].as_u64().unwrap() >> 20,
                    run["length"].as_u64().unwrap() >> 20,
                    run["zero"].as_bool().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            zero,
            [
                (0, 2, false),
                (2, 2, true),
                (4, 1, false),
                (5, 1, true),
                (6, 2, true),
            ]
        );
    }
    served.server.stop();
}

#[test]
fn nbdcopy_copies_out_and_in() {
    if !have("nbdcopy") {
        return;
    }
    let served = serve(false);
    let content = served.fill();
    let copy = served.file("copy");
    run("nbdcopy", &[&served.uri(), text(&copy)]);
    assert!(std::fs::read(&copy).unwrap() == content);

    let target = serve(false);
    run("nbdcopy", &["--flush", text(&copy), &target.uri()]);
    assert!(target.content() == content);
    // From one server to the other: all that was there is replaced, holes, too.
    target.disk.write_at(&[7; MIB], 6 << 20).unwrap();
    run("nbdcopy", &[&served.uri(), &target.uri()]);
    assert!(target.content() == content);
    served.server.stop();
    target.server.stop();
}

#[test]
fn qemu_img_converts_and_compares() {
    if !have("qemu-img") {
        return;
    }
    let served = serve(false);
    let content = served.fill();
    let copy = served.file("copy.raw");
    run(
        "qemu-img",
        &["convert", "-O", "raw", &served.uri(), text(&copy)],
    );
    assert!(std::fs::read(&copy).unwrap() == content);
    let compare = [
        "compare",
        "-f",
        "raw",
        "-F",
        "raw",
        text(&copy),
        &served.uri(),
    ];
    run("qemu-img", &compare);
    // In, over what is there: `-n` for a target that exists.
    let pattern: Vec<u8> = (0..SIZE as usize).map(|at| (at >> 20 & 1) as u8).collect();
    std::fs::write(&copy, &pattern).unwrap();
    let into = [
        "convert",
        "-n",
        "-f",
        "raw",
        "-O",
        "raw",
        text(&copy),
        &served.uri(),
    ];
    run("qemu-img", &into);
    assert!(served.content() == pattern);
    served.disk.write_at(&[9], 5 << 20).unwrap();
    let differs = Command::new("qemu-img").args(compare).output().unwrap();
    assert_eq!(differs.status.code(), Some(1));
    served.server.stop();
}

#[test]
fn qemu_io_writes_zeroes_and_discards() {
    if !have("qemu-io") {
        return;
    }
    let served = serve(false);
    served.fill();
    let mut arguments = vec!["-f", "raw", "--discard=unmap"];
    for command in [
        "write -P 0x5a -f 4096 8192",
        "write -z 65536 65536",
        "write -z -u 2M 2M",
        "discard 4M 2M",
        "flush",
        "read -P 0x5a 4096 8192",
        "read -P 0 4M 4M",
    ] {
        arguments.extend(["-c", command]);
    }
    let uri = served.uri();
    arguments.push(&uri);
    let said = run("qemu-io", &arguments);
    assert!(!said.contains("verification failed"), "{said}");
    let bytes = served.content();
    let only = |range: std::ops::Range<usize>, byte: u8| bytes[range].iter().all(|&b| b == byte);
    assert!(only(4096..12288, 0x5a));
    assert_eq!(bytes[12288], 25);
    assert!(only(65536..131072, 0));
    assert!(only(2 * MIB..8 * MIB, 0));
    served.server.stop();
}

#[test]
fn fio_reads_back_what_it_wrote() {
    let engines = Command::new("fio").arg("--enghelp").output();
    if !engines.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("nbd")) {
        skipped("fio with its nbd engine is not installed");
        return;
    }
    for direct in [false, true] {
        let Some(served) = serve_with(false, direct) else {
            skipped("the file system has no O_DIRECT");
            continue;
        };
        fio_verifies(served);
    }
}

fn fio_verifies(served: Served) {
    run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={}", served.uri()),
            "--rw=randwrite",
            "--bsrange=512-128k",
            "--iodepth=32",
            "--size=8m",
            "--verify=crc32c",
            "--verify_fatal=1",
            &format!("--aux-path={}", served.directory.path().display()),
        ],
    );
    assert!(served.content().iter().any(|&byte| byte != 0));
    served.server.stop();
}

/// Tells that a test can't run here, and why: past the test harness, which keeps
/// what a test prints that passes, while `e2e/test.sh` counts these lines.
fn skipped(why: impl std::fmt::Display) {
    // In one piece, among those of other tests.
    let line = format!("skipped: {why}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}
