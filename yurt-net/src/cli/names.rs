//! The names of Services for frontends: from the running agent, otherwise from the checkpoint that it left. The names
//! of Pods for addresses: from the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::verbs::VerbError;
use crate::config::Place;
use crate::error::chain;
use crate::host::disk::errand::once;
use crate::ledger::watch::Reading;
use crate::ledger::{Ledger, State};
use crate::model::{Protocol, Service, Snapshot};
use crate::observe::control::{ASKED_AT_ONCE, ControlError, Request, ask};
use crate::source::checkpoint::Saver;
use crate::table::ServiceKey;
use crate::text;

/// What a client dials.
pub(super) type Frontend = (SocketAddr, Protocol);

/// The service ports of frontends, as `ns/name:port`, or `ns/name` where the port has no name.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Those that are known.
    pub(super) known: BTreeMap<Frontend, String>,
    /// Why the agent did not give them.
    pub(super) remark: Option<String>,
}

impl Names {
    /// Finds the names of these frontends, without which a Service that was asked for cannot be found. Fails if there
    /// are none, because neither the agent nor the checkpoint has any.
    pub(super) async fn needed(
        place: &Place,
        frontends: &BTreeSet<Frontend>,
    ) -> Result<Self, VerbError> {
        let names = Self::of(place, frontends).await;
        match names.remark {
            Some(remark) if names.known.is_empty() => Err(VerbError::Nameless(remark)),
            _ => Ok(names),
        }
    }

    /// Finds the names of these frontends, as far as they are known.
    pub(super) async fn of(place: &Place, frontends: &BTreeSet<Frontend>) -> Self {
        let why = match from_agent(place, frontends).await {
            Ok(known) => {
                return Self {
                    known,
                    remark: None,
                };
            }
            Err(error) => chain(&error),
        };
        let directory = place.checkpoint();
        let found = once(move || Saver::open(directory).1.loaded).await;
        match found.flatten() {
            Some(loaded) => Self {
                known: from_snapshot(&loaded.snapshot, frontends),
                remark: Some(format!("names are those of the checkpoint: {why}")),
            },
            None => Self {
                known: BTreeMap::new(),
                remark: Some(format!("Services have no names here: {why}")),
            },
        }
    }
}

/// The remark under a table; nothing if the names are the agent's.
pub(super) fn remark_line(remark: Option<&str>) -> String {
    remark.map_or_else(String::new, |remark| format!("{}\n", text::message(remark)))
}

async fn from_agent(
    place: &Place,
    frontends: &BTreeSet<Frontend>,
) -> Result<BTreeMap<Frontend, String>, ControlError> {
    let mut names = BTreeMap::new();
    let frontends: Vec<Frontend> = frontends.iter().copied().collect();
    for some in frontends.chunks(ASKED_AT_ONCE) {
        let answer = ask(&place.sockets(), &Request::Services(some.to_vec())).await?;
        let answer: Vec<Option<String>> =
            serde_json::from_value(answer).map_err(ControlError::Answer)?;
        let named = some.iter().zip(answer);
        names.extend(named.filter_map(|(frontend, name)| Some((*frontend, shown(&name?)))));
    }
    Ok(names)
}

/// Names frontends by address and port, and those that no Service has at their address by NodePort alone: a NodePort is
/// the same at all addresses of a node.
fn from_snapshot(
    snapshot: &Snapshot,
    frontends: &BTreeSet<Frontend>,
) -> BTreeMap<Frontend, String> {
    let (mut by_address, mut by_node_port) = (BTreeMap::new(), BTreeMap::new());
    for service in snapshot.services.values() {
        for port in &service.ports {
            let key = ServiceKey {
                namespace: service.name.namespace.clone(),
                name: service.name.name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
            };
            for address in addresses(service, snapshot) {
                let at = SocketAddr::new(address, port.port);
                by_address.entry((at, port.protocol)).or_insert(key.clone());
            }
            if port.node_port != 0 {
                by_node_port.insert((port.node_port, port.protocol), key);
            }
        }
    }
    let name = |(at, protocol): &Frontend| {
        let by_address = by_address.get(&(*at, *protocol));
        by_address.or_else(|| by_node_port.get(&(at.port(), *protocol)))
    };
    let named = frontends.iter();
    named
        .filter_map(|frontend| Some((*frontend, shown(&name(frontend)?.to_string()))))
        .collect()
}

/// What the ledger of this node holds: nothing, if it cannot be read.
pub(super) async fn ledger(place: &Place) -> Ledger {
    let dirs = place.ledger();
    let reading = once(move || Reading::take(&dirs)).await;
    let reading = reading.and_then(Result::ok);
    reading.map(|reading| reading.ledger).unwrap_or_default()
}

/// The Pods in it that run, by address.
pub(super) fn pods(ledger: &Ledger) -> BTreeMap<IpAddr, String> {
    let entries = ledger.entries().iter();
    let pods = entries.filter(|(key, entry)| {
        // Of some entries only the container is known.
        entry.state == State::Active && !key.namespace.is_empty()
    });
    pods.flat_map(|(key, entry)| {
        let name = format!("{}/{}", key.namespace, key.name);
        (entry.addresses.iter()).map(move |address| (*address, name.clone()))
    })
    .collect()
}

/// The name of a port without a name ends with a colon, which is left out.
fn shown(name: &str) -> String {
    name.strip_suffix(':').unwrap_or(name).to_owned()
}

/// All addresses of a Service, whether or not they are served here.
fn addresses<'a>(
    service: &'a Service,
    snapshot: &'a Snapshot,
) -> impl Iterator<Item = IpAddr> + 'a {
    let own = [
        &service.cluster_ips,
        &service.external_ips,
        &service.load_balancer_ips,
    ];
    let of_pools = snapshot.pool_services.values();
    let of_pools = of_pools.filter(move |object| object.owner() == service.name);
    let of_pools = of_pools.flat_map(|object| object.load_balancer_ips.iter());
    own.into_iter().flatten().chain(of_pools).copied()
}

/// Whether a service port, `ns/name:port`, is the one that is wanted, or belongs to the wanted Service `ns/name`.
pub(super) fn is_of(name: &str, wanted: &str) -> bool {
    let rest = name.strip_prefix(wanted);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':') && !wanted.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_asked_for_by_its_name_or_by_one_of_its_ports() {
        for (name, wanted, expected) in [
            ("shop/web:http", "shop/web", true),
            ("shop/web", "shop/web", true),
            ("shop/web:http", "shop/web:http", true),
            ("shop/web:http", "shop/web:ht", false),
            ("shop/web2:http", "shop/web", false),
        ] {
            assert_eq!(is_of(name, wanted), expected, "{name} {wanted}");
        }
    }
}
