//! serve.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Child;

use serde_json::Value;

use crate::support::{Folder, MIB, signal, skipped, wait};

/// A server, and the line by which it says that it serves.
pub(crate) fn serve(folder: &Folder, arguments: &[&str]) -> (Child, Value) {
    serve_at(folder, &["--socket", "sock"], arguments)
}

fn serve_at(folder: &Folder, at: &[&str], arguments: &[&str]) -> (Child, Value) {
    let arguments = [&["--json", "serve"], at, arguments].concat();
    let mut server = folder.command(&arguments).spawn().unwrap();
    let mut reader = BufReader::new(server.stdout.take().unwrap());
    let mut text = String::new();
    while !text.ends_with("}\n") {
        assert_ne!(reader.read_line(&mut text).unwrap(), 0, "{text}");
    }
    (server, serde_json::from_str(&text).unwrap())
}

pub(crate) fn stop(mut server: Child) {
    signal(&server, rustix::process::Signal::INT);
    assert_eq!(wait(&mut server).code(), Some(0));
}

#[test]
fn a_disk_is_served_and_written() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    let (server, said) = serve(&folder, &["disk.vhd"]);
    let uri = said["uri"].as_str().unwrap();
    assert_eq!(
        uri,
        format!("nbd+unix:///disk?socket={}", folder.path("sock").display())
    );
    assert_eq!(said["size"], 8 * MIB);
    let mode = folder.path("sock").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    folder.raw(
        "expected.raw",
        8 * MIB,
        &[(MIB, 1), (5 * MIB, 2), (7 * MIB, 9)],
    );
    let write = ["-f", "raw", "-c", "write -P 9 7M 4k", "-c", "flush", uri];
    let written = folder.other("qemu-io", &write).map(|said| said.ends(0));
    stop(server);
    assert!(!folder.path("sock").exists());
    folder.vhd(&["check", "disk.vhd"]).ends(0);
    if written.is_some() {
        folder
            .vhd(&["compare", "--against", "raw", "disk.vhd", "expected.raw"])
            .ends(0);
    }
}

#[test]
fn a_disk_is_served_past_the_page_cache() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    folder.raw(
        "expected.raw",
        8 * MIB,
        &[(MIB, 1), (5 * MIB, 2), (7 * MIB, 9)],
    );
    let probe = folder.vhd(&[
        "--json",
        "serve",
        "--uncached",
        "--socket",
        "none/sock",
        "disk.vhd",
    ]);
    if probe.stderr.contains("O_DIRECT") || probe.stderr.contains("nsupported") {
        skipped("a file system without O_DIRECT");
        return;
    }
    folder.raw("disk.raw", 8 * MIB, &[(MIB, 1), (5 * MIB, 2)]);
    let raw = ["--from", "raw", "disk.raw"];
    for (file, is_raw) in [(&["disk.vhd"][..], false), (&raw[..], true)] {
        let (server, said) = serve(&folder, &[&["--uncached"], file].concat());
        let uri = said["uri"].as_str().unwrap();
        let write = ["-f", "raw", "-c", "write -P 9 7M 4k", "-c", "flush", uri];
        let written = folder.other("qemu-io", &write).map(|said| said.ends(0));
        stop(server);
        if written.is_none() {
            return;
        }
        if is_raw {
            let read = |name| std::fs::read(folder.path(name)).unwrap();
            assert!(read("disk.raw") == read("expected.raw"));
        } else {
            folder
                .vhd(&["compare", "--against", "raw", "disk.vhd", "expected.raw"])
                .ends(0);
        }
    }
}

#[test]
fn a_disk_is_served_for_reading() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    let (server, said) = serve(&folder, &["--read-only", "disk.vhd"]);
    assert_eq!(said["readOnly"], true);
    // Other readers may come.
    folder.vhd(&["map", "disk.vhd"]).ends(0);
    let uri = said["uri"].as_str().unwrap();
    let write = ["-f", "raw", "-c", "write -P 9 7M 4k", uri];
    if let Some(said) = folder.other("qemu-io", &write) {
        assert_ne!(said.code, 0, "{said:?}");
    }
    stop(server);
}

#[test]
fn a_raw_image_is_served_when_it_is_called_one() {
    let folder = Folder::new();
    folder.raw("disk.raw", 8 * MIB, &[(MIB, 1)]);
    folder
        .vhd(&["serve", "--socket", "sock", "disk.raw"])
        .fails(1, &["`--from raw`"]);
    let (server, said) = serve(&folder, &["--from", "raw", "disk.raw"]);
    let uri = said["uri"].as_str().unwrap();
    folder
        .vhd(&["serve", "--socket", "other", "--from", "raw", "disk.raw"])
        .fails(3, &["in use"]);
    let arguments = ["info", "--output=json", "-f", "raw", uri];
    if let Some(said) = folder.other("qemu-img", &arguments) {
        assert_eq!(said.ends(0).json()["virtual-size"], 8 * MIB);
    }
    stop(server);
}

#[test]
fn a_raw_image_that_another_has_is_not_served() {
    let folder = Folder::new();
    folder.raw("disk.raw", 8 * MIB, &[(MIB, 1)]);
    let raw = ["serve", "--socket", "other", "--from", "raw"];
    let convert = ["convert", "--from", "raw", "--to", "dynamic"];
    let (server, _) = serve(&folder, &["--from", "raw", "disk.raw"]);
    folder
        .vhd(&[&convert[..], &["disk.raw", "new.vhd"]].concat())
        .fails(3, &["in use"]);
    let write = ["-f", "raw", "-c", "write 0 4k", "disk.raw"];
    let refused = folder.other("qemu-io", &write);
    stop(server);
    if let Some(said) = refused {
        assert!(said.stderr.contains("Failed to get"), "{said:?}");
        // And the other way around.
        let mut qemu = std::process::Command::new("qemu-io")
            .args(["-f", "raw", "disk.raw"])
            .current_dir(folder.path(""))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It asks when it has the image.
        qemu.stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut [0; 8])
            .unwrap();
        folder
            .vhd(&[&raw[..], &["disk.raw"]].concat())
            .fails(3, &["QEMU"]);
        qemu.kill().unwrap();
        qemu.wait().unwrap();
    }
    assert_eq!(folder.names(), ["disk.raw"]);
    // A disk is a disk, and has a disk's lock.
    folder.disk("disk.vhd");
    let (server, _) = serve(&folder, &["disk.vhd"]);
    folder
        .vhd(&[&raw[..], &["disk.vhd"]].concat())
        .fails(3, &[&format!("process {}", server.id())]);
    stop(server);
    folder
        .vhd(&[&raw[..], &["disk.vhd"]].concat())
        .fails(1, &["disk.vhd: ", "a VHD"]);
}

#[test]
fn a_port_that_was_chosen_is_told_though_quiet_and_so_is_what_fails() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    let arguments = ["--quiet", "serve", "--listen", "127.0.0.1:0", "disk.vhd"];
    let mut server = folder.command(&arguments).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let (_, uri) = line.trim_end().split_once(" at nbd://").unwrap();
    let address = uri.strip_suffix("/disk").unwrap();
    // Someone who doesn't speak the protocol.
    let mut client = std::net::TcpStream::connect(address).unwrap();
    client.write_all(&[0xff; 64]).unwrap();
    let _ = client.read_to_end(&mut Vec::new());
    signal(&server, rustix::process::Signal::INT);
    let said = server.wait_with_output().unwrap();
    assert_eq!(said.status.code(), Some(0));
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("WARN a connection ended"), "{said}");
}

#[test]
fn a_socket_in_use_stays_and_a_dead_one_goes() {
    let folder = Folder::new();
    folder.disk("a.vhd");
    folder.disk("b.vhd");
    let (server, _) = serve(&folder, &["a.vhd"]);
    folder
        .vhd(&["serve", "--socket", "sock", "b.vhd"])
        .fails(3, &["cannot listen at sock"]);
    let mut server = server;
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(folder.path("sock").exists());
    let (server, _) = serve(&folder, &["b.vhd"]);
    stop(server);
    std::fs::write(folder.path("sock"), "mine").unwrap();
    folder
        .vhd(&["serve", "--socket", "sock", "b.vhd"])
        .fails(3, &["cannot listen at sock"]);
    assert_eq!(std::fs::read(folder.path("sock")).unwrap(), b"mine");
}

#[test]
fn a_disk_is_served_at_a_port_of_this_machine() {
    let folder = Folder::new();
    folder.disk("disk.vhd");
    let (server, said) = serve_at(&folder, &["--listen", "127.0.0.1:0"], &["disk.vhd"]);
    let uri = said["uri"].as_str().unwrap();
    assert!(uri.starts_with("nbd://127.0.0.1:"), "{uri}");
    assert!(uri.ends_with("/disk") && !uri.contains(":0/"), "{uri}");
    let arguments = ["info", "--output=json", "-f", "raw", uri];
    if let Some(said) = folder.other("qemu-img", &arguments) {
        assert_eq!(said.ends(0).json()["virtual-size"], 8 * MIB);
    }
    stop(server);
    folder
        .vhd(&["serve", "--listen", "0.0.0.0:0", "disk.vhd"])
        .fails(1, &["served to this machine alone"]);
    folder
        .vhd(&["serve", "disk.vhd"])
        .fails(1, &["--socket or --listen"]);
}
