//! An own control plane and somebody else's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use paddock_lab::{Fault, Lab, LabOptions, ServiceState, programs};

use crate::setup::{Stub, can_run, fault, kubectl, nothing_left, wait_for};

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
    its_own_kubeconfig_is_no_other_cluster(&lab);
    who_called_by_sudo_gets_the_kubeconfig(&lab);
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

fn its_own_kubeconfig_is_no_other_cluster(lab: &Lab) {
    let output = lab
        .command("up")
        .arg("--kubeconfig")
        .arg(lab.kubeconfig().unwrap())
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(message.contains("leave --kubeconfig out"), "{message}");
}

fn who_called_by_sudo_gets_the_kubeconfig(lab: &Lab) {
    let output = lab
        .command("up")
        .arg("--control-plane-only")
        .envs([("SUDO_UID", "1234"), ("SUDO_GID", "1235")])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let owner = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid())
    };
    assert_eq!(owner(lab.directory()), (1234, 1235));
    assert_eq!(owner(&lab.kubeconfig().unwrap()), (1234, 1235));
    assert_eq!(owner(&lab.directory().join("pki")), (0, 0));
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
