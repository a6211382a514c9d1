//! The health check of gRPC (grpc.health.v1.Health/Check), as the kubelet asks it: HTTP/2 from the first byte, without
//! TLS.
//!
//! Each check has a connection of its own, of which little is read.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, Request, StatusCode};
use tokio::net::TcpStream;

use super::failure::Failure;

/// Bytes of the answer that are read: a frame with a status takes seven.
const MOST_READ: usize = 256;
/// Bytes that the server may send before the agent tells it that they are too many.
const WINDOW: u32 = 1024;
/// Bytes of the headers and of the trailers, which may hold a message.
const MOST_HEADERS: u32 = 8 * 1024;
/// The head of a message: whether it is compressed, and its length.
const FRAME_HEAD: usize = 5;

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            // Bytes from the server that are not HTTP/2.
            Some(_) if error.is_library() && error.is_go_away() => Self::NotHttp2,
            // Without the text that the server may add, which can be long.
            Some(reason) => Self::Http2(reason),
            None => Self::Io(io::Error::other(error)),
        }
    }
}

/// Passes if the server says SERVING about the service; "" is the server itself.
pub(super) async fn check_health(
    stream: TcpStream,
    at: SocketAddr,
    service: &str,
) -> Result<(), Failure> {
    let (sender, connection) = Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW)
        .max_header_list_size(MOST_HEADERS)
        .handshake(stream)
        .await?;
    // The connection says goodbye and ends once the call is done. Its errors are also the call's.
    let (outcome, _connection) = tokio::join!(call(sender, at, service), connection);
    outcome
}

async fn call(sender: SendRequest<Bytes>, at: SocketAddr, service: &str) -> Result<(), Failure> {
    let request = Request::post(format!("http://{at}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, concat!("yurt-net/", env!("CARGO_PKG_VERSION")))
        .body(())?;
    let mut sender = sender.ready().await?;
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(framed(&request_for(service)).into(), true)?;
    let (head, mut body) = response.await?.into_parts();
    if head.status != StatusCode::OK {
        return Err(Failure::Status(head.status.as_u16()));
    }
    let mut answer = Vec::new();
    while let Some(data) = body.data().await {
        answer.extend_from_slice(&data?);
        if answer.len() > MOST_READ {
            return Err(Failure::NotGrpc);
        }
    }
    // A call that fails at once has its trailers as headers.
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    judge(grpc_status(&trailers), &answer)
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

fn judge(grpc_status: Option<u32>, answer: &[u8]) -> Result<(), Failure> {
    match grpc_status {
        Some(0) => {}
        Some(status) => return Err(Failure::GrpcStatus(status)),
        None => return Err(Failure::NotGrpc),
    }
    match unframed(answer).and_then(serving_status) {
        Some(1) => Ok(()),
        Some(0) => Err(Failure::NotServing("UNKNOWN")),
        Some(2) => Err(Failure::NotServing("NOT_SERVING")),
        Some(3) => Err(Failure::NotServing("SERVICE_UNKNOWN")),
        Some(_) | None => Err(Failure::NotGrpc),
    }
}

/// A HealthCheckRequest: field 1 is the service.
fn request_for(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    // An empty field is not written.
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        let mut length = service.len();
        while length >= 1 << 7 {
            let [low, ..] = length.to_le_bytes();
            message.push(low | 1 << 7);
            length >>= 7;
        }
        let [low, ..] = length.to_le_bytes();
        message.push(low);
        message.extend_from_slice(service.as_bytes());
    }
    message
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], &length.to_be_bytes()[..], message].concat()
}

/// The one message of an answer. It is not compressed, because the request did not ask for that.
fn unframed(answer: &[u8]) -> Option<&[u8]> {
    let (&[0, length @ ..], message) = answer.split_first_chunk::<FRAME_HEAD>()? else {
        return None;
    };
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    (length == message.len()).then_some(message)
}

/// The status in a HealthCheckResponse, which is field 1; an absent field is 0, and unknown fields are skipped.
fn serving_status(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let skipped = match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        message = message.get(skipped..)?;
    }
    Some(status)
}

/// Takes a varint off the front: seven bits a byte, the lowest first; the eighth bit says that more follow.
fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests;
