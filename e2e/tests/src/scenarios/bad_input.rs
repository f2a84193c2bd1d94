//! What the API refuses at once, naming field, value and limit.

use crate::{
    cluster::Context,
    guest::REACTION,
    runner::{Manner, Scenario},
    wait,
};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "bad_input_is_refused_at_apply",
    manner: Manner::Beside,
    run: refused,
}];

fn yaml(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: bad}}\nspec: {spec}\n"
    )
}

fn refused(cx: &Context<'_>) -> Result<()> {
    let disk = |i: usize| format!("{{name: d{i}, virtualHardDiskRef: {{name: v{i}}}}}");
    let five = (0..5).map(disk).collect::<Vec<_>>().join(", ");
    let cases: &[(&str, String, &[&str])] = &[
        ("VirtualMachine", "{memory: 192Mi, memroy: 1}".into(), &["unknown field", "spec.memroy"]),
        ("VirtualMachine", "{memory: 192MB}".into(), &["spec.memory", "192MB", "between 16Mi and 4Ti"]),
        ("VirtualMachine", "{memory: 8Mi}".into(), &["spec.memory", "8Mi", "between 16Mi and 4Ti"]),
        ("VirtualMachine", "{memory: 64Mi, cpu: {cores: 33}}".into(), &["spec.cpu.cores", "33", "32"]),
        ("VirtualMachine", "{memory: 64Mi, runPolicy: Maybe}".into(), &["spec.runPolicy", "Maybe", "Stopped"]),
        ("VirtualMachine", format!("{{memory: 64Mi, disks: [{}, {}]}}", disk(1), disk(1)), &["spec.disks[1]", "Duplicate value", "d1"]),
        ("VirtualMachine", format!("{{memory: 64Mi, disks: [{five}]}}"), &["spec.disks", "IDE bus holds at most 4"]),
        ("VirtualMachine", "{memory: 64Mi, networkAdapters: [{name: a}, {name: a}]}".into(), &["spec.networkAdapters[1]", "Duplicate value"]),
        (
            "VirtualMachine",
            "{memory: 64Mi, networkAdapters: [{name: a, macAddress: '02:00:00:00:00:01'}, {name: b, macAddress: '02:00:00:00:00:01'}]}".into(),
            &["spec.networkAdapters", "macAddress may be used once"],
        ),
        ("VirtualMachine", "{memory: 64Mi, networkAdapters: [{name: a, macAddress: '01:00:00:00:00:01'}]}".into(), &["macAddress", "01:00:00:00:00:01"]),
        ("VirtualMachine", "{memory: 64Mi, boot: {kernel: {pool: images, path: ../vmlinuz}}}".into(), &["spec.boot.kernel.path", "../vmlinuz", "stay in its pool"]),
        ("VirtualHardDisk", "{size: 2041Gi}".into(), &["spec.size", "2041Gi", "2040Gi"]),
        ("VirtualHardDisk", "{size: 1Mi}".into(), &["spec.size", "1Mi", "3Mi"]),
        ("VirtualHardDisk", "{size: 1GB}".into(), &["spec.size", "1GB"]),
        ("VirtualHardDisk", "{}".into(), &["spec.size", "size is required"]),
        ("VirtualHardDisk", "{size: 1Gi, file: {path: a/../../b.vhd}}".into(), &["spec.file.path", "a/../../b.vhd", "stay in its pool"]),
        ("VirtualHardDisk", "{size: 1Gi, type: Sparse}".into(), &["spec.type", "Sparse", "Fixed"]),
        ("VirtualHardDisk", "{size: 1Gi, type: Differencing}".into(), &["spec.parentRef", "parentRef is required", "spec.size"]),
        ("VirtualHardDisk", "{source: {image: {pool: images, path: a.img, sha256: abc}}}".into(), &["sha256", "64"]),
        ("VirtualNetwork", "{type: Internal, subnet: 192.168.1.0/28}".into(), &["spec.subnet", "192.168.1.0/28", "/27"]),
        ("VirtualNetwork", "{type: Internal, subnet: 192.168.1.9/24}".into(), &["spec.subnet", "192.168.1.9/24"]),
        ("VirtualNetwork", "{type: External}".into(), &["spec.uplink", "uplink is required"]),
        ("VirtualNetwork", "{type: Internal, dhcp: {mode: Enabled}}".into(), &["spec.subnet", "subnet is required"]),
        ("Host", "{pools: [{name: p, path: relative}]}".into(), &["spec.pools[0].path", "relative"]),
    ];
    for (kind, spec, parts) in cases {
        cx.kubectl.refused(&yaml(kind, spec), parts)?;
    }
    for (bus, most) in [("SCSI", 28), ("Virtio", 16)] {
        let disks: Vec<String> = (0..=most)
            .map(|i| disk(i).replace("{name: d", &format!("{{bus: {bus}, name: d")))
            .collect();
        cx.kubectl.refused(
            &yaml(
                "VirtualMachine",
                &format!("{{memory: 64Mi, disks: [{}]}}", disks.join(", ")),
            ),
            &["spec.disks", &format!("{bus} holds at most {most} disks")],
        )?;
    }
    tasks(cx)?;
    changes(cx)
}

/// What a task of each action must and must not say.
fn tasks(cx: &Context<'_>) -> Result<()> {
    for (spec, part) in [
        ("action: Resize", "needs a size"),
        ("action: Resize, size: 1Mi", "size must be between"),
        ("action: Check, size: 1Gi", "belong to the action Resize"),
        (
            "action: Check, precompact: Enabled",
            "belong to the action Compact",
        ),
        ("action: Export", "needs a target"),
        (
            "action: Check, target: {pool: default, path: out.img}",
            "belong to the action Export",
        ),
        (
            "action: Export, target: {pool: default, path: ../a}",
            "stay in its pool",
        ),
        ("action: Polish", "Polish"),
    ] {
        let spec = format!("{{virtualHardDiskRef: {{name: none}}, {spec}}}");
        cx.kubectl
            .refused(&yaml("VirtualHardDiskTask", &spec), &[part])?;
    }
    Ok(())
}

/// A changed spec, and what its refusal says.
type Change = (&'static str, &'static str);

/// What may be made, but not be changed into something else.
fn changes(cx: &Context<'_>) -> Result<()> {
    // None of these is ever made: their pools, parents and images do not exist.
    let cases: &[(&str, &str, &[Change])] = &[
        (
            "VirtualHardDisk",
            "{size: 1Gi, file: {pool: none}, source: {image: {pool: none, path: a.img}}}",
            &[
                (
                    "{size: 1Gi, file: {pool: none}, source: {image: {pool: none, path: b.img}}}",
                    "source cannot be changed",
                ),
                (
                    "{size: 1Gi, file: {pool: other}, source: {image: {pool: none, path: a.img}}}",
                    "file cannot be changed",
                ),
                (
                    "{size: 1000Mi, file: {pool: none}, source: {image: {pool: none, path: a.img}}}",
                    "size can be raised, but not lowered",
                ),
                (
                    "{type: Differencing, parentRef: {name: none}, file: {pool: none}}",
                    "cannot become a differencing disk",
                ),
            ],
        ),
        (
            "VirtualHardDisk",
            "{type: Differencing, parentRef: {name: none}, file: {pool: none}}",
            &[(
                "{type: Differencing, parentRef: {name: other}, file: {pool: none}}",
                "parentRef cannot be changed",
            )],
        ),
        (
            "VirtualHardDiskTask",
            "{action: Check, virtualHardDiskRef: {name: none}}",
            &[(
                "{action: Compact, virtualHardDiskRef: {name: none}}",
                "a task cannot be changed",
            )],
        ),
        (
            "VirtualNetwork",
            "{type: Internal, subnet: 192.168.85.0/24}",
            &[
                (
                    "{type: Private, subnet: 192.168.85.0/24}",
                    "type cannot be changed",
                ),
                (
                    "{type: Internal, subnet: 192.168.86.0/24}",
                    "subnet cannot be changed",
                ),
            ],
        ),
    ];
    for (kind, spec, changes) in cases {
        cx.kubectl.apply(&yaml(kind, spec))?;
        for (changed, part) in *changes {
            // Replaced, as an edit does. The operator writes meanwhile: a conflict says nothing about the change.
            let what = format!("{kind} {spec} changed to {changed}: a refusal naming {part:?}");
            wait::until(&what, REACTION, || {
                let output = cx
                    .kubectl
                    .output(&["replace", "-f", "-"], &yaml(kind, changed))?;
                let message = String::from_utf8_lossy(&output.stderr);
                ensure!(!output.status.success(), "accepted");
                ensure!(message.contains(part), "{message}");
                Ok(())
            })?;
        }
        let object = format!("{}/bad", kind.to_lowercase());
        cx.kubectl.run(&["delete", &object, "--timeout=60s"])?;
    }
    Ok(())
}
