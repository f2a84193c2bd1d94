//! A connection to a server on the web.

use super::{Web, failed, shown};
use crate::instance::core::Failure;
use http_body_util::Empty;
use hyper::{
    Request, Response, Uri,
    body::{Bytes, Incoming},
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// A connection for one request.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    /// What moves its bytes; ends when this is dropped.
    _driver: JoinSet<()>,
}

impl Connection {
    pub async fn send(
        &mut self,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        self.sender.send_request(request).await
    }
}

/// Whether an address is the host's own or means nothing beyond its link.
pub(super) fn is_of_the_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_of_the_host(v4.into()),
            None => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unicast_link_local()
                    // An IPv4 address in the old form: reaches nothing that should be reached.
                    || v6.segments()[..6] == Ipv6Addr::UNSPECIFIED.segments()[..6]
            }
        },
    }
}

pub(super) async fn connect(web: &Web, uri: &Uri) -> Result<Connection, Failure> {
    let url = uri.to_string();
    let is_https = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let stream = open(web, &url, host, port).await?;
    if !is_https {
        return begin(&url, stream).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(&url, error))?;
    let tls = TlsConnector::from(Arc::new(trusting(web, &url)?));
    let stream = timeout(web.limits.connect, tls.connect(name, stream))
        .await
        .map_err(|_| failed(&url, "the server does not end the TLS handshake"))?
        .map_err(|error| failed(&url, format!("TLS: {error}")))?;
    begin(&url, stream).await
}

async fn open(web: &Web, url: &str, host: &str, port: u16) -> Result<TcpStream, Failure> {
    let found = timeout(web.limits.connect, lookup_host((host, port)))
        .await
        .map_err(|_| failed(url, format!("no answer where {host} is")))?
        .map_err(|error| failed(url, format!("{host}: {error}")))?;
    let (refused, addresses): (Vec<SocketAddr>, Vec<_>) =
        found.partition(|address| (web.is_refused)(address.ip()));
    if let ([], Some(refused)) = (&addresses[..], refused.first()) {
        return Err(Failure::new(
            "AddressRefused",
            format!(
                "{}: {host} is {}, an address of the host itself or of its link: expected another",
                shown(url),
                refused.ip()
            ),
        ));
    }
    let mut why = format!("{host} has no address");
    for address in addresses {
        match timeout(web.limits.connect, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => why = format!("{address}: {error}"),
            Err(_) => why = format!("{address}: no answer"),
        }
    }
    Err(failed(url, why))
}

/// TLS with servers that the roots vouch for.
fn trusting(web: &Web, url: &str) -> Result<ClientConfig, Failure> {
    let roots = match &web.roots {
        Some(roots) => roots.clone(),
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    if roots.is_empty() {
        return Err(failed(
            url,
            "this host knows no certificate authority: install ca-certificates, or name a file of them in SSL_CERT_FILE of the agent",
        ));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(url, error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

async fn begin<S>(url: &str, stream: S) -> Result<Connection, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(url, error))?;
    let mut driver = JoinSet::new();
    // How it ends is told to who waits for the answer.
    driver.spawn(async move { drop(connection.await) });
    Ok(Connection {
        sender,
        _driver: driver,
    })
}
