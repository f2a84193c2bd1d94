//! Labs as they really run: with an own control plane, and scripts in the place of operator and agent.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use paddock_lab::folder::LabFolder;
use paddock_lab::{
    Backend, Direction, Fault, HostState, HostStatus, Lab, LabOptions, ServiceState, programs,
};

/// An agent that counts seconds' tenths into a file of its run folder, and says how it was called.
const AGENT: &str = r#"#!/bin/bash
echo "called with: $*"
run=/run/paddock
while [ $# -gt 0 ]; do [ "$1" = --run-dir ] && run=$2; shift; done
mkdir -p "$run"
i=0
while :; do i=$((i + 1)); echo $i > "$run/.count" && mv "$run/.count" "$run/count"; sleep 0.1; done
"#;

/// Whether these tests can run; says why not.
fn can_run() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: namespaces and bridges need root");
        return false;
    }
    true
}

struct Stub {
    folder: tempfile::TempDir,
}

impl Stub {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["paddock-agent", "paddock-vmm", "paddock-operator"] {
            let path = folder.path().join(name);
            fs::write(&path, AGENT).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        Self { folder }
    }

    fn options(&self) -> LabOptions {
        LabOptions {
            backend: Backend::Hollow,
            memory_mib: Some(1024),
            operator: false,
            programs: Some(self.folder.path().to_owned()),
            program: Some(env!("CARGO_BIN_EXE_paddock-lab").into()),
            ..LabOptions::default()
        }
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn host(lab: &Lab, name: &str) -> HostStatus {
    lab.status()
        .unwrap()
        .hosts
        .into_iter()
        .find(|host| host.name == name)
        .unwrap()
}

fn kubectl(lab: &Lab, arguments: &[&str]) -> String {
    let output = lab
        .command("kubectl")
        .arg("--")
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn fault(lab: &Lab, fault: Fault) {
    lab.fault(fault.clone())
        .unwrap_or_else(|error| panic!("{fault:?}: {error:#}\n{}", lab.logs(20)));
}

fn count(lab: &Lab, name: &str) -> Option<u64> {
    lab.exec_ok(name, &["cat", "/run/paddock/count"])
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Exit code of an attempt to connect: 0 connected, 1 refused, 124 no answer.
fn connect(lab: &Lab, from: &str, to: &str, port: u16) -> Option<i32> {
    let script = format!(": < /dev/tcp/{to}/{port}");
    lab.exec(from, &["timeout", "2", "bash", "-c", &script])
        .unwrap()
        .status
        .code()
}

fn nothing_left(id: &str, folder: &Path) {
    let links = Command::new("ip")
        .args(["-br", "link"])
        .output()
        .unwrap()
        .stdout;
    assert!(!String::from_utf8_lossy(&links).contains(&format!("pdl-{id}")));
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = paddock_lab::cgroup::find_mount(&mountinfo).unwrap();
    assert!(!cgroups.join(format!("paddock-lab-{id}")).exists());
    assert!(!mountinfo.contains(&folder.display().to_string()));
    assert!(!folder.exists());
}

#[test]
fn hosts_live_and_die() {
    if !can_run() {
        return;
    }
    let stub = Stub::new();
    let lab = Lab::start(&stub.options()).unwrap();
    let status = lab.status().unwrap();
    let id = status.id.clone();
    assert!(status.api_ready);
    assert_eq!(
        status
            .hosts
            .iter()
            .map(|host| host.name.as_str())
            .collect::<Vec<_>>(),
        ["host-a", "host-b"]
    );
    assert_eq!(
        kubectl(&lab, &["get", "hosts", "-o", "name"]),
        "host.paddock.dev/host-a\nhost.paddock.dev/host-b\n"
    );

    // A host of its own: name, boot id, memory, links, files; and what hosts share.
    let a = host(&lab, "host-a");
    assert_eq!(lab.exec_ok("host-a", &["hostname"]).unwrap(), "host-a\n");
    let boot_id = |host: &str| {
        lab.exec_ok(host, &["cat", "/proc/sys/kernel/random/boot_id"])
            .unwrap()
    };
    assert_eq!(Some(boot_id("host-a").trim()), a.boot_id.as_deref());
    assert_ne!(boot_id("host-a"), boot_id("host-b"));
    assert!(
        lab.exec_ok("host-a", &["head", "-1", "/proc/meminfo"])
            .unwrap()
            .ends_with(" 1048576 kB\n")
    );
    assert_eq!(
        lab.exec_ok("host-a", &["ls", "/sys/class/net"]).unwrap(),
        "lan0\nlo\nmgmt0\n"
    );
    assert_eq!(
        lab.exec_ok(
            "host-a",
            &["ip", "-4", "-br", "address", "show", "dev", "lan0"]
        )
        .unwrap(),
        ""
    );
    lab.exec_ok(
        "host-a",
        &[
            "touch",
            "/var/lib/paddock/mine",
            "/var/lib/paddock/pools/shared/ours",
        ],
    )
    .unwrap();
    assert_eq!(
        lab.exec_ok("host-b", &["ls", "/var/lib/paddock"]).unwrap(),
        "pools\n"
    );
    assert_eq!(
        lab.exec_ok("host-b", &["ls", "/var/lib/paddock/pools/shared"])
            .unwrap(),
        "ours\n"
    );
    assert!(
        lab.exec_ok("host-a", &["cat", "/proc/1/cgroup"])
            .unwrap()
            .ends_with("0::/init\n")
    );
    assert_eq!(
        lab.exec("host-a", &["sh", "-c", "exit 7"])
            .unwrap()
            .status
            .code(),
        Some(7)
    );
    assert_eq!(
        lab.exec("host-a", &["sh", "-c", "kill -9 $$"])
            .unwrap()
            .status
            .code(),
        Some(137)
    );
    assert!(
        lab.exec("host-c", &["true"])
            .is_ok_and(|output| !output.status.success())
    );
    let log = fs::read_to_string(lab.directory().join("logs/host-a.log")).unwrap();
    assert!(log.contains(
        "called with: run --host host-a --kubeconfig /run/paddock-lab/kubeconfig --backend hollow --vmm /run/paddock-lab/bin/paddock-vmm"
    ));

    // A second `up` adds what is missing and leaves the rest alone.
    lab.up_again(&LabOptions {
        hosts: 3,
        ..stub.options()
    })
    .unwrap();
    lab.add_host("spare", Some(512)).unwrap();
    let names: Vec<String> = lab
        .status()
        .unwrap()
        .hosts
        .into_iter()
        .map(|host| host.name)
        .collect();
    assert_eq!(names, ["host-a", "host-b", "host-c", "spare"]);
    assert_eq!(
        (host(&lab, "host-a").boots, host(&lab, "host-a").boot_id),
        (1, a.boot_id.clone())
    );

    // Its agent.
    let agent = |lab: &Lab| host(lab, "host-a").agent;
    wait_for("the agent", || agent(&lab).pid.is_some());
    let first = agent(&lab).pid;
    fault(
        &lab,
        Fault::KillAgent {
            host: "host-a".into(),
        },
    );
    wait_for("another agent", || {
        agent(&lab).pid.is_some_and(|pid| Some(pid) != first)
    });
    assert_eq!(agent(&lab).restarts, 1);
    assert_eq!(agent(&lab).last_exit.as_deref(), Some("signal 9"));
    fault(
        &lab,
        Fault::StopAgent {
            host: "host-a".into(),
        },
    );
    assert_eq!(agent(&lab).state, ServiceState::Stopped);
    fault(
        &lab,
        Fault::StartAgent {
            host: "host-a".into(),
        },
    );
    assert_eq!(agent(&lab).state, ServiceState::Running);
    fault(
        &lab,
        Fault::PauseAgent {
            host: "host-a".into(),
        },
    );
    let stat = format!("/proc/{}/stat", agent(&lab).pid.unwrap());
    let state = || {
        lab.exec_ok("host-a", &["cat", &stat])
            .unwrap()
            .rsplit_once(") ")
            .unwrap()
            .1
            .chars()
            .next()
    };
    wait_for("a stopped agent", || state() == Some('T'));
    fault(
        &lab,
        Fault::ResumeAgent {
            host: "host-a".into(),
        },
    );
    wait_for("a running agent", || state() != Some('T'));

    // A frozen host runs nothing, yet is there.
    wait_for("a counting agent", || count(&lab, "host-b").is_some());
    fault(
        &lab,
        Fault::PauseHost {
            host: "host-b".into(),
        },
    );
    assert_eq!(host(&lab, "host-b").state, HostState::Paused);
    let frozen = count(&lab, "host-b");
    let before = count(&lab, "host-a").unwrap();
    wait_for("ten counts elsewhere", || {
        count(&lab, "host-a").is_some_and(|now| now > before + 10)
    });
    assert_eq!(count(&lab, "host-b"), frozen);
    fault(
        &lab,
        Fault::ResumeHost {
            host: "host-b".into(),
        },
    );
    wait_for("counting again", || count(&lab, "host-b") > frozen);

    // A power cut: memory is lost, the disk is not.
    lab.exec_ok("host-a", &["touch", "/run/volatile"]).unwrap();
    fault(
        &lab,
        Fault::KillHost {
            host: "host-a".into(),
            stay_down: false,
        },
    );
    wait_for("another boot", || {
        host(&lab, "host-a").boots == 2 && host(&lab, "host-a").state == HostState::Running
    });
    assert_ne!(host(&lab, "host-a").boot_id, a.boot_id);
    wait_for("its files", || {
        lab.exec("host-a", &["test", "-e", "/var/lib/paddock/mine"])
            .unwrap()
            .status
            .success()
    });
    assert_eq!(
        lab.exec("host-a", &["test", "-e", "/run/volatile"])
            .unwrap()
            .status
            .code(),
        Some(1)
    );
    fault(
        &lab,
        Fault::PauseHost {
            host: "host-b".into(),
        },
    );
    fault(
        &lab,
        Fault::KillHost {
            host: "host-b".into(),
            stay_down: true,
        },
    );
    assert_eq!(host(&lab, "host-b").state, HostState::Down);
    assert!(!lab.exec("host-b", &["true"]).unwrap().status.success());
    fault(
        &lab,
        Fault::StartHost {
            host: "host-b".into(),
        },
    );
    wait_for("host-b", || count(&lab, "host-b").is_some());

    let directory = lab.directory().to_owned();
    lab.down().unwrap();
    nothing_left(&id, &directory);
}

/// Whether `at` knows the link address of `of`: it heard an ARP packet from there.
fn has_heard(lab: &Lab, at: &str, of: &str) -> bool {
    let known = lab
        .exec_ok(at, &["ip", "-j", "neigh", "show", "to", of])
        .unwrap();
    known.contains("lladdr")
}

#[test]
fn links_are_cut_and_mended() {
    if !can_run() {
        return;
    }
    let stub = Stub::new();
    let lab = Lab::start(&stub.options()).unwrap();
    let a = host(&lab, "host-a").address.to_string();
    let api = lab
        .exec_ok(
            "api",
            &["ip", "-4", "-o", "address", "show", "dev", "mgmt0"],
        )
        .unwrap();
    let api = api
        .split_whitespace()
        .nth(3)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(connect(&lab, "host-a", &api, 6443), Some(0));

    let silence = |direction| {
        fault(
            &lab,
            Fault::Cut {
                target: "host-a".into(),
                direction,
            },
        );
        for (at, of) in [("host-a", &api), ("api", &a)] {
            // Forgotten, so that only what passes now counts.
            lab.exec("host-a", &["ip", "neigh", "flush", "all"])
                .unwrap();
            lab.exec("api", &["ip", "neigh", "flush", "all"]).unwrap();
            assert_eq!(
                connect(&lab, at, of, 6443),
                Some(124),
                "{direction:?} from {at}"
            );
            let heard = (has_heard(&lab, "host-a", &api), has_heard(&lab, "api", &a));
            let expected = match (direction, at) {
                (Direction::ToApi, "api") => (true, false),
                (Direction::FromApi, "host-a") => (false, true),
                _ => (false, false),
            };
            assert_eq!(heard, expected, "{direction:?}, asked from {at}");
        }
        assert_eq!(host(&lab, "host-a").cut, Some(direction));
        assert_eq!(connect(&lab, "host-b", &api, 6443), Some(0));
        fault(
            &lab,
            Fault::Heal {
                target: Some("host-a".into()),
            },
        );
        assert_eq!(host(&lab, "host-a").cut, None);
        // Waits out the failed neighbour entries of the silence.
        wait_for("the link", || {
            connect(&lab, "host-a", &api, 6443) == Some(0)
        });
    };
    silence(Direction::ToApi);
    silence(Direction::FromApi);
    silence(Direction::Both);

    // The LAN: nobody listens, so a refusal is the sign of life.
    for (name, address) in [("host-a", "192.168.77.1/24"), ("host-b", "192.168.77.2/24")] {
        lab.exec_ok(name, &["ip", "address", "add", address, "dev", "lan0"])
            .unwrap();
    }
    wait_for("the LAN", || {
        connect(&lab, "host-a", "192.168.77.2", 9) == Some(1)
    });
    assert_eq!(connect(&lab, "lab", "192.168.77.1", 9), Some(1));
    fault(
        &lab,
        Fault::CutLan {
            host: "host-a".into(),
        },
    );
    assert!(host(&lab, "host-a").lan_cut);
    assert_eq!(connect(&lab, "host-a", "192.168.77.2", 9), Some(124));
    assert_eq!(connect(&lab, "lab", "192.168.77.1", 9), Some(124));
    assert_eq!(connect(&lab, "lab", "192.168.77.2", 9), Some(1));
    // A cut outlives a reboot.
    fault(
        &lab,
        Fault::KillHost {
            host: "host-a".into(),
            stay_down: false,
        },
    );
    wait_for("host-a", || count(&lab, "host-a").is_some());
    assert!(host(&lab, "host-a").lan_cut);
    fault(&lab, Fault::Heal { target: None });
    assert!(!host(&lab, "host-a").lan_cut);
    assert!(
        lab.fault(Fault::CutLan {
            host: "nobody".into()
        })
        .is_err()
    );
    lab.down().unwrap();
}

#[test]
fn the_control_plane_comes_back() {
    if !can_run() {
        return;
    }
    let stub = Stub::new();
    let lab = Lab::start(&LabOptions {
        control_plane_only: true,
        ..stub.options()
    })
    .unwrap();
    kubectl(&lab, &["create", "namespace", "kept"]);
    for (fault_, service) in [
        (Fault::KillEtcd, "etcd"),
        (Fault::KillApiserver, "kube-apiserver"),
        (Fault::KillControllerManager, "kube-controller-manager"),
    ] {
        fault(&lab, fault_);
        wait_for(service, || {
            let status = lab.status().unwrap();
            let found = status
                .services
                .iter()
                .find(|found| found.name == service)
                .unwrap();
            status.api_ready && found.state == ServiceState::Running && found.restarts == 1
        });
    }
    fault(
        &lab,
        Fault::StopService {
            name: "apiserver".into(),
        },
    );
    assert!(!lab.status().unwrap().api_ready);
    fault(
        &lab,
        Fault::StartService {
            name: "apiserver".into(),
        },
    );
    wait_for("the API server", || lab.status().unwrap().api_ready);

    // The end of the supervisor is the end of all; the next `up` finds the data again.
    let id = lab.status().unwrap().id;
    let cgroups =
        paddock_lab::cgroup::find_mount(&fs::read_to_string("/proc/self/mountinfo").unwrap())
            .unwrap();
    let processes =
        || fs::read_to_string(cgroups.join(format!("paddock-lab-{id}/lab/cgroup.procs"))).unwrap();
    let first = processes()
        .lines()
        .map(|pid| pid.parse::<i32>().unwrap())
        .min()
        .unwrap();
    let pid = rustix::process::Pid::from_raw(first).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_for("the end of all", || processes().is_empty());
    assert!(
        lab.status()
            .unwrap_err()
            .to_string()
            .contains("does not run")
    );
    lab.up_again(&LabOptions {
        control_plane_only: true,
        ..stub.options()
    })
    .unwrap();
    assert_eq!(
        kubectl(&lab, &["get", "namespace", "kept", "-o", "name"]),
        "namespace/kept\n"
    );
    let (id, directory) = (lab.status().unwrap().id, lab.directory().to_owned());
    lab.down().unwrap();
    nothing_left(&id, &directory);
}

#[test]
fn somebody_elses_cluster_is_used_and_left_clean() {
    if !can_run() {
        return;
    }
    let stub = Stub::new();
    let theirs = Lab::start(&LabOptions {
        control_plane_only: true,
        ..stub.options()
    })
    .unwrap();
    let options = LabOptions {
        hosts: 1,
        hollow_hosts: 1,
        kubeconfig: Some(theirs.kubeconfig().unwrap()),
        ..stub.options()
    };
    let lab = Lab::start(&options).unwrap();
    assert_eq!(lab.kubeconfig().unwrap(), theirs.kubeconfig().unwrap());
    assert_ne!(
        lab.status().unwrap().subnet,
        theirs.status().unwrap().subnet
    );
    assert!(lab.status().unwrap().services.is_empty());
    assert_eq!(
        kubectl(&theirs, &["get", "hosts", "-o", "name"]),
        "host.paddock.dev/hollow-0001\nhost.paddock.dev/host-a\n"
    );
    let programs = programs::control_plane(None, &programs::checkout(None).unwrap()).unwrap();
    let kubectl_there = programs.join("kubectl").display().to_string();
    let who = [
        "auth",
        "whoami",
        "-o",
        "jsonpath={.status.userInfo.username}",
    ];
    let command = [
        &[
            kubectl_there.as_str(),
            "--kubeconfig",
            "/run/paddock-lab/kubeconfig",
        ],
        &who[..],
    ]
    .concat();
    assert_eq!(
        lab.exec_ok("host-a", &command).unwrap(),
        "system:serviceaccount:paddock-system:paddock-host-host-a"
    );
    lab.down().unwrap();
    assert_eq!(kubectl(&theirs, &["get", "hosts", "-o", "name"]), "");
    let accounts = kubectl(
        &theirs,
        &[
            "get",
            "serviceaccounts",
            "-n",
            "paddock-system",
            "-o",
            "name",
        ],
    );
    assert!(!accounts.contains("paddock-host-"), "{accounts}");
    assert!(kubectl(&theirs, &["get", "crds", "-o", "name"]).contains("hosts.paddock.dev"));

    // Its own control plane tells its clients by certificate.
    theirs
        .up_again(&LabOptions {
            hosts: 1,
            ..stub.options()
        })
        .unwrap();
    assert_eq!(
        theirs.exec_ok("host-a", &command).unwrap(),
        "paddock:host:host-a"
    );
    theirs.down().unwrap();
}

#[test]
fn what_is_missing_is_named() {
    if !can_run() {
        return;
    }
    let stub = Stub::new();
    fs::remove_file(stub.folder.path().join("paddock-agent")).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("lab");
    let options = LabOptions {
        hosts: 1,
        hollow_hosts: 2,
        operator: true,
        timeout_seconds: 10,
        directory: Some(directory.clone()),
        ..stub.options()
    };
    let error = Lab::start(&options).unwrap_err().to_string()
        + &format!("{:#}", Lab::start(&options).unwrap_err());
    for part in [
        "host-a: ",
        "hollow-0001: ",
        "paddock-agent does not exist",
        "operator is not ready",
    ] {
        assert!(error.contains(part), "{part:?} not in {error}");
    }
    assert!(!directory.exists());
}

#[test]
fn hollow_hosts_are_processes() {
    if !can_run() {
        return;
    }
    let stub = Stub::new();
    let lab = Lab::start(&LabOptions {
        hosts: 0,
        hollow_hosts: 3,
        ..stub.options()
    })
    .unwrap();
    let hosts = lab.status().unwrap().hosts;
    assert_eq!(hosts.len(), 3);
    assert!(
        hosts
            .iter()
            .all(|host| host.hollow && host.lease_held == Some(false))
    );
    let run = lab.directory().join("hollow/hollow-0002/run");
    wait_for("its agent", || run.join("count").exists());
    fs::write(run.join("session"), "x").unwrap();
    fault(
        &lab,
        Fault::KillAgent {
            host: "hollow-0002".into(),
        },
    );
    wait_for("another agent", || {
        host(&lab, "hollow-0002").agent.restarts == 1
    });
    assert!(run.join("session").exists());
    fault(
        &lab,
        Fault::KillHost {
            host: "hollow-0002".into(),
            stay_down: true,
        },
    );
    assert!(!run.join("session").exists());
    assert_eq!(host(&lab, "hollow-0002").state, HostState::Down);
    fault(
        &lab,
        Fault::StartHost {
            host: "hollow-0002".into(),
        },
    );
    assert_eq!(host(&lab, "hollow-0002").state, HostState::Running);
    assert!(
        lab.fault(Fault::PauseHost {
            host: "hollow-0002".into()
        })
        .unwrap_err()
        .to_string()
        .contains("hollow host")
    );

    // The operator's word is what `status` tells of leases.
    let lease = "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata:\n  name: hollow-0003\n  namespace: paddock-system\n  annotations:\n    lease.paddock.dev/state: Held\n";
    let mut apply = lab
        .command("kubectl")
        .args(["--", "apply", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    apply
        .stdin
        .take()
        .unwrap()
        .write_all(lease.as_bytes())
        .unwrap();
    assert!(apply.wait().unwrap().success());
    assert_eq!(host(&lab, "hollow-0003").lease_held, Some(true));
    lab.down().unwrap();
}

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
            "console_server",
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

#[test]
fn a_lab_that_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_paddock-lab");
    let run = |arguments: &[&str]| {
        Command::new(program)
            .arg("--dir")
            .arg(directory.path())
            .args(arguments)
            .output()
            .unwrap()
    };
    for command in [
        &["status"][..],
        &["kubeconfig"],
        &["logs"],
        &["exec", "host-a", "true"],
        &["fault", "heal"],
    ] {
        let output = run(command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("no lab in"),
            "{command:?}"
        );
    }
    assert!(run(&["down"]).status.success());
    fs::write(directory.path().join("file"), "x").unwrap();
    assert!(!run(&["down"]).status.success());
    assert!(directory.path().join("file").exists());
    assert!(
        LabFolder::new(directory.path())
            .unwrap()
            .marker()
            .unwrap()
            .is_none()
    );
}
