//! The names of Services for frontends: from the running agent, otherwise from the checkpoint that it left. The names
//! of Pods for addresses: from the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::kept::Kept;
use super::verbs::VerbError;
use crate::config::Place;
use crate::error::chain;
use crate::explain::services::Named;
use crate::host::disk::errand::once;
use crate::ledger::watch::Reading;
use crate::ledger::{Ledger, State};
use crate::model::{Protocol, Service, Snapshot};
use crate::observe::control::{ASKED_AT_ONCE, ControlError, Request, ask};
use crate::table::ServiceKey;
use crate::text;

/// What a client dials.
pub(super) type Frontend = (SocketAddr, Protocol);

/// The service ports of frontends, as `ns/name:port`, or `ns/name` where the port has no name.
#[derive(Default)]
pub(super) struct Names {
    /// Those that are known.
    pub(super) known: BTreeMap<Frontend, Named>,
    /// Why the agent did not give them.
    pub(super) remark: Option<String>,
    /// Where it did not, what it left.
    pub(super) kept: Option<Kept>,
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
                    ..Self::default()
                };
            }
            Err(error) => chain(&error),
        };
        match Kept::read(place).await {
            Some(kept) => Self {
                known: from_checkpoint(&kept, frontends),
                remark: Some(format!("names are those of the checkpoint: {why}")),
                kept: Some(kept),
            },
            None => Self {
                remark: Some(format!("Services have no names here: {why}")),
                ..Self::default()
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
) -> Result<BTreeMap<Frontend, Named>, ControlError> {
    let mut names = BTreeMap::new();
    let frontends: Vec<Frontend> = frontends.iter().copied().collect();
    for some in frontends.chunks(ASKED_AT_ONCE) {
        let answer = ask(&place.sockets(), &Request::Services(some.to_vec())).await?;
        let answer: Vec<Option<Named>> =
            serde_json::from_value(answer).map_err(ControlError::Answer)?;
        names.extend(shown(some, answer));
    }
    Ok(names)
}

/// The table that the agent would make of its checkpoint knows most; what it does not have is named by the objects.
fn from_checkpoint(kept: &Kept, frontends: &BTreeSet<Frontend>) -> BTreeMap<Frontend, Named> {
    let mut names = from_snapshot(&kept.snapshot, frontends);
    let frontends: Vec<Frontend> = frontends.iter().copied().collect();
    names.extend(shown(&frontends, kept.named(&frontends)));
    names
}

/// Those that have a name. The name of a port without a name ends with a colon, which is left out.
fn shown(
    frontends: &[Frontend],
    names: Vec<Option<Named>>,
) -> impl Iterator<Item = (Frontend, Named)> {
    let named = frontends.iter().zip(names);
    named.filter_map(|(frontend, named)| {
        let mut named = named?;
        if named.service.ends_with(':') {
            named.service.pop();
        }
        Some((*frontend, named))
    })
}

/// Names frontends by address and port, and those that no Service has at their address by NodePort alone: a NodePort is
/// the same at all addresses of a node.
fn from_snapshot(snapshot: &Snapshot, frontends: &BTreeSet<Frontend>) -> BTreeMap<Frontend, Named> {
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
    let names = frontends.iter().map(|frontend| {
        Some(Named {
            service: name(frontend)?.to_string(),
            closure: None,
        })
    });
    let frontends: Vec<Frontend> = frontends.iter().copied().collect();
    shown(&frontends, names.collect()).collect()
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
    let pods = running(ledger).map(|(name, address)| (address, name));
    pods.collect()
}

/// The addresses of a Pod in it that runs, `namespace/name`; none if there is no such one.
pub(super) fn addresses_of(ledger: &Ledger, pod: &str) -> Vec<IpAddr> {
    let its = running(ledger).filter(|(name, _)| name == pod);
    its.map(|(_, address)| address).collect()
}

fn running(ledger: &Ledger) -> impl Iterator<Item = (String, IpAddr)> {
    let entries = ledger.entries().iter();
    let pods = entries.filter(|(key, entry)| {
        // Of some entries only the container is known.
        entry.state == State::Active && !key.namespace.is_empty()
    });
    pods.flat_map(|(key, entry)| {
        let name = format!("{}/{}", key.namespace, key.name);
        (entry.addresses.iter()).map(move |address| (name.clone(), *address))
    })
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
