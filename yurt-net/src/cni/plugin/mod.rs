//! `yurt-ipam` and `yurt-cni`: the binary under these names is a CNI plugin.
//!
//! | plugin | where in a configuration | what it does |
//! |---|---|---|
//! | `yurt-ipam` | `ipam.type` of any main plugin | gives a Pod the addresses that it had |
//! | `yurt-cni` | in the list, after the main plugin | gives its interface the MAC that it had, tells the neighbours, writes down the addresses whoever gave them |
//!
//! A plugin is a process for one request: it locks the ledger, reads it, asks `ledger::rules` what to change, writes
//! that, and answers. The agent need not run. `protocol` is the language of runtimes.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::error::CniError;
use super::interface;
use super::protocol::{self, Config, Environment, MacPolicy, StoreConfig, Verb, Version};
use super::{asker, guarding, leftovers, living};
use crate::device::{HostSide, mac_of};
use crate::error::{PathError, chain};
use crate::host::clock::Clock;
use crate::host::disk::read_text;
use crate::host::netns::Netns;
use crate::ledger::adopt::{Leftover, Living, adopt, container_ids};
use crate::ledger::rules::{self, Attachment, Draft, Seen};
use crate::ledger::store::{LedgerDirs, Lock, Store};
use crate::ledger::{Assigner, Entry, Key, Ledger, Now, Record, State};
use crate::output;
use crate::pods::settings::Settings as _;
use crate::pods::translate;
use crate::text;

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;

/// How long to wait for the ledger. A runtime waits for minutes; other plugins hold the ledger for milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// More than any `resolv.conf` has.
const MAX_RESOLVER_BYTES: u64 = 1 << 16;
/// Where host-local keeps its files unless it is told otherwise.
const HOST_LOCAL: &str = "/var/lib/cni/networks";

/// Which plugin this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// `yurt-ipam`.
    Ipam,
    /// `yurt-cni`.
    Chained,
}

impl Plugin {
    /// The plugin that a program of this path is, if any.
    pub fn named(program: &Path) -> Option<Self> {
        match program.file_name()?.to_str()? {
            "yurt-ipam" => Some(Self::Ipam),
            "yurt-cni" => Some(Self::Chained),
            _ => None,
        }
    }

    /// Answers the request that this process was started for.
    pub fn main(self) -> ExitCode {
        let variable = |name| std::env::var(name).unwrap_or_default();
        if std::env::var_os("CNI_COMMAND").is_none() && io::stdin().is_terminal() {
            output::complain(self.what_it_is());
            return ExitCode::FAILURE;
        }
        let environment = Environment {
            command: variable("CNI_COMMAND"),
            container: variable("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS"),
            interface: variable("CNI_IFNAME"),
            args: variable("CNI_ARGS"),
        };
        let mut alarms = Vec::new();
        let (version, result) = self.answer(&environment, &mut alarms);
        for alarm in alarms {
            output::complain(format_args!(
                "{}: alarm: {}",
                self.name(),
                text::message(&alarm)
            ));
        }
        let (code, answer) = match result {
            Ok(answer) => (ExitCode::SUCCESS, answer),
            Err(error) => (ExitCode::FAILURE, protocol::failure(version, &error)),
        };
        if answer.is_null() {
            return code;
        }
        // A runtime logs the answer, and others wrote parts of it.
        let answer = text::json(&answer).unwrap_or_else(|_| answer.to_string());
        match output::print(answer + "\n") {
            Ok(()) => code,
            Err(error) => {
                output::complain(format_args!("{}: {error}", self.name()));
                ExitCode::FAILURE
            }
        }
    }

    /// The text for a person who starts a plugin by hand.
    fn what_it_is(self) -> String {
        let name = self.name();
        format!(
            "{name} is a CNI plugin of yurt-net {}: container runtimes run it, with CNI_COMMAND and others in the environment and a \
             configuration on standard input.\n`CNI_COMMAND=VERSION {name} < /dev/null` tells the versions that it speaks; \
             `yurt-net cni install` puts it into this node's configuration, and `yurt-net ledger` shows what it has given.",
            env!("CARGO_PKG_VERSION")
        )
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ipam => "yurt-ipam",
            Self::Chained => "yurt-cni",
        }
    }

    fn answer(
        self,
        environment: &Environment,
        alarms: &mut Vec<String>,
    ) -> (Version, Result<Value, CniError>) {
        let mut version = Version::NEWEST;
        let mut answer = || {
            // Read before anything can fail: the runtime would take a closed pipe for an error.
            let mut text = Vec::new();
            io::stdin()
                .read_to_end(&mut text)
                .map_err(CniError::Input)?;
            let verb = Verb::parse(&environment.command)?;
            if verb == Verb::Version {
                return Ok(protocol::versions());
            }
            let config = Config::parse(&text)?;
            version = Version::parse(&config.cni_version)?;
            if Version::parse(verb.since())? > version {
                return Err(CniError::TooOld {
                    since: verb.since(),
                });
            }
            Request::new(self, version, environment, &config)?.meet(verb, alarms)
        };
        let result = answer();
        (version, result)
    }
}

/// Whether a step may give addresses: only if it is known which addresses others have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Giving {
    Addresses,
    Nothing,
}

/// The files that another IPAM plugin has left for a network.
#[derive(Default)]
struct Left {
    files: Vec<Leftover>,
    /// `None` if that is not known, or no file names a container.
    living: Option<Living>,
}

/// A valid request for one network.
struct Request<'a> {
    plugin: Plugin,
    version: Version,
    environment: &'a Environment,
    config: &'a Config,
    place: LedgerDirs,
    /// Milliseconds.
    ttl: u64,
}

impl<'a> Request<'a> {
    fn new(
        plugin: Plugin,
        version: Version,
        environment: &'a Environment,
        config: &'a Config,
    ) -> Result<Self, CniError> {
        if config.name.is_empty() {
            return Err(CniError::NoName);
        }
        if !protocol::is_word(&config.name) {
            return Err(CniError::BadName {
                name: config.name.clone(),
            });
        }
        let StoreConfig {
            data_dir,
            run_dir,
            ttl_seconds,
        } = match plugin {
            Plugin::Ipam if config.ipam.is_some() => &config.ipam_store,
            Plugin::Ipam | Plugin::Chained => &config.store,
        };
        let absolute = |key, path: &str| {
            let is_absolute = Path::new(path).is_absolute();
            is_absolute
                .then(|| PathBuf::from(path))
                .ok_or_else(|| CniError::Relative {
                    key,
                    path: path.to_owned(),
                })
        };
        Ok(Self {
            plugin,
            version,
            environment,
            config,
            place: LedgerDirs {
                state_dir: absolute("dataDir", data_dir)?,
                run_dir: absolute("runDir", run_dir)?,
            },
            ttl: ttl_seconds.saturating_mul(1000),
        })
    }

    fn meet(&self, verb: Verb, alarms: &mut Vec<String>) -> Result<Value, CniError> {
        match (verb, self.plugin) {
            (Verb::Version | Verb::Status, _) => self.status(),
            (Verb::Gc, _) => self.gc(alarms),
            (Verb::Del, _) => self.del(alarms),
            (Verb::Add, Plugin::Ipam) => self.add_address(alarms),
            (Verb::Add, Plugin::Chained) => self.add_mac(alarms),
            (Verb::Check, Plugin::Ipam) => self.check_address(),
            (Verb::Check, Plugin::Chained) => self.check_mac(),
        }
    }

    /// Runs a step on the ledger under its lock, and writes what it says.
    fn transact<T>(
        &self,
        giving: Giving,
        alarms: &mut Vec<String>,
        step: impl FnOnce(&Ledger, Now) -> Result<(Vec<Record>, T), CniError>,
    ) -> Result<T, CniError> {
        let (mut lock, mut store) = self.open()?;
        let mut left = None;
        if self.plugin == Plugin::Ipam && !store.ledger().has_adopted(&self.config.name) {
            // Looking for signs of life takes time, and other Pods need the ledger meanwhile.
            drop((lock, store));
            left = match self.left(alarms) {
                Err(error) if giving == Giving::Nothing => {
                    alarms.push(format!(
                        "{}; what is there is taken over once it can be read",
                        chain(&error)
                    ));
                    None
                }
                left => Some(left?),
            };
            (lock, store) = self.open()?;
        }
        let mut draft = Draft::new(store.ledger(), &Clock::read()?);
        let now = draft.now();
        if let Some(Left { files, living }) = left {
            let network = &self.config.name;
            draft.take(adopt(draft.ledger(), network, &files, living.as_ref(), now));
        }
        draft.take(rules::expire(draft.ledger(), self.ttl, now));
        let (records, answer) = step(draft.ledger(), now)?;
        draft.take(records);
        let result = store.commit(draft.into_records());
        alarms.extend(store.alarms().iter().map(|alarm| chain(alarm)));
        result?;
        lock.check()?;
        Ok(answer)
    }

    /// Opens the ledger to change it.
    fn open(&self) -> Result<(Lock, Store), CniError> {
        let lock = Lock::take(&self.place, LOCK_PATIENCE)?;
        Ok((lock, Store::open(&self.place)?))
    }

    /// The files that host-local has left for this network.
    fn left(&self, alarms: &mut Vec<String>) -> Result<Left, CniError> {
        let ipam = self.config.ipam.as_ref();
        let directory = ipam.and_then(|ipam| ipam.migrate_from.as_deref());
        let directory = match directory.unwrap_or(HOST_LOCAL) {
            "" => return Ok(Left::default()),
            directory => Path::new(directory).join(&self.config.name),
        };
        let files = leftovers::read(&directory, alarms)
            .map_err(|PathError { path, source, .. }| CniError::Read { path, source })?;
        let containers = container_ids(&files);
        if containers.is_empty() {
            return Ok(Left {
                files,
                living: None,
            });
        }
        // After the files were read, so that a container that got its address meanwhile is seen, too.
        let living = living::look(&self.environment.netns, containers);
        if living.is_none() {
            alarms.push(format!(
                "it cannot be told which containers of {} live, so each counts as one that does, and its addresses are given to nobody \
                 before the runtime's GC or a reboot",
                directory.display()
            ));
        }
        Ok(Left { files, living })
    }

    /// Whether an ADD could succeed with this configuration.
    fn status(&self) -> Result<Value, CniError> {
        match self.plugin {
            Plugin::Ipam => {
                self.config.range_sets()?;
                self.resolver()?;
            }
            Plugin::Chained => drop(self.config.mac_policy()?),
        }
        Ok(Value::Null)
    }

    fn gc(&self, alarms: &mut Vec<String>) -> Result<Value, CniError> {
        let listed = self.config.valid_attachments.as_ref();
        let valid: BTreeSet<(String, String)> = listed
            .ok_or(CniError::NoAttachments)?
            .iter()
            .map(|valid| (valid.container.clone(), valid.interface.clone()))
            .collect();
        self.transact(Giving::Nothing, alarms, |ledger, now| {
            let network = &self.config.name;
            let records = rules::gc(ledger, network, &valid, asker::is_at_work, now);
            Ok((records, Value::Null))
        })
    }

    fn del(&self, alarms: &mut Vec<String>) -> Result<Value, CniError> {
        let mut who = self.environment.attachment(&self.config.name)?;
        let assigner = match self.plugin {
            Plugin::Ipam => Assigner::Ours,
            Plugin::Chained => Assigner::Other,
        };
        if self.plugin == Plugin::Ipam {
            who.asker = asker::find(self.environment);
        }
        self.transact(Giving::Nothing, alarms, |ledger, now| {
            let records = rules::del(ledger, &who, assigner, asker::is_at_work, now)?;
            Ok((records, Value::Null))
        })
    }

    fn add_address(&self, alarms: &mut Vec<String>) -> Result<Value, CniError> {
        let mut who = self.environment.attachment(&self.config.name)?;
        who.asker = asker::find(self.environment);
        let sets = self.config.range_sets()?;
        let requested = self.config.requested(self.environment)?;
        let resolver = self.resolver()?;
        let assigned = self.transact(Giving::Addresses, alarms, |ledger, now| {
            Ok(rules::add(ledger, &who, &sets, &requested, now)?)
        })?;
        Ok(protocol::ipam_result(
            self.version,
            &assigned,
            self.config,
            &resolver,
        ))
    }

    fn resolver(&self) -> Result<String, CniError> {
        match self
            .config
            .ipam
            .as_ref()
            .map(|ipam| ipam.resolv_conf.as_str())
        {
            None | Some("") => Ok(String::new()),
            Some(path) => {
                read_text(Path::new(path), MAX_RESOLVER_BYTES).map_err(|source| CniError::Read {
                    path: path.into(),
                    source,
                })
            }
        }
    }

    fn check_address(&self) -> Result<Value, CniError> {
        let who = self.environment.attachment(&self.config.name)?;
        let claimed = self.config.claimed(&self.environment.interface)?;
        self.check(&who, &claimed.addresses)?;
        Ok(Value::Null)
    }

    /// Checks against the ledger as of this boot: sandboxes from before a reboot have ended.
    fn check(&self, who: &Attachment, claimed: &[IpAddr]) -> Result<(), CniError> {
        let known = Draft::new(Store::open(&self.place)?.ledger(), &Clock::read()?);
        Ok(rules::check(known.ledger(), who, claimed)?)
    }

    fn add_mac(&self, alarms: &mut Vec<String>) -> Result<Value, CniError> {
        let who = self.environment.attachment(&self.config.name)?;
        let claimed = self.config.claimed(&self.environment.interface)?;
        let netns = self.netns()?;
        let addresses = &claimed.addresses;
        let policy = self.config.mac_policy()?;
        // The ledger as of this boot: sandboxes from before a reboot have ended.
        let known = Draft::new(Store::open(&self.place)?.ledger(), &Clock::read()?);
        // Decided before the interface is touched and neighbours are told about an address that may be another Pod's;
        // and again later, under the lock.
        if let Err(refusal) = rules::admit(known.ledger(), &who, addresses) {
            let host = interface::host_side(&netns, &who.key.interface);
            self.guard(host.unwrap_or_default(), None, alarms);
            return Err(refusal.into());
        }
        let wanted = match policy {
            _ if self.config.is_mac_requested(self.environment) => None,
            MacPolicy::Address => {
                let entry = known.ledger().get(&who.key);
                let wanted = first(&self.known_by(entry, addresses, alarms)).map(mac_of);
                // Another running Pod may still have the MAC of an address that was promised to it.
                wanted.filter(|&mac| !rules::has_mac(known.ledger(), &who, mac))
            }
            // Only requests for this Pod change this, one at a time.
            MacPolicy::First => known.ledger().get(&who.key).and_then(|entry| entry.mac),
        };
        // Outside the lock: the kernel is slow while many Pods start at once.
        let settled = interface::settle(&netns, &who.key.interface, wanted, addresses)?;
        alarms.extend(settled.problems.iter().map(|problem| chain(problem)));
        let seen = Seen {
            mac: settled.mac,
            host: settled.host,
        };
        let written = self.transact(Giving::Nothing, alarms, |ledger, now| {
            let records = rules::observe(ledger, &who, addresses, seen, now)?;
            let written = records.iter().find_map(|record| match record {
                Record::Put { key, entry } if *key == who.key => Some(entry.clone()),
                _ => None,
            });
            Ok((records, written))
        });
        // After the ledger has the entry: the agent removes rows that it finds no reason for.
        let entry = written.as_ref().ok().and_then(Option::as_ref);
        self.guard(seen.host, entry.map(|entry| (&who.key, entry)), alarms);
        written?;
        let previous = self.config.prev_result.clone().unwrap_or_default();
        Ok(claimed.result(previous, settled.mac))
    }

    /// Guards a Pod's device. A Pod without an entry, such as one that was refused and runs until its DEL, may use no
    /// address that has an owner.
    fn guard(
        &self,
        host: Option<HostSide>,
        member: Option<(&Key, &Entry)>,
        alarms: &mut Vec<String>,
    ) {
        let Some(host) = host else { return };
        match guarding::guard(&self.place.state_dir, host, member) {
            Ok(problems) => alarms.extend(problems),
            Err(error) => alarms.push(format!("the Pod is not guarded yet: {}", chain(&error))),
        }
    }

    /// The addresses that a Pod is known by, best first: promised ones that no other Pod can get, then those that it
    /// has.
    fn known_by(
        &self,
        known: Option<&Entry>,
        addresses: &[IpAddr],
        alarms: &mut Vec<String>,
    ) -> Vec<IpAddr> {
        let (mut known_by, by) = match known {
            None => Default::default(),
            // yurt-ipam has just written it.
            Some(entry) if entry.assigner == Assigner::Ours && entry.state == State::Active => {
                (entry.promised.clone(), entry.promised_by)
            }
            Some(entry) => rules::promised(entry, addresses),
        };
        if by == Assigner::Other && !known_by.is_empty() {
            let policy = translate::Policy::load(&self.place.state_dir);
            let policy = policy.unwrap_or_else(|error| {
                alarms.push(chain(&error));
                None
            });
            let policy = policy.unwrap_or_default();
            known_by.retain(|&address| policy.is_exclusive(address));
        }
        known_by.extend(addresses);
        known_by
    }

    fn check_mac(&self) -> Result<Value, CniError> {
        let who = self.environment.attachment(&self.config.name)?;
        let claimed = self.config.claimed(&self.environment.interface)?;
        let interface = &self.environment.interface;
        let actual = interface::mac(&self.netns()?, interface)?;
        match claimed.mac {
            Some(claimed) if claimed != actual => Err(CniError::OtherMac {
                interface: interface.clone(),
                actual,
                claimed,
            }),
            Some(_) | None => {
                self.check(&who, &claimed.addresses)?;
                Ok(Value::Null)
            }
        }
    }

    fn netns(&self) -> Result<Netns, CniError> {
        let path = self.environment.netns()?;
        Netns::open(Path::new(path)).map_err(|source| CniError::Netns {
            path: path.to_owned(),
            source,
        })
    }
}

/// The address that a MAC is derived from: an IPv4 address if there is one.
fn first(addresses: &[IpAddr]) -> Option<IpAddr> {
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    v4.or_else(|| addresses.first()).copied()
}
