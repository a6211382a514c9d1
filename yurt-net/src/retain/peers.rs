//! What this node knows of its peers: which MAC their ends of a tunnel have, and whether that is still so. Pure.
//!
//! An entry about a peer has three parts: a route leads to an address in the tunnel, a neighbour entry gives that address a MAC, and the
//! forwarding database gives the MAC an underlay address. All are permanent, and only flannel changes them, on the cloud's word. A peer that
//! comes back with another MAC while the cloud is away is lost: what is sent to it arrives, and is not for it.
//!
//! What a peer is seen to send with is right, if it is nothing else for a while. Only the MAC is ever replaced, and never the underlay address
//! that it leads to: whoever sends with a peer's address can keep packets from arriving at that peer, and cannot have them sent anywhere else.
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

use super::ledger::Mac;
use super::limit::Limit;
use super::vtep::SETTLED;
use super::vtep::announced::is_unicast;

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
    /// Permanent neighbours.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Routes out of it, and the neighbours that they lead to; `None`: whatever is sent to.
    pub routes: Vec<(IpNetwork, Option<IpAddr>)>,
}

impl Tunnel {
    /// The underlay address at which each peer is. One at which two are says nothing.
    fn find(&self, peers: &[Peer]) -> BTreeMap<IpAddr, Arc<str>> {
        let underlays: BTreeSet<IpAddr> = self.forwarding.values().copied().collect();
        let mut found: BTreeMap<IpAddr, BTreeSet<&Arc<str>>> = BTreeMap::new();
        for Peer { node, addresses } in peers {
            for &address in addresses {
                let at = match underlays.contains(&address) {
                    true => Some(address),
                    false => self.leads_to(address),
                };
                if let Some(at) = at {
                    found.entry(at).or_default().insert(node);
                }
            }
        }
        let found = found.into_iter();
        found
            .filter(|(_, nodes)| nodes.len() == 1)
            .filter_map(|(at, nodes)| Some((at, nodes.into_iter().next()?.clone())))
            .collect()
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

    /// The MAC under which a peer is sent to; `None` where it is not, or under several.
    fn known(&self, peer: IpAddr) -> Option<Mac> {
        let macs = self.neighbours.values();
        let mut macs = macs.filter(|mac| self.forwarding.get(mac) == Some(&peer));
        let first = *macs.next()?;
        macs.all(|mac| *mac == first).then_some(first)
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
pub enum Heard {
    /// Nothing.
    Nothing,
    /// Frames from the MAC that is known, whatever else.
    Known,
    /// Frames from one other MAC.
    Other(Mac),
    /// Frames from several other MACs.
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
    limit: Limit,
    complaint: Option<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Mender {
    peers: Vec<Peer>,
    /// With the peers of each, by underlay address.
    tunnels: BTreeMap<String, (Tunnel, BTreeMap<IpAddr, Arc<str>>)>,
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
        let tunnels = tunnels.into_iter().map(|(name, tunnel)| {
            let peers = tunnel.find(&self.peers);
            (name, (tunnel, peers))
        });
        self.tunnels = tunnels.collect();
        let tunnels = &self.tunnels;
        self.known.retain(|(device, peer), _| {
            let tunnel = tunnels.get(device);
            tunnel.is_some_and(|(_, peers)| peers.contains_key(peer))
        });
    }

    /// Whom to listen for.
    pub fn listened(&self) -> BTreeSet<Listened> {
        let mut listened = BTreeSet::new();
        for (tunnel, peers) in self.tunnels.values() {
            let Some(ifindex) = tunnel.underlay else {
                continue;
            };
            for &peer in peers.keys() {
                listened.extend(tunnel.known(peer).map(|known| Listened {
                    ifindex,
                    peer,
                    vni: tunnel.vni,
                    port: tunnel.port,
                    known,
                }));
            }
        }
        listened
    }

    /// This was heard of a peer that was listened for.
    pub fn notice(&mut self, listened: &Listened, heard: Heard, now: u64) {
        let is_it = |tunnel: &Tunnel| {
            (tunnel.vni, tunnel.port) == (listened.vni, listened.port)
                && tunnel.known(listened.peer) == Some(listened.known)
        };
        let mut tunnels = self.tunnels.iter();
        let Some((device, _)) = tunnels.find(|(_, (tunnel, _))| is_it(tunnel)) else {
            return;
        };
        let key = (device.clone(), listened.peer);
        let known = self.known.entry(key).or_default();
        match heard {
            Heard::Nothing => {}
            Heard::Known | Heard::Several => known.doubt = None,
            Heard::Other(mac) => known.sight(mac, now),
        }
    }

    /// What is to be done now. Each attempt counts; what does not work is asked for again.
    pub fn decide(&mut self, now: u64) -> Vec<Repair> {
        let mut repairs = Vec::new();
        for (device, (tunnel, peers)) in &mut self.tunnels {
            for (&peer, node) in peers {
                let known = self.known.entry((device.clone(), peer)).or_default();
                known.limit.pass(now);
                known.complaint = None;
                let from = tunnel.known(peer);
                // What is repaired is no doubt any more.
                known.doubt = known
                    .doubt
                    .filter(|doubt| from.is_some_and(|from| from != doubt.mac));
                let (Some(from), Some(doubt)) = (from, known.doubt) else {
                    continue;
                };
                let Some(to) = doubt.believed(now) else {
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
                        "{device}: Node {node} ({peer}) has another MAC again and again; its entries are left alone until that is over for a minute. \
                         Find out who sends with its address, or what changes its entries"
                    ));
                    continue;
                }
                *self.repairs.entry(device.clone()).or_default() += 1;
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

    /// How things are.
    pub fn report(&self) -> MenderReport {
        let complaints = self.known.values();
        MenderReport {
            repairs: self.repairs.clone(),
            alarms: complaints
                .filter_map(|known| known.complaint.clone())
                .collect(),
        }
    }
}

impl Tunnel {
    /// Who else has a MAC, in words; `None`: a peer may have it.
    fn other_owner(&self, mac: Mac, peer: IpAddr) -> Option<String> {
        if !is_unicast(mac) {
            return Some("no device's".to_owned());
        }
        if mac == self.mac {
            return Some("this node's own".to_owned());
        }
        let elsewhere = self.forwarding.get(&mac).filter(|at| **at != peer);
        elsewhere.map(|at| format!("known to be at {at}"))
    }
}

impl Known {
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
