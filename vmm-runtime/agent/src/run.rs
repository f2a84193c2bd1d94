//! Puts the parts together.

use crate::{
    arguments::{BackendKind, Options},
    backend::{
        Backend,
        hollow::Hollow,
        qemu::{Paths, QemuBackend, networks::Networks, users},
    },
    clock::{Clock, SystemClock},
    host::{
        accelerator::{self, Probe, Verdict},
        facts::{self, Machine},
        publish::Publisher,
    },
    instance::{actor, supervisor},
    kubernetes::{self, Clients, HostClient, InstanceClient, LeaseClient, TaskClient},
    lease::{
        Holding, Timing,
        renew::{HoldingSender, Renewer},
    },
    metrics::Metrics,
    serve::{self, Telling},
    session::Session,
    task::{self, disk_work::VhdWorker, hollow::HollowWorker, runner::DiskWorker},
};
use anyhow::Context;
use paddock_crds::host::{Backend as HostBackend, Capacity};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tracing::info;

/// Starts of guests at work at once.
const STARTS_AT_ONCE: usize = 8;
/// Calls of the API about instances at once.
const CALLS_AT_ONCE: usize = 32;

/// Runs the agent until it is told to end. Guests go on.
///
/// # Errors
/// When it cannot start: another agent runs, a folder cannot be used, the API's address or credentials cannot be read.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let boot_id = paddock_vmm::identity::boot_id().context("the boot id cannot be read")?;
    let new_session = uuid::Uuid::new_v4().to_string();
    let session = Session::open(&options.run_dir, &boot_id, &new_session)?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    let clients = kubernetes::connect(options.kubeconfig.as_deref()).await?;
    let mut parts = Parts::new(options, clients, session, boot_id)?;
    parts.serve(listener);
    parts.renew();
    match parts.options.backend {
        BackendKind::Hollow => {
            parts.verdict.send_replace(Some(Verdict::hollow()));
            parts.run_instances(Arc::new(Hollow::default()));
            parts.run_tasks(Arc::new(HollowWorker));
        }
        BackendKind::Qemu => {
            let backend = parts.qemu_backend().await?;
            parts.run_instances(Arc::new(backend));
            let worker = VhdWorker::new(parts.spec.clone());
            parts.run_tasks(Arc::new(worker));
        }
    }
    parts.publish()?;
    parts.until_told().await
}

struct Parts {
    options: Options,
    clients: Clients,
    session: Session,
    boot_id: String,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    holding: Holding,
    holding_sender: Option<HoldingSender>,
    leftovers_known: watch::Sender<bool>,
    spec: crate::host::SpecReceiver,
    spec_sender: Option<watch::Sender<Option<Arc<paddock_crds::HostSpec>>>>,
    verdict: watch::Sender<Option<Verdict>>,
    running: JoinSet<&'static str>,
}

impl Parts {
    fn new(
        options: Options,
        clients: Clients,
        session: Session,
        boot_id: String,
    ) -> anyhow::Result<Self> {
        let (holding_sender, holding) = HoldingSender::new();
        let (spec_sender, spec) = watch::channel(None);
        Ok(Self {
            options,
            clients,
            session,
            boot_id,
            clock: Arc::new(SystemClock),
            metrics: Arc::new(Metrics::default()),
            holding,
            holding_sender: Some(holding_sender),
            leftovers_known: watch::Sender::new(false),
            spec,
            spec_sender: Some(spec_sender),
            verdict: watch::Sender::new(None),
            running: JoinSet::new(),
        })
    }

    fn serve(&mut self, listener: TcpListener) {
        let telling = Telling {
            holding: self.holding.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
        };
        self.running.spawn(async move {
            serve::serve(listener, telling).await;
            "the listener"
        });
    }

    fn renew(&mut self) {
        let Some(holding) = self.holding_sender.take() else {
            return;
        };
        let timing = Timing::default();
        let session = self.session.token().to_owned();
        let renewer = Renewer {
            api: LeaseClient::new(
                self.clients.lease.clone(),
                &self.options.namespace,
                &self.options.host,
                &session,
                timing,
                self.clock.clone(),
            ),
            clock: self.clock.clone(),
            timing,
            session,
            nonce_prefix: uuid::Uuid::new_v4().simple().to_string(),
            holding,
            leftovers_known: self.leftovers_known.subscribe(),
            metrics: self.metrics.clone(),
        };
        self.running.spawn(async move {
            renewer.run().await;
            "the renewal of the lease"
        });
    }

    /// The backend with QEMU; the probe goes on beside it.
    async fn qemu_backend(&mut self) -> anyhow::Result<QemuBackend> {
        let manager = paddock_net::NetworkManager::new(paddock_net::Options::default())
            .await
            .context("the host's networks cannot be managed")?;
        let vmm = match &self.options.vmm {
            Some(vmm) => vmm.clone(),
            None => beside_this_program("paddock-vmm"),
        };
        let paths = Paths {
            vmm: vmm.clone(),
            qemu: self.options.qemu.clone(),
            run_dir: self.options.run_dir.clone(),
        };
        let backend = QemuBackend::new(
            paths,
            Networks::new(manager),
            self.spec.clone(),
            self.verdict.subscribe(),
        )?;
        let verdict = self.verdict.clone();
        let qemu = self.options.qemu.clone();
        let deadline = Duration::from_secs(self.options.probe_deadline.into());
        tokio::spawn(async move {
            let user = rustix::process::geteuid()
                .is_root()
                .then(|| (users::FIRST, users::group(users::FIRST)));
            let found = accelerator::probe(&Probe {
                vmm: &vmm,
                qemu: &qemu,
                deadline,
                user,
            })
            .await;
            info!(accelerator = ?found.accelerator, found.message, "this host was probed");
            verdict.send_replace(Some(found));
        });
        Ok(backend)
    }

    fn run_instances<B: Backend>(&mut self, backend: Arc<B>) {
        let client = self.clients.general.clone();
        let world = Arc::new(actor::Surroundings {
            backend,
            api: Arc::new(InstanceClient::new(client.clone(), &self.options.host)),
            clock: self.clock.clone(),
            holding: self.holding.clone(),
            metrics: self.metrics.clone(),
            starts: Arc::new(Semaphore::new(STARTS_AT_ONCE)),
            calls: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
        });
        let instances = kubernetes::instances(client, &self.options.host);
        let leftovers_known = self.leftovers_known.clone();
        self.running.spawn(async move {
            supervisor::run(world, instances, leftovers_known).await;
            "the watch of instances"
        });
    }

    fn run_tasks(&mut self, worker: Arc<dyn DiskWorker>) {
        let client = self.clients.general.clone();
        let world = Arc::new(task::runner::Surroundings {
            host: self.options.host.clone(),
            api: Arc::new(TaskClient::new(client.clone(), &self.options.host)),
            worker,
            holding: self.holding.clone(),
            metrics: self.metrics.clone(),
            lanes: task::lanes::Lanes::default(),
        });
        let tasks = kubernetes::tasks(client, &self.options.host);
        self.running.spawn(async move {
            task::runner::run(world, tasks).await;
            "the watch of tasks"
        });
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        let Some(spec) = self.spec_sender.take() else {
            return Ok(());
        };
        let (backend, capacity) = match self.options.backend {
            BackendKind::Qemu => (
                HostBackend::Qemu,
                facts::capacity().map_err(anyhow::Error::msg)?,
            ),
            BackendKind::Hollow => (
                HostBackend::Hollow,
                Capacity {
                    cores: self.options.hollow_cores,
                    memory_bytes: self.options.hollow_memory_mib.saturating_mul(1 << 20),
                },
            ),
        };
        let client = self.clients.general.clone();
        let publisher = Publisher {
            name: self.options.host.clone(),
            api: HostClient::new(client.clone(), &self.options.host),
            machine: Machine {
                capacity,
                boot_id: self.boot_id.clone(),
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                backend,
            },
            default_pool: self.options.state_dir.join("pools/default"),
            verdict: self.verdict.subscribe(),
            spec,
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
        };
        let hosts = kubernetes::hosts(client, &self.options.host);
        self.running.spawn(async move {
            publisher.run(hosts).await;
            "the watch of the Host"
        });
        Ok(())
    }

    async fn until_told(mut self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            ended = self.running.join_next() => {
                anyhow::bail!("{} broke off: {ended:?}", self.options.host);
            }
        }
        info!("told to end; guests go on");
        Ok(())
    }
}

/// The program `name` in this program's folder if it is there, else the bare name, to be found in `PATH`.
fn beside_this_program(name: &str) -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|me| Some(me.parent()?.join(name)))
        .filter(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(name))
}
