//! The endpoints of a slice. A large cluster has a hundred thousand of them, nearly all of IPv4.
//!
//! Pure. One by one they are [`Endpoint`]s, of 32 bytes; a slice keeps those of IPv4 in 16.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use serde::ser::SerializeSeq as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One entry of a slice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "FlatEndpoint", into = "FlatEndpoint")]
pub struct Endpoint {
    /// `addresses[0]`: the only one that kube-proxy uses.
    pub address: IpAddr,
    /// `conditions.ready`, default true.
    pub is_ready: bool,
    /// `conditions.serving`, default true.
    pub is_serving: bool,
    /// `conditions.terminating`, default false.
    pub is_terminating: bool,
    /// Where it is and for whom: the same for most endpoints of a node, which share it.
    pub placement: Option<Arc<Placement>>,
}

/// The fields that endpoints of one node share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placement {
    /// `nodeName`.
    pub node_name: Option<Arc<str>>,
    /// `hints`; most endpoints have none.
    pub hints: Option<Box<Hints>>,
}

impl Placement {
    /// `None` where nothing is said.
    pub fn new(node_name: Option<Arc<str>>, hints: Hints) -> Option<Self> {
        let hints = (hints != Hints::default()).then(|| hints.into());
        (node_name.is_some() || hints.is_some()).then_some(Self { node_name, hints })
    }
}

impl Endpoint {
    /// `nodeName`.
    pub fn node_name(&self) -> Option<&Arc<str>> {
        self.placement.as_ref()?.node_name.as_ref()
    }

    /// `hints`; `None` where there are none.
    pub fn hints(&self) -> Option<&Hints> {
        self.placement.as_ref()?.hints.as_deref()
    }
}

/// An endpoint as checkpoints have it.
#[derive(Serialize, Deserialize)]
struct FlatEndpoint {
    address: IpAddr,
    is_ready: bool,
    is_serving: bool,
    is_terminating: bool,
    node_name: Option<Arc<str>>,
    hints: Option<Box<Hints>>,
}

impl From<Endpoint> for FlatEndpoint {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            address: endpoint.address,
            is_ready: endpoint.is_ready,
            is_serving: endpoint.is_serving,
            is_terminating: endpoint.is_terminating,
            node_name: endpoint.node_name().cloned(),
            hints: endpoint.hints().map(|hints| hints.clone().into()),
        }
    }
}

impl From<FlatEndpoint> for Endpoint {
    fn from(flat: FlatEndpoint) -> Self {
        let hints = flat.hints.map(|hints| *hints).unwrap_or_default();
        Self {
            address: flat.address,
            is_ready: flat.is_ready,
            is_serving: flat.is_serving,
            is_terminating: flat.is_terminating,
            placement: Placement::new(flat.node_name, hints).map(Arc::new),
        }
    }
}

/// For whom the controller means an endpoint (KEP-2433, KEP-3015).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hints {
    /// `forZones[].name`.
    pub zones: Box<[Arc<str>]>,
    /// `forNodes[].name`.
    pub nodes: Box<[Arc<str>]>,
}

/// The endpoints of a slice, in its order. Handed out by value: they share their placements.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoints(List);

/// A list that fits into the first kind has that kind, so that equal lists compare equal.
#[derive(Clone, PartialEq, Eq)]
enum List {
    /// All of IPv4.
    V4(Box<[Endpoint4]>),
    /// IPv6, or both. In a box of its own, so that a list takes no more room in its slice than a slice does.
    Any(Box<Any>),
}

#[derive(Clone, PartialEq, Eq)]
struct Any(Box<[Endpoint]>);

/// An [`Endpoint`] of IPv4.
#[derive(Clone, PartialEq, Eq)]
struct Endpoint4 {
    placement: Option<Arc<Placement>>,
    address: Ipv4Addr,
    is_ready: bool,
    is_serving: bool,
    is_terminating: bool,
}

impl Endpoints {
    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            List::V4(all) => all.len(),
            List::Any(all) => all.0.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each endpoint, in order.
    pub fn iter(&self) -> impl Iterator<Item = Endpoint> {
        let (v4, any) = match &self.0 {
            List::V4(all) => (&**all, &[][..]),
            List::Any(all) => (&[][..], &*all.0),
        };
        v4.iter().map(Endpoint::from).chain(any.iter().cloned())
    }

    /// The one at this index.
    pub fn get(&self, index: usize) -> Option<Endpoint> {
        match &self.0 {
            List::V4(all) => all.get(index).map(Endpoint::from),
            List::Any(all) => all.0.get(index).cloned(),
        }
    }

    /// Where they are and for whom, of those that say so.
    pub fn placements(&self) -> impl Iterator<Item = &Placement> {
        let (v4, any) = match &self.0 {
            List::V4(all) => (&**all, &[][..]),
            List::Any(all) => (&[][..], &*all.0),
        };
        let v4 = v4
            .iter()
            .filter_map(|endpoint| endpoint.placement.as_deref());
        let any = any
            .iter()
            .filter_map(|endpoint| endpoint.placement.as_deref());
        v4.chain(any)
    }

    /// Leaves only the first ones.
    pub fn truncate(&mut self, most: usize) {
        if most < self.len() {
            self.edit(|all| all.truncate(most));
        }
    }

    /// Changes them.
    pub fn edit(&mut self, change: impl FnOnce(&mut Vec<Endpoint>)) {
        let mut all = self.iter().collect();
        change(&mut all);
        *self = all.into();
    }
}

impl From<&Endpoint4> for Endpoint {
    fn from(endpoint: &Endpoint4) -> Self {
        Self {
            address: IpAddr::V4(endpoint.address),
            is_ready: endpoint.is_ready,
            is_serving: endpoint.is_serving,
            is_terminating: endpoint.is_terminating,
            placement: endpoint.placement.clone(),
        }
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    fn from(all: Vec<Endpoint>) -> Self {
        if !all.iter().all(|endpoint| endpoint.address.is_ipv4()) {
            return Self(List::Any(Any(all.into()).into()));
        }
        let narrow = |endpoint: Endpoint| match endpoint.address {
            IpAddr::V4(address) => Some(Endpoint4 {
                placement: endpoint.placement,
                address,
                is_ready: endpoint.is_ready,
                is_serving: endpoint.is_serving,
                is_terminating: endpoint.is_terminating,
            }),
            IpAddr::V6(_) => None,
        };
        // Not in the place of `all`, which is twice as large.
        let mut v4 = Vec::with_capacity(all.len());
        v4.extend(all.into_iter().filter_map(narrow));
        Self(List::V4(v4.into()))
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(all: I) -> Self {
        Vec::from_iter(all).into()
    }
}

impl Default for Endpoints {
    fn default() -> Self {
        Self(List::V4(Box::default()))
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// As a list.
impl Serialize for Endpoints {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.len()))?;
        for endpoint in self.iter() {
            list.serialize_element(&endpoint)?;
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for Endpoints {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::model::EndpointSlice;

    #[test]
    fn an_endpoint_of_ipv4_takes_half_of_what_another_takes() {
        assert_eq!([size_of::<Endpoint4>(), size_of::<Endpoint>()], [16, 32]);
        assert_eq!(size_of::<Endpoints>(), size_of::<Box<[Endpoint]>>());
        // With the counts of its `Arc`, and four bytes of the allocator, 124 of 128.
        assert!(size_of::<EndpointSlice>() <= 104);
    }

    fn endpoint(is_v4: bool) -> impl Strategy<Value = Endpoint> {
        let address = move |bits: u128| match is_v4 {
            true => IpAddr::from(
                bits.to_be_bytes()[..4]
                    .first_chunk()
                    .copied()
                    .unwrap_or([0; 4]),
            ),
            false => IpAddr::from(bits.to_be_bytes()),
        };
        (any::<u128>(), any::<[bool; 3]>(), 0..3usize).prop_map(move |(bits, is, node)| {
            let node = [None, Some("a1"), Some("a2")][node];
            let placement = Placement::new(node.map(Into::into), Hints::default());
            Endpoint {
                address: address(bits),
                is_ready: is[0],
                is_serving: is[1],
                is_terminating: is[2],
                placement: placement.map(Arc::new),
            }
        })
    }

    proptest! {
        #[test]
        fn endpoints_are_kept_as_they_came_and_written_as_a_list(
            all in prop_oneof![
                vec(endpoint(true), 0..9),
                vec(endpoint(false), 0..9),
                vec(any::<bool>().prop_flat_map(endpoint), 0..9),
            ],
            most in 0..12usize,
        ) {
            let kept = Endpoints::from(all.clone());
            prop_assert_eq!(kept.iter().collect::<Vec<_>>(), all.clone());
            prop_assert_eq!(kept.len(), all.len());
            for index in 0..12 {
                prop_assert_eq!(kept.get(index), all.get(index).cloned());
            }
            let written = postcard::to_allocvec(&kept).unwrap();
            prop_assert_eq!(&written, &postcard::to_allocvec(&all).unwrap());
            prop_assert_eq!(&postcard::from_bytes::<Endpoints>(&written).unwrap(), &kept);

            let mut short = kept.clone();
            short.truncate(most);
            let first: Endpoints = all.iter().take(most).cloned().collect();
            // However a list came to what it is, it equals one that says the same.
            prop_assert_eq!(short, first);

            let mut moved = kept;
            let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
            moved.edit(|all| all.iter_mut().for_each(|endpoint| endpoint.address = here));
            prop_assert!(moved.iter().all(|endpoint| endpoint.address == here));
            prop_assert!(matches!(moved.0, List::V4(_)));
        }
    }
}
