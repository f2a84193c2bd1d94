//! Hosts with namespaces of their own, and hollow ones.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use paddock_lab::{Fault, HostState, Lab, LabOptions, ServiceState};

use crate::setup::{
    Stub, can_run, controllers, count, fault, host, kubectl, nothing_left, wait_for,
};

#[test]
fn hosts_live_and_die() {
    if !can_run() {
        return;
    }
    let stub = Stub::new();
    let controllers_before = controllers();
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
    assert_eq!(controllers(), controllers_before);
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
