//! A record of all requests, and of what was sent in answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use http::Method;

use super::call::Call;
use super::call::Verb;
use super::fault::On;
use super::resource::Resource;

/// A request, and its answer so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// When it came, since the server was made.
    pub at: Duration,
    /// The method, usually GET.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The parameters, decoded.
    pub query: BTreeMap<String, String>,
    /// The headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    /// What the request does.
    pub verb: Verb,
    /// The resource; `None` if the path names no known one.
    pub resource: Option<Resource>,
    /// `None`: nothing was answered, or not yet.
    pub status: Option<u16>,
    /// Bytes of the body as sent: compressed, without framing.
    pub body_bytes: u64,
    /// When the last of these bytes was handed to the socket.
    pub sent_at: Option<Instant>,
    /// Whether the answer may still go on.
    pub is_open: bool,
}

impl Exchange {
    /// A parameter; the empty string if it was not given.
    pub fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// A header; the empty string if it was not sent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Whether a rule applies to it.
    pub fn is(&self, on: On) -> bool {
        on.holds(self.resource, self.verb)
    }
}

/// All exchanges since the last [`Journal::clear`].
#[derive(Debug)]
pub(super) struct Journal {
    start: Instant,
    exchanges: Mutex<BTreeMap<u64, Exchange>>,
    connections: Mutex<u64>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            exchanges: Mutex::default(),
            connections: Mutex::default(),
        }
    }

    fn exchanges(&self) -> MutexGuard<'_, BTreeMap<u64, Exchange>> {
        self.exchanges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> MutexGuard<'_, u64> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn all(&self) -> Vec<Exchange> {
        self.exchanges().values().cloned().collect()
    }

    /// Forgets the exchanges that are over.
    pub(super) fn clear(&self) {
        self.exchanges().retain(|_number, e| e.is_open);
    }

    pub(super) fn connections(&self) -> u64 {
        *self.count()
    }

    pub(super) fn connected(&self) {
        *self.count() += 1;
    }

    pub(super) fn open(self: &Arc<Self>, method: &Method, call: &Call) -> Open {
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), value)
        };
        let exchange = Exchange {
            at: self.start.elapsed(),
            method: method.to_string(),
            path: call.path.clone(),
            query: call.query.clone(),
            headers: call.headers.iter().map(header).collect(),
            verb: call.verb,
            resource: call.target.as_ref().map(|target| target.resource),
            status: None,
            body_bytes: 0,
            sent_at: None,
            is_open: true,
        };
        let mut exchanges = self.exchanges();
        let number = exchanges.last_key_value().map_or(0, |(last, _)| last + 1);
        exchanges.insert(number, exchange);
        Open {
            journal: Arc::clone(self),
            number,
        }
    }
}

/// An exchange that is going on; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct Open {
    journal: Arc<Journal>,
    number: u64,
}

impl Open {
    fn note(&self, note: impl FnOnce(&mut Exchange)) {
        if let Some(exchange) = self.journal.exchanges().get_mut(&self.number) {
            note(exchange);
        }
    }

    pub(super) fn answered(&self, status: u16) {
        self.note(|exchange| exchange.status = Some(status));
    }

    pub(super) fn sent(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.note(|exchange| {
            exchange.body_bytes += bytes;
            exchange.sent_at = Some(Instant::now());
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.note(|exchange| exchange.is_open = false);
    }
}
