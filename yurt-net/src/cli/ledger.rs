//! `ledger`: prints which Pods have, or keep, which addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::{fs, io};

use serde::Serialize;

use crate::config::flags::{LedgerArgs, Output};
use crate::device::Mac;
use crate::host::columns::columns;
use crate::host::netns;
use crate::ledger::watch::{Reading, WatchError};
use crate::ledger::{Assigner, Entry, Key, Ledger, Now, State};
use crate::output::print;
use crate::text;

/// What the operator should know of leaked rows.
const LEAKED: &str = "leaked: recorded as running, and in no network namespace; the runtime's next GC, or a reboot, gives the addresses back\n";

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The directory of the ledger is not there.
    #[error(
        "no ledger is at {}: --state-dir is the plugins' dataDir, or the agent's --state-dir",
        directory.display()
    )]
    NoDirectory {
        /// Where it was looked for.
        directory: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The ledger cannot be read.
    #[error(transparent)]
    Read(#[from] WatchError),
    /// Standard output failed.
    #[error(transparent)]
    Output(#[from] io::Error),
    /// The conversion to JSON failed.
    #[error("convert to JSON")]
    Json(#[from] serde_json::Error),
}

/// The object that `ledger -o json` prints.
#[derive(Serialize)]
struct Listing<'a> {
    entries: Vec<Row<'a>>,
    alarms: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    namespace: &'a str,
    name: &'a str,
    interface: &'a str,
    state: State,
    ipv4: Vec<IpAddr>,
    ipv6: Vec<IpAddr>,
    /// Addresses that it had before it was given others.
    promised: &'a [IpAddr],
    mac: Option<Mac>,
    uid: &'a str,
    sandbox: &'a str,
    network: &'a str,
    assigner: Assigner,
    /// Unix seconds, by the wall clock at that time.
    since: u64,
    /// How long the node has been up since then.
    seconds: u64,
    /// Whether a network namespace of this machine has one of the addresses; for active rows only. `None`: the
    /// namespaces cannot be examined.
    is_found: Option<bool>,
}

impl<'a> Row<'a> {
    fn new(key: &'a Key, entry: &'a Entry, now: Now, live: Option<&BTreeSet<IpAddr>>) -> Self {
        let of = |is_ipv4| {
            let addresses = entry.addresses.iter().copied();
            addresses
                .filter(|address| address.is_ipv4() == is_ipv4)
                .collect()
        };
        Self {
            namespace: &key.namespace,
            name: &key.name,
            interface: &key.interface,
            state: entry.state,
            ipv4: of(true),
            ipv6: of(false),
            promised: &entry.promised,
            mac: entry.mac,
            uid: &entry.uid,
            sandbox: &entry.container,
            network: &entry.network,
            assigner: entry.assigner,
            since: entry.since,
            seconds: now.at.saturating_sub(entry.at) / 1000,
            is_found: live
                .filter(|_| entry.state == State::Active)
                .map(|live| entry.addresses.iter().any(|address| live.contains(address))),
        }
    }

    /// Whether the recorded sandbox does not exist: its DEL was lost, or another IPAM's file outlived it.
    fn is_leaked(&self) -> bool {
        self.is_found == Some(false)
    }

    fn columns(&self) -> [String; 9] {
        const NONE: &str = "-";
        let list = |addresses: &[IpAddr]| match addresses {
            [] => NONE.to_owned(),
            _ => addresses
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
                .join(","),
        };
        let (whose, name) = match self.namespace {
            // Of a container without a Pod only the ID is known.
            "" => ("container ", short(self.name)),
            namespace => (namespace, self.name),
        };
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        [
            format!("{whose}{slash}{name}"),
            self.interface.to_owned(),
            match self.is_leaked() {
                true => "leaked".to_owned(),
                false => self.state.to_string(),
            },
            age(self.seconds),
            list(&self.ipv4),
            list(&self.ipv6),
            list(self.promised),
            self.mac
                .map_or_else(|| NONE.to_owned(), |mac| mac.to_string()),
            short(self.sandbox).to_owned(),
        ]
    }
}

/// A container ID, shortened as runtimes print it.
fn short(container: &str) -> &str {
    container.get(..13).unwrap_or(container)
}

/// An age in its two largest units.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, ..) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

fn table(rows: &[Row<'_>]) -> String {
    let titles = [
        "POD",
        "INTERFACE",
        "STATE",
        "FOR",
        "IPV4",
        "IPV6",
        "HAD BEFORE",
        "MAC",
        "SANDBOX",
    ];
    columns(titles, rows.iter().map(Row::columns))
}

fn rows<'a>(ledger: &'a Ledger, now: Now, live: Option<&BTreeSet<IpAddr>>) -> Vec<Row<'a>> {
    let entries = ledger.entries().iter();
    entries
        .map(|(key, entry)| Row::new(key, entry, now, live))
        .collect()
}

/// The addresses in use in other network namespaces. `None`: none of them can be seen, as without root or `hostPID`.
fn live() -> Option<BTreeSet<IpAddr>> {
    let others = netns::addresses_of_others().unwrap_or_default();
    (!others.is_empty()).then(|| others.into_iter().flatten().collect())
}

/// Prints the ledger. Reads only.
pub fn ledger(args: &LedgerArgs) -> Result<(), ListError> {
    // A directory without a file is an empty ledger: no Pod has an address yet.
    let dirs = args.ledger.dirs();
    fs::read_dir(&dirs.state_dir).map_err(|source| ListError::NoDirectory {
        directory: dirs.state_dir.clone(),
        source,
    })?;
    let Reading {
        ledger,
        now,
        alarms,
    } = Reading::take(&dirs)?;
    let live = live();
    let entries = rows(&ledger, now, live.as_ref());
    match args.output {
        Output::Json => print(text::json(&Listing { entries, alarms })? + "\n")?,
        Output::Table => {
            let mut report = table(&entries);
            if entries.iter().any(Row::is_leaked) {
                report += LEAKED;
            }
            for alarm in alarms {
                report += &format!("alarm: {}\n", text::message(&alarm));
            }
            print(report)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Record;
    use crate::ledger::tests::{entry, key};

    #[test]
    fn a_row_says_who_has_what_and_for_how_long() {
        let mut ledger = Ledger::default();
        let mut web = entry("10.1.0.2", "0123456789abcdef");
        web.addresses.push("fd00::2".parse().unwrap());
        web.promised = vec!["10.9.0.2".parse().unwrap()];
        web.mac = Some("0a:58:0a:01:00:02".parse().unwrap());
        let nameless = Key {
            namespace: String::new(),
            name: "fedcba9876543210".to_owned(),
            interface: "net1".to_owned(),
        };
        ledger.apply(Record::Put {
            key: key("web-0"),
            entry: web,
        });
        ledger.apply(Record::Put {
            key: nameless,
            entry: entry("10.1.0.3", "fedcba9876543210"),
        });
        let now = Now {
            at: 100 + 3_700_000,
            since: 0,
        };
        let expected = "\
POD                      INTERFACE  STATE   FOR   IPV4      IPV6     HAD BEFORE  MAC                SANDBOX
container fedcba9876543  net1       active  1h1m  10.1.0.3  -        -           -                  fedcba9876543
shop/web-0               eth0       active  1h1m  10.1.0.2  fd00::2  10.9.0.2    0a:58:0a:01:00:02  0123456789abc
";
        assert_eq!(table(&rows(&ledger, now, None)), expected);

        // An address that no namespace has is found, if the namespaces can be seen; a Pod that is away has none.
        let mut away = entry("10.1.0.4", "c3");
        away.state = State::Retained;
        ledger.apply(Record::Put {
            key: key("web-1"),
            entry: away,
        });
        let live = ["127.0.0.1", "fd00::2"].map(|address| address.parse().unwrap());
        let live = BTreeSet::from(live);
        let rows = rows(&ledger, now, Some(&live));
        let found: Vec<_> = rows.iter().map(|row| row.is_found).collect();
        assert_eq!(found, [Some(false), Some(true), None]);
        let states: Vec<_> = rows.iter().map(|row| row.columns()[2].clone()).collect();
        assert_eq!(states, ["leaked", "active", "retained"]);
    }

    #[test]
    fn ages_are_short() {
        let ages = [5, 65, 3700, 90_000].map(age);
        assert_eq!(ages, ["5s", "1m5s", "1h1m", "1d1h"]);
    }
}
