//! What `--source` says: where Services come from, read and written as an operator does.
//!
//! Pure.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

use super::hub::is_hub;
use crate::text::without_user;

/// One value of `--source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// `file:PATH`: a file or a directory of manifests.
    File(PathBuf),
    /// `kube:`, `kube:URL`, `yurthub:` or `yurthub:URL`: an apiserver, or the cache in front of it.
    Kube(Api),
}

/// Where the API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Api {
    /// `kube:`: $KUBECONFIG, ~/.kube/config, or the ServiceAccount of a Pod.
    Inferred,
    /// `kube:URL`: an apiserver, with the ServiceAccount's token where there is one.
    Server(Uri),
    /// `yurthub:` or `yurthub:URL`.
    Hub(Option<Uri>),
}

impl Api {
    /// Whether it is YurtHub, which may answer from its cache: named so, or found where it listens. Before a server was
    /// dialled it is a guess; for an inferred one see `kube::Access::leads_to_hub`.
    pub fn is_hub(&self, is_inferred_hub: bool) -> bool {
        match self {
            Self::Hub(_) => true,
            Self::Server(server) => is_hub(server),
            Self::Inferred => is_inferred_hub,
        }
    }
}

impl FromStr for SourceSpec {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        let url = |url: &str| -> Result<Option<Uri>, SpecError> {
            if url.is_empty() {
                return Ok(None);
            }
            if names_a_user(url) {
                return Err(SpecError::Credentials);
            }
            let parsed: Option<Uri> = url.parse().ok();
            match parsed.filter(is_usable) {
                Some(url) => Ok(Some(url)),
                None => Err(SpecError::BadUrl {
                    spec: spec.to_owned(),
                }),
            }
        };
        if let Some(path) = spec.strip_prefix("file:") {
            return match path {
                "" => Err(SpecError::NoPath),
                path => Ok(Self::File(PathBuf::from(path))),
            };
        }
        if let Some(rest) = spec.strip_prefix("kube:") {
            return Ok(Self::Kube(url(rest)?.map_or(Api::Inferred, Api::Server)));
        }
        if let Some(rest) = spec.strip_prefix("yurthub:") {
            return Ok(Self::Kube(Api::Hub(url(rest)?)));
        }
        Err(SpecError::Unsupported {
            spec: spec.to_owned(),
        })
    }
}

/// Whether a URL has a user or a password in it. They would be sent to no server, and shown to everybody.
pub(crate) fn names_a_user(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next();
    authority.is_some_and(|authority| authority.contains('@'))
}

/// Whether it names a server. A colon must be followed by a port, and not by the beginning of a password with a slash
/// in it.
fn is_usable(url: &Uri) -> bool {
    let is_known = matches!(url.scheme_str(), Some("http" | "https"));
    let authority = url.authority();
    let is_whole = authority.is_some_and(|authority| {
        authority.port_u16().is_some() || authority.as_str() == authority.host()
    });
    is_known && is_whole
}

/// As on the command line, and in checkpoints.
impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Kube(Api::Inferred) => f.write_str("kube:"),
            Self::Kube(Api::Server(url)) => write!(f, "kube:{}", shown(url)),
            Self::Kube(Api::Hub(None)) => f.write_str("yurthub:"),
            Self::Kube(Api::Hub(Some(url))) => write!(f, "yurthub:{}", shown(url)),
        }
    }
}

/// Without the slash that the parser adds.
fn shown(url: &Uri) -> String {
    let mut text = url.to_string();
    if url.path() == "/" && url.query().is_none() {
        text.pop();
    }
    text
}

/// A `--source` that cannot be understood: bad usage, known before anything is read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No known scheme.
    #[error(
        "source {:?} is not known: expected file:PATH, kube:, kube:URL, yurthub: or yurthub:URL",
        without_user(spec)
    )]
    Unsupported {
        /// As given.
        spec: String,
    },
    /// `file:` alone.
    #[error("source \"file:\" names no path: expected file:PATH, a file or directory of manifests")]
    NoPath,
    /// The URL has a user in it, which is not shown.
    #[error(
        "the source's URL names a user or a password, which no apiserver reads: use a kubeconfig with a token or a client certificate"
    )]
    Credentials,
    /// What follows `kube:` or `yurthub:`.
    #[error(
        "source {:?} has no usable URL: expected for example kube:https://192.0.2.1:6443",
        without_user(spec)
    )]
    BadUrl {
        /// As given.
        spec: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_read_as_it_is_written() {
        for spec in [
            "file:/etc/manifests",
            "kube:",
            "kube:https://192.0.2.1:6443",
            "yurthub:",
            "yurthub:http://127.0.0.1:10261",
            "kube:https://192.0.2.1:6443/cluster/",
            "kube:https://192.0.2.1:6443//",
            "kube:https://192.0.2.1:6443/?a=/",
        ] {
            assert_eq!(spec.parse::<SourceSpec>().unwrap().to_string(), spec);
        }
    }

    #[test]
    fn credentials_in_a_sources_url_are_refused_and_not_repeated() {
        for spec in [
            "kube:http://user:secret@192.0.2.1",
            "kube:https://secret@192.0.2.1:6443/a",
            "yurthub:http://:secret@127.0.0.1:10261",
            "kube:ftp://user:secret@host?a",
            "kube:user:secret@host",
        ] {
            let error = spec.parse::<SourceSpec>().unwrap_err();
            assert_eq!(error, SpecError::Credentials, "{spec}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!("kube:https://192.0.2.1/a@b".parse::<SourceSpec>().is_ok());
    }

    #[test]
    fn a_source_that_cannot_be_understood_is_told_what_is_expected() {
        assert_eq!("file:".parse::<SourceSpec>(), Err(SpecError::NoPath));
        for (spec, expected) in [
            ("", "file:PATH, kube:, kube:URL, yurthub: or yurthub:URL"),
            ("/etc/manifests", "file:PATH"),
            ("File:x", "file:PATH"),
            ("kube:192.0.2.1", "kube:https://"),
            ("yurthub:ftp://192.0.2.1", "kube:https://"),
            ("kube:https://user:se/cret@192.0.2.1", "kube:https://"),
            ("kube:https://192.0.2.1:api", "kube:https://"),
        ] {
            let error = spec.parse::<SourceSpec>().unwrap_err().to_string();
            assert!(error.contains(expected), "{spec}: {error}");
            assert!(!error.contains("cret"), "{error}");
        }
        assert!("kube:https://[::1]:6443".parse::<SourceSpec>().is_ok());
        assert!("kube:https://[::1]/".parse::<SourceSpec>().is_ok());
    }
}
