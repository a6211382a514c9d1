//! Over real connections on loopback, with a loop that answers as the agent's does.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::observe::http::conversations::PATIENCE;

const CONFIGZ: &str = "{\"kubeproxy.config.k8s.io\":{}}";

/// A server with a loop that knows one metric, and its address.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut scrapes) = mpsc::channel::<Scrape>(1);
    tokio::spawn(accept(listener, CONFIGZ.into(), sender));
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
async fn whoever_asks_kube_proxy_for_its_mode_and_its_configuration_is_answered() {
    let address = server().await;
    let body = async |path: &str| {
        let answer = exchange(address, &get(path)).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        (
            head.contains("\r\ncontent-type: application/json\r\n"),
            body.to_owned(),
        )
    };
    assert_eq!(body("/proxyMode").await, (false, "yurt-net".to_owned()));
    assert_eq!(body("/configz").await, (true, CONFIGZ.to_owned()));
    // Services are not served, which a restart would not change.
    assert_eq!(body("/livez").await, (false, "ok".to_owned()));
    assert!(
        exchange(address, &get("/readyz"))
            .await
            .starts_with("HTTP/1.1 503 ")
    );
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
async fn who_connects_and_asks_nothing_keeps_nobody_from_being_answered() {
    let address = server().await;
    let mut idle = Vec::new();
    for number in 0..10 * CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /metr").await.unwrap();
        }
        idle.push(stream);
    }
    // The least patient prober gives up long before an idle connection's time is over.
    let answer = timeout(PATIENCE / 2, exchange(address, &get("/metrics"))).await;
    assert!(answer.unwrap().starts_with("HTTP/1.1 200 "));
    // The first of them have given way, and the last have not.
    let mut rest = Vec::new();
    let _ = idle[0].read_to_end(&mut rest).await;
    let mut last = idle.pop().unwrap();
    last.write_all(get("/metrics").as_bytes()).await.unwrap();
    last.read_to_end(&mut rest).await.unwrap();
    assert!(rest.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_client_waits_while_all_others_are_being_answered_and_is_served_then() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut scrapes) = mpsc::channel::<Scrape>(64);
    tokio::spawn(accept(listener, CONFIGZ.into(), sender));
    let ask = || tokio::spawn(async move { exchange(address, &get("/metrics")).await });
    let answered: Vec<_> = (0..CONNECTIONS).map(|_| ask()).collect();
    let mut asked = Vec::new();
    for _ in 0..CONNECTIONS {
        asked.push(scrapes.recv().await.unwrap());
    }
    let late = ask();
    let early = timeout(Duration::from_millis(100), scrapes.recv()).await;
    assert!(early.is_err(), "there is no place for it");
    for scrape in asked {
        scrape.reply.send(Ok("yes".to_owned())).unwrap();
    }
    let scrape = scrapes.recv().await.unwrap();
    scrape.reply.send(Ok("yes".to_owned())).unwrap();
    for answer in answered.into_iter().chain([late]) {
        assert!(answer.await.unwrap().ends_with("yes"));
    }
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
    tokio::spawn(accept(listener, CONFIGZ.into(), sender));
    let answer = exchange(address, &get("/metrics")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}
