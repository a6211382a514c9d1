//! A request and its answer, before and after HTTP.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;
use http::HeaderMap;
use http::Method;
use http::StatusCode;
use http::header;
use http::request::Parts;
use serde_json::json;

use super::resource::Resource;
use super::resource::Target;
use super::selector::Filter;

/// What a request does with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// One object.
    Get,
    /// All objects, or a page of them.
    List,
    /// Changes as they happen.
    Watch,
    /// Any other request.
    Other,
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: HeaderMap,
    pub(super) verb: Verb,
    pub(super) target: Option<Target>,
    pub(super) edit: Option<Edit>,
}

/// A change to a list, by a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// Only this many items, as if there were no more.
    Items(usize),
    /// Another version of the list.
    Version(u64),
}

impl Call {
    pub(super) fn new(parts: &Parts) -> Self {
        let query = parts.uri.query().unwrap_or_default();
        let query: BTreeMap<String, String> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let path = parts.uri.path().to_owned();
        let target = Target::parse(&path);
        let is_watch = matches!(
            query.get("watch").map(String::as_str),
            Some("true" | "1" | "")
        );
        let verb = match &target {
            _ if parts.method != Method::GET => Verb::Other,
            None => Verb::Other,
            Some(_) if is_watch => Verb::Watch,
            Some(target) if target.name.is_some() => Verb::Get,
            Some(_) => Verb::List,
        };
        Self {
            path,
            query,
            headers: parts.headers.clone(),
            verb,
            target,
            edit: None,
        }
    }

    /// A parameter; the empty string if it is not given.
    pub(super) fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        matches!(self.parameter(name), "true" | "1")
    }

    pub(super) fn header(&self, name: header::HeaderName) -> &str {
        let value = self.headers.get(name);
        value.and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    pub(super) fn wants_gzip(&self) -> bool {
        self.header(header::ACCEPT_ENCODING).contains("gzip")
    }

    /// Whether the client's first choice is metadata alone.
    pub(super) fn wants_metadata(&self) -> bool {
        let first = self.header(header::ACCEPT).split(',').next();
        first.is_some_and(|first| first.contains("as=PartialObjectMetadataList"))
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        let seconds = self.parameter("timeoutSeconds").parse().ok()?;
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    pub(super) fn filter(&self, target: &Target) -> Result<Filter, Answer> {
        let labels = self.parameter("labelSelector");
        let fields = self.parameter("fieldSelector");
        // The name in the path of a watch is an old form of a field selector.
        let named = target.name.as_ref().map(|n| format!("metadata.name={n}"));
        let fields = named.as_deref().unwrap_or(fields);
        Filter::parse(target.namespace.as_deref(), labels, fields)
            .map_err(|reason| Answer::status(StatusCode::BAD_REQUEST, &reason))
    }

    /// `None`: not given. Zero: any version is accepted.
    pub(super) fn version(&self) -> Result<Option<u64>, Answer> {
        let text = self.parameter("resourceVersion");
        if text.is_empty() {
            return Ok(None);
        }
        let version = text.parse().map(Some);
        version.map_err(|_error| {
            let reason = format!("resourceVersion: Invalid value: {text:?}");
            Answer::status(StatusCode::BAD_REQUEST, &reason)
        })
    }
}

/// The parts of a body as they come; an error breaks the connection.
pub(super) type Frames = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// An answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(header::HeaderName, String)>,
    /// Its length, if the whole body is known.
    pub(super) length: Option<u64>,
    pub(super) frames: Frames,
}

impl Answer {
    pub(super) fn whole(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Self {
        let body: Bytes = body.into();
        Self {
            status,
            headers: vec![(header::CONTENT_TYPE, content_type.to_owned())],
            length: Some(u64::try_from(body.len()).unwrap_or(u64::MAX)),
            frames: Box::pin(stream::iter([Ok(body)])),
        }
    }

    pub(super) fn json(body: impl Into<Bytes>) -> Self {
        Self::whole(StatusCode::OK, "application/json", body)
    }

    pub(super) fn text(body: &'static str) -> Self {
        Self::whole(StatusCode::OK, "text/plain; charset=utf-8", body)
    }

    pub(super) fn stream(frames: Frames) -> Self {
        Self {
            status: StatusCode::OK,
            headers: vec![(header::CONTENT_TYPE, "application/json".to_owned())],
            length: None,
            frames,
        }
    }

    /// An error in the apiserver's words.
    pub(super) fn status(code: StatusCode, message: &str) -> Self {
        let body = status_object(code, message).to_string();
        let mut answer = Self::whole(code, "application/json", body);
        if code == StatusCode::TOO_MANY_REQUESTS {
            answer = answer.with(header::RETRY_AFTER, "1");
        }
        answer
    }

    pub(super) fn with(mut self, name: header::HeaderName, value: &str) -> Self {
        self.headers.retain(|(known, _value)| *known != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(super) fn not_found(target: &Target) -> Self {
        let resource = target.resource.plural();
        let name = target.name.as_deref().unwrap_or_default();
        let message = match (target.resource.shape().group, name) {
            (_, "") => "the server could not find the requested resource".to_owned(),
            ("", name) => format!("{resource} {name:?} not found"),
            (group, name) => format!("{resource}.{group} {name:?} not found"),
        };
        Self::status(StatusCode::NOT_FOUND, &message)
    }

    /// The refusal of a request that RBAC does not allow: with a resource and a verb, or without.
    pub(super) fn forbidden(resource: Option<Resource>, verb: Verb) -> Self {
        let verb = format!("{verb:?}").to_lowercase();
        let what = resource.map_or("", Resource::plural);
        let group = resource.map_or("", |r| r.shape().group);
        let message = format!(
            "{what} is forbidden: User \"system:serviceaccount:kube-system:yurt-net\" cannot {verb} \
             resource \"{what}\" in API group \"{group}\" at the cluster scope"
        );
        Self::status(StatusCode::FORBIDDEN, &message)
    }
}

/// A Status object.
pub(super) fn status_object(code: StatusCode, message: &str) -> serde_json::Value {
    let reason = match code.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "",
    };
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code.as_u16(),
    })
}
