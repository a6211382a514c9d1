//! Why a Pod does not pass its probe.

use std::io;
use std::time::Duration;

use crate::error::chain;

/// Why a Pod does not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The connection, or what is said over it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Too late.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// An answer that says no.
    #[error("status {0}")]
    Status(u16),
    /// The connection broke before the answer was here.
    #[error("{}", chain(.0))]
    Http(hyper::Error),
    /// An answer in no language that was asked for.
    #[error("an answer that is not HTTP")]
    NotHttp,
    /// Likewise, where gRPC was asked for.
    #[error("an answer that is not HTTP/2")]
    NotHttp2,
    /// The request cannot be written.
    #[error("{0}")]
    Request(#[from] http::Error),
    /// The server broke it off, or sent too much.
    #[error("HTTP/2: {0}")]
    Http2(h2::Reason),
    /// HTTP/2, and not what a health check answers.
    #[error("an answer that is not gRPC")]
    NotGrpc,
    /// The health check itself did not work.
    #[error("gRPC status {0}{hint}", hint = hint(*.0))]
    GrpcStatus(u32),
    /// A health check that says no.
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
