//! Which Pod has or had which addresses on this node: the state, and the records that change it.
//!
//! Pure. A `Ledger` is the result of its records, in their order; `codec` turns records into lines. `rules` decides
//! which records to write, from the addresses of `range`, and `adopt` which ones take over the files of another plugin;
//! both are pure, too. `store` keeps the lines on a disk and in memory, `watch` follows them in the agent.
//! docs/retention.md is for operators. After every record, even if a writer is killed in the middle of several:
//!
//! - no address has two owners (entries that are active or retained);
//! - what an entry says of its state was true when it was written.
//!
//! **Time.** TTLs count by the ledger's own clock, in milliseconds. It is the clock of this boot (`CLOCK_BOOTTIME`),
//! and a new boot continues from the time of the last record. The wall clock may jump (boards without a battery boot in
//! 1970), so it is only shown to people. So the time in which the node was off does not count, and no address is ever
//! released too early.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::device::{HostSide, Mac};
use crate::host::clock::Clock;

pub mod adopt;
mod codec;
#[cfg(test)]
mod proptests;
pub mod range;
pub mod rules;
pub mod store;
#[cfg(test)]
pub(crate) mod tests;
pub mod watch;

/// The owner of addresses: an interface of a Pod, or of a container outside Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// Namespace of the Pod; empty if the runtime named no Pod.
    pub namespace: String,
    /// Name of the Pod, or the container ID.
    pub name: String,
    /// The interface's name in the Pod, such as `eth0`.
    pub interface: String,
}

impl Key {
    /// Whether the owner can come back under this name. A container ID is used only once.
    pub fn is_pod(&self) -> bool {
        !self.namespace.is_empty()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            name,
            interface,
        } = self;
        if self.is_pod() {
            write!(f, "Pod {namespace}/{name} ({interface})")
        } else {
            write!(f, "container {name} ({interface})")
        }
    }
}

/// The state of an entry's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A sandbox has them.
    Active,
    /// The sandbox is gone; they are kept for the next one with the same name.
    Retained,
    /// Any Pod may get them. Until one does, they are given to the same name by preference.
    Released,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Retained => "retained",
            Self::Released => "released",
        })
    }
}

/// The plugin that chose the addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assigner {
    /// `yurt-ipam`, which also decides when they are free.
    Ours,
    /// Another IPAM plugin; `yurt-cni` wrote down what it saw.
    #[default]
    Other,
}

impl Assigner {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_other(&self) -> bool {
        *self == Self::Other
    }
}

/// A main plugin, as a process of this boot. Times are the kernel's ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Asker {
    /// Its process ID, as seen by the plugin that recorded it.
    pub pid: u32,
    /// When it was started. Another process may get the same ID later.
    pub start: u64,
    /// When it asked.
    pub asked: u64,
}

/// The addresses of an owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The addresses that it has: one of each range set, in their order.
    pub addresses: Vec<IpAddr>,
    /// The addresses that it had before its network gave it others. It may still appear with them (`translate`), and
    /// nobody else owns them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub promised: Vec<IpAddr>,
    /// The plugin that chose the promised addresses; [`Assigner::Other`] if another IPAM chose any of them.
    #[serde(default, skip_serializing_if = "Assigner::is_other")]
    pub promised_by: Assigner,
    /// The MAC of the interface, if `yurt-cni` has seen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The host's end of the interface, if it is known and the entry is active. Indices are of this boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostSide>,
    /// The main plugin that asked for the addresses, if it is known. While it runs, it is at work on the interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asker: Option<Asker>,
    /// UID of the Pod, if the runtime told it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// ID of the container (the Pod's sandbox) that has them, or had them last.
    pub container: String,
    /// Name of the CNI network.
    pub network: String,
    /// The plugin that chose the addresses.
    pub assigner: Assigner,
    /// Whether a sandbox has them.
    pub state: State,
    /// The Unix time of the last change of state, by the wall clock of that moment; only shown to people.
    pub since: u64,
    /// The same in ledger time (milliseconds), for TTLs and for precedence.
    pub at: u64,
}

/// Whether two readings say the same. An entry that a reboot has ended gets the wall clock's time at each reading,
/// which is ignored.
pub fn is_same(one: &BTreeMap<Key, Entry>, other: &BTreeMap<Key, Entry>) -> bool {
    let undated = |entry: &Entry| Entry {
        since: 0,
        ..entry.clone()
    };
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|((key, entry), (other_key, other))| {
                key == other_key && (entry == other || undated(entry) == undated(other))
            })
}

impl Entry {
    /// All addresses that it owns.
    pub fn owned(&self) -> impl Iterator<Item = IpAddr> + Clone {
        self.addresses.iter().chain(&self.promised).copied()
    }
}

/// A moment, by the ledger's clock and by the wall's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Ledger time, milliseconds.
    pub at: u64,
    /// Unix seconds.
    pub since: u64,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// An entry is as it says here.
    Put {
        /// The owner.
        key: Key,
        /// Its entry.
        entry: Entry,
    },
    /// An entry is forgotten.
    Remove(Key),
    /// The range set that begins at `set` goes on after `last`.
    Cursor {
        /// First address of the set.
        set: IpAddr,
        /// The last address that was newly given out.
        last: IpAddr,
    },
    /// The machine has booted, and nothing that ran before runs any more. After `up` milliseconds of this boot, ledger
    /// time was `at`.
    Boot {
        /// Which boot.
        id: String,
        /// Milliseconds of it.
        up: u64,
        /// Ledger time then.
        at: u64,
    },
    /// The files that another IPAM plugin has left for this network are taken over.
    Adopted(String),
}

/// The result of the records.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<Key, Entry>,
    cursors: BTreeMap<IpAddr, IpAddr>,
    adopted: BTreeSet<String>,
    boot: Option<(String, u64)>,
    /// Ledger time, at so many milliseconds of `boot`.
    booted_at: u64,
    /// The latest time of any record.
    latest: u64,
}

impl Ledger {
    /// Takes up one change.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Put { key, entry } => {
                self.latest = self.latest.max(entry.at);
                self.entries.insert(key, entry);
            }
            Record::Remove(key) => {
                self.entries.remove(&key);
            }
            Record::Cursor { set, last } => {
                self.cursors.insert(set, last);
            }
            Record::Boot { id, up, at } => {
                self.latest = self.latest.max(at);
                self.booted_at = at;
                self.boot = Some((id, up));
            }
            Record::Adopted(network) => {
                self.adopted.insert(network);
            }
        }
    }

    /// The addresses of Pods, also of those that are to come back.
    pub fn addresses_of_pods(&self) -> impl Iterator<Item = IpAddr> {
        let pods = self.entries.iter().filter(|(key, _)| key.is_pod());
        pods.flat_map(|(_, entry)| entry.addresses.iter().copied())
    }

    /// Takes these addresses from all owners except `key`.
    fn dispossess(&mut self, key: &Key, addresses: &[IpAddr]) {
        let has_any = |entry: &Entry| entry.addresses.iter().any(|a| addresses.contains(a));
        self.entries
            .retain(|other, entry| other == key || !has_any(entry));
        let others = self.entries.iter_mut().filter(|(other, _)| *other != key);
        for (_, entry) in others {
            entry.promised.retain(|a| !addresses.contains(a));
        }
    }

    /// The fewest records with the same result.
    pub fn records(&self) -> Vec<Record> {
        let boot = self.boot.iter().map(|(id, up)| Record::Boot {
            id: id.clone(),
            // Later than when it was written, so that time continues from the latest record.
            up: up + (self.latest - self.booted_at),
            at: self.latest,
        });
        let cursors = self.cursors.iter();
        let cursors = cursors.map(|(&set, &last)| Record::Cursor { set, last });
        let adopted = self.adopted.iter().cloned().map(Record::Adopted);
        let entries = self.entries.iter().map(|(key, entry)| Record::Put {
            key: key.clone(),
            entry: entry.clone(),
        });
        boot.chain(cursors).chain(adopted).chain(entries).collect()
    }

    /// All entries.
    pub fn entries(&self) -> &BTreeMap<Key, Entry> {
        &self.entries
    }

    /// The entry of this key.
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Where the range set that begins at `set` goes on.
    pub fn cursor(&self, set: IpAddr) -> Option<IpAddr> {
        self.cursors.get(&set).copied()
    }

    /// Whether this network has been taken over already.
    pub fn has_adopted(&self, network: &str) -> bool {
        self.adopted.contains(network)
    }

    /// Whether it has a record of the boot that the clock is in.
    fn is_awake(&self, clock: &Clock) -> bool {
        self.boot.as_ref().is_some_and(|(id, _)| *id == clock.boot)
    }

    /// The present in ledger time. Before the first record of a boot, it stands where the last boot has left it.
    pub fn now(&self, clock: &Clock) -> Now {
        let at = match &self.boot {
            Some((id, up)) if *id == clock.boot => {
                self.booted_at.saturating_add(clock.up.saturating_sub(*up))
            }
            Some(_) | None => self.latest,
        };
        Now {
            at: at.max(self.latest),
            since: clock.wall,
        }
    }

    /// Whether a power cut must not lose this change. That applies to the addresses that a name will be given again.
    /// Which sandbox has an address, and which addresses are free again, does not matter after a reboot.
    fn must_survive(&self, record: &Record) -> bool {
        match record {
            Record::Put { key, entry } => self.get(key).is_none_or(|known| {
                let is_back = known.state == State::Released && entry.state != State::Released;
                let is_other = known.addresses != entry.addresses
                    || known.promised != entry.promised
                    || known.mac != entry.mac;
                is_other || is_back
            }),
            Record::Adopted(_) => true,
            Record::Remove(_) | Record::Cursor { .. } | Record::Boot { .. } => false,
        }
    }
}
