//! The devices where the packet path serves packets, and the writes that bring its map and programs there: which
//! devices lead outside and which to Pods, and which address of this node stands for clients.
//!
//! Pure. A device leads outside if clients or Pods of other nodes can be behind it: a device with a default route,
//! hardware with an address, a tunnel to other hosts. Devices of this node's own Pods, parts of a bridge or a bond,
//! and Raven's devices never lead outside, however they are named.

pub mod fast;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::device::Link;

/// Kinds of devices that are tunnels to other nodes.
const TUNNELS: [&str; 3] = ["vxlan", "geneve", "gretap"];
/// Kinds of layer-3 devices that are tunnels to other hosts.
const L3_TUNNELS: [&str; 7] = ["tun", "wireguard", "ipip", "ip6tnl", "sit", "gre", "ip6gre"];
/// Kinds of devices that are treated like hardware.
const LIKE_HARDWARE: [&str; 7] = ["", "vlan", "bond", "team", "macvlan", "wwan", "ppp"];

/// A device where packets are served, and the addresses of this node there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeRow {
    /// Whether the device leads to a Pod of this node; otherwise it leads outside.
    pub is_pods: bool,
    /// The address that stands for masqueraded clients towards backends behind this device; `None`: no backend of this
    /// family is served there.
    pub v4: Option<Ipv4Addr>,
    /// Like `v4`, for IPv6.
    pub v6: Option<Ipv6Addr>,
}

/// One of the programs on a device, by the packets that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Packets that come in from outside.
    Arriving,
    /// Packets that leave the node.
    Leaving,
    /// Packets that a Pod sends.
    FromPod,
    /// Packets that go to a Pod.
    ToPod,
}

impl Direction {
    /// All of them, in the order of attaching: the programs for answers come before those for questions.
    pub const ALL: [Self; 4] = [Self::Leaving, Self::ToPod, Self::Arriving, Self::FromPod];

    /// The two programs of a device.
    fn both(row: &EdgeRow) -> [Self; 2] {
        match row.is_pods {
            true => [Self::ToPod, Self::FromPod],
            false => [Self::Leaving, Self::Arriving],
        }
    }
}

/// The devices and programs of the packet path, as they are in the kernel or as they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeImage {
    /// The devices, by index.
    pub rows: BTreeMap<u32, EdgeRow>,
    /// Which program is on which device.
    pub attached: BTreeSet<(Direction, u32)>,
    /// Places where a program was attached and no longer is.
    pub lost: BTreeSet<(Direction, u32)>,
    /// The layer-3 devices that there should be: programs of their own are for them.
    pub l3: BTreeSet<u32>,
}

impl EdgeImage {
    /// The devices with a row in `wanted` that have both of their programs.
    pub fn complete(&self, wanted: &Self) -> BTreeSet<u32> {
        let rows = wanted.rows.iter().filter(|(ifindex, row)| {
            let mut both = Direction::both(row).into_iter();
            both.all(|direction| self.attached.contains(&(direction, **ifindex)))
        });
        rows.map(|(ifindex, _)| *ifindex).collect()
    }
}

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeOp {
    /// Writes the addresses of a device.
    PutRow(u32, EdgeRow),
    /// Puts a program on a device.
    Attach(Direction, u32),
    /// Takes a program off a device, or forgets that it was there.
    Detach(Direction, u32),
    /// Removes the addresses of a device.
    DeleteRow(u32),
}

/// Patterns of the names of devices, with `*` and `?`.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    /// Devices that lead outside; empty: the rules of the module decide.
    pub edges: Vec<String>,
    /// Devices that lead to Pods; empty: [`Link::leads_to_pod`] decides.
    pub pods: Vec<String>,
}

impl Patterns {
    /// Whether a device leads to a Pod. A device with a default route never does.
    pub fn lead_to_pod(&self, link: &Link) -> bool {
        link.leads_to_pod(&self.pods) && !link.is_uplink
    }

    /// The names of devices that `edges` names although they lead to Pods.
    pub fn mistaken<'a>(&self, links: &'a [Link]) -> Vec<&'a str> {
        let mistaken = links.iter().filter(|link| {
            !self.edges.is_empty() && link.is_named(&self.edges) && self.lead_to_pod(link)
        });
        mistaken.map(|link| &*link.name).collect()
    }
}

/// Whether a device leads outside.
fn leads_outside(link: &Link, patterns: &Patterns) -> bool {
    if link.is_untouched() || patterns.lead_to_pod(link) {
        return false;
    }
    if !patterns.edges.is_empty() {
        return link.is_named(&patterns.edges);
    }
    let is_part = link.controller.is_some();
    let is_tunnel = TUNNELS.contains(&link.kind.as_str());
    let is_wire = LIKE_HARDWARE.contains(&link.kind.as_str()) && !link.addresses.is_empty();
    let is_l3_tunnel = link.is_l3 && L3_TUNNELS.contains(&link.kind.as_str());
    // Frames of other link layers (InfiniBand) are not read.
    let is_read = link.is_l3 || link.mac.is_some();
    is_read && !is_part && (link.is_uplink || is_tunnel || is_l3_tunnel || is_wire)
}

/// The devices and programs that there should be.
pub fn compile(links: &[Link], patterns: &Patterns) -> EdgeImage {
    let edges = links.iter().filter(|link| leads_outside(link, patterns));
    let mut rows: BTreeMap<u32, EdgeRow> = edges.map(|link| (link.ifindex, row(link))).collect();
    let outside: Vec<EdgeRow> = rows.values().copied().collect();
    let pods = links.iter().filter(|link| patterns.lead_to_pod(link));
    rows.extend(pods.map(|link| (link.ifindex, gateway(link, links, &outside))));
    let attached = rows.iter().flat_map(|(ifindex, row)| {
        let both = Direction::both(row).into_iter();
        both.map(|direction| (direction, *ifindex))
    });
    let l3 = links.iter().filter(|link| link.is_l3);
    let l3 = l3.map(|link| link.ifindex);
    EdgeImage {
        attached: attached.collect(),
        lost: BTreeSet::new(),
        l3: l3.filter(|ifindex| rows.contains_key(ifindex)).collect(),
        rows,
    }
}

/// The first address of each family that other hosts can answer to.
fn row(link: &Link) -> EdgeRow {
    let mut row = EdgeRow::default();
    for address in &link.addresses {
        match address {
            IpAddr::V4(address) if row.v4.is_none() => row.v4 = Some(*address),
            IpAddr::V6(address) if row.v6.is_none() && !address.is_unicast_link_local() => {
                row.v6 = Some(*address);
            }
            _ => {}
        }
    }
    row
}

/// The addresses that a Pod sees as the client when it is its own backend: this node's address on its device or on the
/// device's bridge, otherwise one that leads outside. The Pod's route to each of them leads through this device.
fn gateway(link: &Link, links: &[Link], outside: &[EdgeRow]) -> EdgeRow {
    let bridge = links
        .iter()
        .find(|bridge| link.controller == Some(bridge.ifindex));
    let rows = [Some(row(link)), bridge.map(row)];
    let rows: Vec<EdgeRow> = rows.into_iter().flatten().collect();
    let mut gateway = EdgeRow {
        is_pods: true,
        ..EdgeRow::default()
    };
    for row in rows.iter().chain(outside) {
        gateway.v4 = gateway.v4.or(row.v4);
        gateway.v6 = gateway.v6.or(row.v6);
    }
    gateway
}

/// The writes that lead from `observed` to `wanted`. A device gets its row before its programs, and keeps the row as
/// long as they are there.
pub fn plan(observed: &EdgeImage, wanted: &EdgeImage) -> Vec<EdgeOp> {
    let rows = wanted.rows.iter();
    let changed = rows.filter(|(ifindex, row)| observed.rows.get(ifindex) != Some(row));
    let puts = changed.map(|(ifindex, row)| EdgeOp::PutRow(*ifindex, *row));
    let attaches = Direction::ALL.into_iter().flat_map(|direction| {
        let missing = wanted.attached.difference(&observed.attached);
        let missing = missing.filter(move |(which, _)| *which == direction);
        missing.map(|(direction, ifindex)| EdgeOp::Attach(*direction, *ifindex))
    });
    let present = observed.attached.union(&observed.lost);
    let detaches = present.filter(|at| !wanted.attached.contains(at));
    let detaches = detaches.map(|(direction, ifindex)| EdgeOp::Detach(*direction, *ifindex));
    let gone = observed.rows.keys();
    let gone = gone.filter(|ifindex| !wanted.rows.contains_key(ifindex));
    let deletes = gone.map(|ifindex| EdgeOp::DeleteRow(*ifindex));
    (puts.chain(attaches).chain(detaches).chain(deletes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str, kind: &str, addresses: &[&str]) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            kind: kind.to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ..Link::default()
        }
    }

    fn node() -> Vec<Link> {
        let mut pod = link(4, "vethab", "veth", &[]);
        pod.other_end_netns = Some(1);
        let mut container = link(5, "eth9", "veth", &["172.18.0.2"]);
        (container.other_end_netns, container.is_uplink) = (Some(0), true);
        let mut part = link(6, "eth1", "", &["192.0.2.12"]);
        part.controller = Some(7);
        let mut modem = link(8, "wwan0", "", &["100.64.0.9"]);
        (modem.mac, modem.is_l3) = (None, true);
        let mut vpn = link(12, "wg0", "wireguard", &["10.9.0.1"]);
        (vpn.mac, vpn.is_l3) = (None, true);
        let mut fabric = link(13, "ib0", "", &["10.8.0.1"]);
        fabric.mac = None;
        let tap = link(14, "tap0", "tun", &["10.7.0.1"]);
        vec![
            link(1, "lo", "", &["127.0.0.1"]),
            link(
                2,
                "eth0",
                "",
                &["fe80::1", "192.0.2.11", "192.0.2.99", "2001:db8::11"],
            ),
            link(3, "cni0", "bridge", &["10.244.1.1"]),
            pod,
            container,
            part,
            modem,
            vpn,
            fabric,
            tap,
            link(9, "flannel.1", "vxlan", &["10.244.1.0"]),
            link(10, "raven0", "vxlan", &["10.0.0.1"]),
            link(11, "eth5", "", &[]),
        ]
    }

    #[test]
    fn uplinks_hardware_with_addresses_and_tunnels_lead_outside_and_nothing_else() {
        let image = compile(&node(), &Patterns::default());
        assert_eq!(outside(&image), [2, 5, 8, 9, 12]);
        assert_eq!(image.l3, [8, 12].into());
        assert_eq!(
            image.rows[&2],
            EdgeRow {
                is_pods: false,
                v4: Some(Ipv4Addr::new(192, 0, 2, 11)),
                v6: Some("2001:db8::11".parse().unwrap()),
            }
        );
        assert_eq!(image.rows[&9].v6, None);
        let named = compile(&node(), &named(&["wwan*", "raven*"]));
        assert_eq!(outside(&named), [8]);
    }

    #[test]
    fn devices_of_pods_never_lead_outside_however_they_are_named() {
        let patterns = named(&["eth0", "veth*"]);
        let image = compile(&node(), &patterns);
        assert_eq!(outside(&image), [2]);
        assert_eq!(pods(&image), [4]);
        assert_eq!(patterns.mistaken(&node()), ["vethab"]);
        assert_eq!(Patterns::default().mistaken(&node()), [""; 0]);
        let patterns = Patterns {
            pods: vec!["eth*".to_owned(), "lo".to_owned()],
            ..named(&["eth0"])
        };
        // A device with the default route is no Pod's, whatever the patterns.
        assert_eq!(pods(&compile(&node(), &patterns)), [2, 6, 11]);
    }

    #[test]
    fn a_pod_that_serves_itself_sees_its_gateway_or_else_any_address_of_this_node() {
        let mut links = node();
        let by_bridge = |links: &[Link]| {
            let EdgeRow { v4, v6, is_pods } = compile(links, &Patterns::default()).rows[&4];
            assert!(is_pods);
            [v4.map(|v4| v4.to_string()), v6.map(|v6| v6.to_string())].map(Option::unwrap)
        };
        assert_eq!(by_bridge(&links), ["192.0.2.11", "2001:db8::11"]);
        links[3].controller = Some(3);
        assert_eq!(by_bridge(&links), ["10.244.1.1", "2001:db8::11"]);
        links[3].addresses = vec!["169.254.1.1".parse().unwrap()];
        assert_eq!(by_bridge(&links), ["169.254.1.1", "2001:db8::11"]);
        links[3].addresses = vec!["fd00:244:1::1".parse().unwrap()];
        assert_eq!(by_bridge(&links), ["10.244.1.1", "fd00:244:1::1"]);
    }

    fn named(edges: &[&str]) -> Patterns {
        Patterns {
            edges: edges.iter().map(|name| (*name).to_owned()).collect(),
            pods: Vec::new(),
        }
    }

    fn outside(image: &EdgeImage) -> Vec<u32> {
        let rows = image.rows.iter().filter(|(_, row)| !row.is_pods);
        rows.map(|(ifindex, _)| *ifindex).collect()
    }

    fn pods(image: &EdgeImage) -> Vec<u32> {
        let rows = image.rows.iter().filter(|(_, row)| row.is_pods);
        rows.map(|(ifindex, _)| *ifindex).collect()
    }

    #[test]
    fn programs_come_after_the_addresses_of_their_device_and_go_before_them() {
        let mut links = node();
        links.retain(|link| link.name == "eth0");
        let wanted = compile(&links, &named(&["eth0"]));
        let ops = plan(&EdgeImage::default(), &wanted);
        assert_eq!(
            ops,
            [
                EdgeOp::PutRow(2, wanted.rows[&2]),
                EdgeOp::Attach(Direction::Leaving, 2),
                EdgeOp::Attach(Direction::Arriving, 2),
            ]
        );
        assert_eq!(plan(&wanted, &wanted), []);
        let mut lost = wanted.clone();
        lost.attached.remove(&(Direction::Leaving, 2));
        lost.lost.insert((Direction::Leaving, 2));
        assert_eq!(
            plan(&lost, &wanted),
            [EdgeOp::Attach(Direction::Leaving, 2)]
        );
        assert_eq!(
            plan(&lost, &EdgeImage::default()),
            [
                EdgeOp::Detach(Direction::Arriving, 2),
                EdgeOp::Detach(Direction::Leaving, 2),
                EdgeOp::DeleteRow(2),
            ]
        );
    }
}
