//! Plugs pulled while guests serve pages.

use crate::{
    cluster::{Background, Context, Kubectl, program},
    guest::{self, BOOT, Guest, REACTION, Running, internal_network},
    runner::{Manner, Scenario},
    wait,
};
use anyhow::{Result, ensure};
use paddock_lab::Fault;
use serde_json::json;
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "no_guest_notices_killed_agent_operator_api_server",
        manner: Manner::Alone,
        run: control_dies,
    },
    Scenario {
        name: "a_second_operator_takes_over_and_hands_back",
        manner: Manner::Alone,
        run: second_operator,
    },
    Scenario {
        name: "machines_of_a_rebooted_host_return",
        manner: Manner::Alone,
        run: reboot,
    },
    Scenario {
        name: "deletes_wait_for_a_stopped_agent_and_guests_run_on",
        manner: Manner::Alone,
        run: stopped_agent,
    },
    Scenario {
        name: "a_delete_with_a_dead_agent_says_how_to_force_it",
        manner: Manner::Alone,
        run: dead_agent,
    },
];

/// A guest that shuts down, on two busy cores.
const GRACEFUL: Duration = Duration::from_secs(90);

fn unchanged(cx: &Context<'_>, name: &str, before: &Running) -> Result<()> {
    let now = guest::wait_page(cx, name, |_| true)?;
    ensure!(
        now.boots() == before.boots()
            && now.process_id == before.process_id
            && now.says["bootId"] == before.says["bootId"],
        "it noticed: {before:?} became {now:?}"
    );
    Ok(())
}

/// That what was killed works again: it takes an order.
fn obeys(cx: &Context<'_>, name: &str) -> Result<()> {
    for (policy, state) in [("Paused", "Paused"), ("Running", "Running")] {
        cx.kubectl.patch(
            &format!("vm/{name}"),
            &json!({"spec": {"runPolicy": policy}}),
        )?;
        cx.kubectl
            .wait_field(&format!("vm/{name}"), ".status.state", state, REACTION)?;
    }
    Ok(())
}

fn control_dies(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.apply(
        &(Guest {
            host: "host-a",
            ..Guest::new("c")
        }
        .yaml()
            + &internal_network(73)),
    )?;
    let before = guest::wait_running(cx, "c")?;
    for fault in [
        Fault::KillAgent {
            host: "host-a".into(),
        },
        Fault::KillOperator,
        Fault::KillApiserver,
    ] {
        let name = format!("{fault:?}");
        cx.lab.fault(fault)?;
        // From the host, not through the API: the page must answer all the while.
        wait::throughout(
            &format!("the page after {name}"),
            Duration::from_secs(4),
            || guest::ask(cx, &before.host, &before.address, "status").map(drop),
        )?;
        wait::until("the API server", REACTION, || {
            cx.kubectl.run(&["get", "--raw", "/readyz"]).map(drop)
        })?;
        cx.kubectl
            .wait_condition("host/host-a", "Ready", REACTION)?;
        unchanged(cx, "c", &before)?;
        obeys(cx, "c")?;
        unchanged(cx, "c", &before)?;
    }
    Ok(())
}

/// Ports of the lab's operator and of the second one.
const FIRST: u16 = 8080;
const SECOND: u16 = 8099;

/// What an operator serves at `path`.
fn operator_says(cx: &Context<'_>, port: u16, path: &str) -> Result<String> {
    let url = format!("http://127.0.0.1:{port}/{path}");
    let curl = [
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "4",
    ];
    cx.lab
        .exec_ok("operator", &[&curl[..], &[url.as_str()]].concat())
}

/// Waits until the Lease names `holder`, and the operators' metrics say the same.
fn wait_leader(cx: &Context<'_>, holder: &str, leads: &[(u16, bool)]) -> Result<()> {
    wait::until(&format!("{holder} to lead"), REACTION, || {
        let lease = ["get", "lease", "paddock-operator", "-n", "paddock-system"];
        let field = ["-o", "jsonpath={.spec.holderIdentity}"];
        let found = cx.kubectl.run(&[&lease[..], &field].concat())?;
        ensure!(found == holder, "the lease is held by {found:?}");
        for (port, leads) in leads {
            let metrics = operator_says(cx, *port, "metrics")?;
            let line = format!("paddock_operator_leader {}", u8::from(*leads));
            ensure!(
                metrics.lines().any(|l| l == line),
                "no {line:?} at port {port}"
            );
        }
        Ok(())
    })
}

fn second_operator(cx: &Context<'_>) -> Result<()> {
    let first = format!("lab-{}", cx.lab.status()?.id);
    wait_leader(cx, &first, &[(FIRST, true)])?;
    let kubeconfig = cx.lab.directory().join("pki/operator.kubeconfig");
    let operator = program("paddock-operator")?;
    let second = Background::start(
        cx.lab,
        "operator",
        &[
            &operator.to_string_lossy(),
            "run",
            "--kubeconfig",
            &kubeconfig.to_string_lossy(),
            "--listen",
            &format!("127.0.0.1:{SECOND}"),
            "--identity",
            "second",
        ],
    )?;
    wait::until("the second operator", REACTION, || {
        operator_says(cx, SECOND, "readyz").map(drop)
    })?;
    wait_leader(cx, &first, &[(FIRST, true), (SECOND, false)])?;

    let name = || "operator".to_owned();
    cx.lab.fault(Fault::PauseService { name: name() })?;
    let taken_over = works_under(cx, "second");
    cx.lab.fault(Fault::ResumeService { name: name() })?;
    taken_over?;
    // The first finds that it has been succeeded, and lets the second be.
    wait_leader(cx, "second", &[(FIRST, false), (SECOND, true)])?;
    operator_says(cx, FIRST, "healthz")?;
    operator_says(cx, SECOND, "healthz")?;
    drop(second);
    wait_leader(cx, &first, &[(FIRST, true)])?;
    obeys(cx, "second")
}

/// With the first operator paused: a machine is placed and started all the same.
fn works_under(cx: &Context<'_>, holder: &str) -> Result<()> {
    wait_leader(cx, holder, &[(SECOND, true)])?;
    let guest = Guest::unbooted("second");
    let objects = guest.empty_disk_yaml() + &guest.machine_yaml();
    cx.kubectl.apply(&(objects + &internal_network(90)))?;
    cx.kubectl.wait_condition("vm/second", "Ready", BOOT)
}

fn reboot(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.apply(
        &(Guest {
            host: "host-b",
            ..Guest::new("b")
        }
        .yaml()
            + &internal_network(74)),
    )?;
    let before = guest::wait_running(cx, "b")?;
    let boot_id = cx.kubectl.text("host/host-b", "/status/bootId")?;
    cx.lab.fault(Fault::KillHost {
        host: "host-b".into(),
        stay_down: false,
    })?;
    let after = guest::wait_page(cx, "b", |r| r.boots() == before.boots() + 1)?;
    ensure!(after.host == "host-b", "{after:?}");
    ensure!(
        cx.kubectl.text("host/host-b", "/status/bootId")? != boot_id,
        "the boot id stayed"
    );
    cx.kubectl.wait_condition("vm/b", "Ready", REACTION)
}

/// Two machines and a disk whose file has to be removed; the second machine in a namespace of its own.
struct OnHostB {
    namespace: Kubectl,
    stays: Running,
    goes: Running,
}

fn stopped_agent(cx: &Context<'_>) -> Result<()> {
    let k = &cx.kubectl;
    let other = format!("{}-2", cx.namespace());
    k.run(&["create", "namespace", &other])?;
    let stopped = with_stopped_agent(cx, &Kubectl::new(&cx.lab.kubeconfig()?, &other));
    // The runner removes its own namespace only.
    let removed = k.run(&[
        "delete",
        "namespace",
        &other,
        "--ignore-not-found",
        "--timeout=90s",
    ]);
    stopped.and(removed.map(drop))
}

fn with_stopped_agent(cx: &Context<'_>, other: &Kubectl) -> Result<()> {
    let k = &cx.kubectl;
    let here = |name: &str| Guest {
        host: "host-b",
        ..Guest::new(name)
    };
    k.apply(&(here("goes").yaml() + &here("stays").yaml() + &internal_network(83)))?;
    // Nothing to boot from: its processors run, and that counts.
    let elsewhere = Guest {
        host: "host-b",
        ..Guest::unbooted("elsewhere")
    };
    let empty = elsewhere.empty_disk_yaml() + &elsewhere.machine_yaml();
    other.apply(&(empty + &internal_network(84)))?;
    // A disk in a pool of the host's own, which its first machine has bound to it.
    let local = Guest {
        pool: "default",
        host: "host-b",
        ..Guest::unbooted("removed")
    };
    k.apply(
        &local
            .disk_yaml()
            .replace("spec:\n", "spec:\n  reclaimPolicy: Delete\n"),
    )?;
    k.apply(&local.machine_yaml())?;
    k.wait_condition("vhd/removed", "Ready", BOOT)?;
    k.run(&["delete", "vm", "removed", "--timeout=120s"])?;
    other.wait_condition("vm/elsewhere", "Ready", BOOT)?;
    let on_host_b = OnHostB {
        namespace: other.clone(),
        goes: guest::wait_running(cx, "goes")?,
        stays: guest::wait_running(cx, "stays")?,
    };

    let host = || "host-b".to_owned();
    cx.lab.fault(Fault::StopAgent { host: host() })?;
    let waiting = deletes_wait(cx, &on_host_b);
    cx.lab.fault(Fault::StartAgent { host: host() })?;
    waiting?;
    // By itself: nobody had to say that the host is off.
    for object in ["vm/goes", "vhd/removed"] {
        k.wait_gone(object, GRACEFUL)?;
    }
    let namespace = format!("namespace/{}", other.namespace());
    k.wait_gone(&namespace, GRACEFUL)?;
    wait::until("the release of the disk", REACTION, || {
        let attachment = k.text("vhd/goes", "/status/attachment")?;
        ensure!(attachment.is_empty(), "{attachment}");
        Ok(())
    })?;
    let pattern = format!("*{}*removed*", cx.namespace());
    let pool = "/var/lib/paddock/pools/default";
    let files = cx
        .lab
        .exec_ok("host-b", &["find", pool, "-path", &pattern])?;
    ensure!(files.is_empty(), "left behind: {files}");
    k.wait_condition("host/host-b", "Ready", REACTION)?;
    unchanged(cx, "stays", &on_host_b.stays)
}

/// With the agent of host-b stopped: guests run, deletions wait and say for what.
fn deletes_wait(cx: &Context<'_>, on_host_b: &OnHostB) -> Result<()> {
    let k = &cx.kubectl;
    k.wait_field("host/host-b", ".status.state", "Silent", REACTION)?;
    for running in [&on_host_b.goes, &on_host_b.stays] {
        guest::ask(cx, &running.host, &running.address, "status")?;
    }
    k.run(&["delete", "vm/goes", "vhd/removed", "--wait=false"])?;
    let namespace = on_host_b.namespace.namespace();
    k.run(&["delete", "namespace", namespace, "--wait=false"])?;
    let force =
        "Start its agent again, or if the host is off for good, set spec.outOfService.token";
    for (kubectl, object, reason, way_out) in [
        (k, "vm/goes", "WaitingForHost", force),
        (
            &on_host_b.namespace,
            "vm/elsewhere",
            "WaitingForHost",
            force,
        ),
        (
            k,
            "vhd/removed",
            "NoHostAvailable",
            "set reclaimPolicy to Retain",
        ),
    ] {
        let parts = ["host-b", way_out];
        kubectl.wait_reason(object, "Deleting", "True", reason, &parts, REACTION)?;
    }
    ensure!(
        !k.text("vhd/goes", "/status/attachment")?.is_empty(),
        "the disk was released without a proof"
    );
    // What is deleted runs on until its agent can end it properly.
    for running in [&on_host_b.goes, &on_host_b.stays] {
        guest::ask(cx, &running.host, &running.address, "status")?;
    }
    Ok(())
}

fn dead_agent(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.apply(
        &(Guest {
            host: "host-b",
            ..Guest::new("x")
        }
        .yaml()
            + &internal_network(75)),
    )?;
    // Until its page answers, which is once its count is on the disk.
    guest::wait_running(cx, "x")?;
    cx.lab.fault(Fault::KillHost {
        host: "host-b".into(),
        stay_down: true,
    })?;
    let forced = delete_and_force(cx);
    cx.lab.fault(Fault::StartHost {
        host: "host-b".into(),
    })?;
    forced?;
    // The host comes back, finds that nothing of it is wanted any more, and takes machines again.
    cx.kubectl
        .wait_condition("host/host-b", "Ready", REACTION)?;
    let later = Guest {
        host: "host-b",
        ..Guest::new("later")
    };
    let on_its_disk = later.machine_yaml().replace(
        "virtualHardDiskRef: {name: later}",
        "virtualHardDiskRef: {name: x}",
    );
    cx.kubectl.apply(&on_its_disk)?;
    let running = guest::wait_running(cx, "later")?;
    ensure!(running.boots() == 2, "{running:?}");
    Ok(())
}

fn delete_and_force(cx: &Context<'_>) -> Result<()> {
    cx.kubectl.run(&["delete", "vm", "x", "--wait=false"])?;
    wait::until("what the deletion waits for", REACTION, || {
        let vm = cx.kubectl.get("vm/x")?;
        let text = vm["status"]["conditions"].to_string();
        ensure!(
            text.contains("host-b") && text.contains("outOfService"),
            "{text}"
        );
        Ok(())
    })?;
    ensure!(
        !cx.kubectl.text("vhd/x", "/status/attachment")?.is_empty(),
        "the disk was released without a proof"
    );
    cx.kubectl.patch(
        "host/host-b",
        &json!({"spec": {"outOfService": {"token": cx.namespace()}}}),
    )?;
    cx.kubectl.wait_gone("vm/x", REACTION)?;
    wait::until("the release of the disk", REACTION, || {
        ensure!(
            cx.kubectl.text("vhd/x", "/status/attachment")?.is_empty(),
            "still attached"
        );
        Ok(())
    })
}
