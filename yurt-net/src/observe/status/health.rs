//! Whether the node's Services are served, and what is wrong: a join of what the agent's parts report. Pure.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::refused::RefusedService;

/// Something that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    /// What, in one word: the label of a metric.
    pub what: String,
    /// Why, for people.
    pub reason: String,
}

/// What can be degraded: the labels of a metric. Each has a sample, at 0 too.
pub(crate) const FAULTS: [&str; 12] = [
    "checkpoint",
    "claim",
    "configuration",
    "manifests",
    "pins",
    "programs",
    "ranges",
    "repair",
    "socket",
    "source",
    "space",
    "state",
];

/// Manifests that are named.
const NAMED: usize = 3;

/// What the agent's parts report at present.
#[derive(Clone, Debug, Default)]
pub struct Health<'a> {
    /// The first table is applied, and the programs were attached.
    pub is_serving: bool,
    /// Programs that should be attached, and are not.
    pub detached: Vec<&'static str>,
    /// The first pin that is not there, and how many such there are.
    pub unpinned: Option<(PathBuf, usize)>,
    /// Why it is not known which pins are there.
    pub unseen: Option<String>,
    /// What the last repair could not mend.
    pub failures: &'a [String],
    /// The maps of an earlier agent are left alone: no source is in charge, and they may be newer than the checkpoint.
    pub is_holding: bool,
    /// Manifests that cannot be read, and why.
    pub manifests: Vec<String>,
    /// Sources that are not asked, although there is only the checkpoint.
    pub unasked: Vec<String>,
    /// Sources that have sent everything, which may be older than what is in force.
    pub unproven: Vec<String>,
    /// Where the networks of Pods and of Services overlap.
    pub ranges: Option<String>,
    /// Service ports that do not fit into each full map, and the first of them.
    pub refused: Vec<(&'a str, usize, &'a RefusedService)>,
    /// What is wrong with the state directory.
    pub state: Option<(&'a Path, String)>,
    /// Why the checkpoint could not be saved.
    pub checkpoint: Option<&'a str>,
    /// Why the agent's socket is not in its place.
    pub socket: Option<String>,
    /// Why this agent shares with others what it should have for itself.
    pub claim: Option<&'a String>,
    /// Why the configuration file is not in force.
    pub configuration: Option<String>,
}

impl Health<'_> {
    /// By this agent's table, or by what an earlier one left.
    pub fn serves(&self) -> bool {
        self.is_serving || self.is_holding
    }

    /// Services are served, and what was found amiss was mended. Probes ask for this.
    pub fn is_ready(&self) -> bool {
        self.serves() && self.detached.is_empty() && self.failures.is_empty()
    }

    /// What is wrong.
    #[expect(
        clippy::too_many_lines,
        reason = "one row for each fault, in the order in which they are shown"
    )]
    pub fn degraded(&self) -> Vec<Degraded> {
        let mut degraded = Vec::new();
        let mut say = |what: &str, reason: String| {
            degraded.push(Degraded {
                what: what.to_owned(),
                reason,
            });
        };
        if self.serves() && !self.detached.is_empty() {
            say(
                "programs",
                format!("not attached: {}", self.detached.join(", ")),
            );
        }
        if let Some((first, count)) = &self.unpinned {
            let first = first.display();
            say(
                "pins",
                format!(
                    "{count} pins are missing, {first} first: without them Services end when this process does; is a bpf file system mounted there?"
                ),
            );
        }
        if let Some(error) = &self.unseen {
            say("pins", format!("the pins cannot be looked at: {error}"));
        }
        for failure in self.failures {
            say("repair", failure.clone());
        }
        if self.is_holding {
            let reason = "no source is in charge since the start: what an earlier agent left in the kernel is served on as it is, \
                          for the checkpoint may be older";
            say("source", reason.to_owned());
        }
        if !self.unasked.is_empty() {
            let names = self.unasked.join(", ");
            say(
                "source",
                format!("the checkpoint is in force, and not asked yet: {names}"),
            );
        }
        if !self.unproven.is_empty() {
            let names = self.unproven.join(", ");
            say(
                "source",
                format!(
                    "{names} may be older than what is in force, and waits until the cloud is heard through it"
                ),
            );
        }
        if let Some(reason) = &self.ranges {
            say("ranges", reason.clone());
        }
        for (map, count, first) in &self.refused {
            let RefusedService { service, flag, .. } = first;
            say(
                "space",
                format!(
                    "{map} is full, and {count} service ports do not fit, {service} first: raise {flag}"
                ),
            );
        }
        if !self.manifests.is_empty() {
            let mut reason = self
                .manifests
                .iter()
                .take(NAMED)
                .cloned()
                .collect::<Vec<_>>();
            if let Some(more) = self.manifests.len().checked_sub(NAMED + 1) {
                reason.push(format!("and {} more", more + 1));
            }
            say("manifests", reason.join("; "));
        }
        if let Some((directory, reason)) = &self.state {
            let directory = directory.display();
            say("state", format!("{directory}: {reason}"));
        }
        if let Some(reason) = self.checkpoint {
            say(
                "checkpoint",
                format!(
                    "not saved, so that a reboot without the cloud would bring an older state: {reason}"
                ),
            );
        }
        if let Some(reason) = &self.socket {
            say("socket", format!("agent.sock {reason}"));
        }
        if let Some(reason) = self.claim {
            say(
                "claim",
                format!("neither repairs nor the checkpoint are written: {reason}"),
            );
        }
        if let Some(reason) = &self.configuration {
            say(
                "configuration",
                format!("the file is refused, and what it said before is in force: {reason}"),
            );
        }
        degraded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that serves, and of which something is amiss.
    fn serving() -> Health<'static> {
        Health {
            is_serving: true,
            ..Health::default()
        }
    }

    fn whats(health: &Health<'_>) -> Vec<String> {
        health
            .degraded()
            .into_iter()
            .map(|fault| fault.what)
            .collect()
    }

    fn left_out() -> RefusedService {
        RefusedService {
            service: "tenant/web:http".to_owned(),
            map: "yurt_slot".to_owned(),
            flag: "--max-slots4".to_owned(),
            has_some: false,
            endpoints_in_force: None,
            endpoints: None,
        }
    }

    #[test]
    fn a_full_map_that_leaves_services_out_is_degraded_and_says_what_to_raise() {
        let left_out = left_out();
        let health = Health {
            refused: vec![("yurt_slot", 19_762, &left_out)],
            ..serving()
        };
        assert!(health.is_ready(), "all others are served");
        assert_eq!(whats(&health), ["space"]);
        let said = &health.degraded()[0].reason;
        for part in ["yurt_slot", "19762", "tenant/web:http", "--max-slots4"] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn what_the_disk_does_is_told_and_costs_no_readiness() {
        let health = Health {
            state: Some((
                Path::new("/var/lib/yurt-net"),
                "Read-only file system".to_owned(),
            )),
            checkpoint: Some("create checkpoint.new: Read-only file system"),
            socket: Some("is at /run/yurt-net/agent.sock".to_owned()),
            ..serving()
        };
        assert!(health.is_ready());
        assert_eq!(whats(&health), ["state", "checkpoint", "socket"]);
    }

    #[test]
    fn a_checkpoint_and_a_source_that_was_never_asked_are_degraded() {
        let health = Health {
            unasked: vec!["kube:".to_owned()],
            ..serving()
        };
        assert!(health.is_ready());
        assert_eq!(whats(&health), ["source"]);
        assert!(health.degraded()[0].reason.contains("kube:"));
    }

    #[test]
    fn a_hub_that_may_be_older_than_what_is_in_force_is_degraded() {
        let health = Health {
            unproven: vec!["yurthub:".to_owned()],
            ..serving()
        };
        assert!(health.is_ready());
        assert_eq!(whats(&health), ["source"]);
        assert!(health.degraded()[0].reason.starts_with("yurthub: may be"));
    }

    #[test]
    fn who_serves_nobody_or_could_not_mend_what_it_found_is_not_ready() {
        assert!(serving().is_ready() && serving().degraded().is_empty());
        assert!(!Health::default().is_ready());
        let detached = Health {
            detached: vec!["yurt_connect4"],
            ..serving()
        };
        let failures = ["attach yurt_connect4".to_owned()];
        let failed = Health {
            failures: &failures,
            ..serving()
        };
        for (health, what) in [(detached, "programs"), (failed, "repair")] {
            assert!(!health.is_ready(), "{what}");
            assert_eq!(whats(&health), [what]);
        }
    }

    #[test]
    fn what_an_earlier_agent_left_is_served_and_told() {
        let health = Health {
            is_holding: true,
            ..Health::default()
        };
        assert!(health.is_ready());
        assert_eq!(whats(&health), ["source"]);
    }

    #[test]
    fn a_few_manifests_are_named_and_the_rest_is_counted() {
        let health = Health {
            manifests: (0..1000)
                .map(|n| format!("{n}.yaml: cannot be read"))
                .collect(),
            ..serving()
        };
        let [fault] = &*health.degraded() else {
            panic!("{:?}", health.degraded());
        };
        assert!(fault.reason.starts_with("0.yaml: cannot be read; 1.yaml"));
        assert!(fault.reason.ends_with("; and 997 more"), "{}", fault.reason);
    }

    #[test]
    fn every_fault_has_its_word_among_the_metrics_labels() {
        let failures = ["one".to_owned()];
        let (left_out, reason) = (left_out(), String::new());
        let everything = Health {
            is_serving: true,
            detached: vec!["yurt_connect4"],
            unpinned: Some((PathBuf::from("/sys/fs/bpf/yurt-net"), 3)),
            unseen: None,
            failures: &failures,
            is_holding: false,
            manifests: vec!["web.yaml: cannot be read".to_owned()],
            unasked: vec!["kube:".to_owned()],
            unproven: Vec::new(),
            ranges: Some(String::new()),
            refused: vec![("yurt_slot", 3, &left_out)],
            state: Some((Path::new("/"), String::new())),
            checkpoint: Some(""),
            socket: Some(String::new()),
            claim: Some(&reason),
            configuration: Some(String::new()),
        };
        let mut said = whats(&everything);
        said.sort();
        assert_eq!(said, FAULTS);
    }
}
