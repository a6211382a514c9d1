//! What `services` asks beside what it reads from the kernel: whose a frontend is, and of one Service what its
//! frontends should do, and which endpoints take no traffic, and why.
//!
//! Pure. In: `ServiceTable`, `Reasons`. Out: what the agent answers, which is as large as one Service may be, and no
//! larger: reasons are named once, and only so many of them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::rows::FlowVerdict;
use crate::model::{AddressFamily, Protocol, TrafficPolicy};
use crate::policy::{Reasons, Why};
use crate::table::{Closure, Frontend, FrontendKind, Scope, ServiceEntry, ServiceTable};

/// So many endpoints of a Service that take no traffic are named; the others are counted.
const NAMED: usize = 1000;

/// Whose a frontend is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// `ns/name:port`.
    pub service: String,
    /// The closure in force; `None` if that is not known.
    pub closure: Option<Closure>,
}

/// What one Service should do on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    /// Its frontends, for the clients that are served.
    pub frontends: Vec<ExpectedFrontend>,
    /// Endpoints that take no traffic, of some frontends at least; sorted.
    pub left_out: Vec<LeftOut>,
    /// How many more there are.
    pub more_left_out: usize,
    /// Why there is no endpoint at all, in words; sorted.
    pub idle: Vec<String>,
}

/// One frontend for one scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedFrontend {
    /// Address and port.
    pub frontend: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Whose clients.
    pub scope: Scope,
    /// It answers on loopback, too.
    pub is_node_port: bool,
    /// The fate of a new flow.
    pub verdict: FlowVerdict,
    /// How many endpoints take it.
    pub endpoints: usize,
}

/// An endpoint that takes no traffic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    /// `ns/name:port` of the service port.
    pub service: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The endpoint's address and port.
    pub endpoint: SocketAddr,
    /// The first rule that left it out, in words.
    pub reason: String,
}

impl Expected {
    /// What the Service `ns/name`, or its port `ns/name:port`, should do.
    pub fn of(table: &ServiceTable, reasons: &Reasons<'_>, wanted: &str) -> Self {
        let mut expected = Self::default();
        let (mut left_out, mut idle) = (BTreeSet::new(), BTreeSet::new());
        let entries = table.services.iter();
        for entry in entries.filter(|entry| is_of(&entry.key.to_string(), wanted)) {
            // A Service may have thousands of frontends; these decide which endpoints they have.
            let mut known: BTreeSet<(AddressFamily, bool)> = BTreeSet::new();
            for (frontend, scope) in served(table, entry) {
                expected.frontends.push(ExpectedFrontend {
                    frontend: SocketAddr::new(frontend.address, frontend.port),
                    protocol: entry.key.protocol,
                    scope,
                    is_node_port: frontend.kind == FrontendKind::NodePort,
                    verdict: entry.verdict(frontend, scope).into(),
                    endpoints: entry.endpoints(frontend, scope).len(),
                });
                let is_local = entry.policy(frontend.kind, scope) == TrafficPolicy::Local;
                if !known.insert((frontend.address.into(), is_local)) {
                    continue;
                }
                let Why {
                    dropped, idle: why, ..
                } = reasons.why(entry, frontend, scope);
                left_out.extend(dropped.into_iter().map(|dropped| LeftOut {
                    service: entry.key.to_string(),
                    protocol: entry.key.protocol,
                    endpoint: dropped.endpoint,
                    reason: dropped.reason,
                }));
                idle.extend(why);
            }
        }
        expected.more_left_out = left_out.len().saturating_sub(NAMED);
        expected.left_out = left_out.into_iter().take(NAMED).collect();
        expected.idle = idle.into_iter().take(NAMED).collect();
        expected
    }

    /// The one that the row of a frontend in the kernel comes from.
    pub fn frontend(
        &self,
        at: SocketAddr,
        protocol: Protocol,
        scope: Scope,
    ) -> Option<&ExpectedFrontend> {
        let mut frontends = self.frontends.iter();
        frontends.find(|one| {
            let by_loopback = at.ip().is_loopback()
                && one.is_node_port
                && one.frontend.port() == at.port()
                && one.frontend.is_ipv4() == at.is_ipv4();
            (one.protocol, one.scope) == (protocol, scope) && (one.frontend == at || by_loopback)
        })
    }
}

/// The frontends of a service port that something serves, for each scope of clients.
fn served<'a>(
    table: &ServiceTable,
    entry: &'a ServiceEntry,
) -> impl Iterator<Item = (&'a Frontend, Scope)> {
    let scopes = match (entry.key.protocol, table.serves_packets) {
        (Protocol::Sctp, _) => &[][..],
        (_, true) => &[Scope::Internal, Scope::External],
        (_, false) => &[Scope::Internal],
    };
    let frontends = entry.frontends.iter();
    let frontends = frontends.filter(|frontend| !table.leaves_alone(frontend));
    frontends.flat_map(move |frontend| scopes.iter().map(move |scope| (frontend, *scope)))
}

/// The service port of each of these frontends, in their order.
pub fn named(table: &ServiceTable, frontends: &[(SocketAddr, Protocol)]) -> Vec<Option<Named>> {
    let mut found: BTreeMap<_, _> = frontends.iter().map(|frontend| (frontend, None)).collect();
    for entry in &table.services {
        for frontend in &entry.frontends {
            // Node ports also answer on loopback.
            let loopback: IpAddr = match frontend.address {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            let loopback = (frontend.kind == FrontendKind::NodePort).then_some(loopback);
            for address in [Some(frontend.address), loopback].into_iter().flatten() {
                let at = SocketAddr::new(address, frontend.port);
                if let Some(named) = found.get_mut(&(at, entry.key.protocol)) {
                    *named = Some(Named {
                        service: entry.key.to_string(),
                        closure: Some(entry.closure),
                    });
                }
            }
        }
    }
    let name = |frontend| found.get(frontend).cloned().flatten();
    frontends.iter().map(name).collect()
}

/// Whether a service port, `ns/name:port`, is the one that is wanted, or belongs to the wanted Service `ns/name`.
pub fn is_of(name: &str, wanted: &str) -> bool {
    let rest = name.strip_prefix(wanted);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':') && !wanted.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceType;
    use crate::policy::fixtures::{World, ip, port};

    /// A node whose pool has two of the three endpoints of a Service, which has a NodePort.
    fn world() -> World {
        let mut world = World::web(Some("openyurt.io/nodepool"));
        world.pool("hangzhou", &["a1", "a2"]);
        world.service("web", |service| {
            service.service_type = ServiceType::NodePort;
            service.ports = [port("http", 80, 30080)].into();
        });
        world
    }

    fn expected(world: &mut World, wanted: &str) -> Expected {
        let table = world.compile();
        Expected::of(&table, &world.reasons(), wanted)
    }

    #[test]
    fn a_service_has_its_frontends_and_the_endpoints_that_closure_leaves_out() {
        let found = expected(&mut world(), "default/web");
        let cluster_ip = found.frontend(
            "10.96.0.10:80".parse().unwrap(),
            Protocol::Tcp,
            Scope::Internal,
        );
        let cluster_ip = cluster_ip.unwrap();
        assert_eq!(
            (cluster_ip.verdict, cluster_ip.endpoints),
            (FlowVerdict::Forward, 2)
        );
        let [left_out] = &*found.left_out else {
            panic!("{found:?}");
        };
        assert_eq!(left_out.service, "default/web:http");
        assert_eq!(left_out.endpoint, "10.2.0.2:8080".parse().unwrap());
        assert!(
            left_out.reason.contains("node b1 is not in pool hangzhou"),
            "{found:?}"
        );
        assert_eq!(
            expected(&mut world(), "default/web:other"),
            Expected::default()
        );
    }

    #[test]
    fn a_row_on_loopback_is_that_of_the_node_port() {
        let found = expected(&mut world(), "default/web:http");
        let at = |to: &str| found.frontend(to.parse().unwrap(), Protocol::Tcp, Scope::Internal);
        assert!(at("127.0.0.1:30080").is_some_and(|one| one.is_node_port));
        assert_eq!(at("127.0.0.1:80"), None);
        assert_eq!(at("[::1]:30080"), None);
    }

    #[test]
    fn whom_nothing_serves_nothing_is_expected_for() {
        let mut world = world();
        let is_outside = |one: &ExpectedFrontend| one.scope == Scope::External;
        assert!(
            !expected(&mut world, "default/web")
                .frontends
                .iter()
                .any(is_outside)
        );
        world.view.local_addresses = Some([ip("10.96.0.10"), ip("192.0.2.11")].into());
        let found = expected(&mut world, "default/web");
        let left_alone = found.frontend(
            "10.96.0.10:80".parse().unwrap(),
            Protocol::Tcp,
            Scope::Internal,
        );
        assert_eq!(left_alone, None);
    }

    #[test]
    fn of_many_endpoints_that_are_left_out_some_are_named_and_all_counted() {
        let mut world = world();
        let far: Vec<String> = (0..1200)
            .map(|n| format!("10.9.{}.{}", n / 250, n % 250 + 1))
            .collect();
        let far: Vec<_> = far.iter().map(|address| (&**address, Some("b1"))).collect();
        world.slice("far", "web", &far);
        let found = expected(&mut world, "default/web");
        assert_eq!(found.left_out.len(), NAMED);
        assert_eq!(found.more_left_out, 1201 - NAMED);
    }

    #[test]
    fn a_service_without_endpoints_says_why() {
        let mut world = world();
        world.service("empty", |service| {
            service.cluster_ips = [ip("10.96.0.20")].into();
        });
        let found = expected(&mut world, "default/empty");
        assert!(
            found
                .frontends
                .iter()
                .all(|one| one.verdict == FlowVerdict::Refuse)
        );
        assert!(found.idle[0].contains("no EndpointSlice"), "{found:?}");
    }

    #[test]
    fn a_service_is_asked_for_by_its_name_or_by_one_of_its_ports() {
        for (name, wanted, expected) in [
            ("shop/web:http", "shop/web", true),
            ("shop/web", "shop/web", true),
            ("shop/web:", "shop/web", true),
            ("shop/web:http", "shop/web:http", true),
            ("shop/web:http", "shop/web:ht", false),
            ("shop/web2:http", "shop/web", false),
        ] {
            assert_eq!(is_of(name, wanted), expected, "{name} {wanted}");
        }
    }
}
