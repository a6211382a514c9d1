//! The node's own tables at one moment, and what follows from them. Pure.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::device::{Link, Mac, Route};
use crate::pods::guard::Policy;

/// A neighbour at a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the device.
    pub device: u32,
    /// Address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: Mac,
}

/// The port of a bridge behind which a MAC is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// This device.
    Only(u32),
    /// Several ports have the MAC, such as one in each of two VLANs.
    Several,
}

/// The node's own tables.
#[derive(Clone, Debug, Default)]
pub struct Near {
    /// Devices.
    pub links: Vec<Link>,
    /// Routes of the main table.
    pub routes: Vec<Route>,
    /// Neighbours whose MAC is known.
    pub neighbours: Vec<Neighbour>,
    /// Forwarding entries, by bridge and MAC.
    pub ports: BTreeMap<(u32, Mac), Port>,
}

impl Near {
    /// The devices that lead to a Pod's namespace, by the number that the node's namespace has for it.
    pub fn devices_to(&self, netns_id: i32) -> Vec<u32> {
        let policy = Policy::default();
        let links = self.links.iter().filter(|link| {
            link.other_end_netns == Some(netns_id) && link.leads_to_pod(&policy.devices)
        });
        links.map(|link| link.ifindex).collect()
    }
}

impl Near {
    /// Whether packets for this address leave by the device of a Pod, or by a bridge with Pods.
    pub fn leads_to_pods(&self, address: IpAddr) -> bool {
        let policy = Policy::default();
        let Some(device) = self.way_to(address) else {
            return false;
        };
        let mut pods = self
            .links
            .iter()
            .filter(|link| link.leads_to_pod(&policy.devices));
        pods.any(|link| link.ifindex == device || link.controller == Some(device))
    }

    /// The networks that the node's routes have at its Pods: single addresses at the device of a Pod, and what is at a
    /// bridge whose ports all lead to Pods. Others are on a bridge that the node shares with its LAN.
    /// `patterns` are as in [`Link::leads_to_pod`].
    pub fn pod_networks(&self, patterns: &[String]) -> impl Iterator<Item = IpNetwork> {
        let mut devices = BTreeSet::new();
        let mut bridges: BTreeMap<u32, bool> = BTreeMap::new();
        for link in &self.links {
            let is_pods = link.leads_to_pod(patterns);
            if is_pods {
                devices.insert(link.ifindex);
            }
            if let Some(bridge) = link.controller {
                *bridges.entry(bridge).or_insert(true) &= is_pods;
            }
        }
        for link in self.links.iter().filter(|link| link.is_uplink) {
            bridges.remove(&link.ifindex);
        }
        let routes = self.routes.iter().filter(move |route| {
            let is_one = route.prefix.prefix() == if route.prefix.is_ipv4() { 32 } else { 128 };
            route.link.is_some_and(|link| {
                bridges.get(&link) == Some(&true) || is_one && devices.contains(&link)
            })
        });
        routes.map(|route| route.prefix)
    }

    /// The device by which this address is reached directly.
    pub fn way_to(&self, address: IpAddr) -> Option<u32> {
        let routes = self.routes.iter();
        let matching = routes.filter(|route| route.prefix.contains(address));
        matching.max_by_key(|route| route.prefix.prefix())?.link
    }
}

/// A question for the owner of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The device at which to ask.
    pub device: u32,
    /// The address.
    pub address: IpAddr,
    /// The MAC that answered last.
    pub mac: Option<Mac>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn veth(ifindex: u32, controller: Option<u32>) -> Link {
        Link {
            ifindex,
            kind: "veth".to_owned(),
            other_end_netns: Some(1),
            controller,
            ..Link::default()
        }
    }

    fn route(prefix: &str, link: Option<u32>) -> Route {
        Route {
            prefix: prefix.parse().unwrap(),
            link,
            is_hole: false,
            is_ours: false,
        }
    }

    #[test]
    fn networks_of_pods_are_single_addresses_at_their_devices_and_what_is_at_bridges_of_pods_alone()
    {
        let bridge = |ifindex, is_uplink| Link {
            ifindex,
            is_uplink,
            kind: "bridge".to_owned(),
            ..Link::default()
        };
        let port = Link {
            ifindex: 5,
            controller: Some(4),
            ..Link::default()
        };
        // A node that is a container reaches its LAN by such a device.
        let lan = veth(9, None);
        let tap = Link {
            ifindex: 10,
            name: "tap7".to_owned(),
            ..Link::default()
        };
        let near = Near {
            links: vec![
                tap,
                bridge(1, false),
                veth(2, Some(1)),
                veth(3, None),
                bridge(4, false),
                port,
                veth(6, Some(4)),
                bridge(7, true),
                veth(8, Some(7)),
                lan,
            ],
            routes: vec![
                route("10.9.0.0/24", Some(1)),
                route("10.8.0.7/32", Some(3)),
                route("fd00:8::7/128", Some(3)),
                route("192.168.1.0/24", Some(4)),
                route("192.168.2.0/24", Some(7)),
                route("192.0.2.0/24", Some(9)),
                route("10.7.0.0/24", None),
                route("172.16.0.1/32", Some(5)),
                route("10.6.0.9/32", Some(10)),
            ],
            ..Near::default()
        };
        let networks = |patterns: &[&str]| -> Vec<String> {
            let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            let networks = near.pod_networks(&patterns);
            networks.map(|one| one.to_string()).collect()
        };
        assert_eq!(
            networks(&[]),
            ["10.9.0.0/24", "10.8.0.7/32", "fd00:8::7/128"]
        );
        // A device that is no veth leads to a Pod where the operator says so, and others then do not.
        assert_eq!(networks(&["tap*"]), ["10.6.0.9/32"]);
    }
}
