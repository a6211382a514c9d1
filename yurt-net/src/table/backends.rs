//! A list of endpoints that several tables hold.
//!
//! Pure. A large table has a hundred thousand endpoints, nearly all lists of which are of one family and at one port:
//! an IPv4 endpoint takes 4 bytes instead of the 32 of a `SocketAddr` then, and none where another port of its Service
//! has the same endpoints.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Addresses and ports, sorted by address, then port, without duplicates. Clones share them.
#[derive(Clone, PartialEq, Eq)]
pub struct Backends(List);

/// A list has the first kind into which it fits, so that equal lists compare equal. The empty list has port 0.
#[derive(Clone, PartialEq, Eq)]
enum List {
    /// IPv4, all at one port.
    V4(Arc<[Ipv4Addr]>, u16),
    /// IPv6, all at one port.
    V6(Arc<[Ipv6Addr]>, u16),
    /// At several ports, or of both families.
    Any(Arc<[SocketAddr]>),
}

impl Backends {
    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            List::V4(all, _) => all.len(),
            List::V6(all, _) => all.len(),
            List::Any(all) => all.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each backend, in order.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> {
        let (v4, v6, any, port) = match &self.0 {
            List::V4(all, port) => (&**all, &[][..], &[][..], *port),
            List::V6(all, port) => (&[][..], &**all, &[][..], *port),
            List::Any(all) => (&[][..], &[][..], &**all, 0),
        };
        let v4 = v4.iter().copied().map(IpAddr::V4);
        let v6 = v6.iter().copied().map(IpAddr::V6);
        let at_one_port = v4.chain(v6).map(move |ip| SocketAddr::new(ip, port));
        at_one_port.chain(any.iter().copied())
    }

    /// All of them.
    pub fn to_vec(&self) -> Vec<SocketAddr> {
        self.iter().collect()
    }

    /// Whether this is one of them.
    pub fn contains(&self, backend: SocketAddr) -> bool {
        match (&self.0, backend.ip()) {
            (List::V4(all, port), IpAddr::V4(ip)) => {
                *port == backend.port() && all.binary_search(&ip).is_ok()
            }
            (List::V6(all, port), IpAddr::V6(ip)) => {
                *port == backend.port() && all.binary_search(&ip).is_ok()
            }
            (List::V4(..) | List::V6(..), _) => false,
            (List::Any(all), _) => all.binary_search(&backend).is_ok(),
        }
    }

    /// Takes another list's addresses in place of its own where they are the same: a Service of a thousand ports has
    /// those of its endpoints once.
    pub fn share(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            (List::V4(own, _), List::V4(others, _)) if own == others => own.clone_from(others),
            (List::V6(own, _), List::V6(others, _)) if own == others => own.clone_from(others),
            _ => {}
        }
    }
}

/// The empty list: all empty lists are one.
impl Default for Backends {
    fn default() -> Self {
        Self(List::V4(Arc::default(), 0))
    }
}

/// The items must be sorted.
impl FromIterator<SocketAddr> for Backends {
    fn from_iter<I: IntoIterator<Item = SocketAddr>>(backends: I) -> Self {
        let all: Vec<SocketAddr> = backends.into_iter().collect();
        let Some(first) = all.first() else {
            return Self::default();
        };
        let port = first.port();
        let is_alike = |one: &SocketAddr| one.port() == port && one.is_ipv4() == first.is_ipv4();
        if !all.iter().all(is_alike) {
            return Self(List::Any(all.into()));
        }
        let v4 = all.iter().filter_map(|one| match one.ip() {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        });
        let v6 = all.iter().filter_map(|one| match one.ip() {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip),
        });
        Self(match first.is_ipv4() {
            true => List::V4(v4.collect(), port),
            false => List::V6(v6.collect(), port),
        })
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for Backends {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(all: &[&str]) -> (Vec<SocketAddr>, Backends) {
        let all: Vec<SocketAddr> = all.iter().map(|one| one.parse().unwrap()).collect();
        (all.clone(), all.into_iter().collect())
    }

    #[test]
    fn a_list_holds_what_it_was_made_of_whatever_the_family() {
        let v4 = &["10.1.0.2:80", "10.1.0.2:81", "10.2.0.2:80"][..];
        let one = &["10.1.0.2:80", "10.2.0.2:80"][..];
        let v6 = &["[fd00::2]:80", "[fd00::3]:80"][..];
        let both = &["10.1.0.2:80", "[fd00::2]:80"][..];
        for list in [&[][..], one, v4, v6, both] {
            let (all, made) = backends(list);
            assert_eq!(made.to_vec(), all);
            assert_eq!((made.len(), made.is_empty()), (all.len(), all.is_empty()));
            for backend in v4.iter().chain(v6) {
                let backend = backend.parse().unwrap();
                assert_eq!(made.contains(backend), all.contains(&backend));
            }
        }
    }

    #[test]
    fn ports_of_one_service_have_its_addresses_once() {
        let (all, first) = backends(&["10.1.0.2:80", "10.2.0.2:80"]);
        let (other, mut second) = backends(&["10.1.0.2:81", "10.2.0.2:81"]);
        second.share(&first);
        assert_eq!((first.to_vec(), second.to_vec()), (all, other));
        let addresses = |backends: &Backends| match &backends.0 {
            List::V4(addresses, _) => addresses.as_ptr(),
            List::V6(..) | List::Any(_) => unreachable!("they are IPv4, at one port"),
        };
        assert_eq!(addresses(&first), addresses(&second));

        let (alone, mut third) = backends(&["10.1.0.2:81"]);
        third.share(&first);
        assert_eq!(third.to_vec(), alone);
    }

    #[test]
    fn equal_lists_are_equal_however_they_came_about() {
        let (_, v4) = backends(&["10.1.0.2:80"]);
        let (_, both) = backends(&["10.1.0.2:80", "[fd00::2]:80"]);
        let left: Backends = both.iter().filter(SocketAddr::is_ipv4).collect();
        assert_eq!(left, v4);
        assert_eq!(
            left.iter().skip(1).collect::<Backends>(),
            Backends::default()
        );
    }
}
