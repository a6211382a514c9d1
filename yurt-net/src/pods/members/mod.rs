//! Which interfaces of Pods this node has addresses for, and what each gets: a join of the ledger with the Pods'
//! objects.
//!
//! Pure. The ledger says which Pod has which addresses on which device, and which absent Pod keeps its addresses; the
//! annotations of a Pod's object say what else it wants. Neither is complete: a Pod is in the ledger before its object
//! arrives here and after its object has gone, and a Pod on the host's network is never in the ledger. So the ledger
//! decides which Pods are members, and an object only adds to one. Whether its device still exists is for `guard` and
//! `translate` to see, which look at devices.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::guard::{Extra, GuardedPod};
use super::translate::{Candidate, Policy, Wish};
use crate::device::{Complaint, HostSide};
use crate::ledger::{Assigner, Entry, Key, Ledger, Now, State};
use crate::model::{LocalPod, NamespacedName, Snapshot};

/// The annotation by which a Pod asks for more than its own addresses: other addresses, prefixes and MACs.
const EXTRA: &str = "yurt-net.openyurt.io/extra-addresses";
/// The annotation that says whether a Pod is translated after it has lost its address (`true` or `false`).
const KEEP: &str = "yurt-net.openyurt.io/keep-address";
/// The annotation by which a Pod asks that its sockets are left alone (`off`).
pub const SOCKET_LB: &str = "yurt-net.openyurt.io/socket-lb";

/// How long `yurt-ipam` may know a Pod before `yurt-cni` does, while the Pod is made. Milliseconds.
const MAKING: u64 = 10_000;

/// All that is known of the Pods' interfaces at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Members<'a> {
    /// Which Pod has which addresses.
    pub ledger: &'a Ledger,
    /// When the ledger was read.
    pub now: Now,
    /// The Pods' objects; `None` until a source has sent some.
    pub snapshot: Option<&'a Snapshot>,
    /// The operator's settings for Pods that have lost their addresses.
    pub translation: &'a Policy,
}

/// What a Pod says of its sockets, at one of its interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketWish {
    /// The Pod, as `namespace/name`.
    pub pod: String,
    /// The node's end of the interface.
    pub host: HostSide,
    /// Whether they are to be left alone; `None`: there is no object of the Pod.
    pub is_off: Option<bool>,
}

impl Members<'_> {
    /// The Pods that the guard looks after: those that are here, and those that are away and keep their addresses. A
    /// Pod that is being made is left out, and so is one that `yurt-cni` has not seen, because its device is not known.
    pub fn guarded(&self) -> (Vec<GuardedPod>, Vec<Complaint>) {
        let mut complaints = Vec::new();
        let entries = self.ledger.entries().iter();
        let members = entries.filter(|(_, entry)| match entry.state {
            State::Active => entry.host.is_some(),
            State::Retained => true,
            State::Released => false,
        });
        let pods = members.map(|(key, entry)| {
            let asked = self.annotation(key, EXTRA).flatten();
            let extra = asked.map(str::parse).transpose();
            let extra = extra.unwrap_or_else(|error| {
                let reason =
                    format!("annotation {EXTRA}: {error}; the agent ignores the whole annotation");
                complaints.push(complaint(key, reason));
                None
            });
            guarded(key, entry, self.translation, extra.unwrap_or_default())
        });
        (pods.collect(), complaints)
    }

    /// The Pods that run with other addresses than were promised to them, for translation.
    pub fn candidates(&self) -> (Vec<Candidate>, Vec<Complaint>) {
        let mut complaints = Vec::new();
        let entries = self.ledger.entries().iter();
        let moved = entries.filter(|(_, entry)| {
            let age = self.now.at.saturating_sub(entry.at);
            let is_made = entry.host.is_some() || age > MAKING;
            entry.state == State::Active && !entry.promised.is_empty() && is_made
        });
        let candidates = moved.map(|(key, entry)| Candidate {
            pod: pod_name(key),
            interface: key.interface.clone(),
            mac: entry.mac.map(|mac| mac.0),
            live: entry.addresses.clone(),
            promised: entry.promised.clone(),
            is_ours: entry.promised_by == Assigner::Ours,
            host: entry.host,
            wish: self.wish(key, &mut complaints),
        });
        (candidates.collect(), complaints)
    }

    /// What the Pods that run here say of their sockets. A Pod of the node's own network has no interface, and no say.
    pub fn socket_wishes(&self) -> (Vec<SocketWish>, Vec<Complaint>) {
        let mut complaints = Vec::new();
        let entries = self.ledger.entries().iter();
        let here = entries.filter(|(_, entry)| entry.state == State::Active);
        let wishes = here.filter_map(|(key, entry)| {
            let host = entry.host?;
            let asked = self.annotation(key, SOCKET_LB);
            if let Some(Some(other)) = asked
                && other != "off"
            {
                let reason = format!(
                    "annotation {SOCKET_LB}: {other:?} is not \"off\"; the node's --socket-lb counts"
                );
                complaints.push(complaint(key, reason));
            }
            Some(SocketWish {
                pod: pod_name(key),
                host,
                is_off: asked.map(|asked| asked == Some("off")),
            })
        });
        (wishes.collect(), complaints)
    }

    /// The owner of each address: a Pod that has it, or for which it is kept while the Pod is away or has another one.
    pub fn owners(&self) -> BTreeMap<IpAddr, String> {
        let entries = self.ledger.entries().iter();
        let owned = entries.filter(|(_, entry)| entry.state != State::Released);
        let owned = owned.flat_map(|(key, entry)| {
            let name = pod_name(key);
            entry.owned().map(move |address| (address, name.clone()))
        });
        owned.collect()
    }

    fn wish(&self, key: &Key, complaints: &mut Vec<Complaint>) -> Wish {
        match self.annotation(key, KEEP) {
            None => Wish::Unknown,
            Some(None) => Wish::Nodes,
            Some(Some("true")) => Wish::Pods(true),
            Some(Some("false")) => Wish::Pods(false),
            Some(Some(other)) => {
                let reason = format!(
                    "annotation {KEEP}: {other:?} is neither \"true\" nor \"false\"; the node's --translate counts"
                );
                complaints.push(complaint(key, reason));
                Wish::Nodes
            }
        }
    }

    /// The annotation of a Pod's object; `None` if there is no object.
    fn annotation(&self, key: &Key, name: &str) -> Option<Option<&str>> {
        let pod = self.pod(key)?;
        Some(pod.annotations.get(name).map(String::as_str))
    }

    fn pod(&self, key: &Key) -> Option<&LocalPod> {
        let name = NamespacedName::new(&*key.namespace, &*key.name);
        let pod = self.snapshot?.pods.get(&name)?;
        Some(pod)
    }
}

/// One interface as the guard takes it. The CNI plugin calls this for the interface that it makes; only the agent knows
/// `extra`.
pub fn guarded(key: &Key, entry: &Entry, translation: &Policy, extra: Extra) -> GuardedPod {
    let kept = kept_for(entry, translation);
    GuardedPod {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        interface: key.interface.clone(),
        mac: entry.mac.map(|mac| mac.0),
        addresses: entry.addresses.iter().copied().chain(kept).collect(),
        host: entry.host,
        extra,
    }
}

/// The addresses that were promised to an entry's Pod and can be given to no other.
fn kept_for<'a>(entry: &'a Entry, translation: &'a Policy) -> impl Iterator<Item = IpAddr> + 'a {
    let is_ours = entry.promised_by == Assigner::Ours;
    let promised = entry.promised.iter().copied();
    promised.filter(move |&address| is_ours || translation.is_exclusive(address))
}

/// A Pod as messages name it: `namespace/name`.
pub fn pod_name(key: &Key) -> String {
    format!("{}/{}", key.namespace, key.name)
}

fn complaint(key: &Key, reason: String) -> Complaint {
    Complaint {
        pod: pod_name(key),
        interface: key.interface.clone(),
        reason,
    }
}

#[cfg(test)]
mod tests;
