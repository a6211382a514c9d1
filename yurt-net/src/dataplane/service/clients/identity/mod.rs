//! Decides which addresses the Pods of this node have, by what the node's side knows of them.
//!
//! Pure. A Pod may put any address on its own interfaces, so nothing inside it counts. For each family, the first of
//! these that knows a Pod's device decides:
//!
//! | who says so | by |
//! |---|---|
//! | the ledger | the device that `yurt-cni` wrote down with the addresses |
//! | a route | to a single address, straight out of the device, as ptp and Calico have it |
//! | a neighbour | at the device or behind its port of a bridge, if the node would send there, and no other has the address |
//!
//! "No other" means: not the ledger, not this node, and no other Pod. If there are several neighbours, the one counts
//! that the Pod was known by before, then the one that it would dial with; otherwise the Pod is unknown and refused. A
//! Pod on a bridge is no neighbour before its first packet. The node then *asks for* the address that the Pod would
//! dial with, as any sender would: the Pod's own word is only the question, never the answer. Without a ledger, a Pod
//! with NET_ADMIN can pretend to be any neighbour whose address no other has, as it can on the wire.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::device::Link;
use crate::ledger::{Entry, Key, State};
use crate::node::tables::{Near, Neighbour, Port, Question};

/// The addresses of a client; `None` if it has none of that family, or none that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientAddresses {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl ClientAddresses {
    fn of(self, is_v4: bool) -> Option<IpAddr> {
        match is_v4 {
            true => self.v4.map(IpAddr::V4),
            false => self.v6.map(IpAddr::V6),
        }
    }

    fn set(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.v4 = Some(address),
            IpAddr::V6(address) => self.v6 = Some(address),
        }
    }

    fn iter(self) -> impl Iterator<Item = IpAddr> {
        self.of(true).into_iter().chain(self.of(false))
    }
}

/// What the agent knows before a search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// The addresses that the node itself dials with.
    pub own: ClientAddresses,
    /// All addresses on its interfaces.
    pub local: BTreeSet<IpAddr>,
    /// The ledger.
    pub entries: BTreeMap<Key, Entry>,
}

/// A network namespace of a Pod.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Its cookie.
    pub cookie: u64,
    /// The devices of this node that lead there.
    pub devices: Vec<u32>,
    /// The addresses that a client would dial with, by its own word.
    pub claimed: ClientAddresses,
}

/// The result of a judgement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identities {
    /// Pods of which something is known, by cookie.
    pub known: BTreeMap<u64, ClientAddresses>,
    /// Pods of which more could be known, by their index among the clients.
    pub open: Vec<usize>,
    /// The questions to ask about them.
    pub questions: Vec<Question>,
}

/// Judges these clients; `before`: what was last known of them.
pub(crate) fn identify(
    near: &Near,
    word: &Word,
    before: &BTreeMap<u64, ClientAddresses>,
    clients: &[Client],
) -> Identities {
    let judge = Judge::new(near, word, before, clients);
    let mut found = Identities::default();
    for (place, client) in clients.iter().enumerate() {
        let (mut known, mut is_open) = (ClientAddresses::default(), false);
        for is_v4 in [true, false] {
            match judge.address(client, is_v4) {
                Verdict::Is(address) => known.set(address),
                Verdict::None => {}
                Verdict::Unknown => {
                    is_open = true;
                    let claimed = client.claimed.of(is_v4);
                    let question = claimed.and_then(|claimed| judge.question(client, claimed));
                    found.questions.extend(question);
                }
            }
        }
        if is_open {
            found.open.push(place);
        }
        if known != ClientAddresses::default() {
            found.known.insert(client.cookie, known);
        }
    }
    found
}

enum Verdict {
    Is(IpAddr),
    /// It has none.
    None,
    Unknown,
}

struct Judge<'a> {
    near: &'a Near,
    links: BTreeMap<u32, &'a Link>,
    word: &'a Word,
    before: &'a BTreeMap<u64, ClientAddresses>,
    /// The client that was last known by each address, if it is still here.
    holders: BTreeMap<IpAddr, u64>,
    /// The addresses that the ledger keeps, or has at a device.
    owned: BTreeSet<IpAddr>,
}

impl<'a> Judge<'a> {
    fn new(
        near: &'a Near,
        word: &'a Word,
        before: &'a BTreeMap<u64, ClientAddresses>,
        clients: &[Client],
    ) -> Self {
        let present = clients.iter().filter_map(|client| {
            let known = before.get(&client.cookie)?;
            Some(known.iter().map(|address| (address, client.cookie)))
        });
        let placed = word.entries.values().filter(|entry| match entry.state {
            // If the ledger has no device for a Pod, only the neighbours can show its address.
            State::Active => entry.host.is_some(),
            State::Retained => true,
            State::Released => false,
        });
        Self {
            near,
            links: near.links.iter().map(|link| (link.ifindex, link)).collect(),
            word,
            before,
            holders: present.flatten().collect(),
            owned: placed.flat_map(Entry::owned).collect(),
        }
    }

    fn address(&self, client: &Client, is_v4: bool) -> Verdict {
        let is_wanted = |address: &IpAddr| address.is_ipv4() == is_v4 && is_of_use(address);
        if let Some(entry) = self.entry(client) {
            let mut addresses = entry.addresses.iter().copied();
            return addresses.find(is_wanted).map_or(Verdict::None, Verdict::Is);
        }
        let is_free = |address: &IpAddr| {
            let holder = self.holders.get(address);
            is_wanted(address)
                && !self.owned.contains(address)
                && !self.word.local.contains(address)
                && holder.is_none_or(|holder| *holder == client.cookie)
        };
        let routes = self.near.routes.iter().filter(|route| {
            let is_its = route
                .link
                .is_some_and(|link| client.devices.contains(&link));
            is_its && !route.is_ours && route.prefix.prefix() == if is_v4 { 32 } else { 128 }
        });
        let mut routed = routes.map(|route| route.prefix.ip());
        if let Some(address) = routed.find(is_free) {
            return Verdict::Is(address);
        }
        // A sender can make an entry for any address at the device that its ARP request came by. So an entry counts
        // only at the device by which this node would send to the address.
        let seen = self.near.neighbours.iter().filter(|one| {
            is_free(&one.address)
                && self.near.way_to(one.address) == Some(one.device)
                && client.devices.iter().any(|device| self.is_at(one, *device))
        });
        let seen: BTreeSet<IpAddr> = seen.map(|one| one.address).collect();
        let before = self.before.get(&client.cookie);
        let before = before.and_then(|known| known.of(is_v4)).filter(is_free);
        let before = before.filter(|address| self.way_to(client, *address).is_some());
        let claimed = client.claimed.of(is_v4);
        let mut in_order = before.into_iter().chain(claimed);
        match (seen.len(), seen.first()) {
            // The neighbour has only been silent for a while.
            (0, _) => before.map_or(Verdict::Unknown, Verdict::Is),
            (1, Some(address)) => Verdict::Is(*address),
            _ => {
                let one = in_order.find(|address| seen.contains(address));
                one.map_or(Verdict::Unknown, Verdict::Is)
            }
        }
    }

    /// The ledger's entry at one of these devices; of several interfaces, the Pod's first one.
    fn entry(&self, client: &Client) -> Option<&'a Entry> {
        let leads_there = |entry: &Entry| {
            let host = entry.host?;
            let link = self.links.get(&host.ifindex)?;
            (client.devices.contains(&host.ifindex) && link.is_still(host)).then_some(())
        };
        let mut entries = self
            .word
            .entries
            .iter()
            .filter(|(_, entry)| entry.state == State::Active && leads_there(entry).is_some());
        let first = entries.next()?;
        let main = entries.find(|(key, _)| key.interface == "eth0");
        Some(match first.0.interface == "eth0" {
            true => first.1,
            false => main.unwrap_or(first).1,
        })
    }

    /// Whether a neighbour is at the other end of a device.
    fn is_at(&self, neighbour: &Neighbour, device: u32) -> bool {
        let bridge = self.links.get(&device).and_then(|link| link.controller);
        neighbour.device == device
            || bridge == Some(neighbour.device)
                && self.near.ports.get(&(neighbour.device, neighbour.mac))
                    == Some(&Port::Only(device))
    }

    /// How to find out whether a client has an address: ask for it at the device by which this node would send it to
    /// the client.
    fn question(&self, client: &Client, address: IpAddr) -> Option<Question> {
        let is_nobodys = !self.owned.contains(&address)
            && !self.word.local.contains(&address)
            && !self.holders.contains_key(&address);
        if !is_of_use(&address) || !is_nobodys {
            return None;
        }
        let device = self.way_to(client, address)?;
        let mut neighbours = self.near.neighbours.iter();
        let known = neighbours.find(|one| one.device == device && one.address == address);
        Some(Question {
            device,
            address,
            mac: known.map(|one| one.mac),
        })
    }

    /// The client's device, or its bridge, if this node would send to an address there.
    fn way_to(&self, client: &Client, address: IpAddr) -> Option<u32> {
        let device = self.near.way_to(address)?;
        let mut devices = client.devices.iter();
        let leads_there = devices.any(|of_client| {
            let bridge = self.links.get(of_client).and_then(|link| link.controller);
            *of_client == device || bridge == Some(device)
        });
        leads_there.then_some(device)
    }
}

/// Whether a client can be known by this kind of address.
pub(super) fn is_of_use(address: &IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !is_link_local && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

#[cfg(test)]
mod tests;
