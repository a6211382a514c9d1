//! What this node knows of its peers: which MAC their ends of a tunnel have, and whether that is still so. Pure.
//!
//! An entry about a peer has three parts: a route leads to an address in the tunnel, a neighbour entry gives that address a MAC, and the
//! forwarding database gives the MAC an underlay address. All are permanent, and only flannel changes them, on the cloud's word. A peer that
//! comes back with another MAC while the cloud is away is lost: what is sent to it arrives, and is not for it.
//!
//! What a peer is seen to send with is right, if it is nothing else for a while; and what somebody else wrote is right again once the
//! peer is seen to send with that for as long, whatever else is seen. Only the MAC is ever replaced, and never the underlay address that it leads to: whoever
//! sends with a peer's address can keep packets from a peer that is silent, and cannot have them sent anywhere else.
//!
//! Of the pool's Nodes only names are known on most nodes: who reads all Nodes pays for it. Where a peer is, the entries say themselves: they
//! lead to it what is sent to its Pods.
//!
//! It is told what there is ([`Mender::hear`], [`Mender::see`], [`Mender::notice`]) and says what to do ([`Mender::decide`]). Times are
//! milliseconds of a monotonic clock.

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

/// So often a peer must be seen to send with another MAC, and for [`SETTLED`], before that is believed.
const SIGHTINGS: u32 = 3;
/// After so long in which a peer was not seen at all, it is judged anew.
const QUIET: u64 = 60_000;
/// What is believed must have been seen so recently.
const RECENT: u64 = 10_000;

/// A Node of the own pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub node: Arc<str>,
    /// Addresses that are there: its own, and some of its Pods.
    pub addresses: BTreeSet<IpAddr>,
}

/// A vxlan device of this node, with what it knows of peers.
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
    /// The device that outer packets come in at.
    pub underlay: Option<u32>,
    /// Permanent entries of the forwarding database: MACs, and where each is.
    pub forwarding: BTreeMap<Mac, IpAddr>,
    /// MACs of its other entries: learnt ones, and those with a port, a network or a device of their own.
    pub others: BTreeSet<Mac>,
    /// Permanent neighbours.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Routes out of it, and the neighbours that they lead to; `None`: whatever is sent to.
    pub routes: Vec<(IpNetwork, Option<IpAddr>)>,
}

/// A tunnel, with the peers that it leads to.
#[derive(Debug)]
struct Seen {
    tunnel: Tunnel,
    /// By underlay address: the Node, and the MAC that leads there.
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
        // An address of two Nodes and a Node at two addresses say nothing, and neither has a peer with two MACs one.
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
    /// The MAC that neighbours have at each underlay address; `None` where they have several.
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

    /// The underlay address that is sent to for an address in the tunnel.
    fn leads_to(&self, address: IpAddr) -> Option<IpAddr> {
        let routes = self.routes.iter();
        let routes = routes.filter(|(prefix, _)| prefix.contains(address));
        let (_, gateway) = routes.max_by_key(|(prefix, _)| prefix.prefix())?;
        let neighbour = gateway.unwrap_or(address);
        self.forwarding
            .get(self.neighbours.get(&neighbour)?)
            .copied()
    }

    /// Who else has a MAC, in words; `None`: a peer may have it.
    fn other_owner(&self, mac: Mac, peer: IpAddr) -> Option<String> {
        if !is_unicast(mac) {
            return Some("no device's".to_owned());
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

/// A peer whose packets are to be listened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listened {
    /// The device that they come in at.
    pub ifindex: u32,
    /// Where they come from.
    pub peer: IpAddr,
    /// Network identifier.
    pub vni: u32,
    /// UDP port that they come to.
    pub port: u16,
    /// The source of their inner frames, as this node knows it.
    pub known: Mac,
}

/// What was heard of a peer since the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Frames from the MAC that is known.
    pub is_known: bool,
    /// Frames from others.
    pub others: Others,
}

/// MACs that are not known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// None was heard.
    None,
    /// One.
    One(Mac),
    /// More.
    Several,
}

/// Entries to be changed: wherever `from` is, there should be `to`.
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
    /// The MAC that leads there.
    pub from: Mac,
    /// The MAC that should.
    pub to: Mac,
    /// The addresses in the tunnel that have the first.
    pub neighbours: Vec<IpAddr>,
}

/// How things are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MenderReport {
    /// How often peers' entries were repaired, by device.
    pub repairs: BTreeMap<String, u64>,
    /// How many peers are listened for, by device.
    pub listened: BTreeMap<String, u64>,
    /// What an operator should look after.
    pub alarms: Vec<String>,
}

/// That a peer has another MAC than is known.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    mac: Mac,
    /// When it was seen first.
    since: u64,
    /// When it was seen last.
    last: u64,
    /// In how many looks it was.
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

/// A MAC that somebody else had written, and the one that we have put in its place.
#[derive(Clone, Copy, Debug)]
struct Replaced {
    theirs: Mac,
    ours: Mac,
}

/// What is known of the peers' ends of the tunnels, and what was repaired of it.
#[derive(Debug, Default)]
pub struct Mender {
    peers: Vec<Peer>,
    tunnels: BTreeMap<String, Seen>,
    known: BTreeMap<(String, IpAddr), Known>,
    repairs: BTreeMap<String, u64>,
}

impl Mender {
    /// These are the peers. It counts from the next [`Self::see`] on.
    pub fn hear(&mut self, peers: Vec<Peer>) {
        self.peers = peers;
    }

    /// These are the tunnels, by name.
    pub fn see(&mut self, tunnels: BTreeMap<String, Tunnel>) {
        let tunnels = tunnels.into_iter();
        self.tunnels = tunnels
            .map(|(name, tunnel)| (name, Seen::new(tunnel, &self.peers)))
            .collect();
    }

    /// Whom to listen for.
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

    /// This was heard of a peer that was listened for.
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

    /// Whether something may have to be done soon, if nothing more is heard.
    pub fn is_in_doubt(&self) -> bool {
        self.known.values().any(|known| known.doubt.is_some())
    }

    /// What is to be done now. Each attempt counts for the limit; what works is to be told to [`Self::repaired`], and what does not is asked for
    /// again.
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
            // Whoever takes a peer away and brings it back does not get more repairs by that, nor is what was written forgotten.
            known.doubt = None;
            !known.limit.is_idle(now)
        });
        for (device, Seen { tunnel, peers }) in &mut self.tunnels {
            for (&peer, &(ref node, from)) in &*peers {
                let Some(known) = self.known.get_mut(&(device.clone(), peer)) else {
                    continue;
                };
                // What is repaired is no doubt any more.
                known.doubt = known.doubt.filter(|doubt| doubt.mac != from);
                let Some(to) = known.doubt.and_then(|doubt| doubt.believed(now)) else {
                    continue;
                };
                if let Some(whose) = tunnel.other_owner(to, peer) {
                    known.complaint = Some(format!(
                        "{device}: Node {node} sends from {peer} with {to}, which is {whose}; that is not believed, and its entries stay as they are: \
                         find out who has its address or its MAC"
                    ));
                    continue;
                }
                if !known.limit.grant(now) {
                    known.complaint = Some(format!(
                        "{device}: Node {node} ({peer}) has another MAC again and again; its entries are left alone until nobody has changed them or \
                         sent with yet another one for a minute. Find out who sends with its address, or what changes its entries"
                    ));
                    continue;
                }
                known.replace(from, to);
                // Nobody else is given it in this round.
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

    /// A repair has worked.
    pub fn repaired(&mut self, repair: &Repair) {
        *self.repairs.entry(repair.device.clone()).or_default() += 1;
    }

    /// How things are.
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
    /// Whether we have put the MAC that is known in the place of this one.
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
    /// The MAC, once there is no doubt any more that it is the peer's.
    fn believed(&self, now: u64) -> Option<Mac> {
        let is_settled = now.saturating_sub(self.since) >= SETTLED;
        let is_recent = now.saturating_sub(self.last) < RECENT;
        (is_settled && is_recent && self.sightings >= SIGHTINGS).then_some(self.mac)
    }
}
