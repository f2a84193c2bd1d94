//! Other ways to install: the chart, the demo, and somebody else's cluster.

use super::access;
use crate::{
    cluster::{Context, Kubectl, Skip},
    guest::{self, REACTION},
    runner::{Manner, Scenario},
};
use anyhow::{Context as _, Result, bail, ensure};
use paddock_lab::{Lab, LabOptions, folder::LabFolder};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "the_chart_installs_and_upgrades",
        manner: Manner::Alone,
        run: chart,
    },
    Scenario {
        name: "a_lab_runs_on_a_cluster_given_by_kubeconfig",
        manner: Manner::Alone,
        run: given_cluster,
    },
    Scenario {
        name: "the_demo_comes_twice_and_goes_whole",
        manner: Manner::Alone,
        run: demo,
    },
];

/// `e2e/demo.sh` with a lab in `folder`, in a shell that has exported what the demo said at its end.
fn run_demo(cx: &Context<'_>, folder: &Path, what: &str) -> Result<String> {
    let output = Command::new(cx.checkout()?.join("e2e/demo.sh"))
        .arg(what)
        .env("PADDOCK_LAB_DIR", folder)
        .env("KUBECONFIG", folder.join("kubeconfig"))
        .output()
        .context("demo.sh")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "demo.sh {what}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

fn demo(cx: &Context<'_>) -> Result<()> {
    for name in ["PADDOCK_BIN_DIR", "PADDOCK_CONTROL_PLANE", "PADDOCK_IMAGES"] {
        if std::env::var_os(name).is_none() {
            bail!(Skip(format!("{name} is not set: the demo would build")));
        }
    }
    let temporary = tempfile::tempdir()?;
    let folder = temporary.path().join("lab");
    let tried = demo_twice(cx, &folder);
    // Also what a failed start has left.
    let removed = run_demo(cx, &folder, "down");
    let id = tried?;
    removed?;
    let links = Command::new("ip").args(["-br", "link"]).output()?.stdout;
    ensure!(
        !String::from_utf8_lossy(&links).contains(&format!("pdl-{id}")),
        "the lab's link is left"
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(
        !mounts.contains(&*folder.to_string_lossy()),
        "mounts are left: {mounts}"
    );
    let groups = paddock_lab::cgroup::find_mount(&mounts)
        .context("no control groups")?
        .join(format!("paddock-lab-{id}"));
    ensure!(!groups.exists(), "{} is left", groups.display());
    ensure!(!folder.exists(), "{} is left", folder.display());
    let nothing = run_demo(cx, &folder, "down")?;
    ensure!(nothing.contains("nothing to remove"), "{nothing}");
    Ok(())
}

/// The id of the demo's lab.
fn demo_twice(cx: &Context<'_>, folder: &Path) -> Result<String> {
    let first = run_demo(cx, folder, "up")?;
    let advice = format!("KUBECONFIG={}", folder.join("kubeconfig").display());
    ensure!(
        first.contains(&advice),
        "{advice:?} is not advised: {first}"
    );
    let id = |lab: &LabFolder| Ok::<_, anyhow::Error>(lab.existing()?.id);
    let lab = LabFolder::new(folder)?;
    let made = id(&lab)?;
    let kubectl = Kubectl::new(&folder.join("kubeconfig"), "default");
    let processes = || {
        let path = "jsonpath={.items[*].status.processId}";
        kubectl.run(&["get", "vmi", "-o", path])
    };
    let before = processes()?;
    run_demo(cx, folder, "up")?;
    ensure!(
        id(&lab)? == made && processes()? == before,
        "the second demo disturbed the first"
    );
    // What it has put into PATH works as it says.
    let status = Command::new(folder.join("bin/paddock-lab"))
        .arg("status")
        .output()?;
    ensure!(status.status.success(), "{status:?}");
    Ok(made)
}

fn helm() -> Result<PathBuf> {
    match std::env::var_os("PADDOCK_HELM") {
        Some(path) => Ok(PathBuf::from(path).join("helm")),
        None => bail!(Skip(
            "PADDOCK_HELM does not name the folder of helm: run e2e/control-plane/build.sh --helm"
                .into()
        )),
    }
}

fn run(
    program: &std::path::Path,
    kubeconfig: &std::path::Path,
    arguments: &[&str],
) -> Result<String> {
    let output = Command::new(program)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(arguments)
        .output()
        .context("helm")?;
    ensure!(
        output.status.success(),
        "helm {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn chart(cx: &Context<'_>) -> Result<()> {
    let helm = helm()?;
    let lab = Lab::start(&LabOptions {
        hosts: 0,
        operator: false,
        control_plane_only: true,
        ..LabOptions::default()
    })?;
    let kubeconfig = lab.kubeconfig()?;
    let kubectl = Kubectl::new(&kubeconfig, "paddock-system");
    // The lab has applied CRDs and access itself: the chart has to bring them.
    for file in ["policies.yaml", "rbac.yaml"] {
        let path = cx.checkout()?.join("charts/paddock/files").join(file);
        kubectl.run(&[
            "delete",
            "-f",
            &path.to_string_lossy(),
            "--ignore-not-found",
        ])?;
    }
    kubectl.run(&["delete", "crd", "--all"])?;
    let chart = cx.checkout()?.join("charts/paddock");
    let chart = chart.to_string_lossy();
    let install = [
        "upgrade",
        "--install",
        "paddock",
        &chart,
        "--namespace",
        "paddock-system",
    ];
    run(&helm, &kubeconfig, &install)?;
    let crds = kubectl.run(&["get", "crd", "-o", "name"])?;
    ensure!(
        crds.lines().filter(|l| l.ends_with(".paddock.dev")).count() == 6,
        "{crds}"
    );
    kubectl.run(&[
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=30s",
    ])?;
    let deployment = kubectl.get("deployment/paddock-operator")?;
    ensure!(deployment["spec"]["replicas"] == 2, "{deployment}");
    kubectl.get("daemonset/paddock-agent")?;
    kubectl.get("validatingadmissionpolicy/paddock-agent-writes")?;

    run(
        &helm,
        &kubeconfig,
        &[&install[..], &["--set", "operator.replicas=3"]].concat(),
    )?;
    ensure!(
        kubectl.get("deployment/paddock-operator")?["spec"]["replicas"] == 3,
        "the upgrade changed nothing"
    );

    // An object survives the removal of the chart, because the CRDs do.
    kubectl.run(&[
        "apply",
        "-n",
        "default",
        "-k",
        &cx.checkout()?
            .join("manifests/quickstart")
            .to_string_lossy(),
    ])?;
    run(
        &helm,
        &kubeconfig,
        &[
            "uninstall",
            "paddock",
            "--namespace",
            "paddock-system",
            "--wait",
        ],
    )?;
    let machines = kubectl.run(&["get", "vm", "-n", "default", "-o", "name"])?;
    ensure!(
        machines.lines().count() == 2,
        "removing the chart removed machines: {machines:?}"
    );

    let elsewhere = run(
        &helm,
        &kubeconfig,
        &["template", "paddock", &chart, "--namespace", "elsewhere"],
    );
    let message = elsewhere.err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(
        message.contains("paddock-system"),
        "another namespace was accepted: {message}"
    );
    lab.down()
}

fn given_cluster(_: &Context<'_>) -> Result<()> {
    let cluster = Lab::start(&LabOptions {
        hosts: 0,
        operator: false,
        control_plane_only: true,
        ..LabOptions::default()
    })?;
    let kubeconfig = cluster.kubeconfig()?;
    let lab = Lab::start(&LabOptions {
        kubeconfig: Some(kubeconfig.clone()),
        ..LabOptions::default()
    })?;
    let kubectl = Kubectl::new(&kubeconfig, "default");
    for host in ["host-a", "host-b"] {
        kubectl.wait_condition(&format!("host/{host}"), "Ready", REACTION)?;
        let account = format!("serviceaccount/paddock-host-{host}");
        Kubectl::new(&kubeconfig, "paddock-system").get(&account)?;
    }
    let cx = Context { lab: &lab, kubectl };
    // Here it is a service account's name that says which host's agent it is.
    let folder = tempfile::tempdir()?;
    access::only_its_own_host(&access::as_agent(&cx, "host-a", folder.path())?)?;
    cx.kubectl
        .apply(&(guest::Guest::new("k").yaml() + &guest::internal_network(76)))?;
    guest::wait_running(&cx, "k")?;
    cx.kubectl
        .run(&["delete", "vm/k", "vhd/k", "vnet/lab", "--timeout=90s"])?;
    let kubectl = cx.kubectl.clone();
    lab.down()?;
    let hosts = kubectl.run(&["get", "hosts", "-o", "name"])?;
    ensure!(hosts.is_empty(), "the lab left hosts behind: {hosts}");
    cluster.down()
}
