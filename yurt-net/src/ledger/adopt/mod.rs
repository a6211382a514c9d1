//! What another IPAM plugin has left for a network: taken over once, before the first address is given. Pure.
//!
//! | file in `<dir>/<network>/` | contents | whose |
//! |---|---|---|
//! | `10.1.0.7` | container ID, and its interface on a second line | host-local |
//! | `10.1.0.7_shop_web-0` | nothing | OpenYurt's patch of it: which Pod has or had the address |
//!
//! host-local knows no names. Without OpenYurt's file a container's address is reserved until its DEL, and not
//! retained.
//!
//! Files outlive containers: after a lost DEL, a power cut, or the deletion of a runtime's state. A container is gone
//! if no network namespace has its addresses and no process names it ([`Living`]). The addresses of its Pod are then
//! retained; those of a container without a Pod are released.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Assigner, Entry, Key, Ledger, Now, Record, State};

#[cfg(test)]
mod tests;
mod words;

pub use self::words::Words;

/// A file: its name and its contents.
pub type Leftover = (String, String);

/// The interface of a container, if host-local (before 0.8.5) did not record it.
const INTERFACE: &str = "eth0";

/// The signs of life of containers on this machine, looked for after the files were read. Either kind is proof: a Pod
/// may remove its addresses from its interface, and a runtime need not have a process for each sandbox.
#[derive(Debug, Default)]
pub struct Living {
    /// Addresses that network namespaces have.
    pub addresses: BTreeSet<IpAddr>,
    /// Containers that a process names in its arguments, environment or cgroup: a process of the container, its shim,
    /// or a plugin that is still at work for it.
    pub named: BTreeSet<String>,
}

/// The IDs of the containers that the files name.
pub fn container_ids(files: &[Leftover]) -> BTreeSet<String> {
    let containers = containers(files).into_values();
    containers.map(|(id, _)| id.to_owned()).collect()
}

/// The records that take the files over, as far as the ledger does not know better; empty if that was done before.
/// Without `living`, every container counts as one that lives.
pub fn adopt(
    ledger: &Ledger,
    network: &str,
    files: &[Leftover],
    living: Option<&Living>,
    now: Now,
) -> Vec<Record> {
    if ledger.has_adopted(network) {
        return Vec::new();
    }
    let mut known: BTreeSet<IpAddr> = ledger.entries().values().flat_map(Entry::owned).collect();
    let containers = containers(files);
    let alive = alive(&containers, living);
    let mut entries: BTreeMap<Key, Entry> = BTreeMap::new();
    let blank = |container: &str, otherwise: State| Entry {
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
        state: if alive.contains(container) {
            State::Active
        } else {
            otherwise
        },
        since: now.since,
        at: now.at,
    };
    // Of two addresses of a Pod, that of a living container comes first, then that of any container: only the first
    // address is certain.
    let mut pods = pods(files);
    pods.sort_by_key(|(address, _)| match containers.get(address) {
        Some((container, _)) => u8::from(!alive.contains(container)),
        None => 2,
    });
    for (address, (namespace, name)) in pods {
        let (container, interface) = containers.get(&address).copied().unwrap_or(("", INTERFACE));
        let key = Key {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            interface: interface.to_owned(),
        };
        // The Pod is known with other addresses. Of this one only the container, if it has one, is believed.
        if ledger.get(&key).is_some() {
            continue;
        }
        let entry = entries
            .entry(key)
            .or_insert_with(|| blank(container, State::Retained));
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
            let entry = entry
                .or_insert_with(|| recorded.unwrap_or_else(|| blank(container, State::Released)));
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

/// The containers that live.
fn alive<'a>(
    containers: &BTreeMap<IpAddr, (&'a str, &str)>,
    living: Option<&Living>,
) -> BTreeSet<&'a str> {
    let all = containers.values().map(|(container, _)| *container);
    let Some(Living { addresses, named }) = living else {
        return all.collect();
    };
    let has_address = |address: &IpAddr| addresses.contains(address);
    let here = containers
        .iter()
        .filter(|(address, _)| has_address(address));
    let here: BTreeSet<&str> = here.map(|(_, (container, _))| *container).collect();
    all.filter(|&container| here.contains(container) || named.contains(container))
        .collect()
}

/// Addresses that containers have, with the container and its interface.
fn containers(files: &[Leftover]) -> BTreeMap<IpAddr, (&str, &str)> {
    let found = files.iter().filter_map(|(name, contents)| {
        let mut lines = contents.lines().map(str::trim);
        // A power cut leaves files of zeros. What they reserve is free, because no container has outlived the power
        // cut.
        let container = lines.next().filter(|line| is_id(line))?;
        let interface = lines.next().filter(|line| is_id(line));
        Some((
            name.parse().ok()?,
            (container, interface.unwrap_or(INTERFACE)),
        ))
    });
    found.collect()
}

/// Whether a runtime may have written this: IDs and interfaces are printable words.
fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Addresses that Pods have or had, with namespace and name. Neither can contain an underscore.
fn pods(files: &[Leftover]) -> Vec<(IpAddr, (&str, &str))> {
    let found = files.iter().filter_map(|(file, _)| {
        let (address, pod) = file.split_once('_')?;
        let (namespace, name) = pod.split_once('_')?;
        Some((address.parse().ok()?, (namespace, name)))
    });
    found.collect()
}
