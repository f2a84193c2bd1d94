//! What an agent may not do, tried with its own credentials against the real API server.

use crate::{
    cluster::{Context, Kubectl},
    guest::{Guest, REACTION, internal_network},
    runner::{Manner, Scenario},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "an_agent_writes_only_the_status_of_its_own",
    manner: Manner::Beside,
    run: confined,
}];

/// `kubectl` with the kubeconfig that the agent on `host` has.
///
/// # Errors
/// When it cannot be read or copied.
pub fn as_agent(cx: &Context<'_>, host: &str, folder: &Path) -> Result<Kubectl> {
    let text = cx
        .lab
        .exec_ok(host, &["cat", "/run/paddock-lab/kubeconfig"])?;
    as_identity(cx, &folder.join(format!("{host}.kubeconfig")), &text)
}

fn as_identity(cx: &Context<'_>, file: &Path, text: &str) -> Result<Kubectl> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)?
        .write_all(text.as_bytes())?;
    Ok(cx.kubectl.as_identity(file))
}

/// Expects a refusal, by authorization or by the admission policy, that names what is wrong.
fn denied(agent: &Kubectl, arguments: &[&str], input: &str, part: &str) -> Result<()> {
    let output = agent.output(arguments, input)?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "allowed: {arguments:?}");
    ensure!(
        message.contains("orbidden") || message.contains("denied"),
        "{arguments:?}: {message}"
    );
    ensure!(
        message.contains(part),
        "{arguments:?}: expected {part:?} in {message}"
    );
    Ok(())
}

fn patch_status<'a>(kind: &'a str, name: &'a str, patch: &'a str) -> [&'a str; 7] {
    [
        "patch",
        kind,
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        patch,
    ]
}

/// That the agent of host-a writes the status of its own Host, not another's, and makes no other Host.
///
/// # Errors
/// When it may do more, or less.
pub fn only_its_own_host(agent: &Kubectl) -> Result<()> {
    let forged = r#"{"status":{"bootId":"x"}}"#;
    denied(
        agent,
        &patch_status("host", "host-b", forged),
        "",
        "the agent of host host-a may not write hosts of host host-b",
    )?;
    denied(
        agent,
        &["create", "-f", "-"],
        r#"{"apiVersion":"paddock.dev/v1alpha1","kind":"Host","metadata":{"name":"host-z"},"spec":{}}"#,
        "the agent of host host-a may not write hosts of host host-z",
    )?;
    agent
        .run(&patch_status("host", "host-a", r#"{"status":{}}"#))
        .context("its own Host")
        .map(drop)
}

/// A task that one host has done, and the other says it has.
fn forged_task(cx: &Context<'_>, folder: &Path) -> Result<()> {
    cx.kubectl.apply(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDisk\nmetadata: {name: checked}\nspec: {size: 4Mi, file: {pool: shared}}\n---\napiVersion: paddock.dev/v1alpha1\nkind: VirtualHardDiskTask\nmetadata: {name: checked}\nspec: {action: Check, virtualHardDiskRef: {name: checked}}\n",
    )?;
    cx.kubectl
        .wait_field("vhdtask/checked", ".status.state", "Succeeded", REACTION)?;
    let host = cx.kubectl.text("vhdtask/checked", "/status/host")?;
    let other = if host == "host-a" { "host-b" } else { "host-a" };
    let status = r#"{"status":{"message":"forged"}}"#;
    denied(
        &as_agent(cx, other, folder)?,
        &patch_status("vhdtask", "checked", status),
        "",
        &format!("the agent of host {other} may not write virtualharddisktasks of host {host}"),
    )
}

/// An agent of a DaemonSet has one service account on all nodes: its token says on which it is.
fn token_bound_to_a_node(cx: &Context<'_>, folder: &Path) -> Result<()> {
    let node = |what: &str| {
        cx.kubectl.run_with(
            &[what, "-f", "-"],
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"host-a"}}"#,
        )
    };
    node("apply")?;
    let tried = tokens(cx, folder);
    node("delete")?;
    tried
}

fn tokens(cx: &Context<'_>, folder: &Path) -> Result<()> {
    let create = [
        "create",
        "token",
        "paddock-agent",
        "--namespace=paddock-system",
    ];
    let bound = ["--bound-object-kind=Node", "--bound-object-name=host-a"];
    let file = folder.join("token.kubeconfig");
    let token = cx.kubectl.run(&[&create[..], &bound].concat())?;
    only_its_own_host(&as_identity(cx, &file, &with_token(cx, &token)?)?)?;
    let token = cx.kubectl.run(&create)?;
    denied(
        &as_identity(cx, &file, &with_token(cx, &token)?)?,
        &patch_status("host", "host-a", r#"{"status":{}}"#),
        "",
        "this agent's identity names no host",
    )
}

/// The administrator's kubeconfig with a token in the place of his certificate.
fn with_token(cx: &Context<'_>, token: &str) -> Result<String> {
    let view = ["config", "view", "--raw", "-o", "json"];
    let mut config: Value = serde_json::from_str(&cx.kubectl.run(&view)?)?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    Ok(config.to_string())
}

fn confined(cx: &Context<'_>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let agent = as_agent(cx, "host-a", folder.path())?;

    // One powered machine on each host, not booted to the end: their objects are what counts.
    cx.kubectl.apply(&internal_network(71))?;
    for (name, host) in [("own", "host-a"), ("foreign", "host-b")] {
        cx.kubectl.apply(
            &Guest {
                host,
                ..Guest::new(name)
            }
            .yaml(),
        )?;
    }
    for name in ["own", "foreign"] {
        cx.kubectl
            .wait_condition(&format!("vm/{name}"), "Ready", crate::guest::BOOT)?;
    }

    let denied = |arguments: &[&str], part: &str| denied(&agent, arguments, "", part);
    let status = r#"{"status":{"message":"forged"}}"#;
    denied(
        &[
            "patch",
            "vmi",
            "foreign",
            "--subresource=status",
            "--type=merge",
            "-p",
            status,
        ],
        "host-b",
    )?;
    denied(
        &[
            "patch",
            "host",
            "host-b",
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"bootId":"x"}}"#,
        ],
        "the agent of host host-a may not write hosts of host host-b",
    )?;
    // What a person has said of a host, and what the operator concluded.
    for part in [
        r#"{"status":{"hostEpoch":99}}"#,
        r#"{"status":{"outOfServiceToken":"off","outOfServiceEpoch":99}}"#,
        r#"{"status":{"committed":null,"storage":"none"}}"#,
        r#"{"status":{"conditions":[]}}"#,
    ] {
        denied(
            &[
                "patch",
                "host",
                "host-a",
                "--subresource=status",
                "--type=merge",
                "-p",
                part,
            ],
            "it may not change the operator's part of the status",
        )?;
    }
    // Its own Host may be made anew, but bare.
    for (metadata, spec) in [
        (r#","labels":{"zone":"vault"}"#, "{}"),
        ("", r#"{"outOfService":{"token":"off"}}"#),
        ("", r#"{"reserve":{"memory":"0"}}"#),
        ("", r#"{"uplinks":[{"name":"lan","interface":"eth0"}]}"#),
        (
            "",
            r#"{"pools":[{"name":"default","path":"/p","scope":"Shared"}]}"#,
        ),
        ("", r#"{"pools":[{"name":"vault","path":"/p"}]}"#),
    ] {
        let host = format!(
            r#"{{"apiVersion":"paddock.dev/v1alpha1","kind":"Host","metadata":{{"name":"host-a"{metadata}}},"spec":{spec}}}"#
        );
        let output = agent.output(&["create", "--validate=false", "-f", "-"], &host)?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && message.contains("an agent makes a bare Host"),
            "{host} made by an agent: {message}"
        );
    }
    only_its_own_host(&agent)?;
    forged_task(cx, folder.path())?;
    token_bound_to_a_node(cx, folder.path())?;
    // No spec of any kind, its own host's included, whether the object is there or not. Applied by the server, since
    // what may not be read is not patched by kubectl.
    for (kind, plural, name, spec) in [
        (
            "VirtualMachineInstance",
            "virtualmachineinstances",
            "own",
            r#"{"power":"Paused"}"#,
        ),
        ("Host", "hosts", "host-a", r#"{"pools":[]}"#),
        (
            "VirtualMachine",
            "virtualmachines",
            "own",
            r#"{"runPolicy":"Stopped"}"#,
        ),
        (
            "VirtualHardDisk",
            "virtualharddisks",
            "own",
            r#"{"size":"128Mi"}"#,
        ),
        (
            "VirtualNetwork",
            "virtualnetworks",
            "lab",
            r#"{"type":"Private"}"#,
        ),
        (
            "VirtualHardDiskTask",
            "virtualharddisktasks",
            "any",
            r#"{"action":"Delete"}"#,
        ),
    ] {
        let object = format!(
            r#"{{"apiVersion":"paddock.dev/v1alpha1","kind":"{kind}","metadata":{{"name":"{name}"}},"spec":{spec}}}"#
        );
        let output = agent.output(
            &[
                "apply",
                "--server-side",
                "--force-conflicts",
                "--validate=false",
                "-f",
                "-",
            ],
            &object,
        )?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success()
                && message.contains(&format!("cannot patch resource \"{plural}\"")),
            "{object} applied by an agent: {message}"
        );
    }
    for (kind, name) in [("virtualmachines", "own"), ("virtualnetworks", "lab")] {
        denied(
            &[
                "patch",
                kind,
                name,
                "--subresource=status",
                "--type=merge",
                "-p",
                status,
            ],
            &format!("resource \"{kind}"),
        )?;
    }
    let made = agent.output(&["create", "-f", "-"], &internal_network(72))?;
    let message = String::from_utf8_lossy(&made.stderr);
    ensure!(
        !made.status.success() && message.contains("cannot create resource \"virtualnetworks\""),
        "a network made by an agent: {message}"
    );
    denied(
        &[
            "patch",
            "vhd",
            "own",
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"diskEpoch":0}}"#,
        ],
        "cannot",
    )?;
    denied(&["delete", "vmi", "own"], "cannot delete")?;
    denied(&["get", "secrets", "--all-namespaces"], "cannot list")?;
    denied(
        &["delete", "lease", "host-a", "-n", "paddock-system"],
        "cannot delete",
    )?;

    // Leases: another host's, and a change of its own epoch, by replacing what is there.
    for (host, change, part) in [
        (
            "host-b",
            false,
            "the agent of host host-a may not renew the lease host-b",
        ),
        ("host-a", true, "may not change the epoch"),
    ] {
        let refused = crate::wait::until(
            &format!("a refusal for the lease of {host}"),
            REACTION,
            || {
                let lease =
                    agent.run(&["get", "lease", host, "-n", "paddock-system", "-o", "json"])?;
                let mut lease: serde_json::Value = serde_json::from_str(&lease)?;
                if change {
                    lease["metadata"]["annotations"]["lease.paddock.dev/epoch"] = "999".into();
                }
                let output = agent.output(
                    &["replace", "-n", "paddock-system", "-f", "-"],
                    &lease.to_string(),
                )?;
                ensure!(!output.status.success(), "allowed: {host}");
                let message = String::from_utf8_lossy(&output.stderr).into_owned();
                // The agent itself renews all the while: a conflict says nothing about permission.
                ensure!(
                    !message.contains("the object has been modified"),
                    "{message}"
                );
                Ok(message)
            },
        )?;
        ensure!(refused.contains(part), "expected {part:?} in {refused}");
    }

    // The same credentials may do what they are for: the test would prove nothing if they were simply invalid.
    let own = agent.get("vmi/own").context("its own instance")?;
    ensure!(own["spec"]["host"] == "host-a", "{own}");
    Ok(())
}
