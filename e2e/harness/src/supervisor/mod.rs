//! The one process behind a lab. It lives in namespaces of its own, so its end is the end of everything in the lab.
//!
//! Two processes in truth: the first of the process-id namespace only reaps orphans ([`run`]); its child does the work ([`serve`]).

mod bring_up;
mod control_plane;
mod conversation;
mod faults;
mod forwarder;
mod host;
mod machines;
mod service;
mod status;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, WaitOptions};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::folder::LabFolder;
use crate::namespaces::{LAB_NAMESPACES, leave, new_network, run_in_network, take_inherited};
use crate::network::cuts::Cuts;
use crate::network::links::{apply_cuts, configure_here, ip, make_bridge, make_cable};
use crate::network::subnet::ManagementSubnet;

use control_plane::Access;
use host::Host;
use service::Service;

/// What a supervisor is told at its start and never changes; JSON on standard input, for it may hold secrets.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartConfig {
    /// The lab's folder.
    pub folder: PathBuf,
    /// The lab's id.
    pub id: String,
    /// The management subnet.
    pub subnet: ManagementSubnet,
    /// Address with prefix of the LAN bridge, for clients of guests in the lab itself.
    pub lan_address: String,
    /// Folder of `paddock-operator`, `paddock-agent` and `paddock-vmm`.
    pub programs: PathBuf,
    /// Folder of etcd, kube-apiserver and kube-controller-manager; `None` with somebody else's cluster.
    pub control_plane: Option<PathBuf>,
    /// The checkout that CRDs and RBAC come from.
    pub checkout: PathBuf,
    /// Kubeconfig of somebody else's cluster, its text.
    pub external_kubeconfig: Option<String>,
}

/// The first process: takes namespaces of its own, says `ready`, starts [`serve`] and reaps until that ends.
pub fn run(cgroup: &Path) -> Result<()> {
    if rustix::process::getpid() != Pid::INIT {
        bail!(
            "supervise is started by `paddock-lab up`, as the first process of a lab; it is not a command to run by hand"
        );
    }
    rustix::process::setsid().context("session")?;
    Cgroup::at(cgroup).join()?;
    let machine_network =
        File::open("/proc/thread-self/ns/net").context("network namespace of the machine")?;
    leave(LAB_NAMESPACES).context("namespaces of the lab")?;
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("making mounts private")?;
    mount(
        "proc",
        "/proc",
        "proc",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        None,
    )
    .context("mounting /proc")?;
    rustix::system::sethostname(b"lab").context("host name")?;
    // The child inherits this descriptor by its number.
    rustix::io::fcntl_setfd(&machine_network, rustix::io::FdFlags::empty())
        .context("network namespace of the machine")?;
    let child = Command::new("/proc/self/exe")
        .args([
            "serve",
            "--machine-network",
            &machine_network.as_raw_fd().to_string(),
        ])
        .stdin(Stdio::inherit())
        .stdout(io::stderr())
        .spawn()
        .context("starting the supervisor")?;
    println!("ready");
    io::stdout().flush()?;
    // The pipe's only reader is gone after its word; nothing may be written there any more.
    let pid = Pid::from_child(&child);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == pid => bail!("the supervisor ended: {status:?}"),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("waiting: {error}"),
        }
    }
}

/// Network namespaces without processes of their own.
struct Networks {
    machine: Arc<OwnedFd>,
    api: Arc<OwnedFd>,
    operator: Arc<OwnedFd>,
    hollow: Arc<OwnedFd>,
}

/// All that runs.
struct Supervisor {
    config: StartConfig,
    folder: LabFolder,
    cgroup: Cgroup,
    networks: Networks,
    runtime: tokio::runtime::Runtime,
    access: OnceLock<Access>,
    services: Mutex<BTreeMap<String, Arc<Service>>>,
    hosts: Mutex<BTreeMap<String, Arc<Host>>>,
    hollow: Mutex<BTreeMap<String, Arc<Service>>>,
    cuts: Mutex<Cuts>,
    /// Held by the one command that starts things.
    bringing_up: Mutex<()>,
}

/// Does the work: reads its configuration, makes the networks, listens for commands until the end.
pub fn serve(machine_network: i32) -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info,kube=warn".into()),
        )
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    let machine = take_inherited(machine_network).context("network namespace of the machine")?;
    let config: StartConfig =
        serde_json::from_reader(io::stdin().lock()).context("configuration of the supervisor")?;
    let folder = LabFolder::new(&config.folder)?;
    let networks = make_networks(&config, machine).context("networks of the lab")?;
    let listener = folder.listen()?;
    let supervisor = Arc::new(Supervisor {
        cgroup: Cgroup::of_lab(&config.id)?,
        folder,
        networks,
        runtime: tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("runtime")?,
        access: OnceLock::new(),
        services: Mutex::default(),
        hosts: Mutex::default(),
        hollow: Mutex::default(),
        cuts: Mutex::default(),
        bringing_up: Mutex::default(),
        config,
    });
    tracing::info!(
        "lab {} on {}",
        supervisor.config.id,
        supervisor.config.subnet
    );
    conversation::listen(&supervisor, &listener)
}

/// Bridges `mgmt` and `lan`, and what hangs on them besides hosts. The cable `machine` to the machine itself is made by `paddock-lab up`.
fn make_networks(config: &StartConfig, machine: OwnedFd) -> Result<Networks> {
    let subnet = config.subnet;
    ip("link set lo up")?;
    make_bridge("mgmt")?;
    make_bridge("lan")?;
    ip(&format!(
        "address add {} dev mgmt",
        subnet.with_prefix(subnet.lab())
    ))?;
    ip(&format!("address add {} dev lan", config.lan_address))?;
    ip("link set machine master mgmt up")?;
    let network = |port: &str, address| -> Result<Arc<OwnedFd>> {
        let namespace = new_network().context("network namespace")?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        make_cable("mgmt", port, "mgmt0", &path)?;
        run_in_network(&namespace, || {
            configure_here("mgmt0", &subnet.with_prefix(address))
        })??;
        Ok(Arc::new(namespace))
    };
    let networks = Networks {
        machine: Arc::new(machine),
        api: network("api", subnet.api())?,
        operator: network("operator", subnet.operator())?,
        hollow: network("hollow", subnet.hollow())?,
    };
    apply_cuts(&Cuts::new())?;
    Ok(networks)
}

/// A lock that a panic elsewhere does not take from us: what it guards is only ever replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
