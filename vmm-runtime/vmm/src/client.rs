//! The agent's side of `api.sock`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::api::{ApiError, PowerRequest, ResetRequest, Status};

/// A request that takes longer than this is given up; `paddock-vmm` answers at once even while the guest is busy.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer, and the longest line of the event stream, that is taken in. In bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the process is gone or not there yet.
    #[error("{path}: nobody listens: {source}")]
    NotListening {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The request was refused.
    #[error("refused ({reason:?}): {message}", reason = .0.reason, message = .0.message)]
    Refused(ApiError),
    /// No answer in time.
    #[error("{path}: no answer within {REQUEST_TIMEOUT:?}")]
    TimedOut {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke, or the answer is not what this version understands.
    #[error("{path}: {message}")]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
}

/// Talks to one `paddock-vmm`. Holds no connection: each call opens one, so a client can be made before the process
/// listens, and cloned freely.
#[derive(Clone, Debug)]
pub struct VmmClient {
    socket: PathBuf,
}

impl VmmClient {
    /// A client for the socket at `socket` (the run directory's `api.sock`).
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        VmmClient {
            socket: socket.into(),
        }
    }

    /// A client for the process of this run directory.
    pub fn for_run_directory(run_directory: &Path) -> Self {
        Self::new(run_directory.join("api.sock"))
    }

    /// The machine's status now.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.call(Method::GET, "/v1/vm", &()).await
    }

    /// Sets the wished power. Returns the status right after the request was taken in, not after it took effect: read
    /// [`VmmClient::events`] for that.
    pub async fn set_power(&self, request: &PowerRequest) -> Result<Status, ClientError> {
        self.call(Method::PUT, "/v1/vm/power", request).await
    }

    /// Resets the guest unless `token` is that of the last reset.
    pub async fn reset(&self, token: &str) -> Result<Status, ClientError> {
        self.call(
            Method::PUT,
            "/v1/vm/reset",
            &ResetRequest {
                token: token.to_owned(),
            },
        )
        .await
    }

    /// The current status, then one for each change. The stream ends when the process does.
    pub async fn events(&self) -> Result<StatusStream, ClientError> {
        let (response, connection) = self
            .within_timeout(self.send(Method::GET, "/v1/vm/events", Bytes::new()))
            .await?;
        let response = self.accept(response).await?;
        Ok(StatusStream {
            client: self.clone(),
            body: response.into_body(),
            buffer: Vec::new(),
            connection,
        })
    }

    async fn call<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<Status, ClientError> {
        let body = if method == Method::GET {
            Bytes::new()
        } else {
            serde_json::to_vec(body)
                .map_err(|error| self.protocol(error))?
                .into()
        };
        self.within_timeout(async {
            let (response, _connection) = self.send(method, path, body).await?;
            let body = self.collect(self.accept(response).await?).await?;
            serde_json::from_slice(&body).map_err(|error| self.protocol(error))
        })
        .await
    }

    async fn within_timeout<T>(
        &self,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::TimedOut {
                path: self.socket.clone(),
            }),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, Connection), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            ClientError::NotListening {
                path: self.socket.clone(),
                source,
            }
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.protocol(error))?;
        let connection = Connection(tokio::spawn(async move {
            // An error of the connection also reaches whoever waits for the response or its body.
            let _ = connection.await;
        }));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "paddock-vmm")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| self.protocol(error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.protocol(error))?;
        Ok((response, connection))
    }

    async fn accept(
        &self,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, ClientError> {
        let code = response.status();
        if code.is_success() {
            return Ok(response);
        }
        let body = self.collect(response).await?;
        match serde_json::from_slice::<ApiError>(&body) {
            Ok(error) => Err(ClientError::Refused(error)),
            Err(_) => Err(self.protocol(format!("answered {code} without a reason"))),
        }
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        match Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
        {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => Err(self.protocol(error)),
        }
    }

    fn protocol(&self, message: impl ToString) -> ClientError {
        ClientError::Protocol {
            path: self.socket.clone(),
            message: message.to_string(),
        }
    }
}

/// Ends the connection's task with its owner.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The statuses of one process, from [`VmmClient::events`].
#[derive(Debug)]
pub struct StatusStream {
    client: VmmClient,
    body: Incoming,
    buffer: Vec<u8>,
    #[expect(dead_code, reason = "keeps the connection's task alive")]
    connection: Connection,
}

impl StatusStream {
    /// The next status; `None` when the process closed the stream. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Status>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| self.client.protocol(error));
            }
            if self.buffer.len() > MAX_ANSWER_BYTES {
                return Err(self
                    .client
                    .protocol(format!("a line of more than {MAX_ANSWER_BYTES} bytes")));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(self.client.protocol(error)),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(self.client.protocol("the stream ended within a line")),
            }
        }
    }
}
