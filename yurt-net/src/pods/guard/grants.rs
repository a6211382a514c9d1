//! What annotations have granted to Pods, which binds Pods of other namespaces. Pods of one namespace may share, such
//! as two that take turns with a virtual address. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::pod::{Extra, GuardedPod};
use super::prefix::last;

/// What was granted, and to which Pods.
#[derive(Debug, Default)]
pub(super) struct Grants<'a> {
    /// The Pods that were granted a prefix, by its first address and its length.
    prefixes: BTreeMap<(IpAddr, u8), Vec<&'a GuardedPod>>,
    macs: BTreeMap<[u8; 6], Vec<&'a GuardedPod>>,
}

impl<'a> Grants<'a> {
    /// Notes what a Pod was granted.
    pub(super) fn add(&mut self, pod: &'a GuardedPod, granted: &Extra) {
        for prefix in &granted.prefixes {
            let key = (prefix.network(), prefix.prefix());
            self.prefixes.entry(key).or_default().push(pod);
        }
        for mac in &granted.macs {
            self.macs.entry(*mac).or_default().push(pod);
        }
    }

    /// A Pod of another namespace that was granted an address of this prefix.
    pub(super) fn of_prefix(&self, pod: &GuardedPod, prefix: &IpNetwork) -> Option<&'a GuardedPod> {
        let (first, length) = (prefix.network(), prefix.prefix());
        // If two prefixes overlap, one contains the other.
        let around = (0..length).filter_map(|length| {
            let around = IpNetwork::new(first, length).ok()?;
            self.prefixes.get(&(around.network(), length))
        });
        let inside = self
            .prefixes
            .range((first, length)..=(last(prefix), u8::MAX));
        let holders = around.chain(inside.map(|(_, holders)| holders));
        holders
            .flatten()
            .copied()
            .find(|holder| is_other(holder, pod))
    }

    /// A Pod of another namespace that was granted this MAC.
    pub(super) fn of_mac(&self, pod: &GuardedPod, mac: [u8; 6]) -> Option<&'a GuardedPod> {
        let mut holders = self.macs.get(&mac)?.iter().copied();
        holders.find(|holder| is_other(holder, pod))
    }
}

fn is_other(holder: &GuardedPod, pod: &GuardedPod) -> bool {
    holder.namespace != pod.namespace
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::tests::pod;
    use super::*;

    fn prefix() -> impl Strategy<Value = IpNetwork> {
        let v4 = (any::<u8>(), 24..=32u8)
            .prop_map(|(low, bits)| IpNetwork::new([10, 0, 0, low].into(), bits));
        let v6 = (any::<u8>(), 120..=128u8).prop_map(|(low, bits)| {
            IpNetwork::new([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(low)].into(), bits)
        });
        prop_oneof![v4, v6].prop_map(Result::unwrap)
    }

    proptest! {
        #[test]
        fn a_prefix_is_anothers_where_it_overlaps_what_another_namespace_was_granted(
            granted in vec((0..3usize, prefix()), 0..8),
            asked in prefix(),
        ) {
            let pods: Vec<GuardedPod> = ["a", "b", "c"]
                .map(|namespace| GuardedPod {
                    namespace: namespace.to_owned(),
                    ..pod("web", &[], None)
                })
                .into();
            let mut grants = Grants::default();
            for (owner, prefix) in &granted {
                let extra = Extra { prefixes: vec![*prefix], macs: Vec::new() };
                grants.add(&pods[*owner], &extra);
            }
            let expected = granted.iter().any(|(owner, prefix)| {
                *owner > 0 && (prefix.contains(asked.network()) || asked.contains(prefix.network()))
            });
            prop_assert_eq!(grants.of_prefix(&pods[0], &asked).is_some(), expected);
        }
    }
}
