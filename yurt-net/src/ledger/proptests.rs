//! The ledger, its journals and the rules of `plan` together, against a model of who really has what.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, Read};
use std::net::IpAddr;
use std::path::PathBuf;

use proptest::prelude::*;

use super::range::RangeSet;
use super::rules::{self, Attachment, Draft, PodList};
use super::store::Store;
use super::{Asker, Assigner, Entry, Key, Ledger, State};
use crate::host::clock::Clock;
use crate::host::disk::Disk;
use crate::host::disk::memory::{Memory, MemoryFile, Trouble};

/// Milliseconds.
const TTL: u64 = 1_000_000;

/// A directory on the disk that both journals are on, so that a process can be killed between any two steps.
struct Part {
    disk: Memory,
    directory: &'static str,
    is_read_only: bool,
}

impl Part {
    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    fn change(&mut self) -> io::Result<&mut Memory> {
        if self.is_read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(&mut self.disk)
    }
}

impl Disk for Part {
    type File = MemoryFile;

    fn path(&self, name: &str) -> PathBuf {
        self.disk.path(&self.name(name))
    }

    fn read(&self, name: &str) -> io::Result<impl Read> {
        let bytes = self.disk.get(&self.name(name));
        Ok(Cursor::new(bytes.ok_or(io::ErrorKind::NotFound)?))
    }

    fn create(&mut self, name: &str) -> io::Result<MemoryFile> {
        let name = self.name(name);
        self.change()?.create(&name)
    }

    fn append(&mut self, name: &str, end: u64) -> io::Result<Option<MemoryFile>> {
        let name = self.name(name);
        self.change()?.append(&name, end)
    }

    fn sync_file(&mut self, file: &MemoryFile) -> io::Result<()> {
        self.change()?.sync_file(file)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let [from, to] = [from, to].map(|name| self.name(name));
        self.change()?.rename(&from, &to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let name = self.name(name);
        self.change()?.remove(&name)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.change()?.sync()
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    /// The runtime makes a sandbox for this Pod.
    Add(u8),
    /// The main plugin of the n-th sandbox is done with it; until then it is at work.
    Done(usize),
    /// It takes the n-th of those that it has made away: an old one, or one whose ADD failed, as well.
    Del(usize),
    /// It says which sandboxes there are.
    Gc,
    /// Time passes.
    Wait(u64),
    /// The wall clock is set.
    Jump(u64),
    /// The n-th step of the next request fails, or is where the plugin is killed.
    Trouble(usize, Trouble),
    /// The state directory is read-only from now on, or is not.
    ReadOnly(bool),
    /// Power cut: what was not synced may be lost, and nothing lives.
    Reboot(usize),
    /// The configuration changes.
    Ranges(usize),
    /// Only these Pods exist.
    Pods(BTreeSet<u8>),
}

fn event() -> impl Strategy<Value = Event> {
    let trouble = prop_oneof![Just(Trouble::Fails), Just(Trouble::Crashes)];
    prop_oneof![
        12 => (0u8..12).prop_map(Event::Add),
        10 => (0usize..100).prop_map(Event::Done),
        8 => (0usize..100).prop_map(Event::Del),
        1 => Just(Event::Gc),
        2 => (0u64..TTL / 2).prop_map(Event::Wait),
        1 => any::<u32>().prop_map(|to| Event::Jump(to.into())),
        4 => (1usize..12, trouble).prop_map(|(step, trouble)| Event::Trouble(step, trouble)),
        1 => any::<bool>().prop_map(Event::ReadOnly),
        2 => any::<usize>().prop_map(Event::Reboot),
        2 => (0usize..3).prop_map(Event::Ranges),
        1 => prop::collection::btree_set(0u8..12, 0..12).prop_map(Event::Pods),
    ]
}

/// The main plugin of the n-th sandbox.
fn asker(number: usize) -> Asker {
    Asker {
        pid: u32::try_from(number).unwrap(),
        start: 1,
        asked: 1,
    }
}

/// Eight IPv4 addresses for twelve Pods, and IPv6 for all of them.
fn ranges(index: usize) -> Vec<RangeSet> {
    let text = [
        r#"[[{"subnet":"10.1.0.0/24","rangeEnd":"10.1.0.9"}],[{"subnet":"fd00:1::/64"}]]"#,
        r#"[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.6","rangeEnd":"10.1.0.13"}]]"#,
        r#"[[{"subnet":"10.2.0.0/24","rangeEnd":"10.2.0.5"},{"subnet":"10.3.0.0/24","rangeEnd":"10.3.0.5"}]]"#,
    ];
    RangeSet::all(&serde_json::from_str::<Vec<Vec<_>>>(text[index]).unwrap()).unwrap()
}

/// A sandbox that an ADD was called for.
#[derive(Clone, Debug)]
struct Sandbox {
    who: Attachment,
    /// What its ADD has answered, while it runs.
    addresses: Vec<IpAddr>,
    /// Its main plugin has not ended.
    is_being_made: bool,
}

struct World {
    disk: Memory,
    /// What the next process reads.
    ledger: Ledger,
    clock: Clock,
    is_read_only: bool,
    ranges: usize,
    sandboxes: Vec<Sandbox>,
    made: usize,
    /// What a Pod must get again within the TTL, unless it was given to another by then.
    expected: BTreeMap<Key, Vec<IpAddr>>,
    /// When it was last seen with them, by a clock that counts what time a node is up.
    seen: BTreeMap<Key, u64>,
    time: u64,
    /// Of these Pods, the addresses may not have reached the medium: there was an alarm.
    uncertain: BTreeSet<Key>,
}

impl World {
    fn new() -> Self {
        Self {
            disk: Memory::default(),
            ledger: Ledger::default(),
            clock: Clock {
                boot: "0".to_owned(),
                up: 30_000,
                wall: 1_800_000_000,
            },
            is_read_only: false,
            ranges: 0,
            sandboxes: Vec::new(),
            made: 0,
            expected: BTreeMap::new(),
            seen: BTreeMap::new(),
            time: 0,
            uncertain: BTreeSet::new(),
        }
    }

    fn store(&self) -> Store<Part> {
        let part = |directory, is_read_only| Part {
            disk: self.disk.clone(),
            directory,
            is_read_only,
        };
        Store::on(part("disk", self.is_read_only), part("run", false)).unwrap()
    }

    /// As a plugin does it: `None` when it could not be written down. Whether there was an alarm, besides.
    fn request<T>(&mut self, step: impl FnOnce(&mut Draft) -> T) -> (Option<T>, bool) {
        let mut store = self.store();
        let mut draft = Draft::new(store.ledger(), &self.clock);
        draft.take(rules::expire(draft.ledger(), TTL, draft.now()));
        let answer = step(&mut draft);
        let result = store.commit(draft.into_records());
        let has_alarm = !store.alarms().is_empty();
        if self.disk.is_off() {
            self.disk = self.disk.after_kill();
            self.ledger = self.store().ledger().clone();
            // Whatever it did, nobody was told.
            return (None, true);
        }
        self.ledger = match &result {
            Ok(()) => store.ledger().clone(),
            Err(_) => self.store().ledger().clone(),
        };
        (result.is_ok().then_some(answer), has_alarm)
    }

    fn add(&mut self, pod: u8) {
        self.made += 1;
        let key = super::tests::key(&format!("web-{pod}"));
        let who = Attachment {
            key: key.clone(),
            uid: String::new(),
            container: format!("c{}", self.made),
            network: "edge".to_owned(),
            asker: Some(asker(self.made)),
        };
        let sets = ranges(self.ranges);
        let mut before = Draft::new(&self.ledger, &self.clock);
        before.take(rules::expire(before.ledger(), TTL, before.now()));
        let before = before.ledger().clone();
        // The runtime has stopped what it replaces, even if its DEL is still to come.
        for sandbox in &mut self.sandboxes {
            if sandbox.who.key == key {
                sandbox.addresses.clear();
            }
        }
        let is_in_trouble = self.disk.expects_trouble();
        let (answer, has_alarm) = self.request(|draft| {
            rules::add(draft.ledger(), &who, &sets, &[], draft.now()).map(|(records, assigned)| {
                draft.take(records);
                assigned
            })
        });
        let mut sandbox = Sandbox {
            who,
            addresses: Vec::new(),
            is_being_made: true,
        };
        match answer {
            None => {
                // A disk that cannot be written is no reason: memory can.
                assert!(is_in_trouble, "{pod}");
                // It may have taken an address from somebody before it was killed.
                for (other, addresses) in &mut self.expected {
                    let kept = self.ledger.get(other).map(|entry| &entry.addresses);
                    addresses.retain(|address| kept.is_some_and(|kept| kept.contains(address)));
                }
            }
            Some(Err(refusal)) => {
                // Only when all have an owner that runs, or may: its DEL has not been seen.
                for entry in self.ledger.entries().values() {
                    let mut addresses = entry.addresses.iter();
                    if addresses.any(|&address| sets[0].assign(address).is_some()) {
                        assert_eq!(entry.state, State::Active, "{refusal}");
                    }
                }
            }
            Some(Ok(assigned)) => {
                let addresses: Vec<_> = assigned.iter().map(|a| a.address.ip()).collect();
                let expected = self.expected.get(&key).into_iter().flatten();
                for old in expected.filter(|&&old| sets.iter().any(|set| set.assign(old).is_some()))
                {
                    assert!(
                        addresses.contains(old),
                        "{key} had {old}, gets {addresses:?}"
                    );
                }
                self.check_promises(before.get(&key), &key);
                for (other, entry) in before.entries().iter().filter(|(other, _)| **other != key) {
                    for address in entry.owned().filter(|a| addresses.contains(a)) {
                        let runs = entry.state == State::Active;
                        let has = entry.addresses.contains(&address);
                        assert!(!(runs && has), "{address} of {other}");
                        let set = sets
                            .iter()
                            .find(|set| set.assign(address).is_some())
                            .unwrap();
                        let is_held = |free: IpAddr| {
                            before
                                .entries()
                                .values()
                                .any(|entry| entry.owned().any(|owned| owned == free))
                        };
                        assert!(
                            set.after(None).all(is_held),
                            "{address} was {other}'s, and others are free"
                        );
                    }
                }
                if has_alarm {
                    self.uncertain.insert(key.clone());
                } else if self.expected.get(&key) != Some(&addresses) {
                    self.uncertain.remove(&key);
                }
                for others in self.expected.values_mut() {
                    others.retain(|address| !addresses.contains(address));
                }
                self.seen.insert(key.clone(), self.time);
                self.expected.insert(key, addresses.clone());
                sandbox.addresses = addresses;
            }
        }
        self.sandboxes.push(sandbox);
    }

    /// The main plugins that have not ended.
    fn at_work(&self) -> BTreeSet<Asker> {
        let making = self
            .sandboxes
            .iter()
            .filter(|sandbox| sandbox.is_being_made);
        making.filter_map(|sandbox| sandbox.who.asker).collect()
    }

    fn done(&mut self, index: usize) {
        if !self.sandboxes.is_empty() {
            let index = index % self.sandboxes.len();
            self.sandboxes[index].is_being_made = false;
        }
    }

    fn del(&mut self, index: usize) {
        if self.sandboxes.is_empty() {
            return;
        }
        let index = index % self.sandboxes.len();
        let mut who = self.sandboxes[index].who.clone();
        who.asker = None;
        let at_work = self.at_work();
        let (answer, _) = self.request(|draft| {
            let is_at_work = |process| at_work.contains(&process);
            let ledger = draft.ledger();
            let records = rules::del(ledger, &who, Assigner::Ours, is_at_work, draft.now());
            records.map(|records| draft.take(records)).is_ok()
        });
        if answer == Some(false) {
            // It goes on, and the Pod with it, until the runtime comes again.
            assert!(self.sandboxes[index].is_being_made);
            return;
        }
        self.sandboxes[index].addresses.clear();
        // Until it succeeds, the runtime tries again.
        if answer.is_some() {
            self.sandboxes.remove(index);
        }
    }

    fn happen(&mut self, event: Event) {
        for sandbox in self
            .sandboxes
            .iter()
            .filter(|sandbox| !sandbox.addresses.is_empty())
        {
            self.seen.insert(sandbox.who.key.clone(), self.time);
        }
        let (seen, time) = (&self.seen, self.time);
        self.expected
            .retain(|key, _| seen.get(key).is_none_or(|seen| time - seen < TTL));
        match event {
            Event::Add(pod) => self.add(pod),
            Event::Done(index) => self.done(index),
            Event::Del(index) => self.del(index),
            Event::Gc => {
                let at_work = self.at_work();
                // A runtime may list only those that it has made.
                let valid = self
                    .sandboxes
                    .iter()
                    .filter(|sandbox| !sandbox.is_being_made);
                let valid = valid
                    .map(|sandbox| (sandbox.who.container.clone(), "eth0".to_owned()))
                    .collect();
                self.request(|draft| {
                    let is_at_work = |process| at_work.contains(&process);
                    let ledger = draft.ledger();
                    draft.take(rules::gc(ledger, "edge", &valid, is_at_work, draft.now()));
                });
            }
            Event::Wait(millis) => {
                self.clock.up += millis;
                self.time += millis;
                self.clock.wall = self.clock.wall.saturating_add(millis / 1000);
            }
            Event::Jump(to) => self.clock.wall = to,
            Event::Trouble(step, trouble) => self.disk.expect(step, trouble),
            Event::ReadOnly(is_read_only) => self.is_read_only = is_read_only,
            Event::Reboot(luck) => {
                self.disk = self.disk.after_power_cut(luck);
                for name in ["run/ledger", "run/ledger.new"] {
                    let _ = self.disk.clone().remove(name);
                }
                self.ledger = self.store().ledger().clone();
                self.made += 1;
                self.clock.boot = self.made.to_string();
                self.clock.up = 5000;
                self.sandboxes.clear();
                for key in std::mem::take(&mut self.uncertain) {
                    self.expected.remove(&key);
                }
            }
            Event::Ranges(index) => self.ranges = index,
            Event::Pods(pods) => {
                let names = pods
                    .iter()
                    .map(|pod| ("shop".to_owned(), format!("web-{pod}")));
                let pods: BTreeSet<_> = names.collect();
                self.request(|draft| {
                    let list = PodList {
                        pods,
                        is_live: true,
                        read_at: draft.now().at,
                    };
                    draft.take(rules::release(draft.ledger(), &list, draft.now()));
                });
            }
        }
        self.check();
    }

    /// What a name has is what it had, or what it was promised is still promised.
    fn check_promises(&self, before: Option<&Entry>, key: &Key) {
        let now = self.ledger.get(key).unwrap();
        let Some(before) = before.filter(|before| before.state != State::Released) else {
            assert!(now.promised.is_empty(), "{now:?}");
            return;
        };
        let home = match before.promised.is_empty() {
            true => &before.addresses,
            false => &before.promised,
        };
        for address in home {
            let is_kept = now.owned().any(|owned| owned == *address);
            assert!(is_kept, "{before:?} {now:?}");
        }
    }

    fn check(&self) {
        let ledger = &self.ledger;
        let mut holders = BTreeMap::new();
        for (key, entry) in ledger.entries() {
            for address in entry.owned() {
                assert_eq!(
                    holders.insert(address, key),
                    None,
                    "{address} has two entries"
                );
            }
        }
        for sandbox in self
            .sandboxes
            .iter()
            .filter(|sandbox| !sandbox.addresses.is_empty())
        {
            let entry = ledger
                .get(&sandbox.who.key)
                .expect("a Pod that runs has an entry");
            assert_eq!(entry.state, State::Active, "{sandbox:?}");
            assert_eq!(entry.addresses, sandbox.addresses);
            assert_eq!(entry.container, sandbox.who.container);
        }
    }

    /// All is taken down, and the TTL passes.
    fn end(&mut self) {
        self.disk = self.disk.after_kill();
        self.is_read_only = false;
        while !self.sandboxes.is_empty() {
            self.done(0);
            self.del(0);
        }
        // After a reboot, the first request is what notices it.
        self.request(|_| ());
        self.clock.up += TTL;
        let (answer, has_alarm) = self.request(|_| ());
        assert_eq!((answer, has_alarm), (Some(()), false));
        for (key, entry) in self.ledger.entries() {
            assert_eq!(entry.state, State::Released, "{key} keeps {entry:?}");
        }
        // Whatever of the journal a reader finds, it says of no address that two have it.
        let bytes = self.disk.get("disk/ledger").unwrap_or_default();
        let ends = (0..bytes.len())
            .filter(|&index| bytes[index] == b'\n')
            .step_by(5);
        for end in ends {
            let disk = Memory::default();
            disk.put("ledger", &bytes[..=end]);
            let store = Store::on(disk, Memory::default()).unwrap();
            let entries = store.ledger().entries().values();
            let addresses: Vec<_> = entries.flat_map(Entry::owned).collect();
            assert_eq!(
                addresses.iter().collect::<BTreeSet<_>>().len(),
                addresses.len()
            );
        }
    }
}

proptest! {
    #![proptest_config(crate::cases::cases(1000))]

    #[test]
    fn whatever_happens_an_address_has_one_owner_and_a_name_keeps_its_own(
        events in prop::collection::vec(event(), 1..40)
    ) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
        world.end();
    }
}
