//! Where this node serves NodePorts.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::inputs::{NodePortAddresses, NodeView, PolicyConfig};
use crate::model::{AddressFamily, Kind, NamespacedName, Rejection, Snapshot};

/// Addresses inside prefixes at which NodePorts are served: each costs a row for each NodePort.
const MOST: usize = 16;

/// The addresses that NodePorts are served on: one of each family, or all inside the operator's prefixes.
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
    let addresses = match &config.node_ports {
        NodePortAddresses::Inside(prefixes) => {
            inside(prefixes, snapshot, config, view, last, rejections)
        }
        _ => primary(snapshot, config, view, last, rejections),
    };
    match addresses.is_empty() && view.local_addresses.is_some() {
        true => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        false => addresses,
    }
}

/// One address of each family.
fn primary(
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
    addresses
}

/// The addresses of this node inside prefixes; on another machine, those that its Node object has.
fn inside(
    prefixes: &[IpNetwork],
    snapshot: &Snapshot,
    config: &PolicyConfig,
    view: &NodeView,
    last: &[IpAddr],
    rejections: &mut Vec<Rejection>,
) -> Vec<IpAddr> {
    let node = snapshot.nodes.get(&*config.node);
    let stated = node.map(|node| node.internal_ips.iter().chain(&node.external_ips));
    let is_served = |address: &IpAddr| {
        let is_link_local =
            matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        let is_usable = !address.is_loopback() && !address.is_unspecified() && !is_link_local;
        is_usable && prefixes.iter().any(|prefix| prefix.contains(*address))
    };
    let here: BTreeSet<IpAddr> = match &view.local_addresses {
        Some(local) => local.iter().copied().filter(is_served).collect(),
        None => stated
            .into_iter()
            .flatten()
            .copied()
            .filter(is_served)
            .collect(),
    };
    let gone = last.iter().copied().filter(is_served);
    let gone = gone.filter(|gone| !here.iter().any(|here| here.is_ipv4() == gone.is_ipv4()));
    let mut addresses: Vec<IpAddr> = here.iter().copied().chain(gone).collect();
    if addresses.len() > MOST {
        rejections.push(snapshot.reject(
            Kind::Node,
            &NamespacedName::new("", config.node.as_str()),
            format!(
                "{} of its addresses are inside --nodeport-addresses: NodePorts are served at the first {MOST}; name \
                 smaller prefixes",
                addresses.len()
            ),
        ));
        addresses.truncate(MOST);
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::NodePortAddresses;

    fn served(prefixes: &str, local: &[&str], last: &[&str]) -> (Vec<String>, usize) {
        let parsed =
            |all: &[&str]| -> Vec<IpAddr> { all.iter().map(|a| a.parse().unwrap()).collect() };
        let config = PolicyConfig {
            node_ports: prefixes.parse().unwrap(),
            ..PolicyConfig::new("a1")
        };
        let view = NodeView {
            local_addresses: Some(parsed(local).into_iter().collect()),
            ..NodeView::default()
        };
        let mut rejections = Vec::new();
        let snapshot = Snapshot::default();
        let served = node_addresses(&snapshot, &config, &view, &parsed(last), &mut rejections);
        (
            served.iter().map(IpAddr::to_string).collect(),
            rejections.len(),
        )
    }

    #[test]
    fn node_ports_are_served_at_each_address_of_the_node_inside_the_prefixes() {
        let local = [
            "127.0.0.1",
            "192.0.2.11",
            "192.0.2.12",
            "198.51.100.1",
            "fd00::1",
            "fe80::1",
            "::1",
        ];
        let all = |text: &str| served(text, &local, &[]).0;
        assert_eq!(all("192.0.2.0/24"), ["192.0.2.11", "192.0.2.12"]);
        assert_eq!(all("192.0.2.12/32,::/0"), ["192.0.2.12", "fd00::1"]);
        assert_eq!(all("203.0.113.0/24"), ["127.0.0.1", "::1"]);
    }

    #[test]
    fn an_address_inside_the_prefixes_that_went_with_its_link_stays_until_another_takes_its_place()
    {
        let last = ["192.0.2.11", "198.51.100.1"];
        let all = |local: &[&str]| served("192.0.2.0/24", local, &last).0;
        assert_eq!(all(&["127.0.0.1"]), ["192.0.2.11"]);
        assert_eq!(all(&["192.0.2.12"]), ["192.0.2.12"]);
    }

    #[test]
    fn a_node_with_many_addresses_serves_node_ports_at_a_few_and_says_so() {
        let local: Vec<String> = (1..=40).map(|n| format!("192.0.2.{n}")).collect();
        let local: Vec<&str> = local.iter().map(String::as_str).collect();
        let (served, rejections) = served("0.0.0.0/0", &local, &[]);
        assert_eq!((served.len(), rejections), (MOST, 1));
    }

    #[test]
    fn node_port_addresses_are_prefixes_or_the_word_primary() {
        assert_eq!("primary".parse(), Ok(NodePortAddresses::Primary));
        for text in ["", "192.0.2.1", "primary,192.0.2.0/24", "192.0.2.0/24,"] {
            assert!(text.parse::<NodePortAddresses>().is_err(), "{text}");
        }
    }
}
