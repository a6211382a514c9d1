//! The output of `yurt-net plan`.
//!
//! Pure. In: `ServiceTable`, `Reasons`. Out: the JSON of `plan -o json`, which is a contract, or a table for people.
//! Every frontend has a row for clients of this node, which the socket path answers, and one for all other clients,
//! which the packet path answers if it is on; only the latter are masqueraded, and only to
//! endpoints on other nodes: kube-proxy does it to those here, too (pkg/proxy/iptables/proxier.go).
//! If the interfaces of the node are not known, because this is another machine, the output says so.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::model::{Protocol, Rejection, TrafficPolicy};
use crate::policy::{Reasons, Why};
use crate::table::{
    Backends, Closure, Dropped, Frontend, FrontendKind, Scope, ServiceEntry, ServiceTable, Verdict,
};
use crate::text;

/// Endpoints of one row in the table for people; the JSON lists all.
const SHOWN_ENDPOINTS: usize = 4;
/// What a star in the table means while clients outside are not served, and while they are.
const UNSERVED: &str =
    "* only the packet path would serve these clients, and it is off (--packet-path)";
const UNSERVED_SCTP: &str = "* SCTP is listed only: nothing serves it";

/// Why a ClusterIP passes.
const LEFT_ALONE: &str = "an interface of the node has it: left to what listens there";

/// The fate of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowVerdict {
    /// To one of the endpoints.
    Forward,
    /// Refused at once.
    Refuse,
    /// Dropped: silence, but `EHOSTUNREACH` on a socket of this node.
    Drop,
    /// No frontend: the flow goes its way untouched.
    Pass,
}

impl fmt::Display for FlowVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Refuse => "refuse",
            Self::Drop => "drop",
            Self::Pass => "pass",
        })
    }
}

impl From<Verdict> for FlowVerdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Forward => Self::Forward,
            Verdict::Refuse => Self::Refuse,
            Verdict::Drop => Self::Drop,
        }
    }
}

/// The remark about a table that was made elsewhere than on its node.
pub(crate) fn unknown_interfaces(node: &str) -> String {
    format!(
        "the interfaces of node {node} are not known here: on it, a ClusterIP that one of them has is left alone, and NodePorts follow them"
    )
}

/// The object that `plan -o json` prints. Names and order of the fields are a contract.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanJson<'a> {
    node: &'a str,
    pool: &'a str,
    zone: &'a str,
    services: Vec<ServiceJson<'a>>,
    rejections: &'a [Arc<Rejection>],
    /// The interfaces of the node are known: a ClusterIP that is on one of them passes, and NodePorts follow them.
    sees_interfaces: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceJson<'a> {
    namespace: &'a str,
    name: &'a str,
    port: &'a str,
    protocol: Protocol,
    closure: Closure,
    /// Seconds; 0 = no affinity.
    affinity_seconds: u32,
    frontends: Vec<Row<'a>>,
}

/// One frontend for one scope.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row<'a> {
    pub(super) kind: FrontendKind,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) scope: Scope,
    pub(super) verdict: FlowVerdict,
    /// Empty unless `forward`.
    pub(super) endpoints: Backends,
    /// Endpoints on other nodes see this node's address instead of the client's.
    pub(super) masquerade: bool,
    /// The path that enforces the row.
    pub(super) path: Path,
    /// Clients that a LoadBalancer admits; empty = all.
    pub(super) source_ranges: Vec<&'a IpNetwork>,
    pub(super) dropped: Vec<Dropped>,
    /// The rule that kept the endpoints, in words.
    #[serde(skip)]
    pub(super) kept: String,
    /// See [`crate::policy::Why::idle`].
    #[serde(skip)]
    pub(super) idle: Vec<String>,
    /// Something enforces the row.
    #[serde(skip)]
    pub(super) is_served: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Path {
    Socket,
    Packet,
}

impl<'a> Row<'a> {
    pub(super) fn new(
        table: &ServiceTable,
        entry: &'a ServiceEntry,
        reasons: &Reasons<'_>,
        frontend: &Frontend,
        scope: Scope,
    ) -> Self {
        let is_left_alone = table.leaves_alone(frontend);
        let why = match is_left_alone {
            true => Why::default(),
            false => reasons.why(entry, frontend, scope),
        };
        Self {
            kind: frontend.kind,
            address: frontend.address,
            port: frontend.port,
            scope,
            verdict: match is_left_alone {
                true => FlowVerdict::Pass,
                false => entry.verdict(frontend, scope).into(),
            },
            endpoints: match is_left_alone {
                true => Backends::default(),
                false => entry.endpoints(frontend, scope).clone(),
            },
            masquerade: !is_left_alone && entry.is_masqueraded(frontend.kind, scope),
            path: match (scope, entry.key.protocol) {
                (Scope::Internal, Protocol::Tcp | Protocol::Udp) => Path::Socket,
                // No hook sees an SCTP socket.
                (Scope::External, _) | (Scope::Internal, Protocol::Sctp) => Path::Packet,
            },
            source_ranges: entry.admitted(frontend).collect(),
            dropped: why.dropped,
            kept: why.kept,
            idle: why.idle,
            is_served: match (scope, entry.key.protocol) {
                (_, Protocol::Sctp) => false,
                (Scope::Internal, Protocol::Tcp | Protocol::Udp) => true,
                (Scope::External, Protocol::Tcp | Protocol::Udp) => table.serves_packets,
            },
        }
    }
}

/// The object that `plan -o json` prints.
pub fn plan_json<'a>(table: &'a ServiceTable, reasons: &Reasons<'_>) -> PlanJson<'a> {
    let services = table.services.iter().map(|entry| ServiceJson {
        namespace: &entry.key.namespace,
        name: &entry.key.name,
        port: &entry.key.port,
        protocol: entry.key.protocol,
        closure: entry.closure,
        affinity_seconds: entry.affinity_seconds,
        frontends: rows(table, entry, reasons).collect(),
    });
    PlanJson {
        node: &table.node,
        pool: &table.pool,
        zone: &table.zone,
        services: services.collect(),
        rejections: &table.rejections,
        sees_interfaces: reasons.see_interfaces(),
    }
}

fn rows<'a>(
    table: &ServiceTable,
    entry: &'a ServiceEntry,
    reasons: &Reasons<'_>,
) -> impl Iterator<Item = Row<'a>> {
    entry.frontends.iter().flat_map(move |frontend| {
        [Scope::Internal, Scope::External]
            .map(|scope| Row::new(table, entry, reasons, frontend, scope))
    })
}

/// Whether the output is a terminal that shows colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Text alone.
    Plain,
    /// ANSI escapes for bold, dim and red.
    Ansi,
}

impl Paint {
    fn wrap(self, code: &str, text: impl fmt::Display) -> String {
        match self {
            Self::Plain => text::line(&text.to_string()).into_owned(),
            Self::Ansi => format!("\x1b[{code}m{}\x1b[0m", text::line(&text.to_string())),
        }
    }

    fn bold(self, text: impl fmt::Display) -> String {
        self.wrap("1", text)
    }

    fn dim(self, text: impl fmt::Display) -> String {
        self.wrap("2", text)
    }

    fn red(self, text: impl fmt::Display) -> String {
        self.wrap("31", text)
    }
}

/// The table for people.
pub fn plan_table(table: &ServiceTable, reasons: &Reasons<'_>, paint: Paint) -> String {
    let mut text = String::new();
    // A String takes every write.
    let _infallible = write_table(&mut text, table, reasons, paint);
    text
}

fn write_table(
    out: &mut String,
    table: &ServiceTable,
    reasons: &Reasons<'_>,
    paint: Paint,
) -> fmt::Result {
    let or_none = |name: &str| if name.is_empty() { "none" } else { name }.to_owned();
    writeln!(
        out,
        "node {}   pool {}   zone {}   service ports {}   rejections {}",
        paint.bold(&table.node),
        paint.bold(or_none(&table.pool)),
        text::name(&or_none(&table.zone)),
        table.services.len(),
        table.rejections.len(),
    )?;
    let address_width = frontend_width(table);
    for entry in &table.services {
        writeln!(
            out,
            "\n{}   {}   closure {}{}",
            paint.bold(service_name(entry)),
            entry.key.protocol,
            entry.closure,
            traffic(entry),
        )?;
        let rows: Vec<Row<'_>> = rows(table, entry, reasons).collect();
        for pair in rows.chunks(2) {
            write_frontend(out, pair, address_width, paint)?;
        }
        let dropped: BTreeSet<&Dropped> = rows.iter().flat_map(|row| &row.dropped).collect();
        for Dropped { endpoint, reason } in dropped {
            writeln!(
                out,
                "  {}",
                paint.dim(format!("dropped {endpoint}: {reason}"))
            )?;
        }
        let idle: BTreeSet<&String> = rows.iter().flat_map(|row| &row.idle).collect();
        for clause in idle {
            writeln!(out, "  {}", paint.dim(format!("no endpoint: {clause}")))?;
        }
    }
    if !table.services.is_empty() {
        let has_sctp = |entry: &Arc<ServiceEntry>| entry.key.protocol == Protocol::Sctp;
        writeln!(out)?;
        if !table.serves_packets {
            writeln!(out, "{}", paint.dim(UNSERVED))?;
        } else if table.services.iter().any(has_sctp) {
            writeln!(out, "{}", paint.dim(UNSERVED_SCTP))?;
        }
        let interfaces = match reasons.see_interfaces() {
            true => format!(
                "interfaces are those of this machine, which has an address of node {}",
                table.node
            ),
            false => unknown_interfaces(&table.node),
        };
        writeln!(out, "{}", paint.dim(interfaces))?;
    }
    if !table.rejections.is_empty() {
        writeln!(out, "\n{}", paint.bold("rejections"))?;
    }
    for rejection in &table.rejections {
        writeln!(out, "  {}", paint.red(rejection_line(rejection)))?;
    }
    Ok(())
}

/// The settings of a Service that differ from the defaults.
fn traffic(entry: &ServiceEntry) -> String {
    let mut text = String::new();
    for (whom, policy) in [
        ("internal", entry.internal_policy),
        ("external", entry.external_policy),
    ] {
        if policy == TrafficPolicy::Local {
            text += &format!("   {whom} policy Local");
        }
    }
    if entry.affinity_seconds > 0 {
        text += &format!("   affinity {} s", entry.affinity_seconds);
    }
    text
}

/// The rows of one frontend: one line for both scopes where they have the same fate.
fn write_frontend(
    out: &mut String,
    rows: &[Row<'_>],
    address_width: usize,
    paint: Paint,
) -> fmt::Result {
    let line = |scope: &str, row: &Row<'_>| {
        let address = SocketAddr::new(row.address, row.port).to_string();
        let kind = row.kind.to_string();
        let mut fate = match row.verdict {
            FlowVerdict::Forward => format!("forward -> {}", endpoint_list(&row.endpoints)),
            FlowVerdict::Refuse | FlowVerdict::Drop => paint.red(row.verdict),
            FlowVerdict::Pass => format!("pass   {LEFT_ALONE}"),
        };
        if !row.source_ranges.is_empty() {
            let ranges: Vec<String> = row.source_ranges.iter().map(ToString::to_string).collect();
            fate += &format!("   only from {}", ranges.join(", "));
        }
        format!("  {kind:<12}  {address:<address_width$}  {scope:<20}  {fate}")
    };
    let scope = |row: &Row<'_>| match row.is_served {
        true => row.scope.to_string(),
        false => format!("{}*", row.scope),
    };
    match rows {
        [internal, external]
            if (internal.verdict, &internal.endpoints)
                == (external.verdict, &external.endpoints) =>
        {
            let both = format!("{}, {}", scope(internal), scope(external));
            writeln!(out, "{}", line(&both, internal))
        }
        rows => rows
            .iter()
            .try_for_each(|row| writeln!(out, "{}", line(&scope(row), row))),
    }
}

fn frontend_width(table: &ServiceTable) -> usize {
    let frontends = table.services.iter().flat_map(|entry| &entry.frontends);
    let widths = frontends.map(|f| SocketAddr::new(f.address, f.port).to_string().len());
    widths.max().unwrap_or(0)
}

fn endpoint_list(endpoints: &Backends) -> String {
    let mut shown: Vec<String> = endpoints
        .iter()
        .take(SHOWN_ENDPOINTS)
        .map(|endpoint| endpoint.to_string())
        .collect();
    if let Some(more) = endpoints
        .len()
        .checked_sub(SHOWN_ENDPOINTS)
        .filter(|more| *more > 0)
    {
        shown.push(format!("{more} more"));
    }
    shown.join(", ")
}

/// `ns/name`, with the port's name when it has one.
fn service_name(entry: &ServiceEntry) -> String {
    let key = &entry.key;
    let name = match key.port.is_empty() {
        true => format!("{}/{}", key.namespace, key.name),
        false => key.to_string(),
    };
    text::name(&name).to_string()
}

fn rejection_line(rejection: &Rejection) -> String {
    let Rejection {
        kind,
        namespace,
        name,
        source,
        reason,
    } = rejection;
    let mut object = match namespace.is_empty() {
        true => text::name(name).to_string(),
        false => text::name(&format!("{namespace}/{name}")).to_string(),
    };
    if !kind.is_empty() {
        object = format!("{} {object}", text::name(kind));
    }
    let object = object.trim();
    match (object.is_empty(), source.is_empty()) {
        (true, true) => reason.clone(),
        (true, false) => format!("{source}: {reason}"),
        (false, true) => format!("{object}: {reason}"),
        (false, false) => format!("{source}: {object}: {reason}"),
    }
}

#[cfg(test)]
mod tests;
