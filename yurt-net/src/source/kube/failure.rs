//! Why a request to the API failed, and what follows from that.

use std::time::Duration;

use http::StatusCode;

use super::body::BodyError;
use super::extent::Endless;
use super::follow::Failure;
use super::wire::{self, DialError, SendError};
use crate::error::words;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("no answer: {}", root(.0))]
    Send(SendError),
    #[error("no answer within {} s", .0.as_secs())]
    Silence(Duration),
    #[error("the answer broke off: {}", root(.0))]
    Broken(hyper::Error),
    #[error("the connection was taken for dead")]
    Dead,
    #[error("the apiserver's versions have gone back")]
    Rewound,
    #[error("{status}{}", if *.is_anonymous { ": no credentials are sent to a server that TLS does not verify" } else { "" })]
    Status {
        status: StatusCode,
        retry_after: Option<Duration>,
        /// There are credentials, but they were not sent.
        is_anonymous: bool,
    },
    #[error("the version is too old: {message}")]
    Expired { message: String },
    #[error("the watch failed with {code}: {message}")]
    Watch { code: u16, message: String },
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error(transparent)]
    Endless(#[from] Endless),
    #[error("the source has gone")]
    Gone,
}

impl RequestError {
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::Dial(_) | Self::Dead => Failure::NoConnection,
            Self::Send(_) | Self::Broken(_) | Self::Gone => Failure::Transport,
            Self::Silence(_) => Failure::Silence,
            Self::Status {
                status: StatusCode::GONE,
                ..
            }
            | Self::Expired { .. }
            | Self::Rewound => Failure::Expired,
            Self::Status {
                status,
                retry_after,
                ..
            } => Failure::Status(status.as_u16(), *retry_after),
            Self::Watch { code, .. } => Failure::Status(*code, None),
            Self::Body(BodyError::Cut) => Failure::Transport,
            Self::Body(_) | Self::Endless(_) => Failure::Garbage,
        }
    }

    /// The other end, or the way there, does not answer any more.
    pub(super) fn is_silence(&self) -> bool {
        let mut cause: Option<&dyn std::error::Error> = match self {
            Self::Send(SendError::Http(error)) | Self::Broken(error) => Some(error),
            _ => None,
        };
        while let Some(error) = cause {
            if error.downcast_ref().is_some_and(wire::is_silence) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// The innermost cause: the layers above it only say that there is one.
fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    words(cause)
}
