//! Who gets the room of a full map, spelled out.

mod losses;
mod turns;

use std::net::SocketAddr;

use super::super::tests::{CAPACITY, table};
use super::super::*;
use crate::dataplane::Dataplane;
use crate::dataplane::service::memory::MemoryDataplane;
use crate::model::{Protocol, TrafficPolicy};
use crate::table::{EndpointSet, Frontend, FrontendKind, Scope};

fn in_namespace(
    namespace: &str,
    name: &str,
    addresses: &[&str],
    backends: &[&str],
) -> Arc<ServiceEntry> {
    let key = ServiceKey {
        namespace: namespace.into(),
        name: name.into(),
        port: Arc::default(),
        protocol: Protocol::Tcp,
    };
    let backends: Vec<SocketAddr> = backends.iter().map(|at| at.parse().unwrap()).collect();
    let of = |is_v4: bool| {
        let ours = backends.iter().filter(|at| at.is_ipv4() == is_v4);
        EndpointSet::cluster(ours.copied())
    };
    let frontends = addresses.iter().map(|address| Frontend {
        kind: FrontendKind::ExternalIp,
        address: address.parse().unwrap(),
        port: 80,
    });
    Arc::new(ServiceEntry {
        frontends: frontends.collect(),
        v4: of(true),
        v6: of(false),
        ..ServiceEntry::new(key)
    })
}

/// Plans and applies until nothing is left to do, as the agent does.
fn settle(wanted: &ServiceTable, maps: &mut MemoryDataplane, image: &mut MapImage) -> Plan {
    let mut planned = Plan::default();
    for _ in 0..8 {
        planned = plan(wanted, image);
        maps.apply(&planned).unwrap();
        if planned.refused.is_empty() || !planned.has_freed {
            break;
        }
    }
    assert!(maps.holds(image).unwrap());
    planned
}

fn names(refused: &[Refused]) -> Vec<String> {
    let names = refused.iter();
    let names =
        names.map(|Refused { service, .. }| format!("{}/{}", service.namespace, service.name));
    names.collect()
}

/// The backends that clients of an address reach.
fn served(image: &MapImage, address: &str) -> Option<Vec<SocketAddr>> {
    let address = address.parse().unwrap();
    let port = KeyPort::Port(Scope::Internal, Protocol::Tcp, 80);
    let index = image.service_of(&FrontendKey { address, port })?;
    Some(image.services[&index].set.as_ref()?.backends.to_vec())
}

fn how_many(image: &MapImage, address: &str) -> usize {
    served(image, address).map_or(0, |all| all.len())
}
