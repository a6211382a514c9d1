//! Where this node serves NodePorts.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::inputs::{NodeView, PolicyConfig};
use crate::model::{AddressFamily, Kind, NamespacedName, Rejection, Snapshot};

/// The addresses that NodePorts are served on: at most one of each family.
///
/// `last` are those of the last compile. An address that went with its link stays until another takes its place,
/// because links at the edge come back. Where no other was ever known, loopback is left: a NodePort answers there in
/// any case.
pub(super) fn node_addresses(
    snapshot: &Snapshot,
    config: &PolicyConfig,
    view: &NodeView,
    last: &[IpAddr],
    rejections: &mut Vec<Rejection>,
) -> Vec<IpAddr> {
    let node = snapshot.nodes.get(&*config.node);
    let families = [
        (AddressFamily::V4, view.default_source.0.map(IpAddr::V4)),
        (AddressFamily::V6, view.default_source.1.map(IpAddr::V6)),
    ];
    let mut addresses = Vec::new();
    for (family, default_source) in families {
        let is_of_family = |address: &&IpAddr| AddressFamily::from(**address) == family;
        let status = node.and_then(|node| {
            let mut all = node.internal_ips.iter().chain(&node.external_ips);
            all.find(is_of_family).copied()
        });
        let last = last.iter().find(is_of_family).copied();
        let address = match (status, &view.local_addresses) {
            (status, None) => status,
            // Without its Node a running agent still knows where its uplink is.
            (None, Some(_)) => default_source.or(last).filter(|_| node.is_none()),
            (Some(address), Some(local)) if local.contains(&address) => Some(address),
            (Some(address), Some(_)) => {
                let instead = default_source.or(last).unwrap_or(address);
                let why = match default_source {
                    Some(_) => ", the source of the default route",
                    None => " until another address takes its place",
                };
                let use_it = match instead == address {
                    true => "stay there".to_owned(),
                    false => format!("use {instead}"),
                };
                rejections.push(snapshot.reject(
                    Kind::Node,
                    &NamespacedName::new("", config.node.as_str()),
                    format!("status address {address} is on no interface: NodePorts {use_it}{why}"),
                ));
                Some(instead)
            }
        };
        addresses.extend(address);
    }
    if addresses.is_empty() && view.local_addresses.is_some() {
        addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    addresses
}
