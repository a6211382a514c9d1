//! A row of the maps: one frontend for some of its clients.

use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::cli::names::Frontend;
use crate::model::Protocol;
use crate::plan::{
    FrontendKey, FrontendRow, KeyPort, MapImage, Outside, SELF_TEST_V4, SELF_TEST_V6,
};
use crate::table::{Closure, Scope};

const NONE: &str = "-";

/// One frontend, for some of its clients.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    /// `ns/name:port`; `None` if it is not known.
    pub(super) service: Option<String>,
    /// `None` if it is not known.
    pub(super) closure: Option<Closure>,
    /// It is of no Service: the agent dials it to see that it serves.
    is_self_test: bool,
    pub(super) protocol: Protocol,
    pub(super) frontend: SocketAddr,
    pub(super) clients: Clients,
    pub(super) verdict: Verdict,
    pub(super) endpoints: Vec<SocketAddr>,
    /// The clients that are admitted; empty: all.
    source_ranges: Vec<IpNetwork>,
    /// 0 = no affinity.
    affinity_seconds: u32,
}

/// The clients that a row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Clients {
    /// Processes in the node's own network namespace.
    Host,
    /// These and the Pods of this node.
    Node,
    /// Clients outside, served by the packet path.
    Outside,
    /// All of these.
    All,
}

/// What happens to a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Forward,
    Refuse,
    Drop,
    /// The maps hold nonsense here; the agent will write it again.
    Unknown,
}

impl Clients {
    fn of(scope: Scope, row: &FrontendRow) -> Self {
        match (scope, row.outside) {
            (Scope::External, _) => Self::Outside,
            (Scope::Internal, Outside::Same) => Self::All,
            (Scope::Internal, _) if row.is_node_only => Self::Host,
            (Scope::Internal, Outside::No | Outside::Apart) => Self::Node,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Node => "node",
            Self::Outside => "outside",
            Self::All => "all",
        }
    }
}

impl Verdict {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Refuse => "refuse",
            Self::Drop => "drop",
            Self::Unknown => "unknown",
        }
    }
}

impl Row {
    fn new(image: &MapImage, key: &FrontendKey, row: &FrontendRow) -> Option<Self> {
        let KeyPort::Port(scope, protocol, port) = key.port else {
            return None;
        };
        let service = image.services().get(&row.service);
        let set = service.and_then(|service| service.set.as_ref());
        let terms = set.and_then(|set| set.terms.as_deref());
        Some(Self {
            service: None,
            closure: None,
            is_self_test: [SELF_TEST_V4.ip(), SELF_TEST_V6.ip()].contains(&key.address),
            protocol,
            frontend: SocketAddr::new(key.address, port),
            clients: Clients::of(scope, row),
            verdict: match set {
                None => Verdict::Unknown,
                Some(set) if !set.backends.is_empty() => Verdict::Forward,
                Some(_) if terms.is_some_and(|terms| terms.is_drop) => Verdict::Drop,
                Some(_) => Verdict::Refuse,
            },
            endpoints: set.map(|set| set.backends.to_vec()).unwrap_or_default(),
            source_ranges: set.map(|set| set.ranges().to_vec()).unwrap_or_default(),
            affinity_seconds: terms.map_or(0, |terms| terms.affinity_seconds),
        })
    }

    pub(super) fn frontend(&self) -> Frontend {
        (self.frontend, self.protocol)
    }

    /// The order of rows: those without a name come last.
    pub(super) fn order(&self) -> (bool, Option<&str>, Protocol, SocketAddr, Clients) {
        let name = self.service.as_deref();
        (
            name.is_none(),
            name,
            self.protocol,
            self.frontend,
            self.clients,
        )
    }

    pub(super) fn scope(&self) -> Scope {
        match self.clients {
            Clients::Outside => Scope::External,
            Clients::Host | Clients::Node | Clients::All => Scope::Internal,
        }
    }

    pub(super) fn columns(&self, shown: usize) -> [String; 7] {
        [
            match &self.service {
                Some(service) => service.clone(),
                None if self.is_self_test => "(self-test)".to_owned(),
                None => NONE.to_owned(),
            },
            self.protocol.to_string(),
            self.closure
                .map_or_else(|| NONE.to_owned(), |closure| closure.to_string()),
            self.frontend.to_string(),
            self.clients.word().to_owned(),
            self.verdict.word().to_owned(),
            list(&self.endpoints, shown),
        ]
    }

    pub(super) fn wide(&self) -> [String; 9] {
        let [
            service,
            protocol,
            closure,
            frontend,
            clients,
            verdict,
            endpoints,
        ] = self.columns(usize::MAX);
        let affinity = match self.affinity_seconds {
            0 => NONE.to_owned(),
            seconds => format!("{seconds}s"),
        };
        let ranges = list(&self.source_ranges, usize::MAX);
        [
            service, protocol, closure, frontend, clients, verdict, affinity, ranges, endpoints,
        ]
    }
}

fn list(all: &[impl ToString], shown: usize) -> String {
    let mut words: Vec<String> = all.iter().take(shown).map(ToString::to_string).collect();
    let more = all.len() - words.len();
    if more > 0 {
        words.push(format!("{more} more"));
    }
    match &*words {
        [] => NONE.to_owned(),
        words => words.join(", "),
    }
}

/// All rows of the maps.
pub(super) fn rows(image: &MapImage) -> Vec<Row> {
    let rows = image.frontends().iter();
    rows.filter_map(|(key, row)| Row::new(image, key, row))
        .collect()
}
