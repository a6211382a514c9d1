//! What an annotation may grant a Pod beside its own addresses: never an address that has another owner.
//!
//! Tenants write annotations. So a prefix is refused as a whole if an address in it belongs to another Pod (present or
//! absent), to this node, to a gateway, to a Service, or to something that the node depends on; and so is a MAC of
//! another Pod or of a device of this node. Everything is judged anew at each change: a grant is taken back when a Pod
//! starts with an address inside it. A claim by a Service or an EndpointSlice weighs as much as the trust in its
//! author, and what was granted to a Pod of another namespace before stays that Pod's (decision 30).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::claims::{Claims, Word};
use super::grants::Grants;
use super::image::GuardRow;
use super::pod::{Extra, GuardedPod, is_one_hosts_mac};
use super::prefix::{is_equal, last, overlap};
use crate::device::{Link, Mac, link_local};
use crate::model::{NamespacedName, Snapshot};

/// `--guard-extra`: the Pods whose annotations count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Askers {
    /// Every Pod.
    #[default]
    All,
    /// The Pods of these namespaces.
    Namespaces(BTreeSet<String>),
}

impl std::str::FromStr for Askers {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => return Ok(Self::All),
            "none" => return Ok(Self::Namespaces(BTreeSet::new())),
            _ => {}
        }
        let names: BTreeSet<String> = text.split(',').map(str::to_owned).collect();
        match names.contains("") {
            true => Err("expected all, none, or names of namespaces with commas between them"),
            false => Ok(Self::Namespaces(names)),
        }
    }
}

/// `--guard-extra-prefix`: the shortest prefixes that are granted, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortestPrefixes {
    /// Of IPv4, at most 32.
    pub v4: u8,
    /// Of IPv6, at most 128.
    pub v6: u8,
}

impl Default for ShortestPrefixes {
    fn default() -> Self {
        Self { v4: 24, v6: 64 }
    }
}

impl std::fmt::Display for ShortestPrefixes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{},/{}", self.v4, self.v6)
    }
}

impl std::str::FromStr for ShortestPrefixes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected lengths for IPv4 and IPv6, such as /24,/64";
        let length = |text: &str, most: u8| {
            let length = text.trim_start_matches('/').parse().ok();
            length.filter(|length| *length <= most).ok_or(EXPECTED)
        };
        let (v4, v6) = text.split_once(',').ok_or(EXPECTED)?;
        Ok(Self {
            v4: length(v4, 32)?,
            v6: length(v6, 128)?,
        })
    }
}

/// The operator's settings for annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtraPolicy {
    /// The Pods whose annotations count.
    pub askers: Askers,
    /// How large the prefixes that they ask for may be.
    pub shortest: ShortestPrefixes,
}

/// What no Pod may ask for, besides what other Pods have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Addresses on interfaces of this node.
    pub node: BTreeSet<IpAddr>,
    /// Addresses of other hosts, each with its owner, such as `an apiserver`.
    pub hosts: BTreeMap<IpAddr, String>,
    /// Networks whose addresses all belong to one owner, such as `the Services of this cluster`.
    pub networks: Vec<(IpNetwork, String)>,
    /// What Services and EndpointSlices claim, for the addresses that a Pod asks for.
    pub claims: BTreeMap<IpAddr, Claims>,
    /// What was granted before, by device. It stays granted, whatever others write later.
    pub granted: BTreeMap<u32, GuardRow>,
}

/// The owner of an address.
enum Holder<'a> {
    Pod(&'a GuardedPod),
    Node,
    Named(&'a str),
}

impl std::fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(pod) => write!(f, "Pod {}/{}", pod.namespace, pod.name),
            Self::Node => write!(f, "this node"),
            Self::Named(name) => write!(f, "{name}"),
        }
    }
}

/// All addresses that have an owner.
pub(super) struct Taken<'a> {
    addresses: BTreeMap<IpAddr, Holder<'a>>,
    macs: BTreeMap<[u8; 6], Holder<'a>>,
    /// The MACs that the node's neighbours have, and an address of an owner with each.
    neighbours: BTreeMap<[u8; 6], IpAddr>,
    /// What Pods were granted before, and what they are granted now.
    grants: Grants<'a>,
    reserved: &'a Reserved,
    policy: &'a ExtraPolicy,
}

impl<'a> Taken<'a> {
    pub(super) fn new(
        pods: &'a [GuardedPod],
        links: &[Link],
        reserved: &'a Reserved,
        policy: &'a ExtraPolicy,
    ) -> Self {
        let mut addresses: BTreeMap<IpAddr, Holder<'_>> = BTreeMap::new();
        let mut macs: BTreeMap<[u8; 6], Holder<'_>> = BTreeMap::new();
        for mac in links.iter().filter_map(|link| link.mac) {
            macs.insert(mac, Holder::Node);
            addresses.insert(link_local(Mac(mac)).into(), Holder::Node);
        }
        for gateway in links.iter().flat_map(|link| &link.gateways) {
            addresses.insert(*gateway, Holder::Named("the gateway of this node"));
        }
        for (address, name) in &reserved.hosts {
            addresses.insert(*address, Holder::Named(name));
        }
        for address in &reserved.node {
            addresses.insert(*address, Holder::Node);
        }
        for pod in pods {
            if let Some(mac) = pod.mac {
                macs.entry(mac).or_insert(Holder::Pod(pod));
                let address = link_local(Mac(mac)).into();
                addresses.entry(address).or_insert(Holder::Pod(pod));
            }
            for address in &pod.addresses {
                addresses.entry(*address).or_insert(Holder::Pod(pod));
            }
        }
        // A neighbour at an address without an owner may be the very Pod that asks, on this node or on another.
        let neighbours = links.iter().flat_map(|link| &link.neighbours);
        let neighbours = neighbours.filter(|(address, _)| {
            matches!(
                addresses.get(address),
                Some(Holder::Node | Holder::Named(_))
            )
        });
        let neighbours = neighbours.map(|(address, mac)| (*mac, *address)).collect();
        let mut taken = Self {
            addresses,
            macs,
            neighbours,
            grants: Grants::default(),
            reserved,
            policy,
        };
        for pod in pods {
            let kept = taken.kept(pod);
            taken.grants.add(pod, &kept);
        }
        taken
    }

    /// What a Pod was granted before, as far as it still asks for that, or no source has told yet what it asks for.
    fn kept(&self, pod: &GuardedPod) -> Extra {
        let asked = &pod.extra;
        let row = row_of(pod, &self.reserved.granted);
        let mut kept = row.map(GuardRow::granted).unwrap_or_default();
        if !asked.is_empty() {
            let is_asked =
                |prefix: &IpNetwork| asked.prefixes.iter().any(|it| is_equal(it, prefix));
            kept.prefixes.retain(is_asked);
            kept.macs.retain(|mac| asked.macs.contains(mac));
        }
        kept
    }

    /// Grants what a Pod asks for, as far as possible. The rest is reported in a single complaint, because tenants
    /// write the annotations.
    pub(super) fn grant(
        &mut self,
        pod: &'a GuardedPod,
        complain: &mut impl FnMut(String),
    ) -> Extra {
        let mut granted = Extra::default();
        if pod.extra.is_empty() {
            return granted;
        }
        if let Askers::Namespaces(names) = &self.policy.askers
            && !names.contains(&pod.namespace)
        {
            complain(format!(
                "extra addresses are refused: --guard-extra does not name the namespace {}",
                pod.namespace
            ));
            return granted;
        }
        let mut refused = Vec::new();
        for prefix in &pod.extra.prefixes {
            match self.against_prefix(pod, prefix) {
                None => granted.prefixes.push(*prefix),
                Some(reason) => refused.push(format!("{prefix}: {reason}")),
            }
        }
        for mac in &pod.extra.macs {
            match self.against_mac(pod, *mac) {
                None => granted.macs.push(*mac),
                Some(reason) => refused.push(format!("{}: {reason}", Mac(*mac))),
            }
        }
        if !refused.is_empty() {
            complain(format!(
                "extra addresses are refused: {}",
                refused.join("; ")
            ));
        }
        self.grants.add(pod, &granted);
        granted
    }

    /// Whether the operator has named the Pods whose annotations count, and so trusts their tenants, also with one
    /// another's addresses.
    fn are_trusted(&self) -> bool {
        matches!(self.policy.askers, Askers::Namespaces(_))
    }

    fn against_prefix(&self, pod: &GuardedPod, prefix: &IpNetwork) -> Option<String> {
        let ShortestPrefixes { v4, v6 } = self.policy.shortest;
        let shortest = if prefix.is_ipv4() { v4 } else { v6 };
        if prefix.prefix() < shortest {
            return Some(format!(
                "a prefix must be /{shortest} or longer (--guard-extra-prefix)"
            ));
        }
        if let Some(nobodys) = NOBODYS.iter().find(|net| overlap(net, prefix)) {
            return Some(format!("{nobodys} is not an address that a host can use"));
        }
        let mut networks = self.reserved.networks.iter();
        if let Some((network, whose)) = networks.find(|(net, _)| overlap(net, prefix)) {
            return Some(format!("{network} belongs to {whose}"));
        }
        let range = prefix.network()..=last(prefix);
        let mut inside = self.addresses.range(range.clone());
        let is_anothers = |holder: &Holder<'_>| match holder {
            Holder::Pod(owner) => !std::ptr::eq(*owner, pod),
            Holder::Node | Holder::Named(_) => true,
        };
        if let Some((address, holder)) = inside.find(|(_, holder)| is_anothers(holder)) {
            return Some(format!("{address} belongs to {holder}"));
        }
        let claims = self.reserved.claims.range(range);
        let mut binding = claims.filter_map(|(address, claims)| {
            let (word, whose) = claims.against(&pod.namespace)?;
            self.binds(word, pod, prefix).then_some((address, whose))
        });
        if let Some((address, whose)) = binding.next() {
            return Some(format!("{address} belongs to {whose}"));
        }
        let holder = self.grants.of_prefix(pod, prefix);
        let holder = holder.filter(|_| !self.are_trusted())?;
        Some(granted_to(holder))
    }

    /// Whether a claim for another namespace keeps a Pod from an address.
    fn binds(&self, word: Word, pod: &GuardedPod, prefix: &IpNetwork) -> bool {
        let is_named = match &self.policy.askers {
            Askers::All => false,
            Askers::Namespaces(names) => names.contains(&pod.namespace),
        };
        match word {
            Word::Cluster => true,
            Word::Controller => !is_named,
            Word::Author => !is_named && !self.has(pod, prefix),
        }
    }

    /// Whether a Pod was granted a prefix before.
    fn has(&self, pod: &GuardedPod, prefix: &IpNetwork) -> bool {
        let row = row_of(pod, &self.reserved.granted);
        row.is_some_and(|row| row.extra.iter().any(|it| is_equal(it, prefix)))
    }

    fn against_mac(&self, pod: &GuardedPod, mac: [u8; 6]) -> Option<String> {
        if !is_one_hosts_mac(mac) {
            return Some("it is not the MAC of a single host".to_owned());
        }
        match self.macs.get(&mac) {
            Some(Holder::Pod(owner)) if std::ptr::eq(*owner, pod) => return None,
            Some(holder) => return Some(format!("it belongs to {holder}")),
            None => {}
        }
        if let Some(address) = self.neighbours.get(&mac)
            && let Some(holder) = self.addresses.get(address)
        {
            return Some(format!("it belongs to {address}, {holder}"));
        }
        let holder = self.grants.of_mac(pod, mac);
        let holder = holder.filter(|_| !self.are_trusted())?;
        Some(granted_to(holder))
    }
}

/// The row that a Pod's device had before. The device may belong to another Pod now.
fn row_of<'a>(pod: &GuardedPod, rows: &'a BTreeMap<u32, GuardRow>) -> Option<&'a GuardRow> {
    let row = rows.get(&pod.host?.ifindex)?;
    let mut addresses = pod.addresses.iter().copied().map(IpNetwork::from);
    let is_the_same =
        pod.mac.as_ref() == row.macs.first() && addresses.all(|address| row.own.contains(&address));
    is_the_same.then_some(row)
}

/// Makes Pods ask for what they were granted before, as long as no source has told what they ask for, so that an agent
/// that starts without the cloud takes nothing away. `told` is what a source has sent since the start.
pub fn ask_for_the_untold(
    pods: &mut [GuardedPod],
    granted: &BTreeMap<u32, GuardRow>,
    told: Option<&Snapshot>,
) {
    for pod in pods {
        let name = NamespacedName::new(&*pod.namespace, &*pod.name);
        let is_told = told.is_some_and(|told| told.pods.contains_key(&name));
        let Some(row) = row_of(pod, granted).filter(|_| !is_told) else {
            continue;
        };
        let Extra { prefixes, macs } = row.granted();
        let asked = &mut pod.extra;
        asked.prefixes.extend(prefixes);
        asked.macs.extend(macs);
    }
}

fn granted_to(holder: &GuardedPod) -> String {
    let GuardedPod {
        namespace, name, ..
    } = holder;
    format!(
        "Pod {namespace}/{name} was granted it first (--guard-extra names the namespaces that may share)"
    )
}

/// Addresses that no host can have on a network: unspecified, loopback, multicast and broadcast.
const NOBODYS: [IpNetwork; 7] = [
    net4([0, 0, 0, 0], 8),
    net4([127, 0, 0, 0], 8),
    net4([224, 0, 0, 0], 4),
    net4([240, 0, 0, 0], 4),
    net6([0, 0, 0, 0, 0, 0, 0, 0], 127),
    net6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
    net6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

const fn net4([a, b, c, d]: [u8; 4], bits: u8) -> IpNetwork {
    match ipnetwork::Ipv4Network::new_checked(std::net::Ipv4Addr::new(a, b, c, d), bits) {
        Some(prefix) => IpNetwork::V4(prefix),
        None => panic!("a prefix of more bits than an address"),
    }
}

const fn net6([a, b, c, d, e, f, g, h]: [u16; 8], bits: u8) -> IpNetwork {
    match ipnetwork::Ipv6Network::new_checked(Ipv6Addr::new(a, b, c, d, e, f, g, h), bits) {
        Some(prefix) => IpNetwork::V6(prefix),
        None => panic!("a prefix of more bits than an address"),
    }
}

#[cfg(test)]
mod tests;
