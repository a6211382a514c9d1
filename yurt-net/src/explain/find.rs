//! The addresses of a Service that is named, and what there is if there is no such one.
//!
//! Pure. In: `Snapshot`. Out: what the agent answers, a few lines long whatever is in the cluster.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::model::{NamespacedName, Protocol, Service, ServicePort, Snapshot};

/// So many names of others are told.
const TOLD: usize = 10;

/// What has the wanted name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// Its ports at its ClusterIPs.
    pub ports: Vec<FoundPort>,
    /// The Service is there; it may have no ClusterIP, or no such port.
    pub is_there: bool,
    /// If nothing has the name: ports of the same Service, Services of the same namespace, or else namespaces.
    pub others: Vec<String>,
    /// How many more of these there are.
    pub more_others: usize,
}

/// A port at a ClusterIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundPort {
    /// Its name; "" where it has none.
    pub name: String,
    /// Address and port.
    pub at: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

impl Found {
    /// What the Service `ns/name` has, or its port `ns/name:port`, by name or number.
    pub fn of(snapshot: &Snapshot, wanted: &str) -> Self {
        let (service, port) = match wanted.split_once(':') {
            Some((service, port)) => (service, Some(port)),
            None => (wanted, None),
        };
        let (namespace, name) = service.split_once('/').unwrap_or_default();
        let Some(found) = snapshot.services.get(&NamespacedName::new(namespace, name)) else {
            return Self::default().with_others(others(snapshot, namespace));
        };
        let is_wanted = |one: &&ServicePort| {
            port.is_none_or(|port| *one.name == *port || one.port.to_string() == port)
        };
        let ports = ports(found, is_wanted);
        let there = Self {
            is_there: true,
            ..Self::default()
        };
        if !ports.is_empty() || found.cluster_ips.is_empty() {
            return Self { ports, ..there };
        }
        there.with_others(found.ports.iter().map(|one| match one.name.is_empty() {
            true => format!("{service}:{}", one.port),
            false => format!("{service}:{}", one.name),
        }))
    }

    fn with_others(mut self, others: impl Iterator<Item = String>) -> Self {
        let mut others = others;
        self.others = others.by_ref().take(TOLD).collect();
        self.more_others = others.count();
        self
    }
}

/// The Services of a namespace; the namespaces, if it has none.
fn others<'a>(snapshot: &'a Snapshot, namespace: &'a str) -> impl Iterator<Item = String> + 'a {
    let names = snapshot.services.keys();
    let same = names
        .clone()
        .filter(move |name| *name.namespace == *namespace);
    let is_empty = same.clone().next().is_none();
    let mut last: Option<&str> = None;
    let namespaces = names.filter_map(move |name| {
        // They are sorted.
        let is_new = is_empty && last != Some(&*name.namespace);
        last = Some(&*name.namespace);
        is_new.then(|| name.namespace.to_string())
    });
    same.map(|name| format!("{}/{}", name.namespace, name.name))
        .chain(namespaces)
}

fn ports(service: &Service, is_wanted: impl Fn(&&ServicePort) -> bool) -> Vec<FoundPort> {
    let ports = service.ports.iter().filter(is_wanted);
    let at = |port: &ServicePort| {
        let (name, protocol, number) = (port.name.to_string(), port.protocol, port.port);
        let addresses = service.cluster_ips.iter();
        addresses.map(move |address| FoundPort {
            name: name.clone(),
            at: SocketAddr::new(*address, number),
            protocol,
        })
    };
    ports.flat_map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fixtures::{World, ip, port};

    fn world() -> World {
        let mut world = World::web(None);
        world.service("web", |service| {
            service.cluster_ips = [ip("10.96.0.10"), ip("fd00:96::10")].into();
            service.ports = [port("http", 80, 0), port("admin", 8081, 0)].into();
        });
        world
    }

    fn found(wanted: &str) -> Found {
        Found::of(&world().snapshot, wanted)
    }

    #[test]
    fn a_service_is_found_by_its_name_and_a_port_by_name_or_number() {
        let at = |wanted| {
            let ports = found(wanted).ports.into_iter();
            ports.map(|one| one.at.to_string()).collect::<Vec<_>>()
        };
        let http = ["10.96.0.10:80", "[fd00:96::10]:80"];
        assert_eq!(at("default/web:http"), http);
        assert_eq!(at("default/web:80"), http);
        assert_eq!(at("default/web").len(), 4);
    }

    #[test]
    fn what_is_not_there_is_told_with_what_there_is() {
        let port = found("default/web:https");
        assert!(port.is_there && port.ports.is_empty());
        assert_eq!(port.others, ["default/web:http", "default/web:admin"]);
        assert_eq!(found("default/wbe").others, ["default/web"]);
        assert_eq!(found("defautl/web").others, ["default"]);
        let mut world = world();
        world.service("none", |service| service.cluster_ips = [].into());
        let headless = Found::of(&world.snapshot, "default/none");
        assert!(headless.is_there && headless.ports.is_empty() && headless.others.is_empty());
    }

    #[test]
    fn of_many_services_a_few_are_told_and_the_rest_is_counted() {
        let mut world = world();
        for number in 0..1000 {
            world.service(&format!("s{number}"), |_| {});
        }
        let found = Found::of(&world.snapshot, "default/nothing");
        assert_eq!((found.others.len(), found.more_others), (TOLD, 991));
    }
}
