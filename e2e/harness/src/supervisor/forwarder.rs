//! Lets the lab reach somebody else's API server: listens on the API's address inside, connects from the machine outside.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::namespaces::{enter_network_here, run_in_network};

/// Most connections at once.
const MAX_CONNECTIONS: usize = 4096;

/// Forwards connections to `listen` in the namespace `inside` to `host`:`port` as seen from `outside`, for as long as the process
/// lives.
pub fn start(
    inside: &OwnedFd,
    outside: Arc<OwnedFd>,
    listen: SocketAddr,
    host: String,
    port: u16,
) -> Result<()> {
    let listener = run_in_network(inside, || std::net::TcpListener::bind(listen))?
        .with_context(|| format!("listening on {listen}"))?;
    listener.set_nonblocking(true).context("forwarder")?;
    let (started, result) = std::sync::mpsc::channel();
    // A thread of its own stays in the machine's namespace; threads that its runtime makes (for DNS) inherit that.
    std::thread::Builder::new()
        .name("forwarder".into())
        .spawn(move || {
            let prepare = || -> Result<_> {
                enter_network_here(&outside).context("entering the machine's network")?;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                let listener = runtime.block_on(async { TcpListener::from_std(listener) })?;
                Ok((runtime, listener))
            };
            match prepare() {
                Ok((runtime, listener)) => {
                    let _ = started.send(Ok(()));
                    runtime.block_on(accept(listener, host, port));
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
    result
        .recv()
        .context("the forwarder's thread ended")?
        .context("forwarder")
}

async fn accept(listener: TcpListener, host: String, port: u16) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((mut inner, _)) => {
                let host = host.clone();
                tokio::spawn(async move {
                    let connect = tokio::time::timeout(
                        Duration::from_secs(10),
                        TcpStream::connect((host.as_str(), port)),
                    );
                    match connect.await {
                        Ok(Ok(mut outer)) => {
                            let _ = inner
                                .set_nodelay(true)
                                .and_then(|()| outer.set_nodelay(true));
                            let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
                        }
                        Ok(Err(error)) => tracing::warn!("API server {host}:{port}: {error}"),
                        Err(_) => {
                            tracing::warn!("API server {host}:{port}: no connection within 10 s")
                        }
                    }
                    drop(permit);
                });
            }
            // Out of descriptors, most likely: give connections time to end.
            Err(error) => {
                tracing::warn!("forwarder: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
