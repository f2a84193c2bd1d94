//! Files from the web, http and https, a piece at a time.
//!
//! Whoever may make a disk chooses here what this host asks for. So the addresses that only the host itself should
//! reach, its own and link-local ones (where clouds hand out credentials), are not asked, whatever name leads to them;
//! nothing of an answer is told but its status and its sum; and what has another sum than was asked for is used for
//! nothing. Private networks are asked: that is where images are.
//!
//! The length must be known in advance, so that a pool that is too small is found before anything is written.

mod connect;
#[cfg(test)]
pub(crate) mod tests;

use crate::instance::core::Failure;
use connect::{Connection, is_of_the_host};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode, Uri,
    body::{Body, Bytes, Incoming},
    header,
};
use rustls::RootCertStore;
use std::{net::IpAddr, time::Duration};
use tokio::time::timeout;

/// The most redirects that are followed.
const MOST_REDIRECTS: usize = 5;
/// The longest address, in bytes.
const LONGEST_URL: usize = 2048;

/// How long a server may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From the question for its address to a connection, for each address.
    pub connect: Duration,
    /// From the request to the head of the answer.
    pub head: Duration,
    /// From one piece to the next.
    pub piece: Duration,
}

/// How the web is reached.
#[derive(Clone, Debug)]
pub(crate) struct Web {
    /// Who vouches for servers. `None`: those of the system.
    roots: Option<RootCertStore>,
    is_refused: fn(IpAddr) -> bool,
    limits: Limits,
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    url: String,
    len: u64,
    received: u64,
    body: Incoming,
    limit: Duration,
    /// Ends with the answer.
    _connection: Connection,
}

/// What was heard of a server.
enum Heard {
    Answer(Answer),
    Redirect(Uri),
}

pub(crate) fn failed(url: &str, what: impl std::fmt::Display) -> Failure {
    Failure::new("DownloadFailed", format!("{}: {what}", shown(url)))
}

/// An address for people: what follows a question mark may be a key.
pub(crate) fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

impl Web {
    /// As a host reaches it.
    pub fn system() -> Self {
        Self {
            roots: None,
            is_refused: is_of_the_host,
            limits: Limits {
                connect: Duration::from_secs(15),
                head: Duration::from_secs(60),
                piece: Duration::from_secs(60),
            },
        }
    }

    /// Asks for a file, and follows redirects.
    ///
    /// # Errors
    /// `AddressRefused`; `DownloadFailed` for everything else, with the address that was asked.
    pub async fn get(&self, url: &str) -> Result<Answer, Failure> {
        let mut at = parse(url)?;
        for _ in 0..=MOST_REDIRECTS {
            match self.ask(&at).await? {
                Heard::Answer(answer) => return Ok(answer),
                Heard::Redirect(to) => at = to,
            }
        }
        Err(failed(
            url,
            format!("the server redirects more than {MOST_REDIRECTS} times"),
        ))
    }

    async fn ask(&self, uri: &Uri) -> Result<Heard, Failure> {
        let url = uri.to_string();
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let request = Request::get(path)
            .header(header::HOST, authority)
            .header(header::ACCEPT, "*/*")
            .header(header::ACCEPT_ENCODING, "identity")
            .header(
                header::USER_AGENT,
                concat!("paddock-agent/", env!("CARGO_PKG_VERSION")),
            )
            .body(Empty::<Bytes>::new())
            .map_err(|error| failed(&url, error))?;
        let mut connection = connect::connect(self, uri).await?;
        let answer = timeout(self.limits.head, connection.send(request))
            .await
            .map_err(|_| failed(&url, silent(self.limits.head)))?
            .map_err(|error| failed(&url, error))?;
        let status = answer.status();
        if is_redirect(status) {
            let location = answer.headers().get(header::LOCATION);
            let location = location.and_then(|to| to.to_str().ok()).unwrap_or_default();
            return redirect(uri, location).map(Heard::Redirect);
        }
        if status != StatusCode::OK {
            return Err(failed(
                &url,
                format!("the server answered {status}, expected 200 OK"),
            ));
        }
        let body = answer.into_body();
        let len = body.size_hint().exact().ok_or_else(|| {
            failed(
                &url,
                "the server does not say how long the file is (no Content-Length)",
            )
        })?;
        Ok(Heard::Answer(Answer {
            url,
            len,
            received: 0,
            body,
            limit: self.limits.piece,
            _connection: connection,
        }))
    }
}

impl Answer {
    /// How long the file is, in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Where it was found, after redirects; for people.
    pub fn url(&self) -> &str {
        shown(&self.url)
    }

    /// The next piece; `None` at the end, when all of it has come. May be dropped while it waits.
    ///
    /// # Errors
    /// `DownloadFailed` when the connection breaks off or nothing comes for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = timeout(self.limit, self.body.frame())
                .await
                .map_err(|_| self.broke_off(silent(self.limit)))?;
            match frame {
                Some(Ok(frame)) => {
                    // Trailers say nothing that matters here.
                    if let Ok(piece) = frame.into_data() {
                        self.received += piece.len() as u64;
                        return Ok(Some(piece));
                    }
                }
                Some(Err(error)) => return Err(self.broke_off(error.to_string())),
                None if self.received == self.len => return Ok(None),
                None => return Err(self.broke_off("it ended early".to_owned())),
            }
        }
    }

    fn broke_off(&self, why: String) -> Failure {
        let (received, len) = (self.received, self.len);
        failed(
            &self.url,
            format!("broke off after {received} of {len} bytes: {why}"),
        )
    }
}

fn silent(limit: Duration) -> String {
    format!("the server was silent for {} s", limit.as_secs_f32())
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn parse(url: &str) -> Result<Uri, Failure> {
    let uri: Uri = url.parse().map_err(|error| failed(url, error))?;
    let has_user = uri.authority().is_some_and(|a| a.as_str().contains('@'));
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    if !is_web || has_user || uri.host().is_none_or(str::is_empty) {
        return Err(failed(
            url,
            "expected http:// or https:// and a host, without a user's name",
        ));
    }
    Ok(uri)
}

/// Where a redirect leads. What began with https does not go on without.
fn redirect(from: &Uri, location: &str) -> Result<Uri, Failure> {
    let at = from.to_string();
    let wrong = |what: &str| {
        let to: String = shown(location).chars().take(200).collect();
        failed(&at, format!("the server redirects to {to:?}: {what}"))
    };
    if location.is_empty() || location.len() > LONGEST_URL {
        return Err(wrong("expected an address of at most 2048 bytes"));
    }
    let (scheme, authority) = (
        from.scheme_str().unwrap_or_default(),
        from.authority().map_or("", |authority| authority.as_str()),
    );
    let has_scheme = location
        .find([':', '/', '?', '#'])
        .is_some_and(|end| location[end..].starts_with(':'));
    let absolute = if has_scheme {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let to = parse(&absolute).map_err(|_| wrong("expected an http or https address"))?;
    if scheme == "https" && to.scheme_str() != Some("https") {
        return Err(wrong("expected that https stays https"));
    }
    Ok(to)
}
