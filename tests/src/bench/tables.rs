//! Compiled tables of any size.

use std::net::SocketAddr;
use std::net::SocketAddrV4;
use std::sync::Arc;

use anyhow::Result;
use yurt_net::dataplane::service::BpfDataplane;
use yurt_net::dataplane::service::Options;
use yurt_net::dataplane::service::SocketLb;
use yurt_net::model::Protocol;
use yurt_net::plan::Capacity;
use yurt_net::table::ClusterPrefixes;
use yurt_net::table::EndpointSet;
use yurt_net::table::Frontend;
use yurt_net::table::FrontendKind;
use yurt_net::table::ServiceEntry;
use yurt_net::table::ServiceKey;
use yurt_net::table::ServiceTable;

use super::universe;
use crate::lab::Node;

/// The agent's default.
const PEERS: u32 = 16_384;

/// Entries that the agent's maps have by default.
pub const CAPACITY: Capacity = Capacity {
    frontends4: 20_480,
    frontends6: 8192,
    services: 16_384,
    slots4: 32_768,
    slots6: 8192,
};

/// A table with these entries. `are_service_cidrs`: whether the cluster's ServiceCIDR is known.
pub fn table(services: Vec<Arc<ServiceEntry>>, are_service_cidrs: bool) -> Result<ServiceTable> {
    Ok(ServiceTable {
        node: "bench".to_owned(),
        services,
        cluster_prefixes: ClusterPrefixes {
            prefixes: vec!["10.96.0.0/16".parse()?],
            are_service_cidrs,
        },
        ..ServiceTable::default()
    })
}

/// A table of this many Services, each with two endpoints.
pub fn services(count: usize) -> Vec<Arc<ServiceEntry>> {
    (0..count).map(|index| service(index, 0)).collect()
}

/// A Service of two endpoints, which depend on `version`.
pub fn service(index: usize, version: usize) -> Arc<ServiceEntry> {
    let endpoint = |n| {
        let ip = universe::endpoint_ip(index * 2 + n + version * 2);
        SocketAddrV4::new(ip, 8080)
    };
    let at = SocketAddrV4::new(universe::cluster_ip(index), 80);
    entry(
        &universe::service_name(index),
        at,
        &[endpoint(0), endpoint(1)],
    )
}

/// A Service with these backends, which are sorted.
pub fn entry(name: &str, at: SocketAddrV4, backends: &[SocketAddrV4]) -> Arc<ServiceEntry> {
    let key = ServiceKey {
        namespace: "default".into(),
        name: name.into(),
        port: "http".into(),
        protocol: Protocol::Tcp,
    };
    Arc::new(ServiceEntry {
        frontends: [Frontend {
            kind: FrontendKind::ClusterIp,
            address: (*at.ip()).into(),
            port: at.port(),
        }]
        .into(),
        v4: EndpointSet::cluster(backends.iter().copied().map(SocketAddr::V4)),
        ..ServiceEntry::new(key)
    })
}

/// The dataplane of a node, in this process.
pub fn dataplane(node: &Node, capacity: Capacity) -> Result<BpfDataplane> {
    Ok(BpfDataplane::open(Options {
        bpffs: node.bpffs(),
        cgroup: node.cgroup().to_owned(),
        capacity,
        tcp_peers: PEERS,
        affinity: 1,
        socket_lb: SocketLb::All,
        serves_packets: false,
    })?)
}
