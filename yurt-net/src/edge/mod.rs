//! The packet path's side of the node: which devices lead outside, which address stands for clients there, and the writes that put the
//! programs in place.
//!
//! Pure. A device leads outside where clients or Pods of other nodes can be behind it: one with a default route, hardware with an
//! address, the tunnel of an overlay. Devices of this node's own Pods, parts of a bridge or a bond, and Raven's never do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::device::Link;

/// Kinds of devices that are tunnels to other nodes.
const TUNNELS: [&str; 3] = ["vxlan", "geneve", "gretap"];
/// Kinds of devices that are as good as hardware.
const LIKE_HARDWARE: [&str; 5] = ["", "vlan", "bond", "team", "macvlan"];

/// This node's addresses on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeRow {
    /// What backends behind it take for the address of masqueraded clients; `None`: there are none to be served there.
    pub v4: Option<Ipv4Addr>,
    /// See `v4`.
    pub v6: Option<Ipv6Addr>,
}

/// Which of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// What comes in.
    Arriving,
    /// What leaves.
    Leaving,
}

impl Direction {
    /// Both. Answers are let out before questions are let in.
    pub const BOTH: [Self; 2] = [Self::Leaving, Self::Arriving];
}

/// All that the kernel holds of it, or should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeImage {
    /// By device.
    pub rows: BTreeMap<u32, EdgeRow>,
    /// Which program is on which device.
    pub attached: BTreeSet<(Direction, u32)>,
    /// Where they were, and are no more.
    pub lost: BTreeSet<(Direction, u32)>,
}

impl EdgeImage {
    /// Both programs are on this device.
    pub fn is_complete(&self, ifindex: u32) -> bool {
        let mut both = Direction::BOTH.into_iter();
        both.all(|direction| self.attached.contains(&(direction, ifindex)))
    }
}

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeOp {
    /// Writes the addresses of a device.
    PutRow(u32, EdgeRow),
    /// Puts a program on a device.
    Attach(Direction, u32),
    /// Takes it off, or forgets where it was.
    Detach(Direction, u32),
    /// Removes the addresses of a device.
    DeleteRow(u32),
}

/// Whether a device leads outside. `patterns` are those of the names of devices that do, with `*` and `?`; empty: see the module.
fn leads_outside(link: &Link, patterns: &[String]) -> bool {
    if link.is_untouched() {
        return false;
    }
    if !patterns.is_empty() {
        return link.is_named(patterns);
    }
    let is_part = link.controller.is_some();
    let is_tunnel = TUNNELS.contains(&link.kind.as_str());
    let is_wire = LIKE_HARDWARE.contains(&link.kind.as_str()) && !link.addresses.is_empty();
    // Frames without a link-layer header (modems that hand out packets, tun) are not read yet.
    link.mac.is_some() && !is_part && (link.is_uplink || is_tunnel || is_wire)
}

/// What there should be.
pub fn compile(links: &[Link], patterns: &[String]) -> EdgeImage {
    let edges = links.iter().filter(|link| leads_outside(link, patterns));
    let rows: BTreeMap<u32, EdgeRow> = edges.map(|link| (link.ifindex, row(link))).collect();
    let attached = rows.keys().flat_map(|ifindex| {
        let both = Direction::BOTH.into_iter();
        both.map(|direction| (direction, *ifindex))
    });
    EdgeImage {
        attached: attached.collect(),
        lost: BTreeSet::new(),
        rows,
    }
}

/// The first address of each family that hosts elsewhere can answer to.
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

/// The writes that lead from one to the other. A device has its addresses before its programs, and as long as they are there.
pub fn plan(observed: &EdgeImage, wanted: &EdgeImage) -> Vec<EdgeOp> {
    let rows = wanted.rows.iter();
    let changed = rows.filter(|(ifindex, row)| observed.rows.get(ifindex) != Some(row));
    let puts = changed.map(|(ifindex, row)| EdgeOp::PutRow(*ifindex, *row));
    let attaches = Direction::BOTH.into_iter().flat_map(|direction| {
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
        modem.mac = None;
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
            link(9, "flannel.1", "vxlan", &["10.244.1.0"]),
            link(10, "raven0", "vxlan", &["10.0.0.1"]),
            link(11, "eth5", "", &[]),
        ]
    }

    #[test]
    fn uplinks_hardware_with_addresses_and_tunnels_lead_outside_and_nothing_else() {
        let image = compile(&node(), &[]);
        assert_eq!(image.rows.keys().copied().collect::<Vec<_>>(), [2, 5, 9]);
        assert_eq!(
            image.rows[&2],
            EdgeRow {
                v4: Some(Ipv4Addr::new(192, 0, 2, 11)),
                v6: Some("2001:db8::11".parse().unwrap()),
            }
        );
        assert_eq!(image.rows[&9].v6, None);
        let named = compile(&node(), &["wwan*".to_owned(), "raven*".to_owned()]);
        assert_eq!(named.rows.keys().copied().collect::<Vec<_>>(), [8]);
    }

    #[test]
    fn programs_come_after_the_addresses_of_their_device_and_go_before_them() {
        let wanted = compile(&node(), &["eth0".to_owned()]);
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
