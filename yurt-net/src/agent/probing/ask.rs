//! One question to a Pod, and what its answer means: a TCP connect, an HTTP GET or, in `grpc`, a gRPC health check.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::failure::Failure;
use super::grpc;
use crate::model::Question;
use crate::pods::probe::Check;

/// A status line is shorter.
const MOST_READ: usize = 256;

/// Asks once; to the end of the probe's timeout at most.
pub(super) async fn ask(check: &Check) -> Result<(), Failure> {
    let within = check.timeout();
    let asked = async {
        let mut stream = TcpStream::connect(check.at).await?;
        match &check.probe.question {
            Question::Connect => Ok(()),
            Question::Get { path, headers } => get(&mut stream, check.at, path, headers).await,
            Question::Grpc { service } => grpc::check_health(stream, check.at, service).await,
        }
    };
    timeout(within, asked)
        .await
        .unwrap_or(Err(Failure::TimedOut(within)))
}

/// As the kubelet judges it: 200 to 399.
async fn get(
    stream: &mut TcpStream,
    at: SocketAddr,
    path: &str,
    headers: &[(String, String)],
) -> Result<(), Failure> {
    stream
        .write_all(request(at, path, headers).as_bytes())
        .await?;
    let mut answer = Vec::with_capacity(MOST_READ);
    while !answer.contains(&b'\n') && answer.len() < MOST_READ {
        if stream.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    match status(&answer) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(Failure::Status(status)),
        None => Err(Failure::NotHttp),
    }
}

/// Without a body, and with the headers of its own that a probe does not give.
fn request(at: SocketAddr, path: &str, headers: &[(String, String)]) -> String {
    let mut request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
    let own = [
        ("Host", at.to_string()),
        (
            "User-Agent",
            concat!("yurt-net/", env!("CARGO_PKG_VERSION")).to_owned(),
        ),
        ("Accept", "*/*".to_owned()),
    ];
    let is_given = |name: &str| {
        headers
            .iter()
            .any(|(own, _)| own.eq_ignore_ascii_case(name))
    };
    let own = own.iter().filter(|(name, _)| !is_given(name));
    let own = own.map(|(name, value)| (*name, value.as_str()));
    let given = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in own.chain(given) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request
}

/// The status code of the first line of an answer.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    words
        .next()
        .filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|code| code.len() == 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::model::{NamespacedName, ReadinessProbe};

    #[test]
    fn the_status_is_read_from_the_first_line() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nA: HTTP/1.1 500\r\n", Some(200)),
            ("HTTP/1.0 503\r\n", Some(503)),
            ("HTTP/1.1 404 Not Found", Some(404)),
            ("HTTP/2 200\r\n", None),
            ("HTTP/1.1 2000 OK\r\n", None),
            ("HTTP/1.1\r\n200", None),
            ("SSH-2.0-x\r\n", None),
            ("", None),
        ] {
            assert_eq!(status(answer.as_bytes()), expected, "{answer:?}");
        }
    }

    #[test]
    fn a_header_of_the_probe_takes_the_place_of_ours() {
        let headers = [
            ("host".to_owned(), "shop".to_owned()),
            ("X-A".to_owned(), "b".to_owned()),
        ];
        let at = SocketAddr::from(([10, 1, 0, 2], 81));
        let with = request(at, "/ok", &headers);
        assert!(with.starts_with("GET /ok HTTP/1.1\r\n") && with.ends_with("\r\n\r\n"));
        assert!(with.contains("\r\nhost: shop\r\n") && with.contains("\r\nX-A: b\r\n"));
        assert!(!with.contains("10.1.0.2"));
        assert!(request(at, "/", &[]).contains("\r\nHost: 10.1.0.2:81\r\n"));
    }

    /// What is said of a server that answers each question like that.
    async fn asked(answer: &'static str, question: Question) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _gone = stream.write_all(answer.as_bytes()).await;
            // Until the other one hangs up.
            let _gone = stream.read_to_end(&mut Vec::new()).await;
        });
        let check = Check {
            pod: NamespacedName::new("shop", "web-0"),
            at,
            probe: ReadinessProbe {
                question,
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
            ("HTTP/1.1 500 Oh\r\n\r\n", Err("status 500")),
            ("hello\n", Err("an answer that is not HTTP")),
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
