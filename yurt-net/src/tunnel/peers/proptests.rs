//! Whoever says what: no peer's packets go anywhere else, there is no fight, and a peer that is heard becomes known.

use proptest::prelude::*;

use super::tests::{at, inside, listened, mac, peer, tunnel, tunnels};
use super::*;
use crate::host::limit::{MINUTE, REPAIRS};

const PEERS: u8 = 3;

#[derive(Clone, Debug)]
enum Event {
    /// A peer is made anew, with another MAC.
    Changes(u8, u8),
    /// A peer says something.
    Speaks(u8),
    /// Somebody says something with a peer's address, and a MAC that may be anybody's.
    Lies(u8, u8),
    /// The next repair does not work.
    Fails,
}

fn events() -> impl Strategy<Value = Vec<(bool, Event)>> {
    let (peers, macs) = (1..=PEERS, 1u8..8);
    let event = prop_oneof![
        2 => (peers.clone(), macs.clone()).prop_map(|(peer, mac)| Event::Changes(peer, mac)),
        6 => peers.clone().prop_map(Event::Speaks),
        3 => (peers, macs).prop_map(|(peer, mac)| Event::Lies(peer, mac)),
        1 => Just(Event::Fails),
    ];
    // With each event, or not, a second passes.
    proptest::collection::vec((any::<bool>(), event), 0..200)
}

/// What the kernel has, what peers are, and what was heard in this second.
struct World {
    mender: Mender,
    entries: Tunnel,
    real: BTreeMap<u8, u8>,
    heard: BTreeMap<u8, BTreeSet<u8>>,
    fails: bool,
    repaired: BTreeMap<IpAddr, Vec<u64>>,
    now: u64,
}

impl World {
    fn says(&mut self, peer: u8, mac: u8) {
        self.heard.entry(peer).or_default().insert(mac);
    }

    /// As the agent does once a second.
    fn second(&mut self) {
        self.now += 1_000;
        self.mender.see(tunnels(self.entries.clone()));
        let heard = std::mem::take(&mut self.heard);
        for listened in self.mender.listened() {
            let sources = heard.iter().find(|(peer, _)| at(**peer) == listened.peer);
            let sources: Vec<Mac> = sources
                .map(|(_, sources)| sources.iter().map(|&last| mac(last)).collect())
                .unwrap_or_default();
            let (known, others): (Vec<Mac>, Vec<Mac>) = sources
                .iter()
                .partition(|source| **source == listened.known);
            let heard = Heard {
                is_known: !known.is_empty(),
                others: match others.as_slice() {
                    [] => Others::None,
                    [other] => Others::One(*other),
                    _ => Others::Several,
                },
            };
            self.mender.notice(&listened, heard, self.now);
        }
        for repair in self.mender.decide(self.now) {
            self.repair(&repair);
        }
        self.mender.see(tunnels(self.entries.clone()));
    }

    fn repair(&mut self, repair: &Repair) {
        let Repair {
            peer,
            from,
            to,
            neighbours,
            ..
        } = repair;
        assert!((1..=PEERS).any(|known| at(known) == *peer), "{repair:?}");
        let times = self.repaired.entry(*peer).or_default();
        times.push(self.now);
        let recent = times.iter().filter(|&&at| self.now - at < MINUTE);
        assert!(recent.count() <= REPAIRS, "{times:?}");
        if std::mem::take(&mut self.fails) {
            return;
        }
        let before = self.entries.forwarding.insert(*to, *peer);
        assert!(
            before.is_none_or(|before| before == *peer),
            "{to} was at {before:?}: {repair:?}"
        );
        for neighbour in neighbours {
            let before = self.entries.neighbours.insert(*neighbour, *to);
            assert_eq!(before, Some(*from));
        }
        self.entries.forwarding.remove(from);
    }

    /// Where packets to a peer go.
    fn leads_to(&self, peer: u8) -> Option<IpAddr> {
        let mac = self.entries.neighbours.get(&inside(peer))?;
        self.entries.forwarding.get(mac).copied()
    }
}

proptest! {
    #[test]
    fn packets_go_to_the_peer_that_they_are_for_and_one_that_is_heard_alone_becomes_known(
        events in events(),
    ) {
        let known: Vec<(u8, u8)> = (1..=PEERS).map(|number| (number, number)).collect();
        let mut world = World {
            mender: Mender::default(),
            entries: tunnel(&known),
            real: known.iter().copied().collect(),
            heard: BTreeMap::new(),
            fails: false,
            repaired: BTreeMap::new(),
            now: 0,
        };
        world.mender.hear((1..=PEERS).map(peer).collect());
        for (passes, event) in events {
            match event {
                Event::Changes(peer, mac) => {
                    world.real.insert(peer, mac);
                }
                Event::Speaks(peer) => {
                    let mac = world.real[&peer];
                    world.says(peer, mac);
                }
                Event::Lies(peer, mac) => world.says(peer, mac),
                Event::Fails => world.fails = true,
            }
            if passes {
                world.second();
            }
            for peer in 1..=PEERS {
                prop_assert_eq!(world.leads_to(peer), Some(at(peer)));
            }
        }
        // Peer 1 gets a MAC that nobody has, and nobody lies any more.
        world.fails = false;
        world.real.insert(1, 50);
        let start = world.now;
        while world.now < start + 2 * MINUTE {
            world.says(1, 50);
            world.second();
        }
        prop_assert_eq!(world.entries.neighbours[&inside(1)], mac(50));
        prop_assert!(world.mender.listened().contains(&listened(1, 50)));
    }
}
