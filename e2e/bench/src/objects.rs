//! The objects that are measured.

use anyhow::{Context, Result, bail};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use paddock_crds::{Host, VirtualHardDisk, VirtualMachine, VirtualNetwork};
use paddock_lab::{Lab, LabOptions};
use serde_json::json;
use std::path::PathBuf;

/// Starts a lab with release programs where the environment names them.
pub fn lab(options: LabOptions) -> Result<Lab> {
    let programs = std::env::var_os("PADDOCK_BIN_DIR").map(PathBuf::from);
    let program = programs.as_ref().map(|folder| folder.join("paddock-lab"));
    Lab::start(&LabOptions {
        programs,
        program,
        timeout_seconds: 300,
        ..options
    })
}

/// The administrator's client.
pub async fn client(lab: &Lab) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()?).context("the lab's kubeconfig")?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Gives every host the pool `shared`, so that disks are made at once and bind no machine to a host.
pub async fn share_a_pool(client: &Client, lab: &Lab) -> Result<usize> {
    let hosts: Api<Host> = Api::all(client.clone());
    let list = hosts.list(&Default::default()).await?;
    let path = lab.directory().join("pools/shared");
    std::fs::create_dir_all(&path)?;
    for host in &list.items {
        let Some(name) = host.metadata.name.as_deref() else {
            bail!("a host without a name")
        };
        let mut pools = serde_json::to_value(&host.spec.pools)?;
        let known = host.spec.pools.iter().any(|p| p.name == "shared");
        if let (false, Some(pools)) = (known, pools.as_array_mut()) {
            pools.push(json!({"name": "shared", "path": path, "scope": "Shared"}));
        }
        hosts
            .patch(
                name,
                &PatchParams::default(),
                &Patch::Merge(json!({"spec": {"pools": pools}})),
            )
            .await?;
    }
    Ok(list.items.len())
}

/// A network that holds up to 4,000 addresses.
pub async fn network(client: &Client) -> Result<()> {
    let api: Api<VirtualNetwork> = Api::default_namespaced(client.clone());
    let network = serde_json::from_value(json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "VirtualNetwork", "metadata": {"name": "bench"},
        "spec": {"type": "Internal", "subnet": "172.30.0.0/20", "dhcp": {"mode": "Enabled"}},
    }))?;
    api.create(&PostParams::default(), &network).await?;
    Ok(())
}

/// A disk in the shared pool.
pub fn disk(name: &str) -> Result<VirtualHardDisk> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "VirtualHardDisk", "metadata": {"name": name},
        "spec": {"size": "1Gi", "file": {"pool": "shared"}},
    }))?)
}

/// A machine on the disk of the same name.
pub fn machine(name: &str) -> Result<VirtualMachine> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": name},
        "spec": {
            "memory": "64Mi",
            "disks": [{"name": "system", "bus": "Virtio", "virtualHardDiskRef": {"name": name}}],
            "networkAdapters": [{"name": "lan", "virtualNetworkRef": {"name": "bench"}}],
        },
    }))?)
}
