//! Which Pod gets which address, and when an address is free again.
//!
//! Pure: from the ledger, a request and the time to the records to write, and the answer. The rules:
//!
//! | | |
//! |---|---|
//! | ADD of a name that has addresses | the same ones, as far as its range sets still have them; the last sandbox asks, and is the owner |
//! | ADD where it gets others of a family | those that it had stay its own: promised to it, whatever it has meanwhile |
//! | ADD of another name | free addresses in turn; then what was released, the longest ago first; then what is retained, likewise |
//! | DEL by the owner | retained (of a container without a Pod: released) |
//! | DEL while the ADD is still at work on the interface | refused: to be asked again |
//! | DEL by anybody else | nothing |
//! | GC, a reboot | what no sandbox has any more, and none is just being given, is retained |
//! | TTL after that; the Pod object is gone | released: free, but its name still gets it by preference |
//!
//! Records that take an address away come before those that give it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::range::{Assigned, RangeSet};
use super::{Asker, Assigner, Entry, Key, Ledger, Now, Record, State};
use crate::device::{HostSide, Mac};
use crate::host::clock::Clock;

mod refusal;
#[cfg(test)]
mod tests;

pub use self::refusal::Refusal;

/// How long a list of Pods must be read after a sandbox went before it can show that its Pod is gone: a StatefulSet
/// makes a Pod again under the same name. Milliseconds.
const RECREATION: u64 = 60_000;
/// The age at which a list of Pods shows nothing any more. Milliseconds.
const FRESH: u64 = 60_000;
/// How long a container without a Pod is remembered after its DEL, for a late part of its ADD. It never comes back;
/// runtimes give up an ADD after minutes. Milliseconds.
const OVERTAKEN: u64 = 600_000;

/// An interface of a sandbox, as a runtime asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The interface.
    pub key: Key,
    /// UID of the Pod; empty if the runtime does not tell it.
    pub uid: String,
    /// The container.
    pub container: String,
    /// Name of the CNI network.
    pub network: String,
    /// The main plugin that makes the request for an ADD or DEL, if it is known.
    pub asker: Option<Asker>,
}

impl Attachment {
    /// The entry of this attachment. `known` is the entry that its name has so far.
    fn entry(
        &self,
        assigner: Assigner,
        addresses: Vec<IpAddr>,
        known: Option<&Entry>,
        now: Now,
    ) -> Entry {
        let (promised, promised_by) =
            known.map_or_else(Default::default, |known| promised(known, &addresses));
        Entry {
            promised,
            promised_by,
            addresses,
            mac: known.and_then(|known| known.mac),
            host: None,
            asker: self.asker,
            uid: self.uid.clone(),
            container: self.container.clone(),
            network: self.network.clone(),
            assigner,
            state: State::Active,
            since: now.since,
            at: now.at,
        }
    }

    /// The entry that this container owns. It is found by ID, whatever name it was added under.
    fn owned<'a>(&self, ledger: &'a Ledger) -> Option<(&'a Key, &'a Entry)> {
        ledger.entries().iter().find(|(key, entry)| {
            entry.container == self.container
                && key.interface == self.key.interface
                && entry.state == State::Active
        })
    }
}

/// Addresses that the Pod owned and no longer has once it has these, and the plugin that chose them: of a family that
/// changes, all promised ones, or else all that it had. A Pod whose addresses were released is promised nothing.
pub fn promised(known: &Entry, addresses: &[IpAddr]) -> (Vec<IpAddr>, Assigner) {
    let mut promised = Vec::new();
    let mut is_ours = true;
    if known.state == State::Released {
        return (promised, Assigner::Other);
    }
    for is_v4 in [true, false] {
        let of = |all: &[IpAddr]| -> Vec<IpAddr> {
            let all = all.iter().copied();
            all.filter(|address| address.is_ipv4() == is_v4).collect()
        };
        let (mut own, mut by) = (of(&known.promised), known.promised_by);
        if own.is_empty() {
            (own, by) = (of(&known.addresses), known.assigner);
        }
        // Only if all of them have gone is it clear which address replaces which.
        if !own.is_empty() && !own.iter().any(|address| addresses.contains(address)) {
            is_ours &= by == Assigner::Ours;
            promised.extend(own);
        }
    }
    match is_ours && !promised.is_empty() {
        true => (promised, Assigner::Ours),
        false => (promised, Assigner::Other),
    }
}

/// The changes of a request: the resulting ledger, and the records.
#[derive(Debug)]
pub struct Draft {
    ledger: Ledger,
    records: Vec<Record>,
    now: Now,
}

impl Draft {
    /// Begins a request. The effects of a reboot come first.
    pub fn new(ledger: &Ledger, clock: &Clock) -> Self {
        let mut draft = Self {
            ledger: ledger.clone(),
            records: Vec::new(),
            now: ledger.now(clock),
        };
        draft.take(wake(ledger, clock));
        draft
    }

    /// Applies records, so that the next step sees them.
    pub fn take(&mut self, records: Vec<Record>) {
        for record in records {
            self.ledger.apply(record.clone());
            self.records.push(record);
        }
    }

    /// The resulting ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The time of the request.
    pub fn now(&self) -> Now {
        self.now
    }

    /// All changes.
    pub fn into_records(self) -> Vec<Record> {
        self.records
    }
}

/// The records after a reboot: no sandbox has survived it.
pub(super) fn wake(ledger: &Ledger, clock: &Clock) -> Vec<Record> {
    if ledger.is_awake(clock) {
        return Vec::new();
    }
    let now = ledger.now(clock);
    let active = ledger.entries().iter();
    let active = active.filter(|(_, entry)| entry.state == State::Active);
    // Last, so that a process that is killed before begins anew.
    let boot = Record::Boot {
        id: clock.boot.clone(),
        up: clock.up,
        at: now.at,
    };
    active
        .map(|(key, entry)| left(key, entry, now))
        .chain([boot])
        .collect()
}

/// The record of a sandbox that is gone.
fn left(key: &Key, entry: &Entry, now: Now) -> Record {
    if key.is_pod() {
        becomes(key, entry, State::Retained, now)
    } else {
        Record::Remove(key.clone())
    }
}

fn becomes(key: &Key, entry: &Entry, state: State, now: Now) -> Record {
    Record::Put {
        key: key.clone(),
        entry: Entry {
            state,
            host: None,
            asker: None,
            since: now.since,
            at: now.at,
            ..entry.clone()
        },
    }
}

/// Releases what was retained longer than `ttl` (milliseconds of ledger time), and forgets it later.
pub fn expire(ledger: &Ledger, ttl: u64, now: Now) -> Vec<Record> {
    let is_due = |key: &Key, entry: &Entry| {
        let ttl = if key.is_pod() {
            ttl
        } else {
            ttl.min(OVERTAKEN)
        };
        now.at.saturating_sub(entry.at) >= ttl
    };
    let entries = ledger.entries().iter();
    let due = entries.filter(|(key, entry)| is_due(key, entry));
    due.filter_map(|(key, entry)| match entry.state {
        State::Active => None,
        State::Retained => Some(becomes(key, entry, State::Released, now)),
        State::Released => Some(Record::Remove(key.clone())),
    })
    .collect()
}

/// ADD of `yurt-ipam`: an address of each set, `requested` ones if there are any.
pub fn add(
    ledger: &Ledger,
    who: &Attachment,
    sets: &[RangeSet],
    requested: &[IpAddr],
    now: Now,
) -> Result<(Vec<Record>, Vec<Assigned>), Refusal> {
    let mine = ledger.get(&who.key);
    let others = Others::new(ledger, &who.key);
    let mut wanted = requested.to_vec();
    let (mut assigned, mut cursors) = (Vec::new(), Vec::new());
    for set in sets {
        let asked = wanted
            .iter()
            .position(|&address| set.assign(address).is_some())
            .map(|index| wanted.remove(index));
        let known = || {
            let own = mine.iter();
            own.flat_map(|entry| entry.owned())
                .filter(|&address| others.owner(address).is_none())
                .find(|&address| set.assign(address).is_some())
        };
        let address = match asked {
            Some(address) => others.vacant(address)?,
            None => match known() {
                Some(address) => address,
                None => {
                    let address = others.pick(set, ledger.cursor(set.name()))?;
                    cursors.push(Record::Cursor {
                        set: set.name(),
                        last: address,
                    });
                    address
                }
            },
        };
        // The address is from this set.
        assigned.extend(set.assign(address));
    }
    if let Some(&address) = wanted.first() {
        return Err(Refusal::NotInRange { address });
    }
    let addresses: Vec<IpAddr> = assigned
        .iter()
        .map(|assigned| assigned.address.ip())
        .collect();
    let mut records = others.lose(&addresses);
    records.push(Record::Put {
        key: who.key.clone(),
        entry: who.entry(Assigner::Ours, addresses, mine, now),
    });
    records.extend(cursors);
    Ok((records, assigned))
}

/// The addresses that all others own.
struct Others<'a>(BTreeMap<IpAddr, (&'a Key, &'a Entry)>);

impl<'a> Others<'a> {
    fn new(ledger: &'a Ledger, key: &Key) -> Self {
        let others = ledger.entries().iter().filter(|(other, _)| *other != key);
        let addresses = others.flat_map(|(key, entry)| {
            let owned = entry.owned();
            owned.map(move |address| (address, (key, entry)))
        });
        Self(addresses.collect())
    }

    /// The Pod that has an address, or is expected back with it.
    fn owner(&self, address: IpAddr) -> Option<(&'a Key, &'a Entry)> {
        let holder = self.0.get(&address).copied();
        holder.filter(|(_, entry)| entry.state != State::Released)
    }

    /// The records by which their owners lose these addresses, and keep the rest.
    fn lose(&self, addresses: &[IpAddr]) -> Vec<Record> {
        let losers: BTreeMap<&Key, &Entry> = addresses
            .iter()
            .filter_map(|address| self.0.get(address).copied())
            .collect();
        let records = losers.into_iter().map(|(key, entry)| {
            let mut left = entry.clone();
            let is_left = |address: &IpAddr| !addresses.contains(address);
            left.addresses.retain(is_left);
            left.promised.retain(is_left);
            let key = key.clone();
            if left.addresses.is_empty() {
                // The Pod is away, and comes back to the promised address.
                left.addresses = std::mem::take(&mut left.promised);
            }
            if left.addresses.is_empty() {
                Record::Remove(key)
            } else {
                Record::Put { key, entry: left }
            }
        });
        records.collect()
    }

    /// The address, unless it has an owner.
    fn vacant(&self, address: IpAddr) -> Result<IpAddr, Refusal> {
        match self.owner(address) {
            None => Ok(address),
            Some((owner, entry)) => Err(taken(address, owner, entry)),
        }
    }

    /// An address that no Pod has or had; otherwise the one that was given up first. Released addresses come first,
    /// then retained ones, and last those promised to Pods that run with another address, because these may still
    /// appear with them.
    fn pick(&self, set: &RangeSet, last: Option<IpAddr>) -> Result<IpAddr, Refusal> {
        if let Some(free) = set
            .after(last)
            .find(|address| !self.0.contains_key(address))
        {
            return Ok(free);
        }
        let in_set = self
            .0
            .iter()
            .filter(|(address, _)| set.assign(**address).is_some());
        let used = in_set.clone().count();
        in_set
            .filter(|(address, (_, entry))| !runs_with(entry, **address))
            .min_by_key(|(_, (key, entry))| {
                let order = match entry.state {
                    State::Released => 0,
                    State::Retained => 1,
                    State::Active => 2,
                };
                (order, entry.at, *key)
            })
            .map(|(address, _)| *address)
            .ok_or_else(|| Refusal::Exhausted {
                ranges: set.to_string(),
                used,
            })
    }
}

fn taken(address: IpAddr, owner: &Key, entry: &Entry) -> Refusal {
    Refusal::Taken {
        address,
        owner: owner.clone(),
        state: match runs_with(entry, address) {
            true => "running",
            false => "expected back",
        },
    }
}

/// Whether an entry's Pod runs with an address. An address that is only promised gives way to another IPAM's choice.
fn runs_with(entry: &Entry, address: IpAddr) -> bool {
    entry.state == State::Active && entry.addresses.contains(&address)
}

/// Whether a container may run with the addresses that its main plugin has given: no DEL has come for it, its Pod has
/// no newer sandbox, and no other Pod runs with one of them.
pub fn admit(ledger: &Ledger, who: &Attachment, addresses: &[IpAddr]) -> Result<(), Refusal> {
    is_not_deleted(ledger, who)?;
    is_not_superseded(ledger, who, addresses)?;
    let others = Others::new(ledger, &who.key);
    for &address in addresses {
        if let Some((owner, entry)) = others.owner(address)
            && runs_with(entry, address)
        {
            return Err(taken(address, owner, entry));
        }
    }
    Ok(())
}

/// Whether another Pod runs with this MAC.
pub fn has_mac(ledger: &Ledger, who: &Attachment, mac: Mac) -> bool {
    let mut others = ledger.entries().iter().filter(|(key, _)| **key != who.key);
    others.any(|(_, entry)| entry.state == State::Active && entry.mac == Some(mac))
}

/// A Pod's interface, as `yurt-cni` has left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its MAC.
    pub mac: Mac,
    /// The host's end.
    pub host: Option<HostSide>,
}

/// ADD of `yurt-cni`: records what the main plugin gave, whichever IPAM chose it. Another IPAM decides about its own
/// addresses, so retained ones give way. If `yurt-ipam` chose them, only the interface is added, because a previous
/// result may leave addresses out. If a DEL or the ADD of a newer sandbox has overtaken this one, its Pod must not run:
/// its addresses belong to that sandbox, are kept for the next one, or may be given to others.
pub fn observe(
    ledger: &Ledger,
    who: &Attachment,
    addresses: &[IpAddr],
    seen: Seen,
    now: Now,
) -> Result<Vec<Record>, Refusal> {
    admit(ledger, who, addresses)?;
    let entry = match ledger.get(&who.key) {
        Some(ours) if ours.assigner == Assigner::Ours && ours.state == State::Active => {
            if ours.container != who.container {
                return Ok(Vec::new());
            }
            return Ok(vec![Record::Put {
                key: who.key.clone(),
                entry: Entry {
                    mac: Some(seen.mac),
                    host: seen.host,
                    ..ours.clone()
                },
            }]);
        }
        // A result without addresses says nothing about those that are kept.
        Some(known) if addresses.is_empty() && !known.addresses.is_empty() => {
            return Ok(Vec::new());
        }
        known => Entry {
            mac: Some(seen.mac),
            host: seen.host,
            ..who.entry(Assigner::Other, addresses.to_vec(), known, now)
        },
    };
    let mut records = Others::new(ledger, &who.key).lose(addresses);
    records.push(Record::Put {
        key: who.key.clone(),
        entry,
    });
    Ok(records)
}

/// Fails for a container after its DEL.
fn is_not_deleted(ledger: &Ledger, who: &Attachment) -> Result<(), Refusal> {
    match ledger.get(&who.key) {
        Some(ours)
            if (ours.assigner, &*ours.container) == (Assigner::Ours, &*who.container)
                && ours.state != State::Active =>
        {
            Err(Refusal::Deleted {
                key: who.key.clone(),
                container: who.container.clone(),
            })
        }
        _ => Ok(()),
    }
}

/// Fails for a sandbox whose Pod runs with these addresses in another one. If they differ, another IPAM gives them now,
/// and the ledger was not told what became of the earlier container.
fn is_not_superseded(
    ledger: &Ledger,
    who: &Attachment,
    addresses: &[IpAddr],
) -> Result<(), Refusal> {
    match ledger.get(&who.key) {
        Some(ours)
            if (ours.assigner, ours.state) == (Assigner::Ours, State::Active)
                && ours.container != who.container
                && addresses.iter().any(|it| ours.addresses.contains(it)) =>
        {
            Err(Refusal::Superseded {
                key: who.key.clone(),
                successor: ours.container.clone(),
            })
        }
        _ => Ok(()),
    }
}

/// DEL, for addresses that this plugin chose. A runtime that has given up an ADD may call DEL while the main plugin is
/// still at work, which would then bring up the Pod with addresses that are free. And a DEL that began before the ADD
/// asked for addresses may have looked for an interface that did not exist yet: it is too early, and the next one finds
/// everything.
pub fn del(
    ledger: &Ledger,
    who: &Attachment,
    assigner: Assigner,
    is_at_work: impl Fn(Asker) -> bool,
    now: Now,
) -> Result<Vec<Record>, Refusal> {
    let owned = who.owned(ledger);
    let Some((key, entry)) = owned.filter(|(_, entry)| entry.assigner == assigner) else {
        return Ok(Vec::new());
    };
    let began_before = |asker: &Asker| {
        who.asker
            .is_some_and(|deleter| deleter.start <= asker.asked)
    };
    let overlaps = |asker: &Asker| is_at_work(*asker) || began_before(asker);
    if let Some(asker) = entry.asker.filter(overlaps) {
        return Err(Refusal::BeingAdded {
            key: key.clone(),
            container: entry.container.clone(),
            pid: asker.pid,
        });
    }
    let gone = match (key.is_pod(), assigner) {
        // A plugin that follows the main plugin in the list may still be at work.
        (false, Assigner::Ours) => becomes(key, entry, State::Released, now),
        _ => left(key, entry, now),
    };
    Ok(vec![gone])
}

/// GC: keeps only these attachments (container ID, interface) of the network, and those that are just being made.
pub fn gc(
    ledger: &Ledger,
    network: &str,
    valid: &BTreeSet<(String, String)>,
    is_at_work: impl Fn(Asker) -> bool,
    now: Now,
) -> Vec<Record> {
    let entries = ledger.entries().iter();
    let gone = entries.filter(|(key, entry)| {
        entry.state == State::Active
            && entry.network == network
            && !valid.contains(&(entry.container.clone(), key.interface.clone()))
            && !entry.asker.is_some_and(&is_at_work)
    });
    gone.map(|(key, entry)| becomes(key, entry, State::Retained, now))
        .collect()
}

/// CHECK of `yurt-ipam`: the container owns what the previous result says, except for other plugins' addresses.
pub fn check(ledger: &Ledger, who: &Attachment, claimed: &[IpAddr]) -> Result<(), Refusal> {
    is_not_deleted(ledger, who)?;
    let (key, entry) = who.owned(ledger).ok_or_else(|| Refusal::Unknown {
        key: who.key.clone(),
        container: who.container.clone(),
    })?;
    if entry
        .addresses
        .iter()
        .all(|address| claimed.contains(address))
    {
        return Ok(());
    }
    Err(Refusal::Differs {
        key: key.clone(),
        recorded: entry.addresses.clone(),
        claimed: claimed.to_vec(),
    })
}

/// A list of this node's Pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodList {
    /// Namespaces and names.
    pub pods: BTreeSet<(String, String)>,
    /// Whether an apiserver or a kubelet has sent it, rather than a cache that may be out of date.
    pub is_live: bool,
    /// When it was read, in ledger time.
    pub read_at: u64,
}

/// Releases what is retained for Pods whose objects are gone. A list that is not live, or not fresh, releases nothing.
pub fn release(ledger: &Ledger, list: &PodList, now: Now) -> Vec<Record> {
    if !list.is_live || now.at.saturating_sub(list.read_at) > FRESH {
        return Vec::new();
    }
    let is_gone = |key: &Key, entry: &Entry| {
        let name = (key.namespace.clone(), key.name.clone());
        key.is_pod() && !list.pods.contains(&name) && list.read_at >= entry.at + RECREATION
    };
    let entries = ledger.entries().iter();
    let retained = entries.filter(|(_, entry)| entry.state == State::Retained);
    retained
        .filter(|(key, entry)| is_gone(key, entry))
        .map(|(key, entry)| becomes(key, entry, State::Released, now))
        .collect()
}
