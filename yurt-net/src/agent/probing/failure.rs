//! Why a Pod does not pass its probe.

use std::io;
use std::time::Duration;

use crate::error::chain;

/// Why a Pod does not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The connection failed, or the exchange over it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// There was no answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// An HTTP status that does not pass.
    #[error("status {0}")]
    Status(u16),
    /// The connection broke before the answer arrived.
    #[error("{}", chain(.0))]
    Http(hyper::Error),
    /// An answer that is not HTTP.
    #[error("an answer that is not HTTP")]
    NotHttp,
    /// An answer that is not HTTP/2, where gRPC was asked for.
    #[error("an answer that is not HTTP/2")]
    NotHttp2,
    /// The request cannot be written.
    #[error("{0}")]
    Request(#[from] http::Error),
    /// The server ended the exchange, or sent too much.
    #[error("HTTP/2: {0}")]
    Http2(h2::Reason),
    /// An answer over HTTP/2 that is not the answer of a health check.
    #[error("an answer that is not gRPC")]
    NotGrpc,
    /// The call of the health check failed.
    #[error("gRPC status {0}{hint}", hint = hint(*.0))]
    GrpcStatus(u32),
    /// A health check that does not report SERVING.
    #[error("the health check says {0}")]
    NotServing(&'static str),
}

fn hint(grpc_status: u32) -> &'static str {
    match grpc_status {
        5 => ": its health check knows no such service",
        12 => ": it does not serve grpc.health.v1.Health",
        _ => "",
    }
}
