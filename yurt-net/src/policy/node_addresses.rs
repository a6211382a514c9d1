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

/// The addresses of this node inside prefixes, sorted. On another machine they are those that its Node object has.
///
/// An address that the Node object names is one of them although no interface has it: a node may start without its
/// network. Others that went with their link stay until another of their family is there.
fn inside(
    prefixes: &[IpNetwork],
    snapshot: &Snapshot,
    config: &PolicyConfig,
    view: &NodeView,
    last: &[IpAddr],
    rejections: &mut Vec<Rejection>,
) -> Vec<IpAddr> {
    let is_served = |address: &IpAddr| {
        let is_link_local =
            matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        let is_usable = !address.is_loopback() && !address.is_unspecified() && !is_link_local;
        is_usable && prefixes.iter().any(|prefix| prefix.contains(*address))
    };
    let node = snapshot.nodes.get(&*config.node);
    let internal = node.into_iter().flat_map(|node| &node.internal_ips);
    let (v4, v6) = view.default_source;
    let sources = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6));
    let local: Vec<IpAddr> = match &view.local_addresses {
        Some(local) => local.iter().copied().collect(),
        None => node
            .into_iter()
            .flat_map(|node| node.external_ips.iter().copied())
            .collect(),
    };
    let mut seen = BTreeSet::new();
    let here = internal.copied().chain(sources).chain(local);
    let here = here
        .filter(is_served)
        .filter(|address| seen.insert(*address));
    let mut addresses: Vec<IpAddr> = here.collect();
    let gone = last.iter().copied().filter(is_served);
    let gone: Vec<IpAddr> = gone
        .filter(|gone| {
            !addresses
                .iter()
                .any(|here| here.is_ipv4() == gone.is_ipv4())
        })
        .collect();
    addresses.extend(gone);
    let mut say = |what: String| {
        let name = NamespacedName::new("", config.node.as_str());
        rejections.push(snapshot.reject(Kind::Node, &name, what));
    };
    if addresses.is_empty() && view.local_addresses.is_some() {
        let what = "none of its addresses is inside --nodeport-addresses: NodePorts are served at loopback alone";
        say(what.to_owned());
    }
    if addresses.len() > MOST {
        say(format!(
            "{} of its addresses are inside --nodeport-addresses: NodePorts are served at {MOST}, those of its status \
             and of its default routes first; name smaller prefixes",
            addresses.len()
        ));
        // Both families have their share.
        let mut ranks = [0, 0];
        addresses.sort_by_cached_key(|address| {
            let rank = &mut ranks[usize::from(address.is_ipv6())];
            *rank += 1;
            *rank
        });
        addresses.truncate(MOST);
    }
    addresses.sort_unstable();
    addresses
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::Node;
    use crate::policy::NodePortAddresses;

    fn served(prefixes: &str, local: &[&str], last: &[&str]) -> (Vec<String>, usize) {
        served_as(&[], prefixes, local, last)
    }

    /// The same, if the Node has these addresses in its status.
    fn served_as(
        status: &[&str],
        prefixes: &str,
        local: &[&str],
        last: &[&str],
    ) -> (Vec<String>, usize) {
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
        let mut snapshot = Snapshot::default();
        let node = Node {
            name: "a1".into(),
            labels: BTreeMap::new(),
            internal_ips: parsed(status),
            external_ips: Vec::new(),
            pod_cidrs: Vec::new(),
            annotations: BTreeMap::new(),
            is_leaving: false,
        };
        snapshot.nodes.insert("a1".into(), node.into());
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
    fn an_address_of_the_nodes_status_is_served_before_its_network_is_there_and_beside_others() {
        let all = |local: &[&str]| served_as(&["192.0.2.11"], "0.0.0.0/0", local, &[]).0;
        assert_eq!(all(&["127.0.0.1"]), ["192.0.2.11"]);
        assert_eq!(
            all(&["127.0.0.1", "10.244.1.1"]),
            ["10.244.1.1", "192.0.2.11"]
        );
        let (outside, rejections) =
            served_as(&["192.0.2.11"], "203.0.113.0/24", &["192.0.2.11"], &[]);
        assert_eq!(outside, ["127.0.0.1", "::1"]);
        assert_eq!(rejections, 1, "nobody would look for NodePorts there");
    }

    #[test]
    fn of_many_addresses_those_that_everybody_uses_and_both_families_are_served() {
        let mut local: Vec<String> = (1..=40).map(|n| format!("10.1.0.{n}")).collect();
        local.extend(["192.0.2.11".to_owned(), "fd00::1".to_owned()]);
        let local: Vec<&str> = local.iter().map(String::as_str).collect();
        let (served, rejections) = served_as(&["192.0.2.11"], "0.0.0.0/0,::/0", &local, &[]);
        assert_eq!((served.len(), rejections), (MOST, 1));
        for address in ["192.0.2.11", "fd00::1"] {
            assert!(served.iter().any(|one| one == address), "{served:?}");
        }
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
