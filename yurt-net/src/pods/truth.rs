//! Where the Pods of this node are, while the cloud's word is old.
//!
//! Pure. From the ledger and the node's devices, this makes the live addresses of each Pod, or the fact that it is
//! gone. After a reboot without the cloud, Pods may have other addresses than the EndpointSlices say, and no component
//! can correct these: YurtHub swallows what the kubelet reports (openyurt#2137, #2810). The ledger is right, because
//! every sandbox gets its addresses through it.
//!
//! A Pod is identified by namespace and name, not by UID. Two Pods cannot have the same name at a time; the runtime and
//! the API give a static Pod different UIDs; and a Pod that was created again under its name is the successor that the
//! old endpoint stands for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::device::Link;
use crate::ledger::{Entry, Ledger, State};
use crate::model::{AddressFamily, EndpointSlice};

/// The interface that a Pod's address is on (kubernetes pkg/kubelet: `network.DefaultInterfaceName`).
const INTERFACE: &str = "eth0";

/// The place of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whereabouts {
    /// It has these addresses.
    At(Vec<IpAddr>),
    /// It has no address, because its sandbox is gone.
    Gone,
}

/// The change of an endpoint of this node since its slice was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Its Pod has this address now.
    To(IpAddr),
    /// Its Pod is gone, or has no address of the slice's family any more.
    Away,
}

/// The Pods of this node. Nothing is known of a Pod that is not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// By namespace, then by name.
    pods: BTreeMap<String, BTreeMap<String, Whereabouts>>,
}

impl Truth {
    /// Reads the ledger, as far as the devices confirm it. `devices` are those of the node's own namespace; `None` if
    /// they have not been listed yet.
    pub fn new(ledger: &Ledger, devices: Option<&[Link]>) -> Self {
        let mut truth = Self::default();
        // Keys sort by interface last. Of several interfaces `eth0` counts, else the first.
        for (key, entry) in ledger.entries().iter().filter(|(key, _)| key.is_pod()) {
            let pods = truth.pods.entry(key.namespace.clone()).or_default();
            let is_known = pods.contains_key(&key.name);
            if !is_known || key.interface == INTERFACE {
                let whereabouts = match is_live(entry, devices) {
                    true => Whereabouts::At(entry.addresses.clone()),
                    false => Whereabouts::Gone,
                };
                pods.insert(key.name.clone(), whereabouts);
            }
        }
        truth
    }

    /// The endpoints of a slice whose Pods have moved, by their index and with the name of the Pod.
    pub fn moves<'a>(
        &'a self,
        slice: &'a EndpointSlice,
    ) -> impl Iterator<Item = (usize, &'a str, Move)> {
        slice.pods.iter().filter_map(move |pod| {
            let index = usize::try_from(pod.endpoint).ok()?;
            let endpoint = slice.endpoints.get(index)?;
            let addresses = match self.of(&slice.name.namespace, &pod.name)? {
                Whereabouts::At(addresses) => addresses.as_slice(),
                Whereabouts::Gone => &[],
            };
            // An address that the Pod still has is not replaced by another one.
            if addresses.contains(&endpoint.address) {
                return None;
            }
            let of_family = |address: &&IpAddr| AddressFamily::from(**address) == slice.family;
            let moved = match addresses.iter().find(of_family) {
                Some(address) => Move::To(*address),
                None => Move::Away,
            };
            Some((index, &*pod.name, moved))
        })
    }

    /// The place of a Pod; `None` if the ledger does not know it, such as a Pod on the host's network.
    fn of(&self, namespace: &str, name: &str) -> Option<&Whereabouts> {
        self.pods.get(namespace)?.get(name)
    }
}

/// Whether the entry's sandbox still has it, and its device still leads to the same interface.
fn is_live(entry: &Entry, devices: Option<&[Link]>) -> bool {
    if entry.state != State::Active {
        return false;
    }
    let (Some(host), Some(devices)) = (entry.host, devices) else {
        return true;
    };
    devices.iter().any(|device| device.is_still(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HostSide;
    use crate::ledger::tests::{entry, key};
    use crate::ledger::{Key, Record};

    fn ledger(entries: impl IntoIterator<Item = (Key, Entry)>) -> Ledger {
        let mut ledger = Ledger::default();
        for (key, entry) in entries {
            ledger.apply(Record::Put { key, entry });
        }
        ledger
    }

    fn at(address: &str) -> Option<Whereabouts> {
        Some(Whereabouts::At(vec![address.parse().unwrap()]))
    }

    #[test]
    fn a_pod_is_where_its_sandbox_is_and_gone_with_it() {
        let mut kept = entry("10.1.0.3", "c2");
        kept.state = State::Retained;
        let mut released = entry("10.1.0.4", "c3");
        released.state = State::Released;
        let ledger = ledger([
            (key("web"), entry("10.1.0.2", "c1")),
            (key("away"), kept),
            (key("old"), released),
        ]);
        let truth = Truth::new(&ledger, None);
        assert_eq!(truth.of("shop", "web").cloned(), at("10.1.0.2"));
        assert_eq!(truth.of("shop", "away"), Some(&Whereabouts::Gone));
        assert_eq!(truth.of("shop", "old"), Some(&Whereabouts::Gone));
        assert_eq!(truth.of("shop", "unknown"), None);
        assert_eq!(truth.of("other", "web"), None);
    }

    #[test]
    fn a_pod_whose_device_went_or_leads_elsewhere_is_gone() {
        let mut web = entry("10.1.0.2", "c1");
        web.host = Some(HostSide {
            ifindex: 7,
            other_end: Some(2),
        });
        let ledger = ledger([(key("web"), web)]);
        let device = |ifindex, other_end| Link {
            ifindex,
            other_end,
            ..Link::default()
        };
        for (devices, is_live) in [
            (vec![device(7, Some(2))], true),
            (vec![device(7, None)], true),
            (vec![device(7, Some(3))], false),
            (vec![device(8, Some(2))], false),
            (vec![], false),
        ] {
            let truth = Truth::new(&ledger, Some(&devices));
            let found = truth.of("shop", "web").cloned();
            let expected = match is_live {
                true => at("10.1.0.2"),
                false => Some(Whereabouts::Gone),
            };
            assert_eq!(found, expected, "{devices:?}");
        }
    }

    #[test]
    fn of_several_interfaces_the_first_one_counts_whatever_its_order() {
        let on = |interface: &str, address| {
            let key = Key {
                interface: interface.to_owned(),
                ..key("web")
            };
            (key, entry(address, "c1"))
        };
        let ledger = ledger([
            on("eth0", "10.1.0.2"),
            on("data0", "10.9.0.2"),
            on("net1", "10.8.0.2"),
        ]);
        let truth = Truth::new(&ledger, None);
        assert_eq!(truth.of("shop", "web").cloned(), at("10.1.0.2"));
    }
}
