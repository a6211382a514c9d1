//! The fast path: packets of clients outside to Pods of this node, and their answers, past the stack. Whether it may be
//! taken, and to which Pods.
//!
//! Pure. Whatever runs in the stack between a device that leads outside and a Pod does not see such packets, so the
//! path is not taken while there is anything of others.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::EdgeRow;

/// `--fast-path`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FastPath {
    /// It is taken while nothing of others would be skipped.
    Auto,
    /// It is taken whatever is skipped.
    On,
    /// It is not taken.
    #[default]
    Off,
}

/// A chain of nftables that packets come through, also of iptables (nft).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// `NFPROTO_*`.
    pub family: u8,
    /// `NF_INET_*`, `NF_BR_*` or `NF_NETDEV_*`.
    pub hook: u32,
    /// Table and chain.
    pub name: String,
    /// How many rules it has.
    pub rules: u32,
    /// Its policy is to drop.
    pub drops: bool,
}

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_BRIDGE: u8 = 7;
const NFPROTO_IPV6: u8 = 10;
const NF_INET_LOCAL_IN: u32 = 1;
const NF_INET_LOCAL_OUT: u32 = 3;

impl Chain {
    /// Whether it would do something with packets that are forwarded.
    fn is_skipped(&self) -> bool {
        let is_on_the_way = match self.family {
            // What is for a process of this node, or from one, takes the stack.
            NFPROTO_INET | NFPROTO_IPV4 | NFPROTO_IPV6 => {
                !matches!(self.hook, NF_INET_LOCAL_IN | NF_INET_LOCAL_OUT)
            }
            NFPROTO_NETDEV | NFPROTO_BRIDGE => true,
            _ => false,
        };
        is_on_the_way && (self.rules > 0 || self.drops)
    }
}

/// A device, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its link-layer address.
    pub mac: Option<[u8; 6]>,
    /// Bytes of the largest packet that it takes.
    pub mtu: u32,
    /// The index of the bridge that it is a port of.
    pub controller: Option<u32>,
    /// It is one end of a pair whose other end is in another network namespace.
    pub leads_elsewhere: bool,
    /// What it does with packets that wait to be sent (`noqueue`: nothing).
    pub queue: String,
    /// The programs and filters of others that see its packets.
    pub others: Vec<String>,
    /// Addresses of its Pod are translated.
    pub is_translated: bool,
}

/// Who has an address, by the kernel's neighbour tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The index of the device that leads there.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: [u8; 6],
}

/// What there is on this node beside us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// What could not be read, and why.
    pub unread: Vec<String>,
    /// Chains of nftables that are on a hook.
    pub chains: Vec<Chain>,
    /// Tables of iptables (legacy), whatever is in them.
    pub legacy: BTreeSet<String>,
    /// How many policies of IPsec there are.
    pub policies: usize,
    /// Devices.
    pub devices: Vec<Device>,
    /// Neighbours.
    pub neighbours: Vec<Neighbour>,
    /// At which port of its bridge a link-layer address is.
    pub ports: BTreeMap<[u8; 6], u32>,
}

/// Where a Pod of this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Near {
    /// The host's end of its device.
    pub ifindex: u32,
    /// Bytes of the largest packet that it takes.
    pub mtu: u32,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// The one of this node that leads there.
    pub from: [u8; 6],
}

impl Surroundings {
    fn device(&self, ifindex: u32) -> Option<&Device> {
        self.devices.iter().find(|device| device.ifindex == ifindex)
    }

    /// What would be skipped that is not ours; none: the fast path may be taken. `rows` are the devices that are
    /// served.
    pub fn reasons(&self, rows: &BTreeMap<u32, EdgeRow>) -> Vec<String> {
        let mut reasons = self.unread.clone();
        let chains = self.chains.iter().filter(|chain| chain.is_skipped());
        let chains: BTreeSet<&str> = chains.map(|chain| chain.name.as_str()).collect();
        if !chains.is_empty() {
            reasons.push(format!("nftables: rules or a policy in {}", list(chains)));
        }
        if !self.legacy.is_empty() {
            reasons.push(format!("iptables (legacy): {}", list(&self.legacy)));
        }
        if self.policies > 0 {
            reasons.push(format!("{} xfrm policies", self.policies));
        }
        let bridges = rows.iter().filter(|(_, row)| row.is_pods);
        let bridges = bridges.filter_map(|(ifindex, _)| self.device(*ifindex)?.controller);
        let edges = rows.iter().filter(|(_, row)| !row.is_pods);
        let on_the_way: BTreeSet<u32> = edges.map(|(ifindex, _)| *ifindex).chain(bridges).collect();
        for device in on_the_way
            .iter()
            .filter_map(|ifindex| self.device(*ifindex))
        {
            if !device.others.is_empty() {
                let (name, others) = (&device.name, list(&device.others));
                reasons.push(format!("programs of others on {name}: {others}"));
            }
        }
        reasons
    }

    /// The addresses that packets may be led to past the stack, and the Pods' devices that are left to it, with the
    /// reason. `before`: what this said last, for a bridge forgets who sends nothing through it.
    pub fn nears(
        &self,
        rows: &BTreeMap<u32, EdgeRow>,
        before: &BTreeMap<IpAddr, Near>,
    ) -> (BTreeMap<IpAddr, Near>, Vec<String>) {
        let edges = self.devices.iter();
        let edges =
            edges.filter(|device| rows.get(&device.ifindex).is_some_and(|row| !row.is_pods));
        let smallest = edges.map(|device| device.mtu).min().unwrap_or_default();
        let mut left = BTreeSet::new();
        let mut nears: BTreeMap<IpAddr, Option<Near>> = BTreeMap::new();
        for Neighbour {
            ifindex,
            address,
            mac,
        } in &self.neighbours
        {
            if is_of_the_link(*address) {
                continue;
            }
            let known = before.get(address).filter(|near| near.mac == *mac);
            let port = match rows.get(ifindex) {
                Some(row) if row.is_pods => Some(*ifindex),
                Some(_) => None,
                None => (self.ports.get(mac).copied()).or(known.map(|near| near.ifindex)),
            };
            let Some((pod, way)) = port
                .and_then(|port| self.device(port))
                .zip(self.device(*ifindex))
            else {
                continue;
            };
            let is_its = pod.ifindex == way.ifindex || pod.controller == Some(way.ifindex);
            let is_pods = rows.get(&pod.ifindex).is_some_and(|row| row.is_pods);
            let (true, true, Some(from)) = (is_its, is_pods, way.mac) else {
                continue;
            };
            if let Some(reason) = left_to_the_stack(pod, smallest) {
                left.insert(format!("{}: {reason}", pod.name));
                continue;
            }
            let near = Near {
                ifindex: pod.ifindex,
                mtu: pod.mtu,
                mac: *mac,
                from,
            };
            match nears.entry(*address) {
                Entry::Vacant(entry) => drop(entry.insert(Some(near))),
                // Two devices have it: routing knows which one counts.
                Entry::Occupied(mut entry) => drop(entry.insert(None)),
            }
        }
        let nears = nears.into_iter();
        let nears = nears.filter_map(|(address, near)| near.map(|near| (address, near)));
        (nears.collect(), left.into_iter().collect())
    }
}

/// Nobody is led to such an address, and it may be at several devices.
fn is_of_the_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn list<'a>(names: impl IntoIterator<Item = &'a (impl AsRef<str> + ?Sized + 'a)>) -> String {
    let names: Vec<&str> = names.into_iter().map(AsRef::as_ref).collect();
    names.join(", ")
}

/// Why packets to a Pod take the stack.
fn left_to_the_stack(pod: &Device, smallest: u32) -> Option<String> {
    if !pod.leads_elsewhere {
        return Some("no veth".to_owned());
    }
    if pod.is_translated {
        return Some("its addresses are translated".to_owned());
    }
    if !pod.others.is_empty() {
        return Some(format!("programs of others: {}", list(&pod.others)));
    }
    if pod.queue != "noqueue" {
        return Some(format!("qdisc {}", pod.queue));
    }
    // What a Pod sends is not cut into pieces on its way out.
    (pod.mtu > smallest).then(|| format!("MTU {}, outside {smallest}", pod.mtu))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> BTreeMap<u32, EdgeRow> {
        let row = |is_pods| EdgeRow {
            is_pods,
            ..EdgeRow::default()
        };
        [(2, row(false)), (4, row(true)), (5, row(true))].into()
    }

    fn device(ifindex: u32, name: &str, controller: Option<u32>) -> Device {
        Device {
            ifindex,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, u8::try_from(ifindex).unwrap()]),
            mtu: 1500,
            controller,
            leads_elsewhere: name.starts_with("veth"),
            queue: "noqueue".to_owned(),
            ..Device::default()
        }
    }

    const ROUTED: [u8; 6] = [2, 1, 0, 0, 0, 5];
    const BRIDGED: [u8; 6] = [2, 1, 0, 0, 0, 4];

    /// A Pod on a bridge, and one behind its own device.
    fn node() -> Surroundings {
        let neighbour = |ifindex, address: &str, mac| Neighbour {
            ifindex,
            address: address.parse().unwrap(),
            mac,
        };
        Surroundings {
            devices: vec![
                device(2, "eth0", None),
                device(3, "cni0", None),
                device(4, "veth4", Some(3)),
                device(5, "veth5", None),
            ],
            neighbours: vec![
                neighbour(2, "192.0.2.1", [2, 9, 0, 0, 0, 1]),
                neighbour(3, "10.244.1.4", BRIDGED),
                neighbour(3, "10.244.1.9", [2, 1, 0, 0, 0, 9]),
                neighbour(5, "fd00::5", ROUTED),
                neighbour(5, "fe80::5", ROUTED),
            ],
            ports: [(BRIDGED, 4), ([2, 1, 0, 0, 0, 9], 3)].into(),
            ..Surroundings::default()
        }
    }

    fn chain(family: u8, hook: u32, rules: u32, drops: bool) -> Chain {
        Chain {
            family,
            hook,
            name: "inet filter forward".to_owned(),
            rules,
            drops,
        }
    }

    fn nears(node: &Surroundings) -> Vec<(String, u32)> {
        let (nears, _) = node.nears(&rows(), &BTreeMap::new());
        let nears = nears.into_iter();
        nears
            .map(|(address, near)| (address.to_string(), near.ifindex))
            .collect()
    }

    #[test]
    fn chains_that_do_nothing_and_those_of_the_nodes_own_processes_are_no_reason() {
        let mut node = node();
        let reasons = |node: &Surroundings| node.reasons(&rows()).len();
        for (one, is_reason) in [
            (chain(NFPROTO_INET, 2, 0, false), false),
            (chain(NFPROTO_INET, 2, 1, false), true),
            (chain(NFPROTO_IPV4, 2, 0, true), true),
            (chain(NFPROTO_IPV6, 4, 1, false), true),
            (chain(NFPROTO_IPV4, 0, 1, false), true),
            (chain(NFPROTO_IPV4, NF_INET_LOCAL_IN, 9, true), false),
            (chain(NFPROTO_INET, NF_INET_LOCAL_OUT, 9, true), false),
            (chain(NFPROTO_BRIDGE, 1, 1, false), true),
            (chain(NFPROTO_NETDEV, 0, 1, false), true),
            // ARP.
            (chain(3, 0, 1, false), false),
        ] {
            node.chains = vec![one.clone()];
            assert_eq!(reasons(&node), usize::from(is_reason), "{one:?}");
        }
    }

    #[test]
    fn whatever_of_others_would_be_skipped_is_a_reason_and_so_is_what_cannot_be_read() {
        assert_eq!(node().reasons(&rows()), [""; 0]);
        let mut seen = node();
        seen.legacy.insert("filter".to_owned());
        seen.policies = 2;
        seen.unread.push("xfrm: no".to_owned());
        seen.devices[0].others.push("cil_from_netdev".to_owned());
        seen.devices[1].others.push("flower".to_owned());
        // That of a Pod concerns the Pod alone.
        seen.devices[2].others.push("shaper".to_owned());
        assert_eq!(
            seen.reasons(&rows()),
            [
                "xfrm: no",
                "iptables (legacy): filter",
                "2 xfrm policies",
                "programs of others on eth0: cil_from_netdev",
                "programs of others on cni0: flower",
            ]
        );
    }

    #[test]
    fn pods_are_found_behind_their_own_device_and_at_their_port_of_a_bridge() {
        assert_eq!(
            nears(&node()),
            [("10.244.1.4".to_owned(), 4), ("fd00::5".to_owned(), 5)]
        );
        let (nears, left) = node().nears(&rows(), &BTreeMap::new());
        assert_eq!(left, [""; 0]);
        let near = nears[&"10.244.1.4".parse::<IpAddr>().unwrap()];
        assert_eq!((near.mac, near.from), (BRIDGED, [2, 0, 0, 0, 0, 3]));
        // The bridge has forgotten the Pod, which is where it was; another one with its address is not.
        let mut quiet = node();
        quiet.ports.clear();
        assert_eq!(quiet.nears(&rows(), &nears).0, nears);
        quiet.neighbours[1].mac = [2, 1, 0, 0, 0, 7];
        assert_eq!(quiet.nears(&rows(), &nears).0.len(), 1);
    }

    #[test]
    fn an_address_at_two_devices_is_left_to_routing() {
        let mut node = node();
        node.neighbours.push(Neighbour {
            ifindex: 5,
            ..node.neighbours[1]
        });
        assert_eq!(nears(&node), [("fd00::5".to_owned(), 5)]);
    }

    #[test]
    fn pods_whose_packets_something_waits_for_are_left_to_the_stack_alone() {
        type Change = fn(&mut Device);
        let changes: [(Change, &str); 5] = [
            (|pod| pod.leads_elsewhere = false, "veth4: no veth"),
            (
                |pod| pod.is_translated = true,
                "veth4: its addresses are translated",
            ),
            (
                |pod| pod.others.push("shaper".to_owned()),
                "veth4: programs of others: shaper",
            ),
            (|pod| pod.queue = "tbf".to_owned(), "veth4: qdisc tbf"),
            (|pod| pod.mtu = 9000, "veth4: MTU 9000, outside 1500"),
        ];
        for (change, reason) in changes {
            let mut seen = node();
            change(&mut seen.devices[2]);
            assert_eq!(nears(&seen), [("fd00::5".to_owned(), 5)], "{reason}");
            assert_eq!(seen.nears(&rows(), &BTreeMap::new()).1, [reason]);
        }
    }
}
