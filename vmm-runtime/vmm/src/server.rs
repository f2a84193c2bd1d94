//! The API on `api.sock`: HTTP in, messages to the supervisor out.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::api::{ApiError, ErrorReason, PowerRequest, ResetRequest, Status};
use crate::lifecycle::Refusal;
use crate::supervisor::Message;

const MAX_CONNECTIONS: usize = 32;
const MAX_BODY_BYTES: usize = 4096;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long clients have to read the last words.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_DEADLINE_SECONDS: u32 = 86_400;
const MAX_TOKEN_CHARS: usize = 128;

/// What a request asks of the supervisor.
#[derive(Debug)]
pub(crate) struct ApiCall {
    pub request: ApiRequest,
    pub answer: oneshot::Sender<Result<Status, Refusal>>,
}

/// A request that changes something.
#[derive(Debug)]
pub(crate) enum ApiRequest {
    Power(PowerRequest),
    Reset(ResetRequest),
}

/// What handlers need.
#[derive(Clone)]
pub(crate) struct ApiServer {
    pub calls: mpsc::Sender<Message>,
    pub status: watch::Receiver<Status>,
}

type ResponseBody = BoxBody<Bytes, Infallible>;

impl ApiServer {
    /// Serves until `ending` says so; then streams end after the last status, and connections are closed.
    pub async fn serve(self, listener: UnixListener, mut ending: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = ended(&mut ending) => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Ok(place) = places.clone().try_acquire_owned() else {
                        warn!("an API client was refused: {MAX_CONNECTIONS} are connected");
                        continue;
                    };
                    let (server, ending) = (self.clone(), ending.clone());
                    connections.spawn(async move {
                        server.serve_connection(stream, ending).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!("API: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GOODBYE_TIMEOUT, all).await.is_err() {
            debug!("an API client did not read its last words");
        }
    }

    async fn serve_connection(self, stream: UnixStream, mut ending: watch::Receiver<bool>) {
        let service = service_fn(|request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.handle(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(16 << 10)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => Some(result),
            () = ended(&mut ending) => None,
        };
        let result = match result {
            Some(result) => result,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            debug!("an API connection ended: {error}");
        }
    }

    async fn handle(self, request: Request<Incoming>) -> Response<ResponseBody> {
        let method = request.method().clone();
        let result = match (&method, request.uri().path()) {
            (&Method::GET, "/v1/vm") => Ok(self.status.borrow().clone()),
            (&Method::GET, "/v1/vm/events") => return self.events(),
            (&Method::PUT, "/v1/vm/power") => match read(request).await.and_then(check_power) {
                Ok(request) => self.call(ApiRequest::Power(request)).await,
                Err(error) => Err(error),
            },
            (&Method::PUT, "/v1/vm/reset") => match read(request).await.and_then(check_reset) {
                Ok(request) => self.call(ApiRequest::Reset(request)).await,
                Err(error) => Err(error),
            },
            (_, path @ ("/v1/vm" | "/v1/vm/events" | "/v1/vm/power" | "/v1/vm/reset")) => {
                Err(error(
                    ErrorReason::MethodNotAllowed,
                    format!("{path} has no method {method}"),
                ))
            }
            (_, path) => Err(error(
                ErrorReason::NotFound,
                format!("there is nothing at {path}"),
            )),
        };
        match result {
            Ok(status) => json(StatusCode::OK, &status),
            Err(error) => json(status_code(error.reason), &error),
        }
    }

    async fn call(&self, request: ApiRequest) -> Result<Status, ApiError> {
        let (answer, answered) = oneshot::channel();
        let busy = |_| {
            error(
                ErrorReason::Busy,
                "too many requests wait; try again".to_owned(),
            )
        };
        self.calls
            .try_send(Message::Call(ApiCall { request, answer }))
            .map_err(busy)?;
        match answered.await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(Refusal { reason, message })) => Err(ApiError { reason, message }),
            Err(_) => Err(error(
                ErrorReason::Stopping,
                "the process is ending".to_owned(),
            )),
        }
    }

    fn events(self) -> Response<ResponseBody> {
        let mut status = self.status;
        // The first line is the status now.
        status.mark_changed();
        let (sender, body) = LineBody::channel();
        tokio::spawn(async move {
            loop {
                // Without a look at `closed`, a client that is gone would keep this task until the next change.
                let changed = tokio::select! {
                    changed = status.changed() => changed,
                    () = sender.closed() => return,
                };
                if changed.is_err() {
                    return;
                }
                let now = status.borrow_and_update().clone();
                let Ok(mut line) = serde_json::to_vec(&now) else {
                    return;
                };
                line.push(b'\n');
                if sender.send(line.into()).await.is_err() || now.state.is_final() {
                    return;
                }
            }
        });
        let mut response = Response::new(body.boxed());
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-ndjson"),
        );
        response
    }
}

async fn ended(ending: &mut watch::Receiver<bool>) {
    // An error: the supervisor is gone, which is an end as well.
    let _ = ending.wait_for(|ending| *ending).await;
}

/// A body of lines that come as they come.
struct LineBody(mpsc::Receiver<Bytes>);

impl LineBody {
    fn channel() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel(1);
        (sender, LineBody(receiver))
    }
}

impl Body for LineBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|line| line.map(|line| Ok(Frame::data(line))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, ApiError> {
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES)
        .collect()
        .await
        .map_err(|failure| error(ErrorReason::BadRequest, format!("the body: {failure}")))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|failure| error(ErrorReason::BadRequest, format!("the body: {failure}")))
}

fn check_power(request: PowerRequest) -> Result<PowerRequest, ApiError> {
    match request.deadline_seconds {
        Some(seconds) if seconds > MAX_DEADLINE_SECONDS => Err(error(
            ErrorReason::BadRequest,
            format!("deadlineSeconds is {seconds}; it must be 0 to {MAX_DEADLINE_SECONDS}"),
        )),
        _ => Ok(request),
    }
}

fn check_reset(request: ResetRequest) -> Result<ResetRequest, ApiError> {
    match request.token.chars().count() {
        1..=MAX_TOKEN_CHARS => Ok(request),
        count => Err(error(
            ErrorReason::BadRequest,
            format!("token has {count} characters; it must have 1 to {MAX_TOKEN_CHARS}"),
        )),
    }
}

/// Shorthand.
fn error(reason: ErrorReason, message: String) -> ApiError {
    ApiError { reason, message }
}

fn status_code(reason: ErrorReason) -> StatusCode {
    match reason {
        ErrorReason::BadRequest => StatusCode::BAD_REQUEST,
        ErrorReason::NotFound => StatusCode::NOT_FOUND,
        ErrorReason::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorReason::Stopping => StatusCode::CONFLICT,
        ErrorReason::Busy => StatusCode::SERVICE_UNAVAILABLE,
        ErrorReason::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn json(code: StatusCode, value: &impl Serialize) -> Response<ResponseBody> {
    // Plain structs of text and numbers always serialize.
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
