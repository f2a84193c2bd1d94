//! Our own control plane, or the way to somebody else's.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::service::{Service, Spawn};
use super::{Supervisor, forwarder, lock};
use crate::certificates::{Authority, Identity, service_account_keys};
use crate::cluster::{Cluster, SYSTEM_NAMESPACE, external_endpoint};
use crate::folder::{private_folder, write_private};
use crate::kubeconfig::{Credential, Endpoint, render};
use crate::logs::open_log;
use crate::namespaces::enter_network;

/// The API server's port, of our own control plane and of the forwarder.
pub const API_PORT: u16 = 6443;
/// Range of service addresses; its first one is in the API server's certificate.
const SERVICE_RANGE: &str = "10.0.0.0/24";

/// How the lab's parts reach the API server.
pub struct Access {
    /// As administrator.
    pub cluster: Cluster,
    endpoint: Endpoint,
    /// Signs clients' certificates; without it they get tokens.
    authority: Option<Authority>,
}

impl Supervisor {
    /// The way to the API server, once [`Self::open_access`] made it.
    pub fn access(&self) -> Result<&Access> {
        self.access
            .get()
            .context("the API server has not been started yet")
    }

    /// Makes the way to the API server: starts etcd and API server, or the forwarder to somebody else's. Does nothing the second
    /// time.
    pub fn open_access(&self) -> Result<()> {
        if self.access.get().is_some() {
            return Ok(());
        }
        let access = match &self.config.external_kubeconfig {
            Some(text) => self.open_external(text)?,
            None => self.start_api_server()?,
        };
        let _ = self.access.set(access);
        Ok(())
    }

    fn open_external(&self, text: &str) -> Result<Access> {
        let address = (self.config.subnet.api(), API_PORT);
        let (endpoint, host, port) =
            external_endpoint(text, &format!("https://{}:{API_PORT}", address.0))?;
        forwarder::start(
            &self.networks.api,
            Arc::clone(&self.networks.machine),
            address.into(),
            host,
            port,
        )?;
        let cluster = self
            .runtime
            .block_on(Cluster::connect(text, Some(&endpoint)))?;
        Ok(Access {
            cluster,
            endpoint,
            authority: None,
        })
    }

    fn start_api_server(&self) -> Result<Access> {
        let Some(programs) = &self.config.control_plane else {
            bail!("no control plane: neither its programs nor a kubeconfig")
        };
        let address = self.config.subnet.api();
        let pki = self.folder.pki();
        private_folder(&pki)?;
        private_folder(&self.folder.etcd())?;
        let authority = Authority::new()?;
        let serving = authority.serving(&[address.into()])?;
        let kept = std::fs::read_to_string(pki.join("service-accounts.key")).ok();
        let (private, public) = service_account_keys(kept.as_deref())?;
        for (file, text) in [
            ("ca.crt", &authority.certificate()),
            ("apiserver.crt", &serving.certificate),
            ("apiserver.key", &serving.key),
            ("service-accounts.key", &private),
            ("service-accounts.pub", &public),
        ] {
            write_private(&pki.join(file), text)?;
        }
        let endpoint = Endpoint {
            url: format!("https://{address}:{API_PORT}"),
            authority: Some(authority.certificate()),
            server_name: None,
            insecure: false,
        };
        let kubeconfig = |user: &str, groups: &[&str]| {
            render(
                &endpoint,
                user,
                &Credential::Certificate(&authority.client(user, groups)?),
            )
        };
        let admin = kubeconfig("paddock-lab-admin", &["system:masters"])?;
        write_private(&self.folder.kubeconfig(), &admin)?;
        write_private(
            &pki.join("controller-manager.kubeconfig"),
            &kubeconfig("system:kube-controller-manager", &["system:masters"])?,
        )?;

        let pki_file = |file: &str| pki.join(file).display().to_string();
        let etcd_data = self.folder.etcd().display().to_string();
        self.add_service(
            "etcd",
            &self.networks.api,
            programs.join("etcd"),
            etcd_arguments(&etcd_data),
        )?;
        let mut arguments = api_server_arguments(&address.to_string());
        arguments.extend([
            format!("--tls-cert-file={}", pki_file("apiserver.crt")),
            format!("--tls-private-key-file={}", pki_file("apiserver.key")),
            format!("--client-ca-file={}", pki_file("ca.crt")),
            format!(
                "--service-account-key-file={}",
                pki_file("service-accounts.pub")
            ),
            format!(
                "--service-account-signing-key-file={}",
                pki_file("service-accounts.key")
            ),
        ]);
        self.add_service(
            "kube-apiserver",
            &self.networks.api,
            programs.join("kube-apiserver"),
            arguments,
        )?;
        let cluster = self.runtime.block_on(Cluster::connect(&admin, None))?;
        Ok(Access {
            cluster,
            endpoint,
            authority: Some(authority),
        })
    }

    /// Starts the garbage collector and the namespace controller. After the CRDs: else children of their objects wait 30 s for
    /// their collection.
    pub fn start_controller_manager(&self) -> Result<()> {
        let Some(programs) = &self.config.control_plane else {
            return Ok(());
        };
        let arguments = vec![format!(
            "--kubeconfig={}",
            self.folder
                .pki()
                .join("controller-manager.kubeconfig")
                .display()
        )];
        self.add_service(
            "kube-controller-manager",
            &self.networks.api,
            programs.join("kube-controller-manager"),
            arguments,
        )
    }

    /// The kubeconfig of the agent on `host`.
    pub fn agent_kubeconfig(&self, host: &str) -> Result<String> {
        self.kubeconfig_for(
            &format!("paddock:host:{host}"),
            &["paddock:hosts"],
            &format!("paddock-host-{host}"),
        )
    }

    /// The operator's kubeconfig.
    pub fn operator_kubeconfig(&self) -> Result<String> {
        self.kubeconfig_for("paddock:operator", &[], "paddock-operator")
    }

    fn kubeconfig_for(&self, user: &str, groups: &[&str], service_account: &str) -> Result<String> {
        let access = self.access()?;
        match &access.authority {
            Some(authority) => {
                let identity: Identity = authority.client(user, groups)?;
                render(&access.endpoint, user, &Credential::Certificate(&identity))
            }
            None => {
                let token = access
                    .cluster
                    .service_account_token(service_account, &self.config.id);
                let token = self.runtime.block_on(token)?;
                render(
                    &access.endpoint,
                    &format!("{SYSTEM_NAMESPACE}/{service_account}"),
                    &Credential::Token(&token),
                )
            }
        }
    }

    /// Starts a process in a network namespace and keeps it running; that it is there already is fine.
    pub fn add_service(
        &self,
        name: &str,
        network: &Arc<OwnedFd>,
        program: PathBuf,
        arguments: Vec<String>,
    ) -> Result<()> {
        let mut services = lock(&self.services);
        if !services.contains_key(name) {
            let spawn = self.spawner(name, network, program, arguments)?;
            services.insert(name.to_owned(), Service::start(name, spawn)?);
        }
        Ok(())
    }

    /// How to start a process whose output goes to the log of its name.
    pub fn spawner(
        &self,
        name: &str,
        network: &Arc<OwnedFd>,
        program: PathBuf,
        arguments: Vec<String>,
    ) -> Result<Spawn> {
        require_program(&program)?;
        let log = self.folder.log(name);
        let network = Arc::clone(network);
        Ok(Box::new(move || {
            let out = open_log(&log)?;
            let mut command = Command::new(&program);
            command
                .args(&arguments)
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(out.try_clone()?)
                .stderr(out);
            enter_network(&mut command, Arc::clone(&network))
                .spawn()
                .with_context(|| program.display().to_string())
        }))
    }
}

/// Refuses a program that is not there.
pub fn require_program(path: &Path) -> Result<()> {
    if !path.is_file() {
        bail!(
            "{} does not exist; build it, or set PADDOCK_BIN_DIR to the folder that has it",
            path.display()
        );
    }
    Ok(())
}

/// etcd on loopback of its namespace; without fsync, as nothing in a lab outlives the machine.
fn etcd_arguments(data: &str) -> Vec<String> {
    let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    vec![
        "--name=paddock".into(),
        format!("--data-dir={data}"),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=paddock={peer}"),
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn api_server_arguments(address: &str) -> Vec<String> {
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--bind-address={address}"),
        format!("--advertise-address={address}"),
        format!("--secure-port={API_PORT}"),
        "--authorization-mode=RBAC".into(),
        "--anonymous-auth=true".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        // The plugin asks for a service account's pods and secrets, of which there are none here.
        "--disable-admission-plugins=ServiceAccount".into(),
        "--enable-aggregator-routing=true".into(),
        "--allow-privileged=true".into(),
    ]
}
