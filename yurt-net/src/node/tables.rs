//! The node's own tables at one moment, and what follows from them. Pure.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

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
