//! Over real connections on loopback, with a loop that answers as the agent's does.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A server with a loop that knows one metric, and its address.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut scrapes) = mpsc::channel::<Scrape>(1);
    tokio::spawn(accept(listener, sender));
    tokio::spawn(async move {
        while let Some(scrape) = scrapes.recv().await {
            let answer = match scrape.question {
                Question::Metrics => Ok("yurtnet_ready 1\n".to_owned()),
                Question::Health => Err("no: programs: not attached".to_owned()),
            };
            scrape.reply.send(answer).unwrap();
        }
    });
    address
}

/// What comes back for these bytes, until the server closes.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that closes with unread bytes resets the connection: what came before counts.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
}

#[tokio::test]
async fn a_scrape_gets_the_metrics_in_the_format_that_prometheus_reads() {
    let answer = exchange(server().await, &get("/metrics?x=1")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(body, "yurtnet_ready 1\n");
}

#[tokio::test]
async fn everything_but_metrics_and_health_is_not_there() {
    let address = server().await;
    let health = exchange(address, &get("/healthz")).await;
    assert!(health.starts_with("HTTP/1.1 503 ") && health.ends_with("not attached"));
    let post = "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    for request in [&get("/"), &get("/metrics/"), &get("/debug/pprof"), post] {
        let answer = exchange(address, request).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{request}: {answer}");
    }
}

#[tokio::test]
async fn what_is_no_request_and_headers_without_end_are_refused() {
    let address = server().await;
    let garbage = exchange(address, "\u{16}\u{3}\u{1}\r\n\r\n").await;
    assert!(garbage.starts_with("HTTP/1.1 400 "), "{garbage}");
    let long = format!(
        "GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let answer = exchange(address, &long).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
    let after = exchange(address, &get("/metrics")).await;
    assert!(after.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_client_waits_while_all_connections_are_taken_and_is_served_then() {
    let address = server().await;
    let mut taken = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metr").await.unwrap();
        taken.push(stream);
    }
    let request = get("/metrics");
    let mut waiting = tokio::spawn(async move { exchange(address, &request).await });
    let early = timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    taken.pop();
    assert!(waiting.await.unwrap().starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_port_that_is_taken_is_served_when_it_is_free() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap();
    let listening = tokio::spawn(listen(address, Duration::from_millis(1)));
    sleep(Duration::from_millis(20)).await;
    assert!(!listening.is_finished());
    drop(other);
    let listener = listening.await.unwrap();
    assert_eq!(listener.local_addr().unwrap(), address);
}

#[tokio::test]
async fn an_agent_that_stops_answers_that_it_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, scrapes) = mpsc::channel(1);
    drop(scrapes);
    tokio::spawn(accept(listener, sender));
    let answer = exchange(address, &get("/metrics")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}
