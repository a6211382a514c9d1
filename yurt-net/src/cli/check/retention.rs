//! Checks whether the Pods really have the addresses that the ledger says they have.
//!
//! A ledger is right about the containers that it was told about, but a runtime may have told it only half. So it is
//! compared with the addresses that are really in the network namespaces of this machine, and with the devices that the
//! agent guards.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::finding::{Finding, Outcome};
use crate::config::Place;
use crate::error::chain;
use crate::host::netns;
use crate::ledger::watch::Reading;
use crate::ledger::{Key, Ledger, State};
use crate::observe::status::Status;

/// How many Pods are named at most.
const NAMED: usize = 5;

/// Reads the ledger and looks into the namespaces; `agent` is the running agent's status.
pub(super) fn findings(place: &Place, agent: Option<&Status>) -> Vec<Finding> {
    let reading = match Reading::take(&place.ledger()) {
        Ok(reading) => reading,
        Err(error) => {
            let remedy = "Pods get addresses only once it can be read: see the reason";
            let error = chain(&error);
            return vec![Finding::new("ledger", Outcome::Failed, error, remedy)];
        }
    };
    let mut findings = vec![ledger(&reading)];
    if reading.ledger.entries().is_empty() {
        return findings;
    }
    match netns::addresses_of_others() {
        Ok(live) => findings.extend(addresses(&reading.ledger, &live)),
        Err(error) => findings.push(Finding::new(
            "addresses",
            Outcome::Warning,
            format!("the namespaces of this machine cannot be looked at: {error}"),
            "run it as root in the node's own process namespace (hostPID: true)",
        )),
    }
    if let Some(agent) = agent {
        findings.push(guard(&reading.ledger, agent));
        findings.extend(translated(agent));
    }
    findings
}

fn ledger(reading: &Reading) -> Finding {
    if let [alarm, ..] = reading.alarms.as_slice() {
        let remedy = "until then a reboot may change addresses";
        return Finding::new("ledger", Outcome::Warning, alarm.as_str(), remedy);
    }
    let count = |state| {
        let entries = reading.ledger.entries().values();
        entries.filter(|entry| entry.state == state).count()
    };
    let (active, retained) = (count(State::Active), count(State::Retained));
    if active + retained == 0 {
        return Finding::new(
            "ledger",
            Outcome::Warning,
            "the ledger is empty: no Pod of this node was made by yurt-ipam or yurt-cni, so no Pod keeps its address",
            "install the plugins (docs/retention.md), and make a Pod",
        );
    }
    let detail = format!("{active} interfaces of Pods, and {retained} that are away");
    Finding::ok("ledger", detail)
}

/// The first few, as text.
fn named<'a>(keys: impl Iterator<Item = &'a Key>) -> String {
    let all: Vec<String> = keys.map(Key::to_string).collect();
    let more = match all.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let first: Vec<String> = all.into_iter().take(NAMED).collect();
    format!("{}{more}", first.join(", "))
}

fn addresses(ledger: &Ledger, live: &[Vec<IpAddr>]) -> Vec<Finding> {
    let mut users: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for address in live.iter().flatten() {
        *users.entry(*address).or_default() += 1;
    }
    let uses = |address: &IpAddr| users.get(address).copied().unwrap_or_default();
    let entries = || ledger.entries().iter();
    let active = || entries().filter(|(_, entry)| entry.state == State::Active);
    let twice: Vec<&Key> = active()
        .filter(|(_, entry)| entry.addresses.iter().any(|address| uses(address) > 1))
        .chain(entries().filter(|(_, entry)| {
            entry.state == State::Retained && entry.addresses.iter().any(|a| uses(a) > 0)
        }))
        .map(|(key, _)| key)
        .collect();
    let gone: Vec<&Key> = active()
        .filter(|(_, entry)| entry.addresses.iter().all(|address| uses(address) == 0))
        .map(|(key, _)| key)
        .collect();
    let mut findings = Vec::new();
    if !twice.is_empty() {
        findings.push(Finding::new(
            "addresses",
            Outcome::Failed,
            format!(
                "addresses of {} are used by somebody else too",
                named(twice.iter().copied())
            ),
            "another IPAM or a Pod itself has taken them: delete these Pods, so that they are made anew, and give the range to one plugin only",
        ));
    }
    if !gone.is_empty() {
        findings.push(Finding::new(
            "leaks",
            Outcome::Warning,
            format!(
                "the ledger has Pods as running whose addresses are in no network namespace: {}",
                named(gone.iter().copied())
            ),
            "their DEL was lost: the runtime's next GC, or a reboot, gives the addresses back",
        ));
    }
    if findings.is_empty() {
        let count: usize = active().map(|(_, entry)| entry.addresses.len()).sum();
        findings.push(Finding::ok(
            "addresses",
            format!("all {count} addresses of running Pods are where the ledger has them, and nowhere else"),
        ));
    }
    findings
}

fn guard(ledger: &Ledger, agent: &Status) -> Finding {
    let retention = &agent.retention;
    if retention.guard == "off" {
        return Finding::new(
            "guarded",
            Outcome::Warning,
            "the guard is off: any Pod may use any address",
            "start the agent without --guard=off",
        );
    }
    let is_guarded = |key: &Key| {
        let mut pods = retention.pods.iter();
        pods.any(|pod| {
            pod.device.is_some()
                && (&pod.namespace, &pod.name, &pod.interface)
                    == (&key.namespace, &key.name, &key.interface)
        })
    };
    let entries = ledger.entries().iter();
    let reachable = entries.filter(|(_, entry)| entry.host.is_some());
    let (with, without): (Vec<&Key>, Vec<&Key>) = reachable
        .map(|(key, _)| key)
        .partition(|key| is_guarded(key));
    if without.is_empty() {
        let detail = format!("{} interfaces of Pods, {}", with.len(), retention.guard);
        return Finding::ok("guarded", detail);
    }
    Finding::new(
        "guarded",
        Outcome::Failed,
        format!("Pods are not guarded: {}", named(without.into_iter())),
        "`yurt-net status` and the agent's log say why; --device must name the Pods' devices",
    )
}

/// The finding for Pods that have lost an address; none if every Pod has what it had.
fn translated(agent: &Status) -> Option<Finding> {
    let pods = agent.retention.pods.iter();
    let moved: Vec<_> = pods
        .filter(|pod| pod.state == State::Active && !pod.promised.is_empty())
        .collect();
    let lost = moved.iter().filter(|pod| {
        let mut promised = pod.promised.iter();
        promised.any(|address| !pod.translated.contains(address))
    });
    let lost: Vec<Key> = lost
        .map(|pod| Key {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            interface: pod.interface.clone(),
        })
        .collect();
    if moved.is_empty() {
        return None;
    }
    Some(match lost.is_empty() {
        true => {
            let detail = format!(
                "{} interfaces of Pods appear with what they had",
                moved.len()
            );
            Finding::ok("translated", detail)
        }
        false => Finding::new(
            "translated",
            Outcome::Warning,
            format!(
                "Pods were given other addresses than they had: {}",
                named(lost.iter())
            ),
            "`yurt-net status` says which and why; --translate=on or the Pod's annotation keeps them (docs/retention.md)",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HostSide;
    use crate::ledger::Record;
    use crate::ledger::tests::{entry, key};
    use crate::observe::status::GuardedPodStatus;

    /// `web` runs at .2, `away` is kept at .3.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        let mut web = entry("10.1.0.2", "c1");
        web.host = Some(HostSide {
            ifindex: 7,
            other_end: None,
        });
        let mut away = entry("10.1.0.3", "c2");
        away.state = State::Retained;
        for (name, entry) in [("web", web), ("away", away)] {
            let key = key(name);
            ledger.apply(Record::Put { key, entry });
        }
        ledger
    }

    fn outcomes(live: &[&[&str]]) -> Vec<(&'static str, Outcome)> {
        let live: Vec<Vec<IpAddr>> = live
            .iter()
            .map(|pod| pod.iter().map(|text| text.parse().unwrap()).collect())
            .collect();
        let findings = addresses(&ledger(), &live);
        let outcomes = findings.iter();
        outcomes
            .map(|finding| (finding.check, finding.result))
            .collect()
    }

    #[test]
    fn an_address_that_two_have_is_a_failure_and_one_that_nobody_has_a_leak() {
        let ok = [("addresses", Outcome::Ok)];
        assert_eq!(outcomes(&[&["127.0.0.1", "10.1.0.2"], &["10.1.0.9"]]), ok);
        let duplicate = [("addresses", Outcome::Failed)];
        assert_eq!(outcomes(&[&["10.1.0.2"], &["10.1.0.2"]]), duplicate);
        // The address is kept for an absent Pod, and another one uses it.
        assert_eq!(outcomes(&[&["10.1.0.2"], &["10.1.0.3"]]), duplicate);
        assert_eq!(outcomes(&[]), [("leaks", Outcome::Warning)]);
    }

    #[test]
    fn a_pod_without_a_guard_is_named() {
        let mut agent = Status::default();
        agent.retention.guard = "audit".to_owned();
        let finding = guard(&ledger(), &agent);
        assert_eq!(finding.result, Outcome::Failed);
        assert!(finding.detail.contains("shop/web"), "{}", finding.detail);
        let web = key("web");
        agent.retention.pods.push(GuardedPodStatus {
            namespace: web.namespace,
            name: web.name,
            interface: web.interface,
            state: State::Active,
            addresses: Vec::new(),
            promised: Vec::new(),
            translated: Vec::new(),
            mac: None,
            device: Some("veth1".to_owned()),
            audited: 0,
            dropped: 0,
        });
        assert_eq!(guard(&ledger(), &agent).result, Outcome::Ok);
        agent.retention.guard = "off".to_owned();
        assert_eq!(guard(&ledger(), &agent).result, Outcome::Warning);
    }

    #[test]
    fn a_pod_that_has_lost_its_address_is_named_unless_it_is_translated() {
        let mut agent = Status::default();
        let web = key("web");
        agent.retention.pods.push(GuardedPodStatus {
            namespace: web.namespace,
            name: web.name,
            interface: web.interface,
            state: State::Active,
            addresses: vec!["10.1.0.2".parse().unwrap()],
            promised: Vec::new(),
            translated: Vec::new(),
            mac: None,
            device: None,
            audited: 0,
            dropped: 0,
        });
        assert!(translated(&agent).is_none());
        let had: IpAddr = "10.9.0.2".parse().unwrap();
        agent.retention.pods[0].promised = vec![had];
        let finding = translated(&agent).unwrap();
        assert_eq!(finding.result, Outcome::Warning);
        assert!(finding.detail.contains("shop/web"), "{}", finding.detail);
        agent.retention.pods[0].translated = vec![had];
        assert_eq!(translated(&agent).unwrap().result, Outcome::Ok);
    }

    #[test]
    fn a_ledger_without_pods_says_that_retention_is_not_installed() {
        let finding = super::ledger(&Reading::default());
        assert_eq!(finding.result, Outcome::Warning);
        assert!(finding.remedy.contains("install the plugins"));
    }
}
