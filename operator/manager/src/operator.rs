//! The whole of the operator: stand by, lead, fill the caches, work, and leave in order.

use crate::{
    cache::{Cache, Kept, watch::feed},
    controller::Context,
    events::Events,
    leader::Elector,
    lease_watch,
    metrics::Metrics,
    queue::Queue,
    server,
    settings::Run,
    trim,
    write::Writer,
};
use kube::{Client, Config, config::KubeConfigOptions, config::Kubeconfig};
use paddock_crds::{
    Host, VirtualHardDisk, VirtualHardDiskTask, VirtualMachine, VirtualMachineInstance,
    VirtualNetwork,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tracing::{error, info, warn};

/// The longest that work under way may take to end when the operator stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {message}; expected a file that kubectl can use", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// There is no way to the API.
    #[error("no way to the API: {0}; give --kubeconfig, or run in a pod with a service account")]
    Api(String),
    /// The address is taken or not this machine's.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Signals cannot be caught.
    #[error("signals cannot be caught: {0}")]
    Signals(std::io::Error),
    /// Another process may lead now.
    #[error(
        "the leader's lease was lost: this process stopped writing; start it again to stand by"
    )]
    LeadershipLost,
    /// A part ended that runs for ever.
    #[error("{0} ended unexpectedly")]
    PartEnded(&'static str),
}

async fn client(kubeconfig: Option<PathBuf>) -> Result<Client, OperatorError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let bad = |message: String| OperatorError::Kubeconfig {
                path: path.clone(),
                message,
            };
            let read = Kubeconfig::read_from(&path).map_err(|e| bad(e.to_string()))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .map_err(|e| bad(e.to_string()))?
        }
        None => Config::incluster().map_err(|e| OperatorError::Api(e.to_string()))?,
    };
    config.connect_timeout = Some(Duration::from_secs(3));
    Client::try_from(config).map_err(|e| OperatorError::Api(e.to_string()))
}

/// Runs until a signal, or until leadership is lost.
pub async fn run(settings: Run) -> Result<(), OperatorError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(OperatorError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(OperatorError::Signals)?;
    let in_pod = settings.kubeconfig.is_none();
    let client = client(settings.kubeconfig).await?;
    let metrics = Arc::new(Metrics::default());
    let queue = Arc::new(Queue::default());
    let listener =
        TcpListener::bind(settings.listen)
            .await
            .map_err(|source| OperatorError::Listen {
                address: settings.listen,
                source,
            })?;
    let served = tokio::spawn(server::serve(listener, metrics.clone(), queue.clone()));
    let identity = settings.identity.unwrap_or_else(|| {
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        // A pod's name is its alone, and a container that is started again leads again at once.
        if in_pod {
            host
        } else {
            format!("{host}-{}", uuid::Uuid::new_v4().simple())
        }
    });
    let mut elector = Elector::new(
        client.clone(),
        &settings.namespace,
        identity.clone(),
        metrics.clone(),
    );
    tokio::select! {
        () = elector.lead() => {}
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    metrics.set_ready(false);
    // Only a leader fills its caches: they start from lists that show all that the leader before it wrote.
    let cache = Arc::new(Cache::new(queue.clone(), &settings.namespace));
    let context = Arc::new(Context::new(
        cache.clone(),
        queue.clone(),
        Writer::new(
            client.clone(),
            cache.clone(),
            metrics.clone(),
            elector.leadership(),
        ),
        Events::start(client.clone(), &identity, metrics.clone()),
        metrics.clone(),
        client.clone(),
        &settings.namespace,
    ));
    let mut parts = JoinSet::new();
    let mut fulls = Vec::new();
    {
        let feeder = Feeder {
            client: &client,
            cache: &cache,
            metrics: &metrics,
        };
        feeder.start::<VirtualMachine>(&mut parts, &mut fulls);
        feeder.start::<VirtualMachineInstance>(&mut parts, &mut fulls);
        feeder.start::<VirtualHardDisk>(&mut parts, &mut fulls);
        feeder.start::<VirtualHardDiskTask>(&mut parts, &mut fulls);
        feeder.start::<VirtualNetwork>(&mut parts, &mut fulls);
        feeder.start::<Host>(&mut parts, &mut fulls);
        let (full, receiver) = watch::channel(false);
        fulls.push(receiver);
        let context = context.clone();
        parts.spawn(async move {
            lease_watch::run(context, full).await;
            "the watch over leases"
        });
    }
    let trimmed = queue.clone();
    parts.spawn(async move {
        trim::run(&trimmed).await;
        "giving memory back"
    });
    let mut workers = JoinSet::new();
    let begin = {
        let (context, metrics, workers) = (context.clone(), metrics.clone(), &mut workers);
        let count = settings.workers;
        async move {
            // Nothing is decided from half a picture.
            for full in &mut fulls {
                if full.wait_for(|full| *full).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            info!(workers = count, "the caches are full");
            metrics.set_ready(true);
            for _ in 0..count {
                workers.spawn(context.clone().work());
            }
            std::future::pending::<()>().await;
        }
    };
    let outcome = tokio::select! {
        () = begin => Err(OperatorError::PartEnded("the start")),
        () = elector.renew() => Err(OperatorError::LeadershipLost),
        Some(part) = parts.join_next() => {
            let part = part.unwrap_or("a part");
            error!(part, "ended unexpectedly");
            Err(OperatorError::PartEnded(part))
        }
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    metrics.set_ready(false);
    queue.close();
    let drained = tokio::time::timeout(DRAIN_LIMIT, async {
        while workers.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        warn!("work was still under way after {DRAIN_LIMIT:?} and is given up");
    }
    parts.shutdown().await;
    elector.resign().await;
    served.abort();
    outcome
}

struct Feeder<'a> {
    client: &'a Client,
    cache: &'a Arc<Cache>,
    metrics: &'a Arc<Metrics>,
}

impl Feeder<'_> {
    fn start<K: Kept>(
        &self,
        parts: &mut JoinSet<&'static str>,
        fulls: &mut Vec<watch::Receiver<bool>>,
    ) {
        let (full, receiver) = watch::channel(false);
        fulls.push(receiver);
        let (client, cache, metrics) = (
            self.client.clone(),
            self.cache.clone(),
            self.metrics.clone(),
        );
        parts.spawn(async move {
            feed::<K>(client, cache, metrics, full).await;
            K::PLURAL
        });
    }
}
