//! Over real connections on loopback.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::*;
use crate::model::NamespacedName;
use crate::observe::http::conversations::PATIENCE;
use crate::table::HealthCheck;

const SOON: Duration = Duration::from_millis(2);

/// A server whose health has changed, once it has taken that up.
async fn told(server: &mut HealthServer, checks: &[(u16, usize)]) -> Listening {
    server.listening.mark_unchanged();
    server.tell(NodeHealth {
        checks: checks
            .iter()
            .map(|&(port, local_endpoints)| HealthCheck {
                port,
                service: NamespacedName::new("shop", format!("web-{port}")),
                local_endpoints,
            })
            .collect(),
        ..NodeHealth::default()
    });
    server.listening.changed().await.unwrap();
    server.listening()
}

fn server(node: Option<SocketAddr>) -> HealthServer {
    let mut server = HealthServer::start(None);
    server.task.abort();
    let (tell, listening) = watch::channel(Listening::default());
    let ports = Ports {
        node,
        open: BTreeMap::new(),
        words: server.word.subscribe(),
        tell,
        asked: Arc::clone(&server.asked),
    };
    server.task = tokio::spawn(ports.serve(SOON));
    server.listening = listening;
    server
}

/// A port that nobody has, as likely as not until the test is over.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// What comes back, until the server closes.
async fn get(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn each_service_with_a_health_check_is_answered_for_at_its_own_port() {
    let mut server = server(None);
    let [some, none] = [free_port().await, free_port().await];
    let listening = told(&mut server, &[(some.min(none), 1), (some.max(none), 1)]).await;
    assert_eq!((listening.ports, listening.problems.len()), (2, 0));
    let mut checks = [(some, 2), (none, 0)];
    checks.sort_unstable();
    told(&mut server, &checks).await;
    let answer = get(some, "/whatever?it=is").await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for header in [
        "content-type: application/json",
        "x-content-type-options: nosniff",
        "x-load-balancing-endpoint-weight: 2",
    ] {
        assert!(head.lines().any(|line| line == header), "{head}");
    }
    assert!(
        body.contains(&format!("\"name\": \"web-{some}\"")),
        "{body}"
    );
    let answer = get(none, "/").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("x-load-balancing-endpoint-weight: 0\r\n"));
    // One of them goes.
    told(&mut server, &[(some, 2)]).await;
    assert!(get(some, "/").await.unwrap().starts_with("HTTP/1.1 200 "));
    let gone = get(none, "/").await.unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_client_of_either_family_is_answered() {
    let mut server = server(None);
    let port = free_port().await;
    told(&mut server, &[(port, 1)]).await;
    let v6 = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await;
    assert!(v6.is_ok(), "{v6:?}");
    assert!(get(port, "/").await.is_ok());
}

#[tokio::test]
async fn the_node_answers_healthz_and_livez_and_counts_both() {
    let port = free_port().await;
    let mut server = server(Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)));
    told(&mut server, &[]).await;
    for path in ["/healthz", "/livez", "/livez"] {
        let answer = get(port, path).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\"lastUpdated\":"), "{answer}");
        assert!(!answer.contains("endpoint-weight"), "{answer}");
    }
    let other = get(port, "/metrics").await.unwrap();
    assert!(other.starts_with("HTTP/1.1 404 ") && other.ends_with("404 page not found\n"));
    let asked = server.asked();
    let count = |answers: &Answers| {
        let [ok, not] = [&answers.ok, &answers.unavailable];
        [ok, not].map(|count| count.load(Ordering::Relaxed))
    };
    assert_eq!(
        [count(&asked.healthz), count(&asked.livez)],
        [[1, 0], [2, 0]]
    );
}

#[tokio::test]
async fn a_port_that_another_holds_is_told_and_served_when_it_is_free() {
    let other = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = other.local_addr().unwrap().port();
    let mut server = server(None);
    let listening = told(&mut server, &[(port, 1)]).await;
    assert_eq!(listening.ports, 0);
    assert!(
        listening.problems[&port].contains("in use"),
        "{listening:?}"
    );
    drop(other);
    while server.listening().ports == 0 {
        server.listening.changed().await.unwrap();
    }
    assert!(server.listening().problems.is_empty());
    assert!(get(port, "/").await.unwrap().starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn who_connects_and_asks_nothing_keeps_no_load_balancer_from_its_answer() {
    let mut server = server(None);
    let [attacked, other] = [free_port().await, free_port().await];
    let mut checks = [(attacked, 1), (other, 1)];
    checks.sort_unstable();
    told(&mut server, &checks).await;
    let mut idle = Vec::new();
    for _ in 0..2 * CONNECTIONS {
        idle.push(TcpStream::connect(("127.0.0.1", attacked)).await.unwrap());
    }
    for port in [attacked, other] {
        let answer = timeout(PATIENCE / 2, get(port, "/")).await;
        assert!(answer.unwrap().unwrap().starts_with("HTTP/1.1 200 "));
    }
}
