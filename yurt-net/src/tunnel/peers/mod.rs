//! Whether this node's entries about its peers have the MACs that the peers' ends of a tunnel have. Pure.
//!
//! An entry about a peer has three parts: a route leads to an address in the tunnel, a neighbour entry gives that
//! address a MAC, and the forwarding database gives the MAC an underlay address. All three are permanent, and only
//! flannel changes them, when the cloud tells it to. A peer that comes back with another MAC while the cloud is away is
//! lost: packets reach it, but it discards them because they carry its old MAC.
//!
//! A MAC that a peer is seen to send with is believed if no other MAC is seen for a while. A MAC that the agent itself
//! replaced is believed again once the peer is seen to send with it for as long, whatever else is seen. Only the MAC of
//! an entry is ever replaced, never its underlay address: a host that sends with a peer's address can keep packets from
//! a silent peer, but cannot have them sent anywhere else.
//!
//! Most nodes know only the names of the pool's Nodes, because reading all Nodes is expensive. Where a peer is follows
//! from the entries themselves: they say where packets to its Pods are sent.
//!
//! The caller tells [`Mender`] what it observes ([`Mender::hear`], [`Mender::see`], [`Mender::notice`]), and
//! [`Mender::decide`] says what to repair. Times are milliseconds of a monotonic clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{SETTLED, is_unicast};
use crate::device::Mac;
use crate::host::limit::Limit;

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;

/// How often a peer must be seen to send with another MAC, over at least [`SETTLED`], before that MAC is believed.
const SIGHTINGS: u32 = 3;
/// After a silence of this many milliseconds, sightings of a peer are counted anew.
const QUIET: u64 = 60_000;
/// The last sighting of a MAC that is believed must not be older than this, in milliseconds.
const RECENT: u64 = 10_000;

/// Another Node of this node's pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub node: Arc<str>,
    /// Addresses by which it is found: its own, and those of some of its Pods.
    pub addresses: BTreeSet<IpAddr>,
}

/// A vxlan device of this node, with its entries about peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Index.
    pub ifindex: u32,
    /// Its own MAC.
    pub mac: Mac,
    /// Network identifier.
    pub vni: u32,
    /// UDP port that it receives at.
    pub port: u16,
    /// The device that outer packets arrive at.
    pub underlay: Option<u32>,
    /// Permanent entries of the forwarding database: the underlay address of each MAC.
    pub forwarding: BTreeMap<Mac, IpAddr>,
    /// MACs of all other entries: learnt ones, and those with a port, a network identifier or a device of their own.
    pub others: BTreeSet<Mac>,
    /// Permanent neighbours.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Routes out of the device, each with its gateway; `None` for a route to neighbours.
    pub routes: Vec<(IpNetwork, Option<IpAddr>)>,
}

/// A tunnel, with the peers that its entries lead to.
#[derive(Debug)]
struct Seen {
    tunnel: Tunnel,
    /// By underlay address: the name of the Node there, and the MAC that leads there.
    peers: BTreeMap<IpAddr, (Arc<str>, Mac)>,
}

impl Seen {
    fn new(tunnel: Tunnel, peers: &[Peer]) -> Self {
        let macs = tunnel.macs();
        let mut nodes: BTreeMap<IpAddr, BTreeSet<&Arc<str>>> = BTreeMap::new();
        let mut places: BTreeMap<&Arc<str>, BTreeSet<IpAddr>> = BTreeMap::new();
        for Peer { node, addresses } in peers {
            for &address in addresses {
                let at = match macs.contains_key(&address) {
                    true => Some(address),
                    false => tunnel.leads_to(address),
                };
                if let Some(at) = at {
                    nodes.entry(at).or_default().insert(node);
                    places.entry(node).or_default().insert(at);
                }
            }
        }
        // An address that two Nodes have, a Node at two addresses and a peer with two MACs are ambiguous, and left out.
        let mut known = BTreeMap::new();
        for (at, nodes) in nodes {
            if let (1, Some(&node), Some(&Some(mac))) = (nodes.len(), nodes.first(), macs.get(&at))
                && places.get(node).is_some_and(|places| places.len() == 1)
            {
                known.insert(at, (Arc::clone(node), mac));
            }
        }
        Self {
            tunnel,
            peers: known,
        }
    }
}

impl Tunnel {
    /// The MAC that leads to each underlay address; `None` if there are several.
    fn macs(&self) -> BTreeMap<IpAddr, Option<Mac>> {
        let mut macs = BTreeMap::new();
        for &mac in self.neighbours.values() {
            if let Some(&at) = self.forwarding.get(&mac) {
                let known = macs.entry(at).or_insert(Some(mac));
                *known = known.filter(|known| *known == mac);
            }
        }
        macs
    }

    /// The underlay address that packets to an address in the tunnel are sent to.
    fn leads_to(&self, address: IpAddr) -> Option<IpAddr> {
        let routes = self.routes.iter();
        let routes = routes.filter(|(prefix, _)| prefix.contains(address));
        let (_, gateway) = routes.max_by_key(|(prefix, _)| prefix.prefix())?;
        let neighbour = gateway.unwrap_or(address);
        self.forwarding
            .get(self.neighbours.get(&neighbour)?)
            .copied()
    }

    /// The other owner of a MAC, in words; `None` if a peer may have this MAC.
    fn other_owner(&self, mac: Mac, peer: IpAddr) -> Option<String> {
        if !is_unicast(mac) {
            return Some("not the MAC of any device".to_owned());
        }
        if mac == self.mac {
            return Some("this node's own".to_owned());
        }
        if self.others.contains(&mac) {
            return Some("in a forwarding entry that is not flannel's".to_owned());
        }
        let elsewhere = self.forwarding.get(&mac).filter(|at| **at != peer);
        elsewhere.map(|at| format!("known to be at {at}"))
    }
}

/// A peer to listen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listened {
    /// The device that its packets arrive at.
    pub ifindex: u32,
    /// Its underlay address, the source of its packets.
    pub peer: IpAddr,
    /// Network identifier.
    pub vni: u32,
    /// UDP port that its packets are sent to.
    pub port: u16,
    /// The MAC that this node knows it by: the expected source of its inner frames.
    pub known: Mac,
}

/// What was heard of a peer since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Frames with the known MAC were heard.
    pub is_known: bool,
    /// The other MACs of the frames that were heard.
    pub others: Others,
}

/// MACs that a peer is not known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// No other MAC was heard.
    None,
    /// One other MAC was heard.
    One(Mac),
    /// Several other MACs were heard.
    Several,
}

/// A repair of the entries about a peer: `from` is replaced by `to` wherever it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The vxlan device.
    pub device: String,
    /// Its index.
    pub ifindex: u32,
    /// Name of the peer's Node.
    pub node: Arc<str>,
    /// Its underlay address.
    pub peer: IpAddr,
    /// The MAC that the entries have.
    pub from: Mac,
    /// The MAC that they should have.
    pub to: Mac,
    /// The addresses in the tunnel whose neighbour entries have `from`.
    pub neighbours: Vec<IpAddr>,
}

/// The state of the entries about peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MenderReport {
    /// How often peers' entries were repaired, by device.
    pub repairs: BTreeMap<String, u64>,
    /// The number of peers that the agent listens for, by device.
    pub listened: BTreeMap<String, u64>,
    /// Faults that an operator has to look after, one line each.
    pub alarms: Vec<String>,
}

/// A sign that a peer has another MAC than the known one.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    mac: Mac,
    /// When it was first seen.
    since: u64,
    /// When it was last seen.
    last: u64,
    /// The number of looks in which it was seen.
    sightings: u32,
}

/// What is remembered of a peer, for one device.
#[derive(Debug, Default)]
struct Known {
    doubt: Option<Doubt>,
    replaced: Option<Replaced>,
    limit: Limit,
    complaint: Option<String>,
}

/// The latest repair of a peer: the MAC that another program had written, and ours in its place.
#[derive(Clone, Copy, Debug)]
struct Replaced {
    theirs: Mac,
    ours: Mac,
}

/// What is known of the peers' ends of the tunnels, and which repairs were made.
#[derive(Debug, Default)]
pub struct Mender {
    peers: Vec<Peer>,
    tunnels: BTreeMap<String, Seen>,
    known: BTreeMap<(String, IpAddr), Known>,
    repairs: BTreeMap<String, u64>,
}

impl Mender {
    /// Sets the peers. The next [`Self::see`] takes them into account.
    pub fn hear(&mut self, peers: Vec<Peer>) {
        self.peers = peers;
    }

    /// Sets the tunnels, by device name.
    pub fn see(&mut self, tunnels: BTreeMap<String, Tunnel>) {
        let tunnels = tunnels.into_iter();
        self.tunnels = tunnels
            .map(|(name, tunnel)| (name, Seen::new(tunnel, &self.peers)))
            .collect();
    }

    /// The peers to listen for.
    pub fn listened(&self) -> BTreeSet<Listened> {
        let mut listened = BTreeSet::new();
        for Seen { tunnel, peers } in self.tunnels.values() {
            let Some(ifindex) = tunnel.underlay else {
                continue;
            };
            listened.extend(peers.iter().map(|(&peer, &(_, known))| Listened {
                ifindex,
                peer,
                vni: tunnel.vni,
                port: tunnel.port,
                known,
            }));
        }
        listened
    }

    /// Takes up what was heard of a peer since the last look.
    pub fn notice(&mut self, listened: &Listened, heard: Heard, now: u64) {
        let is_it = |Seen { tunnel, peers }: &Seen| {
            let known = peers.get(&listened.peer).map(|(_, known)| *known);
            (tunnel.vni, tunnel.port, known) == (listened.vni, listened.port, Some(listened.known))
        };
        let mut tunnels = self.tunnels.iter();
        let Some((device, _)) = tunnels.find(|(_, seen)| is_it(seen)) else {
            return;
        };
        let key = (device.clone(), listened.peer);
        let known = self.known.entry(key).or_default();
        match (heard.is_known, heard.others) {
            (false, Others::None) => {}
            (false, Others::One(mac)) => known.sight(mac, now),
            (true, Others::One(mac)) if known.is_replaced(mac, listened.known) => {
                known.sight(mac, now);
            }
            (true, _) | (_, Others::Several) => known.doubt = None,
        }
    }

    /// Whether a repair may become due soon, even if nothing more is heard.
    pub fn is_in_doubt(&self) -> bool {
        self.known.values().any(|known| known.doubt.is_some())
    }

    /// The repairs to make now. Each attempt counts for the limit. The caller reports a repair that worked to
    /// [`Self::repaired`]; one that failed is returned again.
    pub fn decide(&mut self, now: u64) -> Vec<Repair> {
        let mut repairs = Vec::new();
        let tunnels = &self.tunnels;
        self.known.retain(|(device, peer), known| {
            let is_seen = |seen: &Seen| seen.peers.contains_key(peer);
            known.limit.pass(now);
            known.complaint = None;
            if tunnels.get(device).is_some_and(is_seen) {
                return true;
            }
            // A peer whose entries vanish and return gets no more repairs by that, and what was replaced is not
            // forgotten.
            known.doubt = None;
            !known.limit.is_idle(now)
        });
        for (device, Seen { tunnel, peers }) in &mut self.tunnels {
            for (&peer, &(ref node, from)) in &*peers {
                let Some(known) = self.known.get_mut(&(device.clone(), peer)) else {
                    continue;
                };
                // A repair that has taken effect leaves no doubt.
                known.doubt = known.doubt.filter(|doubt| doubt.mac != from);
                let Some(to) = known.doubt.and_then(|doubt| doubt.believed(now)) else {
                    continue;
                };
                if let Some(whose) = tunnel.other_owner(to, peer) {
                    known.complaint = Some(format!(
                        "{device}: Node {node} sends from {peer} with {to}, which is {whose}; the agent does not believe that, and keeps \
                         the entries as they are: find out which host has the address or the MAC of {node}"
                    ));
                    continue;
                }
                if !known.limit.grant(now) {
                    known.complaint = Some(format!(
                        "{device}: Node {node} ({peer}) has another MAC again and again; the agent leaves its entries alone until they have \
                         been quiet for a minute. Find out which host sends with {peer}, or which program changes the entries"
                    ));
                    continue;
                }
                known.replace(from, to);
                // No other peer is given this MAC in the same round.
                tunnel.forwarding.insert(to, peer);
                let neighbours = tunnel.neighbours.iter();
                let neighbours = neighbours.filter(|(_, mac)| **mac == from);
                repairs.push(Repair {
                    device: device.clone(),
                    ifindex: tunnel.ifindex,
                    node: node.clone(),
                    peer,
                    from,
                    to,
                    neighbours: neighbours.map(|(address, _)| *address).collect(),
                });
            }
        }
        repairs
    }

    /// Counts a repair that has worked.
    pub fn repaired(&mut self, repair: &Repair) {
        *self.repairs.entry(repair.device.clone()).or_default() += 1;
    }

    /// The state of the entries, for `status` and metrics.
    pub fn report(&self) -> MenderReport {
        let listened = self.tunnels.iter().map(|(device, seen)| {
            let peers = seen.tunnel.underlay.map_or(0, |_| seen.peers.len());
            (device.clone(), u64::try_from(peers).unwrap_or(u64::MAX))
        });
        let complaints = self.known.values();
        MenderReport {
            repairs: self.repairs.clone(),
            listened: listened.collect(),
            alarms: complaints
                .filter_map(|known| known.complaint.clone())
                .collect(),
        }
    }
}

impl Known {
    /// Whether the agent has replaced this MAC by the known one.
    fn is_replaced(&self, mac: Mac, known: Mac) -> bool {
        let is_it = |replaced: Replaced| (replaced.theirs, replaced.ours) == (mac, known);
        self.replaced.is_some_and(is_it)
    }

    fn replace(&mut self, from: Mac, to: Mac) {
        let theirs = match self.replaced {
            Some(Replaced { theirs, ours }) if ours == from => theirs,
            _ => from,
        };
        let replaced = Replaced { theirs, ours: to };
        self.replaced = Some(replaced).filter(|_| theirs != to);
    }

    fn sight(&mut self, mac: Mac, now: u64) {
        match &mut self.doubt {
            Some(doubt) if doubt.mac == mac && now.saturating_sub(doubt.last) < QUIET => {
                doubt.last = now;
                doubt.sightings = doubt.sightings.saturating_add(1);
            }
            doubt => {
                *doubt = Some(Doubt {
                    mac,
                    since: now,
                    last: now,
                    sightings: 1,
                });
                self.limit.stir(now);
            }
        }
    }
}

impl Doubt {
    /// The MAC, once it is certain to be the peer's.
    fn believed(&self, now: u64) -> Option<Mac> {
        let is_settled = now.saturating_sub(self.since) >= SETTLED;
        let is_recent = now.saturating_sub(self.last) < RECENT;
        (is_settled && is_recent && self.sightings >= SIGHTINGS).then_some(self.mac)
    }
}
