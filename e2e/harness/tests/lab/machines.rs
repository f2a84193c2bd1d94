//! Finding a VM's processes and its console.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use paddock_lab::{Fault, Lab};

use crate::setup::{Stub, can_run, fault, wait_for};

const VM: &str = "/run/paddock/vms/0b7e3c1e-0000-4000-8000-000000000001";

/// Not a test of its own: what `machines_are_found` runs on a host as a VM's console.
#[test]
#[ignore = "run on a host by machines_are_found"]
fn console_server() {
    let listener = UnixListener::bind(Path::new(VM).join("console.sock")).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = [0; 64];
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return;
        }
        stream
            .write_all(&buffer[..count].to_ascii_uppercase())
            .unwrap();
    }
}

#[test]
fn machines_are_found() {
    if !can_run() {
        return;
    }
    let stub = Stub::new();
    let sleep = ["/bin/sleep", "/usr/bin/sleep"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.is_file())
        .unwrap();
    fs::copy(sleep, stub.folder.path().join("qemu-system-x86_64")).unwrap();
    // A monitor with a QEMU of two lives.
    let vmm = "#!/bin/bash\nmkdir -p $1; echo '{\"name\":\"default/web\"}' > $1/config.json; echo \"{\\\"pid\\\":$$}\" > $1/vmm.json\n\
               echo 'login: ' > $1/console.log\nwhile :; do /run/paddock-lab/bin/qemu-system-x86_64 1000; echo died >> $1/qemu.log; done\n";
    fs::write(stub.folder.path().join("paddock-vmm"), vmm).unwrap();
    let lab = Lab::start(&stub.options()).unwrap();
    assert!(
        lab.fault(Fault::KillVmm {
            vm: "web".into(),
            namespace: "default".into()
        })
        .unwrap_err()
        .to_string()
        .contains("no process")
    );
    let mut machine = lab
        .command("exec")
        .args(["host-b", "--", "/run/paddock-lab/bin/paddock-vmm", VM])
        .spawn()
        .unwrap();
    let named = |vm: &str| (vm.to_owned(), "default".to_owned());
    let kill_qemu = || {
        let (vm, namespace) = named("web");
        lab.fault(Fault::KillQemu { vm, namespace })
    };
    wait_for("QEMU to kill", || {
        kill_qemu().is_ok_and(|said| said.contains("on host-b"))
    });
    wait_for("its death", || {
        lab.exec("host-b", &["test", "-s", &format!("{VM}/qemu.log")])
            .unwrap()
            .status
            .success()
    });
    let (vm, _) = named("web");
    let elsewhere = lab.fault(Fault::KillVmm {
        vm: vm.clone(),
        namespace: "shop".into(),
    });
    assert!(elsewhere.unwrap_err().to_string().contains("shop/web"));

    // The console: the log first, then both ways, until Ctrl-].
    let me = std::env::current_exe().unwrap().display().to_string();
    let mut server = lab
        .command("exec")
        .args([
            "host-b",
            "--",
            &me,
            "--exact",
            "machines::console_server",
            "--ignored",
        ])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the console", || {
        lab.exec("host-b", &["test", "-S", &format!("{VM}/console.sock")])
            .unwrap()
            .status
            .success()
    });
    let mut console = lab
        .command("console")
        .arg("web")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut typed = console.stdin.take().unwrap();
    let mut shown = console.stdout.take().unwrap();
    typed.write_all(b"hello").unwrap();
    let mut text = vec![0; "login: \nHELLO".len()];
    shown.read_exact(&mut text).unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), "login: \nHELLO");
    typed.write_all(b"\x1d").unwrap();
    assert!(console.wait().unwrap().success());
    assert!(server.wait().unwrap().success());

    fault(
        &lab,
        Fault::KillVmm {
            vm,
            namespace: "default".into(),
        },
    );
    assert_eq!(machine.wait().unwrap().code(), Some(137));
    lab.down().unwrap();
}
