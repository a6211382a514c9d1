//! What another IPAM plugin has left for a network: taken over once, before the first address is given. Pure.
//!
//! | file in `<dir>/<network>/` | contents | whose |
//! |---|---|---|
//! | `10.1.0.7` | container ID, and its interface on a second line | host-local |
//! | `10.1.0.7_shop_web-0` | nothing | OpenYurt's patch of it: which Pod has or had the address |
//!
//! host-local knows no names. Without OpenYurt's file a container's address is reserved until its DEL, and not retained.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::ledger::{Assigner, Entry, Key, Ledger, Now, Record, State};

#[cfg(test)]
mod tests;

/// A file: its name and its contents.
pub type Leftover = (String, String);

/// The interface of a container, where host-local (before 0.8.5) did not write it down.
const INTERFACE: &str = "eth0";

/// The records that say what the files say, as far as the ledger does not know better; none when it has been done before.
pub fn adopt(ledger: &Ledger, network: &str, files: &[Leftover], now: Now) -> Vec<Record> {
    if ledger.has_adopted(network) {
        return Vec::new();
    }
    let mut known: BTreeSet<IpAddr> = ledger.entries().values().flat_map(Entry::owned).collect();
    let containers = containers(files);
    let mut entries: BTreeMap<Key, Entry> = BTreeMap::new();
    let blank = |container: &str| Entry {
        addresses: Vec::new(),
        promised: Vec::new(),
        promised_by: Assigner::Other,
        mac: None,
        host: None,
        asker: None,
        uid: String::new(),
        container: container.to_owned(),
        network: network.to_owned(),
        assigner: Assigner::Ours,
        state: if container.is_empty() {
            State::Retained
        } else {
            State::Active
        },
        since: now.since,
        at: now.at,
    };
    // Those that a container has come first: of two addresses of a Pod, only they are certain.
    let mut pods = pods(files);
    pods.sort_by_key(|(address, _)| !containers.contains_key(address));
    for (address, (namespace, name)) in pods {
        let (container, interface) = containers.get(&address).copied().unwrap_or(("", INTERFACE));
        let key = Key {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            interface: interface.to_owned(),
        };
        // Known with other addresses. Of this one only its container, if there is one, is believed.
        if ledger.get(&key).is_some() {
            continue;
        }
        let entry = entries.entry(key).or_insert_with(|| blank(container));
        let has_family = (entry.addresses.iter()).any(|known| known.is_ipv4() == address.is_ipv4());
        if !has_family && entry.container == container && known.insert(address) {
            entry.addresses.push(address);
        }
    }
    for (&address, &(container, interface)) in &containers {
        let key = Key {
            namespace: String::new(),
            name: container.to_owned(),
            interface: interface.to_owned(),
        };
        if known.insert(address) {
            let recorded = ledger.get(&key).cloned();
            let entry = entries.entry(key);
            let entry = entry.or_insert_with(|| recorded.unwrap_or_else(|| blank(container)));
            entry.addresses.push(address);
        }
    }
    entries
        .into_iter()
        .filter(|(_, entry)| !entry.addresses.is_empty())
        .map(|(key, entry)| Record::Put { key, entry })
        .chain([Record::Adopted(network.to_owned())])
        .collect()
}

/// Addresses that containers have, with the container and its interface.
fn containers(files: &[Leftover]) -> BTreeMap<IpAddr, (&str, &str)> {
    let found = files.iter().filter_map(|(name, contents)| {
        let mut lines = contents.lines().map(str::trim);
        // A power cut leaves files of zeros: nobody has what they reserve, since nobody has lived through it.
        let container = lines.next().filter(|line| is_id(line))?;
        let interface = lines.next().filter(|line| is_id(line));
        Some((
            name.parse().ok()?,
            (container, interface.unwrap_or(INTERFACE)),
        ))
    });
    found.collect()
}

/// Whether a runtime may have written it: IDs and interfaces are printable words.
fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Addresses that Pods have or had, with namespace and name, which hold no underscore.
fn pods(files: &[Leftover]) -> Vec<(IpAddr, (&str, &str))> {
    let found = files.iter().filter_map(|(file, _)| {
        let (address, pod) = file.split_once('_')?;
        let (namespace, name) = pod.split_once('_')?;
        Some((address.parse().ok()?, (namespace, name)))
    });
    found.collect()
}
