//! Downloads from servers on this computer that answer as they are told.

use super::*;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};
use tokio_rustls::TlsAcceptor;

/// What a server does with a request.
pub(crate) enum Reply {
    /// Says this and ends the connection.
    Says(Vec<u8>),
    /// Says this and nothing more, as long as it is listened to.
    Stalls(Vec<u8>),
}

/// A server that is left running until the tests end.
pub(crate) fn serve(reply: impl Fn(&str) -> Reply + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), &reply);
        }
    });
    address
}

fn answer(mut stream: TcpStream, reply: &impl Fn(&str) -> Reply) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let first = lines.next().and_then(Result::ok).unwrap_or_default();
    // Up to the empty line.
    while lines
        .next()
        .is_some_and(|line| line.is_ok_and(|l| !l.is_empty()))
    {}
    let path = first.split(' ').nth(1).unwrap_or_default();
    // Who asks may have gone.
    let _ = match reply(path) {
        Reply::Says(bytes) => stream.write_all(&bytes),
        Reply::Stalls(bytes) => {
            let _ = stream.write_all(&bytes);
            stream.read_to_end(&mut Vec::new()).map(drop)
        }
    };
}

/// The answer 200 with a body.
pub(crate) fn ok(body: &[u8]) -> Vec<u8> {
    let mut answer = head(body.len() as u64);
    answer.extend(body);
    answer
}

/// The head of an answer whose body has `len` bytes.
pub(crate) fn head(len: u64) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n").into_bytes()
}

fn moved(to: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

/// Asks this computer too, and waits for a piece no longer than `piece`.
pub(crate) fn web(piece: Duration) -> Web {
    Web {
        roots: Some(RootCertStore::empty()),
        is_refused: |_| false,
        limits: Limits {
            piece,
            ..Web::system().limits
        },
    }
}

const LONG: Duration = Duration::from_secs(600);

/// All of a file, and where it was found.
async fn whole(web: &Web, url: &str) -> Result<(Vec<u8>, String), Failure> {
    let mut answer = web.get(url).await?;
    let mut all = Vec::new();
    while let Some(piece) = answer.next().await? {
        all.extend(piece);
    }
    assert_eq!(all.len() as u64, answer.len());
    Ok((all, answer.url().to_owned()))
}

#[tokio::test]
async fn a_file_is_found_behind_redirects() {
    let body = vec![7; 300_000];
    let expected = body.clone();
    let server = serve(move |path| {
        Reply::Says(match path {
            "/a/first" => moved("second?to=http://elsewhere/"),
            "/a/second?to=http://elsewhere/" => moved("/b?key=secret"),
            "/b?key=secret" => ok(&body),
            other => panic!("{other}"),
        })
    });
    let found = whole(&web(LONG), &format!("http://{server}/a/first")).await;
    assert_eq!(found, Ok((expected, format!("http://{server}/b"))));
}

#[tokio::test]
async fn a_failure_names_the_address_and_what_was_found() {
    let server = serve(|path| match path {
        "/none?key=secret" => {
            Reply::Says(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec())
        }
        "/endless" => Reply::Says(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec(),
        ),
        "/round" => Reply::Says(moved("/round")),
        "/away" => Reply::Says(moved("ftp://a/b")),
        "/nowhere" => Reply::Says(moved("")),
        "/stalls" => Reply::Stalls([head(5), b"ab".to_vec()].concat()),
        "/short" => Reply::Says([head(5), b"abc".to_vec()].concat()),
        _ => Reply::Says(b"SSH-2.0\r\n\r\n".to_vec()),
    });
    let web = web(Duration::from_millis(200));
    for (path, expected) in [
        (
            "/none?key=secret",
            "/none: the server answered 404 Not Found, expected 200 OK",
        ),
        (
            "/endless",
            "/endless: the server does not say how long the file is (no Content-Length)",
        ),
        ("/round", "/round: the server redirects more than 5 times"),
        (
            "/away",
            "/away: the server redirects to \"ftp://a/b\": expected an http or https address",
        ),
        (
            "/nowhere",
            "/nowhere: the server redirects to \"\": expected an address of at most 2048 bytes",
        ),
        (
            "/stalls",
            "/stalls: broke off after 2 of 5 bytes: the server was silent for 0.2 s",
        ),
    ] {
        let failure = whole(&web, &format!("http://{server}{path}"))
            .await
            .unwrap_err();
        let expected = format!("http://{server}{expected}");
        assert_eq!(
            (failure.reason, failure.message),
            ("DownloadFailed", expected)
        );
    }
    for (path, part) in [
        ("/short", "broke off after 3 of 5 bytes: "),
        ("/ssh", "invalid"),
    ] {
        let failure = whole(&web, &format!("http://{server}{path}"))
            .await
            .unwrap_err();
        assert!(failure.message.contains(part), "{}", failure.message);
    }
    for url in ["ftp://a/b", "http://me@a/b", "/a", ""] {
        let failure = whole(&web, url).await.unwrap_err();
        assert_eq!(failure.reason, "DownloadFailed", "{url}");
    }
}

#[tokio::test]
async fn the_hosts_own_addresses_are_not_asked() {
    let server = serve(|_| Reply::Says(ok(b"secret")));
    let url = format!("http://{server}/a");
    let failure = whole(&Web::system(), &url).await.unwrap_err();
    assert_eq!(
        (failure.reason, failure.message),
        (
            "AddressRefused",
            format!(
                "{url}: 127.0.0.1 is 127.0.0.1, an address of the host itself or of its link: expected another"
            )
        )
    );
    // Neither behind a redirect.
    let first = serve(|_| Reply::Says(moved("http://127.0.0.2/")));
    let web = Web {
        is_refused: |address| address == IpAddr::from([127, 0, 0, 2]),
        ..web(LONG)
    };
    let failure = whole(&web, &format!("http://{first}/a")).await.unwrap_err();
    assert_eq!(failure.reason, "AddressRefused");
}

#[test]
fn addresses_of_the_host_are_known() {
    for own in [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "fe80::1",
        "ff02::1",
    ] {
        assert!(is_of_the_host(own.parse().unwrap()), "{own}");
    }
    for other in [
        "10.0.0.1",
        "192.168.1.1",
        "93.184.216.34",
        "fd00::1",
        "2001:db8::1",
        "::ffff:10.0.0.1",
    ] {
        assert!(!is_of_the_host(other.parse().unwrap()), "{other}");
    }
}

#[test]
fn a_redirect_is_read_from_where_it_stands() {
    let from: Uri = "https://a.example:8443/x/y?z".parse().unwrap();
    for (location, expected) in [
        ("https://b/c", Ok("https://b/c")),
        ("//b/c", Ok("https://b/c")),
        ("/c?d", Ok("https://a.example:8443/c?d")),
        ("c:d", Err("expected an http or https address")),
        ("c/d:e", Ok("https://a.example:8443/x/c/d:e")),
        ("http://b/c", Err("expected that https stays https")),
        ("https://me@b/c", Err("expected an http or https address")),
    ] {
        match (redirect(&from, location), expected) {
            (Ok(to), Ok(expected)) => assert_eq!(to, expected),
            (Err(failure), Err(part)) => {
                assert!(failure.message.ends_with(part), "{}", failure.message);
            }
            (found, _) => panic!("{location}: {found:?}"),
        }
    }
}

#[tokio::test]
async fn a_server_is_trusted_if_somebody_vouches_for_it() {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Refused by who does not trust it.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(&ok(b"hello")).await;
            let _ = stream.shutdown().await;
        }
    });
    let url = format!("https://localhost:{port}/a");
    let trusting = |certificate: &rcgen::Certificate| {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        Web {
            roots: Some(roots),
            ..web(LONG)
        }
    };
    let found = whole(&trusting(&cert), &url).await;
    assert_eq!(found, Ok((b"hello".to_vec(), url.clone())));
    let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let failure = whole(&trusting(&other.cert), &url).await.unwrap_err();
    assert!(
        failure.message.starts_with(&format!("{url}: TLS: ")),
        "{}",
        failure.message
    );
    let failure = whole(&web(LONG), &url).await.unwrap_err();
    assert!(
        failure.message.contains("knows no certificate authority"),
        "{}",
        failure.message
    );
    server.abort();
}
