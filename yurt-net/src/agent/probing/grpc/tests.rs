use std::time::Duration;

use bytes::BytesMut;
use h2::Reason;
use h2::server::{self, SendResponse};
use http::Response;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::super::ask::ask;
use super::*;
use crate::model::{NamespacedName, Question, ReadinessProbe};
use crate::pods::probe::Check;

/// Of a question that is answered, seconds.
const PATIENCE: u32 = 30;

fn check(at: SocketAddr, service: &str, timeout_seconds: u32) -> Check {
    Check {
        pod: NamespacedName::new("shop", "web-0"),
        at,
        probe: ReadinessProbe {
            question: Question::Grpc {
                service: service.to_owned(),
            },
            timeout_seconds,
            ..ReadinessProbe::connect(at.port())
        },
    }
}

/// What comes of a server that answers like that; and what it was asked, if all of its connection was in order.
async fn asked(
    service: &str,
    answer: impl FnOnce(SendResponse<Bytes>) + Send + 'static,
) -> (Result<(), String>, (Request<()>, BytesMut)) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = server::handshake(stream).await.unwrap();
        let (request, respond) = connection.accept().await.unwrap().unwrap();
        let call: JoinHandle<_> = tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut sent = BytesMut::new();
            while let Some(data) = body.data().await {
                sent.extend_from_slice(&data.unwrap());
            }
            answer(respond);
            (Request::from_parts(head, ()), sent)
        });
        // Nothing else is asked, and then it ends as it should.
        assert!(connection.accept().await.is_none());
        call.await.unwrap()
    });
    let outcome = ask(&check(at, service, PATIENCE)).await;
    let outcome = outcome.map_err(|failure| failure.to_string());
    (outcome, server.await.unwrap())
}

fn head(headers: &[(&'static str, &str)]) -> Response<()> {
    let mut response = Response::new(());
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc")];

/// As servers answer whose health check works.
fn says(message: &'static [u8]) -> impl FnOnce(SendResponse<Bytes>) + Send {
    move |mut respond| {
        let mut body = respond.send_response(head(GRPC), false).unwrap();
        body.send_data(framed(message).into(), false).unwrap();
        let trailers = head(&[("grpc-status", "0")]);
        body.send_trailers(trailers.headers().clone()).unwrap();
    }
}

/// As servers answer a call that fails at once.
fn fails(status: &'static str) -> impl FnOnce(SendResponse<Bytes>) + Send {
    move |mut respond| {
        let headers = [GRPC, &[("grpc-status", status)]].concat();
        respond.send_response(head(&headers), true).unwrap();
    }
}

fn no(failure: &str) -> Result<(), String> {
    Err(failure.to_owned())
}

#[tokio::test]
async fn who_serves_passes_and_is_asked_as_the_kubelet_asks() {
    let (outcome, (request, sent)) = asked("shop.Cart", says(&[8, 1])).await;
    assert_eq!(outcome, Ok(()));
    assert_eq!(request.method(), "POST");
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(&sent[..], b"\0\0\0\0\x0b\x0a\x09shop.Cart");
    // What a later version may add is passed over.
    let (outcome, (_, sent)) = asked("", says(&[0x12, 2, 8, 2, 8, 1, 0x1d, 0, 0, 0, 0])).await;
    assert_eq!(outcome, Ok(()));
    assert_eq!(sent, [0; 5][..]);
}

#[tokio::test]
async fn who_does_not_serve_does_not_pass_and_it_is_said_why() {
    for (message, word) in [
        (&[8, 2][..], "NOT_SERVING"),
        (&[8, 3], "SERVICE_UNKNOWN"),
        (&[], "UNKNOWN"),
    ] {
        let (outcome, _) = asked("", says(message)).await;
        assert_eq!(outcome, no(&format!("the health check says {word}")));
    }
    for (status, failure) in [
        (
            "12",
            "gRPC status 12: it does not serve grpc.health.v1.Health",
        ),
        ("5", "gRPC status 5: its health check knows no such service"),
        ("14", "gRPC status 14"),
    ] {
        assert_eq!(asked("", fails(status)).await.0, no(failure));
    }
    // A handler that fails in the end.
    let late = |mut respond: SendResponse<Bytes>| {
        let mut body = respond.send_response(head(GRPC), false).unwrap();
        body.send_data(framed(&[8, 1]).into(), false).unwrap();
        let trailers = head(&[("grpc-status", "13")]);
        body.send_trailers(trailers.headers().clone()).unwrap();
    };
    assert_eq!(asked("", late).await.0, no("gRPC status 13"));
}

/// Servers that answer from the headers alone want no more of the request (RFC 9113, 8.1). H2's own forgets the answer
/// when it resets.
#[tokio::test]
async fn an_error_is_understood_although_the_stream_is_reset_behind_it() {
    const LAST_OF_THE_REQUEST: &[u8] = b"\0\0\x05\0\x01\0\0\0\x01\0\0\0\0\0";
    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    const HEADERS: &[u8] = b"\0\0\x11\x01\x05\0\0\0\x01\x88\0\x0bgrpc-status\x0212";
    const RESET: &[u8] = b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\0";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(LAST_OF_THE_REQUEST) {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        let answer = [SETTINGS, HEADERS, RESET].concat();
        stream.write_all(&answer).await.unwrap();
        stream.read_to_end(&mut request).await.unwrap();
    });
    let failure = ask(&check(at, "", PATIENCE)).await.unwrap_err();
    assert!(matches!(failure, Failure::GrpcStatus(12)), "{failure}");
    server.await.unwrap();
}

#[tokio::test]
async fn what_is_no_health_check_does_not_pass_and_little_of_it_is_read() {
    let web = |status: u16, text: Vec<u8>| {
        move |mut respond: SendResponse<Bytes>| {
            let mut head = head(&[("content-type", "text/plain")]);
            *head.status_mut() = StatusCode::from_u16(status).unwrap();
            let mut body = respond.send_response(head, false).unwrap();
            body.send_data(text.into(), true).unwrap();
        }
    };
    assert_eq!(asked("", web(404, Vec::new())).await.0, no("status 404"));
    for length in [0, 7, MOST_READ + 1, 1 << 20] {
        let (outcome, _) = asked("", web(200, vec![0; length])).await;
        assert_eq!(outcome, no("an answer that is not gRPC"), "{length}");
    }
    let long = "x".repeat(3 * 8 * 1024);
    let many = move |mut respond: SendResponse<Bytes>| {
        let headers = head(&[("grpc-status", "0"), ("grpc-message", &long)]);
        respond.send_response(headers, true).unwrap();
    };
    let (outcome, _) = asked("", many).await;
    assert_eq!(outcome, no("HTTP/2: unspecific protocol error detected"));
    let breaks_off = |mut respond: SendResponse<Bytes>| respond.send_reset(Reason::INTERNAL_ERROR);
    let (outcome, _) = asked("", breaks_off).await;
    assert_eq!(outcome, no("HTTP/2: unexpected internal error encountered"));
}

#[tokio::test]
async fn a_server_that_takes_the_question_and_never_answers_runs_out_of_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = server::handshake(stream).await.unwrap();
        let asked = connection.accept().await;
        // Until the other one hangs up, whatever it says then.
        let _end = connection.accept().await;
        assert!(asked.unwrap().is_ok());
    });
    let started = std::time::Instant::now();
    let failure = ask(&check(at, "", 1)).await.unwrap_err();
    assert_eq!(failure.to_string(), "no answer within 1 s");
    assert!(started.elapsed() >= Duration::from_secs(1));
    server.await.unwrap();
}

#[test]
fn an_answer_is_one_whole_message_that_nobody_has_compressed() {
    for (answer, passes) in [
        (&[0, 0, 0, 0, 2, 8, 1][..], true),
        (&[1, 0, 0, 0, 2, 8, 1], false),
        (&[0, 0, 0, 0, 3, 8, 1], false),
        (&[0, 0, 0, 0, 1, 8, 1], false),
        (&[0, 0, 0, 0, 1, 8], false),
        (&[0, 0, 0, 0, 3, 8, 0x81, 0], true),
        (&[0, 0, 0, 0, 4, 0x12, 3, 8, 1], false),
        (&[0, 0, 0, 0, 2, 0x0b, 1], false),
        (&[0, 0, 0], false),
        (&[], false),
    ] {
        assert_eq!(judge(Some(0), answer).is_ok(), passes, "{answer:?}");
        assert!(judge(Some(2), answer).is_err());
        assert!(judge(None, answer).is_err());
    }
}

proptest! {
    #[test]
    fn a_service_is_written_as_protobuf_has_it(service in ".{1,300}") {
        let message = request_for(&service);
        let mut rest = &message[1..];
        prop_assert_eq!(message[0], 0x0a);
        prop_assert_eq!(varint(&mut rest), u64::try_from(service.len()).ok());
        prop_assert_eq!(rest, service.as_bytes());
        let frame = framed(&message);
        prop_assert_eq!(unframed(&frame), Some(&message[..]));
    }

    #[test]
    fn any_answer_is_judged(answer in prop::collection::vec(any::<u8>(), 0..64)) {
        let _either = judge(Some(0), &framed(&answer));
        let _either = judge(Some(0), &answer);
    }
}
