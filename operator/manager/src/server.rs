//! `/healthz`, `/readyz` and `/metrics`.

use crate::{metrics::Metrics, queue::Queue};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};
use tracing::{debug, warn};

/// Connections served at once; more wait.
const CONNECTIONS: usize = 64;
/// The longest that one connection may take to send its request.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// The longest that one connection may last.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);

/// Serves for ever.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, queue: Arc<Queue>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else {
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
        let (metrics, queue) = (metrics.clone(), queue.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&request, &metrics, &queue);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_LIMIT)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(CONNECTION_LIMIT, connection).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => debug!(%error, "a connection broke"),
            }
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, queue: &Queue) -> Response<Full<Bytes>> {
    let (status, text) = if request.method() == Method::GET {
        match request.uri().path() {
            "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
            "/readyz" if metrics.is_ready() => (StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the API was not reached, or the caches are not full yet\n".to_owned(),
            ),
            "/metrics" => (StatusCode::OK, metrics.text(queue.depth())),
            _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
        }
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned())
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}
