//! From apply to the page of a real guest, step by step.

use crate::{
    objects,
    report::{Figure, Report, percentile},
    watching::Readiness,
};
use anyhow::{Context, Result, ensure};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use paddock_crds::{
    VirtualHardDisk, VirtualMachine, VirtualMachineInstance, VirtualNetwork,
    virtual_machine_instance::InstancePhase,
};
use paddock_lab::{Fault, Lab, LabOptions};
use serde_json::json;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(120);

/// A machine and its disk from an image, applied together, five times.
pub async fn measure(quick: bool) -> Result<Report> {
    let rounds = if quick { 1 } else { 5 };
    let lab = objects::lab(LabOptions {
        hosts: 1,
        ..LabOptions::default()
    })?;
    let client = objects::client(&lab).await?;
    let networks: Api<VirtualNetwork> = Api::default_namespaced(client.clone());
    networks.create(&PostParams::default(), &serde_json::from_value(json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "VirtualNetwork", "metadata": {"name": "lab"},
        "spec": {"type": "Internal", "subnet": "192.168.50.0/24", "dhcp": {"mode": "Enabled"}},
    }))?).await?;
    let disks: Api<VirtualHardDisk> = Api::default_namespaced(client.clone());
    let machines: Api<VirtualMachine> = Api::default_namespaced(client.clone());
    let instances: Api<VirtualMachineInstance> = Api::default_namespaced(client.clone());
    let [
        mut imported,
        mut started,
        mut page,
        mut monitor,
        mut emulator,
    ] = [const { Vec::new() }; 5];
    for round in 0..rounds {
        let name = format!("guest-{round}");
        let mut disk_ready = Readiness::<VirtualHardDisk>::start(&client).await?;
        let mut machine_ready = Readiness::<VirtualMachine>::start(&client).await?;
        let others = disk_ready.until(0, DEADLINE).await?.len();
        let disk: VirtualHardDisk = serde_json::from_value(json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "VirtualHardDisk", "metadata": {"name": name},
            "spec": {"size": "1Gi", "source": {"image": {"pool": "images", "path": "tiny-linux.img"}}},
        }))?;
        let machine: VirtualMachine = serde_json::from_value(json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": name},
            "spec": {
                "memory": "192Mi",
                "disks": [{"name": "system", "bus": "Virtio", "virtualHardDiskRef": {"name": name}}],
                "networkAdapters": [{"name": "lan", "virtualNetworkRef": {"name": "lab"}}],
            },
        }))?;
        let start = Instant::now();
        disks.create(&PostParams::default(), &disk).await?;
        machines.create(&PostParams::default(), &machine).await?;
        let at = |seen: Instant| seen.saturating_duration_since(start).as_secs_f64() * 1e3;
        imported.push(at(*disk_ready
            .until(others + 1, DEADLINE)
            .await?
            .get(&name)
            .context("the disk")?));
        started.push(at(*machine_ready
            .until(1, DEADLINE)
            .await?
            .get(&name)
            .context("the machine")?));
        let found = machines.get_status(&name).await?;
        let address = found
            .status
            .and_then(|s| s.ip_address)
            .context("no address")?;
        wait_for_page(&lab, &address)?;
        page.push(start.elapsed().as_secs_f64() * 1e3);
        let (vm, namespace) = (name.clone(), "default".to_owned());
        monitor.push(restart(&lab, &instances, &name, Fault::KillVmm { vm, namespace }).await?);
        let (vm, namespace) = (name.clone(), "default".to_owned());
        emulator.push(restart(&lab, &instances, &name, Fault::KillQemu { vm, namespace }).await?);
        machines.delete(&name, &DeleteParams::default()).await?;
        let gone = Instant::now();
        while machines.get_opt(&name).await?.is_some() {
            ensure!(
                gone.elapsed() < DEADLINE,
                "{name} was not deleted within {} s",
                DEADLINE.as_secs()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    lab.down()?;
    let middle = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        percentile(values, 50)
    };
    let (imported, started, page) = (
        middle(&mut imported),
        middle(&mut started),
        middle(&mut page),
    );
    let (monitor, emulator) = (middle(&mut monitor), middle(&mut emulator));
    Ok(Report::new(
        "guest",
        quick,
        vec![
            Figure::new("apply -> disk imported", imported, "ms"),
            Figure::new(
                "disk imported -> guest's processors run",
                started - imported,
                "ms",
            ),
            Figure::new(
                "what is ours: apply -> guest's processors run",
                started,
                "ms",
            )
            .goal(1000.0),
            Figure::new(
                "firmware, boot loader and guest: -> page",
                page - started,
                "ms",
            ),
            Figure::new("apply -> page", page, "ms"),
            Figure::new("paddock-vmm killed -> processors run", monitor, "ms").goal(1000.0),
            Figure::new("QEMU killed next -> processors run", emulator, "ms").goal(1000.0),
        ],
    ))
}

/// Kills a process of a machine; milliseconds until its processors run again.
async fn restart(
    lab: &Lab,
    instances: &Api<VirtualMachineInstance>,
    name: &str,
    fault: Fault,
) -> Result<f64> {
    let status = async || Ok::<_, anyhow::Error>(instances.get_status(name).await?.status);
    let before = status().await?.context("the instance's status")?.restarts;
    let start = Instant::now();
    lab.fault(fault)?;
    loop {
        if let Some(now) = status().await?
            && now.restarts > before
            && now.phase == InstancePhase::Running
        {
            return Ok(start.elapsed().as_secs_f64() * 1e3);
        }
        ensure!(
            start.elapsed() < DEADLINE,
            "{name} did not run again within {} s",
            DEADLINE.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn wait_for_page(lab: &Lab, address: &str) -> Result<()> {
    let url = format!("http://{address}/");
    let start = Instant::now();
    loop {
        let asked = lab.exec(
            "host-a",
            &["curl", "--silent", "--fail", "--max-time", "1", &url],
        )?;
        if asked.status.success() {
            return Ok(());
        }
        ensure!(
            start.elapsed() < DEADLINE,
            "no page at {url} within {} s",
            DEADLINE.as_secs()
        );
    }
}
