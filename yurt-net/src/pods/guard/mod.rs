//! Which addresses each Pod may use, and on which devices that is watched: from Pods and devices to writes.
//!
//! Pure. A Pod is found again by the device that it was given (its index on the host's side), and only while that device
//! still leads where it led: an index may be given to another device. The guard is on every device that leads to a Pod. On
//! those of which nothing is known it keeps the Pod from every address that has an owner.

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

/// What the operator decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The node's mode.
    pub mode: Mode,
    /// Namespaces whose Pods' mode is `Enforce`, whatever the node's.
    pub enforced_namespaces: BTreeSet<String>,
    /// Patterns of the names of devices that lead to Pods, with `*` and `?`. Empty: every veth device whose other end is in
    /// another network namespace and that no default route leads out of.
    pub devices: Vec<String>,
    /// What annotations may give.
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

/// What the kernel should hold. Addresses of the node, and of its devices, are nobody's but the node's.
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
    // Hardly any Pod asks for more.
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
                "{addr} is the node's own, and not this Pod's to use: take it out of the range of Pods"
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
                    complain(format!("device {ifindex} is another Pod's already"));
                    false
                }
            });
        let addresses = addresses.into_iter().filter(is_owned).map(Identity::from);
        // A MAC that is kept for a Pod that is away is nobody's: the Pod announces itself with it before its device is guarded again,
        // and no other Pod with a row may use it anyway.
        let mac = pod.mac.filter(|mac| is_one_hosts_mac(*mac));
        let mac = mac.filter(|_| ifindex.is_some());
        for identity in addresses.chain(mac.map(Identity::from)) {
            match image.owners.get(&identity) {
                // One that is here has more need of it than one that is away.
                Some(owner) if owner.ifindex.is_some() || ifindex.is_none() => {
                    complain(format!("{identity} is another's already"));
                }
                _ => {
                    image.owners.insert(identity, Owner { ifindex, mode });
                }
            }
        }
    }
    (image, complaints)
}

/// Whether an address is one host's on all of the node: those of a link are only there.
fn is_owned(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !addr.is_loopback() && !addr.is_link_local(),
        IpAddr::V6(addr) => !addr.is_loopback() && !addr.is_unicast_link_local(),
    }
}

/// The device of a Pod, if it is still that Pod's.
fn place(
    host: HostSide,
    guarded: &BTreeMap<u32, &Link>,
    complain: &mut impl FnMut(String),
) -> Option<u32> {
    // On its way in or out: it will come, or the Pod is gone.
    let link = guarded.get(&host.ifindex)?;
    if !link.is_still(host) {
        complain(format!(
            "device {} ({}) leads elsewhere by now",
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
        // Whatever comes from a link-layer address that nobody has written down.
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
            "the Pod has more than {MAX_PREFIXES} addresses of one family: what it sends from those beyond would be dropped, so \
             nothing of this Pod is"
        ));
        row.mode = Mode::Audit;
    }
    // A tenant writes them: more of them are no way out of the guard.
    if extra > 0 {
        complain(format!(
            "{extra} extra addresses have no room and are refused: a Pod can have {MAX_PREFIXES} addresses of each family and \
             {MAX_MACS} link-layer addresses, its own among them"
        ));
    }
    row
}

/// As the kernel holds them: IPv4 first, without bits beyond the mask, each once.
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
    /// Leaves out what the kernel has no room for.
    fn cut(&mut self) -> Cut {
        let before = (self.own.len(), self.macs.len() + self.extra.len());
        // The first one is its own.
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

/// So much of a row had no room.
struct Cut {
    /// Of the addresses that the Pod was given.
    own: usize,
    /// Of those that an annotation asks for.
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
