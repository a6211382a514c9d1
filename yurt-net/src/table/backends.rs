//! A list of endpoints that several tables hold.
//!
//! Pure. A large table has a hundred thousand endpoints, most of them IPv4: those take 6 bytes each instead of the 32 of a
//! `SocketAddr`.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Addresses and ports, sorted by address, then port, without duplicates. Clones share them.
#[derive(Clone, PartialEq, Eq)]
pub struct Backends(List);

#[derive(Clone, PartialEq, Eq)]
enum List {
    /// Nothing but IPv4.
    V4(Arc<[SocketAddrV4]>),
    /// Something else too.
    Any(Arc<[SocketAddr]>),
}

impl Backends {
    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            List::V4(all) => all.len(),
            List::Any(all) => all.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> {
        let (v4, any) = match &self.0 {
            List::V4(all) => (&**all, &[][..]),
            List::Any(all) => (&[][..], &**all),
        };
        let v4 = v4.iter().copied().map(SocketAddr::V4);
        v4.chain(any.iter().copied())
    }

    /// All of them.
    pub fn to_vec(&self) -> Vec<SocketAddr> {
        self.iter().collect()
    }

    /// Whether this is one of them.
    pub fn contains(&self, backend: SocketAddr) -> bool {
        match (&self.0, backend) {
            (List::V4(all), SocketAddr::V4(backend)) => all.binary_search(&backend).is_ok(),
            (List::V4(_), SocketAddr::V6(_)) => false,
            (List::Any(all), backend) => all.binary_search(&backend).is_ok(),
        }
    }
}

/// None: all empty lists are one.
impl Default for Backends {
    fn default() -> Self {
        Self(List::V4(Arc::default()))
    }
}

/// What comes must be sorted.
impl FromIterator<SocketAddr> for Backends {
    fn from_iter<I: IntoIterator<Item = SocketAddr>>(backends: I) -> Self {
        let all: Vec<SocketAddr> = backends.into_iter().collect();
        let v4 = all.iter().map(|backend| match backend {
            SocketAddr::V4(backend) => Some(*backend),
            SocketAddr::V6(_) => None,
        });
        match v4.collect::<Option<Vec<SocketAddrV4>>>() {
            Some(v4) if v4.is_empty() => Self::default(),
            Some(v4) => Self(List::V4(v4.into())),
            None => Self(List::Any(all.into())),
        }
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
        let v6 = &["[fd00::2]:80", "[fd00::3]:80"][..];
        let both = &["10.1.0.2:80", "[fd00::2]:80"][..];
        for list in [&[][..], v4, v6, both] {
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
