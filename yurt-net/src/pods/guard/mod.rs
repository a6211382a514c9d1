//! Which addresses each Pod may use, and on which devices that is checked: from Pods and devices to writes.
//!
//! Pure. A Pod is identified by its device on the host's side (by index), but only while that device still leads to the
//! same interface, because the kernel may give the index to another device. The guard is on every device that leads to
//! a Pod. If nothing is known of a device, its Pod may use every address that has no owner.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::device::{Complaint, HostSide, Link, Mac, link_local};

mod claims;
mod extra;
mod grants;
mod image;
mod pod;
mod prefix;
#[cfg(test)]
mod proptests;
mod reserved;
#[cfg(test)]
mod tests;

pub use self::claims::{Claims, Word};
use self::extra::Taken;
pub use self::extra::{Askers, ExtraPolicy, Reserved, ShortestPrefixes, ask_for_the_untold};
pub use self::image::{GuardImage, GuardOp, GuardRow, Identity, Mode, Owner, plan};
pub(crate) use self::pod::MAX_MACS;
use self::pod::is_one_hosts_mac;
pub use self::pod::{BadExtra, Extra, GuardedPod, MAX_PREFIXES};

/// The operator's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The node's mode.
    pub mode: Mode,
    /// Namespaces whose Pods have the mode `Enforce`, whatever the node's mode is.
    pub enforced_namespaces: BTreeSet<String>,
    /// Name patterns of devices that lead to Pods, with `*` and `?`. Without patterns these are all veth devices whose
    /// other end is in another network namespace, except those that a default route leads out of.
    pub devices: Vec<String>,
    /// What annotations may grant.
    pub extra: ExtraPolicy,
}

impl Policy {
    fn mode_of(&self, namespace: &str) -> Mode {
        if self.enforced_namespaces.contains(namespace) {
            Mode::Enforce
        } else {
            self.mode
        }
    }
}

/// The state that the kernel should have. No Pod owns an address of the node.
pub fn compile(
    pods: &[GuardedPod],
    links: &[Link],
    reserved: &Reserved,
    policy: &Policy,
) -> (GuardImage, Vec<Complaint>) {
    let guarded = links
        .iter()
        .filter(|link| link.leads_to_pod(&policy.devices));
    let guarded: BTreeMap<u32, &Link> = guarded.map(|link| (link.ifindex, link)).collect();
    let mut image = GuardImage {
        attached: guarded.keys().copied().collect(),
        ..GuardImage::default()
    };
    let mut complaints = Vec::new();
    let nodes = Owner {
        ifindex: None,
        mode: policy.mode,
    };
    let addresses = reserved.node.iter().copied().filter(is_owned);
    image
        .owners
        .extend(addresses.map(|addr| (addr.into(), nodes)));
    let macs: BTreeSet<[u8; 6]> = links.iter().filter_map(|link| link.mac).collect();
    let macs = macs.into_iter().filter(|mac| is_one_hosts_mac(*mac));
    image.owners.extend(macs.map(|mac| (mac.into(), nodes)));
    // Few Pods ask for extra addresses.
    let mut taken = pods
        .iter()
        .any(|pod| !pod.extra.is_empty())
        .then(|| Taken::new(pods, links, reserved, &policy.extra));
    for pod in pods {
        let mut complain = |reason: String| {
            complaints.push(Complaint {
                pod: format!("{}/{}", pod.namespace, pod.name),
                interface: pod.interface.clone(),
                reason,
            });
        };
        let is_nodes = |addr: &IpAddr| is_owned(addr) && reserved.node.contains(addr);
        let (nodes, addresses): (Vec<IpAddr>, Vec<IpAddr>) =
            pod.addresses.iter().partition(|addr| is_nodes(addr));
        for addr in nodes {
            complain(format!(
                "{addr} is an address of the node, so the Pod may not use it: take it out of the range of Pods"
            ));
        }
        let mode = policy.mode_of(&pod.namespace);
        let ifindex = pod
            .host
            .and_then(|host| place(host, &guarded, &mut complain))
            .filter(|ifindex| match image.rows.entry(*ifindex) {
                Entry::Vacant(place) => {
                    let extra = taken.as_mut().map(|taken| taken.grant(pod, &mut complain));
                    let extra = extra.unwrap_or_default();
                    place.insert(row(pod, &addresses, extra, mode, &mut complain));
                    true
                }
                Entry::Occupied(_) => {
                    complain(format!("device {ifindex} already belongs to another Pod"));
                    false
                }
            });
        let addresses = addresses.into_iter().filter(is_owned).map(Identity::from);
        // The MAC of an absent Pod has no owner: the Pod announces itself with it before its device is guarded again,
        // and no other Pod with a row may use it anyway.
        let mac = pod.mac.filter(|mac| is_one_hosts_mac(*mac));
        let mac = mac.filter(|_| ifindex.is_some());
        for identity in addresses.chain(mac.map(Identity::from)) {
            match image.owners.get(&identity) {
                // A Pod that is here takes precedence over one that is away.
                Some(owner) if owner.ifindex.is_some() || ifindex.is_none() => {
                    complain(format!(
                        "{identity} already belongs to another Pod or to this node"
                    ));
                }
                _ => {
                    image.owners.insert(identity, Owner { ifindex, mode });
                }
            }
        }
    }
    (image, complaints)
}

/// Whether an address belongs to one host of the node. Link-local addresses are only unique on their link.
fn is_owned(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !addr.is_loopback() && !addr.is_link_local(),
        IpAddr::V6(addr) => !addr.is_loopback() && !addr.is_unicast_link_local(),
    }
}

/// The device of a Pod, if it still leads to that Pod.
fn place(
    host: HostSide,
    guarded: &BTreeMap<u32, &Link>,
    complain: &mut impl FnMut(String),
) -> Option<u32> {
    // The Pod is about to start, or has just gone.
    let link = guarded.get(&host.ifindex)?;
    if !link.is_still(host) {
        complain(format!(
            "device {} ({}) leads elsewhere now",
            link.ifindex, link.name
        ));
        return None;
    }
    Some(link.ifindex)
}

fn row(
    pod: &GuardedPod,
    addresses: &[IpAddr],
    extra: Extra,
    mode: Mode,
    complain: &mut impl FnMut(String),
) -> GuardRow {
    let mut own: Vec<IpNetwork> = addresses.iter().copied().map(host_prefix).collect();
    own.push(match pod.mac {
        Some(mac) => host_prefix(link_local(Mac(mac)).into()),
        // The Pod's MAC is not known, so it may use any link-local address.
        None => IpNetwork::V6(LINK_LOCAL),
    });
    let macs = match pod.mac {
        Some(mac) => std::iter::once(mac).chain(extra.macs).collect(),
        None => Vec::new(),
    };
    let mut row = GuardRow {
        mode,
        macs,
        own: in_order(own),
        extra: in_order(extra.prefixes),
    };
    let Cut { own, extra } = row.cut();
    if own > 0 {
        complain(format!(
            "the Pod has more than {MAX_PREFIXES} addresses of one family; its mode is audit, because frames from the rest \
             would be dropped"
        ));
        row.mode = Mode::Audit;
    }
    // Tenants write these: too many of them do not switch the guard off.
    if extra > 0 {
        complain(format!(
            "{extra} extra addresses have no room and are refused: a Pod can have {MAX_PREFIXES} addresses of each family and \
             {MAX_MACS} link-layer addresses, its own among them"
        ));
    }
    row
}

/// The order and form in which the kernel has them: IPv4 first, host bits cleared, no duplicates.
fn in_order(prefixes: Vec<IpNetwork>) -> Vec<IpNetwork> {
    let networks = prefixes.into_iter().map(|prefix| match prefix {
        IpNetwork::V4(prefix) => {
            Ipv4Network::new(prefix.network(), prefix.prefix()).map(IpNetwork::V4)
        }
        IpNetwork::V6(prefix) => {
            Ipv6Network::new(prefix.network(), prefix.prefix()).map(IpNetwork::V6)
        }
    });
    let mut seen = BTreeSet::new();
    let mut networks: Vec<IpNetwork> = networks
        .flatten()
        .filter(|prefix| seen.insert(*prefix))
        .collect();
    networks.sort_by_key(IpNetwork::is_ipv6);
    networks
}

impl GuardRow {
    /// Cuts the row down to the size that the kernel has room for.
    fn cut(&mut self) -> Cut {
        let before = (self.own.len(), self.macs.len() + self.extra.len());
        // The first MAC is the Pod's own.
        self.macs.truncate(MAX_MACS);
        let mut room = [MAX_PREFIXES, MAX_PREFIXES];
        let mut fits = |prefix: &IpNetwork| {
            let room = &mut room[usize::from(prefix.is_ipv6())];
            let fits = *room > 0;
            *room = room.saturating_sub(1);
            fits
        };
        self.own.retain(&mut fits);
        self.extra.retain(&mut fits);
        Cut {
            own: before.0 - self.own.len(),
            extra: before.1 - self.macs.len() - self.extra.len(),
        }
    }
}

/// How much of a row was cut off.
struct Cut {
    /// The number of addresses that the Pod was given.
    own: usize,
    /// The number of addresses that an annotation asks for.
    extra: usize,
}

/// `fe80::/64`.
const LINK_LOCAL: Ipv6Network =
    match Ipv6Network::new_checked(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64) {
        Some(prefix) => prefix,
        None => panic!("a prefix of 64 bits"),
    };

fn host_prefix(addr: IpAddr) -> IpNetwork {
    IpNetwork::from(addr)
}
