//! One probe of a Pod, and what its answer means: a TCP connect, an HTTP GET or, in `grpc`, a gRPC health check.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::future::pending;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::failure::Failure;
use super::grpc;
use crate::model::Question;
use crate::pods::probe::Check;

/// Characters that are escaped in a path, as kubelets do. Escapes that are there already stay.
const NOT_IN_PATHS: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Asks once, within the probe's timeout.
pub(super) async fn ask(check: &Check) -> Result<(), Failure> {
    let within = check.timeout();
    let asked = async {
        let stream = TcpStream::connect(check.at).await?;
        match &check.probe.question {
            Question::Connect => Ok(()),
            Question::Get { path, headers } => get(stream, check.at, path, headers).await,
            Question::Grpc { service } => grpc::check_health(stream, check.at, service).await,
        }
    };
    timeout(within, asked)
        .await
        .unwrap_or(Err(Failure::TimedOut(within)))
}

/// Asks by HTTP. By the kubelet's rule a status from 200 to 399 passes.
async fn get(
    stream: TcpStream,
    at: SocketAddr,
    path: &str,
    headers: &[(String, String)],
) -> Result<(), Failure> {
    let request = request(at, path, headers)?;
    let answer = exchange(stream, request).await.map_err(|error| {
        // The cause of a broken connection says more than the fact.
        match error.is_parse() || error.is_parse_too_large() {
            true => Failure::NotHttp,
            false => Failure::Http(error),
        }
    })?;
    match answer.status().as_u16() {
        200..=399 => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

/// The head of the answer. Its body is of no interest.
async fn exchange(
    stream: TcpStream,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<Response<Incoming>> {
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await?;
    let driven = async {
        // The task that waits for the answer learns how the connection ends.
        let _ended = connection.await;
        pending().await
    };
    tokio::select! {
        answer = sender.send_request(request) => answer,
        answer = driven => answer,
    }
}

/// The request: without a body, and with default headers unless the probe gives its own.
fn request(
    at: SocketAddr,
    path: &str,
    given: &[(String, String)],
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let path = utf8_percent_encode(path, NOT_IN_PATHS).to_string();
    let mut request = Request::get(path).body(Empty::new())?;
    let headers: &mut HeaderMap = request.headers_mut();
    for (name, value) in given {
        headers.append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    let agent = concat!("yurt-net/", env!("CARGO_PKG_VERSION"));
    let host = HeaderValue::try_from(at.to_string())?;
    headers.entry(HOST).or_insert(host);
    headers
        .entry(USER_AGENT)
        .or_insert(HeaderValue::from_static(agent));
    headers
        .entry(ACCEPT)
        .or_insert(HeaderValue::from_static("*/*"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::model::{NamespacedName, ReadinessProbe};

    /// The text of a request as it is sent.
    async fn sent(path: &str, headers: &[(&str, &str)]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            String::from_utf8(text).unwrap()
        });
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let headers: Vec<_> = headers.iter().map(own).collect();
        let stream = TcpStream::connect(at).await.unwrap();
        get(stream, at, path, &headers).await.unwrap();
        let sent = server.await.unwrap();
        sent.replace(&at.to_string(), "ADDRESS")
    }

    #[tokio::test]
    async fn a_header_of_the_probe_takes_the_place_of_ours() {
        let with = sent("/ok?a=1", &[("host", "shop"), ("X-A", "b"), ("x-a", "c")]).await;
        assert!(with.starts_with("GET /ok?a=1 HTTP/1.1\r\n"), "{with}");
        for line in ["\r\nHost: shop\r\n", "\r\nX-A: b\r\n", "\r\nX-A: c\r\n"] {
            assert!(with.contains(line), "{with}");
        }
        assert!(!with.contains("ADDRESS"), "{with}");
        let without = sent("/", &[]).await;
        for line in [
            "\r\nHost: ADDRESS\r\n",
            "\r\nConnection: close\r\n",
            "\r\nUser-Agent: yurt-net/",
        ] {
            assert!(without.contains(line), "{without}");
        }
    }

    #[tokio::test]
    async fn a_path_is_escaped_where_it_must_be_and_only_there() {
        let said = sent("/a b/\u{e9}?q=%2F&x=\"|#1", &[]).await;
        let expected = "GET /a%20b/%C3%A9?q=%2F&x=%22%7C%231 HTTP/1.1\r\n";
        assert!(said.starts_with(expected), "{said}");
    }

    /// What a probe says of a server that gives this answer.
    async fn asked(answer: &'static str, question: Question) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _gone = stream.write_all(answer.as_bytes()).await;
            // Until the client hangs up.
            let _gone = stream.read_to_end(&mut Vec::new()).await;
        });
        let check = Check {
            pod: NamespacedName::new("shop", "web-0"),
            at,
            probe: ReadinessProbe {
                question,
                // A server that answers is waited for, however busy this machine is.
                timeout_seconds: if answer.is_empty() { 1 } else { 60 },
                ..ReadinessProbe::connect(at.port())
            },
        };
        let outcome = ask(&check).await.map_err(|failure| failure.to_string());
        server.await.unwrap();
        outcome
    }

    #[tokio::test]
    async fn a_server_passes_that_answers_what_it_is_asked() {
        let get = || Question::Get {
            path: "/".to_owned(),
            headers: Vec::new(),
        };
        assert_eq!(asked("", Question::Connect).await, Ok(()));
        for (answer, expected) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", Ok(())),
            ("HTTP/1.1 302 Found\r\n\r\n", Ok(())),
            ("HTTP/1.0 200\r\n\r\n", Ok(())),
            ("HTTP/1.1 200 OK\nA: b\n\n", Ok(())),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
                Ok(()),
            ),
            ("HTTP/1.1 404 Not Found\r\n\r\n", Err("status 404")),
            ("HTTP/1.1 500 Oh\r\n\r\n", Err("status 500")),
            ("hello\n", Err("an answer that is not HTTP")),
            ("SSH-2.0-x\r\n", Err("an answer that is not HTTP")),
            ("HTTP/2 200\r\n\r\n", Err("an answer that is not HTTP")),
            (
                "HTTP/1.1 2000 OK\r\n\r\n",
                Err("an answer that is not HTTP"),
            ),
            ("", Err("no answer within 1 s")),
        ] {
            let expected = expected.map_err(str::to_owned);
            assert_eq!(asked(answer, get()).await, expected, "{answer:?}");
        }
        let grpc = || Question::Grpc {
            service: String::new(),
        };
        for (answer, failure) in [
            (
                "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
                "an answer that is not HTTP/2",
            ),
            ("", "no answer within 1 s"),
        ] {
            let expected = Err(failure.to_owned());
            assert_eq!(asked(answer, grpc()).await, expected, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn where_nobody_listens_nobody_passes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        drop(listener);
        let check = Check {
            pod: NamespacedName::new("shop", "web-0"),
            at,
            probe: ReadinessProbe::connect(at.port()),
        };
        let failure = ask(&check).await.unwrap_err();
        assert!(matches!(failure, Failure::Io(_)), "{failure}");
    }
}
