//! Backends whose established flows may have lost them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::model::Protocol;

/// More backends than this are not listed: comparing each socket with so many costs more than examining all sockets.
const MOST: usize = 128;

/// Backends by protocol. All backends of a protocol are suspects where there are too many to name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects(BTreeMap<Protocol, Backends>);

/// The backends of one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backends {
    /// Only these.
    Named(BTreeSet<SocketAddr>),
    /// Every backend, present or past.
    All,
}

impl Suspects {
    /// All backends of these protocols.
    pub fn all(protocols: &[Protocol]) -> Self {
        Self(
            protocols
                .iter()
                .map(|protocol| (*protocol, Backends::All))
                .collect(),
        )
    }

    /// Adds a backend.
    pub fn add(&mut self, protocol: Protocol, backend: SocketAddr) {
        let nobody = || Backends::Named(BTreeSet::new());
        let backends = self.0.entry(protocol).or_insert_with(nobody);
        if let Backends::Named(named) = backends {
            named.insert(backend);
            if named.len() > MOST {
                *backends = Backends::All;
            }
        }
    }

    /// Adds the backends of `other`.
    pub fn merge(&mut self, other: Self) {
        for (protocol, backends) in other.0 {
            match backends {
                Backends::All => {
                    self.0.insert(protocol, Backends::All);
                }
                Backends::Named(named) => {
                    for backend in named {
                        self.add(protocol, backend);
                    }
                }
            }
        }
    }

    /// Removes the backends of a protocol.
    pub fn forget(&mut self, protocol: Protocol) {
        self.0.remove(&protocol);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is one of them.
    pub fn contains(&self, protocol: Protocol, backend: SocketAddr) -> bool {
        match self.0.get(&protocol) {
            None => false,
            Some(Backends::All) => true,
            Some(Backends::Named(named)) => named.contains(&backend),
        }
    }

    /// The backends of each protocol that has some.
    pub fn by_protocol(&self) -> impl Iterator<Item = (Protocol, &Backends)> {
        self.0
            .iter()
            .map(|(protocol, backends)| (*protocol, backends))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: usize) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, 2], u16::try_from(number).unwrap()))
    }

    #[test]
    fn too_many_to_name_are_all_however_they_came_together() {
        let (mut one_by_one, mut merged) = (Suspects::default(), Suspects::default());
        for number in 0..=MOST {
            assert_ne!(one_by_one, Suspects::all(&[Protocol::Udp]), "{number}");
            one_by_one.add(Protocol::Udp, at(number));
            let mut one = Suspects::default();
            one.add(Protocol::Udp, at(MOST - number));
            merged.merge(one);
        }
        assert_eq!(one_by_one, Suspects::all(&[Protocol::Udp]));
        assert_eq!(merged, one_by_one);
        merged.add(Protocol::Udp, at(1));
        assert!(merged.contains(Protocol::Udp, at(MOST + 7)));
        assert!(!merged.contains(Protocol::Tcp, at(1)));
        merged.forget(Protocol::Udp);
        assert!(merged.is_empty());
    }
}
