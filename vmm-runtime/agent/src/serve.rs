//! `/healthz`, `/readyz` and `/metrics`.

use crate::{clock::Clock, lease::Holding, metrics::Metrics};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, header::CONTENT_TYPE, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};
use tracing::warn;

/// Connections at once; more wait.
const CONNECTIONS: usize = 32;
/// A client that sends nothing for this long is dropped.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// A connection lives no longer than this.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);

/// What is told.
#[derive(Clone)]
pub struct Telling {
    /// The host's lease: ready is who holds it.
    pub holding: Holding,
    /// Its deadline's clock.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, telling: Telling) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let telling = telling.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(|request| {
                let answer = answer(&request, &telling);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_LIMIT)
                .serve_connection(TokioIo::new(stream), service);
            // A client that breaks off is no event.
            let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
        });
    }
}

fn answer<B>(request: &Request<B>, telling: &Telling) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    let held = telling.holding.held();
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match held.filter(|held| held.is_valid(telling.clock.boottime())) {
            Some(held) => text(StatusCode::OK, format!("ok, host epoch {}\n", held.epoch)),
            None => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "the host's lease is not held\n".to_owned(),
            ),
        },
        "/metrics" => {
            telling
                .metrics
                .host_epoch
                .set(held.map_or(0, |held| held.epoch));
            text(StatusCode::OK, telling.metrics.render())
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /healthz, /readyz and /metrics\n".to_owned(),
        ),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("text/plain; version=0.0.4"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Boottime,
        lease::{Held, renew::HoldingSender},
    };

    struct At(u64);

    impl Clock for At {
        fn boottime(&self) -> Boottime {
            Boottime::from_millis(self.0)
        }

        fn wall(&self) -> jiff::Timestamp {
            jiff::Timestamp::UNIX_EPOCH
        }
    }

    #[test]
    fn is_ready_while_the_lease_is_held() {
        let (sender, holding) = HoldingSender::new();
        let telling = |now| Telling {
            holding: holding.clone(),
            clock: Arc::new(At(now)),
            metrics: Arc::default(),
        };
        let get = |path: &str| Request::get(path).body(()).unwrap();
        let status = |path, now| answer(&get(path), &telling(now)).status().as_u16();
        assert_eq!(status("/readyz", 0), 503);
        sender.set(Some(Held {
            epoch: 2,
            until: Boottime::from_millis(10),
        }));
        assert_eq!(status("/readyz", 9), 200);
        assert_eq!(status("/readyz", 10), 503);
        assert_eq!(status("/healthz", 10), 200);
        assert_eq!(status("/metrics", 0), 200);
        assert_eq!(status("/", 0), 404);
        let post = Request::post("/healthz").body(()).unwrap();
        assert_eq!(answer(&post, &telling(0)).status().as_u16(), 405);
    }
}
